# SPDX-License-Identifier: Apache-2.0
"""Validation of distilled dialogues: the marks that a provider's API or a careless script left in the
answers.

A published model of this family sometimes answers with its teacher's request envelope right after </think>:
nobody had looked. Problems are sentences; an empty list means that nothing was found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from earnest.dialogue.message import THINK_CLOSE, THINK_OPEN, Message
from earnest.dialogue.records import Dialogue
from earnest.dialogue.tokenizer import FAMILY_SPECIALS

# Keys of request and response objects of chat APIs. Two of them in one object are an envelope, not an answer.
ENVELOPE_KEYS = frozenset(
    {
        "model",
        "prompt",
        "messages",
        "choices",
        "usage",
        "finish_reason",
        "finishReason",
        "candidates",
        "object",
        "created",
        "completion_tokens",
        "prompt_tokens",
        "total_tokens",
        "stop_reason",
        "reasoning_content",
        "role",
        "content",
        "delta",
        "logprobs",
        "system_fingerprint",
        "request_id",
        "status_code",
        "error",
        "temperature",
        "max_tokens",
        "top_p",
        "usageMetadata",
        "safetyRatings",
        "index",
        "stream",
    }
)
_KEY = re.compile(r'\\?"([A-Za-z_]+)\\?"\s*:')
_OBJECT = re.compile(r'[{\[]\s*\{?\s*\\?"')
_TAG = re.compile(r"</?think(?:ing)?>", re.IGNORECASE)


def has_envelope(text: str) -> bool:
    """Whether a reply holds an API object: whole, cut off, escaped, or stuck to the end of an answer."""
    for match in _OBJECT.finditer(text):
        tail = text[match.start() :]
        if len(ENVELOPE_KEYS.intersection(_KEY.findall(tail))) >= 2:
            return True
        if "provider" in tail[:200] and "model" in _KEY.findall(tail):
            return True
    return False


def _is_bare_json(text: str) -> bool:
    """Whether a whole reply is one JSON object: somebody forgot to take the answer out of it."""
    body = text.strip()
    if not body.startswith("{"):
        return False
    try:
        return isinstance(json.loads(body), dict)
    except ValueError:
        return False


def _assistant_problems(message: Message) -> list[str]:
    problems = []
    reply, thought = message.text, message.reasoning or ""
    blocks = len(re.findall(r"<think(?:ing)?>", reply + thought, re.IGNORECASE)) + (
        message.reasoning is not None
    )
    if blocks > 1:
        problems.append(f"{blocks} think blocks where one is allowed")
    elif _TAG.search(reply):
        unclosed = THINK_OPEN in reply and THINK_CLOSE not in reply
        problems.append("a think block that is never closed" if unclosed else "a think tag inside the reply")
    elif _TAG.search(thought):
        problems.append("a think tag inside the reasoning")
    if has_envelope(reply):
        problems.append("an API envelope in the reply")
    elif _is_bare_json(reply):
        problems.append("a bare JSON object in place of the reply")
    if has_envelope(thought):
        problems.append("an API envelope in the reasoning")
    if not reply.strip():
        problems.append("an empty reply")
    found = [
        name for name in FAMILY_SPECIALS if name not in (THINK_OPEN, THINK_CLOSE) and name in reply + thought
    ]
    if found:
        problems.append(f"the special token {found[0]} spelled out as text")
    if "\ufffd" in reply + thought:
        problems.append("a replacement character (text was decoded wrongly)")
    return problems


def validate_example(example: Dialogue | Sequence[Message], *, ends_with_assistant: bool = True) -> list[str]:
    """What is wrong with a distilled dialogue, each as one sentence that names the message."""
    messages = example.messages if isinstance(example, Dialogue) else example
    problems: list[str] = []
    for i, message in enumerate(messages):
        if message.role == "assistant":
            problems += [f"messages[{i}]: {problem}" for problem in _assistant_problems(message)]
            if i and messages[i - 1].role == "assistant":
                problems.append(f"messages[{i}]: a second assistant turn in a row")
        elif not message.parts or not (message.audios or message.text.strip()):
            problems.append(f"messages[{i}]: an empty {message.role} turn")
    if ends_with_assistant and (not messages or messages[-1].role != "assistant"):
        problems.append("messages: no assistant turn last, so there is nothing to learn")
    if not any(message.role in ("user", "human") for message in messages):
        problems.append("messages: no user turn")
    return problems

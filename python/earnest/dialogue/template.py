# SPDX-License-Identifier: Apache-2.0
"""Template: messages to token ids, with the places of audio and of what is to be learnt.

Every turn is ``<|BOT|>role\\n`` + content + ``<|EOT|>``; "user" is written "human", other roles as they
stand. Parts are joined by a newline, except after a clip. A clip is, for each chunk, ``<audio_start>``, as
many ``<audio_patch>`` as the adaptor gives frames, ``<audio_end>``. An assistant turn with reasoning is
``<think>\\n`` reasoning ``\\n</think>\\n`` reply; an empty thought is therefore ``<think>\\n\\n</think>\\n``.

- ``canonical`` closes every turn, so that each turn's prompt is a prefix of the next one's.
- ``stepfun-compat`` gives what the published chat template gives, its bug included: assistant turns are never
  closed (a flag set inside an inner loop is lost), "function_output" turns vanish, the generation prompt
  opens a thought.

Text between special tokens is encoded as one run, as it would be in the rendered string, but never across the
places where a prompt can end (after ``assistant\\n`` and after ``<think>\\n``): a prompt's ids are a prefix
of the trained row's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from earnest.dialogue.message import THINK_CLOSE, THINK_OPEN, Audio, Message, Text
from earnest.dialogue.tokenizer import AUDIO_END, AUDIO_PATCH, AUDIO_START, BOT, EOT, Tokenizer
from earnest.errors import InvalidInput

TEMPLATES = ("canonical", "stepfun-compat")
AudioTokens = Callable[[Audio], Sequence[int]]


class AudioSpan(NamedTuple):
    """The <audio_patch> tokens of one chunk: positions start .. start + length."""

    clip: int
    chunk: int
    start: int
    length: int


@dataclass
class Rendered:
    """A dialogue as tokens. ``loss_mask`` is True where the token at that position is a training target.

    ``audio_spans`` are in the order of the clips. ``inside_thought``: the tokens end within an opened
    thought, which is what `ReasoningStream` has to be told about the completion that follows.
    """

    ids: list[int] = field(default_factory=list)
    loss_mask: list[bool] = field(default_factory=list)
    audio_spans: list[AudioSpan] = field(default_factory=list)
    inside_thought: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def with_completion(self, ids: Sequence[int], *, trainable: bool = True) -> Rendered:
        """This prompt followed by sampled ids, exactly as sampled: nothing is decoded and encoded again."""
        return Rendered(
            [*self.ids, *(int(token) for token in ids)],
            [*self.loss_mask, *[trainable] * len(ids)],
            list(self.audio_spans),
        )


class _Writer:
    """Collects tokens; text is gathered and encoded when a special token, a seam or the end comes."""

    def __init__(self, tokenizer: Tokenizer, audio_tokens: AudioTokens) -> None:
        self.tokenizer, self.audio_tokens = tokenizer, audio_tokens
        self.out, self.run, self.train, self.clip = Rendered(), "", False, 0

    def _append(self, ids: Sequence[int]) -> None:
        self.out.ids.extend(ids)
        self.out.loss_mask.extend([self.train] * len(ids))

    def seam(self, train: bool | None = None) -> None:
        if self.run:
            self._append(self.tokenizer.encode(self.run))
            self.run = ""
        if train is not None:
            self.train = train

    def text(self, text: str) -> None:
        self.run += text

    def special(self, name: str) -> None:
        self.seam()
        self._append([self.tokenizer.special(name)])

    def tag(self, name: str) -> None:
        """A think tag: its token, or its text where the vocabulary has no token for it."""
        if name in self.tokenizer.specials:
            self.special(name)
        else:
            self.text(name)

    def audio(self, audio: Audio) -> None:
        counts = [int(count) for count in self.audio_tokens(audio)]
        if sum(counts) < 1 or min(counts) < 0:
            raise InvalidInput(
                "render",
                f"audio_tokens of clip {self.clip}",
                "at least one adaptor frame (more than 20 ms of sound)",
                str(counts),
            )
        for chunk, count in enumerate(counts):
            if not count:  # a last chunk of under 20 ms gives the adaptor nothing to say
                continue
            self.special(AUDIO_START)
            self.out.audio_spans.append(AudioSpan(self.clip, chunk, len(self.out.ids), count))
            self._append([self.tokenizer.special(AUDIO_PATCH)] * count)
            self.special(AUDIO_END)
        self.clip += 1

    def content(self, message: Message) -> None:
        for i, part in enumerate(message.parts):
            if i and not isinstance(message.parts[i - 1], Audio):
                self.text("\n")
            if isinstance(part, Text):
                self.text(part.text)
            else:
                self.audio(part)

    def thought(self, reasoning: str, *, closed: bool = True) -> None:
        self.tag(THINK_OPEN)
        self.text("\n")
        self.seam()
        self.text(reasoning)
        if closed:
            self.text("\n")
            self.tag(THINK_CLOSE)
            self.text("\n")


def _render_tools(writer: _Writer, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> None:
    writer.special(BOT)
    writer.text("system\n")
    if messages and messages[0].role == "system":
        writer.content(messages[0])
        writer.special(EOT)
    writer.special(BOT)
    writer.text("tool_json_schemas\n" + json.dumps(list(tools), ensure_ascii=False))
    writer.special(EOT)


def _render_turn(writer: _Writer, message: Message) -> None:
    writer.special(BOT)
    writer.text("human\n" if message.role == "user" else f"{message.role}\n")
    writer.content(message)
    writer.special(EOT)


def _render_prompt(writer: _Writer, *, think: bool) -> None:
    writer.special(BOT)
    writer.text("assistant\n")
    writer.seam()
    if think:
        writer.thought("", closed=False)
    writer.out.inside_thought = think


def _render_assistant(
    writer: _Writer, message: Message, reasoning: str | None, *, train: bool, close: bool
) -> None:
    writer.special(BOT)
    writer.text("assistant\n")
    writer.seam(train)
    if reasoning is not None:
        writer.thought(reasoning)
    writer.content(message)
    if close:
        writer.special(EOT)
    writer.seam(False)


def _render_prefill(writer: _Writer, message: Message) -> None:
    """An assistant turn left open, to be continued: verbatim, but the author's think tags become tokens."""
    writer.special(BOT)
    writer.text("assistant\n")
    writer.seam()
    if message.reasoning is not None:
        writer.thought(message.reasoning, closed=bool(message.text))
        writer.out.inside_thought = not message.text
        writer.text(message.text)
    else:
        for piece in re.split(f"({THINK_OPEN}|{THINK_CLOSE})", message.text):
            if piece in (THINK_OPEN, THINK_CLOSE):
                writer.tag(piece)
                writer.out.inside_thought = piece == THINK_OPEN
            else:
                writer.text(piece)
    writer.seam()


def _check(
    messages: Sequence[Message],
    template: str,
    generation_prompt: bool | str,
    continue_final: bool,
    train: str,
    history: str,
) -> None:
    if template not in TEMPLATES:
        raise InvalidInput("render", "template", f"one of {list(TEMPLATES)}", repr(template))
    if generation_prompt not in (False, True, "plain", "think"):
        raise InvalidInput(
            "render", "generation_prompt", "False, True, 'plain' or 'think'", repr(generation_prompt)
        )
    if train not in ("all", "last", "none"):
        raise InvalidInput("render", "train", "'all', 'last' or 'none'", repr(train))
    if history not in ("keep", "strip"):
        raise InvalidInput("render", "history", "'keep' or 'strip'", repr(history))
    if continue_final and generation_prompt:
        raise InvalidInput("render", "continue_final", "not both this and generation_prompt", "both")
    if continue_final and (not messages or messages[-1].role != "assistant"):
        raise InvalidInput(
            "render", "continue_final", "an assistant turn last", messages[-1].role if messages else "none"
        )
    if (
        history == "strip"
        and train == "all"
        and any(m.role == "assistant" and m.reasoning is not None for m in messages[:-1])
    ):
        raise InvalidInput(
            "render",
            "train",
            "'last' where history='strip' takes earlier thoughts away (rows_per_turn gives one row per turn)",
            "'all'",
        )


def render(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    audio_tokens: AudioTokens | None = None,
    template: Literal["canonical", "stepfun-compat"] = "canonical",
    generation_prompt: bool | Literal["plain", "think"] = False,
    continue_final: bool = False,
    train: Literal["all", "last", "none"] | None = None,
    history: Literal["keep", "strip"] = "keep",
    empty_think: bool = False,
    close_last: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> Rendered:
    """Render a dialogue.

    audio_tokens       clip -> adaptor frames of each of its chunks (at most 29.98 s each)
    generation_prompt  False; "plain": ``<|BOT|>assistant\\n``; "think": the same + ``<think>\\n``; True: the
                       template's own habit (canonical plain, stepfun-compat think)
    continue_final     leave the last assistant turn open and take its text verbatim, to be continued
    train              which assistant turns are targets (thought, reply and <|EOT|>); default "all", but
                       "none" where a completion is to follow
    history            "strip" takes the thoughts of all assistant turns before the last message away
    empty_think        a trained turn without reasoning gets an empty think block (the recipe's rule for SFT);
                       history stays as it is, so that the row begins with the prompt
    close_last         with stepfun-compat: close the last assistant turn all the same, to learn its end
    tools              JSON schemas, rendered before the dialogue
    """
    if train is None:
        train = "none" if generation_prompt or continue_final else "all"
    _check(messages, template, generation_prompt, continue_final, train, history)
    writer = _Writer(tokenizer, audio_tokens or _no_audio)
    compat = template == "stepfun-compat"
    turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
    if tools:
        _render_tools(writer, messages, tools)
    for i, message in enumerate(messages):
        final = i == len(messages) - 1
        if message.role != "assistant":
            dropped = compat and message.role == "function_output"
            if not dropped and not (i == 0 and tools and message.role == "system"):
                _render_turn(writer, message)
        elif continue_final and final:
            _render_prefill(writer, message)
        else:
            trained = train == "all" or (train == "last" and i == turns[-1])
            reasoning = "" if message.reasoning is None and empty_think and trained else message.reasoning
            if history == "strip" and not final:
                reasoning = None
            close = not compat or (close_last and final)
            _render_assistant(writer, message, reasoning, train=trained, close=close)
    if generation_prompt:
        _render_prompt(writer, think=generation_prompt == "think" or (generation_prompt is True and compat))
    writer.seam()
    return writer.out


def _no_audio(audio: Audio) -> Sequence[int]:
    raise InvalidInput("render", "audio_tokens", "a function, since the dialogue holds a clip", "None")


def rows_per_turn(messages: Sequence[Message]) -> list[tuple[Message, ...]]:
    """One training row for each assistant turn, the dialogue up to it: for ``history="strip"``."""
    return [tuple(messages[: i + 1]) for i, message in enumerate(messages) if message.role == "assistant"]

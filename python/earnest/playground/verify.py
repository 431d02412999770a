# SPDX-License-Identifier: Apache-2.0
"""Checks of a reply against what is known by construction: the answer, the standing rule, the remarks made.

The checks do not care about form: digits or number words, capitals, punctuation, a sentence or a label.
"""

from __future__ import annotations

import re

from earnest.playground.samples import Sample, Topic
from earnest.playground.sentences import COLOURS, NAMES, NUMBERS

_ORDINARY = "normal ordinary medium moderate average"
_SYNONYMS = {
    "rate": {"fast": "fast faster", "normal": _ORDINARY, "slow": "slow slowly slower"},
    "pitch": {"high": "high higher", "middle": f"middle {_ORDINARY}", "low": "low lower"},
    "loudness": {"loud": "loud loudly louder", "normal": _ORDINARY, "quiet": "quiet quietly"},
}
# Words by which a reply remarks on the voice, one family per property; phrases are matched as written.
_REMARKS = {
    "fast": ("hurry", "quickly", "quick", "no time to lose"),
    "slow": ("no rush", "take your time", "easy"),
    "loud": ("energy", "power"),
    "quiet": ("softly", "soft", "gently", "gentle"),
    "high": ("bright", "cheerful"),
    "low": ("deep", "serious"),
    "calm": ("calm", "steady"),
}
_LABELS = ("fast", "slow", "loud", "quiet", "high", "low")
_VALUES = {name: i for i, name in enumerate(NUMBERS)} | {"twenty one": 21}
_NUMBER = re.compile(r"\b(?:\d+|" + "|".join(sorted(_VALUES, key=len, reverse=True)) + r")\b")
_EQUATION = re.compile(r"\b(\d+) (plus|minus|and|\+|-) (\d+)(?: is| are| makes| make| equals| gives| =)")


def normal(text: str) -> str:
    """Lower case, number words as digits, no punctuation but + - =, single spaces."""
    text = re.sub(r"[^a-z0-9+=' -]", " ", text.lower())
    text = _NUMBER.sub(lambda m: m[0] if m[0].isdigit() else str(_VALUES[m[0]]), text)
    return re.sub(r"\s+", " ", text.replace("-", " - ").replace("+", " + ").replace("=", " = ")).strip()


def _contains(text: str, phrase: str) -> bool:
    return f" {phrase} " in f" {text} "


def remarks(topic: Topic, reply: str) -> set[str]:
    """The properties that a reply claims to hear, apart from the answer to a question about one."""
    text = normal(reply)
    own = _SYNONYMS.get(topic.kind, {})
    # Of the property that was asked about, plain labels are the answer and no remark.
    labels = {name for name in _LABELS if name not in own and _contains(text, name)}
    return labels | {name for name, phrases in _REMARKS.items() if any(_contains(text, p) for p in phrases)}


def keeps_rule(rule: str | None, reply: str) -> bool:
    """Whether a reply keeps the standing instruction."""
    words = re.findall(r"[a-z0-9'-]+", reply.lower())
    if rule is None:
        return True
    if not words:
        return False
    if rule == "one word":
        return len(words) == 1
    if rule == "end with thanks":
        return words[-1] == "thanks"
    if rule == "start with okay":
        return words[0] == "okay"
    return rule.removeprefix("call me ") in words


def right_answer(topic: Topic, reply: str) -> bool:
    """Whether the reply gives the answer, and no other answer beside it."""
    text = normal(reply)
    if re.search(r"\b(?:not|isn't|never) (?:\w+ )?" + re.escape(topic.answer) + r"\b", text):
        return False
    return given_answers(topic, reply) == {topic.answer}


def given_answers(topic: Topic, reply: str) -> set[str]:
    """Every answer of the topic's kind that the reply gives, operands of a repeated sum left out."""
    text = normal(reply)
    if topic.kind == "number":
        operands = set(topic.operands)
        rest = _EQUATION.sub(lambda m: "" if {int(m[1]), int(m[3])} == operands else m[0], text)
        return {str(int(value)) for value in re.findall(r"\d+", rest)}
    if topic.kind in _SYNONYMS:
        return {
            name
            for name, words in _SYNONYMS[topic.kind].items()
            if any(_contains(text, word) for word in words.split())
        }
    family = COLOURS if topic.kind == "colour" else NAMES
    return {value for value in family if _contains(text, value)}


def verify(sample: Sample, text: str) -> bool:
    """The verifiable reward: the right answer, no competing one, and the rule that was given kept."""
    return right_answer(sample.topic, text) and keeps_rule(sample.rule, text)


def acknowledges(sample: Sample, text: str) -> bool:
    """Whether the reply aptly takes up how the speaker sounds: a true remark, and no false one."""
    made = remarks(sample.topic, text)
    return bool(made) and made <= set(sample.sounds[-1].salient)


def false_remarks(sample: Sample, text: str) -> set[str]:
    """Claims about the voice that are not true."""
    return remarks(sample.topic, text) - set(sample.sounds[-1].salient)

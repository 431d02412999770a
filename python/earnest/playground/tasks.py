# SPDX-License-Identifier: Apache-2.0
"""The six tasks as plans: what is said in each turn, what the answer is, and the step that leads to it.

A plan holds no sound. The world speaks it (world.py), or writes it out where only text is wanted.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from earnest.playground.replies import LISTENING, UNDERSTOOD
from earnest.playground.samples import SPLITS, Topic
from earnest.playground.sentences import (
    ARITHMETIC,
    COLOURS,
    CONSISTENCY,
    DIGITS,
    NAMES,
    NEUTRAL,
    NUMBERS,
    RECALL_ASK,
    RECALL_TELL,
    REPAIR,
    RULES,
    SOUND,
    THINGS,
    WRITTEN_SOUND,
    Sum,
    carrier_split,
    one_of,
    result,
    sums,
    words_of,
)

SUM_CORES = ("it is {x}", "that makes {x}", "the answer is {x}")
SOUND_CORES = {
    "rate": ("you sound {x}", "your speech is {x}", "your pace is {x}"),
    "pitch": ("your voice is {x}", "your pitch is {x}", "you sound {x}"),
    "loudness": ("you sound {x}", "your volume is {x}", "you are {x}"),
}


@dataclass(frozen=True)
class Turn:
    """A user turn: the sentence spoken, a question in writing beside it or None, and how it is answered.

    topic: what a reply has to say, or None where one of the ``fixed`` replies will do.
    """

    say: str
    text: str | None = None
    topic: Topic | None = None
    fixed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A dialogue before it is spoken. step: ends the reasoning. rule: in force from turn ``rule_from`` on."""

    task: str
    turns: tuple[Turn, ...]
    step: str
    rule: str | None = None
    rule_from: int = 0

    @property
    def topic(self) -> Topic:
        topic = self.turns[-1].topic
        assert topic is not None
        return topic


def _sum_text(s: Sum) -> str:
    return f"{DIGITS[s[0]]} {s[1]} {DIGITS[s[2]]}"


def equation(a: int, op: str, b: int) -> str:
    """A sum as the reasoning writes it: counted out in steps of one ("3 + 5: 5 3, 6 2, 7 1, 8 0 = 8.").

    A step is the same few rules whatever the operands are, so that sums never seen in training can be worked
    out, not looked up.
    """
    at, left = (max(a, b), min(a, b)) if op == "plus" else (a, b)
    way = 1 if op == "plus" else -1
    steps = ", ".join(f"{at + way * done} {left - done}" for done in range(left + 1))
    return f"{a} {'+' if op == 'plus' else '-'} {b}: {steps} = {result(a, op, b)}."


_COUNTED = re.compile(r"(\d+ [+-] \d+): [\d, ]+ = ")


def looked_up(reasoning: str) -> str:
    """Reasoning that writes the result of a sum at once, as one does who knows it: "3 + 5 = 8." It is right
    where the sum is known, and a guess where it is not."""
    return _COUNTED.sub(r"\1 = ", reasoning)


def heard(sentence: str) -> str:
    """A spoken sentence as the reasoning writes it down."""
    return " ".join(words_of(sentence))


def _sum_topic(s: Sum) -> Topic:
    return Topic("number", str(result(*s)), SUM_CORES, (s[0], s[2]))


def _sum_turn(rng: random.Random, split: str) -> tuple[Turn, Sum]:
    s = rng.choice(sums()[split])
    say = one_of(ARITHMETIC[carrier_split(split)], rng).format(x=_sum_text(s))
    return Turn(say, topic=_sum_topic(s)), s


def _neutral(rng: random.Random, split: str) -> str:
    return one_of(NEUTRAL[carrier_split(split)], rng).format(
        c=rng.choice(COLOURS), c2=rng.choice(COLOURS), t=rng.choice(THINGS)
    )


def arithmetic(rng: random.Random, split: str) -> Plan:
    turn, s = _sum_turn(rng, split)
    return Plan("arithmetic", (turn,), equation(*s))


def repair(rng: random.Random, split: str) -> Plan:
    """The operation or its second operand is changed in mid-sentence; only the change counts."""
    s = rng.choice(sums()[split])
    # What is taken back is a sum of the training split: no other split's sum is ever heard in training.
    first = rng.choice([t for t in sums()["train"] if t[0] == s[0] and t != s])
    say = one_of(REPAIR[carrier_split(split)], rng).format(
        a=DIGITS[s[0]], op=first[1], b=DIGITS[first[2]], op2=s[1], c=DIGITS[s[2]]
    )
    topic = Topic("number", str(result(*s)), (*SUM_CORES, "with the change it is {x}"), (s[0], s[2]))
    return Plan("repair", (Turn(say, topic=topic),), equation(*s))


def sound(rng: random.Random, split: str) -> Plan:
    """How the speaker sounds, asked aloud or in writing; the answer stays open until it is spoken."""
    kind = rng.choice(("rate", "pitch", "loudness"))
    topic = Topic(kind, "", SOUND_CORES[kind])
    if rng.random() < 0.6:
        turn = Turn(one_of(SOUND[kind][carrier_split(split)], rng), topic=topic)
    else:
        turn = Turn(_neutral(rng, split), rng.choice(WRITTEN_SOUND[kind]), topic)
    return Plan("sound", (turn,), f"{kind}: {{x}}.")


def recall(rng: random.Random, split: str) -> Plan:
    """Something told, one or two turns of something else, then asked for."""
    kind = rng.choice(("number", "number", "colour", "name"))
    value = rng.choice({"number": DIGITS, "colour": COLOURS, "name": NAMES}[kind])
    told = one_of(RECALL_TELL[kind][carrier_split(split)], rng).format(v=value)
    turns = [Turn(told, fixed=UNDERSTOOD)]
    for _ in range(rng.choice((1, 1, 2))):
        idle = Turn(_neutral(rng, split), fixed=LISTENING)
        turns.append(_sum_turn(rng, split)[0] if rng.random() < 0.5 else idle)
    answer = str(DIGITS.index(value)) if kind == "number" else value
    topic = Topic(kind, answer, (f"your {kind} was {{x}}", "you said {x}", "it was {x}"))
    turns.append(Turn(one_of(RECALL_ASK[kind][carrier_split(split)], rng), topic=topic))
    return Plan("recall", tuple(turns), f"before: {heard(told)}: {kind} {answer}.")


def instruction(rng: random.Random, split: str) -> Plan:
    """A rule given once, perhaps a sum that is answered under it, then the sum to be answered."""
    rule = rng.choice(("call", "call", "one word", "end with thanks", "start with okay"))
    if rule == "call":
        rule = rng.choice([name for name in RULES if name.startswith("call me")])
    said = one_of(RULES[rule][carrier_split(split)], rng)
    turns = [Turn(said, fixed=UNDERSTOOD)]
    if rng.random() < 0.3:
        turns.append(_sum_turn(rng, split)[0])
    last, s = _sum_turn(rng, split)
    return Plan("instruction", (*turns, last), f"rule: {heard(said)}. {equation(*s)}", rule, 1)


def consistency(rng: random.Random, split: str) -> Plan:
    """A sum, then something to be done with the answer that the model itself gave."""
    while True:
        operands: tuple[int, ...] = ()
        first, s = _sum_turn(rng, split)
        before, change = result(*s), rng.choice(tuple(CONSISTENCY))
        if change == "repeat":
            after, step = before, f"before: {before}."
        else:
            follow: Sum = (before, "plus" if change[0] == "+" else "minus", int(change[1:]))
            if follow[0] < follow[2] and follow[1] == "minus":
                continue
            if any(follow in sums()[other] for other in SPLITS[1:] if other != split):
                continue
            after, step = result(*follow), f"before: {before}. {equation(*follow)}"
            operands = (before, follow[2])
        cores = ("that makes {x}", "now it is {x}")
        if change == "repeat":
            cores = ("I said {x}", "my answer was {x}")
        topic = Topic("number", str(after), cores, operands)
        say = one_of(CONSISTENCY[change][carrier_split(split)], rng)
        return Plan("consistency", (first, Turn(say, topic=topic)), step)


PLANS: dict[str, Callable[[random.Random, str], Plan]] = {
    "arithmetic": arithmetic,
    "sound": sound,
    "recall": recall,
    "instruction": instruction,
    "consistency": consistency,
    "repair": repair,
}


def written(rng: random.Random, split: str) -> tuple[str, Topic, str]:
    """A question without sound, for text-only reasoning: (question, topic, step)."""
    s = rng.choice(sums()[split])
    way = rng.randrange(3)
    if way == 0:
        question = one_of(ARITHMETIC[carrier_split(split)], rng).format(x=_sum_text(s))
        return question, _sum_topic(s), equation(*s)
    if way == 1:
        return f"{s[0]} {'+' if s[1] == 'plus' else '-'} {s[2]}", _sum_topic(s), equation(*s)
    n = rng.randrange(0, 19)
    nearby, value = rng.choice((("after", n + 1), ("before", n - 1))) if n else ("after", 1)
    topic = Topic("number", str(value), ("it is {x}", "that is {x}"), (n,))
    name = NUMBERS[n] if rng.random() < 0.5 else str(n)
    return f"which number comes {nearby} {name}", topic, f"{nearby} {n} comes {value}."

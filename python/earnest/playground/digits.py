# SPDX-License-Identifier: Apache-2.0
"""The six tasks where only digits are spoken: the digits are heard, what to do with them stands in writing.

Held out are pairs of digits (in the order in which they are heard) and ways to ask. Training never hears
such a pair in any task, nor writes its sum.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import lru_cache

from earnest.playground import tasks
from earnest.playground.replies import LISTENING, UNDERSTOOD
from earnest.playground.samples import SPLITS, Topic
from earnest.playground.sentences import DIGITS, RULES, Sum, carrier_split, one_of, result, sums
from earnest.playground.tasks import SOUND_CORES, SUM_CORES, Plan, Turn, equation

ASK = {
    "plus": {
        "train": (
            "Add them.",
            "Please add them.",
            "What is their sum?",
            "Add the two numbers.",
            "How much are they together?",
        ),
        "heldout": ("Please add the two numbers.", "How much is their sum?"),
    },
    "minus": {
        "train": (
            "Take the second from the first.",
            "What is the first minus the second?",
            "Please take the second from the first.",
            "How much is the first minus the second?",
        ),
        "heldout": ("Take the second number from the first.", "Please, what is the first minus the second?"),
    },
    "larger": {
        "train": (
            "Which is larger?",
            "Tell me the larger number.",
            "Which number is larger?",
            "What is the larger number?",
        ),
        "heldout": ("Tell me which is larger.", "Please tell me which number is larger."),
    },
    "smaller": {
        "train": (
            "Which is smaller?",
            "Tell me the smaller number.",
            "Which number is smaller?",
            "What is the smaller number?",
        ),
        "heldout": ("Tell me which is smaller.", "Please tell me which number is smaller."),
    },
}
SOUND = {
    "rate": {
        "train": (
            "How fast do I speak?",
            "Is my speech fast, normal or slow?",
            "Do I sound fast, normal or slow?",
        ),
        "heldout": ("Tell me how fast I speak.", "Is my speech slow, normal or fast?"),
    },
    "pitch": {
        "train": (
            "How high is my voice?",
            "Is my voice high, middle or low?",
            "Do I sound high, middle or low?",
        ),
        "heldout": ("Tell me how high my voice is.", "Is my voice low, middle or high?"),
    },
    "loudness": {
        "train": (
            "How loud am I?",
            "Do I sound loud, normal or quiet?",
            "Is my voice loud, normal or quiet?",
        ),
        "heldout": ("Tell me how loud I am.", "Do I sound quiet, normal or loud?"),
    },
}
TELL = {
    "train": ("Remember this number.", "Please remember this.", "This is my number."),
    "heldout": ("Please remember this number.", "This is my number, remember this."),
}
RECALL = {
    "train": (
        "What was my number?",
        "Tell me my number.",
        "Which number did I tell you to remember?",
        "Say my number again.",
    ),
    "heldout": ("Please tell me my number.", "Say again what my number was."),
}
LISTEN = {"train": ("Just listen.", "Nothing to do here."), "heldout": ("Just listen here.",)}
ADD = {
    "train": ("Add this to your answer.", "What is your answer plus this?"),
    "heldout": ("Please add this to your answer.", "How much is your answer plus this?"),
}
TAKE = {
    "train": ("Take this from your answer.", "What is your answer minus this?"),
    "heldout": ("Please take this from your answer.", "How much is your answer minus this?"),
}
REPLACE = {
    "train": (
        "The last number replaces the second.",
        "Not the second number but the last.",
        "I mean the last number, not the second.",
    ),
    "heldout": ("Not the second, I mean the last number.", "The second number is the last."),
}
LARGER_CORES = {
    "larger": ("it is {x}", "the larger number is {x}", "the answer is {x}"),
    "smaller": ("it is {x}", "the smaller number is {x}", "the answer is {x}"),
}

Pair = tuple[int, int]


def ways_of(split: str) -> str:
    """Written questions are few: held-out has its own, and all others those of training."""
    return "heldout" if split == "heldout" else "train"


@lru_cache(maxsize=1)
def pairs() -> dict[str, tuple[Pair, ...]]:
    """The pairs of digits of each split, disjoint: those of its sums, and for training all that are left."""
    left = {(a, b) for a in range(10) for b in range(10)}
    found: dict[str, tuple[Pair, ...]] = {}
    for split in ("heldout", "validation", "practice"):
        own = {(a, b) for a, _, b in sums()[split]} & left
        found[split] = tuple(sorted(own))
        left -= own
    return {**found, "train": tuple(sorted(left))}


@lru_cache(maxsize=1)
def questions() -> dict[str, dict[str, tuple[Sum, ...]]]:
    """What may be asked of the pairs of each split: sums of the same split, and which of two is larger."""
    found: dict[str, dict[str, tuple[Sum, ...]]] = {}
    for split in SPLITS:
        own = pairs()[split]
        found[split] = {
            op: tuple(s for s in sums()[split] if s[1] == op and (s[0], s[2]) in own)
            for op in ("plus", "minus")
        }
        for op in LARGER_CORES:
            found[split][op] = tuple((a, op, b) for a, b in own if a != b)
    return found


def _spoken(*digits: int) -> str:
    return " ".join(DIGITS[digit] for digit in digits)


def _count(rng: random.Random, split: str, length: int) -> tuple[int, ...]:
    """Digits that mean nothing; in training no two neighbours are a pair of another split."""
    while True:
        found = tuple(rng.randrange(10) for _ in range(length))
        if split != "train" or all(pair in pairs()["train"] for pair in itertools.pairwise(found)):
            return found


def any_digits(rng: random.Random, split: str) -> str:
    """Two to five digits in no order that means anything, to be written down."""
    return _spoken(*_count(rng, split, rng.randint(2, 5)))


def _answer(s: Sum) -> int:
    a, op, b = s
    if op in LARGER_CORES:
        return max(a, b) if op == "larger" else min(a, b)
    return result(a, op, b)


def _step(s: Sum) -> str:
    a, op, b = s
    if op in LARGER_CORES:
        return f"{max(a, b)} > {min(a, b)}." if op == "larger" else f"{min(a, b)} < {max(a, b)}."
    return equation(a, op, b)


def _topic(s: Sum, *cores: str) -> Topic:
    return Topic("number", str(_answer(s)), LARGER_CORES.get(s[1], SUM_CORES) + cores, (s[0], s[2]))


def _draw(
    rng: random.Random, split: str, ops: tuple[str, ...] = ("plus", "plus", "minus", *LARGER_CORES)
) -> Sum:
    return rng.choice(questions()[split][rng.choice(ops)])


def _ask(rng: random.Random, split: str, s: Sum) -> str:
    return rng.choice(ASK[s[1]][ways_of(split)])


def _question(rng: random.Random, split: str, s: Sum, before: str = "") -> Turn:
    return Turn(_spoken(s[0], s[2]), before + _ask(rng, split, s), _topic(s))


def arithmetic(rng: random.Random, split: str) -> Plan:
    s = _draw(rng, split)
    return Plan("arithmetic", (_question(rng, split, s),), _step(s))


def repair(rng: random.Random, split: str) -> Plan:
    """A digit, or what to do with the two, is taken back; only the change counts."""
    s, ways = _draw(rng, split), ways_of(split)
    topic = _topic(s, "with the change it is {x}")
    if rng.random() < 0.5:
        other = rng.choice([op for op in ASK if op != s[1]])
        first, then = rng.choice(ASK[other][ways]), _ask(rng, split, s)
        text = f"{first} No, {then[0].lower()}{then[1:]}"
        return Plan("repair", (Turn(_spoken(s[0], s[2]), text, topic),), _step(s))
    known = pairs()["train"]
    taken_back = rng.choice([b for b in range(10) if b != s[2] and (s[0], b) in known and (b, s[2]) in known])
    say = f"{_spoken(s[0], taken_back)}, {_spoken(s[2])}"
    text = f"{rng.choice(REPLACE[ways])} {_ask(rng, split, s)}"
    return Plan("repair", (Turn(say, text, topic),), _step(s))


def sound(rng: random.Random, split: str) -> Plan:
    """How the speaker sounds; the answer stays open until it is spoken."""
    kind = rng.choice(tuple(SOUND))
    say = _spoken(*_count(rng, split, rng.randint(2, 4)))
    turn = Turn(say, rng.choice(SOUND[kind][ways_of(split)]), Topic(kind, "", SOUND_CORES[kind]))
    return Plan("sound", (turn,), f"{kind}: {{x}}.")


def recall(rng: random.Random, split: str) -> Plan:
    """A digit to remember, one or two turns of something else, then it is asked for beside other digits."""
    value, ways = rng.randrange(10), ways_of(split)
    turns = [Turn(_spoken(value), rng.choice(TELL[ways]), fixed=UNDERSTOOD)]
    for _ in range(rng.choice((1, 1, 2))):
        idle = Turn(_spoken(*_count(rng, split, 2)), rng.choice(LISTEN[ways]), fixed=LISTENING)
        turns.append(_question(rng, split, _draw(rng, split)) if rng.random() < 0.5 else idle)
    topic = Topic("number", str(value), ("your number was {x}", "you said {x}", "it was {x}"))
    turns.append(Turn(_spoken(*_count(rng, split, rng.randint(1, 2))), rng.choice(RECALL[ways]), topic))
    return Plan("recall", tuple(turns), f"before: number {value}.")


def instruction(rng: random.Random, split: str) -> Plan:
    """A rule in writing beside a question that is answered under it; it holds for the last question, too."""
    rule = rng.choice(("call", "call", "one word", "end with thanks", "start with okay"))
    if rule == "call":
        rule = rng.choice([name for name in RULES if name.startswith("call me")])
    said = one_of(RULES[rule][carrier_split(split)], rng)
    turns = [_question(rng, split, _draw(rng, split), f"{said[0].upper()}{said[1:]}. ")]
    if rng.random() < 0.3:
        turns.append(_question(rng, split, _draw(rng, split)))
    s = _draw(rng, split)
    return Plan("instruction", (*turns, _question(rng, split, s)), f"rule: {rule}. {_step(s)}", rule)


def consistency(rng: random.Random, split: str) -> Plan:
    """A sum, then a digit to add to the answer that the model itself gave, or to take from it."""
    ways = ways_of(split)
    while True:
        first = _draw(rng, split, ("plus", "plus", "minus"))
        before, op = _answer(first), rng.choice(("plus", "minus"))
        # beyond nine only small steps, which stay within the numbers that have words
        follow: Sum = (before, op, rng.randrange(10) if before <= 9 else rng.randint(1, 3))
        if not 0 <= result(*follow) <= 21:
            continue
        if any(follow in sums()[other] for other in SPLITS[1:] if other != split):
            continue
        topic = Topic(
            "number", str(result(*follow)), ("that makes {x}", "now it is {x}"), (before, follow[2])
        )
        text = rng.choice((ADD if op == "plus" else TAKE)[ways])
        turns = (_question(rng, split, first), Turn(_spoken(follow[2]), text, topic))
        return Plan("consistency", turns, f"before: {before}. {_step(follow)}")


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
    if rng.random() < 0.5:
        return tasks.written(rng, split)
    s = _draw(rng, split)
    heard = _spoken(s[0], s[2]) if rng.random() < 0.5 else f"{s[0]} {s[2]}"
    return f"{heard}. {_ask(rng, split, s)}", _topic(s), _step(s)

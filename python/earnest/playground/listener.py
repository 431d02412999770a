# SPDX-License-Identifier: Apache-2.0
"""The listener stands in for people: it prefers replies that are right, apt, and kept to what was asked.

Training meets it through ``compare`` alone: an ordinal level with human-like noise. ``utility`` is for
evaluation.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
from collections.abc import Callable, Sequence

from earnest.errors import InvalidInput
from earnest.playground.samples import Reply, Sample
from earnest.playground.verify import acknowledges, false_remarks, keeps_rule, right_answer


def words_in(text: str) -> list[str]:
    return re.findall(r"[a-z0-9'-]+", text.lower())


def _criterion_rule(rule: str) -> Callable[[Sample, str], bool]:
    return lambda sample, text: keeps_rule(rule, text)


# What a rubric may ask for, in words that a judge reads, and how it is checked.
CRITERIA: dict[str, Callable[[Sample, str], bool]] = {
    "gives the right answer": lambda sample, text: right_answer(sample.topic, text),
    "is one word": _criterion_rule("one word"),
    "ends with thanks": _criterion_rule("end with thanks"),
    "starts with okay": _criterion_rule("start with okay"),
    **{f"says {title}": _criterion_rule(f"call me {title}") for title in ("captain", "doctor", "boss")},
    "takes up how the speaker sounds": acknowledges,
    "does not mention the voice": lambda sample, text: (
        not acknowledges(sample, text) and not false_remarks(sample, text)
    ),
    "has at most six words": lambda sample, text: 0 < len(words_in(text)) <= 6,
    "is a whole sentence": lambda sample, text: (
        len(words_in(text)) >= 3 and text.rstrip()[-1:] in (".", "!", "?")
    ),
}
RULE_CRITERION = {
    "one word": "is one word",
    "end with thanks": "ends with thanks",
    "start with okay": "starts with okay",
    **{f"call me {title}": f"says {title}" for title in ("captain", "doctor", "boss")},
}

_LEVELS = (0.4, 1.5)  # differences of utility at which a listener says "better" and "much better"
_BRIEF = {"is one word", "has at most six words"}
_NOISE = 0.35  # scale of the logistic noise on a difference


class Listener:
    """Hidden preferences over replies. Pure: the same question, seed and index get the same answer."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = int(seed)

    def utility(self, sample: Sample, reply: Reply | str, rubric: Sequence[str] | None = None) -> float:
        """How much a reply is liked (about -3 .. 3). For evaluation only: no training may read it."""
        text = reply.text if isinstance(reply, Reply) else reply
        words = words_in(text)
        right = right_answer(sample.topic, text)
        total = 1.5 if right else -1.5
        if sample.rule is not None:
            total += 0.7 if keeps_rule(sample.rule, text) else -0.7
        total -= 0.8 * len(false_remarks(sample, text))
        total -= self._too_long(sample, words) + 0.5 * _repeats(words)
        brief_is_wanted = sample.rule == "one word" or not _BRIEF.isdisjoint(rubric or ())
        weight = 1.0 if rubric is None else 0.3
        if not brief_is_wanted:
            total += weight * (self._aptness(sample, text, words) if right else 0.0)
        if rubric is not None:
            total += 1.6 * _satisfied(sample, text, rubric) - 0.8
        return total

    def compare(
        self,
        sample: Sample,
        a: Reply | str,
        b: Reply | str,
        rubric: Sequence[str] | None = None,
        index: int = 0,
    ) -> int:
        """Level of ``a`` against ``b``: 2 much better, 1, 0, -1, -2. compare(b, a) is always its negative."""
        first, second = (reply.text if isinstance(reply, Reply) else reply for reply in (a, b))
        if first == second:
            return 0
        sign = 1 if first < second else -1
        key = f"{self.seed}|{sample.id}|{min(first, second)}|{max(first, second)}|{rubric}|{index}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        uniform = (int.from_bytes(digest, "big") + 0.5) / 2**64
        noise = sign * _NOISE * math.log(uniform / (1 - uniform))
        difference = self.utility(sample, first, rubric) - self.utility(sample, second, rubric) + noise
        size = sum(abs(difference) >= level for level in _LEVELS)
        return size if difference > 0 else -size

    def true_level(
        self, sample: Sample, a: Reply | str, b: Reply | str, rubric: Sequence[str] | None = None
    ) -> int:
        """What ``compare`` would say without noise. For evaluation only."""
        difference = self.utility(sample, a, rubric) - self.utility(sample, b, rubric)
        size = sum(abs(difference) >= level for level in _LEVELS)
        return size if difference > 0 else -size

    @staticmethod
    def _aptness(sample: Sample, text: str, words: list[str]) -> float:
        """How a right reply meets the speaker: a bare label is curt, least to one who is in a hurry."""
        if len(words) <= 2:
            return -0.15 if "fast" in sample.sounds[-1].salient else -0.5
        return 0.8 if acknowledges(sample, text) else 0.1

    @staticmethod
    def _too_long(sample: Sample, words: list[str]) -> float:
        welcome = 12 if "fast" in sample.sounds[-1].salient else 14
        return 0.12 * max(len(words) - welcome, 0)


def _repeats(words: list[str]) -> int:
    """How many pairs of neighbouring words were said before."""
    pairs = list(itertools.pairwise(words))
    return len(pairs) - len(set(pairs))


def _satisfied(sample: Sample, text: str, rubric: Sequence[str]) -> float:
    for criterion in rubric:
        if criterion not in CRITERIA:
            raise InvalidInput("listener", "rubric", f"criteria of {sorted(CRITERIA)}", repr(criterion))
    return sum(CRITERIA[criterion](sample, text) for criterion in rubric) / len(rubric)


def dialogue_rubric(sample: Sample, rng: random.Random) -> tuple[str, ...] | None:
    """The rubric that a dialogue itself calls for: its rule, or for half of the others what people like."""
    if sample.rule is not None:
        return ("gives the right answer", RULE_CRITERION[sample.rule])
    if rng.random() < 0.5:
        return ("gives the right answer", "takes up how the speaker sounds")
    return None


def comparison_rubric(sample: Sample, rng: random.Random) -> tuple[str, ...] | None:
    """A rubric to compare two replies by, or None for half of them; it may change who wins."""
    if rng.random() < 0.5:
        return None
    if sample.rule is not None or rng.random() < 0.4:
        return dialogue_rubric(sample, rng) or ("gives the right answer",)
    return (
        "gives the right answer",
        rng.choice(
            (
                "is one word",
                "has at most six words",
                "does not mention the voice",
                "is a whole sentence",
                "takes up how the speaker sounds",
            )
        ),
    )

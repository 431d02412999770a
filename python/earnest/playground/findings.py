# SPDX-License-Identifier: Apache-2.0
"""What can be found out about a reply by checking it: facts in a fixed order, which a judge learns to write
down before its verdict. They say what is so, not what is liked: no preference of the listener is in them.

    8 7 wrong kept quiet loud untrue half

the answer that is wanted, the one that the reply gives, whether they agree; whether the standing rule is
kept; what a remark says of the voice, how the voice is, whether the remark is true; how much of the rubric is
met. What has to be compared is written down side by side: a small model compares two neighbours easily, and
two words far apart hardly at all.
"""

from __future__ import annotations

from collections.abc import Sequence

from earnest.playground.listener import CRITERIA
from earnest.playground.samples import Sample
from earnest.playground.verify import false_remarks, given_answers, keeps_rule, remarks, right_answer

NO_ANSWER = "unclear"


def findings(sample: Sample, reply: str, rubric: Sequence[str] | None) -> str:
    """The facts about `reply`, as the words above."""
    given = given_answers(sample.topic, reply)
    return " ".join(
        (
            sample.topic.answer,
            given.pop() if len(given) == 1 else NO_ANSWER,
            "right" if right_answer(sample.topic, reply) else "wrong",
            "free" if sample.rule is None else "kept" if keeps_rule(sample.rule, reply) else "broken",
            _remark(sample, reply),
            _met(sample, reply, rubric),
        )
    )


def _remark(sample: Sample, reply: str) -> str:
    untrue = false_remarks(sample, reply)
    made = sorted(untrue or remarks(sample.topic, reply))
    if not made:
        return "silent silent silent"
    sound = sample.sounds[-1]
    values = {"rate": ("fast", "slow"), "loudness": ("loud", "quiet"), "pitch": ("high", "low")}
    heard = next((getattr(sound, kind) for kind, own in values.items() if made[0] in own), sound.salient[0])
    return f"{made[0]} {heard} {'untrue' if untrue else 'true'}"


def _met(sample: Sample, reply: str, rubric: Sequence[str] | None) -> str:
    if rubric is None:
        return "open"
    met = sum(CRITERIA[criterion](sample, reply) for criterion in rubric)
    return "whole" if met == len(rubric) else "half" if met else "unmet"

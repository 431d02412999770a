# SPDX-License-Identifier: Apache-2.0
"""What can be found out about a reply by checking it: facts in a fixed order, which a judge learns to write
down before its verdict. They say what is so, not what is liked: no preference of the listener is in them.

    8 7 wrong kept untrue half

the answer that is wanted, the one that the reply gives, whether they agree; whether the standing rule is
kept; whether a remark on the voice is true; how much of the rubric is met.
"""

from __future__ import annotations

from collections.abc import Sequence

from earnest.playground.listener import CRITERIA
from earnest.playground.samples import Sample
from earnest.playground.verify import acknowledges, false_remarks, given_answers, keeps_rule, right_answer

NO_ANSWER = "unclear"


def findings(sample: Sample, reply: str, rubric: Sequence[str] | None) -> str:
    """The facts about `reply`, as the words above."""
    given = given_answers(sample.topic, reply)
    return " ".join((
        sample.topic.answer,
        given.pop() if len(given) == 1 else NO_ANSWER,
        "right" if right_answer(sample.topic, reply) else "wrong",
        "free" if sample.rule is None else "kept" if keeps_rule(sample.rule, reply) else "broken",
        "untrue" if false_remarks(sample, reply) else "true" if acknowledges(sample, reply) else "silent",
        _met(sample, reply, rubric),
    ))


def _met(sample: Sample, reply: str, rubric: Sequence[str] | None) -> str:
    if rubric is None:
        return "open"
    met = sum(CRITERIA[criterion](sample, reply) for criterion in rubric)
    return "whole" if met == len(rubric) else "half" if met else "unmet"

# SPDX-License-Identifier: Apache-2.0
"""Rewards of sampled replies: the verified answer, and the judge's verdict against a reference reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from earnest.learn.judge import Judge, Question
from earnest.learn.types import Case, Prompt, Rewards, Rollouts

ACCURACY_WEIGHT, FORMAT_WEIGHT = 0.8, 0.2  # the recipe's RLVR reward on audio; text tasks are binary


@dataclass(frozen=True)
class RewardWeights:
    """How much each source counts in a stage."""

    verified: float = 1.0
    judge: float = 0.0


def verified_reward(rollouts: Rollouts) -> tuple[Tensor, Tensor]:
    """(reward [R], accuracy [R]): 0.8 * right + 0.2 * reasoning present where there is audio, right alone in
    text. NaN where a case has nothing to verify. A truncated reply is wrong."""
    reward, accuracy = torch.full((len(rollouts),), float("nan")), torch.full((len(rollouts),), float("nan"))
    for index in range(len(rollouts)):
        case = rollouts.case(index)
        if case.verify is None:
            continue
        right = float(not rollouts.truncated[index] and case.verify(rollouts.replies[index]))
        accuracy[index] = right
        formed = float(rollouts.well_formed[index])
        reward[index] = ACCURACY_WEIGHT * right + FORMAT_WEIGHT * formed if case.clips else right * formed
    return reward, accuracy


@dataclass(eq=False)
class JudgedAgainst:
    """The judge and what it compares with: one reference reply for each prompt, and the judge's notes on
    it."""

    judge: Judge
    dialogues: Sequence[Prompt]  # as the judge's model reads them, with its notes
    references: Sequence[str]

    def reward(self, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        """(r [R], gap [R]). A reply that is truncated or empty gets the lowest phi without being read."""
        lowest = min(self.judge.phi.values())
        reward, gap = torch.full((len(rollouts),), lowest), torch.zeros(len(rollouts))
        read = [i for i in range(len(rollouts)) if not rollouts.truncated[i] and rollouts.replies[i].strip()]
        if not read:
            return reward, gap
        at = [int(rollouts.prompt_index[i]) for i in read]
        questions = [
            self._question(rollouts.prompts[p].case, rollouts.replies[i], p)
            for i, p in zip(read, at, strict=True)
        ]
        r, g = self.judge.compare([self.dialogues[p] for p in at], questions)
        reward[read], gap[read] = r, g
        return reward, gap

    def _question(self, case: Case, reply: str, prompt: int) -> Question:
        return Question(case, reply, self.references[prompt], case.rubric)


def combine(rollouts: Rollouts, weights: RewardWeights, against: JudgedAgainst | None) -> Rewards:
    """The weighted sum of the sources. A reply that a weighted source cannot score is not learned from."""
    sources: dict[str, Tensor] = {}
    scalar, valid = torch.zeros(len(rollouts)), torch.ones(len(rollouts), dtype=torch.bool)
    gap = None
    sources["verified"], sources["accuracy"] = verified_reward(rollouts)
    if weights.verified > 0:
        unknown = sources["verified"].isnan()
        scalar += weights.verified * sources["verified"].nan_to_num(0.0)
        if weights.judge == 0:
            valid &= ~unknown
    if weights.judge > 0 and against is not None:
        sources["judge"], gap = against.reward(rollouts)
        scalar += weights.judge * sources["judge"]
    return Rewards(scalar, valid, sources, gap)

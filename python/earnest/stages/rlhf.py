# SPDX-License-Identifier: Apache-2.0
"""RLHF with the generative judge: each reply against a reference reply, with a rubric where the case has one
and by plain preference where it has none, both in every batch; a KL to the reference policy; verified rewards
beside them.

Training the two kinds one after the other makes the second erase the first (recipe), so every step mixes
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from earnest.dialogue import Tokenizer
from earnest.learn.hearing import Hearing
from earnest.learn.judge import Judge, noted
from earnest.learn.optimise import PolicySettings, optimise, prompts_of
from earnest.learn.reward import JudgedAgainst, RewardWeights, combine
from earnest.learn.rollout import thoughts
from earnest.learn.types import Case, Rewards, Rollouts
from earnest.learn.update import Learner
from earnest.model import AudioLM, ValueModel
from earnest.run import Run, seed_everything
from earnest.settings import RunSettings, setting
from earnest.stages.judge import load_judge
from earnest.stages.source import DataSettings, draw, load_cases, load_model, save_model
from earnest.stages.variation import vary_cases


@dataclass(frozen=True)
class Settings:
    model: str = setting("", "the model folder to start from, such as runs/demo/sft; the KL's reference too")
    judge: str = setting("", "the judge's folder, such as runs/demo/judge")
    verified: float = setting(
        0.5, "weight of the verified reward beside the judge's (0: the judge alone)", at_least=0
    )
    judged: float = setting(1.0, "weight of the judge's reward", at_least=0)
    rubric_fraction: float = setting(
        0.5, "share of the cases of a step that keep their rubric", at_least=0, at_most=1
    )
    varied: float = setting(0.0, "share of the cases whose sound is varied", at_least=0, at_most=1)
    seed: int = setting(0, at_least=0)
    data: DataSettings = field(default_factory=lambda: DataSettings(cases=1500))
    policy: PolicySettings = field(default_factory=lambda: PolicySettings(prompts=16, per_prompt=8, kl=0.02))
    run: RunSettings = field(default_factory=RunSettings)


def main(settings: Settings, run_dir: Path) -> None:
    with Run(run_dir, settings) as run:
        if run.finished:
            return
        seed_everything(settings.seed)
        policy, tokenizer = load_model(settings.model, device=run.device)
        n_mels = policy.config.audio_encoder_config.n_mels
        cases = load_cases(settings.data, n_mels, device=run.device, split="practice")
        cases = vary_cases(cases, settings.varied, settings.seed + 1)
        hearing = Hearing(policy)
        judge = load_judge(settings.judge, run.device)
        if same_encoder(policy, judge.model):
            judge.hearing = hearing  # each clip is encoded once for all
        reference = (
            load_model(settings.model, train=False, device=run.device)[0]
            if settings.policy.kl or settings.policy.update.loss.kl_coef
            else None
        )
        critic = ValueModel(policy) if settings.policy.estimator == "gae" else None
        learner = Learner(policy, hearing, settings.policy.temperature, critic, reference, run.autocast)
        reward = JudgeAndVerify(settings, judge, tokenizer)
        optimise(
            run,
            "policy",
            learner,
            tokenizer,
            lambda step: cases_of_step(cases, settings, step),
            reward,
            settings.policy,
            settings.seed,
        )
        save_model(run, policy, tokenizer)
        run.finish()


def same_encoder(one: AudioLM, other: AudioLM) -> bool:
    """Whether two models hear alike: encoders of the very same weights, as stages that freeze them leave
    them."""
    mine, theirs = one.encoder.state_dict(), other.encoder.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def cases_of_step(cases: Sequence[Case], settings: Settings, step: int) -> list[Case]:
    """A pure function of the step. The first `rubric_fraction` of the batch are cases with a rubric, as far
    as there are any; the others are judged by plain preference."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    with_rubric = [case for case in cases if case.rubric is not None]
    wanted = min(round(settings.policy.prompts * settings.rubric_fraction), len(with_rubric))
    chosen = draw(wanted, with_rubric, generator)
    taken = {case.id for case in chosen}
    rest = [case for case in cases if case.id not in taken]
    return chosen + [
        replace(case, rubric=None) for case in draw(settings.policy.prompts - wanted, rest, generator)
    ]


def reference_reply(case: Case) -> str:
    """What a reply is compared with: the case's own reference, or one of its good replies, always the same
    one."""
    if case.reference is not None:
        return case.reference
    digest = hashlib.sha256(case.id.encode()).digest()
    return case.replies[int.from_bytes(digest[:4], "big") % len(case.replies)] if case.replies else ""


class JudgeAndVerify:
    """The rewards of a step's rollouts. The judge's notes on a dialogue are written once and kept."""

    def __init__(self, settings: Settings, judge: Judge, tokenizer: Tokenizer) -> None:
        self.judge, self.tokenizer = judge, tokenizer
        self.weights = RewardWeights(verified=settings.verified, judge=settings.judged)
        self._notes: dict[str, list[int]] = {}

    def __call__(self, rollouts: Rollouts, step: int) -> Rewards:
        cases = [prompt.case for prompt in rollouts.prompts]
        prompts = prompts_of(cases, self.tokenizer, self.judge.model)
        unknown = [prompt for prompt in prompts if prompt.case.id not in self._notes]
        if unknown:
            written = thoughts(self.judge.model, self.tokenizer, self.judge.hearing, unknown)
            self._notes.update(
                (prompt.case.id, notes) for prompt, notes in zip(unknown, written, strict=True)
            )
        dialogues = [noted(p, self._notes[p.case.id]) for p in prompts]
        against = JudgedAgainst(self.judge, dialogues, [reference_reply(case) for case in cases])
        return combine(rollouts, self.weights, against)

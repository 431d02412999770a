# SPDX-License-Identifier: Apache-2.0
"""RL with verified rewards: the answer (0.8) and the reasoning (0.2), no KL, 16 replies to each prompt.

Questions that the model always or never answers teach nothing, and questions it never answers make training
collapse (recipe): each case is tried a few times first, and those with a middling number of passes are kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from earnest.checkpoint import write_atomic
from earnest.dialogue import Tokenizer
from earnest.learn.hearing import Hearing
from earnest.learn.optimise import PolicySettings, optimise, prompts_of
from earnest.learn.reward import RewardWeights, combine, verified_reward
from earnest.learn.rollout import sample
from earnest.learn.types import Case
from earnest.learn.update import Learner
from earnest.model import AudioLM, ValueModel
from earnest.run import Run, seed_everything
from earnest.settings import RunSettings, setting
from earnest.stages.source import DataSettings, draw, load_cases, load_model, save_model
from earnest.stages.variation import vary_cases


@dataclass(frozen=True)
class ChoiceSettings:
    """Which questions to train on."""

    trials: int = setting(
        8, "replies sampled to each question beforehand (0: keep all questions)", at_least=0
    )
    fewest: int = setting(2, "passes that a question must have", at_least=0)
    most: int = setting(7, "and may have", at_least=0)
    batch: int = setting(64, "questions tried at once", at_least=1)


@dataclass(frozen=True)
class Settings:
    model: str = setting("", "the model folder to start from, such as runs/demo/sft")
    varied: float = setting(0.0, "share of the cases whose sound is varied", at_least=0, at_most=1)
    seed: int = setting(0, at_least=0)
    data: DataSettings = field(default_factory=lambda: DataSettings(cases=1000))
    choice: ChoiceSettings = field(default_factory=ChoiceSettings)
    policy: PolicySettings = field(default_factory=lambda: PolicySettings(estimator="group"))
    run: RunSettings = field(default_factory=RunSettings)


def main(settings: Settings, run_dir: Path) -> None:
    with Run(run_dir, settings) as run:
        if run.finished:
            return
        seed_everything(settings.seed)
        policy, tokenizer = load_model(settings.model, device=run.device)
        n_mels = policy.config.audio_encoder_config.n_mels
        cases = load_cases(settings.data, n_mels, device=run.device, split="practice")
        cases = vary_cases([case for case in cases if case.verify], settings.varied, settings.seed + 1)
        hearing = Hearing(policy)
        chosen = choose(run, settings, policy, tokenizer, hearing, cases)
        critic = ValueModel(policy) if settings.policy.estimator == "gae" else None
        learner = Learner(policy, hearing, settings.policy.temperature, critic, autocast=run.autocast)
        weights = RewardWeights(verified=1.0, judge=0.0)
        optimise(
            run,
            "policy",
            learner,
            tokenizer,
            lambda step: cases_of_step(chosen, settings, step),
            lambda rollouts, step: combine(rollouts, weights, None),
            settings.policy,
            settings.seed,
        )
        save_model(run, policy, tokenizer)
        run.finish()


def cases_of_step(cases: Sequence[Case], settings: Settings, step: int) -> list[Case]:
    """A pure function of the step, so that a resumed run sees the cases it would have seen."""
    return draw(
        settings.policy.prompts, cases, torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    )


def choose(
    run: Run,
    settings: Settings,
    policy: AudioLM,
    tokenizer: Tokenizer,
    hearing: Hearing,
    cases: Sequence[Case],
) -> list[Case]:
    """The cases with a middling pass rate. The trials are kept in trials.json, for audit and for a resumed
    run."""
    choice = settings.choice
    if choice.trials == 0:
        return list(cases)
    file = Path(run.path) / "trials.json"
    if file.is_file():
        passes = json.loads(file.read_text())["passes"]
    else:
        passes = {}
        batches = [cases[i : i + choice.batch] for i in range(0, len(cases), choice.batch)]
        for number, batch in enumerate(run.track(batches, "choosing questions")):
            with run.autocast():
                rollouts = sample(
                    policy,
                    tokenizer,
                    hearing,
                    prompts_of(batch, tokenizer, policy),
                    per_prompt=choice.trials,
                    max_new_tokens=settings.policy.max_new_tokens,
                    temperature=settings.policy.temperature,
                    generator=torch.Generator().manual_seed(settings.seed * 7919 + number),
                )
            right = verified_reward(rollouts)[1].view(len(batch), choice.trials).sum(1)
            passes |= {case.id: int(count) for case, count in zip(batch, right, strict=True)}
        write_atomic(
            file, json.dumps({"seed": settings.seed, "trials": choice.trials, "passes": passes}) + "\n"
        )
    chosen = [case for case in cases if choice.fewest <= passes[case.id] <= choice.most]
    # A model that is right or wrong almost everywhere leaves too few: then every question that is ever right
    # serves.
    if len(chosen) < settings.policy.prompts:
        chosen = [case for case in cases if passes[case.id] > 0] or list(cases)
    run.log(
        0,
        questions=len(cases),
        chosen=len(chosen),
        pass_rate=sum(passes.values()) / (choice.trials * len(passes)),
    )
    return chosen

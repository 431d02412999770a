# SPDX-License-Identifier: Apache-2.0
"""Stage 2, cold-start supervised fine-tuning for interaction: several turns, instructions that hold, natural
replies."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from earnest.run import Run
from earnest.settings import RunSettings, setting
from earnest.stages.optimiser import OptimiserSettings
from earnest.stages.source import DataSettings, dictations, load_cases, load_model
from earnest.stages.supervised import fine_tune


@dataclass(frozen=True)
class Settings:
    model: str = setting("", "the model folder to start from, such as runs/demo/midtrain")
    steps: int = setting(200, at_least=1)
    batch: int = setting(32, "cases in a step", at_least=1)
    all_turns: bool = setting(False, "learn every assistant turn of a dialogue, not the last alone")
    dictation: float = setting(0.25, "playground: dictations, as a share of the dialogues", at_least=0)
    hasty: float = setting(0.7, "share of the sums looked up, not counted out", at_least=0, at_most=1)
    seed: int = setting(0, at_least=0)
    data: DataSettings = field(default_factory=lambda: DataSettings(cases=3000))
    optimiser: OptimiserSettings = field(default_factory=lambda: OptimiserSettings(lr=5e-4))
    run: RunSettings = field(default_factory=RunSettings)


def main(settings: Settings, run_dir: Path) -> None:
    with Run(run_dir, settings) as run:
        if run.finished:
            return
        model, tokenizer = load_model(settings.model, device=run.device)
        n_mels = model.config.audio_encoder_config.n_mels
        cases = load_cases(settings.data, n_mels, device=run.device)
        dictated = round(settings.dictation * len(cases))
        cases = cases + dictations(settings.data, dictated, n_mels, device=run.device)
        fine_tune(
            run,
            "fine-tuning",
            model,
            tokenizer,
            cases,
            steps=settings.steps,
            batch=settings.batch,
            optimiser=settings.optimiser,
            seed=settings.seed,
            hasty=settings.hasty,
            all_turns=settings.all_turns,
        )
        run.finish()

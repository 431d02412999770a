# SPDX-License-Identifier: Apache-2.0
"""The whole recipe on a tiny model, from nothing: mid-training -> SFT -> RLVR alone, and judge + RLHF from
the same SFT.

Every stage is the stage's own command with settings for the tiny model; each has its folder in the run folder
and is resumed or skipped by itself. It ends with metrics.json, report.html and the table.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from earnest.checkpoint import write_atomic
from earnest.errors import InvalidInput
from earnest.evaluate.playground import evaluate_model, stage_metrics
from earnest.evaluate.stage import Answer, to_plain
from earnest.learn.loss import LossSettings
from earnest.learn.optimise import PolicySettings
from earnest.learn.update import UpdateSettings
from earnest.model import AudioLMConfig
from earnest.settings import RunSettings, setting
from earnest.stages import judge, midtrain, rlhf, rlvr, sft
from earnest.stages.optimiser import OptimiserSettings
from earnest.stages.source import DataSettings, PlaygroundSettings, load_cases

STAGES = ("midtrain", "sft", "rlvr", "judge", "rlhf")
TABLE = ("midtrain", "sft", "rlvr", "rlhf")


@dataclass(frozen=True)
class Settings:
    seed: int = setting(0, "of weights, worlds, sampling", at_least=0)
    quick: bool = setting(
        False, "the same path in at most three minutes; nothing is learnt that is worth looking at"
    )
    voices: str = setting("espeak", "espeak, or a folder or tar of recorded words (shared/data/fsdd)")
    leave_out: str = setting("", "recordings: the speaker kept for the held-out split")
    cases: int = setting(480, "held-out cases of the evaluation", at_least=6)
    temperature: float = setting(
        0.7,
        "of the replies evaluated; 0 shows the one likeliest way of talking instead of how a model talks",
        at_least=0,
    )
    # What torch itself computes in a model so small is done before another thread would have woken: a step
    # takes 0.31 s instead of 0.37 s (SFT), 0.22 instead of 0.26 (hearing), on two cores.
    run: RunSettings = field(default_factory=lambda: RunSettings(torch_threads=1))


def main(settings: Settings, run_dir: Path) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    plan = stage_settings(settings, run_dir)
    mains: dict[str, Callable[[Any, Path], None]] = {
        "midtrain": midtrain.main,
        "sft": sft.main,
        "rlvr": rlvr.main,
        "judge": judge.main,
        "rlhf": rlhf.main,
    }
    seconds = _read_json(run_dir / "seconds.json") or {}
    for name in STAGES:
        began = time.monotonic()
        mains[name](plan[name], run_dir / name)
        if name not in seconds:
            seconds[name] = 0.0
        seconds[name] += time.monotonic() - began
        write_atomic(run_dir / "seconds.json", json.dumps(seconds))
    began = time.monotonic()
    metrics = evaluate(settings, plan, run_dir)
    seconds["evaluate"] = seconds.get("evaluate", 0.0) + time.monotonic() - began
    about = {"seed": settings.seed, "quick": settings.quick, "temperature": settings.temperature}
    metrics = {**about, "seconds": seconds, **metrics}
    write_atomic(run_dir / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    from earnest.report import table, write_report

    path = write_report(run_dir)
    print(table(metrics))
    print(path)


def stage_settings(settings: Settings, run_dir: Path) -> dict[str, Any]:
    """The settings of every stage for the tiny model, full or quick."""
    playground = PlaygroundSettings(seed=settings.seed, voices=settings.voices, leave_out=settings.leave_out)
    quick = settings.quick

    def data(first: int, cases: int) -> DataSettings:
        return DataSettings(
            playground=playground, first=first, cases=max(cases // 20, 60) if quick else cases
        )

    def steps(full: int) -> int:
        return max(full // 40, 3) if quick else full

    def muon(lr: float, warmup_steps: int = 20) -> OptimiserSettings:
        return OptimiserSettings(lr=lr, warmup_steps=warmup_steps, matrices="muon")

    common: dict[str, Any] = {"seed": settings.seed, "run": settings.run}
    few = 4 if quick else None  # replies to a prompt
    hearing = midtrain.HearingSettings(steps=steps(600), optimiser=muon(8e-3, warmup_steps=80))
    # The engine, from which rollouts come, takes heads of 64 on a GPU.
    model = "tiny-64" if settings.run.device == "cuda" else "tiny"
    return {
        "midtrain": midtrain.Settings(
            model=model,
            steps=steps(400),
            hearing=hearing,
            data=data(0, 6000),
            optimiser=muon(6e-3, 50),
            **common,
        ),
        "sft": sft.Settings(
            model=str(run_dir / "midtrain"),
            steps=steps(160),
            data=data(0, 6000),
            optimiser=muon(3e-3),
            **common,
        ),
        "rlvr": rlvr.Settings(
            model=str(run_dir / "sft"),
            data=data(0, 500),
            choice=rlvr.ChoiceSettings(trials=0 if quick else 8),
            policy=PolicySettings(
                steps=steps(70),
                prompts=8,
                per_prompt=few or 16,
                estimator="group",
                update=UpdateSettings(lr=2e-4, final_lr=0.1),
            ),
            **common,
        ),
        "judge": judge.Settings(
            model=str(run_dir / "sft"),
            steps=steps(270),
            batch=12,
            data=data(0, 6000),
            checks=60 if quick else 400,
            optimiser=muon(4e-3, warmup_steps=40),
            **common,
        ),
        "rlhf": rlhf.Settings(
            model=str(run_dir / "sft"),
            judge=str(run_dir / "judge"),
            data=data(0, 500),
            verified=0.7,
            policy=PolicySettings(
                steps=steps(105),
                prompts=8,
                per_prompt=few or 12,
                estimator="group",
                # The KL is a loss of its own: unlike one in the rewards it has no noise from sampling, and
                # keeps what is heard as it was at a learning rate that changes the way of talking.
                update=UpdateSettings(lr=3e-4, final_lr=0.1, loss=LossSettings(kl_coef=0.05)),
            ),
            **common,
        ),
    }


def evaluate(settings: Settings, plan: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """Answers of every stage on the held-out split, kept in evaluation/, and the metrics made of them."""
    n_mels = AudioLMConfig.load(run_dir / "sft").audio_encoder_config.n_mels
    data = replace(plan["sft"].data, first=0, cases=60 if settings.quick else settings.cases)
    cases = load_cases(data, n_mels, device=settings.run.device, split="heldout", phase="held-out cases")
    folder = run_dir / "evaluation"
    folder.mkdir(exist_ok=True)
    heard: dict[str, list[Answer]] = {}
    unheard: dict[str, list[Answer]] = {}
    for stage in TABLE:
        file = folder / f"{stage}.json"
        kept = _read_json(file)
        if kept is None:
            heard[stage], unheard[stage] = evaluate_model(
                run_dir / stage, cases, settings.seed, stage, settings.temperature, settings.run.device
            )
            write_atomic(
                file, json.dumps({"heard": to_plain(heard[stage]), "unheard": to_plain(unheard[stage])})
            )
        else:
            heard[stage], unheard[stage] = ([Answer(**a) for a in kept[key]] for key in ("heard", "unheard"))
    return {
        "stages": stage_metrics(heard, unheard),
        "judge": _read_json(run_dir / "judge" / judge.CALIBRATION_FILE),
    }


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InvalidInput(
            "demo", str(path), "a JSON file of an earlier part of this run", str(error)
        ) from None

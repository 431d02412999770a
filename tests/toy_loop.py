# SPDX-License-Identifier: Apache-2.0
"""A toy stage for tests of the run folder, as a program: two phases of noisy regression that draw from every
random source. ``python toy_loop.py RUN_DIR [key=value ...]`` prints the sha256 of the final weights."""

import hashlib
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from earnest.run import Interrupted, Run, seed_everything
from earnest.settings import RunSettings, resolve, setting


@dataclass(frozen=True)
class Settings:
    seed: int = 0
    steps: int = setting(30, "steps of each phase")
    learning_rate: float = setting(0.05, "of Adam", above=0)
    pause: float = setting(0.0, "seconds of sleep in a step", volatile=True)
    run: RunSettings = field(default_factory=lambda: RunSettings(save_every_steps=7, tensorboard=False))


def train(run: Run, phase: str, settings: Settings, model: torch.nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.7)
    generator, rng = torch.Generator().manual_seed(settings.seed), np.random.default_rng(settings.seed)
    history: dict = {"losses": [], "mean": torch.zeros(2)}
    start = run.restore(
        phase,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        generator=generator,
        rng=rng,
        history=history,
    )
    for step in run.steps(settings.steps, start):
        x = torch.randn(8, 4, generator=generator) + float(rng.normal()) + random.random()
        y = x.sum(1, keepdim=True) + torch.randn(8, 1) + float(np.random.normal())  # noqa: NPY002
        loss = torch.nn.functional.dropout(model(x) - y, 0.1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        loss = loss.detach()
        history["losses"] = [*history["losses"][-2:], float(loss)]
        history["mean"] = history["mean"] * 0.9 + 0.1 * float(loss)
        run.log(
            step, loss=loss, mean_loss=sum(history["losses"]) / 3, smooth=history["mean"][0], step_seconds=0.1
        )
        time.sleep(settings.pause)


def main(settings: Settings, run_dir: Path) -> None:
    torch.set_num_threads(1)
    with Run(run_dir, settings) as run:
        if run.finished:
            return
        seed_everything(settings.seed)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        run.log(0, begun=True)
        train(run, "first", settings, model)
        run.log(settings.steps, between=torch.randn(()))
        train(run, "second phase", settings, model)
        words = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
        (run_dir / "weights.sha256").write_text(hashlib.sha256(words).hexdigest())
        run.finish(model="toy")


if __name__ == "__main__":
    try:
        main(resolve(Settings, None, sys.argv[2:]), Path(sys.argv[1]))
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)

# SPDX-License-Identifier: Apache-2.0
"""What a stage reads: its settings for data, the cases they name, and the model folder it starts from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from earnest.dialogue import Tokenizer
from earnest.errors import InvalidInput
from earnest.learn.types import Case
from earnest.model import AudioLM
from earnest.run import Run
from earnest.settings import setting
from earnest.stages.cases import HELD_OUT, case_of, file_cases, playground_cases

if TYPE_CHECKING:
    from earnest.playground import World


@dataclass(frozen=True)
class PlaygroundSettings:
    """The small spoken world (see earnest.playground)."""

    seed: int = setting(0, "of voices, sentences and tasks", at_least=0)
    voices: str = setting("espeak", "espeak, or a folder or tar of recorded words with a manifest")
    leave_out: str = setting("", "recordings: the speaker kept for the held-out split")


@dataclass(frozen=True)
class DataSettings:
    """Where cases come from: JSON-lines files of dialogues, or the playground where none are named."""

    files: tuple[str, ...] = ()
    playground: PlaygroundSettings = field(default_factory=PlaygroundSettings)
    cases: int = setting(3000, "playground: how many different cases", at_least=1)
    first: int = setting(0, "playground: index of the first one", at_least=0)
    processes: int = setting(0, "to make them with (0: every core)", at_least=0, volatile=True)


def world_of(settings: PlaygroundSettings) -> World:
    from earnest.playground import World

    return World(settings.seed, voices=settings.voices, leave_out=settings.leave_out or None)


def load_cases(
    data: DataSettings,
    n_mels: int,
    *,
    device: torch.device | str,
    split: str = "train",
    phase: str = "speaking and hearing",
) -> list[Case]:
    """The cases of a stage, audio as features, computed on `device`, where the model is, and kept by the
    host. Raises InvalidInput where there are none.

    split, of the playground: reinforcement learning asks for "practice", whose voices, sentences and sums
    have an answer to be verified, but no one's reasoning to be copied. Evaluation asks for "heldout": these
    cases, of files too, say how each clip sounds."""
    cases = (
        file_cases(data.files, n_mels, measured=split == HELD_OUT, device=device)
        if data.files
        else _spoken(data, data.cases, "dialogue", n_mels, split, phase, device)
    )
    if not cases:
        raise InvalidInput("data", "files", "at least one dialogue", "none")
    return cases


def dictations(data: DataSettings, count: int, n_mels: int, *, device: torch.device | str) -> list[Case]:
    """Spoken words in any order, to be written down (see World.dictation); none where the cases come from
    files."""
    if data.files or count == 0:
        return []
    return _spoken(data, count, "dictation", n_mels, "train", "dictations", device)


def _spoken(
    data: DataSettings,
    count: int,
    kind: str,
    n_mels: int,
    split: str,
    phase: str,
    device: torch.device | str,
) -> list[Case]:
    return playground_cases(
        world_of(data.playground),
        split,
        range(data.first, data.first + count),
        n_mels,
        processes=data.processes or os.cpu_count() or 1,
        phase=phase,
        kind=kind,
        device=device,
    )


def written_cases(data: DataSettings, count: int) -> list[Case]:
    """Written questions of the playground, with reasoning and replies, without sound."""
    world = world_of(data.playground)
    return [case_of(world.text_sample("train", index), 0) for index in range(count)]


def load_model(
    folder: str | Path, *, train: bool = True, device: torch.device | str = "cpu"
) -> tuple[AudioLM, Tokenizer]:
    """The model and tokenizer of a model folder. The encoder is frozen, as in every stage after
    mid-training."""
    model = AudioLM.from_pretrained(folder, device=device)
    tokenizer = Tokenizer.load(folder)
    freeze(model.encoder)
    if not train:
        freeze(model)
        model.eval()
    return model, tokenizer


def freeze(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def save_model(run: Run, model: AudioLM, tokenizer: Tokenizer) -> None:
    """Leaves the model and its tokenizer in the run's folder, where the next stage finds them."""
    with run.publish() as folder:
        model.save_pretrained(folder)
        tokenizer.save(folder)


def draw(count: int, cases: Sequence[Case], generator: torch.Generator) -> list[Case]:
    """`count` cases drawn without replacement where there are enough of them."""
    order = torch.randperm(len(cases), generator=generator)[:count]
    return [cases[int(index)] for index in order]

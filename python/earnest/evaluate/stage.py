# SPDX-License-Identifier: Apache-2.0
"""One stage's model on cases it never saw: what it answers, how often that is right, and how the listener
likes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from earnest.dialogue import Tokenizer
from earnest.features import LogMel
from earnest.learn.hearing import Hearing
from earnest.learn.optimise import prompts_of
from earnest.learn.rollout import sample
from earnest.learn.types import Case, Clip
from earnest.model import AudioLM
from earnest.progress import track

HOP = 160


@dataclass(frozen=True)
class Answer:
    """What a model made of one case."""

    case: str
    task: str
    reasoning: str
    reply: str
    right: bool
    reasoning_tokens: int
    utility: float | None = None  # the listener's, in the playground
    acknowledges: bool | None = None
    # How the turn it answers sounds, as measured (see manner.py); None: without a clip, or before this was.
    f0_hz: float | None = None
    syllables_per_second: float | None = None
    level_db: float | None = None


def answer(
    model: AudioLM,
    tokenizer: Tokenizer,
    cases: Sequence[Case],
    *,
    max_new_tokens: int = 96,
    temperature: float = 0.0,
    seed: int = 0,
    at_once: int = 64,
    what: str = "answering",
) -> list[Answer]:
    """One reply to each case, greedy unless a temperature is given."""
    hearing = Hearing(model)
    close = tokenizer.special("</think>")
    generator = torch.Generator().manual_seed(seed)
    answers = []
    groups = [cases[i : i + at_once] for i in range(0, len(cases), at_once)]
    for group in track(groups, what, len(groups)):
        rollouts = sample(
            model,
            tokenizer,
            hearing,
            prompts_of(group, tokenizer, model),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            generator=generator,
        )
        for index, case in enumerate(group):
            tokens = rollouts.tokens[index].tolist()
            answers.append(
                Answer(
                    case=case.id,
                    task=case.task,
                    reasoning=rollouts.reasoning[index],
                    reply=rollouts.replies[index],
                    right=bool(
                        case.verify and not rollouts.truncated[index] and case.verify(rollouts.replies[index])
                    ),
                    reasoning_tokens=tokens.index(close) if close in tokens else len(tokens),
                )
            )
    return answers


def silenced(cases: Sequence[Case]) -> list[Case]:
    """The cases with every clip replaced by silence of the same length: what is still answered was not
    heard."""
    silent: dict[tuple[int, int], np.ndarray] = {}

    def silence(clip: Clip) -> Clip:
        bins, frames = clip.mel.shape
        if (bins, frames) not in silent:
            mel = LogMel(n_mels=bins)(np.zeros(frames * HOP, np.float32))
            silent[bins, frames] = np.ascontiguousarray(np.resize(mel, (bins, frames)))
        return replace(clip, id=f"silence.{bins}.{frames}", mel=silent[bins, frames], words=(), measured=())

    return [
        replace(case, clips=tuple(tuple(silence(chunk) for chunk in clip) for clip in case.clips))
        for case in cases
    ]


def summarise(answers: Sequence[Answer]) -> dict[str, Any]:
    """The rates and means of a stage (rates in 0..1)."""
    tasks = sorted({a.task for a in answers})
    summary: dict[str, Any] = {
        "cases": len(answers),
        "accuracy": _mean([a.right for a in answers]),
        "accuracy_by_task": {task: _mean([a.right for a in answers if a.task == task]) for task in tasks},
        "reply_words": _mean([len(a.reply.split()) for a in answers]),
        "reasoning_tokens": _mean([a.reasoning_tokens for a in answers]),
        "reasoning_present": _mean([bool(a.reasoning.strip()) for a in answers]),
    }
    if all(a.utility is not None for a in answers):
        summary["listener_utility"] = _mean([a.utility or 0.0 for a in answers])
        summary["acknowledges_speaker"] = _mean([bool(a.acknowledges) for a in answers])
    return summary


def win_rate(ours: Sequence[Answer], theirs: Sequence[Answer]) -> tuple[float, float, float]:
    """(rate, low, high): how often the listener likes our reply better, a tie as half, with a 95% Wilson
    interval."""
    pairs = list(zip(ours, theirs, strict=True))
    assert all(a.case == b.case for a, b in pairs)
    points = [
        0.5
        if math.isclose(a.utility or 0.0, b.utility or 0.0, abs_tol=1e-9)
        else float((a.utility or 0.0) > (b.utility or 0.0))
        for a, b in pairs
    ]
    return wilson(_mean(points), len(points))


def wilson(rate: float, count: int, z: float = 1.959964) -> tuple[float, float, float]:
    """(rate, low, high): the Wilson score interval of a rate seen `count` times."""
    if count == 0:
        return (float("nan"),) * 3
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return rate, max(0.0, centre - half), min(1.0, centre + half)


def to_plain(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    return [asdict(a) for a in answers]


def _mean(values: Sequence[float]) -> float:
    return float(sum(values)) / len(values) if values else float("nan")

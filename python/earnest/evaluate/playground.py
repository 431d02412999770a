# SPDX-License-Identifier: Apache-2.0
"""Evaluation in the playground: every stage's model on the held-out split, with sound and without, and what
the listener makes of the replies. The listener's utility is read here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from earnest.evaluate.manner import accuracy_by_measured, with_measures
from earnest.evaluate.stage import Answer, answer, silenced, summarise, win_rate
from earnest.learn.types import Case
from earnest.playground import Listener, acknowledges
from earnest.stages.source import load_model

COMPARED_WITH = ("sft", "rlvr")


def rate(answers: Sequence[Answer], cases: Sequence[Case], listener: Listener) -> list[Answer]:
    """The answers with the listener's utility of each reply, and whether it aptly takes up how the speaker
    sounds."""
    return [
        replace(
            a, utility=listener.utility(case.origin, a.reply), acknowledges=acknowledges(case.origin, a.reply)
        )
        for a, case in zip(answers, cases, strict=True)
    ]


def evaluate_model(
    folder: Path,
    cases: Sequence[Case],
    seed: int,
    name: str,
    temperature: float = 0.0,
    device: torch.device | str = "cpu",
) -> tuple[list[Answer], list[Answer]]:
    """(answers, answers to silence) of the model in `folder`; a temperature of 0 takes the likeliest
    tokens."""
    model, tokenizer = load_model(folder, train=False, device=device)
    listener = Listener(seed)
    drawn: dict[str, Any] = {"temperature": temperature, "seed": seed}
    given = answer(model, tokenizer, cases, what=f"{name}: answering", **drawn)
    heard = with_measures(rate(given, cases, listener), cases)
    with_audio = [case for case in cases if case.clips]
    unheard = answer(model, tokenizer, silenced(with_audio), what=f"{name}: answering silence", **drawn)
    return heard, unheard


def stage_metrics(
    answers: dict[str, list[Answer]], unheard: dict[str, list[Answer]]
) -> dict[str, dict[str, Any]]:
    """The table: one row for each stage, each win rate with its 95% interval beside it. Where clips were
    measured, a row has its accuracy by pitch, speaking rate and level too (see manner.py)."""
    rows = {}
    for stage, given in answers.items():
        row = summarise(given)
        by_measured = accuracy_by_measured(given)
        if by_measured:
            row["accuracy_by_measured"] = by_measured
        silent = summarise(unheard[stage])
        row["accuracy_audio_zeroed"] = silent["accuracy"]
        row["accuracy_audio_zeroed_by_task"] = silent["accuracy_by_task"]
        for other in COMPARED_WITH:
            if other in answers:
                value, low, high = win_rate(given, answers[other])
                row |= {
                    f"win_rate_vs_{other}": value,
                    f"win_rate_vs_{other}_low": low,
                    f"win_rate_vs_{other}_high": high,
                }
        rows[stage] = row
    return rows

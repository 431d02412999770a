# SPDX-License-Identifier: Apache-2.0
"""How good a judge is on comparisons it never saw: accuracy by distance, calibration, position bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 10


class Rated(Protocol):
    """A pair of replies that a rater ordered (stages.comparisons.Compared)."""

    @property
    def level(self) -> int: ...

    @property
    def true_level(self) -> int | None: ...


def fit_temperature(logits: Tensor, classes: Tensor) -> float:
    """The temperature of `logits` [n, classes] that gives `classes` the highest likelihood, found on a grid
    of ratios (one number on a smooth convex curve in 1/T needs no optimiser)."""
    grid = torch.logspace(-1.0, 1.0, 201, base=10.0)
    losses = torch.stack([F.cross_entropy(logits / temperature, classes) for temperature in grid])
    return float(grid[int(losses.argmin())])


def fit_position(forward: Tensor, backward: Tensor, phi: dict[int, float]) -> tuple[float, float]:
    """(what standing first is worth to a judge, as a scalar; its standard error), from the verdict logits [n,
    levels] of pairs and of the same pairs swapped: half of mean phi(a, b) + phi(b, a)."""
    gap = _scalar(forward, phi) + _scalar(backward, phi)
    return float(gap.mean()) / 2, _standard_error(gap) / 2


def judge_report(
    forward: Tensor,
    backward: Tensor,
    compared: Sequence[Rated],
    phi: dict[int, float],
    position: tuple[float, float] = (0.0, 0.0),
) -> dict[str, Any]:
    """`forward`, `backward`: verdict logits [n, levels] of each pair and of the pair swapped; `position`:
    what fit_position found on other comparisons. Rates are in 0..1.

    accuracy: the order-free verdict has the rater's sign, where the rater names a winner. accuracy_true: the
    same against the rater without noise. position_offset: what standing first is worth, taken off every
    scalar. swap_bias: mean of what is left of phi(a, b) + phi(b, a), zero without position bias, with its
    standard error, that of the offset included. ece: expected calibration error of P(first wins | somebody
    wins)."""
    offset, offset_error = position
    ahead, behind = forward.softmax(-1), backward.softmax(-1)
    scalar = (_scalar(forward, phi) - _scalar(backward, phi)) / 2
    gap = _scalar(forward, phi) + _scalar(backward, phi) - 2 * offset
    levels = torch.tensor([pair.level for pair in compared])
    report: dict[str, Any] = {"comparisons": len(compared), "accuracy": _signs(scalar, levels)}
    report["accuracy_by_distance"] = {
        str(d): _signs(scalar[levels.abs() == d], levels[levels.abs() == d])
        for d in (1, 2)
        if bool((levels.abs() == d).any())
    }
    known = [pair.true_level for pair in compared]
    if all(level is not None for level in known):
        report["accuracy_true"] = _signs(scalar, torch.tensor(known))
        agree = torch.tensor(known)[levels != 0].sign() == levels[levels != 0].sign()
        report["rater_agrees_with_itself"] = float(
            agree.float().mean()
        )  # what the rater's noise leaves reachable
    report["position_offset"] = offset
    report["swap_bias"] = float(gap.mean())
    report["swap_bias_standard_error"] = math.hypot(_standard_error(gap), 2 * offset_error)
    report["swap_disagree"] = float(gap.abs().mean())
    report["ties_judged"] = float((scalar.abs() < 0.25).float().mean())
    report["ties_rated"] = float((levels == 0).float().mean())
    report["ece"], report["calibration_curve"] = _calibration(ahead, behind, levels)
    return report


def _scalar(logits: Tensor, phi: dict[int, float]) -> Tensor:
    return logits.softmax(-1) @ torch.tensor([phi[level] for level in sorted(phi)])


def _standard_error(values: Tensor) -> float:
    return float(values.std() / max(len(values), 2) ** 0.5)


def _signs(scalar: Tensor, levels: Tensor) -> float:
    decided = levels != 0
    return (
        float((scalar[decided].sign() == levels[decided].sign()).float().mean())
        if bool(decided.any())
        else float("nan")
    )


def _calibration(ahead: Tensor, behind: Tensor, levels: Tensor) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error and its curve, of the probability that the first reply wins given that one
    does."""
    half = ahead.shape[1] // 2
    wins = (ahead[:, half + 1 :].sum(1) + behind[:, :half].sum(1)) / 2
    loses = (ahead[:, :half].sum(1) + behind[:, half + 1 :].sum(1)) / 2
    decided = levels != 0
    chance = (wins / (wins + loses).clamp_min(1e-9))[decided]
    won = (levels[decided] > 0).float()
    error, curve = 0.0, []
    for low in range(BINS):
        inside = (chance >= low / BINS) & ((chance < (low + 1) / BINS) | (low == BINS - 1))
        if not bool(inside.any()):
            continue
        said, happened = float(chance[inside].mean()), float(won[inside].mean())
        error += float(inside.float().mean()) * abs(said - happened)
        curve.append({"said": said, "happened": happened, "count": int(inside.sum())})
    return error, curve

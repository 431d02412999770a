# SPDX-License-Identifier: Apache-2.0
"""Advantages: from rewards per token to how much better than expected each token turned out.

Where there is a critic, generalised advantage estimation; without one, the score of a reply minus that of the
other replies to the same prompt. Then whitening over the whole batch, all ranks together, once, before it is
cut into mini-batches. Shape alphabet as in types.py: R replies, N tokens. Formulas: kernels/ppo/README.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from earnest import ops
from earnest.errors import InvalidInput
from earnest.ops.ppo import join_moments, masked_moments
from earnest.settings import setting


@dataclass(frozen=True)
class AdvantageSettings:
    """Defaults are the recipe's: undiscounted, and the spread within a group left as it is (rlhf_numerics
    2.3, 2.4, 2.10)."""

    gamma: float = setting(1.0, "discount from one trained token to the next", at_least=0, at_most=1)
    lam: float = setting(1.0, "gae: below 1 trusts the critic more", at_least=0, at_most=1)
    lam_value: float | None = setting(
        None, "gae: lambda of the critic's targets (null: lam)", at_least=0, at_most=1
    )
    baseline: Literal["mean", "leave_one_out"] = setting("mean", "group: what a reply is compared with")
    normalize_std: bool = setting(False, "group: divide by the deviation within the group")
    whiten: bool = setting(True, "shift and scale to mean 0, deviation 1 over the batch")


@dataclass(frozen=True, eq=False)
class Advantages:
    """What the loss reads. Zero at tokens that are not trainable; constants for autograd."""

    advantages: Tensor  # [N], dtype of the rewards
    returns: Tensor  # [N], the critic's targets; without a critic the sum of rewards from here on
    metrics: dict[str, float]


def estimate(
    rewards: Tensor,
    trainable: Tensor,
    cu_seqlens: Tensor,
    settings: AdvantageSettings,
    *,
    values: Tensor | None = None,
    groups: Tensor | None = None,
) -> Advantages:
    """Advantages and returns of R packed replies.

    Args:
        rewards: [N] float32 or float64, per token; those at tokens that are not trainable are ignored.
        trainable: bool [N]. A reply without any trainable token counts nowhere (an invalid verdict).
        cu_seqlens: int32 [R + 1], where each reply begins.
        values: [N], the critic's, as they were at sampling; or None for the group baseline.
        groups: int64 [R], which prompt each reply answers; needed without values.

    Raises:
        InvalidInput: neither values nor groups, or arrays that do not fit each other.
    """
    metrics: dict[str, float] = {}
    if values is not None:
        advantages, returns = _generalised(rewards, values, trainable, cu_seqlens, settings)
    elif groups is not None:
        advantages, returns = _against_group(rewards, trainable, cu_seqlens, groups, settings, metrics)
    else:
        raise InvalidInput("advantage", "groups", "the prompt of each reply, or a critic's values", "neither")
    moments = moments_over_ranks(advantages, trainable)
    metrics["advantage_mean"] = float(moments[1])
    metrics["advantage_std"] = float((moments[2] / moments[0].clamp(min=1)).sqrt())
    if settings.whiten:
        advantages = ops.whiten(advantages, trainable, moments=moments)
    return Advantages(advantages, returns, metrics)


def place_scores(scores: Tensor, trainable: Tensor, cu_seqlens: Tensor) -> Tensor:
    """[N]: the score [R] of each reply on its last trainable token, 0 elsewhere; the end of the reply may be
    masked (an observation). A reply without any trainable token loses its score, as it counts nowhere."""
    places = torch.arange(len(trainable), device=trainable.device).masked_fill(~trainable, -1)
    rewards = scores.new_zeros(len(trainable))
    for reply, (begin, end) in enumerate(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)):
        last = int(places[begin:end].max()) if end > begin else -1
        if last >= 0:
            rewards[last] = scores[reply]
    return rewards


def moments_over_ranks(x: Tensor, trainable: Tensor) -> Tensor:
    """float64 [3], count, mean and sum of squares about the mean, over this process or all of them; joined in
    the order of ranks, so every rank whitens with the same numbers."""
    moments = masked_moments(x, trainable)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return moments
    parts = [torch.empty_like(moments) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, moments)
    return join_moments(torch.stack(parts))


def _generalised(
    rewards: Tensor, values: Tensor, trainable: Tensor, cu_seqlens: Tensor, settings: AdvantageSettings
) -> tuple[Tensor, Tensor]:
    def with_lambda(lam: float) -> tuple[Tensor, Tensor]:
        return ops.gae(rewards, values, trainable, cu_seqlens, gamma=settings.gamma, lam=lam)

    advantages, returns = with_lambda(settings.lam)
    if settings.lam_value is not None and settings.lam_value != settings.lam:
        returns = with_lambda(settings.lam_value)[1]
    return advantages, returns


def _against_group(
    rewards: Tensor,
    trainable: Tensor,
    cu_seqlens: Tensor,
    groups: Tensor,
    settings: AdvantageSettings,
    metrics: dict[str, float],
) -> tuple[Tensor, Tensor]:
    """Every token of a reply gets the advantage of the whole reply."""
    replies = torch.arange(len(groups), device=rewards.device)
    reply = torch.repeat_interleave(replies, cu_seqlens.diff().long())
    counted = torch.where(trainable, rewards, torch.zeros_like(rewards)).double()
    scores = torch.zeros_like(groups, dtype=torch.float64).index_add_(0, reply, counted)
    valid = torch.zeros_like(groups).index_add_(0, reply, trainable.long()) > 0
    of_reply = ops.group_advantage(
        scores, groups, valid=valid, baseline=settings.baseline, normalize_std=settings.normalize_std
    )
    metrics["zero_variance_groups"] = _zero_variance(scores, groups, valid)
    advantages = torch.where(trainable, of_reply[reply], 0.0).to(rewards.dtype)
    _, returns = ops.gae(rewards, torch.zeros_like(rewards), trainable, cu_seqlens, gamma=settings.gamma)
    return advantages, returns


def _zero_variance(scores: Tensor, groups: Tensor, valid: Tensor) -> float:
    """The share of groups whose replies all scored the same: they teach nothing."""
    spreads = [
        float(s.max() - s.min()) for g in groups[valid].unique() for s in [scores[valid & (groups == g)]]
    ]
    return sum(spread < 1e-6 for spread in spreads) / max(len(spreads), 1)

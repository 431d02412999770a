# SPDX-License-Identifier: Apache-2.0
"""The loss of an optimiser step that is made of many forward passes: one normaliser for all of them.

A step's loss is the sum of token losses over all its micro-batches and ranks, divided by one number that is
known before the first of them; a mean of means would weigh a token by the company it is computed in
(rlhf_numerics 2.7, 2.8). Metrics are joined from sums, so they too are those of the whole step. N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from earnest import ops
from earnest.ops import PPOLoss
from earnest.ops.ppo import join_sums, metrics_of
from earnest.settings import setting


@dataclass(frozen=True)
class LossSettings:
    """Defaults: rlhf_numerics 2.5 to 2.9, 2.16."""

    clip: float = setting(0.2, "how far below 1 the ratio counts", at_least=0)
    clip_high: float = setting(0.2, "and how far above", at_least=0)
    dual_clip: float | None = setting(
        None, "cap on the ratio where the advantage is negative (null: none)", above=1
    )
    clip_value: float | None = setting(0.2, "how far a value may move from its old one (null: any)", above=0)
    value_coef: float = setting(1.0, "1 for a critic of its own; about 0.1 for a shared trunk", at_least=0)
    kl_coef: float = setting(0.0, "weight of the KL in the loss (in the reward is the default)", at_least=0)
    kl_estimator: Literal["k1", "k2", "k3"] = setting(
        "k2", "only k2 has the gradient of KL(policy || reference)"
    )
    entropy_coef: float = setting(0.0, "weight of an entropy bonus", at_least=0)
    aggregation: Literal["token_mean", "seq_mean", "constant"] = setting(
        "token_mean", "every token alike; every reply alike; or a fixed number of tokens for every reply"
    )
    constant: float = setting(1.0, "constant: tokens that a reply counts for", above=0)


def step_normalizer(
    trainable: Tensor, cu_seqlens: Tensor, settings: LossSettings, *, gradients_averaged: bool = True
) -> Tensor:
    """float64 [N], what the loss of each token is divided by, from all tokens of the optimiser step that this
    process holds; counts are summed over ranks.

    Args:
        trainable: bool [N], of all micro-batches of the step. cu_seqlens: [R + 1] over the same tokens.
        gradients_averaged: ranks' gradients are averaged (DDP, FSDP), not summed; undone here.
    """
    cu_seqlens = cu_seqlens.to(trainable.device)
    lengths = _trainable_per_reply(trainable, cu_seqlens)
    counts = torch.stack([lengths.sum(), (lengths > 0).double().sum()])
    ranks = 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(counts)
        ranks = torch.distributed.get_world_size() if gradients_averaged else 1
    tokens, replies = counts.tolist()
    if settings.aggregation == "token_mean":
        per_reply = torch.full_like(lengths, max(tokens, 1.0))
    elif settings.aggregation == "seq_mean":
        per_reply = lengths.clamp(min=1.0) * max(replies, 1.0)
    else:
        per_reply = torch.full_like(lengths, settings.constant * max(replies, 1.0))
    return torch.repeat_interleave(per_reply / ranks, cu_seqlens.diff().long())


def loss_of(
    logp: Tensor,
    logp_old: Tensor,
    advantages: Tensor,
    trainable: Tensor,
    settings: LossSettings,
    *,
    normalizer: Tensor,
    values: Tensor | None = None,
    values_old: Tensor | None = None,
    returns: Tensor | None = None,
    logp_ref: Tensor | None = None,
    entropy: Tensor | None = None,
    weights: Tensor | None = None,
) -> PPOLoss:
    """The part of the step's loss that N tokens contribute; parts add up, and so do their gradients.

    ``normalizer``: the rows of :func:`step_normalizer` that belong to these tokens. Other arguments as in
    :func:`earnest.ops.ppo_loss`; ``settings`` says how they are weighed."""
    return ops.ppo_loss(
        logp, logp_old, advantages, values, values_old, returns, trainable,
        clip=settings.clip, clip_high=settings.clip_high, dual_clip=settings.dual_clip,
        clip_value=settings.clip_value, value_coef=settings.value_coef, logp_ref=logp_ref,
        kl_coef=settings.kl_coef, kl_estimator=settings.kl_estimator, entropy=entropy,
        entropy_coef=settings.entropy_coef, normalizer=normalizer.to(logp.dtype), weights=weights,
    )  # fmt: skip


def join(parts: Sequence[PPOLoss], *, gradients_averaged: bool = True) -> dict[str, float]:
    """Losses (before their weights) and metrics of a whole step from its micro-batches, alike on every rank.
    `gradients_averaged` as it was given to :func:`step_normalizer`."""
    sums = join_sums(torch.stack([part.sums for part in parts]))
    ranks = 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gathered = [torch.empty_like(sums) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(gathered, sums)
        sums, ranks = join_sums(torch.stack(gathered)), len(gathered) if gradients_averaged else 1
    names = ("policy_loss", "value_loss", "kl_loss", "entropy_loss")
    losses = dict(zip(names, (sums[:4] / ranks).tolist(), strict=True))
    return losses | {name: float(value) for name, value in metrics_of(sums).items()}


def truncated_weights(logp_old: Tensor, logp_sampler: Tensor, cap: float = 2.0) -> Tensor:
    """min(pi_old / pi_sampler, cap) [N]: corrects for a sampler whose numbers are not the trainer's
    (2.18)."""
    return torch.exp((logp_old - logp_sampler).detach().clamp(max=20.0)).clamp(max=cap)


def check_first_step(metrics: dict[str, float]) -> None:
    """The invariants of the first optimiser step on fresh rollouts (2.17): the policy gives its own samples
    the same probabilities again. A violation means that two code paths disagree; training would learn from
    it."""
    expectations = {"ratio_max": 1.0, "ratio_min": 1.0, "clip_fraction": 0.0, "approx_kl": 0.0}
    for name, expected in expectations.items():
        if metrics["tokens"] > 0 and float(metrics[name]) != expected:
            got = float(metrics[name])
            raise RuntimeError(f"[first step] {name}: expected exactly {expected:g}, got {got!r}")


def _trainable_per_reply(trainable: Tensor, cu_seqlens: Tensor) -> Tensor:
    counts = torch.zeros(len(cu_seqlens) - 1, dtype=torch.float64, device=trainable.device)
    replies = torch.arange(len(counts), device=trainable.device)
    reply = torch.repeat_interleave(replies, cu_seqlens.diff().long())
    return counts.index_add_(0, reply, trainable.double())

# SPDX-License-Identifier: Apache-2.0
"""PPO's kernels on checked torch tensors, on the CPU or on cuda, and as the operators that tracers see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from earnest import _native
from earnest.ops import cuda

Maybe = Tensor | None


def run(
    op: str,
    kernel: Callable[..., None],
    inputs: Sequence[Maybe],
    settings: Sequence[Any],
    outputs: Sequence[Maybe],
) -> None:
    """Calls a kernel on contiguous tensors (None: one left out) on the device of the first. On cuda the call
    waits to hear whether every entry was as it must be; what is wrong is said by the CPU, of copies."""
    first = inputs[0]
    assert first is not None
    if not cuda.takes(first):
        kernel(*_memory(inputs), *settings, *_memory(outputs))
        return

    def explain() -> None:
        copies = ([None if x is None else x.cpu() for x in some] for some in (inputs, outputs))
        read, written = map(_memory, copies)
        kernel(*read, *settings, *written)

    with cuda.launching(op, first, explain) as launch:
        kernel(*_memory(inputs), *settings, *_memory(outputs), *launch)


def _memory(tensors: Sequence[Maybe]) -> list[Any]:
    return [None if x is None else to_dlpack(x) for x in tensors]


def run_gae(
    inputs: tuple[Tensor, ...], settings: tuple[float, float, bool], results: tuple[Tensor, ...]
) -> None:
    """rewards, values, trainable, cu_seqlens; gamma, lam, refuse masked rewards; advantages, returns."""
    run("gae", _native.ppo_gae, inputs, settings, results)


@torch.library.custom_op("earnest::gae", mutates_args=())
def gae(
    rewards: Tensor,
    values: Tensor,
    trainable: Tensor,
    cu_seqlens: Tensor,
    gamma: float,
    lam: float,
    refuse: bool,
) -> tuple[Tensor, Tensor]:
    results = (torch.empty_like(rewards), torch.empty_like(rewards))
    run_gae((rewards, values, trainable, cu_seqlens), (gamma, lam, refuse), results)
    return results


@gae.register_fake
def _(rewards, values, trainable, cu_seqlens, gamma, lam, refuse):
    return torch.empty_like(rewards), torch.empty_like(rewards)


@torch.library.custom_op("earnest::masked_moments", mutates_args=())
def moments(x: Tensor, trainable: Tensor) -> Tensor:
    out = x.new_empty(3, dtype=torch.float64)
    run("whiten", _native.ppo_moments, (x, trainable), (), (out,))
    return out


@moments.register_fake
def _(x, trainable):
    return x.new_empty(3, dtype=torch.float64)


@torch.library.custom_op("earnest::whiten", mutates_args=())
def whiten(x: Tensor, trainable: Tensor, moments: Tensor, eps: float, min_std: float) -> Tensor:
    out = torch.empty_like(x)
    run("whiten", _native.ppo_whiten, (x, trainable, moments), (eps, min_std), (out,))
    return out


@whiten.register_fake
def _(x, trainable, moments, eps, min_std):
    return torch.empty_like(x)


@torch.library.custom_op("earnest::group_advantage", mutates_args=())
def group_advantage(
    scores: Tensor,
    groups: Tensor,
    valid: Tensor | None,
    leave_one_out: bool,
    normalize_std: bool,
    eps: float,
    min_std: float,
) -> Tensor:
    out = torch.empty_like(scores)
    settings = (leave_one_out, normalize_std, eps, min_std)
    run("group_advantage", _native.ppo_group_advantage, (scores, groups, valid), settings, (out,))
    return out


@group_advantage.register_fake
def _(scores, groups, valid, leave_one_out, normalize_std, eps, min_std):
    return torch.empty_like(scores)

# SPDX-License-Identifier: Apache-2.0
"""How the PPO losses meet torch: an autograd function for eager calls, operators for tracers.

Gradients of the weighted sum come out of the forward pass. In an eager call they are handed on as they are
where that sum is what is differentiated, and computed again, with other weights, where it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.utils.dlpack import to_dlpack

from earnest import _native

NUM_SUMS: int = _native.PPO_NUM_SUMS
Maybe = Tensor | None

_PLAIN = (Tensor, torch.nn.Parameter)
_DIFFERENTIABLE = (0, 3, 7)  # logp, values and entropy among the inputs below
_NUM_INPUTS = (
    10  # logp, logp_old, advantages, values, values_old, returns, logp_ref, entropy, weights, normalizer
)


class Settings(NamedTuple):
    """As the kernel takes them; ``coefs`` weigh the policy, value, kl and entropy loss."""

    normalizer: float
    clip_low: float
    clip_high: float
    clip_value: float | None
    dual_clip: float | None
    kl_estimator: str
    coefs: tuple[float, ...]


def torch_loss(
    inputs: list[Maybe], trainable: Tensor, settings: Settings
) -> tuple[tuple[Tensor, ...], Tensor]:
    """((loss, policy, value, kl, entropy), sums), the five differentiable."""
    if needs_dispatch(*inputs):
        constants = [x if x is None or i in _DIFFERENTIABLE else x.detach() for i, x in enumerate(inputs)]
        losses, sums = _loss(*constants, trainable, *settings[:-1], *settings.coefs)
        return losses.unbind(), sums
    sums = torch.empty(NUM_SUMS, dtype=torch.float64)
    leaves = _leaves(inputs)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in leaves):
        return _Loss.apply(*leaves, (inputs, trainable, settings, sums)), sums
    return _run(inputs, trainable, settings, (None, None, None), sums).unbind(), sums


def needs_dispatch(*tensors: Maybe) -> bool:
    """Whether more than eager autograd has to see the operator: tracing, subclasses, transforms."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or any(x is not None and (x.is_meta or type(x) not in _PLAIN) for x in tensors)
    )


def _run(
    inputs: Sequence[Maybe], trainable: Tensor, settings: Settings, gradients: Sequence[Maybe], sums: Tensor
) -> Tensor:
    """Fills sums and those gradients that are there; returns (loss, policy, value, kl, entropy)."""
    logp = inputs[0]
    assert logp is not None
    losses = torch.empty(5, dtype=logp.dtype)
    _native.ppo_loss(
        *[None if x is None else to_dlpack(x) for x in inputs], to_dlpack(trainable), *settings[:-1],
        *settings.coefs, *[None if x is None else to_dlpack(x) for x in gradients], to_dlpack(losses),
        to_dlpack(sums),
    )  # fmt: skip
    return losses


def _leaves(inputs: Sequence[Maybe]) -> list[Maybe]:
    return [inputs[i] for i in _DIFFERENTIABLE]


def _new_gradients(leaves: Sequence[Maybe]) -> list[Maybe]:
    return [None if x is None else torch.empty(x.shape, dtype=x.dtype) for x in leaves]


def _gradients(
    upstream: Sequence[float], inputs: Sequence[Maybe], trainable: Tensor, settings: Settings,
    gradients: list[Maybe],
) -> list[Maybe]:  # fmt: skip
    """Gradients of the sum that upstream makes of the loss and its four parts."""
    coefs = tuple(upstream[0] * coef + part for coef, part in zip(settings.coefs, upstream[1:], strict=True))
    sums = torch.empty(NUM_SUMS, dtype=torch.float64)
    _run(inputs, trainable, settings._replace(coefs=coefs), gradients, sums)
    return gradients


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        *leaves, call = arguments
        inputs, trainable, settings, sums = call
        ctx.set_materialize_grads(False)
        ctx.wanted = [x is not None and x.requires_grad for x in leaves]
        ctx.gradients = _new_gradients([x if y else None for x, y in zip(leaves, ctx.wanted, strict=True)])
        losses = _run(inputs, trainable, settings, ctx.gradients, sums)
        # Saving costs as much as the kernel does on a small batch: versions are enough to see a change.
        ctx.call = inputs, trainable, settings, _versions((*inputs, trainable))
        return losses.unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Maybe) -> tuple:
        ready, ctx.gradients = ctx.gradients, None
        if ready is not None and all(x is None for x in upstream[1:]):
            scale = 0.0 if upstream[0] is None else upstream[0].item()
            if scale == 1.0:
                return *ready, None
        inputs, trainable, settings, versions = ctx.call
        if _versions((*inputs, trainable)) != versions:
            raise RuntimeError("[ppo_loss] backward: expected the inputs of the loss, got changed ones")
        leaves = [x if y else None for x, y in zip(_leaves(inputs), ctx.wanted, strict=True)]
        scales = [0.0 if x is None else x.item() for x in upstream]
        return *_gradients(scales, inputs, trainable, settings, _new_gradients(leaves)), None


def _versions(tensors: Sequence[Maybe]) -> list[int]:
    return [0 if x is None or x.is_inference() else x._version for x in tensors]


@torch.library.custom_op("earnest::ppo_loss", mutates_args=())
def _loss(
    logp: Tensor, logp_old: Tensor, advantages: Tensor, values: Tensor | None, values_old: Tensor | None,
    returns: Tensor | None, logp_ref: Tensor | None, entropy: Tensor | None, weights: Tensor | None,
    token_normalizer: Tensor | None, trainable: Tensor, normalizer: float, clip_low: float, clip_high: float,
    clip_value: float | None, dual_clip: float | None, kl_estimator: str, policy_coef: float,
    value_coef: float, kl_coef: float, entropy_coef: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """((loss, policy, value, kl, entropy), sums): what tracers see."""
    inputs = (
        logp, logp_old, advantages, values, values_old, returns, logp_ref, entropy, weights, token_normalizer
    )  # fmt: skip
    coefs = (policy_coef, value_coef, kl_coef, entropy_coef)
    settings = Settings(normalizer, clip_low, clip_high, clip_value, dual_clip, kl_estimator, coefs)
    sums = torch.empty(NUM_SUMS, dtype=torch.float64)
    return _run(inputs, trainable, settings, (None, None, None), sums), sums


@_loss.register_fake
def _(logp, *rest):
    return logp.new_empty(5), logp.new_empty(NUM_SUMS, dtype=torch.float64)


@torch.library.custom_op("earnest::ppo_loss_backward", mutates_args=())
def _loss_backward(
    upstream: Tensor,
    logp: Tensor, logp_old: Tensor, advantages: Tensor, values: Tensor | None, values_old: Tensor | None,
    returns: Tensor | None, logp_ref: Tensor | None, entropy: Tensor | None, weights: Tensor | None,
    token_normalizer: Tensor | None, trainable: Tensor, normalizer: float, clip_low: float, clip_high: float,
    clip_value: float | None, dual_clip: float | None, kl_estimator: str, policy_coef: float,
    value_coef: float, kl_coef: float, entropy_coef: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients with respect to logp, values and entropy; empty for those that are not there."""
    inputs = (
        logp, logp_old, advantages, values, values_old, returns, logp_ref, entropy, weights, token_normalizer
    )  # fmt: skip
    coefs = (policy_coef, value_coef, kl_coef, entropy_coef)
    settings = Settings(normalizer, clip_low, clip_high, clip_value, dual_clip, kl_estimator, coefs)
    gradients = _new_gradients(_leaves(inputs))
    found = _gradients(upstream.tolist(), inputs, trainable, settings, gradients)
    of_logp, of_values, of_entropy = (logp.new_empty(0) if g is None else g for g in found)
    return of_logp, of_values, of_entropy


@_loss_backward.register_fake
def _(upstream, *inputs):
    return tuple(inputs[0].new_empty(0 if x is None else x.shape) for x in _leaves(inputs))


def _save_inputs(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(*inputs[: _NUM_INPUTS + 1])
    ctx.settings = inputs[_NUM_INPUTS + 1 :]
    ctx.mark_non_differentiable(output[1])


def _backward_of_op(ctx: Any, upstream: Tensor, _: Tensor) -> tuple:
    inputs = ctx.saved_tensors
    found: list[Maybe] = [None] * (len(inputs) + len(ctx.settings))
    for i, gradient in zip(_DIFFERENTIABLE, _loss_backward(upstream, *inputs, *ctx.settings), strict=True):
        found[i] = None if inputs[i] is None else gradient
    return tuple(found)


_loss.register_autograd(_backward_of_op, setup_context=_save_inputs)

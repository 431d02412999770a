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
from torch.autograd.function import once_differentiable

from earnest import _native
from earnest.ops import cuda
from earnest.ops.ppo_operators import run

NUM_SUMS: int = _native.PPO_NUM_SUMS
Maybe = Tensor | None
# logp, logp_old, advantages, values, values_old, returns, logp_ref, entropy, weights, normalizer, trainable
Inputs = Sequence[Maybe]

_LARGE = 1 << 18  # tokens
_LOGP = 0
_DIFFERENTIABLE = (_LOGP, 3, 7)  # logp, values and entropy among the inputs
_NUM_INPUTS = 11


class Settings(NamedTuple):
    """As the kernel takes them; ``coefs`` weigh the policy, value, kl and entropy loss."""

    normalizer: float
    clip_low: float
    clip_high: float
    clip_value: float | None
    dual_clip: float | None
    kl_estimator: str
    coefs: tuple[float, ...]


def eager_loss(inputs: Inputs, settings: Settings) -> tuple[Tensor, Tensor, Call]:
    """(loss, sums, where the parts are found): plain tensors, without torch's dispatcher."""
    call = Call(inputs, settings)
    return call.loss(), call.sums, call


def loss_and_gradients(inputs: Inputs, settings: Settings) -> tuple[Tensor, Tensor, list[Maybe]]:
    """(loss, sums, gradients of logp, values and entropy), for whoever needs no autograd."""
    gradients = _new_gradients(inputs, [inputs[i] is not None for i in _DIFFERENTIABLE])
    sums = _new_sums(inputs)
    return _run(inputs, settings, gradients, sums), sums, gradients


def dispatched_loss(inputs: Inputs, settings: Settings) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """The same, with (loss, policy, value, kl, entropy), where tracers, modes or transforms have to see the
    operator."""
    constants = [x if x is None or i in _DIFFERENTIABLE else x.detach() for i, x in enumerate(inputs)]
    losses, sums = _loss(*constants, *settings[:-1], *settings.coefs)
    parts = losses.unbind()
    return parts[0], sums, parts


class Call:
    """One call: its inputs, sums, and gradients on request. ``call[i]`` is the policy (1), value, kl or
    entropy loss, with its gradient."""

    __slots__ = ("differentiable", "inputs", "settings", "sums", "versions", "wanted")

    def __init__(self, inputs: Inputs, settings: Settings) -> None:
        self.inputs, self.settings = inputs, settings
        self.sums = _new_sums(inputs)
        # Saving tensors costs as much as the kernel on a small batch: versions are enough to see a change.
        self.versions = _versions(inputs)
        # Whether logp, values and entropy want gradients.
        leaves = [inputs[i] for i in _DIFFERENTIABLE]
        self.wanted = [x is not None and x.requires_grad for x in leaves]
        self.differentiable = torch.is_grad_enabled() and True in self.wanted

    def loss(self) -> Tensor:
        """Runs the kernel."""
        if not self.differentiable:
            return _run(self.inputs, self.settings, (None, None, None), self.sums)
        found: Tensor = _Loss.apply(*(self.inputs[i] for i in _DIFFERENTIABLE), self)
        return found

    def __getitem__(self, index: int) -> Tensor:
        """A second pass finds the gradient."""
        if not self.differentiable:
            return self.part(index)
        with torch.enable_grad():
            found: Tensor = _Part.apply(*(self.inputs[i] for i in _DIFFERENTIABLE), self, index)
        return found

    def part(self, index: int) -> Tensor:
        return self.sums[index - 1].to(self.inputs[_LOGP].dtype, copy=True)  # type: ignore[union-attr]

    def gradients_again(self, coefs: tuple[float, ...]) -> list[Maybe]:
        """Gradients of the sum that coefs make of the four losses."""
        if _versions(self.inputs) != self.versions:
            raise RuntimeError("[ppo_loss] backward: expected the inputs of the loss, got changed ones")
        gradients = _new_gradients(self.inputs, self.wanted)
        settings = self.settings._replace(coefs=coefs)
        _run(self.inputs, settings, gradients, torch.empty_like(self.sums))
        return gradients


def _run(inputs: Inputs, settings: Settings, gradients: Sequence[Maybe], sums: Tensor) -> Tensor:
    """Fills sums and those gradients that are there; returns the loss."""
    logp = inputs[_LOGP]
    assert logp is not None
    loss = torch.empty((), dtype=logp.dtype, device=logp.device)
    numbers = (*settings[:-1], *settings.coefs)
    run("ppo_loss", _native.ppo_loss, inputs, numbers, (*gradients, loss, sums))
    return loss


def _new_sums(inputs: Inputs) -> Tensor:
    logp = inputs[_LOGP]
    assert logp is not None
    return torch.empty(NUM_SUMS, dtype=torch.float64, device=logp.device)


def _new_gradients(inputs: Inputs, wanted: Sequence[bool]) -> list[Maybe]:
    logp = inputs[_LOGP]
    assert logp is not None
    tokens, dtype = logp.numel(), logp.dtype
    if tokens < _LARGE or logp.is_cuda:
        return [torch.empty(tokens, dtype=dtype, device=logp.device) if want else None for want in wanted]
    # The C library gives several large blocks in a row back to the system, and every call would get new
    # pages, a fourth of its time; one block it keeps.
    step = (tokens + 15) // 16 * 16  # each begins on a cache line
    memory = torch.empty(step * sum(wanted), dtype=dtype).untyped_storage()
    starts = iter(range(0, step * sum(wanted), step))
    return [
        torch.empty(0, dtype=dtype).set_(memory, next(starts), (tokens,)) if want else None  # type: ignore[call-overload]
        for want in wanted
    ]


def _versions(inputs: Inputs) -> list[int]:
    try:
        return [0 if x is None else x._version for x in inputs]
    except RuntimeError:  # inference tensors have none
        return [0 if x is None or x.is_inference() else x._version for x in inputs]


class _Loss(torch.autograd.Function):
    """Gradients come out of the forward pass, for the backward pass to hand on."""

    @staticmethod
    def forward(ctx: Any, logp: Tensor, values: Maybe, entropy: Maybe, call: Call) -> Tensor:
        ctx.call = call
        ctx.gradients = _new_gradients(call.inputs, call.wanted)
        return _run(call.inputs, call.settings, ctx.gradients, call.sums)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple:
        # The decorator's context costs as much as all the rest, and matters only to a graph of gradients.
        return (_constants if torch.is_grad_enabled() else _handed_on)(ctx, upstream)


def _handed_on(ctx: Any, upstream: Tensor) -> tuple:
    ready, ctx.gradients = ctx.gradients, None
    if cuda.is_capturing(upstream):  # nobody may look at the number
        ready = ctx.call.gradients_again(ctx.call.settings.coefs) if ready is None else ready
        return *(None if g is None else g * upstream for g in ready), None
    scale = upstream.item()
    if ready is None or scale != 1.0:
        ready = ctx.call.gradients_again(tuple(scale * coef for coef in ctx.call.settings.coefs))
    return *ready, None


_constants = once_differentiable(_handed_on)


class _Part(torch.autograd.Function):
    """One of the losses that the first one is the sum of."""

    @staticmethod
    def forward(ctx: Any, logp: Tensor, values: Maybe, entropy: Maybe, call: Call, index: int) -> Tensor:
        ctx.call, ctx.index = call, index
        return call.part(index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple:
        coefs = [0.0] * 4
        coefs[ctx.index - 1] = 1.0 if upstream.is_cuda else upstream.item()
        found = ctx.call.gradients_again(tuple(coefs))
        if upstream.is_cuda:
            found = [None if g is None else g * upstream for g in found]
        return *found, None, None


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
        logp, logp_old, advantages, values, values_old, returns, logp_ref, entropy, weights, token_normalizer,
        trainable,
    )  # fmt: skip
    coefs = (policy_coef, value_coef, kl_coef, entropy_coef)
    settings = Settings(normalizer, clip_low, clip_high, clip_value, dual_clip, kl_estimator, coefs)
    sums = _new_sums(inputs)
    loss = _run(inputs, settings, (None, None, None), sums)
    return torch.cat([loss[None], sums[:4].to(logp.dtype)]), sums


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
        logp, logp_old, advantages, values, values_old, returns, logp_ref, entropy, weights, token_normalizer,
        trainable,
    )  # fmt: skip
    first, *parts = upstream.tolist()
    mixed = (policy_coef, value_coef, kl_coef, entropy_coef)
    coefs = tuple(first * coef + part for coef, part in zip(mixed, parts, strict=True))
    settings = Settings(normalizer, clip_low, clip_high, clip_value, dual_clip, kl_estimator, coefs)
    gradients = _new_gradients(inputs, [inputs[i] is not None for i in _DIFFERENTIABLE])
    _run(inputs, settings, gradients, _new_sums(inputs))
    of_logp, of_values, of_entropy = (logp.new_empty(0) if g is None else g for g in gradients)
    return of_logp, of_values, of_entropy


@_loss_backward.register_fake
def _(upstream, *inputs):
    leaves = (inputs[i] for i in _DIFFERENTIABLE)
    return tuple(inputs[0].new_empty(0 if x is None else x.shape) for x in leaves)


def _save_inputs(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(*inputs[:_NUM_INPUTS])
    ctx.settings = inputs[_NUM_INPUTS:]
    ctx.mark_non_differentiable(output[1])


def _backward_of_op(ctx: Any, upstream: Tensor, _: Tensor) -> tuple:
    inputs = ctx.saved_tensors
    found: list[Maybe] = [None] * (len(inputs) + len(ctx.settings))
    for i, gradient in zip(_DIFFERENTIABLE, _loss_backward(upstream, *inputs, *ctx.settings), strict=True):
        found[i] = None if inputs[i] is None else gradient
    return tuple(found)


_loss.register_autograd(_backward_of_op, setup_context=_save_inputs)

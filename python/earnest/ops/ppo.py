# SPDX-License-Identifier: Apache-2.0
"""PPO over packed tokens: advantages, whitening, group baselines, and the losses with gradients and metrics.

Everything works on one row per token, ``[tokens]``, float32 or float64, with ``trainable`` (bool) saying
which tokens the policy chose. What masked entries hold, NaN included, never reaches a result; an entry that
is not finite at a trainable token is an error that names it. Arithmetic is float64 inside, sums have one
fixed order: results do not depend on the number of threads. Formulas and conventions:
kernels/ppo/README.md. Torch tensors or numpy arrays in, the same out; gradients with torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from earnest import _native
from earnest.errors import InvalidInput

Array = Any  # a torch.Tensor or a numpy.ndarray: all arguments of one call are of one kind

_METRICS: tuple[str, ...] = tuple(_native.ppo_metric_names())
_NUM_SUMS: int = _native.PPO_NUM_SUMS


@dataclass(frozen=True, eq=False)
class PPOLoss:
    """What :func:`ppo_loss` returns.

    ``loss = policy_loss + value_coef * value_loss + kl_coef * kl_loss + entropy_coef * entropy_loss``, where
    ``entropy_loss`` is minus the mean entropy. All five are scalars with gradients. ``metrics`` are scalars
    without. ``sums`` (float64) is what metrics are made of: see :func:`join_sums`.
    """

    loss: Array
    policy_loss: Array
    value_loss: Array
    kl_loss: Array
    entropy_loss: Array
    metrics: dict[str, Array]
    sums: Array = field(repr=False)


def gae(
    rewards: Array,
    values: Array,
    trainable: Array,
    cu_seqlens: Array,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    masked_rewards: str = "ignore",
) -> tuple[Array, Array]:
    """Generalised advantage estimation over packed multi-turn sequences.

    ``A_t = r_t + gamma V_next - V_t + gamma lam A_next`` and ``returns = A + V``, where "next" is the next
    trainable token of the same sequence and both are 0 after the last: the end of a sequence is terminal,
    also when the reply was cut off. Tokens between turns change nothing.

    Args:
        rewards, values: [tokens].
        trainable: bool [tokens].
        cu_seqlens: int32 [sequences + 1], where each sequence begins, from 0 to tokens.
        gamma, lam: in [0, 1]. Both 1 takes a shorter path: reverse cumulative reward minus V.
        masked_rewards: "ignore" drops rewards at tokens that are not trainable (per-token KL penalties there
            must not count); "refuse" makes one that is not 0 an error, so that no score can get lost.

    Returns:
        (advantages, returns), each [tokens], 0 where not trainable, constants for autograd.

    Raises:
        InvalidInput: shapes, dtypes or devices that do not fit.
        ValueError: a setting out of range; an entry that is not finite at a trainable token.
    """
    op = "gae"
    if masked_rewards not in ("ignore", "refuse"):
        raise InvalidInput(op, "masked_rewards", "ignore or refuse", repr(masked_rewards))
    arrays = _Arrays(op, "rewards", rewards)
    rewards = arrays.floats("rewards", rewards)
    values = arrays.floats("values", values)
    trainable = arrays.flags("trainable", trainable)
    cu_seqlens = arrays.integers("cu_seqlens", cu_seqlens, "int32")
    refuse = masked_rewards == "refuse"
    if arrays.torch:
        return _gae(
            rewards.detach(), values.detach(), trainable, cu_seqlens, float(gamma), float(lam), refuse
        )
    advantages, returns = np.empty_like(rewards), np.empty_like(rewards)
    _native.ppo_gae(rewards, values, trainable, cu_seqlens, gamma, lam, refuse, advantages, returns)
    return advantages, returns


def ppo_loss(
    logp: Array,
    logp_old: Array,
    advantages: Array,
    values: Array | None,
    values_old: Array | None,
    returns: Array | None,
    trainable: Array,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    clip_value: float | None = 0.2,
    dual_clip: float | None = None,
    logp_ref: Array | None = None,
    kl_coef: float = 0.0,
    kl_estimator: str = "k2",
    value_coef: float = 1.0,
    entropy: Array | None = None,
    entropy_coef: float = 0.0,
    normalizer: float | Array | None = None,
    weights: Array | None = None,
) -> PPOLoss:
    """The clipped policy loss, the clipped value loss, KL to a reference and entropy: one pass, with
    gradients.

    Each is ``sum over trainable t of (term_t / normalizer)``:

    - policy ``w max(-rho A, -clip(rho, 1 - clip, 1 + clip_high) A)``, at most ``-dual_clip A`` where A < 0;
      ``rho = exp(clamp(logp - logp_old, -20, 20))``;
    - value ``max((V - R)^2, (clip(V, V_old - clip_value, V_old + clip_value) - R)^2) / 2``;
    - kl, with ``k1 = logp - logp_ref``: k1, ``k2 = k1^2 / 2`` or ``k3 = exp(-k1) - 1 + k1``. In a loss only
      k2 has, on policy, the gradient of KL(policy || reference): that of k1 is 0 on average, that of k3
      belongs to KL(reference || policy);
    - entropy ``-H``.

    At exactly a clip edge the gradient flows; clip fractions count tokens whose gradient is cut.

    Args:
        logp, entropy: [tokens], from the policy being trained (differentiable).
        values: [tokens], from the critic being trained (differentiable), or None for no value loss.
        logp_old, advantages, values_old, returns, logp_ref, weights: [tokens], constants.
        trainable: bool [tokens].
        clip_high: None for clip. clip_value, dual_clip: None for no such clip.
        normalizer: the number of trainable tokens of the whole optimiser step over micro-batches and ranks
            (default: of this call), or one number for each token [tokens]; all above 0.
        weights: multiply the policy term alone, e.g. truncated importance sampling.

    Raises:
        InvalidInput: shapes, dtypes or devices that do not fit.
        ValueError: a setting out of range; an entry that is not finite at a trainable token.
    """
    op = "ppo_loss"
    arrays = _Arrays(op, "logp", logp)
    trainable = arrays.flags("trainable", trainable)
    per_token = normalizer if getattr(normalizer, "ndim", 0) > 0 else None
    if per_token is None and normalizer is not None and not float(normalizer) > 0.0:
        raise InvalidInput(op, "normalizer", "a number above 0", str(float(normalizer)))
    if values is None:
        values_old = returns = None
    elif returns is None:
        raise InvalidInput(op, "returns", "an array beside values", "None")
    elif clip_value is None:
        values_old = None
    elif values_old is None:
        raise InvalidInput(op, "values_old", "an array beside clip_value", "None")
    inputs = {
        "logp": logp, "logp_old": logp_old, "advantages": advantages, "values": values,
        "values_old": values_old, "returns": returns, "logp_ref": logp_ref, "entropy": entropy,
        "weights": weights, "normalizer": per_token,
    }  # fmt: skip
    checked = {name: None if x is None else arrays.floats(name, x) for name, x in inputs.items()}
    settings = (
        float(normalizer) if normalizer is not None and per_token is None else 0.0,
        float(clip),
        float(clip if clip_high is None else clip_high),
        None if clip_value is None else float(clip_value),
        None if dual_clip is None else float(dual_clip),
        kl_estimator,
    )
    run = _torch_loss if arrays.torch else _numpy_loss
    (policy_loss, value_loss, kl_loss, entropy_loss), sums, metrics = run(checked, trainable, settings)
    loss = policy_loss + value_coef * value_loss + kl_coef * kl_loss + entropy_coef * entropy_loss
    named = dict(zip(_METRICS, metrics, strict=True))
    return PPOLoss(loss, policy_loss, value_loss, kl_loss, entropy_loss, named, sums)


def join_sums(parts: Array) -> Array:
    """float64 [sums]: of a whole batch from the ``sums`` [parts, sums] of its parts (micro-batches,
    ranks)."""
    return _joined("join_sums", "parts", parts, _NUM_SUMS, _native.ppo_join_sums)


def metrics_of(sums: Array) -> dict[str, Array]:
    """The metrics of ``sums`` (float64), of one call or joined: exactly those of the whole batch."""
    sums = _Arrays("metrics_of", "sums", sums).floats("sums", sums)
    if isinstance(sums, Tensor):
        return dict(zip(_METRICS, _metrics(sums).unbind(), strict=True))
    out = np.empty(len(_METRICS))
    _native.ppo_metrics(sums, out)
    return dict(zip(_METRICS, out, strict=True))


def join_moments(parts: Array) -> Array:
    """float64 [3]: the moments of a whole batch from those [parts, 3] of its parts (ranks)."""
    return _joined("join_moments", "parts", parts, 3, _native.ppo_join_moments)


def masked_moments(x: Array, trainable: Array) -> Array:
    """float64 [3]: count, mean and sum of squares about the mean of x [tokens] over trainable tokens."""
    arrays = _Arrays("whiten", "x", x)
    x, trainable = arrays.floats("x", x), arrays.flags("trainable", trainable)
    if arrays.torch:
        return _moments(x.detach(), trainable)
    out = np.empty(3)
    _native.ppo_moments(x, trainable, out)
    return out


def whiten(
    x: Array, trainable: Array, *, moments: Array | None = None, eps: float = 1e-8, min_std: float = 1e-3
) -> Array:
    """``(x - mean) / sqrt(var + eps)`` over the trainable tokens of x [tokens], 0 elsewhere; constant for
    autograd.

    Where the standard deviation is below min_std only the mean is subtracted: a batch of all but equal
    rewards must not be blown up. ``moments``: float64 [3] of a batch larger than x (see masked_moments);
    default of x.
    """
    arrays = _Arrays("whiten", "x", x)
    x, trainable = arrays.floats("x", x), arrays.flags("trainable", trainable)
    if moments is None:
        moments = masked_moments(x, trainable)
    moments = _Arrays("whiten", "moments", moments).floats("moments", moments)
    if arrays.torch:
        return _whiten(x.detach(), trainable, moments.detach(), float(eps), float(min_std))
    out = np.empty_like(x)
    _native.ppo_whiten(x, trainable, moments, eps, min_std, out)
    return out


def group_advantage(
    scores: Array,
    groups: Array,
    *,
    valid: Array | None = None,
    baseline: str = "mean",
    normalize_std: bool = False,
    eps: float = 1e-8,
    min_std: float = 1e-3,
) -> Array:
    """Scores [samples] minus a baseline from the samples of the same group (the replies to one prompt).

    Args:
        groups: int64 [samples], any numbers; equal ones form a group.
        valid: bool [samples]; samples that are not valid count nowhere and get 0.
        baseline: "mean" of the group, or "leave_one_out": the mean of the others.
        normalize_std: divide by sqrt(sample variance of the group + eps), unless the deviation is < min_std.

    A sample alone in its group gets 0: there is nothing to compare it with.
    """
    op = "group_advantage"
    if baseline not in ("mean", "leave_one_out"):
        raise InvalidInput(op, "baseline", "mean or leave_one_out", repr(baseline))
    arrays = _Arrays(op, "scores", scores)
    scores, groups = arrays.floats("scores", scores), arrays.integers("groups", groups, "int64")
    if groups.shape != scores.shape:
        raise InvalidInput(op, "groups", f"shape {list(scores.shape)}", f"{list(groups.shape)}")
    valid = None if valid is None else arrays.flags("valid", valid)
    settings = (baseline == "leave_one_out", bool(normalize_std), float(eps), float(min_std))
    if arrays.torch:
        return _group_advantage(scores.detach(), groups, valid, *settings)
    out = np.empty_like(scores)
    _native.ppo_group_advantage(scores, groups, valid, *settings, out)
    return out


def _joined(op: str, name: str, parts: Array, columns: int, join: Callable[[Array, Array], None]) -> Array:
    if _dtype_of(parts) != "float64" or parts.ndim != 2 or parts.shape[0] < 1 or parts.shape[1] != columns:
        got = f"{_dtype_of(parts)} {list(parts.shape)}"
        raise InvalidInput(op, name, f"float64 [parts >= 1, {columns}]", got)
    if isinstance(parts, Tensor):
        joined = parts.new_empty(columns)
        join(parts.detach().contiguous(), joined)
        return joined
    out = np.empty(columns)
    join(np.ascontiguousarray(parts), out)
    return out


# ---- checks ----


class _Arrays:
    """Checks that the arrays of a call are of one kind, dtype, device and length; returns them contiguous."""

    def __init__(self, op: str, name: str, first: Array) -> None:
        self.op, self.torch = op, isinstance(first, Tensor)
        if not self.torch and not isinstance(first, np.ndarray):
            raise InvalidInput(op, name, "a torch tensor or a numpy array", type(first).__name__)
        if first.ndim != 1:
            raise InvalidInput(op, name, "one dimension", f"shape {list(first.shape)}")
        self.dtype, self.length = _dtype_of(first), first.shape[0]
        if self.dtype not in ("float32", "float64"):
            raise InvalidInput(op, name, "float32 or float64", self.dtype)

    def floats(self, name: str, x: Array) -> Array:
        return self._checked(name, x, self.dtype, self.length)

    def flags(self, name: str, x: Array) -> Array:
        return self._checked(name, x, "bool", self.length)

    def integers(self, name: str, x: Array, dtype: str) -> Array:
        return self._checked(name, x, dtype, None)

    def _checked(self, name: str, x: Array, dtype: str, length: int | None) -> Array:
        kind = "a torch tensor" if self.torch else "a numpy array"
        if not isinstance(x, Tensor if self.torch else np.ndarray):
            raise InvalidInput(self.op, name, kind + " like the others", type(x).__name__)
        if _dtype_of(x) != dtype:
            raise InvalidInput(self.op, name, dtype, _dtype_of(x))
        if x.ndim != 1 or (length is not None and x.shape[0] != length):
            expected = "one dimension" if length is None else f"shape [{length}]"
            raise InvalidInput(self.op, name, expected, f"shape {list(x.shape)}")
        if not isinstance(x, Tensor):
            return np.ascontiguousarray(x)
        if x.device.type not in ("cpu", "meta"):
            raise InvalidInput(self.op, name, "a tensor on cpu (built without CUDA)", f"one on {x.device}")
        return x.contiguous()


def _dtype_of(x: Array) -> str:
    return str(x.dtype).removeprefix("torch.")


# ---- torch operators ----


@torch.library.custom_op("earnest::gae", mutates_args=())
def _gae(
    rewards: Tensor,
    values: Tensor,
    trainable: Tensor,
    cu_seqlens: Tensor,
    gamma: float,
    lam: float,
    refuse: bool,
) -> tuple[Tensor, Tensor]:
    advantages, returns = torch.empty_like(rewards), torch.empty_like(rewards)
    _native.ppo_gae(rewards, values, trainable, cu_seqlens, gamma, lam, refuse, advantages, returns)
    return advantages, returns


@_gae.register_fake
def _(rewards, values, trainable, cu_seqlens, gamma, lam, refuse):
    return torch.empty_like(rewards), torch.empty_like(rewards)


@torch.library.custom_op("earnest::masked_moments", mutates_args=())
def _moments(x: Tensor, trainable: Tensor) -> Tensor:
    out = torch.empty(3, dtype=torch.float64)
    _native.ppo_moments(x, trainable, out)
    return out


@_moments.register_fake
def _(x, trainable):
    return x.new_empty(3, dtype=torch.float64)


@torch.library.custom_op("earnest::whiten", mutates_args=())
def _whiten(x: Tensor, trainable: Tensor, moments: Tensor, eps: float, min_std: float) -> Tensor:
    out = torch.empty_like(x)
    _native.ppo_whiten(x, trainable, moments, eps, min_std, out)
    return out


@_whiten.register_fake
def _(x, trainable, moments, eps, min_std):
    return torch.empty_like(x)


@torch.library.custom_op("earnest::group_advantage", mutates_args=())
def _group_advantage(
    scores: Tensor,
    groups: Tensor,
    valid: Tensor | None,
    leave_one_out: bool,
    normalize_std: bool,
    eps: float,
    min_std: float,
) -> Tensor:
    out = torch.empty_like(scores)
    _native.ppo_group_advantage(scores, groups, valid, leave_one_out, normalize_std, eps, min_std, out)
    return out


@_group_advantage.register_fake
def _(scores, groups, valid, leave_one_out, normalize_std, eps, min_std):
    return torch.empty_like(scores)


@torch.library.custom_op("earnest::ppo_metrics", mutates_args=())
def _metrics(sums: Tensor) -> Tensor:
    out = torch.empty(len(_METRICS), dtype=torch.float64)
    _native.ppo_metrics(sums, out)
    return out


@_metrics.register_fake
def _(sums):
    return sums.new_empty(len(_METRICS))


@torch.library.custom_op("earnest::ppo_loss", mutates_args=())
def _loss(
    logp: Tensor,
    logp_old: Tensor,
    advantages: Tensor,
    values: Tensor | None,
    values_old: Tensor | None,
    returns: Tensor | None,
    logp_ref: Tensor | None,
    entropy: Tensor | None,
    weights: Tensor | None,
    token_normalizer: Tensor | None,
    trainable: Tensor,
    normalizer: float,
    clip_low: float,
    clip_high: float,
    clip_value: float | None,
    dual_clip: float | None,
    kl_estimator: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(losses [4], sums, d policy / d logp, d value / d values, d kl / d logp, d entropy / d entropy)."""
    gradients = [torch.empty_like(logp) if x is not None else None for x in (logp, values, logp_ref, entropy)]
    sums = torch.empty(_NUM_SUMS, dtype=torch.float64)
    _native.ppo_loss(
        logp, logp_old, advantages, values, values_old, returns, logp_ref, entropy, weights, token_normalizer,
        trainable, normalizer, clip_low, clip_high, clip_value, dual_clip, kl_estimator, *gradients, sums,
    )  # fmt: skip
    policy, value, kl, entropy_gradient = (logp.new_empty(0) if g is None else g for g in gradients)
    return sums[:4].to(logp.dtype, copy=True), sums, policy, value, kl, entropy_gradient


@_loss.register_fake
def _(logp, logp_old, advantages, values, values_old, returns, logp_ref, entropy, *settings):
    gradients = [
        logp.new_empty(0) if x is None else torch.empty_like(logp) for x in (values, logp_ref, entropy)
    ]
    sums = logp.new_empty(_NUM_SUMS, dtype=torch.float64)
    return logp.new_empty(4), sums, torch.empty_like(logp), *gradients


def _save_gradients(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, sums, *gradients = output
    ctx.has = [inputs[i] is not None for i in (3, 6, 7)]  # values, logp_ref, entropy
    ctx.save_for_backward(*gradients)
    ctx.mark_non_differentiable(sums, *gradients)


def _scale_gradients(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple:
    policy, value, kl, entropy = ctx.saved_tensors
    of_policy, of_value, of_kl, of_entropy = upstream.unbind()
    has_values, has_reference, has_entropy = ctx.has
    d_logp = of_policy * policy + of_kl * kl if has_reference else of_policy * policy
    d_values = of_value * value if has_values else None
    d_entropy = of_entropy * entropy if has_entropy else None
    return d_logp, None, None, d_values, None, None, None, d_entropy, *[None] * 9


_loss.register_autograd(_scale_gradients, setup_context=_save_gradients)


def _torch_loss(inputs: dict[str, Tensor | None], trainable: Tensor, settings: tuple) -> tuple:
    differentiable = ("logp", "values", "entropy")
    constants = {k: x if x is None or k in differentiable else x.detach() for k, x in inputs.items()}
    losses, sums, *_ = _loss(*constants.values(), trainable, *settings)
    return losses.unbind(), sums, _metrics(sums).unbind()


def _numpy_loss(inputs: dict[str, np.ndarray | None], trainable: np.ndarray, settings: tuple) -> tuple:
    logp = inputs["logp"]
    assert logp is not None
    names = ("logp", "values", "logp_ref", "entropy")
    gradients = [None if inputs[name] is None else np.empty_like(logp) for name in names]
    sums, metrics = np.empty(_NUM_SUMS), np.empty(len(_METRICS))
    _native.ppo_loss(*inputs.values(), trainable, *settings, *gradients, sums)
    _native.ppo_metrics(sums, metrics)
    return tuple(sums[:4].astype(logp.dtype)), sums, tuple(metrics)

# SPDX-License-Identifier: Apache-2.0
"""PPO over packed tokens: advantages, whitening, group baselines, and the losses with gradients and metrics.

Everything works on one row per token, ``[tokens]``, float32 or float64, with ``trainable`` (bool) saying
which tokens the policy chose. What masked entries hold, NaN included, never reaches a result; an entry that
is not finite at a trainable token is an error that names it. Arithmetic is float64 inside, sums have one
fixed order: results do not depend on the number of threads. Formulas and conventions:
kernels/ppo/README.md. Torch tensors (on the CPU or on cuda), numpy or cupy arrays in, the same out; gradients
with torch. On cuda a call waits to hear that no entry was wrong; in a CUDA graph see ops.raise_faults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from earnest import _native
from earnest.errors import InvalidInput
from earnest.ops import ppo_operators as operators
from earnest.ops.cupy_arrays import accepts_cupy
from earnest.ops.eager import is_eager
from earnest.ops.ppo_autograd import NUM_SUMS, Call, Settings, dispatched_loss, eager_loss
from earnest.ops.ppo_metrics import METRICS, metrics_of_tensor

Array = Any  # a torch.Tensor, numpy.ndarray or cupy.ndarray: all arguments of one call are of one kind

_FLOATS = (torch.float32, torch.float64, np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True, eq=False)
class PPOLoss:
    """What :func:`ppo_loss` returns.

    ``loss = policy_loss + value_coef * value_loss + kl_coef * kl_loss + entropy_coef * entropy_loss``, where
    ``entropy_loss`` is minus the mean entropy. All five are scalars with gradients; that of ``loss`` is ready
    when it is asked for, that of another takes a second pass. ``sums`` (float64) is what ``metrics``, scalars
    without gradients, are made of: see :func:`join_sums`.
    """

    loss: Array
    sums: Array = field(repr=False)
    _parts: Call | tuple[Array, ...] = field(repr=False)  # by number: policy 1, value 2, kl 3, entropy 4

    @property
    def policy_loss(self) -> Array:
        return self._parts[1]

    @property
    def value_loss(self) -> Array:
        return self._parts[2]

    @property
    def kl_loss(self) -> Array:
        return self._parts[3]

    @property
    def entropy_loss(self) -> Array:
        return self._parts[4]

    def map(self, function: Callable[[Array], Array]) -> PPOLoss:
        """The same of other arrays, without gradients."""
        parts = tuple(function(self._parts[i].detach()) for i in range(1, 5))
        loss = function(self.loss.detach())
        return PPOLoss(loss, function(self.sums), (loss, *parts))

    @cached_property
    def metrics(self) -> Mapping[str, Array]:
        return metrics_of(self.sums)


@accepts_cupy
def gae(
    rewards: Array,
    values: Array,
    trainable: Array,
    cu_seqlens: Array,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    masked_rewards: str = "ignore",
    out: tuple[Array, Array] | None = None,
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
        out: where to write (advantages, returns): contiguous arrays like rewards that share no memory with
            any other. For large batches, new memory can cost as much time as the computation.

    Returns:
        (advantages, returns), each [tokens], 0 where not trainable, constants for autograd.

    Raises:
        InvalidInput: shapes, dtypes or devices that do not fit.
        ValueError: a setting out of range; an entry that is not finite at a trainable token.
    """
    op = "gae"
    if masked_rewards not in ("ignore", "refuse"):
        raise InvalidInput(op, "masked_rewards", "ignore or refuse", repr(masked_rewards))
    settings = (float(gamma), float(lam), masked_rewards == "refuse")
    found = _gae_directly((rewards, values, trainable, cu_seqlens), settings, out)
    if found is not None:
        return found
    arrays = _Arrays(op, "rewards", rewards)
    rewards = arrays.floats("rewards", rewards)
    values = arrays.floats("values", values)
    trainable = arrays.flags("trainable", trainable)
    cu_seqlens = arrays.integers("cu_seqlens", cu_seqlens, "int32")
    inputs = (rewards, values, trainable, cu_seqlens)
    results = None if out is None else arrays.outputs(("advantages", "returns"), out)
    if not arrays.torch:
        results = results or (np.empty_like(rewards), np.empty_like(rewards))
        _native.ppo_gae(*inputs, *settings, *results)
        return results
    if not is_eager(*inputs):
        found = operators.gae(*(x.detach() for x in inputs), *settings)
        return found if results is None else (results[0].copy_(found[0]), results[1].copy_(found[1]))
    results = results or (torch.empty_like(rewards), torch.empty_like(rewards))
    operators.run_gae(inputs, settings, results)
    return results


@accepts_cupy
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
    per_token: Array = normalizer if getattr(normalizer, "ndim", 0) > 0 else None
    divisor = 0.0 if per_token is not None or normalizer is None else float(normalizer)
    if normalizer is not None and per_token is None and not divisor > 0.0:
        raise InvalidInput(op, "normalizer", "a number above 0", str(divisor))
    if values is None:
        values_old = returns = None
    elif returns is None:
        raise InvalidInput(op, "returns", "an array beside values", "None")
    elif clip_value is None:
        values_old = None
    elif values_old is None:
        raise InvalidInput(op, "values_old", "an array beside clip_value", "None")
    settings = Settings(
        divisor,
        float(clip),
        float(clip if clip_high is None else clip_high),
        None if clip_value is None else float(clip_value),
        None if dual_clip is None else float(dual_clip),
        kl_estimator,
        (1.0, float(value_coef), float(kl_coef), float(entropy_coef)),
    )
    inputs = (
        logp, logp_old, advantages, values, values_old, returns, logp_ref, entropy, weights, per_token,
        trainable,
    )  # fmt: skip
    if logp is not None and is_eager(*inputs):
        try:
            return PPOLoss(*eager_loss(inputs, settings))
        except (TypeError, ValueError):  # the checks below find words for it
            pass
    arrays = _Arrays(op, "logp", logp)
    trainable = arrays.flags("trainable", trainable)
    names = (
        "logp", "logp_old", "advantages", "values", "values_old", "returns", "logp_ref", "entropy", "weights",
        "normalizer",
    )  # fmt: skip
    floats = [None if x is None else arrays.floats(n, x) for n, x in zip(names, inputs[:-1], strict=True)]
    if not arrays.torch:
        loss, sums = np.empty((), logp.dtype), np.empty(NUM_SUMS)
        _native.ppo_loss(*floats, trainable, *settings[:-1], *settings.coefs, None, None, None, loss, sums)
        return PPOLoss(loss[()], sums, (loss[()], *sums[:4].astype(logp.dtype)))
    run = eager_loss if is_eager(*floats, trainable) else dispatched_loss
    return PPOLoss(*run((*floats, trainable), settings))


@accepts_cupy
def join_sums(parts: Array) -> Array:
    """float64 [sums]: of a whole batch from the ``sums`` [parts, sums] of its parts (micro-batches,
    ranks)."""
    return _joined("join_sums", "parts", parts, NUM_SUMS, _native.ppo_join_sums)


@accepts_cupy
def metrics_of(sums: Array) -> Mapping[str, Array]:
    """The metrics of ``sums`` (float64), of one call or joined: exactly those of the whole batch."""
    sums = _Arrays("metrics_of", "sums", sums).floats("sums", sums)
    if isinstance(sums, Tensor):
        return metrics_of_tensor(sums)
    out = np.empty(len(METRICS))
    _native.ppo_metrics(sums, out)
    return dict(zip(METRICS, out, strict=True))


@accepts_cupy
def join_moments(parts: Array) -> Array:
    """float64 [3]: the moments of a whole batch from those [parts, 3] of its parts (ranks)."""
    return _joined("join_moments", "parts", parts, 3, _native.ppo_join_moments)


@accepts_cupy
def masked_moments(x: Array, trainable: Array) -> Array:
    """float64 [3]: count, mean and sum of squares about the mean of x [tokens] over trainable tokens."""
    arrays = _Arrays("whiten", "x", x)
    x, trainable = arrays.floats("x", x), arrays.flags("trainable", trainable)
    if arrays.torch:
        return operators.moments(x.detach(), trainable)
    out = np.empty(3)
    _native.ppo_moments(x, trainable, out)
    return out


@accepts_cupy
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
        return operators.whiten(x.detach(), trainable, moments.detach(), float(eps), float(min_std))
    out = np.empty_like(x)
    _native.ppo_whiten(x, trainable, moments, eps, min_std, out)
    return out


@accepts_cupy
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
        return operators.group_advantage(scores.detach(), groups, valid, *settings)
    out = np.empty_like(scores)
    _native.ppo_group_advantage(scores, groups, valid, *settings, out)
    return out


def _gae_directly(inputs: tuple, settings: tuple, out: Any) -> tuple[Array, Array] | None:
    """The results of plain arrays in memory order, as the kernel found them; None where they are others, or
    where something is wrong, for which the checks have better words than the kernel."""
    if out is not None and not (isinstance(out, tuple | list) and len(out) == 2):
        return None
    arrays, first = (*inputs, *(out or ())), inputs[0]
    if all(type(x) is np.ndarray for x in arrays):
        results = (np.empty_like(first), np.empty_like(first)) if out is None else tuple(out)
        run: Callable[..., None] = _run_on_numpy
    elif first is not None and is_eager(*arrays):
        results = (torch.empty_like(first), torch.empty_like(first)) if out is None else tuple(out)
        run = operators.run_gae
    else:
        return None
    try:
        run(inputs, settings, results)
    except (TypeError, ValueError):
        return None
    return results


def _run_on_numpy(inputs: tuple, settings: tuple, results: tuple) -> None:
    _native.ppo_gae(*inputs, *settings, *results)


def _joined(op: str, name: str, parts: Array, columns: int, join: Callable[[Array, Array], None]) -> Array:
    if (
        _name_of(parts.dtype) != "float64"
        or parts.ndim != 2
        or parts.shape[0] < 1
        or parts.shape[1] != columns
    ):
        got = f"{_name_of(parts.dtype)} {list(parts.shape)}"
        raise InvalidInput(op, name, f"float64 [parts >= 1, {columns}]", got)
    if isinstance(parts, Tensor):
        joined = torch.empty(columns, dtype=torch.float64)
        join(parts.detach().cpu().contiguous(), joined)
        return joined.to(parts.device)
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
        self.dtype, self.shape = first.dtype, first.shape
        self.first, self.device = name, first.device if self.torch else None
        if self.dtype not in _FLOATS:
            raise InvalidInput(op, name, "float32 or float64", _name_of(self.dtype))

    def floats(self, name: str, x: Array) -> Array:
        return self._checked(name, x, self.dtype, self.shape)

    def flags(self, name: str, x: Array) -> Array:
        return self._checked(name, x, torch.bool if self.torch else np.dtype(bool), self.shape)

    def integers(self, name: str, x: Array, dtype: str) -> Array:
        return self._checked(name, x, getattr(torch, dtype) if self.torch else np.dtype(dtype), None)

    def outputs(self, names: tuple[str, ...], xs: tuple[Array, ...]) -> tuple[Array, ...]:
        """Arrays to write into, which must therefore be contiguous as they are."""
        if not isinstance(xs, tuple | list) or len(xs) != len(names):
            raise InvalidInput(self.op, "out", f"({', '.join(names)})", type(xs).__name__)
        for name, x in zip(names, xs, strict=True):
            if self.floats(f"out: {name}", x) is not x:
                raise InvalidInput(self.op, f"out: {name}", "a contiguous array", "one with strides")
        return tuple(xs)

    def _checked(self, name: str, x: Array, dtype: Any, shape: Any) -> Array:
        kind = "a torch tensor" if self.torch else "a numpy array"
        if not isinstance(x, Tensor if self.torch else np.ndarray):
            raise InvalidInput(self.op, name, kind + " like the others", type(x).__name__)
        if x.dtype != dtype:
            raise InvalidInput(self.op, name, _name_of(dtype), _name_of(x.dtype))
        if x.ndim != 1 or (shape is not None and x.shape != shape):
            expected = "one dimension" if shape is None else f"shape {list(shape)}"
            raise InvalidInput(self.op, name, expected, f"shape {list(x.shape)}")
        if not isinstance(x, Tensor):
            return x if x.flags.carray else np.ascontiguousarray(x)
        if not (x.is_cpu or x.is_meta or x.is_cuda):
            raise InvalidInput(self.op, name, "a tensor on cpu or cuda", f"one on {x.device}")
        if x.device != self.device:
            expected = f"a tensor on {self.device} as {self.first}"
            raise InvalidInput(self.op, name, expected, f"one on {x.device}")
        return x if x.is_contiguous() else x.contiguous()


def _name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")

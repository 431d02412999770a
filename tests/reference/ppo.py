# SPDX-License-Identifier: Apache-2.0
"""The ppo family from its definitions, in float64 torch: slow, plain, and differentiated by autograd."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards: Tensor, values: Tensor, trainable: Tensor, cu_seqlens: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """A_t = sum_{k >= t} (gamma lam)^(k - t) delta_k over the trainable tokens of each sequence alone,
    O(n^2)."""
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    for begin, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        places = [t for t in range(begin, end) if trainable[t]]
        v = [*values[places].tolist(), 0.0]
        r = rewards[places].tolist()
        delta = [r[k] + gamma * v[k + 1] - v[k] for k in range(len(places))]
        for i, t in enumerate(places):
            advantages[t] = sum((gamma * lam) ** (k - i) * delta[k] for k in range(i, len(places)))
            returns[t] = advantages[t] + v[i]
    return advantages, returns


def kl_term(logp: Tensor, logp_ref: Tensor, estimator: str) -> Tensor:
    k1 = logp - logp_ref
    if estimator == "k1":
        return k1
    if estimator == "k2":
        return k1**2 / 2
    y = torch.clamp(-k1, -20, 20)
    return torch.expm1(y) - y


def losses(
    logp: Tensor,
    logp_old: Tensor,
    advantages: Tensor,
    values: Tensor | None,
    values_old: Tensor | None,
    returns: Tensor | None,
    trainable: Tensor,
    *,
    clip: float,
    clip_high: float,
    clip_value: float | None,
    dual_clip: float | None,
    logp_ref: Tensor | None,
    kl_estimator: str,
    entropy: Tensor | None,
    normalizer: float | Tensor,
    weights: Tensor | None,
) -> dict[str, Tensor]:
    """The four losses as scalars. Masked tokens are cut out, so that nothing they hold can matter."""

    def mean(term: Tensor) -> Tensor:
        return (term / (normalizer[trainable] if isinstance(normalizer, Tensor) else normalizer)).sum()

    m = trainable
    rho = torch.exp(torch.clamp(logp[m] - logp_old[m], -20, 20))
    a = advantages[m]
    policy = torch.maximum(-rho * a, -torch.clamp(rho, 1 - clip, 1 + clip_high) * a)
    if dual_clip is not None:
        policy = torch.where(a < 0, torch.minimum(policy, -dual_clip * a), policy)
    found = {"policy_loss": mean(policy * (1.0 if weights is None else weights[m]))}
    found["value_loss"] = found["kl_loss"] = found["entropy_loss"] = torch.zeros((), dtype=logp.dtype)
    if values is not None and returns is not None:
        v, r = values[m], returns[m]
        squares = (v - r) ** 2
        if clip_value is not None and values_old is not None:
            near = torch.clamp(v, values_old[m] - clip_value, values_old[m] + clip_value)
            squares = torch.maximum(squares, (near - r) ** 2)
        found["value_loss"] = mean(squares / 2)
    if logp_ref is not None:
        found["kl_loss"] = mean(kl_term(logp[m], logp_ref[m], kl_estimator))
    if entropy is not None:
        found["entropy_loss"] = mean(-entropy[m])
    return found


def metrics(
    logp: Tensor, logp_old: Tensor, advantages: Tensor, values: Tensor, values_old: Tensor, returns: Tensor,
    trainable: Tensor, *, clip: float, clip_high: float, clip_value: float, dual_clip: float, logp_ref:
    Tensor, entropy: Tensor, weights: Tensor,
) -> dict[str, float]:  # fmt: skip
    m = trainable
    log_ratio, a, w = (logp - logp_old)[m], advantages[m], weights[m]
    rho = torch.exp(torch.clamp(log_ratio, -20, 20))
    v, r, old = values[m], returns[m], values_old[m]
    near = torch.clamp(v, old - clip_value, old + clip_value)
    low, high = (rho < 1 - clip) & (a < 0), (rho > 1 + clip_high) & (a > 0)
    k1 = (logp - logp_ref)[m]
    found = {
        "tokens": m.sum(),
        "ratio_mean": rho.mean(),
        "ratio_max": rho.max(),
        "ratio_min": rho.min(),
        "approx_kl": (rho - 1 - torch.log(rho)).mean(),
        "log_ratio_abs_mean": log_ratio.abs().mean(),
        "log_ratio_abs_max": log_ratio.abs().max(),
        "log_ratio_clamped_fraction": (log_ratio.abs() > 20).double().mean(),
        "clip_fraction": (low | high).double().mean(),
        "clip_fraction_low": low.double().mean(),
        "clip_fraction_high": high.double().mean(),
        "dual_clip_fraction": ((a < 0) & (rho > dual_clip)).double().mean(),
        "weight_mean": w.mean(),
        "effective_sample_fraction": w.sum() ** 2 / (w**2).sum() / len(w),
        "value_clip_fraction": ((near - r).abs() > (v - r).abs()).double().mean(),
        "explained_variance": 1 - (r - v).var(correction=0) / r.var(correction=0),
        "return_mean": r.mean(),
        "value_error_mean": ((v - r) ** 2).mean(),
        "ref_kl_k1": k1.mean(),
        "ref_kl_k3": kl_term(logp[m], logp_ref[m], "k3").mean(),
        "entropy_mean": entropy[m].mean(),
    }
    return {name: float(value) for name, value in found.items()}


def whiten(x: Tensor, trainable: Tensor) -> Tensor:
    chosen = x[trainable]
    variance = ((chosen - chosen.mean()) ** 2).mean()
    divisor = torch.sqrt(variance + 1e-8) if variance.sqrt() >= 1e-3 else 1.0
    out = torch.zeros_like(x)
    out[trainable] = (chosen - chosen.mean()) / divisor
    return out

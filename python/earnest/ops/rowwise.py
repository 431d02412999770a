# SPDX-License-Identifier: Apache-2.0
"""What a decoder does to each token between its matrix products, with gradients (kernels/rowwise).

On the CPU the kernels run; on other devices, and where a tracer or transform looks, the formulas in torch's
own operations, which compilers can fuse."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from earnest import _native
from earnest.errors import InvalidInput
from earnest.ops import cuda
from earnest.ops.eager import bits, capsule, needs_gradient, runs_directly

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (arXiv 1910.07467).

    x [..., width], weight [width]; float32, float64 or bfloat16 (computed in float32), both the same. Raises
    InvalidInput. A row's result depends on that row alone."""
    _check("rms_norm", "x", x, 1)
    if weight.ndim != 1 or weight.shape[0] != x.shape[-1] or weight.dtype != x.dtype:
        _wrong("rms_norm", "weight", f"{x.dtype} [{x.shape[-1]}]", _described(weight))
    if not 0 < eps < math.inf:
        _wrong("rms_norm", "eps", "a finite number above 0", eps)
    if not runs_directly(x, weight):
        return F.rms_norm(x, weight.shape, weight, eps)
    if not needs_gradient(x, weight):
        return _normed(x, weight, eps)[0]
    y: Tensor = _RmsNorm.apply(x, weight, eps)
    return y


def rotary(
    qkv: Tensor, cosine: Tensor, sine: Tensor, heads: int, kv_heads: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of one fused projection, apart, the first two turned to their positions
    (arXiv 2104.09864; pairs (j, j + dim / 2)).

    qkv [tokens, (heads + 2 kv_heads) dim]; cosine and sine [tokens, dim / 2], float32 (float64 for float64),
    without gradients. Returns q [tokens, heads, dim], k and v [tokens, kv_heads, dim] in `dtype`: that of
    qkv, or float32 where qkv is bfloat16. Raises InvalidInput."""
    _check("rotary", "qkv", qkv, 2)
    if dtype != qkv.dtype and (qkv.dtype, dtype) != (torch.bfloat16, torch.float32):
        _wrong("rotary", "dtype", f"{qkv.dtype}, or float32 for bfloat16", dtype)
    if heads < 1 or kv_heads < 1 or qkv.shape[1] % (2 * (heads + 2 * kv_heads)) != 0:
        expected = f"a width that {heads} + 2 * {kv_heads} heads of an even size share"
        _wrong("rotary", "qkv", expected, qkv.shape[1])
    half = qkv.shape[1] // (heads + 2 * kv_heads) // 2
    turns = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    for name, angle in (("cosine", cosine), ("sine", sine)):
        if angle.dtype != turns or angle.shape != (qkv.shape[0], half):
            _wrong("rotary", name, f"{turns} [{qkv.shape[0]}, {half}]", _described(angle))
    if not runs_directly(qkv, cosine, sine):
        return _rotary_formula(qkv, cosine, sine, heads, kv_heads, dtype)
    if not needs_gradient(qkv):
        return _turned(qkv, cosine, sine, heads, kv_heads, dtype)
    q, k, v = _Rotary.apply(qkv, cosine, sine, heads, kv_heads, dtype)
    return q, k, v


def rotary_angles(positions: Tensor, theta: float, dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 [tokens, dim / 2] each, of positions * theta^(-2 j / dim), every step
    rounded to float32 (kernels/rowwise/angles.h): for `rotary`. positions int64 [tokens], none above 2^24."""
    if positions.dtype != torch.int64 or positions.ndim != 1:
        _wrong("rotary_angles", "positions", "int64 [tokens]", _described(positions))
    if dim < 2 or dim % 2 != 0:
        _wrong("rotary_angles", "dim", "an even number, at least 2", dim)
    if not runs_directly(positions):
        rates = 1.0 / (theta ** (torch.arange(0, dim, 2, device=positions.device).float() / dim))
        angles = positions[:, None].float() * rates
        return angles.cos(), angles.sin()
    cosine, sine = torch.empty(2, len(positions), dim // 2)
    _native.rotary_angles(capsule(positions), theta, capsule(cosine), capsule(sine))
    return cosine, sine


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202): gate_up [..., 2 width], the gates before the ups -> [..., width];
    float32, float64 or bfloat16 (computed in float32). Raises InvalidInput."""
    _check("swiglu", "gate_up", gate_up, 1)
    if gate_up.shape[-1] % 2 != 0:
        _wrong("swiglu", "gate_up", "[..., 2 width]", list(gate_up.shape))
    if not runs_directly(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
    if not needs_gradient(gate_up):
        return _gated(gate_up)
    out: Tensor = _SwiGlu.apply(gate_up)
    return out


def which(device: str = "cpu") -> str:
    """The back end that would run, e.g. "cpu/avx512"; an error where there is none."""
    return cuda.torch_backend("rowwise") if device == "cuda" else _native.rowwise_which(device)


def _wrong(op: str, argument: str, expected: str, got: object) -> NoReturn:
    raise InvalidInput(op, argument, expected, str(got))


def _described(x: Tensor) -> str:
    return f"{x.dtype} {list(x.shape)}"


def _check(op: str, name: str, x: Any, axes: int) -> None:
    if not isinstance(x, Tensor) or x.dtype not in _DTYPES:
        _wrong(op, name, "a float32, float64 or bfloat16 tensor", getattr(x, "dtype", type(x).__name__))
    if x.ndim < axes or x.shape[-1] < 1:
        _wrong(op, name, f"at least {axes} axes, the last not empty", list(x.shape))


def _sums_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rows = x if x.ndim == 2 else x.reshape(x.numel() // x.shape[-1], x.shape[-1])
    y, inverse = torch.empty(rows.shape, dtype=x.dtype), torch.empty(len(rows), dtype=_sums_in(x.dtype))
    _native.rms_norm(bits(rows), bits(weight), eps, bits(y), bits(inverse))
    return y.view(x.shape), inverse


def _turned(
    qkv: Tensor, cosine: Tensor, sine: Tensor, heads: int, kv_heads: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    dim = qkv.shape[1] // (heads + 2 * kv_heads)
    q = torch.empty((len(qkv), heads, dim), dtype=dtype)
    k = torch.empty((len(qkv), kv_heads, dim), dtype=dtype)
    v = torch.empty((len(qkv), kv_heads, dim), dtype=dtype)
    run = _native.rotary if dtype == qkv.dtype else _native.rotary_widening
    run(*map(bits, (qkv, cosine, sine, q, k, v)))
    return q, k, v


def _gated(gate_up: Tensor) -> Tensor:
    width = gate_up.shape[-1] // 2
    rows = gate_up if gate_up.ndim == 2 else gate_up.reshape(gate_up.numel() // (2 * width), 2 * width)
    out = torch.empty((len(rows), width), dtype=gate_up.dtype)
    _native.swiglu(bits(rows), bits(out))
    return out.view(*gate_up.shape[:-1], width)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, inverse = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        x, weight, inverse = ctx.saved_tensors
        rows = x.reshape(len(inverse), len(weight))
        grad_x, grad_weight = (
            torch.empty(rows.shape, dtype=x.dtype),
            torch.empty_like(weight, dtype=inverse.dtype),
        )
        _native.rms_norm_backward(
            bits(grad_y.reshape(rows.shape)), bits(rows), bits(weight), ctx.eps, bits(inverse),
            bits(grad_x), bits(grad_weight),
        )  # fmt: skip
        return grad_x.view(x.shape), grad_weight.to(weight.dtype), None


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cosine: Tensor, sine: Tensor, heads: int, kv_heads: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cosine, sine)
        ctx.fused = (qkv.shape, qkv.dtype)
        return _turned(qkv, cosine, sine, heads, kv_heads, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        shape, dtype = ctx.fused
        grad_qkv = torch.empty(shape, dtype=dtype)
        same = dtype == grads[0].dtype
        run = _native.rotary_backward if same else _native.rotary_widening_backward
        run(*map(bits, (grad_qkv, *ctx.saved_tensors, *grads)))
        return grad_qkv, None, None, None, None, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return _gated(gate_up)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        (gate_up,) = ctx.saved_tensors
        width = gate_up.shape[-1] // 2
        rows = gate_up.reshape(gate_up.numel() // (2 * width), 2 * width)
        grad = torch.empty(rows.shape, dtype=gate_up.dtype)
        _native.swiglu_backward(bits(grad_out.reshape(len(rows), width)), bits(rows), bits(grad))
        return grad.view(gate_up.shape)


def _rotary_formula(
    qkv: Tensor, cosine: Tensor, sine: Tensor, heads: int, kv_heads: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    parts = qkv.to(cosine.dtype).view(len(qkv), heads + 2 * kv_heads, 2 * cosine.shape[1])
    a, b = parts[:, : heads + kv_heads].chunk(2, dim=-1)
    c, s = cosine[:, None], sine[:, None]
    turned = torch.cat([a * c - b * s, b * c + a * s], dim=-1).to(dtype)
    return turned[:, :heads], turned[:, heads:], parts[:, heads + kv_heads :].to(dtype)

# SPDX-License-Identifier: Apache-2.0
"""What an audio encoder does to its frames between its matrix products, with gradients (kernels/frames).

On the CPU the kernels run, the same that the native engine calls; on other devices, and where a tracer or
transform looks, torch's own operations."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from earnest import _native
from earnest.errors import InvalidInput
from earnest.ops import cuda
from earnest.ops.eager import bits, needs_gradient, runs_directly

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis (arXiv 1607.06450).

    x [..., width], weight and bias [width]; float32, float64 or bfloat16 (computed in float32), all the same.
    Raises InvalidInput. A row's result depends on that row alone, bit for bit."""
    _check("layer_norm", x, 1)
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector.shape != x.shape[-1:] or vector.dtype != x.dtype:
            _wrong("layer_norm", name, f"{x.dtype} [{x.shape[-1]}]", f"{vector.dtype} {list(vector.shape)}")
    if not runs_directly(x, weight, bias):
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    if not needs_gradient(x, weight, bias):
        return _normed(x, weight, bias, eps)[0]
    y: Tensor = _LayerNorm.apply(x, weight, bias, eps)
    return y


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution function at x, exactly, without the tanh of the approximation
    (arXiv 1606.08415); float32, float64 or bfloat16 (computed in float32). Raises InvalidInput. A value's
    result depends on that value alone, bit for bit."""
    _check("gelu", x, 0)
    if not runs_directly(x):
        return F.gelu(x)
    if not needs_gradient(x):
        return _activated(x)
    y: Tensor = _Gelu.apply(x)
    return y


def which(device: str = "cpu") -> str:
    """The back end that would run, e.g. "cpu/avx512"; an error where there is none."""
    return cuda.torch_backend("frames") if device == "cuda" else _native.frames_which(device)


def _wrong(op: str, argument: str, expected: str, got: object) -> NoReturn:
    raise InvalidInput(op, argument, expected, str(got))


def _check(op: str, x: Any, axes: int) -> None:
    if not isinstance(x, Tensor) or x.dtype not in _DTYPES:
        _wrong(op, "x", "a float32, float64 or bfloat16 tensor", getattr(x, "dtype", type(x).__name__))
    if x.ndim < axes or (axes and x.shape[-1] < 1):
        _wrong(op, "x", f"at least {axes} axes, the last not empty", list(x.shape))


def _normed(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    rows = x if x.ndim == 2 else x.reshape(x.numel() // x.shape[-1], x.shape[-1])
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = torch.empty(rows.shape, dtype=x.dtype)
    mean, inverse = torch.empty(len(rows), dtype=sums), torch.empty(len(rows), dtype=sums)
    _native.layer_norm(bits(rows), bits(weight), bits(bias), eps, bits(y), bits(mean), bits(inverse))
    return y.view(x.shape), mean, inverse


def _activated(x: Tensor) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype)
    _native.gelu(bits(x.reshape(-1)), bits(y.view(-1)))
    return y


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, inverse = _normed(x, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        x, weight, mean, inverse = ctx.saved_tensors
        rows = x.reshape(len(mean), len(weight))
        grad_x = torch.empty(rows.shape, dtype=x.dtype)
        grad_weight, grad_bias = (torch.empty_like(weight, dtype=mean.dtype) for _ in range(2))
        _native.layer_norm_backward(
            bits(grad_y.reshape(rows.shape)), bits(rows), bits(weight), ctx.eps, bits(mean),
            bits(inverse), bits(grad_x), bits(grad_weight), bits(grad_bias),
        )  # fmt: skip
        return grad_x.view(x.shape), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _activated(x)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad_x = torch.empty(x.shape, dtype=x.dtype)
        _native.gelu_backward(bits(grad_y.reshape(-1)), bits(x.reshape(-1)), bits(grad_x.view(-1)))
        return grad_x

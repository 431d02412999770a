# SPDX-License-Identifier: Apache-2.0
"""Linear layers on int8 and int4 weights, for inference (kernels/quantized)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from earnest import _native
from earnest.errors import InvalidInput
from earnest.ops import cuda
from earnest.ops.eager import call, capsule

_OP = "quantized"


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight [outputs, inputs] in codes, laid out for the kernel (kernels/quantized/quantized.h).

    codes: "int8", with a scale for each output, or "int4", with a scale and a minimum for each 32 inputs.
    """

    codes: str
    outputs: int
    inputs: int
    packed: Tensor

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """The same codes on another device."""
        return replace(self, packed=self.packed.to(device))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight as the kernel takes it, [outputs, inputs], on the CPU."""
        rows = torch.empty(self.outputs, self.inputs, dtype=dtype)
        call(_native.quantized_unpack, self.codes, self.outputs, capsule(self.packed.cpu()), 0, capsule(rows))
        return rows


def quantize(weight: Tensor, codes: str) -> QuantizedWeight:
    """Rounds a float32 or bfloat16 weight [outputs, inputs] on the CPU to "int8" or "int4" codes."""
    _check("weight", weight)
    if not weight.is_cpu:
        _wrong("weight", "a tensor on cpu", weight.device)
    if weight.dim() != 2:
        _wrong("weight", "[outputs, inputs]", list(weight.shape))
    packed = torch.empty(call(_native.quantized_packed_size, codes, *weight.shape), dtype=torch.uint8)
    call(_native.quantized_pack, codes, capsule(weight.detach()), capsule(packed))
    return QuantizedWeight(codes, weight.shape[0], weight.shape[1], packed)


def quantized_linear(
    x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None, *, int8_activations: bool = False
) -> Tensor:
    """x @ weight.T + bias over the last axis of x (float32 or bfloat16, on the CPU or on cuda, as weight and
    bias); without gradients.

    A row's bits depend on that row, weight and bias alone. int8_activations: x is rounded to 8 bits in blocks
    of 64, which is faster for many rows and less exact; else it is taken as exactly as its type is. On cuda
    there is the latter alone.
    """
    _check("x", x)
    if x.dim() < 1 or x.shape[-1] != weight.inputs:
        _wrong("x", f"[..., {weight.inputs}]", list(x.shape))
    if bias is not None and (bias.shape != (weight.outputs,) or bias.dtype != x.dtype):
        _wrong("bias", f"[{weight.outputs}] of {x.dtype}", f"{list(bias.shape)} of {bias.dtype}")
    for name, other in (("weight", weight.packed), ("bias", bias)):
        if other is not None and other.device != x.device:
            _wrong(name, f"{x.device} as x", other.device)
    rows = x.detach().reshape(-1, weight.inputs)
    output = torch.empty(len(rows), weight.outputs, dtype=x.dtype, device=x.device)
    if cuda.takes(x):
        _on_cuda(rows, weight, bias, output, int8_activations)
    else:
        call(_native.quantized_product, *_arguments(rows, weight, bias, output, int8_activations))
    return output.view(*x.shape[:-1], weight.outputs)


def _on_cuda(
    rows: Tensor,
    weight: QuantizedWeight,
    bias: Tensor | None,
    output: Tensor,
    int8: bool = False,
    path: str = "best",
) -> None:
    """path: "best", "sm80" or "few", which have the same bits."""
    with cuda.launching(_OP, rows) as launch:
        call(_native.quantized_product, *_arguments(rows, weight, bias, output, int8), *launch, path)


def _arguments(
    rows: Tensor, weight: QuantizedWeight, bias: Tensor | None, output: Tensor, int8: bool
) -> tuple[Any, ...]:
    given = None if bias is None else bias.detach()
    return (weight.codes, capsule(rows), capsule(weight.packed), capsule(given), capsule(output), int8)


def which(device: str = "cpu") -> str:
    """The back end that would run, e.g. "cpu/avx512_bf16"; an error where there is none."""
    return _native.quantized_which(device)


def _check(name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        _wrong(name, "a torch tensor", type(x).__name__)
    if x.dtype not in (torch.float32, torch.bfloat16) or not (x.is_cpu or x.is_cuda):
        _wrong(name, "float32 or bfloat16 on cpu or cuda", f"{x.dtype} on {x.device}")


def _wrong(argument: str, expected: str, got: object) -> NoReturn:
    raise InvalidInput(_OP, argument, expected, str(got))

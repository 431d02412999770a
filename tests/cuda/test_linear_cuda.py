# SPDX-License-Identifier: Apache-2.0
"""Our kernels of linear layers on cuda, in bfloat16, float32, int8 and int4: the formula against float64, and
that a row stands alone, whatever path its batch takes."""

import pytest
import torch

from earnest.errors import InvalidInput
from earnest.ops.linear import _forward_on_cuda
from earnest.ops.quantized import _on_cuda, quantize, quantized_linear, which
from tolerances import FACTOR, QUANTIZED

SHAPES = [(1, 1, 1), (2, 17, 31), (7, 16, 32), (13, 33, 257), (65, 100, 136), (131, 130, 70), (0, 5, 40)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def problem(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """x, weight and bias, with results of order 1."""
    g = torch.Generator().manual_seed(rows + 31 * outputs + 997 * inputs)
    shapes = ((rows, inputs), (outputs, inputs), (outputs,))
    x, weight, bias = (torch.randn(shape, generator=g) for shape in shapes)
    return x.to(dtype), (weight / inputs**0.5).to(dtype), bias.to(dtype)


def exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return x.double() @ weight.double().T + bias.double()


def limit(plain: torch.Tensor, wanted: torch.Tensor, dtype: str) -> float:
    floor = QUANTIZED["floor"][dtype] * float(wanted.abs().max())
    return FACTOR * float((plain.double() - wanted).abs().max()) + floor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_as_near_as_plain_arithmetic(device, shape, dtype: str) -> None:
    inputs = problem(*shape, DTYPES[dtype])
    found = _forward_on_cuda(*(x.to(device) for x in inputs)).cpu()
    assert found.dtype == DTYPES[dtype]
    if not shape[0]:
        assert found.shape == (0, shape[1])
        return
    wanted = exact(*inputs)
    plain = torch.nn.functional.linear(*(x.float() for x in inputs)).to(found.dtype)
    assert (found.double() - wanted).abs().max() <= limit(plain, wanted, dtype)


@pytest.mark.parametrize("codes", ["int8", "int4"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_codes_are_as_near_as_plain_arithmetic(device, shape, dtype: str, codes: str) -> None:
    x, weight, bias = problem(*shape, DTYPES[dtype])
    kept = quantize(weight, codes)
    found = quantized_linear(x.to(device), kept.to(device), bias.to(device)).cpu()
    if not shape[0]:
        assert found.shape == (0, shape[1])
        return
    rounded = kept.dequantize()
    wanted = exact(x, rounded, bias)
    plain = torch.nn.functional.linear(x.float(), rounded, bias.float()).to(found.dtype)
    assert (found.double() - wanted).abs().max() <= limit(plain, wanted, dtype)


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int4"])
def test_a_row_stands_alone_on_every_path(device, weights: str) -> None:
    x, weight, bias = (y.to(device) for y in problem(70, 50, 200, torch.bfloat16))
    kept = weight if weights == "bfloat16" else quantize(weight.cpu(), weights).to(device)

    def run(rows: torch.Tensor, path: str) -> torch.Tensor:
        if weights == "bfloat16":
            return _forward_on_cuda(rows, kept, bias, path)
        y = rows.new_empty(len(rows), 50)
        _on_cuda(rows, kept, bias, y, path=path)
        return y

    whole = run(x, "sm80")
    assert torch.equal(run(x, "few"), whole)
    for first, last in ((0, 1), (11, 13), (69, 70)):
        assert torch.equal(run(x[first:last], "best"), whole[first:last])


def test_what_does_not_fit_is_an_error(device) -> None:
    x, weight, bias = (y.to(device) for y in problem(2, 3, 8, torch.bfloat16))
    assert which("cuda") == "cuda/sm80"
    with pytest.raises(InvalidInput, match=r"weight: expected \[outputs, inputs\]"):
        _forward_on_cuda(x[:, :4], weight, bias)
    with pytest.raises(InvalidInput, match="path: expected best, sm80, few or vendor"):
        _forward_on_cuda(x, weight, bias, "other")
    with pytest.raises(RuntimeError, match="activations: expected exact on cuda, got int8"):
        quantized_linear(x, quantize(weight.cpu(), "int8").to(device), bias, int8_activations=True)

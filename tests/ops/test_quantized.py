# SPDX-License-Identifier: Apache-2.0
"""earnest.ops.quantized: the formula on dequantised weights, how near codes are to weights, errors, and the
promise that a row stands alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earnest import _native
from earnest.errors import InvalidInput
from earnest.ops.quantized import quantize, quantized_linear, which
from reference import quantized as reference
from tiers import usable_tiers
from tolerances import FACTOR, QUANTIZED

CODES = ("int8", "int4")
DTYPES = (torch.float32, torch.bfloat16)
SHAPES = [(1, 1, 1), (2, 17, 31), (7, 16, 32), (13, 33, 257), (5, 100, 576), (31, 130, 70), (0, 5, 40)]


@pytest.fixture(params=usable_tiers("quantized"))
def tier(request):
    _native.force_cpu_tier(request.param)
    yield request.param
    _native.force_cpu_tier("")


def problem(rows, outputs, inputs, dtype):
    """x, weight and bias, with results of order 1; a few inputs are far larger than the others."""
    x = torch.randn(rows, inputs)
    x[:, :: max(1, inputs // 3)] *= 20
    weight = torch.randn(outputs, inputs) / inputs**0.5
    return x.to(dtype), weight.to(dtype), torch.randn(outputs).to(dtype)


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_are_as_near_as_plain_arithmetic(tier, codes, dtype):
    for shape in SHAPES:
        x, weight, bias = problem(*shape, dtype)
        kept = quantize(weight, codes)
        exact = reference.weight(codes, kept.packed, *weight.shape)
        want = reference.linear(x, exact, bias)
        plain = torch.nn.functional.linear(x, exact.to(dtype), bias)
        got = quantized_linear(x, kept, bias)
        assert got.dtype == dtype
        if not shape[0]:
            assert got.shape == want.shape
            continue
        size = want.abs().max().item()
        floor = QUANTIZED["floor"][str(dtype).removeprefix("torch.")] * size
        assert (got - want).abs().max() <= FACTOR * (plain - want).abs().max() + floor
        rough = quantized_linear(x, kept, bias, int8_activations=True)
        assert (rough - want).abs().max() <= 0.05 * size


@pytest.mark.parametrize("codes", CODES)
def test_dequantised_rows_are_those_of_the_layout(codes):
    for _, outputs, inputs in SHAPES:
        weight = torch.randn(outputs, inputs)
        kept = quantize(weight, codes)
        exact = reference.weight(codes, kept.packed, outputs, inputs)
        assert torch.allclose(kept.dequantize().double(), exact, rtol=1e-6, atol=1e-7)
        assert torch.equal(kept.dequantize(torch.bfloat16), kept.dequantize().bfloat16())


def test_int8_takes_the_nearest_of_255_levels():
    weight = torch.randn(33, 200)
    scale = weight.abs().amax(1, keepdim=True) / 127
    off = (quantize(weight, "int8").dequantize() - weight).abs()
    assert (off <= 0.5001 * scale).all()


def test_int4_is_nearer_than_rounding_between_the_extremes():
    groups = torch.randn(64, 8, 32)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (high - low) / 15
    plain = ((groups - low) / step).round() * step + low
    ours = quantize(groups.view(64, 256), "int4").dequantize().view_as(groups)
    assert (ours - groups).square().sum() < 0.97 * (plain - groups).square().sum()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("codes", CODES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_row_stands_alone(codes, dtype, data):
    rows, outputs, inputs = (data.draw(st.integers(1, most)) for most in (40, 70, 300))
    x, weight, bias = problem(rows, outputs, inputs, dtype)
    kept = quantize(weight, codes)
    row = data.draw(st.integers(0, rows - 1))
    before = _native.num_threads()
    try:
        _native.set_num_threads(data.draw(st.integers(1, 3)))
        whole = quantized_linear(x, kept, bias)
        _native.set_num_threads(1)
        assert torch.equal(whole[row], quantized_linear(x[row], kept, bias))
    finally:
        _native.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("codes", CODES)
def test_rows_of_tiles_of_every_size_are_the_same(tier, codes, dtype):
    for outputs, inputs in ((17, 2), (5, 33), (80, 40)):
        x, weight, bias = problem(13, outputs, inputs, dtype)
        kept = quantize(weight, codes)
        for added in (bias, None):
            alone = torch.stack([quantized_linear(row, kept, added) for row in x])
            for rows in range(1, 14):
                assert torch.equal(quantized_linear(x[:rows], kept, added), alone[:rows])


def test_codes_do_not_depend_on_the_tier():
    weight = torch.randn(40, 90)
    for codes in CODES:
        seen = []
        for name in usable_tiers("quantized"):
            _native.force_cpu_tier(name)
            seen.append(quantize(weight, codes).packed)
        _native.force_cpu_tier("")
        assert all(torch.equal(packed, seen[0]) for packed in seen)


def test_what_does_not_fit_is_refused():
    weight = quantize(torch.randn(5, 40), "int8")
    x = torch.randn(2, 40)
    for arguments in [
        (x[:, :39], weight),
        (x.double(), weight),
        ("x", weight),
        (x, weight, torch.randn(6)),
        (x, weight, torch.randn(5).bfloat16()),
    ]:
        with pytest.raises(InvalidInput, match=r"\[quantized\] (x|bias): expected"):
            quantized_linear(*arguments)
    with pytest.raises(InvalidInput, match="codes: expected int8 or int4, got int5"):
        quantize(torch.randn(5, 40), "int5")
    for bad in (torch.randn(4), torch.randn(0, 4), torch.randn(4, 4).half()):
        with pytest.raises(InvalidInput):
            quantize(bad, "int8")
    with pytest.raises(ValueError, match="packed: expected"):
        _native.quantized_product("int8", x, weight.packed[:-1], None, torch.empty(2, 5), False)


def test_which_names_the_tier(tier):
    assert which() == f"cpu/{tier}"
    with pytest.raises(RuntimeError, match="without CUDA"):
        which("cuda")

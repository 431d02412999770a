# SPDX-License-Identifier: Apache-2.0
"""What rowwise operations promise for every batch: layouts and packs from hell, and laws that hold bit for
bit."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from earnest import _native, ops
from shapes import LAYOUTS, PACKS, cu_seqlens
from tiers import usable_tiers

HEADS, KV_HEADS = 3, 2
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
OPERATIONS = ("rms_norm", "swiglu", "rotary", "rotary widening")


@pytest.fixture(params=usable_tiers("rowwise"))
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    _native.force_cpu_tier(request.param)
    yield request.param
    _native.force_cpu_tier("")


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=g, dtype=torch.float64) * 2).to(dtype)


def tables(positions: Tensor, half: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the positions' angles."""
    turns = positions.double()[:, None] * 10 ** -torch.arange(half).div(half).double()
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    return turns.cos().to(kept), turns.sin().to(kept)


def case(operation: str, rows: int, width: int, dtype: torch.dtype):
    """(a function of rows, these rows, further arrays that go with each row, and those that do not)."""
    if operation == "rms_norm":
        return (
            (lambda x, w: ops.rms_norm(x, w, 1e-6)),
            random(rows, width, dtype=dtype),
            [],
            [random(width, dtype=dtype, seed=1)],
        )
    if operation == "swiglu":
        return ops.swiglu, random(rows, 2 * width, dtype=dtype), [], []
    half, out = (width + 1) // 2, dtype
    if operation == "rotary widening" and dtype == torch.bfloat16:
        out = torch.float32
    qkv = random(rows, (HEADS + 2 * KV_HEADS) * 2 * half, dtype=dtype)

    def turned(qkv: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        return torch.cat(ops.rotary(qkv, cosine, sine, HEADS, KV_HEADS, out), dim=1)

    return turned, qkv, list(tables(torch.arange(rows), half, dtype)), []


def with_gradients(function: Callable[..., Tensor], x: Tensor, rest: Sequence[Tensor], grad: Tensor):
    """[the result, the gradient of x]."""
    x = x.detach().requires_grad_()
    out = function(x, *rest)
    return [out.detach(), *torch.autograd.grad(out, x, grad)]


def like(out: Tensor, seed: int = 7) -> Tensor:
    return random(*out.shape, dtype=out.dtype, seed=seed)


def equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- shapes from hell ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_where_arrays_lie_in_memory_changes_no_bit(layout, operation: str, dtype: str, tier: str) -> None:
    function, x, of_rows, rest = case(operation, 17, 13, DTYPES[dtype])
    grad = like(function(x, *of_rows, *rest))
    plain = with_gradients(function, x, [*of_rows, *rest], grad)
    moved = with_gradients(function, layout(x), [layout(y) for y in (*of_rows, *rest)], layout(grad))
    assert equal(plain, moved)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", PACKS.values(), ids=PACKS)
def test_every_sequence_of_every_pack_is_turned_as_it_is_alone(lengths, dtype: str, tier: str) -> None:
    kind, bounds = DTYPES[dtype], cu_seqlens(lengths)
    positions = torch.cat([torch.arange(n) for n in lengths] or [torch.arange(0)])
    qkv = random(len(positions), (HEADS + 2 * KV_HEADS) * 8, dtype=kind)

    def turned(qkv: Tensor, positions: Tensor) -> list[Tensor]:
        cosine, sine = tables(positions, 4, kind)
        return list(ops.rotary(qkv, cosine, sine, HEADS, KV_HEADS, kind))

    whole = turned(qkv, positions)
    assert [x.shape for x in whole] == [(len(positions), h, 8) for h in (HEADS, KV_HEADS, KV_HEADS)]
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        assert equal(turned(qkv[start:end], torch.arange(end - start)), [x[start:end] for x in whole])
    first = bounds[:-1][bounds.diff() > 0].long()  # where nothing is turned
    assert torch.equal(torch.cat([x[first] for x in whole], 1).flatten(1), qkv[first])


# ---- laws ----

ROWS, WIDTHS = st.integers(0, 150), st.integers(1, 140)
CHOSEN = st.sampled_from(sorted(DTYPES)).map(DTYPES.__getitem__)


@given(
    operation=st.sampled_from(OPERATIONS), rows=ROWS, width=WIDTHS, dtype=CHOSEN, seed=st.integers(0, 2**31)
)
@settings(max_examples=40, deadline=None)
def test_rows_may_change_places(operation, rows, width, dtype, seed) -> None:
    function, x, of_rows, rest = case(operation, rows, width, dtype)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    grad = like(function(x, *of_rows, *rest))
    found = with_gradients(function, x, [*of_rows, *rest], grad)
    other = with_gradients(function, x[order], [*(y[order] for y in of_rows), *rest], grad[order])
    assert equal([y[order] for y in found], other)


@given(
    operation=st.sampled_from(OPERATIONS), rows=ROWS, width=WIDTHS, dtype=CHOSEN, exponent=st.integers(-9, 9)
)
@settings(max_examples=40, deadline=None)
def test_gradients_scale_with_what_comes_from_above(operation, rows, width, dtype, exponent) -> None:
    """By powers of two, which round nothing."""
    function, x, of_rows, rest = case(operation, rows, width, dtype)
    grad = like(function(x, *of_rows, *rest))
    plain = with_gradients(function, x, [*of_rows, *rest], grad)
    louder = with_gradients(function, x, [*of_rows, *rest], grad * 2.0**exponent)
    assert equal([plain[0], plain[1] * 2.0**exponent], louder)


@given(rows=ROWS, width=WIDTHS, dtype=CHOSEN, exponent=st.integers(-9, 9))
@settings(max_examples=40, deadline=None)
def test_turning_norms_and_gates_scale_by_powers_of_two(rows, width, dtype, exponent) -> None:
    scale = 2.0**exponent
    for operation in ("rotary", "rotary widening"):  # linear in what is turned
        turned, qkv, angles, _ = case(operation, rows, width, dtype)
        assert torch.equal(turned(qkv * scale, *angles), turned(qkv, *angles) * scale)
    _, x, _, (weight,) = case("rms_norm", rows, width, dtype)
    found = ops.rms_norm(x, weight, 1e-6)
    assert torch.equal(ops.rms_norm(x, weight * scale, 1e-6), found * scale)
    assert torch.equal(ops.rms_norm(x * scale, weight, 1e-6 * scale**2), found)  # all of the row, eps with it
    gate, up = case("swiglu", rows, width, dtype)[1].chunk(2, dim=1)
    louder = ops.swiglu(torch.cat([gate, up * scale], dim=1))
    assert torch.equal(louder, ops.swiglu(torch.cat([gate, up], dim=1)) * scale)


@given(rows=ROWS, width=WIDTHS, dtype=CHOSEN)
@settings(max_examples=40, deadline=None)
def test_signs_pass_through(rows, width, dtype) -> None:
    _, x, _, (weight,) = case("rms_norm", rows, width, dtype)
    assert torch.equal(ops.rms_norm(-x, weight, 1e-6), -ops.rms_norm(x, weight, 1e-6))
    turned, qkv, angles, _ = case("rotary", rows, width, dtype)
    assert torch.equal(turned(-qkv, *angles), -turned(qkv, *angles))

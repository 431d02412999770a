# SPDX-License-Identifier: Apache-2.0
"""What logprob promises for every batch: lengths and layouts from hell, and laws that hold bit for bit or to
rounding."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from earnest import _native
from earnest.ops import logprob
from reference import logprob as reference
from shapes import LAYOUTS, LENGTHS
from tiers import usable_tiers
from tolerances import LOGPROB

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


@pytest.fixture(params=usable_tiers("logprob"))
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    _native.force_cpu_tier(request.param)
    yield request.param
    _native.force_cpu_tier("")


def problem(rows: int, depth: int, vocabulary: int, dtype: torch.dtype = torch.float64, seed: int = 0):
    """hidden, weight and targets, with logits of a few units."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, depth, generator=g, dtype=torch.float64)
    weight = torch.randn(vocabulary, depth, generator=g, dtype=torch.float64) * 2 / depth**0.5
    return hidden.to(dtype), weight.to(dtype), torch.randint(0, vocabulary, (rows,), generator=g)


def with_gradients(hidden: Tensor, weight: Tensor, targets: Tensor, grads: Sequence[Tensor], **options):
    """[logp, entropy, the gradients of hidden and weight]."""
    leaves = [x.detach().requires_grad_() for x in (hidden, weight)]
    results = logprob(*leaves, targets, **options)
    return [*(x.detach() for x in results), *torch.autograd.grad(results, leaves, grads)]


def row_gradients(rows: int, dtype: torch.dtype) -> list[Tensor]:
    g = torch.Generator().manual_seed(rows + 1)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    return [torch.randn(rows, generator=g, dtype=torch.float64).to(kind) for _ in range(2)]


def close(got: Tensor, want: Tensor, bound: float) -> bool:
    return not want.numel() or float((got - want).abs().max()) <= bound * max(1.0, float(want.abs().max()))


# ---- shapes from hell ----


@pytest.mark.parametrize("rows", LENGTHS.values(), ids=LENGTHS)
def test_any_number_of_rows_is_the_definition(rows: int, tier: str) -> None:
    inputs, grads = problem(rows, 13, 31), row_gradients(rows, torch.float64)
    wanted = (*reference.logprob(*inputs), *reference.gradients(*inputs, *grads))
    for got, want in zip(with_gradients(*inputs, grads), wanted, strict=True):
        assert got.shape == want.shape
        assert close(got, want, LOGPROB["float64"])


@pytest.mark.parametrize(
    "length", [n for n in LENGTHS.values() if n], ids=[k for k, n in LENGTHS.items() if n]
)
@pytest.mark.parametrize("axis", ["depth", "vocabulary"])
def test_any_depth_and_vocabulary_is_the_definition(axis: str, length: int, tier: str) -> None:
    inputs = problem(3, length, 7) if axis == "depth" else problem(3, 5, length)
    grads = row_gradients(3, torch.float64)
    wanted = (*reference.logprob(*inputs), *reference.gradients(*inputs, *grads))
    for got, want in zip(with_gradients(*inputs, grads), wanted, strict=True):
        assert close(got, want, LOGPROB["float64"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_where_arrays_lie_in_memory_changes_no_bit(layout, dtype: torch.dtype, tier: str) -> None:
    inputs, grads = problem(17, 13, 251, dtype), row_gradients(17, dtype)
    plain = with_gradients(*inputs, grads)
    moved = with_gradients(*map(layout, inputs), [layout(x) for x in grads])
    assert all(map(torch.equal, plain, moved))


# ---- laws ----

SIZES = {"rows": st.integers(1, 120), "depth": st.integers(1, 70), "vocabulary": st.integers(1, 400)}


@given(**SIZES, dtype=DTYPES, seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_rows_may_change_places(rows, depth, vocabulary, dtype, seed) -> None:
    hidden, weight, targets = problem(rows, depth, vocabulary, dtype, seed)
    grads = row_gradients(rows, dtype)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    found = with_gradients(hidden, weight, targets, grads)
    other = with_gradients(hidden[order], weight, targets[order], [x[order] for x in grads])
    assert all(torch.equal(x[order], y) for x, y in zip(found[:3], other[:3], strict=True))


@given(**SIZES, dtype=DTYPES, seed=st.integers(0, 2**31), exponent=st.integers(-8, 8))
@settings(max_examples=25, deadline=None)
def test_what_rows_gain_the_matrix_or_the_temperature_may_lose(
    rows, depth, vocabulary, dtype, seed, exponent
) -> None:
    """By a power of two, which rounds nothing; gradients move the other way."""
    hidden, weight, targets = problem(rows, depth, vocabulary, dtype, seed)
    grads, scale = row_gradients(rows, dtype), 2.0**exponent
    found = with_gradients(hidden, weight, targets, grads)
    turned = with_gradients(hidden * scale, weight / scale, targets, grads)
    hotter = with_gradients(hidden * scale, weight, targets, grads, temperature=scale)
    assert all(map(torch.equal, found[:2], turned[:2]))
    assert all(map(torch.equal, found[:2], hotter[:2]))
    assert torch.equal(found[2] / scale, turned[2])
    assert torch.equal(found[3] * scale, turned[3])


@given(**SIZES, dtype=DTYPES, seed=st.integers(0, 2**31), exponent=st.integers(-8, 8))
@settings(max_examples=25, deadline=None)
def test_gradients_scale_with_what_comes_from_above(rows, depth, vocabulary, dtype, seed, exponent) -> None:
    inputs, scale = problem(rows, depth, vocabulary, dtype, seed), 2.0**exponent
    grads = row_gradients(rows, dtype)
    plain = with_gradients(*inputs, grads)
    louder = with_gradients(*inputs, [x * scale for x in grads])
    assert all(torch.equal(x * scale, y) for x, y in zip(plain[2:], louder[2:], strict=True))


@given(**SIZES, seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_tokens_may_change_places_and_a_vector_added_to_all_changes_nothing(
    rows, depth, vocabulary, seed
) -> None:
    """To rounding: sums over the vocabulary are made in another order, logits are larger."""
    hidden, weight, targets = problem(rows, depth, vocabulary, torch.float64, seed)
    g = torch.Generator().manual_seed(seed)
    order, shift = torch.randperm(vocabulary, generator=g), torch.randn(depth, generator=g).double()
    found = logprob(hidden, weight, targets)
    moved = logprob(hidden, weight[order], order.argsort()[targets])
    shifted = logprob(hidden, weight + shift, targets)
    larger = 1 + float((hidden @ shift).abs().max())
    for mine, other, third in zip(found, moved, shifted, strict=True):
        assert close(other, mine, LOGPROB["float64"])
        assert close(third, mine, LOGPROB["float64"] * larger)


@given(**SIZES, dtype=DTYPES, seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_no_probability_is_above_one_and_no_entropy_below_zero(rows, depth, vocabulary, dtype, seed) -> None:
    hidden, weight, targets = problem(rows, depth, vocabulary, dtype, seed)
    logp, entropy = logprob(hidden, weight, targets)
    slack = LOGPROB["float64"] if dtype == torch.float64 else 4 * LOGPROB["floor"]
    assert float(logp.max()) <= slack
    assert -slack <= float(entropy.min())
    assert float(entropy.max()) <= float(torch.tensor(vocabulary).log()) + slack

# SPDX-License-Identifier: Apache-2.0
"""earnest.ops.linear: the formula, its gradients, its errors, and the promise that a row stands alone."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from earnest import _native
from earnest.errors import InvalidInput
from earnest.ops import linear
from earnest.ops.linear import which
from reference import linear as reference
from shapes import LAYOUTS, LENGTHS, PRODUCTS
from tiers import usable_tiers
from tolerances import FACTOR, LINEAR

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(params=usable_tiers("linear"))
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    _native.force_cpu_tier(request.param)
    yield request.param
    _native.force_cpu_tier("")


@pytest.fixture
def threads() -> Iterator[None]:
    before = _native.num_threads()
    yield
    _native.set_num_threads(before)


def problem(rows: int, columns: int, depth: int, dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias, with results of order 1."""
    x, weight, bias = torch.randn(rows, depth), torch.randn(columns, depth), torch.randn(columns)
    return x.to(dtype), (weight / depth**0.5).to(dtype), bias.to(dtype)


def with_gradients(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, function=linear):
    """The result, and the gradients of x, weight and bias."""
    x, weight, bias = (t.detach().clone().requires_grad_() for t in (x, weight, bias))
    result = function(x, weight, bias)
    return result.detach(), *torch.autograd.grad(result, (x, weight, bias), grad)


def error(got: Tensor, want: Tensor) -> float:
    return (got.double() - want).abs().max().item()


def assert_close(got, want, floor: float):
    for g, w in zip(got, want, strict=True):
        assert error(g, w) <= floor * max(1.0, w.abs().max().item())


@pytest.mark.parametrize("shape", PRODUCTS)
def test_float64_is_the_formula(tier: str, shape: tuple[int, int, int]):
    x, weight, bias = problem(*shape)
    grad = torch.randn(shape[0], shape[1], dtype=torch.float64)
    got = with_gradients(x, weight, bias, grad)
    want = (reference.linear(x, weight, bias), *reference.gradients(x, weight, grad))
    assert_close(got, want, LINEAR["float64"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", PRODUCTS)
def test_errors_stay_near_those_of_torch(tier: str, shape: tuple[int, int, int], dtype: torch.dtype):
    x, weight, bias = problem(*shape, dtype)
    grad = torch.randn(shape[0], shape[1]).to(dtype)
    want = (reference.linear(x, weight, bias), *reference.gradients(x, weight, grad))
    ours = with_gradients(x, weight, bias, grad)
    torchs = with_gradients(x, weight, bias, grad, torch.nn.functional.linear)
    floor = LINEAR["floor"][str(dtype)[6:]]
    for got, other, exact in zip(ours, torchs, want, strict=True):
        assert got.dtype == dtype
        assert error(got, exact) <= FACTOR * error(other, exact) + floor * max(1, exact.abs().max().item())


@pytest.mark.parametrize("depth", [1536, 8192, 40000])
def test_long_sums_are_as_good_as_torchs(tier: str, depth: int):
    """Positive terms, whose rounding errors do not cancel: a single chain of float32 would be far off."""
    x, weight = torch.rand(3, depth) + 0.5, torch.rand(40, depth) + 0.5
    exact = reference.linear(x, weight)
    ours = error(linear(x, weight), exact) / exact.max().item()
    torchs = error(torch.nn.functional.linear(x, weight), exact) / exact.max().item()
    assert ours <= FACTOR * torchs + LINEAR["positive"]


def test_gradcheck(tier: str):
    x, weight, bias = (t.requires_grad_() for t in problem(5, 37, 9))
    torch.autograd.gradcheck(linear, (x.reshape(1, 5, 9), weight, bias))
    torch.autograd.gradcheck(torch.ops.earnest.linear.default, (x, weight, bias))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_a_row_alone_equals_the_row_in_any_batch(tier: str, dtype: torch.dtype):
    x, weight, bias = problem(401, 203, 387, dtype)
    grad = torch.randn(401, 203).to(dtype)
    whole, whole_grad = with_gradients(x, weight, bias, grad)[:2]
    for count in (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 100, 193):
        rows = torch.randperm(401)[:count]
        part, part_grad = with_gradients(x[rows], weight, bias, grad[rows])[:2]
        assert torch.equal(part, whole[rows])
        assert torch.equal(part_grad, whole_grad[rows])


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_no_bit(tier: str, dtype: torch.dtype, threads: None):
    for shape in [(3, 2111, 300), (700, 130, 600)]:
        x, weight, bias = problem(*shape, dtype)
        grad = torch.randn(*shape[:2]).to(dtype)
        seen = []
        for count in (1, 2, 7):
            _native.set_num_threads(count)
            seen.append(with_gradients(x, weight, bias, grad))
        for other in seen[1:]:
            assert all(map(torch.equal, seen[0], other))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 40),
    columns=st.integers(1, 100),
    depth=st.integers(1, 600),
    seed=st.integers(0, 2**31),
    bfloat16=st.booleans(),
)
def test_columns_stand_alone_and_powers_of_two_pass_through(rows, columns, depth, seed, bfloat16):
    """What holds bit for bit: a slice of the weight gives the slice of the result; scaling by 2 scales by 2;
    a permutation of the rows permutes."""
    torch.manual_seed(seed)
    x, weight, bias = problem(rows, columns, depth, torch.bfloat16 if bfloat16 else torch.float32)
    whole = linear(x, weight, bias)
    first, last = sorted((seed % columns, (seed // 7) % columns + 1))
    last = max(last, first + 1)
    assert torch.equal(linear(x, weight[first:last], bias[first:last]), whole[:, first:last])
    assert torch.equal(linear(2 * x, weight, 2 * bias), 2 * whole)
    order = torch.randperm(rows)
    assert torch.equal(linear(x[order], weight, bias), whole[order])


def test_small_integers_are_exact(tier: str):
    """Every product and sum fits, so any term lost or counted twice shows."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.randint(-2, 3, (29, 61)).to(dtype)
        weight, bias = torch.randint(-1, 2, (70, 61)).to(dtype), torch.randint(-3, 4, (70,)).to(dtype)
        grad = torch.randint(-1, 2, (29, 70)).to(dtype)
        got = with_gradients(x, weight, bias, grad)
        want = (reference.linear(x, weight, bias), *reference.gradients(x, weight, grad))
        assert all(torch.equal(g.double(), w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_spoils_itself_only(tier: str, bad: float):
    for dtype in DTYPES:
        x, weight, bias = problem(19, 37, 65, dtype)
        clean = linear(x, weight, bias)
        spoiled = x.clone()
        spoiled[5, 64] = bad
        got = linear(spoiled, weight, bias)
        others = torch.arange(19) != 5
        assert not got[5].isfinite().any()
        assert torch.equal(got[others], clean[others])


def test_leading_axes_and_no_rows():
    x, weight, bias = problem(24, 5, 7, torch.float32)
    whole = linear(x, weight, bias)
    assert torch.equal(linear(x.reshape(2, 3, 4, 7), weight, bias), whole.reshape(2, 3, 4, 5))
    assert torch.equal(linear(x[3], weight, bias), whole[3])
    empty = x[:0].reshape(3, 0, 7).requires_grad_()
    weight.requires_grad_()
    bias.requires_grad_()
    result = linear(empty, weight, bias)
    assert result.shape == (3, 0, 5)
    result.sum().backward()
    assert empty.grad.shape == (3, 0, 7)
    assert torch.equal(weight.grad, torch.zeros(5, 7))
    assert torch.equal(bias.grad, torch.zeros(5))


def test_gradients_only_where_they_are_wanted():
    x, weight, bias = problem(9, 6, 31)
    whole = with_gradients(x, weight, bias, torch.ones(9, 6).double())[1:]
    for index in range(3):
        inputs = [t.clone() for t in (x, weight, bias)]
        inputs[index].requires_grad_()
        linear(*inputs).sum().backward()
        assert torch.equal(inputs[index].grad, whole[index])
        assert all(inputs[other].grad is None for other in range(3) if other != index)
    with torch.no_grad():
        assert not linear(x.clone().requires_grad_(), weight).requires_grad


def test_without_bias_and_with_a_bias_of_zeros():
    x, weight, bias = problem(9, 6, 31, torch.float32)
    assert torch.equal(linear(x, weight), linear(x, weight, torch.zeros_like(bias)))
    weight.requires_grad_()
    linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(6, 31))


@pytest.mark.parametrize("rows", LENGTHS.values(), ids=LENGTHS)
def test_any_number_of_rows_is_the_formula(tier: str, rows: int):
    x, weight, bias = problem(rows, 37, 13)
    grad = torch.randn(rows, 37, dtype=torch.float64)
    want = (reference.linear(x, weight, bias), *reference.gradients(x, weight, grad))
    for got, exact in zip(with_gradients(x, weight, bias, grad), want, strict=True):
        assert got.shape == exact.shape
        if exact.numel():
            assert error(got, exact) <= LINEAR["float64"] * max(1.0, exact.abs().max().item())


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_where_arrays_lie_in_memory_changes_no_bit(tier: str, layout, dtype: torch.dtype):
    arrays = [*problem(17, 37, 61, dtype), torch.randn(17, 37).to(dtype)]
    moved = [layout(t) for t in arrays]
    assert torch.equal(linear(*moved[:3]), linear(*arrays[:3]))
    leaves = [t.detach().requires_grad_() for t in moved[:3]]
    grads = torch.autograd.grad(linear(*leaves), leaves, moved[3])
    assert all(map(torch.equal, grads, with_gradients(*arrays)[1:]))


def test_strides_do_not_matter():
    x, weight, bias = problem(9, 6, 31, torch.float32)
    grad = torch.randn(9, 6)
    dense = with_gradients(x, weight, bias, grad)
    strided = (x.T.contiguous().T, weight.T.contiguous().T, torch.stack([bias, bias], 1)[:, 0])
    assert not any(t.is_contiguous() for t in strided)
    assert torch.equal(linear(*strided), dense[0])
    for turn in (lambda t: t, lambda t: t.T.contiguous().T):
        leaves = [t.detach().requires_grad_() for t in strided]
        grads = torch.autograd.grad(linear(*leaves), leaves, turn(grad))
        assert all(map(torch.equal, grads, dense[1:]))
    expanded = torch.randn(1, 31).expand(9, 31)
    assert torch.equal(linear(expanded, weight), linear(expanded.contiguous(), weight))
    unaligned = torch.randn(9 * 31 + 1)[1:].reshape(9, 31)
    assert torch.equal(linear(unaligned, weight), linear(unaligned.clone(), weight))


def test_numpy_in_numpy_out():
    x, weight, bias = problem(9, 6, 31, torch.float32)
    for arrays in ((x, weight), (x, weight, bias), (x.double(), weight.double(), bias.double())):
        got = linear(*(a.numpy() for a in arrays))
        assert isinstance(got, np.ndarray)
        np.testing.assert_array_equal(got, linear(*arrays).numpy())
    turned = np.asfortranarray(x.numpy()), np.asfortranarray(weight.numpy())
    np.testing.assert_array_equal(linear(*turned), linear(x, weight).numpy())


def test_meta_tensors_and_torch_compile():
    x, weight, bias = problem(9, 6, 31)
    meta = linear(x.to("meta"), weight.to("meta"), bias.to("meta"))
    assert meta.is_meta
    assert meta.shape == (9, 6)

    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (linear(x, weight, bias) ** 2).sum()

    eager, compiled = ([t.clone().requires_grad_() for t in (x, weight, bias)] for _ in range(2))
    loss(*eager).backward()
    torch.compile(loss, backend="aot_eager", fullgraph=True)(*compiled).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(eager, compiled, strict=True))


def test_a_second_derivative_is_refused():
    x, weight, _ = problem(3, 4, 5)
    weight.requires_grad_()
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.autograd.grad(linear(x, weight).sum(), weight, create_graph=True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"x": torch.zeros(3, 5)}, "x: expected [..., 4] to match weight [5, 4], got [3, 5]"),
        ({"x": torch.zeros(())}, "x: expected [..., 4] to match weight [5, 4], got []"),
        ({"x": torch.zeros(3, 4).half()}, "x: expected float32, float64 or bfloat16, got torch.float16"),
        ({"x": [[0.0]]}, "x: expected a torch tensor or a numpy array, got list"),
        ({"weight": torch.zeros(4)}, "weight: expected [N, K] with N and K at least 1, got [4]"),
        ({"weight": torch.zeros(0, 4)}, "got [0, 4]"),
        ({"weight": torch.zeros(5, 4).double()}, "weight: expected torch.float32 on cpu as x"),
        ({"weight": np.zeros((5, 4), np.float32)}, "weight: expected a torch tensor like x, got ndarray"),
        ({"bias": torch.zeros(4)}, "bias: expected [5] to match weight [[5, 4]], got [4]"),
        ({"bias": torch.zeros(1, 5)}, "bias: expected [5]"),
        ({"bias": 0.0}, "bias: expected a torch tensor like x, got float"),
        ({"x": np.zeros((3, 4), np.float32)}, "weight: expected a float32 or float64 numpy array"),
    ],
)
def test_bad_input_is_one_clear_sentence(changes: dict, sentence: str):
    arguments = {"x": torch.zeros(3, 4), "weight": torch.zeros(5, 4), "bias": torch.zeros(5)} | changes
    with pytest.raises(InvalidInput) as caught:
        linear(**arguments)
    assert str(caught.value).startswith("[linear] ")
    assert sentence in str(caught.value)


def test_the_kernel_refuses_a_packed_matrix_of_another_shape_or_type():
    weight = torch.randn(8, 6)
    packed = torch.empty(_native.linear_packed_size(weight, False), dtype=torch.uint8)
    _native.linear_pack(weight, False, packed)
    turned = torch.empty(2, 6)
    with pytest.raises(ValueError, match=r"\[linear\] packed: expected a packed matrix"):
        _native.linear_product(torch.zeros(2, 8), packed, None, turned)
    with pytest.raises(ValueError, match=r"\[linear\] packed: expected"):
        _native.linear_product(torch.zeros(2, 6), torch.zeros_like(packed), None, torch.empty(2, 8))


def test_which(tier: str, monkeypatch: pytest.MonkeyPatch):
    assert which() == f"cpu/{tier}"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        RuntimeError, match=r"\[linear\] device: expected cpu \(torch sees no GPU\), got cuda"
    ):
        which("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_several_weights_count_as_one_and_masters_keep_their_precision(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(9, 33, generator=generator).to(dtype).requires_grad_()
    weights = tuple(torch.randn(n, 33, generator=generator, requires_grad=True) for n in (5, 1, 18))
    bias = torch.randn(24, generator=generator, requires_grad=True)
    whole, one_bias = (t.detach().to(dtype).requires_grad_() for t in (torch.cat(weights), bias))
    grad = torch.randn(9, 24, generator=generator).to(dtype)
    stacked, plain = linear(x, weights, bias), linear(x, whole, one_bias)
    assert torch.equal(stacked, plain)
    assert torch.equal(linear(x.detach(), weights, bias), plain)
    ours = torch.autograd.grad(stacked, (x, bias, *weights), grad)
    grad_x, grad_bias, grad_whole = torch.autograd.grad(plain, (x, one_bias, whole), grad)
    assert torch.equal(ours[0], grad_x)
    assert torch.equal(ours[1], grad_bias.float())
    assert torch.equal(torch.cat(ours[2:]), grad_whole.float())
    assert all(g.dtype == torch.float32 for g in ours[1:])


def test_a_change_of_one_of_several_weights_is_seen():
    weights = tuple(torch.randn(n, 6) for n in (2, 3))
    x = torch.randn(4, 6)
    linear(x, weights)
    weights[1].add_(1)
    assert torch.equal(linear(x, weights), linear(x, torch.cat(weights)))

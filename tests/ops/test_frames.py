# SPDX-License-Identifier: Apache-2.0
"""Layer norm and exact GELU: the formulas, their gradients, and rows that stand alone."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from earnest import _native, ops
from earnest.errors import InvalidInput
from reference import frames as reference
from tiers import usable_tiers
from tolerances import FACTOR

EPS = 1e-5
SHAPES = [(1, 1), (0, 5), (7, 13), (67, 129), (130, 192), (3, 1031)]
UNIT = {torch.float64: 2.0**-49, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
OURS = {"layer_norm": lambda *x: ops.layer_norm(*x, EPS), "gelu": ops.gelu}
DEFINITION = {"layer_norm": lambda *x: reference.layer_norm(*x, EPS), "gelu": reference.gelu}


@pytest.fixture(params=usable_tiers("frames"))
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    _native.force_cpu_tier(request.param)
    yield request.param
    _native.force_cpu_tier("")


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0, spread: float = 2.0) -> Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread
    return numbers.to(dtype)


def inputs_of(operation: str, rows: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    x = random(rows, width, dtype=dtype) + (3 if operation == "layer_norm" else 0)
    return [x] if operation == "gelu" else [x, *(random(width, dtype=dtype, seed=s) for s in (1, 2))]


def with_gradients(function, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    out.backward(random(*out.shape, seed=5).to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", OURS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("tier")
def test_results_and_gradients_are_as_exact_as_plain_arithmetic(shape, operation, dtype) -> None:
    inputs = inputs_of(operation, *shape, dtype)
    exact = with_gradients(DEFINITION[operation], [x.double() for x in inputs])
    plain_in = torch.float32 if dtype == torch.bfloat16 else dtype
    plain = with_gradients(DEFINITION[operation], [x.to(plain_in) for x in inputs])
    for got, want, near in zip(with_gradients(OURS[operation], inputs), exact, plain, strict=True):
        assert got.dtype == dtype
        if not want.numel():
            continue
        scale = max(float(want.abs().max()), 1.0)
        budget = FACTOR * float((near.to(dtype).double() - want).abs().max()) + 4 * UNIT[dtype] * scale
        assert float((got.double() - want).abs().max()) <= budget


@pytest.mark.usefixtures("tier")
def test_gelu_keeps_its_relative_precision_far_to_the_left() -> None:
    x = torch.linspace(-10, 0, 5001)
    want = x.double() * torch.special.erfc(-x.double() / 2**0.5) / 2
    error = (ops.gelu(x).double() - want).abs()
    assert bool((error <= 6e-6 * want.abs() + 1e-37).all())


@pytest.mark.usefixtures("tier")
def test_gelu_saturates_and_nan_stays_in_its_place() -> None:
    x = torch.tensor([-3e38, -200.0, -14.0, 0.0, 14.0, 3e38, float("inf"), float("nan"), 1.0])
    y = ops.gelu(x)
    assert y[:7].tolist() == [0, 0, 0, 0, 14, x[5], float("inf")]
    assert bool(y[7].isnan())
    assert float(y[8]) == pytest.approx(0.8413447)
    grad = with_gradients(lambda x: ops.gelu(x), [x[:6]])[1] / random(6, seed=5).float()
    assert grad.tolist() == [0, 0, 0, pytest.approx(0.5), 1, 1]


@pytest.mark.parametrize("operation", OURS)
def test_gradcheck(operation) -> None:
    inputs = inputs_of(operation, 5, 7, torch.float64)
    assert torch.autograd.gradcheck(OURS[operation], [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operation", OURS)
@pytest.mark.usefixtures("tier")
def test_a_row_alone_equals_the_row_in_any_batch_and_threads_change_no_bit(operation, dtype) -> None:
    ours, inputs = OURS[operation], inputs_of(operation, 400, 197, dtype)
    threads = _native.num_threads()
    together = with_gradients(ours, inputs)
    _native.set_num_threads(1)
    alone = with_gradients(ours, inputs)
    _native.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    rows = torch.tensor([399, 0, 17])
    assert torch.equal(ours(inputs[0][rows], *inputs[1:]), together[0][rows])


@pytest.mark.parametrize("operation", OURS)
def test_arrays_that_are_not_contiguous_are_read_rightly(operation) -> None:
    inputs = inputs_of(operation, 12, 8, torch.float32)
    spread = [torch.stack([x, x + 1], dim=-1)[..., 0] for x in inputs]
    assert not spread[0].is_contiguous()
    both = (with_gradients(OURS[operation], x) for x in (spread, inputs))
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


@pytest.mark.parametrize("operation", OURS)
def test_tracers_see_torchs_own_operation(operation) -> None:
    inputs = inputs_of(operation, 6, 8, torch.float32)
    compiled = torch.compile(OURS[operation], backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), OURS[operation](*inputs), rtol=1e-5, atol=1e-5)
    assert OURS[operation](*(x.to("meta") for x in inputs)).is_meta


def test_rotary_angles_are_those_of_torch_but_for_rounding() -> None:
    positions = torch.tensor([0, 1, 5, 4095, 65535])
    cosine, sine = ops.rotary_angles(positions, 1e6, 64)
    rates = 1.0 / (1e6 ** (torch.arange(0, 64, 2).float() / 64))
    angles = positions[:, None].double() * rates.double()
    # A rate that is rounded the other way turns by 2^-24 of the angle.
    for got, want in ((cosine, angles.cos()), (sine, angles.sin())):
        assert bool(((got - want).abs() <= angles.abs() * 2.0**-22 + 1e-7).all())
    with pytest.raises(ValueError, match="positions: expected 0 to 2"):
        ops.rotary_angles(torch.tensor([-1]), 1e6, 64)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ops.layer_norm(torch.zeros(2, 3), torch.zeros(4), torch.zeros(3), EPS), "weight"),
        (lambda: ops.layer_norm(torch.zeros(2, 3), torch.zeros(3), torch.zeros(3).double(), EPS), "bias"),
        (lambda: ops.layer_norm(torch.zeros(2, 3).int(), torch.zeros(3), torch.zeros(3), EPS), "x"),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence) -> None:
    with pytest.raises(InvalidInput, match=rf"\[layer_norm\] {sentence}: expected"):
        call()


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan"), float("inf")])
def test_an_eps_that_protects_nothing_is_refused(eps) -> None:
    with pytest.raises(ValueError, match=r"\[layer_norm\] eps: expected a finite number above 0"):
        ops.layer_norm(torch.zeros(2, 3), torch.ones(3), torch.ones(3), eps)

# SPDX-License-Identifier: Apache-2.0
"""RMS norm, rotary positions, SwiGLU: the formulas, their gradients, and rows that stand alone."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from earnest import _native, ops
from earnest.errors import InvalidInput
from reference import rowwise as reference
from shapes import LENGTHS
from tiers import usable_tiers
from tolerances import FACTOR

EPS = 1e-6
HEADS, KV_HEADS = 3, 2
# Rows and width. (The gradient of a norm of one number is a difference of equals, whose terms set the scale.)
SHAPES = [
    (1, 1),
    (67, 129),
    (130, 192),
    *((n, 13) for n in LENGTHS.values()),
    *((3, n) for n in LENGTHS.values() if n > 1),
]
# Twice as much again where the definition is computed in the same precision.
UNIT = {torch.float64: 2.0**-49, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}


@pytest.fixture(params=usable_tiers("rowwise"))
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    _native.force_cpu_tier(request.param)
    yield request.param
    _native.force_cpu_tier("")


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0, spread: float = 2.0) -> Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread
    return numbers.to(dtype)


def angles(rows: int, half: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    turns = random(rows, half, seed=9) * 50
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    return turns.cos().to(kept), turns.sin().to(kept)


Case = tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]


def cases(rows: int, width: int, dtype: torch.dtype) -> dict[str, Case]:
    """Per operation: ours, the definition, and the inputs that have gradients."""
    half = (width + 1) // 2
    cosine, sine = angles(rows, half, dtype)

    def turned(qkv: Tensor) -> Tensor:
        return torch.cat(ops.rotary(qkv, cosine, sine, HEADS, KV_HEADS, qkv.dtype), dim=1)

    def turned_by_definition(qkv: Tensor) -> Tensor:
        turn = (angle.to(qkv.dtype) for angle in (cosine, sine))
        return torch.cat(reference.rotary(qkv, *turn, HEADS, KV_HEADS), dim=1)

    return {
        "rms_norm": (
            lambda x, w: ops.rms_norm(x, w, EPS),
            lambda x, w: reference.rms_norm(x, w, EPS),
            [random(rows, width, dtype=dtype), random(width, dtype=dtype, seed=1)],
        ),
        "swiglu": (ops.swiglu, reference.swiglu, [random(rows, 2 * width, dtype=dtype, spread=6.0)]),
        "rotary": (
            turned,
            turned_by_definition,
            [random(rows, (HEADS + 2 * KV_HEADS) * 2 * half, dtype=dtype)],
        ),
    }


OPERATIONS = ("rms_norm", "swiglu", "rotary")


def with_gradients(function: Callable[..., Tensor], inputs: list[Tensor], seed: int = 5) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    out.backward(random(*out.shape, dtype=torch.float64, seed=seed).to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("tier")
def test_results_and_gradients_are_as_exact_as_plain_arithmetic(shape, operation, dtype) -> None:
    ours, definition, inputs = cases(*shape, dtype)[operation]
    exact = with_gradients(definition, [x.double() for x in inputs])
    plain_in = torch.float32 if dtype == torch.bfloat16 else dtype
    plain = with_gradients(definition, [x.to(plain_in) for x in inputs])
    for got, want, near in zip(with_gradients(ours, inputs), exact, plain, strict=True):
        assert got.dtype == dtype
        if not want.numel():
            continue
        scale = max(float(want.abs().max()), 1.0)  # of what was added up, where the sum cancels
        budget = FACTOR * float((near.to(dtype).double() - want).abs().max()) + 4 * UNIT[dtype] * scale
        assert float((got.double() - want).abs().max()) <= budget


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradcheck(operation) -> None:
    ours, _, inputs = cases(5, 7, torch.float64)[operation]
    assert torch.autograd.gradcheck(ours, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.usefixtures("tier")
def test_a_row_alone_equals_the_row_in_any_batch_and_threads_change_no_bit(operation, dtype) -> None:
    ours, _, inputs = cases(400, 192, dtype)[operation]
    threads = _native.num_threads()
    together = with_gradients(ours, inputs)
    _native.set_num_threads(1)
    alone = with_gradients(ours, inputs)
    _native.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    if operation != "rotary":  # whose angles belong to the batch
        rows = torch.tensor([399, 0, 17])
        assert torch.equal(ours(inputs[0][rows], *inputs[1:]), together[0][rows])
    else:
        cosine, sine = angles(400, 96, dtype)
        one = ops.rotary(inputs[0][17:18], cosine[17:18], sine[17:18], HEADS, KV_HEADS, dtype)
        assert torch.equal(torch.cat(one, dim=1), together[0][17:18])


@pytest.mark.usefixtures("tier")
def test_attention_gets_full_precision_from_a_projection_in_half() -> None:
    qkv = random(9, (HEADS + 2 * KV_HEADS) * 8, dtype=torch.bfloat16).requires_grad_()
    cosine, sine = angles(9, 4, torch.float32)
    parts = ops.rotary(qkv, cosine, sine, HEADS, KV_HEADS, torch.float32)
    want = ops.rotary(qkv.detach().float(), cosine, sine, HEADS, KV_HEADS, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(parts, want, strict=True))
    torch.cat(parts, dim=1).square().sum().backward()
    assert qkv.grad.dtype == torch.bfloat16
    torch.testing.assert_close(qkv.grad, 2 * qkv.detach(), rtol=1e-2, atol=1e-2)  # turning keeps lengths


@pytest.mark.parametrize("eps", [0.0, -1e-6, float("nan"), float("inf")])
def test_an_eps_that_is_no_small_number_is_refused(eps: float) -> None:
    with pytest.raises(InvalidInput, match=r"^\[rms_norm\] eps: expected a finite number above 0, got"):
        ops.rms_norm(random(2, 3), random(3), eps)


def test_extreme_gates_saturate() -> None:
    gate = torch.tensor([[-3e38, -200.0, -90.0, 0.0, 90.0, 3e38, float("nan")]])
    out = ops.swiglu(torch.cat([gate, torch.ones_like(gate)], dim=1))[0]
    assert out[:6].tolist() == [0, 0, 0, 0, 90, gate[0, 5]]
    assert bool(out[6].isnan())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_arrays_that_are_not_contiguous_are_read_rightly(operation) -> None:
    ours, _, inputs = cases(12, 8, torch.float32)[operation]
    spread = [torch.stack([x, x + 1], dim=-1)[..., 0] for x in inputs]
    assert not spread[0].is_contiguous()
    for a, b in zip(with_gradients(ours, spread), with_gradients(ours, inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_tracers_see_the_formula(operation) -> None:
    ours, _, inputs = cases(6, 8, torch.float32)[operation]
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), ours(*inputs), rtol=1e-5, atol=1e-5)
    assert ours(*(x.to("meta") for x in inputs)).is_meta if operation != "rotary" else True


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ops.rms_norm(torch.zeros(2, 3), torch.zeros(4), EPS), "[rms_norm] weight: expected"),
        (lambda: ops.rms_norm(torch.zeros(2, 3).int(), torch.zeros(3), EPS), "[rms_norm] x: expected"),
        (lambda: ops.swiglu(torch.zeros(2, 3)), "[swiglu] gate_up: expected [..., 2 width]"),
        (
            lambda: ops.rotary(torch.zeros(2, 20), *[torch.zeros(2, 2)] * 2, 3, 2, torch.float32),
            "[rotary] qkv: expected a width",
        ),
        (
            lambda: ops.rotary(torch.zeros(2, 28), *[torch.zeros(3, 2)] * 2, 3, 2, torch.float32),
            "[rotary] cosine: expected torch.float32 [2, 2]",
        ),
        (
            lambda: ops.rotary(torch.zeros(2, 28), *[torch.zeros(2, 2)] * 2, 3, 2, torch.float64),
            "[rotary] dtype: expected torch.float32",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence) -> None:
    with pytest.raises(InvalidInput) as caught:
        call()
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan"), float("inf")])
def test_an_eps_that_protects_nothing_is_refused(eps) -> None:
    with pytest.raises(ValueError, match=r"\[rms_norm\] eps: expected a finite number above 0"):
        ops.rms_norm(torch.zeros(2, 3), torch.ones(3), eps)

# SPDX-License-Identifier: Apache-2.0
"""Bias, rotary positions and the write to pages on the CPU: the formula in float64, the slots alone written,
tracing with mutation, and what is said of wrong arguments. tests/cuda/test_paged_cuda.py has the kernel."""

import pytest
import torch

from earnest.errors import InvalidInput
from earnest.ops import paged_attention, rotary_angles, rotary_write
from earnest.ops.rotary_write import _write_op
from paged_cases import FLOAT8
from rotary_cases import PAIRS, writing


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_results_are_those_of_the_formula_and_lie_in_their_slots(pair, with_bias: bool) -> None:
    writing(pair, with_bias=with_bias).check("cpu")


def test_a_token_of_slot_minus_1_is_not_kept() -> None:
    case = writing(PAIRS["bfloat16"])
    case.slots[1:] = -1
    q, k, v = case.run("cpu")
    assert bool(q.isfinite().all())
    for pool in (k, v):
        assert int(pool.isfinite().any(-1).sum()) == 2  # one token's key heads


def test_decoding_token_by_token_gives_the_bits_of_a_chunk() -> None:
    """A program: eight tokens at once, or each written and asked alone."""
    g = torch.Generator().manual_seed(3)
    qkv = torch.randn(8, 8 * 64, generator=g).half()
    table, length = torch.tensor([[2, 0]], dtype=torch.int32), torch.tensor([20], dtype=torch.int32)
    positions = torch.arange(12, 20)
    slots = table[0].long()[positions // 16] * 16 + positions % 16
    before = torch.randn(2, 3, 2, 16, 64, generator=g).half()

    def decoded(parts: list[slice]) -> torch.Tensor:
        k, v = before.clone()
        found = []
        for part in parts:
            q = rotary_write(qkv[part], positions[part], slots[part], k, v, theta=1e4)
            end = torch.tensor([12 + part.stop], dtype=torch.int32)
            found.append(paged_attention(q[None], k, v, table, end)[0])
        return torch.cat(found)

    at_once = decoded([slice(0, 8)])
    assert int(length) == 20
    assert torch.equal(at_once, decoded([slice(i, i + 1) for i in range(8)]))
    assert torch.equal(at_once, decoded([slice(0, 3), slice(3, 8)]))


def test_the_operator_passes_opcheck_and_traces_whole() -> None:
    case = writing(PAIRS["bfloat16"])
    case.k.zero_(), case.v.zero_()  # opcheck compares what is there, and NaN equals nothing
    k, v = case.k, case.v
    inputs = (case.qkv, case.bias, case.positions, case.slots, k, v, None, None, 4, 1e4)
    torch.library.opcheck(_write_op, inputs)
    q, *pools = case.run("cpu")

    def step(qkv, k, v):
        return rotary_write(qkv, case.positions, case.slots, k, v, theta=1e4, bias=case.bias)

    k, v = k.clone(), v.clone()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(case.qkv, k, v), q)
    assert torch.equal(k, pools[0])
    assert torch.equal(v, pools[1])
    meta = [x.to("meta") for x in (case.qkv, case.positions, case.slots, k, v)]
    assert rotary_write(*meta, theta=1e4).shape == q.shape


def test_pools_are_counted_as_changed() -> None:
    case = writing(PAIRS["float16"])
    before = case.k._version, case.v._version
    rotary_write(case.qkv, case.positions, case.slots, case.k, case.v, theta=1e4)
    assert case.k._version > before[0]
    assert case.v._version > before[1]
    with torch.inference_mode():
        k, v = case.k.clone(), case.v.clone()
        rotary_write(case.qkv, case.positions, case.slots, k, v, theta=1e4)
    assert torch.equal(k.nan_to_num(), case.k.nan_to_num())


def test_angles_are_those_of_rotary_angles() -> None:
    positions = torch.tensor([0, 1, 131071, 1 << 24])
    qkv = torch.zeros(4, 3, 64).half()
    qkv[:, 0, :32] = 1  # turned: cosine and sine
    k, v = torch.zeros(2, 1, 1, 16, 64).half()
    q = rotary_write(qkv.view(4, -1), positions, torch.full((4,), -1), k, v, theta=1e4)
    cosine, sine = rotary_angles(positions, 1e4, 64)
    assert torch.equal(q[:, 0], torch.cat([cosine, sine], 1).half())


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"positions": [0, -1, 2, 3, 4]}, "positions: expected 0 to 2^24, got another for token 1"),
        (
            {"positions": [0, 1, (1 << 24) + 1, 3, 4]},
            "positions: expected 0 to 2^24, got another for token 2",
        ),
        (
            {"slots": [0, 1, 2, 48, 4]},
            "slots: expected -1 (not kept), or a place in [0, 48), got another for token 3",
        ),
        ({"slots": [0, 1, 2, 3]}, "slots: expected torch.int64 [5], got torch.int64 [4] on cpu"),
        ({"theta": 0.0}, "theta: expected a finite number above 0, got 0.0"),
        (
            {"qkv": torch.zeros(5, 4 * 64).half()},
            "qkv: expected [tokens, (heads + 2 * 2) * 64], got [5, 256]",
        ),
        ({"bias": torch.zeros(8 * 64)}, "bias: expected torch.float16 [512], got torch.float32 [512] on cpu"),
        (
            {"bias": torch.zeros(8 * 64).half().requires_grad_()},
            "bias: expected a tensor without gradients (torch.no_grad), got one that requires them",
        ),
        (
            {"k": torch.zeros(3, 2, 16, 64)},
            "k: expected torch.float16 as qkv, or float8_e4m3fn, got torch.float32",
        ),
        ({"v": torch.zeros(2, 2, 16, 64).half()}, "v: expected torch.float16 [3, 2, 16, 64] as k, got"),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(changed: dict, sentence: str) -> None:
    case = writing(PAIRS["float16"])
    named = {"qkv": case.qkv, "positions": case.positions, "slots": case.slots, "k": case.k, "v": case.v}
    named |= {"bias": case.bias, "theta": 1e4}
    named |= {name: torch.tensor(x) if isinstance(x, list) else x for name, x in changed.items()}
    with pytest.raises(InvalidInput) as caught:
        rotary_write(**named)
    assert str(caught.value).startswith(f"[rotary_write] {sentence}")
    assert not bool(case.k.isfinite().any())


def test_a_scale_that_cannot_be_is_refused() -> None:
    case = writing((torch.bfloat16, FLOAT8, 0))
    case.k_scale[1] = float("inf")
    with pytest.raises(InvalidInput, match=r"k_scale, v_scale: expected finite numbers .* for key head 1"):
        case.run("cpu")

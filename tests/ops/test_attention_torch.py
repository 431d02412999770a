# SPDX-License-Identifier: Apache-2.0
"""The back end "cuda/torch" of attention, run on the CPU, where nothing of it is different: against the
definition in float64, and against our kernel."""

import pytest
import torch
from torch import Tensor

from earnest.errors import InvalidInput
from earnest.ops import attention, attention_torch
from reference import attention as reference
from shapes import PACKS, QUERIES_AND_KEYS, cu_seqlens
from tolerances import ATTENTION

HEADS, KV_HEADS, DIM = 4, 2, 16
SCALE = 0.3
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
PAIRS = {name: (lengths, lengths) for name, lengths in PACKS.items()} | QUERIES_AND_KEYS


def inputs_of(tokens_q: int, tokens_k: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(tokens_q)
    shapes = ((tokens_q, HEADS, DIM), *((tokens_k, KV_HEADS, DIM),) * 2)
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


def run(function, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The result and the gradients of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype), materialize_grads=True)]


def assert_close(found: list[Tensor], expected: list[Tensor], dtype: str) -> None:
    for place, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape
        limit = ATTENTION["backward" if place else "forward"][dtype]
        assert a.numel() == 0 or float((a.double() - b.double()).abs().max()) <= limit, place


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_every_pack_equals_the_definition(pair, dtype: str, causal: bool) -> None:
    lengths_q, lengths_k = pair
    if sum(lengths_q) > 3000 and dtype != "float32":
        pytest.skip("the long one in one dtype alone")
    bounds = cu_seqlens(lengths_q), cu_seqlens(lengths_k)
    inputs = inputs_of(sum(lengths_q), sum(lengths_k), DTYPES[dtype])
    grad = inputs_of(sum(lengths_q), 0)[0].flip(0)

    def ours(q, k, v):
        return attention_torch.attention(q, k, v, *bounds, None, causal, SCALE)

    def exact(q, k, v):
        lists = {
            "cu_seqlens_q": bounds[0].tolist(),
            "cu_seqlens_k": bounds[1].tolist(),
            "causal": causal,
            "scale": SCALE,
        }
        return reference.attention(q, k, v, **lists)[0] if lengths_q else q

    found = run(ours, inputs, grad)
    assert found[0].dtype == DTYPES[dtype]
    assert_close(found, run(exact, [x.double() for x in inputs], grad), dtype)


def test_a_cache_is_read_as_far_as_it_is_used_and_no_further() -> None:
    """Rows of a KV cache that end at different places; what lies beyond is NaN and must not be seen."""
    lengths, used = (1, 1, 1, 1), torch.tensor([9, 1, 0, 16], dtype=torch.int32)
    spans = torch.tensor([0, 16, 32, 48, 64], dtype=torch.int32)
    q, k, v = inputs_of(4, 64)
    inside = torch.arange(16)[None] < used[:, None]
    k, v = (torch.where(inside.view(-1, 1, 1), x, torch.nan) for x in (k, v))
    clean = [x.nan_to_num(0.0) for x in (k, v)]
    grad = torch.ones(4, HEADS, DIM, dtype=torch.float64)

    def ours(*x):
        return attention_torch.attention(*x, cu_seqlens(lengths), spans, used, True, SCALE)

    def kernel(*x):
        bounds = {"cu_seqlens_q": cu_seqlens(lengths), "cu_seqlens_k": spans, "seqused_k": used}
        return attention(*x, causal=True, **bounds, scale=SCALE)

    found = run(ours, [q, k, v], grad)
    assert_close(found, run(kernel, [q, *clean], grad), "float64")
    assert bool((found[0][2] == 0).all())  # it sees no key
    assert bool((found[2].view(4, 16, -1)[~inside] == 0).all())


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_a_leading_axis_of_sequences(causal: bool) -> None:
    g = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(3, n, h, DIM, generator=g) for n, h in ((5, HEADS), (7, KV_HEADS), (7, KV_HEADS)))
    for used in (None, torch.tensor([7, 2, 5], dtype=torch.int32)):
        found = attention_torch.attention(q, k, v, None, None, used, causal, SCALE)
        expected = attention(q, k, v, causal=causal, seqused_k=used, scale=SCALE)
        assert found.shape == q.shape
        assert_close([found], [expected], "float32")


def test_autocast_sets_the_precision_and_the_result_keeps_its_own() -> None:
    lengths = (5, 9, 33)
    inputs = inputs_of(47, 47, torch.float32)
    bounds = cu_seqlens(lengths), cu_seqlens(lengths)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_torch.attention(*inputs, *bounds, None, True, SCALE)
    low = attention_torch.attention(*(x.bfloat16() for x in inputs), *bounds, None, True, SCALE)
    assert found.dtype == torch.float32
    assert torch.equal(found, low.float())


def test_the_plan_is_kept_for_the_next_layer_and_forgotten_with_its_bounds() -> None:
    bounds = cu_seqlens((5, 9))
    used = torch.tensor([5, 9], dtype=torch.int32)
    inputs = inputs_of(14, 14)

    def plan_of():
        attention_torch.attention(*inputs, bounds, bounds, used, True, SCALE)
        return attention_torch._kept[2]

    first = plan_of()
    assert plan_of() is first
    used[1] = 3  # in place: the same tensor, another number
    assert plan_of() is not first


def test_sequences_of_one_length_need_no_mask() -> None:
    bounds = cu_seqlens((8, 8, 8))
    plan = attention_torch._plan(bounds.tolist(), bounds.tolist(), None, (24, 24), True, "cpu", torch.float32)
    assert [(r.added, r.causal) for r in plan.rectangles] == [(None, True)]
    ragged = [0, 8, 15, 24]
    plan = attention_torch._plan(ragged, ragged, None, (24, 24), True, "cpu", torch.float32)
    assert all(r.added is not None or len(r.queries) == 1 for r in plan.rectangles)


@pytest.mark.parametrize(
    ("bounds", "used", "argument"),
    [
        ([0, 5, 3, 14], None, "cu_seqlens_q"),
        ([1, 5, 14], None, "cu_seqlens_q"),
        ([0, 5, 13], None, "cu_seqlens_q"),
        ([0, 5, 14], [5, 10], "seqused_k"),
        ([0, 5, 14], [-1, 9], "seqused_k"),
    ],
)
def test_bounds_that_do_not_fit_are_named(bounds, used, argument: str) -> None:
    cu = torch.tensor(bounds, dtype=torch.int32)
    used = None if used is None else torch.tensor(used, dtype=torch.int32)
    with pytest.raises(InvalidInput, match=rf"^\[attention\] {argument}: expected .*, got "):
        attention_torch.attention(*inputs_of(14, 14), cu, cu, used, True, SCALE)

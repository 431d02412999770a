# SPDX-License-Identifier: Apache-2.0
"""What attention promises for every pack: shapes and layouts from hell, and laws that hold bit for bit."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from earnest import _native
from earnest.ops import attention
from reference import attention as reference
from shapes import LAYOUTS, PACKS, QUERIES_AND_KEYS, cu_seqlens
from tiers import usable_tiers
from tolerances import ATTENTION

HEADS, KV_HEADS, DIM = 4, 2, 16
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
PAIRS = {name: (lengths, lengths) for name, lengths in PACKS.items()} | QUERIES_AND_KEYS


@pytest.fixture(params=usable_tiers("attention"))
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    _native.force_cpu_tier(request.param)
    yield request.param
    _native.force_cpu_tier("")


def problem(lengths_q: Sequence[int], lengths_k: Sequence[int], dtype: torch.dtype, seed: int = 0):
    """(q, k, v), and the bounds of their sequences by name."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((sum(lengths_q), HEADS, DIM), *((sum(lengths_k), KV_HEADS, DIM),) * 2)
    inputs = [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]
    return inputs, {"cu_seqlens_q": cu_seqlens(lengths_q), "cu_seqlens_k": cu_seqlens(lengths_k)}


def with_gradients(inputs: Sequence[Tensor], grad: Tensor, function=attention, **options) -> list[Tensor]:
    """The result and the gradients of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad, materialize_grads=True)]


def by_definition(*inputs: Tensor, **options) -> Tensor:
    lists = {name: x.tolist() if isinstance(x, Tensor) else x for name, x in options.items()}
    return reference.attention(*inputs, **lists)[0]


def equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- shapes from hell ----


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_every_pack_is_the_definition_and_its_sequences_stand_alone(pair, dtype, causal, tier: str) -> None:
    lengths_q, lengths_k = pair
    if max(lengths_q, default=0) > 1000:  # the definition holds all scores: a sequence of a fifth will do
        lengths_q = lengths_k = tuple(n // 5 if n > 1000 else n for n in lengths_q)
    inputs, bounds = problem(lengths_q, lengths_k, DTYPES[dtype])
    grad = inputs[0].flip(0)
    found = with_gradients(inputs, grad, causal=causal, **bounds)
    exact = [x.double() for x in inputs]
    wanted = [exact[0], *exact]  # where there is no sequence: nothing
    if lengths_q:
        wanted = with_gradients(exact, grad.double(), by_definition, causal=causal, **bounds)
    for i, (mine, theirs) in enumerate(zip(found, wanted, strict=True)):
        assert mine.shape == theirs.shape
        if mine.numel():
            worst = (mine.double() - theirs).abs().max()
            assert worst <= ATTENTION["backward" if i else "forward"][dtype], i
    starts_q, starts_k = (bounds[name].tolist() for name in ("cu_seqlens_q", "cu_seqlens_k"))
    for n in range(len(lengths_q)):
        q, k = slice(*starts_q[n : n + 2]), slice(*starts_k[n : n + 2])
        alone = with_gradients(
            [x[part] for x, part in zip(inputs, (q, k, k), strict=True)], grad[q], causal=causal
        )
        assert equal(alone, [x[part] for x, part in zip(found, (q, q, k, k), strict=True)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_where_arrays_lie_in_memory_changes_no_bit(layout, dtype, tier: str) -> None:
    inputs, bounds = problem((1, 16, 70, 64), (3, 16, 70, 65), DTYPES[dtype])
    grad, used = inputs[0].flip(0), torch.tensor([2, 16, 66, 0], dtype=torch.int32)
    plain = with_gradients(inputs, grad, causal=True, seqused_k=used, **bounds)
    moved = {name: layout(x) for name, x in (bounds | {"seqused_k": used}).items()}
    assert equal(plain, with_gradients([layout(x) for x in inputs], layout(grad), causal=True, **moved))


# ---- laws ----

LENGTHS = st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), min_size=1, max_size=5)
CHOSEN = st.sampled_from(sorted(DTYPES)).map(DTYPES.__getitem__)


@given(lengths=LENGTHS, dtype=CHOSEN, causal=st.booleans(), data=st.data())
@settings(max_examples=25, deadline=None)
def test_sequences_of_a_pack_may_change_places(lengths, dtype, causal, data) -> None:
    lengths_q, lengths_k = ([pair[i] for pair in lengths] for i in (0, 1))
    inputs, bounds = problem(lengths_q, lengths_k, dtype)
    order = data.draw(st.permutations(range(len(lengths))))

    def moved(x: Tensor, lengths: Sequence[int]) -> Tensor:
        parts = x.split(list(lengths))
        return torch.cat([parts[i] for i in order])

    axes = (lengths_q, lengths_k, lengths_k)
    other_bounds = {
        "cu_seqlens_q": cu_seqlens([lengths_q[i] for i in order]),
        "cu_seqlens_k": cu_seqlens([lengths_k[i] for i in order]),
    }
    found = with_gradients(inputs, inputs[0].flip(0), causal=causal, **bounds)
    other = with_gradients(
        [moved(x, n) for x, n in zip(inputs, axes, strict=True)], moved(inputs[0].flip(0), lengths_q),
        causal=causal, **other_bounds,
    )  # fmt: skip
    assert equal([moved(x, n) for x, n in zip(found, (lengths_q, *axes), strict=True)], other)


@given(lengths=LENGTHS, dtype=CHOSEN, causal=st.booleans(), exponent=st.integers(-12, 12))
@settings(max_examples=25, deadline=None)
def test_values_and_gradients_scale_by_powers_of_two(lengths, dtype, causal, exponent) -> None:
    """Which round nothing: the result is linear in v, the gradients in what comes from above."""
    (q, k, v), bounds = problem([a for a, _ in lengths], [b for _, b in lengths], dtype)
    scale, grad = 2.0**exponent, q.flip(0)
    plain = with_gradients((q, k, v), grad, causal=causal, **bounds)
    louder = with_gradients((q, k, v), grad * scale, causal=causal, **bounds)
    assert equal([plain[0], *(x * scale for x in plain[1:])], louder)
    larger = attention(q, k, v * scale, causal=causal, **bounds)
    assert torch.equal(larger, plain[0] * scale)


@given(lengths=LENGTHS, dtype=CHOSEN, causal=st.booleans(), exponent=st.integers(-6, 6))
@settings(max_examples=25, deadline=None)
def test_what_queries_gain_keys_may_lose(lengths, dtype, causal, exponent) -> None:
    (q, k, v), bounds = problem([a for a, _ in lengths], [b for _, b in lengths], dtype)
    scale = 2.0**exponent
    found = attention(q, k, v, causal=causal, **bounds)
    assert torch.equal(attention(q * scale, k / scale, v, causal=causal, **bounds), found)


@given(lengths=LENGTHS, dtype=CHOSEN, causal=st.booleans(), data=st.data())
@settings(max_examples=25, deadline=None)
def test_heads_may_change_places(lengths, dtype, causal, data) -> None:
    """Key heads, each with the query heads that read it; and these among themselves."""
    inputs, bounds = problem([a for a, _ in lengths], [b for _, b in lengths], dtype)
    group = HEADS // KV_HEADS
    keys = data.draw(st.permutations(range(KV_HEADS)))
    within = data.draw(st.permutations(range(group)))
    queries = [h * group + i for h in keys for i in within]
    q, k, v = inputs
    found = with_gradients((q[:, :], k, v), q.flip(0), causal=causal, **bounds)
    other = with_gradients(
        (q[:, queries], k[:, keys], v[:, keys]), q.flip(0)[:, queries], causal=causal, **bounds
    )
    assert torch.equal(found[0][:, queries], other[0])
    assert torch.equal(found[1][:, queries], other[1])
    if within == list(range(group)):  # gradients of keys are summed over their queries in order
        assert equal([x[:, keys] for x in found[2:]], other[2:])

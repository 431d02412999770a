# SPDX-License-Identifier: Apache-2.0
"""Decoding over pages on the CPU: the definition in float64, laws that hold bit for bit, the forms of
queries, tracing, and what is said of wrong arguments. tests/cuda/test_paged_cuda.py has the kernels."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import earnest
from earnest.errors import InvalidInput
from earnest.ops import attention, paged_attention
from earnest.ops.known import Known
from earnest.ops.paged_attention import _attend_op
from paged_cases import FLOAT8, PAIRS, SHAPES, alone, decoding, in_other_pages, one_by_one
from shapes import LAYOUTS

LENGTHS, QUERIES = [5, 0, 40, 17, 530], [2, 1, 1, 0, 8]


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_results_are_those_of_the_definition(shape, pair) -> None:
    case = decoding(LENGTHS, QUERIES, shape, pair)
    found = case.run()
    assert found.dtype == pair[0]
    assert float((found.double() - case.by_definition()).abs().max()) < pair[2]


def test_queries_may_have_an_axis_of_their_own() -> None:
    case = decoding([30, 64, 7], [3, 3, 3])
    named = {"page_table": case.page_table, "lengths": case.lengths}
    found = paged_attention(case.q.view(3, 3, 4, 64), case.k, case.v, **named)
    assert torch.equal(found.flatten(0, 1), case.run())
    newest = case.q.view(3, 3, 4, 64)[:, 2]  # not contiguous
    assert torch.equal(paged_attention(newest, case.k, case.v, **named), found[:, 2])


def test_a_cache_side_by_side_gives_what_attention_gives() -> None:
    case = decoding([70, 33], [1, 1])
    keys, values = (case.side_by_side(x, None).float() for x in (case.k, case.v))
    bounds = {"cu_seqlens_q": case.cu_seqlens_q, "cu_seqlens_k": torch.tensor([0, 70, 103]).int()}
    wanted = attention(case.q.float(), keys, values, causal=True, **bounds)
    assert torch.equal(case.run(), wanted.bfloat16())


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_where_arrays_lie_in_memory_changes_no_bit(layout) -> None:
    case = decoding(LENGTHS, QUERIES)
    names = ("q", "page_table", "lengths", "cu_seqlens_q")
    moved = {name: layout(getattr(case, name)) for name in names}
    assert torch.equal(replace(case, **moved).run(), case.run())


SEQUENCES = st.lists(st.tuples(st.integers(0, 70), st.integers(0, 8)), min_size=1, max_size=5)


@given(sequences=SEQUENCES, pair=st.sampled_from(sorted(PAIRS)), data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_row_depends_on_its_query_and_keys_alone(sequences, pair, data) -> None:
    lengths, queries = ([s[i] for s in sequences] for i in (0, 1))
    case = decoding(lengths, queries, pair=PAIRS[pair])
    found = case.run()
    order = torch.tensor(data.draw(st.permutations(range(len(case.k)))))
    assert torch.equal(found, in_other_pages(case, order, wider=3).run())
    assert torch.equal(found, torch.cat([alone(case, n).run() for n in range(len(lengths))]))
    rows = [one.run() for one in one_by_one(case)]
    assert torch.equal(found, torch.cat([found[:0], *rows]))


def test_the_operator_passes_opcheck_and_traces_whole() -> None:
    case = decoding([5, 40], [1, 1])
    cache = (case.k, case.v, case.page_table, case.lengths)
    torch.library.opcheck(_attend_op, (case.q, *cache, case.cu_seqlens_q, None, None, 1, 0.3))
    compiled = torch.compile(paged_attention, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(case.q, *cache), case.run())
    on_meta = [x.to("meta") for x in (case.q, *cache)]
    assert paged_attention(*on_meta).shape == case.q.shape


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"lengths": torch.tensor([5, 65]).int()},
            "lengths: expected 0 to 64 keys, got another for sequence 1",
        ),
        (
            {"lengths": torch.tensor([-1, 40]).int()},
            "lengths: expected 0 to 64 keys, got another for sequence 0",
        ),
        (
            {"page_table": torch.full((2, 4), 7).int()},
            "page_table: expected pages in [0, 6) up to the length, got another for sequence 0",
        ),
        (
            {"cu_seqlens_q": torch.tensor([0, 1, 3]).int()},
            "cu_seqlens_q: expected 0 to 1 queries a sequence within 2 tokens, got another for sequence 1",
        ),
        ({"lengths": torch.tensor([5, 40])}, "lengths: expected torch.int32 [n], got torch.int64 [2] on cpu"),
        (
            {"page_table": torch.zeros(3, 3).int()},
            "page_table: expected torch.int32 [2, n], got torch.int32 [3, 3] on cpu",
        ),
        (
            {"q": torch.zeros(2, 4, 64)},
            "q: expected a bfloat16 or float16 tensor, got torch.float32 [2, 4, 64]",
        ),
        (
            {"q": torch.zeros(2, 4, 32).bfloat16()},
            "q: expected [sequences, (queries,) heads, 64], with the head",
        ),
        (
            {"q": torch.zeros(2, 5, 64).bfloat16()},
            "k: expected a number of heads that divides q's 5 into at most",
        ),
        ({"q": torch.zeros(2, 4, 64).half()}, "k: expected torch.float16 as q, or float8_e4m3fn, got"),
        ({"most_queries": 9}, "most_queries: expected 1 to 8, got 9"),
        ({"most_queries": 0}, "most_queries: expected 1 to 8, got 0"),
        (
            {"k_scale": torch.ones(2)},
            "k_scale: expected given where the cache is float8_e4m3fn, and only there, got torch.float32 [2]",
        ),
        (
            {"q": torch.zeros(2, 4, 64).bfloat16().requires_grad_()},
            "q: expected tensors without gradients (torch.no_grad), got one that requires them",
        ),
    ],
)
def test_wrong_arguments_are_refused(changed: dict, sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        replace(decoding([5, 40], [1, 1]), **changed).run()
    assert str(caught.value).startswith(f"[paged_attention] {sentence}")


def test_wrong_pools_are_refused() -> None:
    case = decoding([5, 40], [1, 1])
    with pytest.raises(InvalidInput, match=r"k: expected a contiguous pool .*, got a strided one"):
        replace(case, k=case.k.transpose(1, 2)).run()
    with pytest.raises(InvalidInput, match=r"v: expected torch.bfloat16 \[6, 2, 16, 64\] as k, got"):
        replace(case, v=case.v[:5]).run()
    with pytest.raises(InvalidInput, match=r"page_size: expected a power of two from 16 to 256, got 8"):
        replace(case, k=case.k[:, :, :8].contiguous(), v=case.v[:, :, :8].contiguous()).run()
    eight = decoding([5, 40], [1, 1], pair=(torch.bfloat16, FLOAT8, 0))
    with pytest.raises(InvalidInput, match=r"v_scale: expected given where the cache is float8_e4m3fn"):
        replace(eight, v_scale=None).run()
    eight.k_scale[1] = 0
    sentence = r"k_scale, v_scale: expected finite numbers above 0, got another for key head 1"
    with pytest.raises(InvalidInput, match=sentence):
        eight.run()


def test_which_says_who_runs() -> None:
    assert earnest.which("paged_attention") == earnest.which("attention")
    assert earnest.which("rotary_write") == "cpu/scalar"


def test_known_tensors_are_those_that_nobody_wrote_to() -> None:
    known, a, b = Known(2), torch.zeros(3), torch.zeros(3)
    known.add((a, None), 5)
    assert known.holds((a, None), 5)
    assert not known.holds((a, None), 6)
    assert not known.holds((b, None), 5)
    a += 1
    assert not known.holds((a, None), 5)
    for x in (a, b, torch.zeros(1)):
        known.add((x,))
    assert not known.holds((a,))  # the oldest has gone
    assert known.holds((b,))
    with torch.inference_mode():
        c = torch.zeros(3)
    known.add((c,))
    assert not known.holds((c,))

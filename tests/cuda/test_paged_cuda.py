# SPDX-License-Identifier: Apache-2.0
"""Decoding over pages and the write to them on cuda: the definitions in float64, laws that hold bit for bit,
entries that are wrong, and which entries are not looked at again."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import earnest
from earnest.errors import InvalidInput
from earnest.ops import cuda, paged_attention, rotary_write
from paged_cases import FLOAT8, PAIRS, SHAPES, alone, decoding, in_other_pages, one_by_one
from rotary_cases import PAIRS as WRITING
from rotary_cases import THETA, writing
from shapes import LAYOUTS

LENGTHS, QUERIES = [5, 0, 40, 17, 530], [2, 1, 1, 0, 8]
laws = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # the device's fixture does the same for every example


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_results_are_those_of_the_definition_and_nearly_the_cpus(device, shape, pair) -> None:
    case = decoding(LENGTHS, QUERIES, shape, pair)
    found = case.run(device)
    assert found.dtype == pair[0]
    assert float((found.double() - case.by_definition()).abs().max()) < pair[2]
    with cuda.emulated(False):
        on_cpu = case.run("cpu")
    assert float((found.double() - on_cpu.double()).abs().max()) < pair[2]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_where_arrays_lie_in_memory_changes_no_bit_or_is_refused(device, layout) -> None:
    case = decoding(LENGTHS, QUERIES)
    moved = {name: layout(getattr(case, name)) for name in ("page_table", "lengths", "cu_seqlens_q")}
    found = case.run(device)
    assert torch.equal(replace(case, **moved).run(device), found)
    moved = replace(case, q=layout(case.q).to(device))
    if not moved.q.is_contiguous() or moved.q.data_ptr() % 16 == 0:  # others are copied
        assert torch.equal(moved.run(device), found)
        return
    with pytest.raises(InvalidInput, match=r"q: expected an array that begins on 16 bytes, got another"):
        moved.run(device)


SEQUENCES = st.lists(
    st.tuples(st.sampled_from([0, 1, 16, 33, 64, 65, 513]), st.integers(0, 3)), min_size=1, max_size=4
)


@given(sequences=SEQUENCES, pair=st.sampled_from(sorted(PAIRS)), data=st.data())
@laws
def test_a_row_depends_on_its_query_and_keys_alone(device, sequences, pair, data) -> None:
    lengths, queries = ([s[i] for s in sequences] for i in (0, 1))
    case = decoding(lengths, queries, pair=PAIRS[pair])
    found = case.run(device)
    order = torch.tensor(data.draw(st.permutations(range(len(case.k)))))
    assert torch.equal(found, in_other_pages(case, order, wider=40).run(device))
    assert torch.equal(found, torch.cat([alone(case, n).run(device) for n in range(len(lengths))]))
    rows = [one.run(device) for one in one_by_one(case)]
    assert torch.equal(found, torch.cat([found[:0], *rows]))


@pytest.mark.parametrize("pair", WRITING.values(), ids=WRITING)
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_write_is_the_formula_and_nearly_the_cpus(device, pair, with_bias: bool) -> None:
    case = writing(pair, tokens=13, with_bias=with_bias)
    case.check(device)
    found = case.run(device)
    with cuda.emulated(False):
        on_cpu = case.run("cpu")
    for mine, theirs in zip(found, on_cpu, strict=True):  # but where a fused multiply-add rounds elsewhere
        assert float((mine.nan_to_num() != theirs.nan_to_num()).float().mean()) < 0.01


@given(
    tokens=st.integers(0, 20), seed=st.integers(0, 99), pair=st.sampled_from(sorted(WRITING)), data=st.data()
)
@laws
def test_a_token_is_written_the_same_in_any_company(device, tokens, seed, pair, data) -> None:
    case = writing(WRITING[pair], tokens, seed=seed)
    whole = case.run(device)
    order = torch.tensor(data.draw(st.permutations(range(tokens))), dtype=torch.int64)
    moved = {name: getattr(case, name)[order] for name in ("qkv", "positions", "slots")}
    other = replace(case, **moved).run(device)
    assert torch.equal(other[0], whole[0][order])
    for mine, theirs in zip(other[1:], whole[1:], strict=True):
        assert torch.equal(mine.nan_to_num(7), theirs.nan_to_num(7))


def test_a_dialogue_is_decoded_as_it_was_prefilled(device) -> None:
    """Written in one chunk and asked in eights, or token by token over an e4m3 cache: the same bits."""
    g = torch.Generator().manual_seed(1)
    tokens = 72
    qkv = torch.randn(tokens, 8 * 64, generator=g).bfloat16().to(device)
    table = torch.randperm(5, generator=g).int()[None].to(device)
    positions = torch.arange(tokens, device=device)
    slots = table[0].long()[positions // 16] * 16 + positions % 16
    scales = {
        "k_scale": torch.tensor([0.02, 0.05]).to(device),
        "v_scale": torch.tensor([0.1, 0.03]).to(device),
    }

    def decoded(step: int) -> torch.Tensor:
        k, v = (torch.zeros(5, 2, 16, 64).to(FLOAT8).to(device) for _ in "kv")
        found = []
        for begin in range(0, tokens, step):
            part = slice(begin, begin + step)
            q = rotary_write(qkv[part], positions[part], slots[part], k, v, theta=THETA, **scales)
            length = torch.tensor([begin + step], dtype=torch.int32, device=device)
            found.append(paged_attention(q[None], k, v, table, length, **scales)[0])
        return torch.cat(found)

    assert torch.equal(decoded(8), decoded(1))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"lengths": torch.tensor([5, 65]).int()},
            "lengths: expected 0 to 64 keys, got another for sequence 1",
        ),
        (
            {"page_table": torch.full((2, 4), 7).int()},
            "page_table: expected pages in [0, 6) up to the length, got another for sequence 0",
        ),
        (
            {"cu_seqlens_q": torch.tensor([0, 1, 3]).int()},
            "cu_seqlens_q: expected 0 to 1 queries a sequence within 2 tokens, got another for sequence 1",
        ),
    ],
)
def test_wrong_entries_are_refused_in_the_words_of_the_cpu(device, changed: dict, sentence: str) -> None:
    case = replace(decoding([5, 40], [1, 1]), **changed)
    for emulating in (True, False):
        with pytest.raises(InvalidInput) as caught, cuda.emulated(emulating and device.type == "cpu"):
            case.run(device if emulating else "cpu")
        assert str(caught.value) == f"[paged_attention] {sentence}"


@pytest.mark.parametrize("queries", [-1, 0, 9, 1 << 61])
def test_a_number_of_queries_that_cannot_be_is_refused_before_memory_is_asked_for(
    device, queries: int
) -> None:
    case = replace(decoding([5, 40], [1, 1]), most_queries=queries)
    with pytest.raises(InvalidInput) as caught:
        case.run(device)
    assert str(caught.value) == f"[paged_attention] most_queries: expected 1 to 8, got {queries}"


def test_wrong_places_and_scales_are_refused(device) -> None:
    for name, wrong, sentence in (
        ("positions", -1, "positions: expected 0 to 2^24, got another for token 3"),
        ("slots", 48, "slots: expected -1 (not kept), or a place in [0, 48), got another for token 3"),
        ("k_scale", 0, "k_scale, v_scale: expected finite numbers above 0, got another for key head 1"),
    ):
        case = writing((torch.float16, FLOAT8, 0))
        getattr(case, name)[1 if name == "k_scale" else 3] = wrong
        with pytest.raises(InvalidInput) as caught:
            case.run(device)
        assert str(caught.value) == f"[rotary_write] {sentence}"
    case = decoding([5, 40], [1, 1], pair=PAIRS["float16 over e4m3"])
    case.v_scale[0] = torch.nan
    with pytest.raises(InvalidInput, match=r"\[paged_attention\] k_scale, v_scale: .* for key head 0"):
        case.run(device)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each launch, whether its fault word is waited for."""
    found, real = [], cuda.launching

    def launching(op, x, explain=None):
        found.append(explain is not None)
        return real(op, x, explain)

    monkeypatch.setattr(cuda, "launching", launching)
    return found


def test_entries_that_come_again_are_not_waited_for_until_they_change(device, waits: list[bool]) -> None:
    case = decoding([5, 40], [1, 1], pair=PAIRS["bfloat16 over e4m3"])
    q, k, v, table, lengths, *scales = (
        x.to(device)
        for x in (case.q, case.k, case.v, case.page_table, case.lengths, case.k_scale, case.v_scale)
    )
    named = dict(zip(("k_scale", "v_scale"), scales, strict=True))
    for _ in range(3):
        paged_attention(q, k, v, table, lengths, **named)
    assert waits == [True, False, False]
    lengths += 100
    with pytest.raises(InvalidInput, match="lengths"):
        paged_attention(q, k, v, table, lengths, **named)
    lengths -= 100
    for _ in range(2):
        paged_attention(q, k, v, table, lengths, **named)
    scales[0][0] = -1.0
    with pytest.raises(InvalidInput, match="k_scale"):
        paged_attention(q, k, v, table, lengths, **named)
    assert waits == [True, False, False, True, True, False, True]


def test_places_that_come_again_are_not_waited_for_until_they_change(device, waits: list[bool]) -> None:
    case = writing(WRITING["bfloat16 over e4m3"])
    names = ("qkv", "positions", "slots", "k", "v", "k_scale", "v_scale")
    named = {name: getattr(case, name).to(device) for name in names}
    for _ in range(3):
        rotary_write(**named, theta=THETA)
    named["slots"][0] = 48
    with pytest.raises(InvalidInput, match="slots"):
        rotary_write(**named, theta=THETA)
    named["slots"][0] = 0
    for _ in range(2):
        rotary_write(**named, theta=THETA)
    named["v_scale"][0] = 0
    with pytest.raises(InvalidInput, match="v_scale"):
        rotary_write(**named, theta=THETA)
    assert waits == [True, False, False, True, True, False, True]


def test_scales_of_a_call_that_keeps_nothing_are_looked_at(device) -> None:
    case = writing((torch.float16, FLOAT8, 0))
    case.v_scale[1] = torch.inf
    case.slots.fill_(-1)
    for on in ("cpu", device):
        with pytest.raises(InvalidInput, match=r"\[rotary_write\] k_scale, v_scale: .* for key head 1"):
            case.run(on)


def test_a_call_of_wrong_sizes_asks_for_no_scratch_memory(device, monkeypatch) -> None:
    asked, real = [], cuda.launching

    @contextmanager
    def launching(*arguments):
        with real(*arguments) as launch:
            yield launch._replace(allocate=lambda size: asked.append(size) or launch.allocate(size))

    monkeypatch.setattr(cuda, "launching", launching)
    decoding(LENGTHS, QUERIES).run(device)
    assert len(asked) == 1
    asked.clear()
    case = decoding(LENGTHS, QUERIES)
    with pytest.raises(InvalidInput, match="k: expected a number of heads that divides q's 5"):
        replace(case, q=torch.zeros(len(case.q), 5, case.q.shape[2], dtype=case.q.dtype)).run(device)
    assert not asked


def test_operators_trace_whole_and_a_compiled_step_writes_the_cache(device) -> None:
    case = writing(WRITING["bfloat16"], tokens=2)
    qkv, positions, slots, k, v = (
        x.to(device) for x in (case.qkv, case.positions, case.slots, case.k, case.v)
    )
    table, lengths = torch.tensor([[0, 1, 2]] * 2).int().to(device), torch.tensor([48, 48]).int().to(device)
    k.zero_(), v.zero_()

    def step(qkv, k, v):
        q = rotary_write(qkv, positions, slots, k, v, theta=THETA)
        return paged_attention(q, k, v, table, lengths) * 2

    other_k, other_v = k.clone(), v.clone()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(qkv, other_k, other_v), step(qkv, k, v))
    assert torch.equal(other_k, k)
    assert bool(k.any())


def test_which_says_who_runs(device) -> None:
    assert earnest.which("paged_attention", device="cuda") == "cuda/sm80"
    assert earnest.which("rotary_write", device="cuda") == "cuda/simt"

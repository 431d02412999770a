# SPDX-License-Identifier: Apache-2.0
"""Packed batches: nothing is added, lost or moved; placeholders match their audio; cuts spare audio."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from earnest.dialogue import (
    Audio,
    AudioSpan,
    Example,
    Message,
    PackedBatch,
    Rendered,
    collate,
    pack,
    render,
    truncate,
)
from earnest.errors import InvalidInput


def frames(mel_frames):
    """A stand-in for the model's rule: one token for every eight frames, none for fewer."""
    return mel_frames // 8


@st.composite
def examples(draw):
    """An example whose tokens are numbered, with chunks at random places."""
    ids, spans, mel = [], [], []
    for chunk in range(draw(st.integers(0, 3))):
        ids += [7] * draw(st.integers(1, 4))
        length = draw(st.integers(1, 5))
        spans.append(AudioSpan(chunk, 0, len(ids), length))
        ids += [9] * length
        mel.append(torch.full((4, 8 * length + draw(st.integers(0, 7))), float(len(ids))))
    ids += [7] * draw(st.integers(1, 6))
    mask = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    return Example(Rendered(ids, mask, spans), mel)


@given(items=st.lists(examples(), min_size=1, max_size=5))
def test_packing_is_concatenation(items):
    """A batch of n is n batches of one, end to end, each with positions of its own."""
    batch = collate(items, adaptor_frames=frames)
    alone = [collate([item], adaptor_frames=frames) for item in items]
    starts = batch.cu_seqlens.tolist()
    assert starts == [0, *torch.tensor([len(item) for item in items]).cumsum(0).tolist()]
    for name in ("input_ids", "position_ids", "loss_mask"):
        assert torch.equal(getattr(batch, name), torch.cat([getattr(one, name) for one in alone]))
    moved = [one.audio_positions + start for one, start in zip(alone, starts[:-1], strict=True)]
    assert torch.equal(batch.audio_positions, torch.cat(moved))
    assert [m.data_ptr() for m in batch.mel] == [m.data_ptr() for item in items for m in item.mel]
    for item, start, end in zip(items, starts[:-1], starts[1:], strict=True):
        assert batch.position_ids[start:end].tolist() == list(range(len(item)))
    assert set(batch.input_ids[batch.audio_positions].tolist()) <= {9}
    assert batch.audio_positions.numel() == int((batch.input_ids == 9).sum())
    assert batch.audio_positions.numel() == sum(frames(m.shape[1]) for m in batch.mel)
    dtypes = [getattr(batch, name).dtype for name in ("input_ids", "position_ids", "cu_seqlens", "loss_mask")]
    assert dtypes == [torch.int64, torch.int64, torch.int32, torch.bool]
    assert (batch.audio_positions.dtype, batch.sequences) == (torch.int64, len(items))


def with_audio(mel_frames=(16, 24), lengths=(2, 3)):
    ids, spans = [1, 2], []
    for i, length in enumerate(lengths):
        ids.append(3)
        spans.append(AudioSpan(i, 0, len(ids), length))
        ids += [9] * length + [4]
    ids += [5, 6]
    mask = [False] * (len(ids) - 2) + [True, True]
    return Example(Rendered(ids, mask, spans), [torch.zeros(4, n) for n in mel_frames])


@pytest.mark.parametrize(
    ("mel_frames", "reason"),
    [
        ((16, 32), "clip 1, chunk 0: expected 4 tokens, .* got 3"),
        ((24, 24), "clip 0, chunk 0: expected 3 tokens, .* got 2"),
        ((16,), "mel of example 0: expected 2 chunks"),
        ((16, 24, 8), "mel of example 0: expected 2 chunks"),
        ((), "mel of example 0: expected 2 chunks"),
    ],
)
def test_placeholders_must_match_their_audio(mel_frames, reason):
    with pytest.raises(InvalidInput, match=reason):
        collate([with_audio(mel_frames)], adaptor_frames=frames)


def test_audio_is_never_packed_unchecked():
    with pytest.raises(InvalidInput, match="adaptor_frames"):
        collate([with_audio()])
    assert collate([with_audio().rendered]).audio_positions.tolist() == [3, 4, 7, 8, 9]


def test_a_chunk_without_frames_is_left_out():
    batch = collate([with_audio((16, 7, 24))], adaptor_frames=frames)
    assert [mel.shape[1] for mel in batch.mel] == [16, 24]


@given(item=examples(), length=st.integers(1, 40))
def test_truncation(item, length):
    inside = any(s.start - 1 < length < s.start + s.length + 1 for s in item.rendered.audio_spans)
    lost = any(item.rendered.loss_mask) and not any(item.rendered.loss_mask[:length])
    if length >= len(item):
        assert truncate(item, length) is item
        return
    with pytest.raises(InvalidInput, match="at most"):
        collate([item], adaptor_frames=frames, max_length=length)
    if inside or lost:
        with pytest.raises(InvalidInput, match=r"\[truncate\]"):
            truncate(item, length)
        return
    batch = collate([item], adaptor_frames=frames, max_length=length, truncation="right")
    assert batch.input_ids.tolist() == item.rendered.ids[:length]
    assert batch.audio_positions.numel() == item.rendered.ids[:length].count(9)


def test_nothing_to_pack():
    with pytest.raises(InvalidInput, match="at least one example"):
        collate([])
    with pytest.raises(InvalidInput, match="at least one token"):
        collate([Rendered()])


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    room=st.integers(0, 100),
    seed=st.none() | st.integers(0, 99),
)
def test_pack(lengths, room, seed):
    budget = max(lengths) + room
    batches = pack(lengths, budget, seed=seed)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(batch and sum(lengths[i] for i in batch) <= budget for batch in batches)
    assert batches == pack([[0] * n for n in lengths], budget, seed=seed)  # anything with a length
    bounds = sorted((min(lengths[i] for i in b), max(lengths[i] for i in b)) for b in batches)
    assert all(high <= low for (_, high), (low, _) in pairwise(bounds))
    smallest_possible = -(-sum(lengths) // budget)
    assert len(batches) <= 2 * smallest_possible


def test_pack_refuses_what_cannot_fit():
    for lengths in ([5, 11], [0]):
        with pytest.raises(InvalidInput, match=r"\[pack\] example"):
            pack(lengths, 10)


def test_pack_seeds_differ():
    assert len({str(pack([3] * 40, 9, seed=seed)) for seed in range(5)}) == 5


def test_rendered_dialogues_pack(tokenizer):
    rendered = render(
        [Message.user(Audio(path="a.wav"), "Well?"), Message.assistant("Seven.")],
        tokenizer,
        audio_tokens=lambda audio: [2, 3],
    )
    batch = collate([Example(rendered, [torch.zeros(4, 16), torch.zeros(4, 24)])] * 2, adaptor_frames=frames)
    assert tokenizer.decode(batch.input_ids[batch.loss_mask]) == "Seven.Seven."
    assert len(batch.mel) == 4
    assert batch.to("cpu").sequences == 2


def test_a_batch_keeps_what_its_sequences_share_on_its_way_to_a_device():
    rows, bounds = torch.arange(3), torch.tensor([0, 3], dtype=torch.int32)
    batch = PackedBatch(rows, rows, bounds, rows > 0, [], rows[:0], key_rows=rows, cu_seqlens_k=bounds)
    moved = batch.to("meta")
    for name, field in vars(batch).items():
        assert name == "mel" or getattr(moved, name).shape == field.shape, name
        assert name == "mel" or getattr(moved, name).is_meta, name

# SPDX-License-Identifier: Apache-2.0
"""Prompts and replies as packed sequences, and the log-probabilities a model gives to the replies' tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from earnest.dialogue import PackedBatch
from earnest.learn.hearing import Hearing
from earnest.learn.types import Clip, Prompt
from earnest.model import AudioLM


@dataclass(eq=False)
class Packed:
    """Sequences end to end, with the N tokens whose probability is asked for. It is made on the CPU, and what
    a model on another device reads of it is brought there then."""

    batch: PackedBatch
    clips: list[Clip]
    before: Tensor  # int64 [N], the position whose hidden state predicts the token
    targets: Tensor  # int64 [N]
    last: Tensor  # int64 [sequences], the position of each sequence's last token


def pack(prompts: Sequence[Prompt], replies: Sequence[Tensor]) -> Packed:
    """Prompts, each one once, then the replies (int64 [length], none empty), each of which attends to its
    prompt and to itself. Replies to one prompt name the same `Prompt` object; most of the work on them is the
    prompt's, done once. Targets are all tokens of the replies; sequences in `last` are the replies, in their
    order."""
    number = {id(prompt): index for index, prompt in reversed(list(enumerate(prompts)))}
    unique = [prompt for index, prompt in enumerate(prompts) if number[id(prompt)] == index]
    first_row = dict(zip(map(id, unique), _starts([len(prompt.ids) for prompt in unique]), strict=False))
    begun = pack_masked(unique, [torch.zeros(len(prompt.ids), dtype=torch.bool) for prompt in unique])
    shared = len(begun.batch.input_ids)
    bounds = [shared + start for start in _starts([len(reply) for reply in replies])]
    rows, keys, before = [torch.arange(shared)], [len(prompt.ids) for prompt in unique], []
    for prompt, reply, start in zip(prompts, replies, bounds, strict=False):
        origin, length = first_row[id(prompt)], len(prompt.ids)
        rows += [torch.arange(origin, origin + length), torch.arange(start, start + len(reply))]
        keys.append(length + len(reply))
        before += [torch.tensor([origin + length - 1]), torch.arange(start, start + len(reply) - 1)]
    positions = [torch.arange(len(p.ids), len(p.ids) + len(r)) for p, r in zip(prompts, replies, strict=True)]
    targets = torch.cat(list(replies)) if replies else torch.zeros(0, dtype=torch.int64)
    batch = PackedBatch(
        input_ids=torch.cat([begun.batch.input_ids, targets]),
        position_ids=torch.cat([begun.batch.position_ids, *positions]),
        cu_seqlens=torch.cat([begun.batch.cu_seqlens, torch.tensor(bounds[1:], dtype=torch.int32)]),
        loss_mask=torch.arange(shared + len(targets)) >= shared,
        mel=[],
        audio_positions=begun.batch.audio_positions,
        key_rows=torch.cat(rows),
        cu_seqlens_k=torch.tensor(_starts(keys), dtype=torch.int32),
    )
    where = torch.cat(before) if before else torch.zeros(0, dtype=torch.int64)
    return Packed(batch, begun.clips, where, targets, torch.tensor(bounds[1:], dtype=torch.int64) - 1)


def pack_prompts(prompts: Sequence[Prompt]) -> Packed:
    """The prompts alone, to be continued."""
    return pack_masked(prompts, [torch.zeros(len(prompt.ids), dtype=torch.bool) for prompt in prompts])


def _starts(lengths: Sequence[int]) -> list[int]:
    return [0, *accumulate(lengths)]


def pack_masked(sequences: Sequence[Prompt], targets: Sequence[Tensor]) -> Packed:
    """Sequences as they are; `targets` (bool [length] each) marks the tokens whose probability is asked
    for."""
    bounds, audio = [0], []
    ids: list[int] = []
    for sequence in sequences:
        ids += sequence.ids
        audio += [bounds[-1] + position for position in sequence.audio_positions]
        bounds.append(len(ids))
    input_ids = torch.tensor(ids, dtype=torch.int64)
    loss_mask = torch.cat(list(targets)) if targets else torch.zeros(0, dtype=torch.bool)
    where = loss_mask.nonzero().squeeze(1)
    batch = PackedBatch(
        input_ids=input_ids,
        position_ids=torch.cat([torch.arange(len(s.ids)) for s in sequences]) if sequences else input_ids,
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        loss_mask=loss_mask,
        mel=[],
        audio_positions=torch.tensor(audio, dtype=torch.int64),
    )
    clips = [clip for sequence in sequences for clip in sequence.clips]
    return Packed(batch, clips, where - 1, input_ids[where], torch.tensor(bounds[1:], dtype=torch.int64) - 1)


def token_logprobs(
    model: AudioLM, hearing: Hearing, packed: Packed, temperature: float
) -> tuple[Tensor, Tensor]:
    """(log-probability [N], entropy [N]) of the replies' tokens under `model`, float32, at the sampling
    temperature."""
    hidden = model(packed.batch, hearing.embed(model, packed.clips))
    # Many replies begin after one prompt token: index_select adds up their gradients in a fixed order.
    before = hidden.index_select(0, packed.before.to(hidden.device))
    return model.logprob(before, packed.targets.to(hidden.device), temperature)


def by_tokens(prompts: Sequence[Prompt], lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices in order, cut into groups that pack to at most `max_tokens` tokens (a longer sequence is a
    group of its own). `lengths`: of the replies; a prompt counts once in each group."""
    group: list[int] = []
    seen: set[int] = set()
    total = 0
    for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        more = length + (0 if id(prompt) in seen else len(prompt.ids))
        if group and total + more > max_tokens:
            yield group
            group, seen, total, more = [], set(), 0, length + len(prompt.ids)
        group.append(index)
        seen.add(id(prompt))
        total += more
    if group:
        yield group

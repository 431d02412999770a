# SPDX-License-Identifier: Apache-2.0
"""Prompts and replies as packed sequences, and the log-probabilities a model gives to the replies' tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from earnest import ops
from earnest.dialogue import PackedBatch
from earnest.learn.hearing import Hearing
from earnest.learn.types import Clip, Prompt
from earnest.model import AudioLM


@dataclass(eq=False)
class Packed:
    """Sequences end to end, with the N tokens whose probability is asked for."""

    batch: PackedBatch
    clips: list[Clip]
    before: Tensor  # int64 [N], the position whose hidden state predicts the token
    targets: Tensor  # int64 [N]


def pack(prompts: Sequence[Prompt], replies: Sequence[Tensor]) -> Packed:
    """One sequence for each pair of prompt and reply ids (int64 [length]). Targets are all tokens of the
    replies."""
    masks = []
    whole = []
    for prompt, reply in zip(prompts, replies, strict=True):
        masks.append(torch.arange(len(prompt.ids) + len(reply)) >= len(prompt.ids))
        whole.append(replace(prompt, ids=(*prompt.ids, *reply.tolist())))
    return pack_masked(whole, masks)


def pack_masked(sequences: Sequence[Prompt], targets: Sequence[Tensor]) -> Packed:
    """Sequences as they are; `targets` (bool [length] each) marks the tokens whose probability is asked
    for."""
    bounds, ids, audio = [0], [], []
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
    return Packed(batch, clips, where - 1, input_ids[where])


def token_logprobs(
    model: AudioLM, hearing: Hearing, packed: Packed, temperature: float
) -> tuple[Tensor, Tensor]:
    """(log-probability [N], entropy [N]) of the replies' tokens under `model`, float32, at the sampling
    temperature."""
    hidden = model(packed.batch, hearing.embed(model, packed.clips))
    return ops.logprob(hidden[packed.before], model.lm_head.weight, packed.targets, temperature=temperature)


def by_tokens(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices in order, cut into groups of at most `max_tokens` tokens (a longer sequence is a group of its
    own)."""
    group: list[int] = []
    total = 0
    for index, length in enumerate(lengths):
        if group and total + length > max_tokens:
            yield group
            group, total = [], 0
        group.append(index)
        total += length
    if group:
        yield group

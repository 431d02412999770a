# SPDX-License-Identifier: Apache-2.0
"""Packed sequences: many clips or dialogues end to end in one tensor, without padding, told apart by
cu_seqlens.

A convolution over packed frames is a gather of each output's window (positions outside the clip point at one
zero row) followed by a matrix product, so that no clip ever sees its neighbour."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def cu_seqlens_of(lengths: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """int32 [sequences + 1]: where each of the packed sequences starts, and where the last one ends."""
    out = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=out[1:])
    return torch.from_numpy(out).to(device or "cpu")


def lengths_of(cu_seqlens: Tensor) -> list[int]:
    """The lengths of packed sequences, as plain numbers."""
    bounds = cu_seqlens.tolist()
    return [end - start for start, end in itertools.pairwise(bounds)]


def positions_of(lengths: Sequence[int]) -> np.ndarray:
    """int64 [tokens]: 0, 1, ... within each sequence."""
    counts = np.asarray(lengths, dtype=np.int64)
    starts = np.cumsum(counts) - counts
    return np.arange(counts.sum(), dtype=np.int64) - np.repeat(starts, counts)


def window_index(
    lengths: Sequence[int], out_lengths: Sequence[int], kernel: int, stride: int, padding: int
) -> Tensor:
    """int64 [output frames, kernel]: which packed row each tap reads; rows outside the clip are
    `sum(lengths)`."""
    counts, outs = np.asarray(lengths, dtype=np.int64), np.asarray(out_lengths, dtype=np.int64)
    starts = np.repeat(np.cumsum(counts) - counts, outs)
    taps = positions_of(out_lengths)[:, None] * stride - padding + np.arange(kernel)
    inside = (taps >= 0) & (taps < np.repeat(counts, outs)[:, None])
    return torch.from_numpy(np.where(inside, taps + starts[:, None], counts.sum()))


def fused(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors stacked along their first axis: a view where they already lie so in memory, else a copy.

    Parameters from `allocate_fused` or `lay_end_to_end` lie so. With gradients on, a copy keeps each tensor's
    own gradient."""
    first = tensors[0]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return torch.cat(list(tensors))
    end = first.data_ptr()
    storage = first.untyped_storage().data_ptr()
    for t in tensors:
        if t.data_ptr() != end or t.untyped_storage().data_ptr() != storage or not t.is_contiguous():
            return torch.cat(list(tensors))
        end += t.numel() * t.element_size()
    rows = sum(t.shape[0] for t in tensors)
    return first.as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())


def allocate_fused(shapes: Sequence[torch.Size], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Uninitialised tensors of the given shapes that lie one after another in one allocation."""
    whole = torch.empty((sum(s[0] for s in shapes), *shapes[0][1:]), device=device, dtype=dtype)
    return list(whole.split([s[0] for s in shapes]))


@torch.no_grad()
def lay_end_to_end(groups: Sequence[Sequence[Tensor]]) -> None:
    """Moves the tensors of each group into one allocation, values and identities unchanged."""
    for group in groups:
        if group[0].is_meta:
            continue
        whole = fused(group)
        for tensor, place in zip(group, whole.split([len(t) for t in group]), strict=True):
            tensor.data = place

# SPDX-License-Identifier: Apache-2.0
"""Packed copies of weights, kept beside the tensors they were made from and refreshed when these change."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from earnest import _native


@dataclass
class _Entry:
    tensor: weakref.ref[Tensor]
    state: tuple = ()  # what shows that the tensor has changed
    packed: dict[bool, Tensor] = field(default_factory=dict)  # by whether it is transposed
    stale: dict[bool, Tensor] = field(default_factory=dict)  # memory of former versions


class PackedWeights:
    """Finds the packed copies of a tensor by the tensor's identity, as long as it lives.

    Not kept: those of inference tensors, whose changes torch does not count, and of float64, which is for
    checking gradients: gradcheck changes its inputs behind torch's back.
    """

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def of(self, weight: Tensor, *, transposed: bool) -> Tensor:
        """The packed copy of weight [N, K] as it is now: for sums over K or, transposed, over N."""
        if weight.is_inference() or weight.dtype == torch.float64:
            return _pack(weight, transposed, None)
        entry = self._entries.get(id(weight))
        if entry is None or entry.tensor() is not weight:
            entry = self._add(weight)
        state = _state(weight)
        if entry.state != state:
            entry.stale |= entry.packed
            entry.packed = {}
            entry.state = state
        packed = entry.packed.get(transposed)
        if packed is None:
            packed = _pack(weight, transposed, entry.stale.pop(transposed, None))
            entry.packed[transposed] = packed
        return packed

    def forget(self, weight: Tensor) -> None:
        self._entries.pop(id(weight), None)

    def _add(self, weight: Tensor) -> _Entry:
        key = id(weight)

        def drop(tensor: weakref.ref[Tensor]) -> None:
            entry = self._entries.get(key)
            if entry is not None and entry.tensor is tensor:
                del self._entries[key]

        entry = _Entry(weakref.ref(weight, drop))
        self._entries[key] = entry
        return entry


def _state(weight: Tensor) -> tuple:
    # torch counts changes; a look at a few numbers finds most of those that it does not count.
    seen = _native.linear_fingerprint(to_dlpack(weight)) if weight.is_contiguous() else 0
    return weight._version, weight.data_ptr(), weight.shape, weight.stride(), weight.dtype, seen


def _pack(weight: Tensor, transposed: bool, memory: Tensor | None) -> Tensor:
    source = weight if weight.is_contiguous() else weight.contiguous()
    size = _native.linear_packed_size(to_dlpack(source), transposed)
    if memory is None or memory.numel() != size:
        memory = torch.empty(size, dtype=torch.uint8)
    _native.linear_pack(to_dlpack(source), transposed, to_dlpack(memory))
    return memory

# SPDX-License-Identifier: Apache-2.0
"""Packed copies of weights, kept beside the tensors they were made from and refreshed when these change."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from earnest import _native

Form = tuple[bool, torch.dtype]  # whether it is transposed, and the type it is packed in


@dataclass
class _Entry:
    tensors: list[weakref.ref[Tensor]]
    state: tuple = ()  # what shows that a tensor has changed
    packed: dict[Form, Tensor] = field(default_factory=dict)
    stale: dict[Form, Tensor] = field(default_factory=dict)  # memory of former versions


class PackedWeights:
    """Finds the packed copy of tensors by their identity, as long as they live.

    Not kept: those of inference tensors, whose changes torch does not count, and of float64, which is for
    checking gradients: gradcheck changes its inputs behind torch's back.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[int, ...], _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def of(self, weights: Sequence[Tensor], dtype: torch.dtype, *, transposed: bool) -> Tensor:
        """The packed copy, rounded to `dtype`, of the weights [N_i, K] one below the other, as they are now:
        for sums over K or, transposed, over N."""
        if any(weight.is_inference() or weight.dtype == torch.float64 for weight in weights):
            return _pack(weights, dtype, transposed, None)
        key = tuple(map(id, weights))
        entry = self._entries.get(key)
        if entry is None or any(
            ref() is not weight for ref, weight in zip(entry.tensors, weights, strict=True)
        ):
            entry = self._add(key, weights)
        state = tuple(map(_state, weights))
        if entry.state != state:
            entry.stale |= entry.packed
            entry.packed = {}
            entry.state = state
        form = (transposed, dtype)
        packed = entry.packed.get(form)
        if packed is None:
            packed = _pack(weights, dtype, transposed, entry.stale.pop(form, None))
            entry.packed[form] = packed
        return packed

    def forget(self, weight: Tensor) -> None:
        """Drops every copy that holds this weight."""
        self._entries = {key: entry for key, entry in self._entries.items() if id(weight) not in key}

    def _add(self, key: tuple[int, ...], weights: Sequence[Tensor]) -> _Entry:
        def drop(tensor: weakref.ref[Tensor]) -> None:
            entry = self._entries.get(key)
            if entry is not None and any(tensor is ref for ref in entry.tensors):
                del self._entries[key]

        entry = _Entry([weakref.ref(weight, drop) for weight in weights])
        self._entries[key] = entry
        return entry


def _state(weight: Tensor) -> tuple:
    # torch counts changes; a look at a few numbers finds most of those that it does not count.
    seen = _native.linear_fingerprint(to_dlpack(weight)) if weight.is_contiguous() else 0
    return weight._version, weight.data_ptr(), weight.shape, weight.stride(), weight.dtype, seen


def _pack(weights: Sequence[Tensor], dtype: torch.dtype, transposed: bool, memory: Tensor | None) -> Tensor:
    with torch.no_grad():
        whole = weights[0].detach() if len(weights) == 1 else torch.cat([w.detach() for w in weights])
        source = whole.to(dtype).contiguous()
    size = _native.linear_packed_size(to_dlpack(source), transposed)
    if memory is None or memory.numel() != size:
        memory = torch.empty(size, dtype=torch.uint8)
    _native.linear_pack(to_dlpack(source), transposed, to_dlpack(memory))
    return memory

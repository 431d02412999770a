# SPDX-License-Identifier: Apache-2.0
"""What a GPU has already been asked about. A kernel that finds a wrong entry says so in a word of its memory,
for which an eager call has to wait; entries that come again unchanged, as from layer to layer, need not be
waited for again."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor


class Known:
    """Tensors in which a kernel has found no fault, the last `most` times. They are held weakly, and are
    others once they were written to by torch, where it counts that: writes through .data, by compiled code
    and by replays of graphs it does not. What a context says (sizes they were held against) belongs to
    them. Tensors of inference mode, whose changes torch does not count, are never known."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[tuple, tuple[weakref.ref[Tensor] | None, ...]] = {}

    def holds(self, tensors: Sequence[Tensor | None], *context: Any) -> bool:
        kept = self._kept.get(_key(tensors, context))
        if kept is None or _uncounted(tensors):
            return False
        return all(ref is None or ref() is x for ref, x in zip(kept, tensors, strict=True))

    def add(self, tensors: Sequence[Tensor | None], *context: Any) -> None:
        if _uncounted(tensors):
            return
        key = _key(tensors, context)
        self._kept.pop(key, None)
        self._kept[key] = tuple(None if x is None else weakref.ref(x) for x in tensors)
        while len(self._kept) > self._most:
            self._kept.pop(next(iter(self._kept)), None)  # another thread may have done it


def _uncounted(tensors: Sequence[Tensor | None]) -> bool:
    return any(x is not None and x.is_inference() for x in tensors)


def _key(tensors: Sequence[Tensor | None], context: tuple) -> tuple:
    counted = (
        None if x is None or x.is_inference() else (id(x), x._version, x.data_ptr(), x.shape) for x in tensors
    )
    return (*counted, *context)

# SPDX-License-Identifier: Apache-2.0
"""Shapes from hell: the lengths, packs and memory layouts that break kernels, in one list for every family.

A kernel test takes from here what its arguments allow, instead of inventing a milder list:

- ``LENGTHS``: numbers of rows, tokens or frames, by name: none, one, primes, and both sides of the edges at
  which kernels change course (vectors of 2 to 64 lanes, blocks of 4,096).
- ``PACKS``: lengths of the sequences of a packed batch, by name: ragged, with empty sequences at either end
  and in a row, one long among short ones. ``cu_seqlens`` makes the offsets of one.
- ``QUERIES_AND_KEYS``: two such packs of as many sequences, where queries read more keys than they are, or
  fewer, or none.
- ``PRODUCTS``: rows, columns and depth of matrix products, with a remainder at every block of every kernel
  that has one.
- ``MASKS``: which of n entries count, by name, each a function n -> bool [n]: all, none, the first or last
  alone, every other one, turns with gaps, random.
- ``LAYOUTS``: the same numbers somewhere else in memory, by name, each a function tensor -> equal tensor:
  strided, transposed, one element off, an odd number of bytes off where the dtype allows it. An operator must
  give the same result for each, bit for bit, or refuse it with a clear error.
- ``between_addresses``: the same numbers where their type may not be read from. An operator must refuse it or
  copy it.

    @pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
    @pytest.mark.parametrize("lengths", PACKS.values(), ids=PACKS)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

LENGTHS: dict[str, int] = {
    "empty": 0,
    "one": 1,
    "two": 2,
    "three": 3,
    "prime": 13,
    "below a vector": 15,
    "a vector": 16,
    "above a vector": 17,
    "wide vector": 64,
    "larger prime": 251,
    "below a block": 4095,
    "a block": 4096,
    "above a block": 4097,
    "blocks and a prime": 9001,
}

PACKS: dict[str, tuple[int, ...]] = {
    "no sequence": (),
    "one empty": (0,),
    "one token": (1,),
    "tokens alone": (1,) * 37,
    "empty at the ends": (0, 5, 0),
    "empty in a row": (3, 0, 0, 0, 4),
    "ragged": (1, 0, 2, 7, 8, 9, 63, 64, 65, 130, 0),
    "primes": (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37),
    "edges of vectors": (15, 16, 17, 31, 32, 33),
    "edges of tiles": (47, 48, 49, 63, 64, 65, 97, 129, 200),
    "one long among short": (1, 2, 3, 5000, 1, 1),
}


QUERIES_AND_KEYS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "either is empty": ((0, 5, 0, 2), (0, 5, 4, 0)),
    "one query of many keys": ((1, 1, 1), (70, 1, 160)),
    "the end of many keys, or more": ((5, 9, 70), (66, 3, 65)),
}

# Blocks of linear: rows 12 and 96 (96 x 18 panels of 32 columns), depth 256. Of logprob, whose rows and depth
# these are too: rows 96 and 1536, columns 192 and 1152, depth 384 (768 for pairs of bfloat16).
PRODUCTS: list[tuple[int, int, int]] = [
    (1, 1, 1), (1, 2, 7), (7, 5, 1), (1, 33, 7), (5, 31, 257), (13, 65, 64), (97, 7, 515), (211, 201, 3),
    (3, 611, 1030), (31, 193, 389), (97, 1153, 16), (1601, 13, 5), (12, 2311, 64),
]  # fmt: skip


def cu_seqlens(lengths: Sequence[int]) -> Tensor:
    """int32 [sequences + 1]: where each sequence of a pack begins, and where the last one ends."""
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0).to(torch.int32)


def _only(place: int) -> Callable[[int], Tensor]:
    def mask(n: int) -> Tensor:
        chosen = torch.zeros(n, dtype=torch.bool)
        chosen[place : place + 1 or None] = True
        return chosen

    return mask


def _random(n: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.6


MASKS: dict[str, Callable[[int], Tensor]] = {
    "all": lambda n: torch.ones(n, dtype=torch.bool),
    "none": lambda n: torch.zeros(n, dtype=torch.bool),
    "first alone": _only(0),
    "last alone": _only(-1),
    "every other": lambda n: torch.arange(n) % 2 == 1,
    "turns": lambda n: torch.arange(n) // 7 % 3 != 1,
    "random": _random,
}


def strided(x: Tensor) -> Tensor:
    """Every third element of the last axis of something larger."""
    spread = torch.empty(*x.shape[:-1], 3 * x.shape[-1], dtype=x.dtype)
    spread[..., 1::3] = x
    return spread[..., 1::3]


def transposed(x: Tensor) -> Tensor:
    """The first axis innermost in memory; on one axis a column of a table."""
    if x.ndim == 1:
        return torch.stack([x, x], dim=1)[:, 0]
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def element_off(x: Tensor) -> Tensor:
    """Contiguous, one element after an aligned address."""
    room = torch.empty(x.numel() + 1, dtype=x.dtype)
    return room[1:].view(x.shape).copy_(x)


def odd_bytes(x: Tensor) -> Tensor:
    """Contiguous, as far from an aligned address as the dtype allows: an odd number of bytes for bytes and
    flags, one element (whose address is then a multiple of its size and of nothing larger) for the others."""
    size = x.element_size()
    room = torch.empty(x.numel() * size + 64 + size, dtype=torch.uint8)
    offset = -room.data_ptr() % 64 + size
    return room[offset : offset + x.numel() * size].view(x.dtype).view(x.shape).copy_(x)


def between_addresses(x: Tensor) -> np.ndarray:
    """A numpy array one byte after an address that its type could be read from; bfloat16 as its bits."""
    x = x.view(torch.int16) if x.dtype == torch.bfloat16 else x
    array = x.detach().contiguous().numpy()
    room = np.empty(array.nbytes + 128, np.uint8)
    offset = -room.ctypes.data % 64 + 1
    moved = np.frombuffer(room, array.dtype, array.size, offset).reshape(array.shape)
    moved[...] = array
    return moved


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "strided": strided,
    "transposed": transposed,
    "an element off": element_off,
    "odd bytes": odd_bytes,
}

# SPDX-License-Identifier: Apache-2.0
"""What a case of attention on a GPU is about: a batch of sequences, with or without keys before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from earnest.bench import attention

SHORT = {"bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Shape(attention.Shape):
    """prefixes: how many keys of each sequence stand before its first query (a prompt in chunks, whose last
    query sees the last key); (): none."""

    prefixes: tuple[int, ...] = ()
    dtype: str = "bfloat16"

    @property
    def key_lengths(self) -> tuple[int, ...]:
        before = self.prefixes or (0,) * len(self.lengths)
        return tuple(n + p for n, p in zip(self.lengths, before, strict=True))

    @property
    def equal(self) -> bool:
        """Whether one array with an axis of sequences can hold it."""
        return len(set(self.lengths)) == len(set(self.key_lengths)) == 1

    @property
    def operations(self) -> int:
        """Of the forward pass, two products; what the mask hides is not counted."""
        pairs = sum(map(self._pairs, self.lengths, self.key_lengths))
        return 4 * pairs * self.heads * self.dim

    def _pairs(self, queries: int, keys: int) -> int:
        return queries * keys - (queries * queries // 2 if self.causal else 0)

    @property
    def padding(self) -> float:
        """The share of the work on a padded batch that nobody asked for. Where chunks differ, their mask is
        an array, of which no part is passed over."""
        queries, keys = max(self.lengths), max(self.key_lengths)
        one = queries * keys if self.prefixes and not self.equal else self._pairs(queries, keys)
        return 1 - sum(map(self._pairs, self.lengths, self.key_lengths)) / (len(self.lengths) * one)

    @property
    def bytes(self) -> int:
        """Of q and the result, k and v, once."""
        return 2 * 2 * self.dim * (sum(self.lengths) * self.heads + sum(self.key_lengths) * self.kv_heads)

    def described(self) -> dict[str, Any]:
        """For the record."""
        return vars(self) | {"lengths": short(self.lengths), "prefixes": short(self.prefixes)}


def short(lengths: Sequence[int]) -> Any:
    return attention._short_lengths(lengths)


def batch(
    tokens: int, heads: int = 16, dim: int = 128, causal: bool = True, dtype: str = "bfloat16"
) -> Shape:
    """16k tokens in sequences of so many."""
    return Shape((tokens,) * (16_384 // tokens), heads, heads, dim, causal, dtype=dtype)


def name_of(shape: Shape) -> str:
    """Such as 2x8192-causal-16/16x128-bf16; of ragged ones how many, the shortest and the longest."""
    first = f"{len(shape.lengths)}x{shape.lengths[0]}"
    if not shape.equal:
        first = f"ragged-{len(shape.lengths)}x{min(shape.lengths)}-{max(shape.lengths)}"
    if shape.prefixes:
        first += f"-after-{min(shape.prefixes)}"
        first += "" if shape.equal else f"-{max(shape.prefixes)}"
    kind = "causal" if shape.causal else "full"
    return f"{first}-{kind}-{shape.heads}/{shape.kv_heads}x{shape.dim}-{SHORT[shape.dtype]}"


def drawn(rng: Any, shape: Shape, device: str, more: bool = False) -> tuple[Any, ...]:
    """Packed q, k, v, with `more` another array like q."""
    import torch

    g = torch.Generator(device).manual_seed(int(rng.integers(1 << 31)))
    tokens, keys = sum(shape.lengths), sum(shape.key_lengths)
    sizes = [(tokens, shape.heads), (keys, shape.kv_heads), (keys, shape.kv_heads)]
    sizes += [sizes[0]] if more else []
    dtype = getattr(torch, shape.dtype)
    return tuple(torch.randn(*size, shape.dim, generator=g, device=device).to(dtype) for size in sizes)

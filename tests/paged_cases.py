# SPDX-License-Identifier: Apache-2.0
"""Problems of decoding over a cache in pages: pools whose pages are dealt out at random and hold NaN where
no key is, the definition in float64, and the laws that hold bit for bit wherever the kernels run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from earnest.ops import paged_attention
from reference import attention as reference
from shapes import cu_seqlens

FLOAT8 = torch.float8_e4m3fn
# Of queries and cache, and the closeness that is asked for, absolute, of entries of order 1.
PAIRS = {
    "bfloat16": (torch.bfloat16, torch.bfloat16, 2e-2),
    "float16": (torch.float16, torch.float16, 3e-3),
    "bfloat16 over e4m3": (torch.bfloat16, FLOAT8, 2e-2),
    "float16 over e4m3": (torch.float16, FLOAT8, 3e-3),
}
SHAPES = {"4/2x64, pages of 16": (4, 2, 64, 16), "7/1x128, pages of 64": (7, 1, 128, 64)}


@dataclass(frozen=True)
class Decoding:
    """Queries packed, and what they see: the arguments of ops.paged_attention."""

    q: Tensor
    k: Tensor
    v: Tensor
    page_table: Tensor
    lengths: Tensor
    cu_seqlens_q: Tensor
    most_queries: int
    k_scale: Tensor | None
    v_scale: Tensor | None

    def run(self, device: torch.device | str = "cpu") -> Tensor:
        q, *cache = (x.to(device) for x in (self.q, self.k, self.v, self.page_table, self.lengths))
        named = {
            name: None if x is None else x.to(device)
            for name, x in (("k_scale", self.k_scale), ("v_scale", self.v_scale))
        }
        bounds = self.cu_seqlens_q.to(device)
        found = paged_attention(q, *cache, cu_seqlens_q=bounds, most_queries=self.most_queries, **named)
        return found.cpu()

    def side_by_side(self, pool: Tensor, scale: Tensor | None) -> Tensor:
        """float64 [keys, kv_heads, dim]: what a pool holds of all sequences."""
        size, rows = self.k.shape[2], []
        for length, table in zip(self.lengths.tolist(), self.page_table, strict=True):
            pages = pool[table[: -(-length // size)].long()].double()
            rows.append(pages.transpose(1, 2).flatten(0, 1)[:length])
        found = torch.cat(rows)
        return found if scale is None else found * scale[:, None]

    def by_definition(self) -> Tensor:
        keys, values = (self.side_by_side(x, s) for x, s in ((self.k, self.k_scale), (self.v, self.v_scale)))
        bounds = {
            "cu_seqlens_q": self.cu_seqlens_q.tolist(),
            "cu_seqlens_k": cu_seqlens(self.lengths.tolist()).tolist(),
        }
        return reference.attention(self.q, keys, values, causal=True, **bounds)[0]


def decoding(
    lengths: Sequence[int],
    queries: Sequence[int],
    shape: tuple[int, int, int, int] = (4, 2, 64, 16),
    pair: tuple[torch.dtype, torch.dtype, float] = PAIRS["bfloat16"],
    seed: int = 0,
) -> Decoding:
    heads, kv_heads, dim, page_size = shape
    g = torch.Generator().manual_seed(seed)
    counts = [-(-n // page_size) for n in lengths]
    pages, columns = sum(counts) + 2, max([*counts, 1]) + 1
    table = torch.full((len(lengths), columns), -1, dtype=torch.int32)
    dealt = torch.randperm(pages, generator=g).int()
    k, v = (torch.full((pages, kv_heads, page_size, dim), torch.nan).to(pair[1]) for _ in "kv")
    scales = None
    if pair[1] == FLOAT8:
        scales = [
            torch.tensor([0.013, 9.0] * kv_heads)[:kv_heads],
            torch.tensor([3.0, 0.02] * kv_heads)[:kv_heads],
        ]
    for n, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        table[n, :count], dealt = dealt[:count], dealt[count:]
        for pool, scale in ((k, scales and scales[0]), (v, scales and scales[1])):
            rows = torch.randn(length, kv_heads, dim, generator=g)
            rows = rows if scale is None else rows / scale[:, None]
            for key in range(length):
                pool[int(table[n, key // page_size]), :, key % page_size] = rows[key].to(pair[1])
    q = torch.randn(sum(queries), heads, dim, generator=g).to(pair[0])
    return Decoding(
        q, k, v, table, torch.tensor(lengths, dtype=torch.int32), cu_seqlens(queries), max([*queries, 1]),
        scales and scales[0], scales and scales[1],
    )  # fmt: skip


# ---- laws ----


def in_other_pages(case: Decoding, order: Tensor, wider: int) -> Decoding:
    """The same keys in other pages, by a wider table. order: a permutation of the pages."""
    table = torch.where(case.page_table >= 0, order[case.page_table.clamp(min=0).long()].int(), -1)
    k, v = (torch.empty_like(x) for x in (case.k, case.v))
    k[order], v[order] = case.k, case.v
    more = torch.full((len(table), wider), 1 << 30, dtype=torch.int32)  # not to be read
    return replace(case, k=k, v=v, page_table=torch.cat([table, more], 1))


def alone(case: Decoding, n: int) -> Decoding:
    begin, end = case.cu_seqlens_q[n : n + 2].tolist()
    return replace(
        case, q=case.q[begin:end], page_table=case.page_table[n : n + 1], lengths=case.lengths[n : n + 1],
        cu_seqlens_q=cu_seqlens([end - begin]),
    )  # fmt: skip


def one_by_one(case: Decoding) -> list[Decoding]:
    """Each query when it was the newest: of a shorter cache, and asked alone."""
    found = []
    for n, length in enumerate(case.lengths.tolist()):
        begin, end = case.cu_seqlens_q[n : n + 2].tolist()
        for row in range(begin, end):
            seen = max(length - (end - 1 - row), 0)
            found.append(
                replace(
                    case,
                    q=case.q[row : row + 1],
                    page_table=case.page_table[n : n + 1],
                    lengths=torch.tensor([seen], dtype=torch.int32),
                    cu_seqlens_q=cu_seqlens([1]),
                    most_queries=1,
                )
            )
    return found

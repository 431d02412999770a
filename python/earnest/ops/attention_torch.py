# SPDX-License-Identifier: Apache-2.0
"""Attention by torch's own operators, the back end "cuda/torch": where no kernel of ours runs yet.

torch's scaled_dot_product_attention takes rectangles. Sequences whose lengths round up to the same powers of
two are padded to the longest of them and go through it together, so that padding never costs more than four
times the work, and that seldom. What pads is zero, is seen by no query, and gets no gradient. Nothing here
asks for a device: the tests run it on the CPU. Unlike our kernels it promises no bits: a row's last ones may
change with the company it is computed in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from earnest.errors import InvalidInput

ALIGNED = 8  # a mask's rows are read in pieces of so many


@dataclass(frozen=True)
class Rectangle:
    """Sequences that are computed together, padded to the longest of them."""

    queries: Tensor  # int64 [sequences, length], rows of q
    keys: Tensor  # int64 [sequences, length], rows of k and v
    valid: Tensor  # bool [sequences, length, 1, 1], the keys that are none of the padding
    added: Tensor | None  # [sequences, 1, queries, keys], 0 where a query sees a key, else -inf; None: all do
    causal: bool  # without `added`: a query sees the keys up to its own place
    taken: Tensor  # int64 [n], the places of true queries among all of the rectangle's
    blind: Tensor | None  # bool [n, 1, 1], true queries that see no key


@dataclass(frozen=True)
class Plan:
    """How packed sequences become rectangles, and their rows packed sequences again."""

    rectangles: list[Rectangle]
    order: Tensor  # int64 [tokens], where the rectangles' rows, one after another, hold each row of q


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    used: Tensor | None,
    causal: bool,
    scale: float,
) -> Tensor:
    """ops.attention of checked arguments. Differentiable as often as torch's operators are.

    Where autocast is on, float32 is computed in its precision, as torch's operators do. The bounds are read
    from the device once, not at each layer: as long as calls bring the same tensors, their plan is kept."""
    if q.ndim == 4:
        lengths = torch.full((len(q),), q.shape[1]), torch.full((len(q),), k.shape[1])
        cu_q, cu_k = (F.pad(n.cumsum(0), (1, 0)).int() for n in lengths)
        rows_q, rows_k, rows_v = (x.flatten(0, 1) for x in (q, k, v))
        return attention(rows_q, rows_k, rows_v, cu_q, cu_k, used, causal, scale).view(q.shape)
    if q.numel() == 0:
        return q + 0 * (k.sum() + v.sum())  # nothing, with gradients of 0
    if len(k) == 0:
        k, v = (torch.cat([x, x.new_zeros(1, *x.shape[1:])]) for x in (k, v))
    precision = precision_of(q)
    with torch.autocast(q.device.type, enabled=False):
        plan = _plan_of(cu_q, cu_k, used, (len(q), len(k)), causal, q.device, precision)
        rows = [_rectangle(r, q, k, v, precision, scale) for r in plan.rectangles]
        return torch.cat(rows).index_select(0, plan.order).to(q.dtype)


def precision_of(q: Tensor) -> torch.dtype:
    """What is computed in: float32 in that of autocast, where it is on."""
    kind = q.device.type
    lower = q.dtype == torch.float32 and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if lower else q.dtype


def _rectangle(r: Rectangle, q: Tensor, k: Tensor, v: Tensor, precision: torch.dtype, scale: float) -> Tensor:
    """[n, heads, dim]: what attention makes of the true queries."""
    group = q.shape[1] // k.shape[1]
    queries = _padded(q, r.queries).to(precision).transpose(1, 2)
    keys, values = (
        _padded(x, r.keys).masked_fill(~r.valid, 0).to(precision).repeat_interleave(group, 2).transpose(1, 2)
        for x in (k, v)
    )
    mixed = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=r.added, is_causal=r.causal, scale=scale
    )
    rows = mixed.transpose(1, 2).flatten(0, 1).index_select(0, r.taken)
    return rows if r.blind is None else rows.masked_fill(r.blind, 0)


def _padded(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(0, index.flatten()).view(*index.shape, *x.shape[1:])


# ---- the plan ----

_kept: tuple[tuple, tuple[Tensor | None, ...], Plan] | None = None  # the last one, for the next layer


def _plan_of(
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    used: Tensor | None,
    tokens: tuple[int, int],
    causal: bool,
    device: torch.device,
    precision: torch.dtype,
) -> Plan:
    global _kept
    named = (cu_q, cu_k, used)
    settings = (tokens, causal, device, precision)
    if any(x is not None and x.is_inference() for x in named):  # torch does not count their changes
        return _plan(_numbers(cu_q), _numbers(cu_k), _numbers(used), *settings)
    key = (*(None if x is None else (id(x), x._version) for x in named), *settings)
    kept = _kept
    if kept is None or kept[0] != key:
        plan = _plan(_numbers(cu_q), _numbers(cu_k), _numbers(used), *settings)
        _kept = kept = (key, named, plan)  # the tensors too, so that no other can get their identities
    return kept[2]


def _numbers(x: Tensor | None) -> list[int] | None:
    return None if x is None else x.tolist()


def _plan(
    cu_q: list[int] | None,
    cu_k: list[int] | None,
    used: list[int] | None,
    tokens: tuple[int, int],
    causal: bool,
    device: torch.device,
    precision: torch.dtype,
) -> Plan:
    spans_q = _spans("cu_seqlens_q", cu_q, tokens[0])
    spans_k = _spans("cu_seqlens_k", cu_k, tokens[1] if cu_k is None else cu_k[-1])
    if cu_k is not None and cu_k[-1] > tokens[1]:
        _wrong("cu_seqlens_k", f"{tokens[1]} (the number of tokens) at the end", cu_k[-1])
    counts = [end - start for start, end in spans_k] if used is None else used
    for number, (count, (start, end)) in enumerate(zip(counts, spans_k, strict=True)):
        if not 0 <= count <= end - start:
            _wrong("seqused_k", f"0 to {end - start} (the keys of sequence {number})", count)
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, (start, end) in enumerate(spans_q):
        if end > start:
            alike[_power(end - start), _power(counts[number])].append(number)
    rectangles, rows = [], []
    for numbers in alike.values():
        some_q = [spans_q[n] for n in numbers]
        some_k = [(spans_k[n][0], spans_k[n][0] + counts[n]) for n in numbers]
        rectangles.append(_made(some_q, some_k, causal, device, precision))
        rows += [np.arange(start, end) for start, end in some_q]
    order = np.empty(tokens[0], np.int64)
    order[np.concatenate(rows)] = np.arange(tokens[0])
    return Plan(rectangles, torch.from_numpy(order).to(device))


def _spans(name: str, bounds: list[int] | None, tokens: int) -> list[tuple[int, int]]:
    if bounds is None:
        return [(0, tokens)]
    if bounds[0] != 0 or bounds[-1] != tokens or any(a > b for a, b in pairwise(bounds)):
        _wrong(name, f"numbers that rise from 0 to {tokens} (the number of tokens)", bounds)
    return list(pairwise(bounds))


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length() if count else 0


def _made(
    spans_q: Sequence[tuple[int, int]],
    spans_k: Sequence[tuple[int, int]],
    causal: bool,
    device: torch.device,
    precision: torch.dtype,
) -> Rectangle:
    queries, true_queries = _places(spans_q, 1)
    whole = len({end - start for start, end in spans_k}) == 1 and bool(true_queries.all())
    square = len(queries[0]) == spans_k[0][1] - spans_k[0][0]
    # Without padding, and with queries that see all keys or those up to their own, no mask need be read.
    plain = whole and spans_k[0][1] > spans_k[0][0] and (not causal or square or len(queries[0]) == 1)
    keys, valid = _places(spans_k, 1 if plain else ALIGNED)
    added = blind = None
    if not plain:
        seen = np.broadcast_to(valid[:, None], (*queries.shape, keys.shape[1]))
        if causal:  # the last query sees the last key
            ahead = valid.sum(1) - true_queries.sum(1)
            last = np.arange(queries.shape[1])[None] + ahead[:, None]
            seen = seen & (np.arange(keys.shape[1])[None, None] <= last[:, :, None])
        none = np.logical_not(seen.any(axis=2))
        # A row that sees nothing is computed as if it saw all of the padding, not as 0 / 0, and blanked.
        hidden = torch.from_numpy(~(seen | none[:, :, None])).to(device)[:, None]
        added = torch.zeros(hidden.shape, dtype=precision, device=device).masked_fill(hidden, -torch.inf)
        blind = torch.from_numpy(none[true_queries]).to(device)[:, None, None] if none.any() else None
    return Rectangle(
        torch.from_numpy(queries).to(device),
        torch.from_numpy(keys).to(device),
        torch.from_numpy(valid).to(device)[:, :, None, None],
        added,
        plain and causal and square,
        torch.from_numpy(true_queries.reshape(-1).nonzero()[0]).to(device),
        blind,
    )


def _places(spans: Sequence[tuple[int, int]], multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [sequences, longest], the rows of each span; bool, whether there is one. Padding names row 0."""
    starts, ends = np.asarray(spans, np.int64).T
    longest = max(int((ends - starts).max()), 1)
    rows = starts[:, None] + np.arange(-(-longest // multiple) * multiple)
    there = rows < ends[:, None]
    return np.where(there, rows, 0), there


def _wrong(argument: str, expected: str, got: Any) -> NoReturn:
    raise InvalidInput("attention", argument, expected, str(got))

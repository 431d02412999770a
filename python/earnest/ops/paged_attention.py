# SPDX-License-Identifier: Apache-2.0
"""Attention of the newest one to eight queries of each sequence over a cache in pages: decoding
(kernels/attention)."""

from __future__ import annotations

import torch
from torch import Tensor

from earnest import _native
from earnest.ops import cuda, pages
from earnest.ops.cupy_arrays import accepts_cupy
from earnest.ops.eager import call, capsule, is_eager
from earnest.ops.known import Known

_OP = "paged_attention"
_MOST_QUERIES = 8  # of a sequence in one call
_PIECE_KEYS = 512
_tables, _scales = Known(16), Known(256)


@accepts_cupy
def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    *,
    cu_seqlens_q: Tensor | None = None,
    most_queries: int = _MOST_QUERIES,
    scale: float | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    """softmax(scale * q k^T) v per head and sequence, causal, over keys and values in pages. The result is
    like q; there are no gradients. Tensors, or cupy arrays where cupy has the type (pools of e4m3 stay
    tensors).

    q [sequences, heads, dim]: one query each; or [sequences, queries, heads, dim]: as many each, one to
    eight; or packed [tokens, heads, dim] with the bounds cu_seqlens_q (int32 [sequences + 1]) and
    most_queries, the most that one has (tokens outside of the bounds, which may fill a CUDA graph, get any
    result). bfloat16 or float16; dim 64 or 128. They are the last tokens of the `lengths` (int32
    [sequences]) that the cache holds, their own keys included: query i of m sees keys j <= i + (length -
    m). A row that sees none gives 0.

    k, v [pages, kv_heads, page_size, dim], contiguous: pools of q's dtype, or float8_e4m3fn with float32
    scales k_scale and v_scale [kv_heads], by which all keys and all values of a head are multiplied.
    page_size: a power of two from 16 to 256. heads is a multiple of kv_heads, at most 16 times. page_table
    int32 [sequences, n]: the pages of each sequence; entries beyond its length may be anything and are not
    read. scale: positive, 1 / sqrt(dim) by default.

    A row's bits depend on its query and the keys that it sees alone: not on the batch, the pages, or how
    many queries are asked together. Sums and softmax are float32. On the CPU the keys of one sequence after
    another are laid side by side for ops.attention's kernels, in float32: for trying a program, not for
    speed. Scratch memory on cuda goes by what the table can hold: n page_size / 512 parts of 4 (dim + 2)
    bytes for each sequence, head and query (of packed ones: each of most_queries). Runs under torch.compile
    and in CUDA graphs, whose replays follow tables and lengths.

    Raises InvalidInput. On cuda the call waits for the kernel to say that tables, lengths and scales were
    right, once for tensors that are passed again unchanged (in a CUDA graph: ops.raise_faults).
    """
    pages.check_pools(_OP, "q", q, k, v, k_scale, v_scale)
    queries = _check(q, k, page_table, lengths, cu_seqlens_q, most_queries)
    rows = q.flatten(0, 1) if q.ndim == 4 else q
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    tensors = (rows, k, v, page_table, lengths, cu_seqlens_q, k_scale, v_scale)
    attend = _attend if is_eager(*tensors) else _attend_op
    out: Tensor = attend(*tensors, queries, factor)
    return out.view(q.shape)


def which(device: str = "cpu") -> str:
    """The back end that would run, "cuda/sm80" or e.g. "cpu/avx512"; an error where there is none."""
    return call(_native.paged_attention_which, device)


def _check(
    q: Tensor, k: Tensor, page_table: Tensor, lengths: Tensor, bounds: Tensor | None, most_queries: int
) -> int:
    """How many queries a sequence has at most."""
    pages.check_entries(_OP, "lengths", lengths, torch.int32, [None], q)
    sequences = lengths.shape[0]
    pages.check_entries(_OP, "page_table", page_table, torch.int32, [sequences, None], q)
    if q.ndim not in (3, 4) or q.shape[-1] != k.shape[-1]:
        expected = f"[sequences, (queries,) heads, {k.shape[-1]}], with the head size of k"
        pages.wrong(_OP, "q", expected, list(q.shape))
    if bounds is not None:
        pages.check_entries(_OP, "cu_seqlens_q", bounds, torch.int32, [sequences + 1], q)
        if q.ndim == 4:
            pages.wrong(_OP, "cu_seqlens_q", "none where q has an axis of queries", "one")
        return most_queries
    if q.shape[0] != sequences:
        expected = f"{sequences} sequences as lengths (or cu_seqlens_q, where they are packed)"
        pages.wrong(_OP, "q", expected, q.shape[0])
    return q.shape[1] if q.ndim == 4 else 1


def _attend(
    q: Tensor, k: Tensor, v: Tensor, page_table: Tensor, lengths: Tensor, cu_seqlens_q: Tensor | None,
    k_scale: Tensor | None, v_scale: Tensor | None, queries: int, scale: float,
    piece_keys: int = _PIECE_KEYS, stages: int = 0,
) -> Tensor:  # fmt: skip
    """piece_keys: of one softmax, 256, 512, 1024 or 2048, of which each gives other bits; stages: tiles in
    shared memory, 2 to 4, which changes none, or its choice if 0. The CPU has no others than these."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    entries, scales = (page_table, lengths, cu_seqlens_q), (k_scale, v_scale)
    arrays = (q, pages.stored(k), pages.stored(v), out, *entries, *scales)
    numbers = (queries, scale, piece_keys, stages)
    if not cuda.takes(q):
        call(_native.paged_attention, *map(capsule, arrays), *numbers)
        return out
    sizes = (q.shape[0], queries, k.shape[0], k.shape[2])

    def explain() -> None:
        """What the CPU says of these entries."""
        on_cpu = (None if x is None else capsule(x.cpu()) for x in (*entries, *scales))
        call(_native.paged_attention_check, *on_cpu, *sizes)

    capturing = cuda.is_capturing(q)
    known = not capturing and _tables.holds(entries, *sizes) and _scales.holds(scales)
    with cuda.launching(_OP, q, None if known else explain) as launch:
        call(_native.paged_attention, *map(capsule, arrays), *numbers, *launch)
    if not known and not capturing:
        _tables.add(entries, *sizes)
        if len(q):  # else nobody has looked at them
            _scales.add(scales)
    return out


@torch.library.custom_op("earnest::paged_attention", mutates_args=())
def _attend_op(
    q: Tensor, k: Tensor, v: Tensor, page_table: Tensor, lengths: Tensor, cu_seqlens_q: Tensor | None,
    k_scale: Tensor | None, v_scale: Tensor | None, queries: int, scale: float,
) -> Tensor:  # fmt: skip
    """What tracers see: q [tokens, heads, dim]."""
    return _attend(q, k, v, page_table, lengths, cu_seqlens_q, k_scale, v_scale, queries, scale)


@_attend_op.register_fake
def _(q: Tensor, *rest: object) -> Tensor:
    return q.new_empty(q.shape)

# SPDX-License-Identifier: Apache-2.0
"""What attention gives on fixed inputs, for digest.py: both head sizes and types, grouped heads, chunks,
short sequences, gradients, decoding; and path sm90a by its name, last, as whatever faults or hangs in it ends
the process: bench/gpu.sh times that path only where these have come to their end."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from earnest import ops
from earnest.ops.attention import _backward, _forward_on_cuda

Results = Iterator[tuple[str, Sequence[Any]]]
SCHEDULES = ("series", "turns", "ahead", "both", "wide")
PIECES = "most_keys" in inspect.signature(_forward_on_cuda).parameters  # what the engine asks for
KINDS = ((64, torch.bfloat16), (128, torch.bfloat16), (64, torch.float16), (128, torch.float16))


class Batch:
    """q, k, v of sequences of 1 token, none, and more, and their bounds. keys: of each sequence, so many more
    than queries."""

    def __init__(
        self, drawn: Callable[..., Tensor], tokens: int, dim: int, dtype: torch.dtype, keys: int = 0
    ):
        lengths = torch.tensor([1, 0, tokens // 8, tokens - 1 - tokens // 8])
        heads = 14 if dim == 128 else 4
        self.q = drawn(tokens, heads, dim, dtype=dtype)
        self.k, self.v = (drawn(tokens + keys * len(lengths), 2, dim, dtype=dtype) for _ in "kv")
        self.of_q, self.of_k = (
            torch.cat([x.new_zeros(1), x.cumsum(0)]).int().to(self.q.device)
            for x in (lengths, lengths + keys)
        )

    def attended(self, causal: bool) -> Tensor:
        return ops.attention(
            self.q, self.k, self.v, causal=causal, cu_seqlens_q=self.of_q, cu_seqlens_k=self.of_k
        )

    def forward(self, **variant: Any) -> tuple[Tensor, Tensor]:
        """The result and its log-sum-exp."""
        scale = self.q.shape[2] ** -0.5
        return _forward_on_cuda(
            self.q, self.k, self.v, self.of_q, self.of_k, None, True, scale, with_lse=True, **variant
        )

    def backward(self, out: Tensor, lse: Tensor, **variant: Any) -> tuple[Tensor, Tensor, Tensor]:
        grad, scale = torch.ones_like(out), self.q.shape[2] ** -0.5
        return _backward(
            grad, None, self.q, self.k, self.v, out, lse, self.of_q, self.of_k, None, True, scale, **variant
        )

    def leaves(self) -> tuple[Tensor, ...]:
        return tuple(x.requires_grad_() for x in (self.q, self.k, self.v))


def results(drawn: Callable[..., Tensor], tokens: int) -> Results:
    """drawn: normal numbers of a size and type; tokens: 8 or more."""
    for dim, dtype in KINDS:
        name = f"attention {dim} {str(dtype).removeprefix('torch.')}"
        batch = Batch(drawn, tokens, dim, dtype)
        leaves = batch.leaves()
        mixed = batch.attended(causal=True)
        yield name, [mixed]
        yield f"{name}, gradients", torch.autograd.grad(mixed.float().square().sum(), leaves)
        chunks = Batch(drawn, tokens, dim, dtype, keys=tokens)
        yield f"{name}, full, chunks", [batch.attended(causal=False), chunks.attended(causal=True)]
        if PIECES:
            yield (
                f"{name}, pieces",
                [batch.forward(most_keys=tokens)[0], chunks.forward(most_keys=2 * tokens)[0]],
            )
        short = 1 + tokens // 8
        alone = (drawn(1, short, heads, dim, dtype=dtype) for heads in (4, 2, 2))
        yield f"{name}, one short sequence", [ops.attention(*alone, causal=True)]


def decoding(drawn: Callable[..., Tensor], pages: Callable[[], Tensor], sequences: int = 16) -> Results:
    """pages: a table [sequences, n] of all pages in any order."""
    for dim, dtype, queries, float8 in (
        (128, torch.bfloat16, 1, False),
        (128, torch.float16, 3, False),
        (64, torch.bfloat16, 8, False),
        (128, torch.bfloat16, 5, True),
    ):
        table = pages()
        cache = torch.float8_e4m3fn if float8 else dtype
        k, v = (drawn(table.numel(), 2, 16, dim).to(cache) for _ in "kv")
        scale = torch.full((2,), 0.5, device=k.device) if float8 else None
        lengths = torch.full((sequences,), 16 * table.shape[1] - 3, dtype=torch.int32, device=k.device)
        q = drawn(sequences, queries, 14 if dim == 128 else 4, dim, dtype=dtype)
        attended = ops.paged_attention(q, k, v, table, lengths, k_scale=scale, v_scale=scale)
        yield f"paged_attention {dim} {cache}, {queries} queries", [attended]


def by_sm90a(drawn: Callable[..., Tensor], tokens: int) -> Results:
    """Nothing where the device has no such path. Of the larger batches, in bfloat16, every multiprocessor
    takes several tiles, and their blocks wait for each other."""
    for dim, dtype in KINDS:
        batch = Batch(drawn, 8 * tokens if dtype == torch.bfloat16 else tokens, dim, dtype)
        try:
            found = [batch.forward(path="sm90a", schedule=name) for name in SCHEDULES]
        except RuntimeError as error:
            if "] path: expected" in str(error):
                return
            raise
        name = f"attention sm90a {dim} {str(dtype).removeprefix('torch.')}"
        yield name, [out for out, _ in found]
        yield f"{name}, gradients", batch.backward(*found[0], path="sm90a")
        if PIECES:  # of one schedule alone
            pieces = batch.forward(path="sm90a", schedule="wide", most_keys=8 * tokens)
            yield f"{name}, pieces", [pieces[0]]

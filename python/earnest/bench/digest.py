# SPDX-License-Identifier: Apache-2.0
"""A line for each operator on cuda with a digest of its results on fixed inputs: two processes must print the
same. `python -m earnest.bench.digest [DEVICE]`"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from earnest import ops
from earnest.bench import digest_attention, peers
from earnest.bench.case import Absent
from earnest.features import LogMel
from earnest.ops.linear import _forward_on_cuda
from earnest.ops.quantized import quantize, quantized_linear


def results(device: str, tokens: int = 1 << 20) -> Iterator[tuple[str, Sequence[Any]]]:
    """(operator, what it gives), of inputs drawn on the CPU, the same wherever this runs."""
    g = torch.Generator().manual_seed(7)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g).to(dtype).to(device)

    trainable = (torch.arange(tokens) // 50 % 3 != 0).to(device)
    bounds = torch.arange(0, tokens + 1, tokens // 16, dtype=torch.int32).to(device)
    rewards, values = normal(tokens), normal(tokens)
    yield "gae", ops.gae(rewards, values, trainable, bounds, gamma=0.99, lam=0.95)
    yield "whiten", [ops.whiten(values, trainable)]
    groups = (torch.arange(tokens) // 16).to(device)
    yield "group_advantage", [ops.group_advantage(values, groups, normalize_std=True)]
    logp = (normal(tokens) - 3).requires_grad_()
    loss = ops.ppo_loss(logp, logp.detach() + 0.2 * rewards, values, None, None, None, trainable)
    yield "ppo_loss", [loss.loss, loss.sums, *torch.autograd.grad(loss.loss, logp)]
    for dtype in (torch.float32, torch.bfloat16):
        hidden = normal(tokens >> 10, 256, dtype=dtype).requires_grad_()
        weight = normal(5003, 256, dtype=dtype).requires_grad_()
        targets = torch.randint(5003, (tokens >> 10,), generator=g).to(device)
        yield f"logprob {dtype}", _logprob(hidden, weight, targets)
    yield from digest_attention.results(normal, tokens >> 10)
    yield from _linear(
        normal(tokens >> 10, 256, dtype=torch.bfloat16), normal(509, 256, dtype=torch.bfloat16)
    )
    for cache in (torch.bfloat16, torch.float8_e4m3fn):
        table = torch.randperm(tokens >> 6, generator=g).int().view(16, -1).to(device)
        k, v = (normal(tokens >> 6, 2, 16, 64).to(cache) for _ in "kv")
        scale = None if cache == torch.bfloat16 else torch.full((2,), 0.5, device=device)
        lengths = torch.full((16,), 16 * table.shape[1], dtype=torch.int32, device=device)
        positions, slots = lengths.long() - 1, table[:, -1].long() * 16 + 15
        qkv = normal(16, 8 * 64, dtype=torch.bfloat16)
        q = ops.rotary_write(qkv, positions, slots, k, v, theta=1e6, k_scale=scale, v_scale=scale)
        yield f"rotary_write {cache}", [q, k, v]
        attended = ops.paged_attention(q, k, v, table, lengths, k_scale=scale, v_scale=scale)
        yield f"paged_attention {cache}", [attended]
    yield from digest_attention.decoding(
        normal, lambda: torch.randperm(tokens >> 8, generator=g).int().view(16, -1).to(device)
    )
    yield "logmel", [LogMel(128).batch(0.1 * normal(8, tokens >> 4))]
    try:
        yield "logprob sm90a", peers.forced("sm90a", _logprob)(hidden, weight, targets)
    except Absent:
        return
    yield from digest_attention.by_sm90a(normal, tokens >> 10)


def _logprob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Sequence[Any]:
    found = ops.logprob(hidden, weight, targets)
    return [*found, *torch.autograd.grad(sum(x.sum() for x in found), (hidden, weight))]


def _linear(x: Tensor, weight: Tensor) -> Iterator[tuple[str, Sequence[Any]]]:
    yield "linear", [_forward_on_cuda(rows, weight, None) for rows in (x, x[:8])]
    for codes in ("int8", "int4"):
        kept = quantize(weight.cpu(), codes).to(x.device)
        yield f"linear {codes}", [quantized_linear(rows, kept) for rows in (x, x[:8])]


def digest(found: Sequence[Tensor]) -> str:
    parts = [x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for x in found]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def main(device: str = "cuda") -> None:
    for name, found in results(device):
        print(f"{digest(found)}  {name}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

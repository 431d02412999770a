# SPDX-License-Identifier: Apache-2.0
"""Cases of decoding over pages on a GPU. torch's peers get the same keys and values gathered side by side
beforehand, without the pages' cost; flashinfer reads the pages themselves. The limit is what the bytes of
keys and values take at the rate of a copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from earnest.bench import gpu_write, peers
from earnest.bench.case import OURS, Case, Implementation, Problem, Target

TOLERANCE = 2e-2  # of the largest result, which is the smaller the more keys are averaged
CHECKED_SEQUENCES = 4  # float64 for all of them would take longer than the measurement
SCALES = (0.5, 2.0)  # of keys and of values in e4m3
SHORT = {"bfloat16": "bf16", "float16": "fp16"}
LARGE = 2_000_000_000  # bytes of keys and values from which on the copy's rate is asked for
WORKSPACE = 128 << 20  # flashinfer's


@dataclass(frozen=True)
class Shape:
    """float8: the cache is e4m3, and the queries are as before."""

    sequences: int
    keys: int
    heads: int
    kv_heads: int
    dim: int = 128
    queries: int = 1
    page_size: int = 16
    float8: bool = False

    @property
    def cache_bytes(self) -> int:
        return 2 * self.sequences * self.keys * self.kv_heads * self.dim * (1 if self.float8 else 2)


def cases() -> list[Case]:
    sizes = ((1, 1024), (1, 8192), (1, 65536), (16, 8192), (16, 65536), (64, 16384), (256, 1024), (256, 4096))
    found = [case(Shape(*size, 28, 4), quick=size == (256, 1024)) for size in sizes]
    found += [case(Shape(n, keys, 40, 8)) for n, keys in ((1, 65536), (64, 8192))]
    found.append(case(Shape(64, 16384, 28, 4), "float16"))
    found += [case(Shape(n, keys, 28, 4, float8=True)) for n, keys in ((1, 65536), (64, 32768), (256, 8192))]
    found += [case(Shape(64, 16384, 28, 4, queries=queries)) for queries in (4, 8)]
    found.append(case(Shape(64, 16384, 28, 4, page_size=256)))
    return found + gpu_write.cases()


def case(shape: Shape, dtype: str = "bfloat16", quick: bool = False, device: str = "cuda") -> Case:
    more = f"-{shape.queries}-queries" if shape.queries > 1 else ""
    more += f"-pages-of-{shape.page_size}" if shape.page_size != 16 else ""
    keys = f"{shape.keys // 1024}k" if shape.keys >= 1024 else f"{shape.keys}"
    ending = "e4m3" if shape.float8 else SHORT[dtype]
    large = shape.cache_bytes >= LARGE and shape.queries == 1
    return Case(
        name=f"attention/cuda-decode-{shape.sequences}x{keys}-{shape.heads}/{shape.kv_heads}x{shape.dim}"
        f"-{ending}{more}",
        problem=partial(_problem, shape=shape, dtype=dtype, device=device),
        shape=vars(shape),
        dtype=dtype,
        target=Target(  # torch's peers would read twice the bytes of e4m3
            ratio=1.1, against="flashinfer" if shape.float8 else "", fraction=0.85 if large else None
        ),
        per=(shape.sequences * shape.queries, "token"),
        quick=quick,
        device=device,
        kernel="paged_attention",
    )


def _problem(rng: np.random.Generator, shape: Shape, dtype: str, device: str) -> Problem:
    rows = np.sort(rng.choice(shape.sequences, min(CHECKED_SEQUENCES, shape.sequences), replace=False))
    entries = [Implementation("earnest", _ours, OURS, outputs=lambda out: [out[rows]])]
    for name, backend in peers.attention_backends(device).items():
        entries.append(_torch(name, backend, shape, rows))
    if device == "cuda" and shape.queries == 1:
        entries.append(_flashinfer(shape, rows))
    tokens = shape.sequences * shape.queries
    return Problem(
        inputs=[_inputs(rng, shape, dtype, device)],
        reference=partial(reference, shape=shape, rows=rows),
        implementations=entries,
        tolerance=TOLERANCE,
        bytes=shape.cache_bytes + 2 * tokens * shape.heads * shape.dim * 2,
        operations=4 * tokens * shape.keys * shape.heads * shape.dim,
    )


def _inputs(rng: np.random.Generator, shape: Shape, dtype: str, device: str) -> tuple[Any, ...]:
    """q [sequences, queries, heads, dim], the pools, a table of pages in any order, lengths, scales."""
    import torch

    g = torch.Generator(device).manual_seed(int(rng.integers(1 << 31)))
    number = torch.float8_e4m3fn if shape.float8 else getattr(torch, dtype)
    columns = -(-shape.keys // shape.page_size)
    pages = shape.sequences * columns
    of_q = (shape.sequences, shape.queries, shape.heads, shape.dim)
    q = torch.randn(of_q, generator=g, device=device).to(getattr(torch, dtype))
    of_pool = (shape.kv_heads, shape.page_size, shape.dim)
    k, v = (torch.empty(pages, *of_pool, dtype=number, device=device) for _ in range(2))
    for pool in (k, v):  # a part at a time, as randn makes float32
        for part in pool.split(max(1, (1 << 26) // pool[0].numel())):
            part.copy_(torch.randn(part.shape, generator=g, device=device))
    table = torch.randperm(pages, generator=g, device=device).int().view(shape.sequences, columns)
    lengths = torch.full((shape.sequences,), shape.keys, dtype=torch.int32, device=device)
    scales: Any = (None, None)
    if shape.float8:
        scales = torch.tensor(SCALES, device=device)[:, None].repeat(1, shape.kv_heads)
    return (q, k, v, table, lengths, scales[0], scales[1])


def _gathered(pool: Any, table: Any, scale: Any, shape: Shape, dtype: Any) -> Any:
    """[sequences, kv_heads, keys, dim] as they are meant."""
    import torch

    view = pool.view(torch.uint8) if shape.float8 else pool
    found = view[table.long()].transpose(1, 2).flatten(2, 3)[:, :, : shape.keys].contiguous()
    found = found.view(pool.dtype).to(dtype)
    return found if scale is None else found * scale[:, None, None].to(dtype)


def reference(
    q: Any, k: Any, v: Any, table: Any, _: Any, k_scale: Any, v_scale: Any, shape: Shape, rows: np.ndarray
) -> list[Any]:
    """Some sequences of softmax(q k^T / sqrt(dim)) v by its definition in float64."""
    import torch

    group, found = shape.heads // shape.kv_heads, []
    places = torch.arange(shape.keys, device=q.device)
    last = places[-1] - torch.arange(shape.queries - 1, -1, -1, device=q.device)
    hidden = places[None] > last[:, None]
    for row in rows:
        one = table[int(row) : int(row) + 1]
        keys, values = (
            _gathered(x, one, scale, shape, torch.float64)[0] for x, scale in ((k, k_scale), (v, v_scale))
        )
        queries = q[int(row)].double().unflatten(1, (shape.kv_heads, group))
        scores = torch.einsum("mhgd,hjd->mhgj", queries, keys) * shape.dim**-0.5
        weights = scores.masked_fill(hidden[:, None, None], -torch.inf).softmax(-1)
        found.append(torch.einsum("mhgj,hjd->mhgd", weights, values).flatten(1, 2))
    return [torch.stack(found)]


def _ours() -> Callable[..., Any]:
    attention = peers.ours("paged_attention")

    def run(q: Any, k: Any, v: Any, table: Any, lengths: Any, k_scale: Any, v_scale: Any) -> Any:
        return attention(q, k, v, table, lengths, k_scale=k_scale, v_scale=v_scale)

    return run


def _torch(name: str, backend: str, shape: Shape, rows: np.ndarray) -> Implementation:
    """One backend of scaled_dot_product_attention on gathered keys, an e4m3 cache as the queries' numbers."""

    def prepare(q: Any, k: Any, v: Any, table: Any, _: Any, k_scale: Any, v_scale: Any) -> tuple[Any, ...]:
        keys = _gathered(k, table, k_scale, shape, q.dtype)
        values = _gathered(v, table, v_scale, shape, q.dtype)
        return q.transpose(1, 2).contiguous(), keys, values

    def build() -> Callable[..., Any]:
        from torch.nn.attention.bias import causal_lower_right

        seen = causal_lower_right(shape.queries, shape.keys) if shape.queries > 1 else None
        grouped = shape.heads != shape.kv_heads
        return partial(peers.attention_on(name, backend), attn_mask=seen, enable_gqa=grouped)

    return Implementation(
        name, build, prepare=prepare, outputs=lambda out: [out.transpose(1, 2)[rows]], extra=False
    )


def _flashinfer(shape: Shape, rows: np.ndarray) -> Implementation:
    """Its pools have the same order ("HND"). Planning, once for all layers of a model, is not timed."""

    def prepare(q: Any, k: Any, v: Any, table: Any, *rest: Any) -> tuple[Any, ...]:
        import torch

        flashinfer = peers.load("flashinfer", "flashinfer-python")
        columns = table.shape[1]
        room = torch.empty(WORKSPACE, dtype=torch.uint8, device=q.device)
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(room, "HND", use_tensor_cores=True)
        first = torch.arange(0, columns * (shape.sequences + 1), columns, dtype=torch.int32, device=q.device)
        of_last = torch.full_like(first[1:], (shape.keys - 1) % shape.page_size + 1)
        wrapper.plan(
            first, table.flatten(), of_last, shape.heads, shape.kv_heads, shape.dim, shape.page_size,
            q_data_type=q.dtype, kv_data_type=k.dtype,
        )  # fmt: skip
        return wrapper, q[:, 0].contiguous(), k, v

    def build() -> Callable[..., Any]:
        peers.load("flashinfer", "flashinfer-python")
        scales = dict(zip(("k_scale", "v_scale"), SCALES, strict=True)) if shape.float8 else {}
        return lambda wrapper, q, k, v: wrapper.run(q, (k, v), **scales)

    return Implementation("flashinfer", build, prepare=prepare, outputs=lambda out: [out[rows][:, None]])

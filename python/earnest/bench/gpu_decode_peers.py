# SPDX-License-Identifier: Apache-2.0
"""Who attends over pages beside ours on a GPU. torch's backends and flash-attn get the same keys and values
gathered side by side beforehand, without the pages' cost; flashinfer reads the pages themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from earnest.bench import peers
from earnest.bench.case import Implementation
from earnest.bench.gpu_attention_peers import FLASH_ATTN, ROOM, first

SCALES = (0.5, 2.0)  # of keys and of values in e4m3
FLASHINFER = "flashinfer"


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
    dtype: str = "bfloat16"

    @property
    def cache_bytes(self) -> int:
        return 2 * self.sequences * self.keys * self.kv_heads * self.dim * (1 if self.float8 else 2)

    @property
    def bytes(self) -> int:
        return self.cache_bytes + 2 * self.sequences * self.queries * self.heads * self.dim * 2

    @property
    def operations(self) -> int:
        return 4 * self.sequences * self.queries * self.keys * self.heads * self.dim


def implementations(shape: Shape, device: str, rows: np.ndarray) -> list[Implementation]:
    """rows: the sequences that are checked."""
    gather = _Gathered(shape)
    sizes = (shape.sequences, shape.heads, shape.queries, shape.keys, shape.dim)
    found = [
        _torch(name, backend, shape, rows, gather)
        for name, backend in peers.attention_backends(device, *sizes).items()
        if backend != "EFFICIENT_ATTENTION" or shape.heads == shape.kv_heads  # it takes no grouped heads
    ]
    if device == "cuda":
        found += [_flash_attn(name, module, rows, gather) for name, module in FLASH_ATTN.items()]
        found.append(_flashinfer(shape, rows))
    return found


class _Gathered:
    """Keys and values [sequences, kv_heads, keys, dim] of the pages that were asked for last: of tens of GB
    there is no room for a copy for each peer. An e4m3 cache as the queries' numbers."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._of: Any = None
        self._found: Any = None

    def __call__(self, q: Any, k: Any, v: Any, table: Any, _: Any, k_scale: Any, v_scale: Any) -> Any:
        if self._of is not k:
            scaled = ((k, k_scale), (v, v_scale))
            self._of, self._found = k, [gathered(x, table, y, self._shape, q.dtype) for x, y in scaled]
        return self._found


def gathered(pool: Any, table: Any, scale: Any, shape: Shape, dtype: Any) -> Any:
    """[sequences, kv_heads, keys, dim] as they are meant."""
    import torch

    view = pool.view(torch.uint8) if shape.float8 else pool
    found = view[table.long()].transpose(1, 2).flatten(2, 3)[:, :, : shape.keys].contiguous()
    found = found.view(pool.dtype).to(dtype)
    return found if scale is None else found * scale[:, None, None].to(dtype)


def _torch(name: str, backend: str, shape: Shape, rows: np.ndarray, gather: _Gathered) -> Implementation:
    """One backend of scaled_dot_product_attention. flash has no masks but causal ones."""
    several = shape.queries > 1

    def prepare(q: Any, *rest: Any) -> tuple[Any, ...]:
        found = q.transpose(1, 2).contiguous(), *gather(q, *rest)
        if not several:
            return found
        from torch.nn.attention.bias import causal_lower_right

        seen = causal_lower_right(shape.queries, shape.keys)
        return *found, seen if backend == "FLASH_ATTENTION" else _mask(shape, q.device)

    def build() -> Callable[..., Any]:
        run = partial(peers.attention_on(name, backend), enable_gqa=shape.heads != shape.kv_heads)
        return lambda q, k, v, mask=None: run(q, k, v, attn_mask=mask)

    return Implementation(
        name, build, prepare=prepare, outputs=lambda out: [out.transpose(1, 2)[rows]], extra=False
    )


def _mask(shape: Shape, device: Any) -> Any:
    import torch

    queries, keys = (torch.arange(n, device=device) for n in (shape.queries, shape.keys))
    return (keys <= queries[:, None] + shape.keys - shape.queries)[None, None]


def _flash_attn(name: str, module: str, rows: np.ndarray, gather: _Gathered) -> Implementation:
    def prepare(q: Any, k: Any, v: Any, table: Any, lengths: Any, *rest: Any) -> tuple[Any, ...]:
        peers.load(module, name)  # before anything is gathered for it
        found = (x.transpose(1, 2).contiguous() for x in gather(q, k, v, table, lengths, *rest))
        return q, *found, lengths

    def build() -> Callable[..., Any]:
        decode = peers.load(module, name).flash_attn_with_kvcache
        return lambda q, k, v, lengths: first(decode(q, k, v, cache_seqlens=lengths, causal=True))

    return Implementation(name, build, prepare=prepare, outputs=lambda out: [out[rows]])


def _flashinfer(shape: Shape, rows: np.ndarray) -> Implementation:
    """Its pools have the same order ("HND"). Planning, once for all layers of a model, is not timed. Several
    queries are a prompt to it."""
    several = shape.queries > 1

    def prepare(q: Any, k: Any, v: Any, table: Any, *rest: Any) -> tuple[Any, ...]:
        import torch

        flashinfer = peers.load("flashinfer", "flashinfer-python")
        room = torch.empty(ROOM, dtype=torch.uint8, device=q.device)
        ones = torch.ones(shape.sequences, dtype=torch.int32, device=q.device)
        first_pages = _steps(shape.sequences, table.shape[1], q.device)
        pages = (first_pages, table.flatten(), ones * ((shape.keys - 1) % shape.page_size + 1))
        sizes = (shape.heads, shape.kv_heads, shape.dim, shape.page_size)
        kinds = {"q_data_type": q.dtype, "kv_data_type": k.dtype}
        if several:
            wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(room, "HND")
            first_queries = _steps(shape.sequences, shape.queries, q.device)
            wrapper.plan(first_queries, *pages, *sizes, causal=True, **kinds)
        else:
            wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(room, "HND", use_tensor_cores=True)
            wrapper.plan(*pages, *sizes, **kinds)
        return wrapper, q.flatten(0, 1), k, v

    def build() -> Callable[..., Any]:
        peers.load("flashinfer", "flashinfer-python")
        scales = dict(zip(("k_scale", "v_scale"), SCALES, strict=True)) if shape.float8 else {}
        return lambda wrapper, q, k, v: wrapper.run(q, (k, v), **scales)

    return Implementation(
        FLASHINFER,
        build,
        prepare=prepare,
        outputs=lambda out: [out.unflatten(0, (shape.sequences, shape.queries))[rows]],
    )


def _steps(count: int, size: int, device: Any) -> Any:
    """0, size, 2 size, ... count size."""
    import torch

    return torch.arange(0, size * count + 1, size, dtype=torch.int32, device=device)

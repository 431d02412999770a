# SPDX-License-Identifier: Apache-2.0
"""A cache in pages, as decoding reads it and rotary_write writes it: pools k and v [pages, kv_heads,
page_size, dim] of the queries' dtype, or of float8_e4m3fn with two scales for each key head. Key j of a
sequence lies at place j % page_size of the page that its table names at j // page_size
(kernels/attention/paged_attention.h)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from earnest.errors import InvalidInput
from earnest.ops.eager import needs_gradient

DTYPES = (torch.bfloat16, torch.float16)


def check_pools(
    op: str, name: str, like: Any, k: Any, v: Any, k_scale: Tensor | None, v_scale: Tensor | None
) -> None:
    """InvalidInput where k and v cannot be the pools beside the tensor `like`, which is called `name`."""
    if not isinstance(like, Tensor) or like.dtype not in DTYPES:
        wrong(op, name, "a bfloat16 or float16 tensor", _described(like))
    if like.device.type not in ("cpu", "cuda", "meta"):
        wrong(op, name, "a tensor on cpu or cuda", like.device)
    for argument, x in (("k", k), ("v", v)):
        if not isinstance(x, Tensor) or x.device != like.device:
            wrong(op, argument, f"a tensor on {like.device} as {name}", _described(x))
        if x.dtype not in (like.dtype, torch.float8_e4m3fn):
            wrong(op, argument, f"{like.dtype} as {name}, or float8_e4m3fn", x.dtype)
        if not x.is_contiguous():
            wrong(op, argument, "a contiguous pool (a copy of it would not be the cache)", "a strided one")
    if k.ndim != 4:
        wrong(op, "k", "[pages, kv_heads, page_size, dim]", list(k.shape))
    if v.shape != k.shape or v.dtype != k.dtype:
        wrong(op, "v", f"{k.dtype} {list(k.shape)} as k", _described(v))
    scaled = k.dtype == torch.float8_e4m3fn
    for argument, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if (scale is not None) != scaled:
            wrong(op, argument, "given where the cache is float8_e4m3fn, and only there", _described(scale))
        if scale is not None:
            check_entries(op, argument, scale, torch.float32, [k.shape[1]], like)
    if needs_gradient(like, k, v, k_scale, v_scale):
        wrong(op, name, "tensors without gradients (torch.no_grad)", "one that requires them")


def check_entries(op: str, name: str, x: Any, dtype: torch.dtype, shape: Sequence[Any], like: Tensor) -> None:
    """shape: None for an axis of any size."""
    if not isinstance(x, Tensor) or x.dtype != dtype or x.ndim != len(shape):
        wrong(op, name, f"{dtype} {_of(shape)}", _described(x))
    if any(want is not None and size != want for size, want in zip(x.shape, shape, strict=True)):
        wrong(op, name, f"{dtype} {_of(shape)}", _described(x))
    if x.device != like.device:
        wrong(op, name, f"a tensor on {like.device} as the first", x.device)


def stored(pool: Tensor) -> Tensor:
    """As kernels take it: e4m3 as its bytes."""
    return pool.view(torch.uint8) if pool.dtype == torch.float8_e4m3fn else pool


def wrong(op: str, argument: str, expected: str, got: object) -> NoReturn:
    raise InvalidInput(op, argument, expected, str(got))


def _of(shape: Sequence[Any]) -> str:
    return "[" + ", ".join("n" if size is None else str(size) for size in shape) + "]"


def _described(x: Any) -> str:
    return f"{x.dtype} {list(x.shape)} on {x.device}" if isinstance(x, Tensor) else type(x).__name__

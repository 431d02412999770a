# SPDX-License-Identifier: Apache-2.0
"""Cases of what stands before attention over pages: bias, rotary positions and the write to the cache, in one
pass against torch's operators one after the other, and compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from earnest.bench import peers
from earnest.bench.case import OURS, Case, Implementation, Problem, Target
from earnest.bench.gpu_forecast import LOADING

TOLERANCE = 1e-2  # of the largest: bfloat16 rounded once, or by peers after every step
FLOAT8_TOLERANCE = 7e-2
CHECKED_TOKENS = 64
COMPILED_TOKENS = 256  # where torch.compile runs too, which takes seconds of a GPU
SETUP = 0.4  # seconds beside the timing, predicted
PAGE_SIZE, THETA, LAST = 16, 1e6, 32768


@dataclass(frozen=True)
class Shape:
    """float8: the cache is e4m3, and what is read is bfloat16."""

    tokens: int
    heads: int
    kv_heads: int
    dim: int = 128
    float8: bool = False

    @property
    def bytes(self) -> int:
        of_cache = 2 * self.kv_heads * (1 if self.float8 else 2)
        return self.tokens * self.dim * (2 * (self.heads + 2 * self.kv_heads) + 2 * self.heads + of_cache)


def cases() -> list[Case]:
    found = [case(Shape(tokens, 28, 4), quick=tokens == 256) for tokens in (1, 256, 16384)]
    return [*found, case(Shape(256, 28, 4, float8=True)), case(Shape(16384, 40, 8))]


def case(shape: Shape, quick: bool = False, device: str = "cuda") -> Case:
    ending = "e4m3" if shape.float8 else "bf16"
    return Case(
        name=f"attention/cuda-rotary-write-{shape.tokens}-{shape.heads}/{shape.kv_heads}x{shape.dim}-{ending}",
        problem=partial(_problem, shape=shape, device=device),
        shape=vars(shape),
        dtype="bfloat16",
        target=Target(ratio=1.1),
        per=(shape.tokens, "token"),
        quick=quick,
        device=device,
        kernel="rotary_write",
        setup=SETUP + (LOADING if _compiles(shape) else 0),
        compiles=_compiles(shape),
    )


def _problem(rng: np.random.Generator, shape: Shape, device: str) -> Problem:
    inputs = _inputs(rng, shape, device)
    rows = np.sort(rng.choice(shape.tokens, min(CHECKED_TOKENS, shape.tokens), replace=False))
    places = inputs[3].cpu().numpy()[rows]
    outputs = partial(_of_tokens, rows=rows, places=places, scale=inputs[4])
    entries = [
        Implementation(
            "earnest", _ours, OURS, prepare=lambda *x: (*x, *_pools(shape, device)), outputs=outputs
        )
    ]
    names = {"torch": False} | ({"torch.compile": True} if _compiles(shape) else {})
    for name, compiles in names.items():
        entries.append(
            Implementation(
                name,
                partial(_built, compiles),
                prepare=lambda *x: _for_torch(x, *_pools(shape, device)),
                outputs=outputs,
                extra=False,
                compiles=compiles,
            )
        )
    return Problem(
        inputs=[inputs],
        reference=partial(reference, shape=shape, rows=rows),
        implementations=entries,
        tolerance=FLOAT8_TOLERANCE if shape.float8 else TOLERANCE,
        bytes=shape.bytes,
    )


def _compiles(shape: Shape) -> bool:
    return shape.tokens == COMPILED_TOKENS and not shape.float8


def _pages(shape: Shape) -> int:
    return -(-shape.tokens // PAGE_SIZE) + 1


def _inputs(rng: np.random.Generator, shape: Shape, device: str) -> tuple[Any, ...]:
    """qkv, bias, positions, slots, and the scale of keys and values (None: there is none)."""
    import torch

    g = torch.Generator(device).manual_seed(int(rng.integers(1 << 31)))
    width = (shape.heads + 2 * shape.kv_heads) * shape.dim
    qkv = torch.randn(shape.tokens, width, generator=g, device=device).bfloat16()
    bias = torch.randn(width, generator=g, device=device).bfloat16()
    positions = torch.randint(LAST, (shape.tokens,), generator=g, device=device)
    slots = torch.randperm(_pages(shape) * PAGE_SIZE, generator=g, device=device)[: shape.tokens]
    scale = torch.full((shape.kv_heads,), 0.02, device=device) if shape.float8 else None
    return qkv, bias, positions, slots, scale


def _pools(shape: Shape, device: str) -> list[Any]:
    """Of each implementation its own: what another has written is not its result."""
    import torch

    dtype = torch.float8_e4m3fn if shape.float8 else torch.bfloat16
    size = (_pages(shape), shape.kv_heads, PAGE_SIZE, shape.dim)
    return [torch.zeros(size, dtype=dtype, device=device) for _ in range(2)]


def _of_tokens(result: tuple[Any, Any, Any], *, rows: Any, places: Any, scale: Any) -> list[Any]:
    """Of some tokens the queries, and what lies in their slots."""
    pages = places // PAGE_SIZE, places % PAGE_SIZE
    written = [x.float().transpose(1, 2)[pages].double() for x in result[1:]]
    return [result[0][rows], *(x if scale is None else x * scale[:, None] for x in written)]


def reference(
    qkv: Any, bias: Any, positions: Any, slots: Any, scale: Any, *, shape: Shape, rows: np.ndarray
) -> list[Any]:
    """Queries, keys and values [rows, heads, dim] in float64."""
    import torch

    kv_heads = shape.kv_heads
    x = (qkv[rows].double() + bias.double()).unflatten(1, (-1, shape.dim))
    exponents = torch.arange(0, shape.dim, 2, device=qkv.device, dtype=torch.float64) / shape.dim
    angles = (positions[rows][:, None] * THETA**-exponents)[:, None]
    first, second = x[:, :-kv_heads].chunk(2, -1)
    turned = torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1
    )
    return [turned[:, :-kv_heads], turned[:, -kv_heads:], x[:, -kv_heads:]]


def _ours() -> Callable[..., Any]:
    write = peers.ours("rotary_write")

    def run(qkv: Any, bias: Any, positions: Any, slots: Any, scale: Any, k: Any, v: Any) -> Any:
        named = {"theta": THETA, "bias": bias, "k_scale": scale, "v_scale": scale}
        return write(qkv, positions, slots, k, v, **named), k, v

    return run


def _for_torch(inputs: tuple[Any, ...], k: Any, v: Any) -> tuple[Any, ...]:
    """With tables of cosine and sine, as programs keep them, and slots as pages and places."""
    import torch

    qkv, bias, positions, slots, scale = inputs
    dim = k.shape[3]
    rates = THETA ** -(torch.arange(0, dim, 2, device=qkv.device).float() / dim)
    angles = torch.arange(LAST, device=qkv.device)[:, None] * rates
    return (
        qkv,
        bias,
        positions,
        angles.cos(),
        angles.sin(),
        slots // PAGE_SIZE,
        slots % PAGE_SIZE,
        scale,
        k,
        v,
    )


def _built(compiles: bool) -> Callable[..., Any]:
    return peers.compiled(_by_torch) if compiles else _by_torch


def _by_torch(
    qkv: Any, bias: Any, positions: Any, cosines: Any, sines: Any, pages: Any, places: Any, scale: Any,
    k: Any, v: Any,
) -> tuple[Any, Any, Any]:  # fmt: skip
    import torch

    kv_heads, dim = k.shape[1], k.shape[3]
    x = (qkv + bias).unflatten(1, (-1, dim))
    cosine, sine = cosines[positions][:, None], sines[positions][:, None]
    first, second = x[:, :-kv_heads].chunk(2, -1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1).to(qkv.dtype)
    for pool, rows in ((k, turned[:, -kv_heads:]), (v, x[:, -kv_heads:])):
        if scale is None:
            pool[pages, :, places] = rows
        else:  # whose elements torch does not scatter
            bits = (rows / scale[:, None]).clamp(-448, 448).to(pool.dtype).view(torch.uint8)
            pool.view(torch.uint8)[pages, :, places] = bits
    return turned[:, :-kv_heads], k, v

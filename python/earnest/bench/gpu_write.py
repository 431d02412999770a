# SPDX-License-Identifier: Apache-2.0
"""Cases of what stands before attention over pages: bias, rotary positions and the write to the cache, in one
pass against torch's operators one after the other, and compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from earnest.bench import peers
from earnest.bench.case import OURS, Case, Implementation, Problem, Target

TOLERANCE = 1e-2  # of the largest: bfloat16 rounded once, or by peers after every step
FLOAT8_TOLERANCE = 7e-2
CHECKED_TOKENS = 64
COMPILED_TOKENS = 256  # where torch.compile runs too, which takes seconds of a GPU
PAGE_SIZE, THETA, LAST = 16, 1e6, 32768


def cases() -> list[Case]:
    found = [case(tokens, 28, 4, quick=tokens == 256) for tokens in (1, 256, 16384)]
    return [*found, case(256, 28, 4, float8=True), case(16384, 40, 8)]


def case(
    tokens: int, heads: int, kv_heads: int, dim: int = 128, float8: bool = False, quick: bool = False,
    device: str = "cuda",
) -> Case:  # fmt: skip
    ending = "e4m3" if float8 else "bf16"
    sizes = {"tokens": tokens, "heads": heads, "kv_heads": kv_heads, "dim": dim, "float8": float8}
    return Case(
        name=f"attention/cuda-rotary-write-{tokens}-{heads}/{kv_heads}x{dim}-{ending}",
        problem=partial(_problem, **sizes, device=device),
        shape=sizes,
        dtype="bfloat16",
        target=Target(ratio=1.1),
        per=(tokens, "token"),
        quick=quick,
        device=device,
        kernel="rotary_write",
    )


def _problem(
    rng: np.random.Generator, tokens: int, heads: int, kv_heads: int, dim: int, float8: bool, device: str
) -> Problem:
    import torch

    g = torch.Generator(device).manual_seed(int(rng.integers(1 << 31)))
    width = (heads + 2 * kv_heads) * dim
    qkv, bias = (torch.randn(*n, generator=g, device=device).bfloat16() for n in ((tokens, width), (width,)))
    positions = torch.randint(LAST, (tokens,), generator=g, device=device)
    pages = -(-tokens // PAGE_SIZE) + 1
    slots = torch.randperm(pages * PAGE_SIZE, generator=g, device=device)[:tokens]
    scale = torch.full((kv_heads,), 0.02, device=device) if float8 else None
    rows = torch.from_numpy(np.sort(rng.choice(tokens, min(CHECKED_TOKENS, tokens), replace=False))).to(
        device
    )
    sizes = (pages, kv_heads, PAGE_SIZE, dim)
    number = torch.float8_e4m3fn if float8 else torch.bfloat16

    def pools() -> tuple[Any, Any]:
        """Of each implementation its own: what another has written is not its result."""
        k, v = (torch.zeros(sizes, dtype=number, device=device) for _ in range(2))
        return k, v

    def outputs(result: tuple[Any, Any, Any]) -> list[Any]:
        """Of some tokens the queries, and what lies in their slots."""
        places = slots[rows] // PAGE_SIZE, slots[rows] % PAGE_SIZE
        written = [x.float().transpose(1, 2)[places].double() for x in result[1:]]
        return [result[0][rows], *(x if scale is None else x * scale[:, None] for x in written)]

    named = {"bias": bias, "k_scale": scale, "v_scale": scale}
    entries = [
        Implementation(
            "earnest",
            lambda: _ours(named),
            OURS,
            prepare=lambda *inputs: (*inputs, *pools()),
            outputs=outputs,
        )
    ]
    peers_of = {"torch": False} | ({"torch.compile": True} if tokens == COMPILED_TOKENS else {})
    for name, compiles in peers_of.items():
        entries.append(
            Implementation(
                name,
                partial(_built, compiles),
                prepare=lambda *inputs: _for_torch(*inputs, bias, scale, *pools()),
                outputs=outputs,
                extra=False,
                compiles=compiles,
            )
        )
    return Problem(
        inputs=[(qkv, positions, slots)],
        reference=lambda qkv, positions, slots: reference(qkv[rows], bias, positions[rows], kv_heads, dim),
        implementations=entries,
        tolerance=FLOAT8_TOLERANCE if float8 else TOLERANCE,
        bytes=2 * tokens * width + tokens * dim * (2 * heads + 2 * kv_heads * (1 if float8 else 2)),
    )


def reference(qkv: Any, bias: Any, positions: Any, kv_heads: int, dim: int) -> list[Any]:
    """Queries, keys and values [rows, heads, dim] in float64."""
    import torch

    x = (qkv.double() + bias.double()).unflatten(1, (-1, dim))
    rates = THETA ** -(torch.arange(0, dim, 2, device=qkv.device, dtype=torch.float64) / dim)
    angles = (positions[:, None] * rates)[:, None]
    first, second = x[:, :-kv_heads].chunk(2, -1)
    turned = torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1
    )
    return [turned[:, :-kv_heads], turned[:, -kv_heads:], x[:, -kv_heads:]]


def _ours(named: dict[str, Any]) -> Callable[..., Any]:
    write = peers.ours("rotary_write")

    def run(qkv: Any, positions: Any, slots: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
        return write(qkv, positions, slots, k, v, theta=THETA, **named), k, v

    return run


def _for_torch(
    qkv: Any, positions: Any, slots: Any, bias: Any, scale: Any, k: Any, v: Any
) -> tuple[Any, ...]:
    """With tables of cosine and sine, as programs keep them, and slots as pages and places."""
    import torch

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

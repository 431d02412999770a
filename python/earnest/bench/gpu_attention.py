# SPDX-License-Identifier: Apache-2.0
"""Cases of attention on a GPU, forward, against every backend that torch has there, each tile of ours beside
the one that is chosen. Decoding over pages stands in gpu_decode.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from earnest.bench import gpu_attention_backward, gpu_decode, peers
from earnest.bench.attention import DIALOGUES, Shape, _packed, _padded, _short_lengths
from earnest.bench.case import ALSO, OURS, Absent, Case, Implementation, Problem, Target

TOLERANCE = 2e-2  # absolute, for bfloat16 of order 1
CHECKED_ROWS = 64  # float64 for all of them would take longer than the measurement
SCHEDULES = ("series", "turns", "ahead", "both", "wide")  # of path sm90a; its own choice is one of them


def cases() -> list[Case]:
    found = []
    for dim in (128, 64):
        target = Target(ratio=1.0, against=peers.CUDNN) if dim == 128 else Target(ratio=1.0)
        for tokens in (2048, 8192, 16_384):
            for causal in (False, True):
                shape = Shape((tokens,) * (16_384 // tokens), 16, 16, dim, causal)
                kind = "causal" if causal else "full"
                name = f"{len(shape.lengths)}x{tokens}-{kind}-16/16x{dim}"
                found.append(case(name, shape, target, quick=tokens == 2048))
    for heads, kv_heads in ((28, 4), (40, 8)):
        shape = Shape(DIALOGUES, heads, kv_heads, 128)
        found.append(case(f"ragged-16x200-8000-causal-{heads}/{kv_heads}x128", shape, Target(ratio=1.2)))
    found.append(case("64x1500-full-20/20x64", Shape((1500,) * 64, 20, 20, 64, False), Target(ratio=1.1)))
    for tokens in (128, 512):
        found.append(case(f"1x{tokens}-causal-28/4x128", Shape((tokens,), 28, 4, 128), Target(ratio=1.0)))
    found += gpu_decode.cases()
    # Last: nothing has executed that path yet.
    for dim, causal, rate in ((128, False, 620e12), (128, True, 560e12), (64, True, 450e12)):
        shape, kind = Shape((8192,) * 2, 16, 16, dim, causal), "causal" if causal else "full"
        target = Target(seconds=shape.operations / rate)
        found.append(case(f"sm90a-2x8192-{kind}-16/16x{dim}", shape, target, path="sm90a"))
    return gpu_attention_backward.cases() + found


def case(
    name: str,
    shape: Shape,
    target: Target | None = None,
    quick: bool = False,
    device: str = "cuda",
    path: str = "best",
) -> Case:
    """path: other than the best, which is by name; with it go no tiles of other sizes."""
    return Case(
        name=f"attention/cuda-{name}",
        problem=partial(_problem, shape=shape, device=device, path=path),
        shape=vars(shape) | {"lengths": _short_lengths(shape.lengths), "pass": "forward"},
        dtype="bfloat16",
        target=target or Target(),
        quick=quick,
        device=device,
    )


def _problem(rng: np.random.Generator, shape: Shape, device: str, path: str) -> Problem:
    import torch

    g, tokens = torch.Generator(device).manual_seed(int(rng.integers(1 << 31))), sum(shape.lengths)
    inputs = tuple(
        torch.randn(tokens, heads, shape.dim, generator=g, device=device).bfloat16()
        for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
    )
    rows = np.sort(rng.choice(tokens, min(CHECKED_ROWS, tokens), replace=False))
    if path == "best":
        entries = [_ours("earnest", OURS, shape, device, rows)]
        for n in (64, 128):
            entries.append(_ours(f"earnest, tiles of {n}", ALSO, shape, device, rows, tile_rows=n))
    else:
        entries = [_ours(f"earnest, {path}", OURS, shape, device, rows, path=path)]
        for schedule in SCHEDULES:
            name = f"earnest, {path}, {schedule}"
            entries.append(_ours(name, ALSO, shape, device, rows, path=path, schedule=schedule))
    for name, backend in peers.attention_backends(device).items():
        entries.append(_torch(name, backend, shape, rows, expanded=False))
        if shape.heads != shape.kv_heads:
            entries.append(_torch(f"{name}, heads expanded", backend, shape, rows, expanded=True))
    if device == "cuda" and len(set(shape.lengths)) > 1:
        entries.append(_varlen(shape, device, rows))
    return Problem(
        inputs=[inputs],
        reference=partial(reference, shape=shape, rows=rows),
        implementations=entries,
        tolerance=TOLERANCE,
        bytes=2 * tokens * shape.dim * 2 * (shape.heads + shape.kv_heads),
        operations=shape.operations,
    )


def reference(q: Any, k: Any, v: Any, *, shape: Shape, rows: np.ndarray) -> list[Any]:
    """Some rows of softmax(q k^T / sqrt(dim)) v by its definition in float64."""
    import torch

    ends = np.cumsum(shape.lengths)
    found, group = [], shape.heads // shape.kv_heads
    for row in rows:
        n = int(np.searchsorted(ends, row, side="right"))
        begin, end = int(ends[n]) - shape.lengths[n], int(row) + 1 if shape.causal else int(ends[n])
        keys, values = (x[begin:end].double().repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("hd,jhd->hj", q[int(row)].double(), keys) * shape.dim**-0.5
        found.append(torch.einsum("hj,jhd->hd", scores.softmax(1), values))
    return [torch.stack(found)]


def _ours(
    name: str, role: str, shape: Shape, device: str, rows: np.ndarray, **variant: Any
) -> Implementation:  # fmt: skip
    """Sequences of equal length by a leading axis, others by their bounds."""
    equal = len(set(shape.lengths)) == 1

    def build() -> Callable[..., Any]:
        import torch

        from earnest.ops import cuda
        from earnest.ops.attention import _forward_on_cuda

        attention = peers.ours("attention")
        ends = np.cumsum(shape.lengths)
        bounds = None if equal else torch.tensor([0, *ends], dtype=torch.int32).to(device)
        if not variant:
            return lambda q, k, v: attention(q, k, v, causal=shape.causal, cu_seqlens_q=bounds)
        if not cuda.takes(torch.empty(0, device=device)):
            raise Absent("variants are the GPU's")
        rest = (bounds, bounds, None, shape.causal, shape.dim**-0.5)

        def run(q: Any, k: Any, v: Any) -> Any:
            try:
                return _forward_on_cuda(q, k, v, *rest, **variant)[0]
            except RuntimeError as error:
                if "] path: expected" in str(error):
                    raise Absent(str(error)) from None
                raise

        return run

    return Implementation(
        name,
        build,
        role,
        prepare=lambda *x: tuple(y.unflatten(0, (-1, shape.lengths[0])) if equal else y for y in x),
        outputs=lambda out: [(out.flatten(0, 1) if equal else out)[rows]],
    )


def _torch(
    name: str, backend: str, shape: Shape, rows: np.ndarray, expanded: bool
) -> Implementation:  # fmt: skip
    """One backend of scaled_dot_product_attention, on a padded batch where lengths differ."""
    group = shape.heads // shape.kv_heads

    def build() -> Callable[..., Any]:
        grouped = group > 1 and not expanded
        return partial(peers.attention_on(name, backend), is_causal=shape.causal, enable_gqa=grouped)

    return Implementation(
        name,
        build,
        prepare=lambda *x: _padded(x, shape, group if expanded else 1),
        outputs=lambda out: [_packed(out, shape)[rows]],
        extra=False,
    )


def _varlen(shape: Shape, device: str, rows: np.ndarray) -> Implementation:
    def build() -> Callable[..., Any]:
        import torch

        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError:
            raise Absent("torch.nn.attention.varlen: this torch has none") from None
        bounds = torch.tensor([0, *np.cumsum(shape.lengths)], dtype=torch.int32).to(device)
        most, window = max(shape.lengths), (-1, 0) if shape.causal else (-1, -1)
        grouped = shape.heads != shape.kv_heads
        return lambda q, k, v: varlen_attn(
            q, k, v, bounds, bounds, most, most, window_size=window, enable_gqa=grouped
        )

    return Implementation("torch, varlen", build, outputs=lambda out: [out[rows]], extra=False)

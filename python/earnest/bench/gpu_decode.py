# SPDX-License-Identifier: Apache-2.0
"""Cases of decoding over pages on a GPU. The limit is what the bytes of keys and values take at the rate of a
copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from earnest.bench import gpu_attention_paths, gpu_decode_peers, gpu_forecast, gpu_write, peers
from earnest.bench.case import ALSO, OURS, Absent, Case, Implementation, Problem, Target
from earnest.bench.gpu_attention_shape import SHORT
from earnest.bench.gpu_decode_peers import SCALES, Shape, gathered
from earnest.errors import InvalidInput

TOLERANCE = 2e-2  # of the largest result, which is the smaller the more keys are averaged
CHECKED_SEQUENCES = 4  # float64 for all of them would take longer than the measurement
LARGE = 2_000_000_000  # bytes of keys and values from which on the copy's rate is asked for


class Variant(NamedTuple):
    """What ours may be asked for: keys of a piece, and tiles in shared memory (0: by rule)."""

    piece_keys: int = 512
    stages: int = 0

    @property
    def name(self) -> str:
        pieces = f", pieces of {self.piece_keys}" if self.piece_keys != 512 else ""
        return f"earnest{pieces}" + (f", {self.stages} tiles" if self.stages else "")


LONGER = (Variant(1024), Variant(2048))
# Where they decide: one sequence has few pieces; many are all bytes; eight queries leave much behind a piece.
VARIANTS = {
    Shape(1, 65536, 28, 4): (Variant(256), *LONGER),
    Shape(1, 8192, 28, 4): (Variant(256), Variant(stages=2)),
    Shape(64, 16384, 28, 4): (*LONGER, Variant(stages=3), Variant(stages=4)),
    Shape(64, 16384, 28, 4, queries=8): (*LONGER, Variant(stages=2)),
}


def cases() -> list[Case]:
    """The sizes whose rate is asked for first, then few and short sequences, several queries, other types."""
    large = ((64, 16384), (256, 4096), (16, 65536), (256, 16384))
    small = ((1, 1024), (1, 8192), (1, 65536), (16, 8192), (32, 1024), (256, 1024))
    found = [case(Shape(*size, 28, 4), quick=size == (256, 1024)) for size in (*large, *small)]
    found += [case(Shape(64, 16384, 28, 4, queries=queries)) for queries in range(2, 9)]
    found += [case(Shape(n, keys, 40, 8)) for n, keys in ((64, 8192), (1, 65536))]
    found += [case(Shape(n, keys, 28, 4, float8=True)) for n, keys in ((64, 32768), (256, 8192), (1, 65536))]
    found.append(case(Shape(64, 16384, 28, 4, dtype="float16")))
    found.append(case(Shape(64, 16384, 28, 4, page_size=256)))
    found += [case(Shape(1, 65536, 28, 4, queries=8)), case(Shape(16, 8192, 28, 4, queries=8))]
    return [*found, *gpu_write.cases(), case(Shape(256, 65536, 28, 4))]  # the last one is 34 GB


def case(shape: Shape, quick: bool = False, device: str = "cuda") -> Case:
    more = f"-{shape.queries}-queries" if shape.queries > 1 else ""
    more += f"-pages-of-{shape.page_size}" if shape.page_size != 16 else ""
    keys = f"{shape.keys // 1024}k" if shape.keys >= 1024 else f"{shape.keys}"
    ending = "e4m3" if shape.float8 else SHORT[shape.dtype]
    return Case(
        name=f"attention/cuda-decode-{shape.sequences}x{keys}-{shape.heads}/{shape.kv_heads}x{shape.dim}"
        f"-{ending}{more}",
        problem=partial(_problem, shape=shape, device=device),
        shape=vars(shape),
        dtype=shape.dtype,
        target=_wanted(shape),
        per=(shape.sequences * shape.queries, "token"),
        quick=quick,
        device=device,
        kernel="paged_attention",
        setup=gpu_forecast.setup(
            shape, _entries(shape, device, np.zeros(0, int)), drawn=4 * shape.cache_bytes
        ),
    )


def _wanted(shape: Shape) -> Target:
    """Of e4m3 by flashinfer, which reads such pages too; where it is not there by torch's flash, that gets
    keys as numbers twice as long: the record says by whom."""
    return Target(
        ratio=1.1,
        against=gpu_decode_peers.FLASHINFER if shape.float8 else "",
        instead="torch, flash" if shape.float8 else "",
        fraction=0.85 if shape.cache_bytes >= LARGE else None,
    )


def _problem(rng: np.random.Generator, shape: Shape, device: str) -> Problem:
    rows = np.sort(rng.choice(shape.sequences, min(CHECKED_SEQUENCES, shape.sequences), replace=False))
    return Problem(
        inputs=[_inputs(rng, shape, device)],
        reference=partial(reference, shape=shape, rows=rows),
        implementations=_entries(shape, device, rows),
        tolerance=TOLERANCE,
        bytes=shape.bytes,
        operations=shape.operations,
    )


def _entries(shape: Shape, device: str, rows: np.ndarray) -> list[Implementation]:
    ours = Implementation("earnest", _ours, OURS, outputs=lambda out: [out[rows]])
    return [
        ours,
        *variants(VARIANTS.get(shape, ()), device, rows),
        *gpu_decode_peers.implementations(shape, device, rows),
    ]


def variants(asked: Sequence[Variant], device: str, rows: np.ndarray) -> list[Implementation]:
    """Beside the one that is judged. On the CPU, where nothing emulates a GPU, there are none."""
    if not gpu_attention_paths.has_paths(device):
        return []
    return [
        Implementation(one.name, partial(_variant, one), ALSO, outputs=lambda out: [out[rows]])
        for one in asked
    ]


def _inputs(rng: np.random.Generator, shape: Shape, device: str) -> tuple[Any, ...]:
    """q [sequences, queries, heads, dim], the pools, a table of pages in any order, lengths, scales."""
    import torch

    g = torch.Generator(device).manual_seed(int(rng.integers(1 << 31)))
    number = torch.float8_e4m3fn if shape.float8 else getattr(torch, shape.dtype)
    columns = -(-shape.keys // shape.page_size)
    pages = shape.sequences * columns
    of_q = (shape.sequences, shape.queries, shape.heads, shape.dim)
    q = torch.randn(of_q, generator=g, device=device).to(getattr(torch, shape.dtype))
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
            gathered(x, one, scale, shape, torch.float64)[0] for x, scale in ((k, k_scale), (v, v_scale))
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


def _variant(asked: Variant) -> Callable[..., Any]:
    from earnest.ops.paged_attention import _attend

    def run(q: Any, k: Any, v: Any, table: Any, lengths: Any, k_scale: Any, v_scale: Any) -> Any:
        arrays = (q.flatten(0, 1), k, v, table, lengths, None, k_scale, v_scale)
        try:
            return _attend(*arrays, q.shape[1], q.shape[-1] ** -0.5, *asked).view(q.shape)
        except InvalidInput as refused:  # tiles that this GPU's shared memory does not hold
            raise Absent(str(refused)) from None

    return run

# SPDX-License-Identifier: Apache-2.0
"""Cases of attention on a GPU: the forward pass, each path of ours beside every peer there (the backward pass
is gpu_attention_backward.py's, decoding gpu_decode.py's). The first cases are those that the project has
promised something of, as a run may end before the last one."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from earnest.bench import gpu_attention_backward, gpu_attention_paths, gpu_decode, gpu_forecast, peers
from earnest.bench.attention import DIALOGUES
from earnest.bench.case import Case, Implementation, Problem, Target
from earnest.bench.gpu_attention_peers import Form, forms
from earnest.bench.gpu_attention_shape import Shape, batch, drawn, name_of

TOLERANCE = 2e-2  # absolute, for numbers of order 1
CHECKED_ROWS = 32  # float64 for all of them would take longer than the measurement
RATES = {(128, False): 620e12, (128, True): 560e12, (64, False): 450e12, (64, True): 450e12}  # wanted at 8k


def cases() -> list[Case]:
    promised = [_promised(tokens, dim, causal) for dim in (128, 64) for tokens, causal in SIZES]
    ragged = [case(Shape(DIALOGUES, *heads, 128), Target(ratio=1.2)) for heads in ((28, 4), (40, 8))]
    encoder = case(Shape((1500,) * 64, 20, 20, 64, causal=False), Target(ratio=1.1))
    brief = [case(shape, Target(ratio=1.0)) for tokens in (128, 256, 512) for shape in _brief(tokens)]
    return [
        *promised,
        *gpu_attention_backward.promised(),
        *ragged,
        encoder,
        *brief,
        *gpu_decode.cases(),
        case(batch(8192, dtype="float16")),
        *chunks(),
        *gpu_attention_backward.others(),
        *schedules(),
    ]


SIZES = [(tokens, causal) for tokens in (8192, 16_384, 4096, 2048) for causal in (False, True)]


def _promised(tokens: int, dim: int, causal: bool) -> Case:
    shape = batch(tokens, dim=dim, causal=causal)
    seconds = shape.operations / RATES[dim, causal] if tokens == 8192 else None
    against = peers.CUDNN if dim == 128 else ""
    return case(shape, Target(ratio=1.0, against=against, seconds=seconds), quick=tokens == 2048)


def _brief(tokens: int) -> list[Shape]:
    """One sequence of the decoder's heads, one of the encoder's."""
    return [Shape((tokens,), 28, 4, 128), Shape((tokens,), 20, 20, 64, causal=False)]


def chunks() -> list[Case]:
    """Prompts in chunks: 512 tokens after 7.5k of one sequence and of eight, and chunks that all differ."""
    lengths, prefixes = zip(*((64 + 32 * i, 512 * (15 - i)) for i in range(16)), strict=True)
    shapes = [Shape((512,) * n, 28, 4, 128, prefixes=(7680,) * n) for n in (1, 8)]
    shapes.append(Shape(lengths, 28, 4, 128, prefixes=prefixes))
    return [case(shape, kind="chunks") for shape in shapes]


def schedules() -> list[Case]:
    """Of equal sequences, of dialogues, and of one that few blocks have something of."""
    alike = [batch(8192, causal=False), batch(8192), batch(8192, dim=64, causal=False)]
    shapes = [*alike, Shape(DIALOGUES, 28, 4, 128), Shape((256,), 28, 4, 128)]
    return [case(shape, kind="schedules") for shape in shapes]


def case(
    shape: Shape,
    target: Target | None = None,
    quick: bool = False,
    device: str = "cuda",
    kind: str = "forward",
) -> Case:
    """kind: what the name begins with; "schedules" times all that ours has, beside cudnn alone."""
    every = kind == "schedules"
    return Case(
        name=f"attention/cuda-{kind}-{name_of(shape)}",
        problem=partial(_problem, shape=shape, device=device, every=every),
        shape=shape.described() | {"pass": "forward"},
        dtype=shape.dtype,
        target=target or Target(),
        quick=quick,
        device=device,
        setup=gpu_forecast.setup(shape, _entries(shape, device, every, np.zeros(0, int))),
    )


def _problem(rng: np.random.Generator, shape: Shape, device: str, every: bool) -> Problem:
    tokens = sum(shape.lengths)
    rows = np.sort(rng.choice(tokens, min(CHECKED_ROWS, tokens), replace=False))
    return Problem(
        inputs=[drawn(rng, shape, device)],
        reference=partial(reference, shape=shape, rows=rows),
        implementations=_entries(shape, device, every, rows),
        tolerance=TOLERANCE,
        bytes=shape.bytes,
        operations=shape.operations,
    )


def _entries(shape: Shape, device: str, every: bool, rows: np.ndarray) -> list[Implementation]:
    beside = [
        form for form in forms(shape, device) if not every or form.name == peers.CUDNN or device == "cpu"
    ]
    return [*gpu_attention_paths.forward(shape, device, rows, every), *(_peer(form, rows) for form in beside)]


def _peer(form: Form, rows: np.ndarray) -> Implementation:
    return Implementation(
        form.name,
        partial(form.build, False),
        prepare=form.prepare,
        outputs=lambda out: [form.packed(out, False)[rows]],
        extra=form.extra,
        padding=form.padding,
    )


def reference(q: Any, k: Any, v: Any, *, shape: Shape, rows: np.ndarray) -> list[Any]:
    """Some rows of softmax(q k^T / sqrt(dim)) v by its definition in float64."""
    import torch

    ends, key_ends = np.cumsum(shape.lengths), np.cumsum(shape.key_lengths)
    found, group = [], shape.heads // shape.kv_heads
    for row in rows:
        n = int(np.searchsorted(ends, row, side="right"))
        begin = int(key_ends[n]) - shape.key_lengths[n]
        seen = shape.key_lengths[n] - (int(ends[n]) - 1 - int(row) if shape.causal else 0)
        keys, values = (x[begin : begin + seen].double() for x in (k, v))
        queries = q[int(row)].double().unflatten(0, (shape.kv_heads, group))
        scores = torch.einsum("kgd,jkd->kgj", queries, keys) * shape.dim**-0.5
        found.append(torch.einsum("kgj,jkd->kgd", scores.softmax(2), values).flatten(0, 1))
    return [torch.stack(found)]

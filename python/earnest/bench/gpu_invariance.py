# SPDX-License-Identifier: Apache-2.0
"""What attention pays on a GPU for batch invariance: the engine's prompts, pieces of prompts and steps, with
keys in pieces of 512, each a softmax of its own, as it asks for (attention::Params::most_keys), beside one
softmax over all keys, by each of our paths. With pieces a prompt has the bits that its tokens would have one
by one, and many blocks share the keys of a step; what they cost a prompt is what stands here. What matrix
products pay is in gpu_engine.py and gpu_linear.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from earnest.bench import gpu_attention_paths, peers
from earnest.bench.case import ALSO, OURS, Absent, Case, Implementation, Problem
from earnest.bench.gpu_attention import CHECKED_ROWS, TOLERANCE
from earnest.bench.gpu_forecast import BRIEF


@dataclass(frozen=True)
class Shape:
    """So many sequences, each of which ends with its queries."""

    sequences: int
    queries: int
    keys: int
    heads: int = 28
    kv_heads: int = 4
    dim: int = 128

    @property
    def name(self) -> str:
        return f"{self.sequences}x{self.queries}-of-{self.keys}-{self.heads}/{self.kv_heads}x{self.dim}"

    @property
    def scores(self) -> int:
        """Keys that all queries of a head see."""
        before = self.keys - self.queries
        return self.sequences * (self.queries * before + self.queries * (self.queries + 1) // 2)


SHAPES = (
    Shape(1, 2048, 2048),  # a prompt
    Shape(1, 8192, 8192),
    Shape(1, 256, 8192),  # a piece of one beside answers
    Shape(8, 1, 8192),  # a step
)


def cases() -> list[Case]:
    return [case(shape) for shape in SHAPES]


def case(shape: Shape, device: str = "cuda") -> Case:
    return Case(
        name=f"engine/cuda-pieces-{shape.name}",
        problem=partial(_problem, shape=shape, device=device),
        shape=vars(shape),
        dtype="bfloat16",
        device=device,
        kernel="attention",
        setup=BRIEF,
    )


def _problem(rng: np.random.Generator, shape: Shape, device: str) -> Problem:
    import torch

    g = torch.Generator(device).manual_seed(int(rng.integers(1 << 31)))
    tokens = shape.sequences * shape.queries
    rows = np.sort(rng.choice(tokens, min(CHECKED_ROWS, tokens), replace=False))
    inputs = tuple(
        torch.randn(shape.sequences, count, heads, shape.dim, generator=g, device=device).bfloat16()
        for count, heads in (
            (shape.queries, shape.heads),
            (shape.keys, shape.kv_heads),
            (shape.keys, shape.kv_heads),
        )
    )
    return Problem(
        inputs=[inputs],
        reference=partial(reference, rows=rows),
        implementations=[
            *_ours(shape, rows, device),
            _torch(shape, rows),
        ],
        tolerance=TOLERANCE,
        bytes=2 * shape.dim * (2 * tokens * shape.heads + 2 * shape.sequences * shape.keys * shape.kv_heads),
        operations=4 * shape.scores * shape.heads * shape.dim,
    )


def reference(q: Any, k: Any, v: Any, *, rows: np.ndarray) -> list[Any]:
    """Some rows of softmax(q k^T / sqrt(dim)) v by its definition in float64; a query sees the keys up to its
    own."""
    import torch

    queries, heads, dim = q.shape[1:]
    before, group = k.shape[1] - queries, heads // k.shape[2]
    found = []
    for sequence, query in zip(*np.divmod(rows, queries), strict=True):
        seen = before + int(query) + 1
        keys, values = (x[sequence, :seen].double().repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("hd,jhd->hj", q[sequence, query].double(), keys) * dim**-0.5
        found.append(torch.einsum("hj,jhd->hd", scores.softmax(1), values))
    return [torch.stack(found)]


def _ours(shape: Shape, rows: np.ndarray, device: str) -> list[Implementation]:
    """By each path with pieces and without. Of path sm90a one schedule alone has pieces, wide, so that it is
    the one without them too. On the CPU keys always go in pieces, and there is no other way."""
    if not gpu_attention_paths.has_paths(device):
        return [
            _entry("earnest", OURS, lambda: partial(peers.ours("attention"), causal=True), rows),
            _entry("earnest, one softmax", ALSO, _refused, rows),
        ]
    found = []
    for path, schedule in (("sm80", "best"), ("sm90a", "wide")):
        for ending, role, most_keys in (("", OURS, shape.keys), (", one softmax", ALSO, 0)):
            build = partial(_by_path, shape, path=path, schedule=schedule, most_keys=most_keys)
            found.append(_entry(f"earnest, {path}{ending}", role, build, rows))
    return found


def _entry(name: str, role: str, build: Callable[[], Callable[..., Any]], rows: np.ndarray) -> Implementation:
    return Implementation(name, build, role, outputs=partial(_chosen, rows=rows), extra=False)


def _by_path(shape: Shape, *, path: str, **asked: Any) -> Callable[..., Any]:
    from earnest.ops.attention import _forward_on_cuda

    gpu_attention_paths.asked_for(path)
    asked |= {"path": path}

    def run(q: Any, k: Any, v: Any) -> Any:
        return _forward_on_cuda(q, k, v, None, None, None, True, shape.dim**-0.5, **asked)[0]

    return peers.unless_refused(run)


def _refused() -> Callable[..., Any]:
    raise Absent("variants are the GPU's")


def _torch(shape: Shape, rows: np.ndarray) -> Implementation:
    """Where there are queries as many as keys, or one: else its causal mask is not this one."""

    def build() -> Callable[..., Any]:
        from torch.nn.functional import scaled_dot_product_attention

        if shape.queries not in (1, shape.keys):
            raise Absent("torch's causal mask begins at the first key")
        causal = shape.queries > 1

        def run(q: Any, k: Any, v: Any) -> Any:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True).transpose(1, 2)

        return run

    return Implementation("torch", build, outputs=partial(_chosen, rows=rows), extra=False)


def _chosen(out: Any, *, rows: np.ndarray) -> list[Any]:
    return [out.flatten(0, 1)[rows]]

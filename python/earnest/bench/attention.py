# SPDX-License-Identifier: Apache-2.0
"""Cases of attention over whole sequences: causal with grouped heads, encoders, the demo's ragged batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from earnest.bench import decode, peers
from earnest.bench.case import OURS, Case, Implementation, Problem, Target

SHORT = {"float32": "fp32", "bfloat16": "bf16"}
# Absolute, for entries of order 1: as in tests/tolerances.py, forward and with gradients.
TOLERANCE = {
    ("float32", False): 1e-5,
    ("float32", True): 1e-4,
    ("bfloat16", False): 2e-2,
    ("bfloat16", True): 1e-1,
}
DIALOGUES = tuple(200 + 520 * i for i in range(16))
RAGGED = [60 + 40 * i // 127 for i in range(128)]  # sequences of the demo's update


@dataclass(frozen=True)
class Shape:
    lengths: tuple[int, ...]
    heads: int
    kv_heads: int
    dim: int
    causal: bool = True

    @property
    def operations(self) -> int:
        """Of the forward pass, two products; what the mask hides is not counted."""
        pairs = sum(n * n // (2 if self.causal else 1) for n in self.lengths)
        return 4 * pairs * self.heads * self.dim


def cases() -> list[Case]:
    found = []
    for heads, kv_heads, dim in ((14, 2, 64), (28, 4, 128)):
        for dtype in ("bfloat16", "float32"):
            for tokens in (512, 2048):
                shape = Shape((tokens,), heads, kv_heads, dim)
                name = f"causal-{tokens}-{heads}/{kv_heads}x{dim}"
                found.append(case(name, shape, dtype, Target(ratio=1.25), quick=tokens == 512 and dim == 64))
            target = Target(ratio=2.5 if dtype == "bfloat16" else 2.2)
            found.append(case(name, shape, dtype, target, gradients=True))
    for tokens in (750, 1500):
        shape = Shape((tokens,), 20, 20, 64, causal=False)
        found.append(case(f"encoder-{tokens}-20x64", shape, "bfloat16", Target(ratio=1.25)))
    demo = Shape(tuple(RAGGED), 6, 2, 32)
    found.append(case("demo-128x(60-100)-6/2x32", demo, "float32", Target(), quick=True))
    found.append(case("demo-128x(60-100)-6/2x32", demo, "float32", Target(), gradients=True))
    return found + decode.cases()


def case(
    name: str, shape: Shape, dtype: str, target: Target, gradients: bool = False, quick: bool = False
) -> Case:
    ending = "forward+backward" if gradients else "forward"
    return Case(
        name=f"attention/{name}-{SHORT[dtype]}-{ending}",
        problem=lambda rng: _problem(rng, shape, dtype, gradients),
        shape=vars(shape) | {"lengths": _short_lengths(shape.lengths), "pass": ending},
        dtype=dtype,
        threads=2,
        target=target,
        quick=quick,
    )


def _short_lengths(lengths: Sequence[int]) -> Any:
    return list(lengths) if len(lengths) <= 4 else f"{len(lengths)} x {min(lengths)}-{max(lengths)}"


def _problem(rng: np.random.Generator, shape: Shape, dtype: str, gradients: bool) -> Problem:
    tokens, size = sum(shape.lengths), 4 if dtype == "float32" else 2
    once = size * tokens * shape.dim * 2 * (shape.heads + shape.kv_heads)  # q and out, k and v

    def one() -> tuple:
        heads = (shape.heads, shape.kv_heads, shape.kv_heads, shape.heads)
        return tuple(peers.random_tensor(rng, tokens, h, shape.dim, dtype=dtype) for h in heads)

    grouped = shape.heads != shape.kv_heads
    found = [
        Implementation(
            "earnest",
            lambda: _ours(shape, gradients),
            OURS,
            prepare=_leaves if gradients else _first_three,
            outputs=list if gradients else lambda result: [result],
        ),
        _torch(shape, gradients, expanded=False),
    ]
    if grouped:
        found.append(_torch(shape, gradients, expanded=True))
    if not gradients and len(set(shape.lengths)) == 1:  # it has no backward, and nothing for ragged batches
        found.append(
            Implementation(
                "zentorch",
                lambda: _zentorch(shape.causal),
                prepare=lambda *x: _padded(x[:3], shape, 1),
                outputs=lambda result: [_packed(result[0], shape)],
            )
        )
    return Problem(
        inputs=[one() for _ in range(peers.sets_beyond_caches(once, most=8))],
        reference=lambda *inputs: reference(*inputs, shape=shape, gradients=gradients),
        implementations=found,
        tolerance=TOLERANCE[dtype, gradients],
        bytes=once * (3 if gradients else 1),
        operations=shape.operations * (7 if gradients else 2) // 2,  # five more products backward
    )


def reference(q: Any, k: Any, v: Any, grad_out: Any, *, shape: Shape, gradients: bool) -> list[Any]:
    """softmax(q k^T / sqrt(dim)) v by its definition in float64, a head at a time, with autograd."""
    import torch

    q, k, v, grad_out = (x.double() for x in (q, k, v, grad_out))
    out, grads = torch.empty_like(q), [torch.zeros_like(x) for x in (q, k, v)]
    group, begin = shape.heads // shape.kv_heads, 0
    for length in shape.lengths:
        part = slice(begin, begin + length)
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        for h in range(shape.heads):
            leaves = [
                x[part, i].detach().requires_grad_() for x, i in ((q, h), (k, h // group), (v, h // group))
            ]
            scores = leaves[0] @ leaves[1].T * shape.dim**-0.5
            if shape.causal:
                scores = scores.masked_fill(hidden, -torch.inf)
            result = scores.softmax(-1) @ leaves[2]
            out[part, h] = result.detach()
            if gradients:
                found = torch.autograd.grad(result, leaves, grad_out[part, h])
                for grad, i, x in zip(grads, (h, h // group, h // group), found, strict=True):
                    grad[part, i] += x
        begin += length
    return [out, *grads] if gradients else [out]


def _first_three(*inputs: Any) -> tuple:
    return inputs[:3]


def _leaves(*inputs: Any) -> tuple:
    return (*(x.detach().requires_grad_() for x in inputs[:3]), inputs[3])


def _ours(shape: Shape, gradients: bool) -> Callable[..., Any]:
    import torch

    attention = peers.ours("attention")
    bounds = torch.tensor([0, *np.cumsum(shape.lengths)], dtype=torch.int32)

    def forward(q: Any, k: Any, v: Any) -> Any:
        return attention(q, k, v, causal=shape.causal, cu_seqlens_q=bounds)

    return _with_gradients(forward) if gradients else forward


def _with_gradients(forward: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    def run(q: Any, k: Any, v: Any, grad_out: Any) -> list[Any]:
        out = forward(q, k, v)
        return [out, *torch.autograd.grad(out, (q, k, v), grad_out)]

    return run


def _torch(shape: Shape, gradients: bool, expanded: bool) -> Implementation:
    """scaled_dot_product_attention, on a padded batch where lengths differ (rows beyond an end are waste that
    it cannot avoid; causal, they change no other)."""
    from torch.nn.functional import scaled_dot_product_attention

    group = shape.heads // shape.kv_heads

    def forward(q: Any, k: Any, v: Any) -> Any:
        return scaled_dot_product_attention(
            q, k, v, is_causal=shape.causal, enable_gqa=group > 1 and not expanded
        )

    def prepare(*inputs: Any) -> tuple:
        padded = _padded(inputs[: 4 if gradients else 3], shape, group if expanded else 1)
        return _leaves(*padded) if gradients else padded

    def outputs(result: Any) -> list[Any]:
        results = list(result) if gradients else [result]
        if expanded and gradients:  # what a training step would sum over the group
            results[2:] = [x.unflatten(1, (shape.kv_heads, group)).float().sum(2) for x in results[2:]]
        return [_packed(x, shape) for x in results]

    return Implementation(
        "torch, heads expanded" if expanded else "torch",
        lambda: _with_gradients(forward) if gradients else forward,
        prepare=prepare,
        outputs=outputs,
        extra=False,
    )


def _zentorch(causal: bool) -> Callable[..., Any]:
    attention = peers.zentorch().zentorch_sdpa
    return lambda q, k, v: attention(q, k, v, 0.0, causal)


def _padded(inputs: Sequence[Any], shape: Shape, group: int) -> tuple:
    """Packed [tokens, heads, dim] -> [sequences, heads, longest, dim]; k and v repeated `group` times."""
    import torch

    padded = [
        torch.nn.utils.rnn.pad_sequence(list(x.split(list(shape.lengths))), batch_first=True).transpose(1, 2)
        for x in inputs
    ]
    return tuple(
        (x.repeat_interleave(group, 1) if i in (1, 2) else x).contiguous() for i, x in enumerate(padded)
    )


def _packed(x: Any, shape: Shape) -> Any:
    import torch

    return torch.cat([row[:, :n].transpose(0, 1) for row, n in zip(x, shape.lengths, strict=True)])

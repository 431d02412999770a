# SPDX-License-Identifier: Apache-2.0
"""Cases of attention with one query against a cache of keys and values.

The cache stays where it is from call to call, as it does while a reply is sampled, so its level of memory is
the limit, or the arithmetic: seven query heads for each key make more of it than reading out of a cache does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from earnest.bench import peers
from earnest.bench.case import OURS, Case, Implementation, Problem, Target

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
TARGET = Target(ratio=2.0, fraction=0.8)


def cases() -> list[Case]:
    found = []
    for heads, kv_heads, dim in ((14, 2, 64), (28, 4, 128)):
        for dtype in ("float32", "bfloat16"):
            for keys in (1024, 8192, 32768):
                found.append(
                    case(1, keys, heads, kv_heads, dim, dtype, TARGET, quick=keys == 1024 and dim == 64)
                )
    found.append(case(128, 160, 6, 2, 32, "float32", Target(), quick=True))  # the demo's sampler
    return found


def case(
    sequences: int, keys: int, heads: int, kv_heads: int, dim: int, dtype: str, target: Target, quick: bool
) -> Case:
    ending = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    size = f"{keys // 1024}k" if keys >= 1024 else f"{sequences}x{keys}"
    return Case(
        name=f"attention/decode-{size}-{heads}/{kv_heads}x{dim}-{ending}",
        problem=lambda rng: _problem(rng, sequences, keys, heads, kv_heads, dim, dtype),
        shape={"sequences": sequences, "keys": keys, "heads": heads, "kv_heads": kv_heads, "dim": dim},
        dtype=dtype,
        threads=2,
        target=target,
        quick=quick,
    )


def _problem(
    rng: np.random.Generator, sequences: int, keys: int, heads: int, kv_heads: int, dim: int, dtype: str
) -> Problem:
    shapes = ((sequences, 1, heads, dim), *[(sequences, keys, kv_heads, dim)] * 2)
    inputs = tuple(peers.random_tensor(rng, *shape, dtype=dtype) for shape in shapes)
    size = inputs[0].element_size()
    by_head: dict[str, Any] = {"prepare": _heads_first, "outputs": lambda result: [result.transpose(1, 2)]}
    return Problem(
        inputs=[inputs],
        reference=lambda q, k, v: [reference(q, k, v)],
        implementations=[
            Implementation("earnest", lambda: _ours(sequences, keys), OURS),
            Implementation("torch", _torch, **by_head, extra=False),
            Implementation("grouped matmul", lambda: _grouped_matmul, **by_head, extra=False),
            Implementation(
                "zentorch",
                _zentorch,
                prepare=_heads_first,
                outputs=lambda result: [result[0].transpose(1, 2)],
            ),
        ],
        tolerance=TOLERANCE[dtype],
        bytes=size * sequences * (2 * keys * kv_heads + 2 * heads) * dim,
        operations=4 * sequences * keys * heads * dim,
    )


def reference(q: Any, k: Any, v: Any) -> Any:
    """softmax(q k^T / sqrt(dim)) v in float64, heads repeated."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    return ((q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2)


def _ours(sequences: int, keys: int) -> Callable[..., Any]:
    import torch

    attention = peers.ours("attention")
    used = torch.full((sequences,), keys, dtype=torch.int32)
    return lambda q, k, v: attention(q, k, v, causal=True, seqused_k=used)


def _heads_first(*inputs: Any) -> tuple:
    return tuple(x.transpose(1, 2).contiguous() for x in inputs)


def _torch() -> Callable[..., Any]:
    from torch.nn.functional import scaled_dot_product_attention

    return lambda q, k, v: scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])


def _grouped_matmul(q: Any, k: Any, v: Any) -> Any:
    """By hand: the queries of a group are the rows of one product, so that each key is read once."""
    rows = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])  # [sequences, kv_heads, group, dim]
    weights = (rows @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(-1)
    return (weights @ v).reshape(q.shape)


def _zentorch() -> Callable[..., Any]:
    attention = peers.zentorch().zentorch_sdpa
    return lambda q, k, v: attention(q, k, v, 0.0, False)

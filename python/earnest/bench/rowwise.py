# SPDX-License-Identifier: Apache-2.0
"""Cases of rowwise: RMS norm, rotary positions and SwiGLU of a decoder layer, forward and with gradients.

Rows come straight from the product before and go to the one after it: small layers stay in the caches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from earnest.bench import peers
from earnest.bench.case import OURS, Case, Implementation, Problem

EPS = 1e-6
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}  # of the largest result


@dataclass(frozen=True)
class Layer:
    """What the rows of a decoder layer are made of."""

    tokens: int
    heads: int
    kv_heads: int
    dim: int
    mlp: int

    @property
    def width(self) -> int:
        return self.heads * self.dim


DEMO, SMALL = Layer(4800, 6, 2, 32, 512), Layer(2048, 14, 2, 64, 4864)
OPERATIONS = ("rms_norm", "rotary", "swiglu")


def cases() -> list[Case]:
    found = []
    for layer, dtype in ((DEMO, "float32"), (SMALL, "bfloat16")):
        for operation in OPERATIONS:
            for gradients in (False, True):
                quick = layer == DEMO and not gradients
                found.append(case(operation, layer, dtype, gradients=gradients, quick=quick))
    return found


def case(operation: str, layer: Layer, dtype: str, *, gradients: bool, quick: bool = False) -> Case:
    short = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    wide = {"rms_norm": layer.width, "swiglu": layer.mlp}
    size = wide.get(operation, f"{layer.heads}/{layer.kv_heads}x{layer.dim}")
    ending = "forward+backward" if gradients else "forward"
    return Case(
        name=f"rowwise/{operation}-{layer.tokens}x{size}-{short}-{ending}",
        problem=partial(_problem, operation=operation, layer=layer, dtype=dtype, gradients=gradients),
        shape={"tokens": layer.tokens, "size": size},
        dtype=dtype,
        quick=quick,
    )


def _problem(rng: np.random.Generator, operation: str, layer: Layer, dtype: str, gradients: bool) -> Problem:
    inputs, ours, plain = {"rms_norm": _rms_norm, "rotary": _rotary, "swiglu": _swiglu}[operation](layer)
    item = {"float32": 4, "bfloat16": 2}[dtype]
    leaves = [shape for shape, leaf in inputs if leaf]
    outputs = layer.tokens * (layer.mlp if operation == "swiglu" else leaves[0][1])
    read = sum(int(np.prod(shape)) for shape, _ in inputs)
    moved = item * (read + outputs)
    if gradients:
        moved += item * (outputs + read + sum(int(np.prod(shape)) for shape in leaves))
    sets = peers.sets_beyond_caches(moved, most=6) if moved > 16 << 20 else 1

    def one() -> tuple:
        made = [_made(rng, shape, leaf, dtype, gradients) for shape, leaf in inputs]
        return (*made, peers.random_tensor(rng, outputs, dtype=dtype))

    def reference(*arrays: Any) -> list[Any]:
        doubles = [x.detach().double() for x in arrays]
        if gradients:
            doubles = [
                x.requires_grad_(leaf) for x, (_, leaf) in zip(doubles, [*inputs, ((), False)], strict=True)
            ]
        return _run(plain, len(leaves), gradients)(*doubles)

    def build(function: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
        return lambda: _run(function, len(leaves), gradients)

    return Problem(
        inputs=[one() for _ in range(sets)],
        reference=reference,
        implementations=[
            Implementation("earnest", build(ours), OURS, outputs=list),
            Implementation("torch", build(plain), outputs=list, extra=False),
            Implementation(
                "torch.compile",
                lambda: _run(peers.compiled(plain), len(leaves), gradients),
                outputs=list,
                compiles=True,
            ),
        ],
        tolerance=TOLERANCE[dtype],
        bytes=moved,
    )


def _made(rng: np.random.Generator, shape: tuple[int, ...], leaf: bool, dtype: str, gradients: bool) -> Any:
    """Leaves are numbers of the layer; what has no gradient are cosines and sines, in float32."""
    if not leaf:
        return peers.random_tensor(rng, *shape).cos()
    return peers.random_tensor(rng, *shape, dtype=dtype).requires_grad_(gradients)


def _run(function: Callable[..., Any], leaves: int, gradients: bool) -> Callable[..., list[Any]]:
    """(inputs..., grad_out) -> [outputs side by side, gradients of the leaves]; leaves come first."""
    import torch

    def run(*arrays: Any) -> list[Any]:
        *inputs, grad = arrays
        out = function(*inputs)
        outs = out if isinstance(out, tuple) else (out,)
        if not gradients:
            return list(outs)
        parts = [g.view(o.shape) for g, o in zip(grad.split([o.numel() for o in outs]), outs, strict=True)]
        return [*outs, *torch.autograd.grad(outs, inputs[:leaves], parts)]

    return run


# ---- operations: ((shape, whether it has a gradient) of each input, ours, torch's) ----


def _rms_norm(layer: Layer) -> tuple:
    import torch.nn.functional as F

    norm = peers.ours("rms_norm")
    return (
        [((layer.tokens, layer.width), True), ((layer.width,), True)],
        lambda x, weight: norm(x, weight, EPS),
        lambda x, weight: F.rms_norm(x, weight.shape, weight, EPS),
    )


def _rotary(layer: Layer) -> tuple:
    import torch

    turn, heads, kv_heads = peers.ours("rotary"), layer.heads, layer.kv_heads

    def plain(qkv: Any, cosine: Any, sine: Any) -> tuple[Any, Any, Any]:
        parts = qkv.view(len(qkv), heads + 2 * kv_heads, layer.dim)
        a, b = parts[:, : heads + kv_heads].chunk(2, dim=-1)
        c, s = cosine[:, None], sine[:, None]
        turned = torch.cat([a * c - b * s, b * c + a * s], dim=-1).to(qkv.dtype)
        return turned[:, :heads], turned[:, heads:], parts[:, heads + kv_heads :]

    angles = (layer.tokens, layer.dim // 2)
    return (
        [((layer.tokens, (heads + 2 * kv_heads) * layer.dim), True), (angles, False), (angles, False)],
        lambda qkv, cosine, sine: turn(qkv, cosine, sine, heads, kv_heads, qkv.dtype),
        plain,
    )


def _swiglu(layer: Layer) -> tuple:
    import torch.nn.functional as F

    def plain(gate_up: Any) -> Any:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    return [((layer.tokens, 2 * layer.mlp), True)], peers.ours("swiglu"), plain

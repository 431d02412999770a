# SPDX-License-Identifier: Apache-2.0
"""Cases of attention's backward pass on a GPU, by itself: the forward pass, ours and everybody's, has run
when the clock starts. Beside each peer stands the same one told to be deterministic, as ours always is. One
case times both passes together; less the forward pass alone (gpu_attention.py) that is the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from earnest.bench import gpu, gpu_attention_paths, gpu_cudnn, gpu_forecast, peers
from earnest.bench.attention import DIALOGUES
from earnest.bench.case import ALSO, OURS, Case, Implementation, Problem, Target
from earnest.bench.gpu_attention_peers import Form, determined, forms
from earnest.bench.gpu_attention_shape import Shape, batch, drawn, name_of

TOLERANCE = 2e-2  # of each gradient's largest number
FLASH = "torch, flash, deterministic"  # the field's deterministic one that torch has
PATHS = ("sm80", "sm90a")
SLOW = ("torch, efficient", "torch, cudnn, heads expanded")  # on padded batches a second for a few calls


def promised() -> list[Case]:
    target = Target(ratio=1.0, against=gpu_cudnn.NAME, instead=FLASH, also={peers.CUDNN: 0.9})
    return [
        case(batch(tokens), target, quick=tokens == 4096, tiles=tokens == 8192)
        for tokens in (8192, 4096, 16_384)
    ]


def others() -> list[Case]:
    return [
        case(batch(8192, dtype="float16")),
        case(Shape(DIALOGUES, 28, 4, 128)),
        case(Shape((1500,) * 64, 20, 20, 64, causal=False)),
        case(batch(8192, dim=64), tiles=True),
        case(batch(8192, causal=False)),
        case(batch(8192), both=True),
    ]


def case(
    shape: Shape,
    target: Target | None = None,
    quick: bool = False,
    device: str = "cuda",
    both: bool = False,
    tiles: bool = False,
) -> Case:
    """both: the forward pass is timed with it. tiles: each tile that path sm80 has is, too."""
    kind = "forward+backward" if both else "backward"
    entries = _entries(shape, device, (0, 0), both, tiles)
    return Case(
        name=f"attention/cuda-{kind}-{name_of(shape)}",
        problem=partial(_problem, shape=shape, device=device, both=both, tiles=tiles),
        shape=shape.described() | {"pass": kind},
        dtype=shape.dtype,
        target=target or Target(),
        quick=quick,
        device=device,
        setup=gpu_forecast.setup(shape, entries, _operations_of_reference(shape), slower=7 if both else 5),
    )


def _operations_of_reference(shape: Shape) -> float:
    return 14 * max(shape.lengths) ** 2 * shape.dim * shape.heads // shape.kv_heads


def _problem(rng: np.random.Generator, shape: Shape, device: str, both: bool, tiles: bool) -> Problem:
    checked = int(rng.integers(len(shape.lengths))), int(rng.integers(shape.kv_heads))
    return Problem(
        inputs=[drawn(rng, shape, device, more=True)],
        reference=partial(reference, shape=shape, checked=checked),
        implementations=_entries(shape, device, checked, both, tiles),
        tolerance=TOLERANCE,
        bytes=shape.bytes * 3 if both else shape.bytes * 2,
        operations=shape.operations * (7 if both else 5) // 2,
    )


def _entries(
    shape: Shape, device: str, checked: tuple[int, int], both: bool, tiles: bool = False
) -> list[Implementation]:
    has_paths = gpu_attention_paths.has_paths(device)
    paths = PATHS if has_paths else ("",)
    found = [_ours(f"earnest, {path}" if path else "earnest", path, shape, checked, both) for path in paths]
    if tiles and has_paths:
        found += [
            _ours(f"earnest, sm80, tiles of {rows}", "sm80", shape, checked, both, ALSO, rows)
            for rows in gpu_attention_paths.TILES
        ]
    for form in forms(shape, device):
        if form.differentiable and not (form.padding and form.name.startswith(SLOW)):
            found += [_peer(form, shape, checked, both, deterministic) for deterministic in (False, True)]
    if device == "cuda" and shape.equal and not both:
        found.append(gpu_cudnn.backward(shape, partial(_parts, shape=shape, checked=checked)))
    return found


def reference(q: Any, k: Any, v: Any, grad: Any, *, shape: Shape, checked: tuple[int, int]) -> list[Any]:
    """The gradients of one sequence and key head by their definition in float64: all of them would take
    longer than the measurement."""
    import torch

    q, grad = (_part(x, shape, checked, shape.heads).double() for x in (q, grad))
    k, v = (_part(x, shape, checked, shape.kv_heads)[:, 0].double() for x in (k, v))
    hidden = torch.ones(len(q), len(q), dtype=torch.bool, device=q.device).triu(1)
    scale, grads = shape.dim**-0.5, [torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)]
    for head in range(q.shape[1]):
        scores = scale * q[:, head] @ k.T
        if shape.causal:
            scores = scores.masked_fill_(hidden, -torch.inf)
        weights = scores.softmax(1)
        del scores
        grads[2] += weights.T @ grad[:, head]
        delta = ((weights @ v) * grad[:, head]).sum(1, keepdim=True)
        of_scores = weights.mul_((grad[:, head] @ v.T).sub_(delta)).mul_(scale)
        grads[0][:, head] = of_scores @ k
        grads[1] += of_scores.T @ q[:, head]
    return [grads[0], grads[1][:, None], grads[2][:, None]]


def _part(x: Any, shape: Shape, checked: tuple[int, int], heads: int) -> Any:
    """Of packed rows [tokens, heads, dim] those of the sequence, and the heads of the key head."""
    sequence, kv_head = checked
    begin, group = sum(shape.lengths[:sequence]), heads // shape.kv_heads
    return x[begin : begin + shape.lengths[sequence], kv_head * group : (kv_head + 1) * group]


def _parts(grads: Any, shape: Shape, checked: tuple[int, int]) -> list[Any]:
    """Of packed gradients those that are checked."""
    heads = (shape.heads, shape.kv_heads, shape.kv_heads)
    return [_part(x, shape, checked, n) for x, n in zip(grads, heads, strict=True)]


def _ours(
    name: str,
    path: str,
    shape: Shape,
    checked: tuple[int, int],
    both: bool,
    role: str = OURS,
    tile_rows: int = 0,
) -> Implementation:
    """path: "" where there is one alone, whose backward pass autograd knows. tile_rows: 0 for its choice."""

    def build() -> Callable[..., Any]:
        gpu_attention_paths.asked_for(path)
        if not path:
            return _all if both else _backward_of
        from earnest.ops.attention import _backward, _forward_on_cuda

        rest = (None, shape.causal, shape.dim**-0.5)

        def run(q: Any, k: Any, v: Any, of_q: Any, of_k: Any, grad: Any, *known: Any) -> Any:
            arrays = (q, k, v, of_q, of_k)
            out, lse = known or _forward_on_cuda(*arrays, *rest, path=path, with_lse=True)
            return _backward(grad, None, q, k, v, out, lse, of_q, of_k, *rest, tile_rows, path)

        return peers.unless_refused(run)

    def _forward(*arrays: Any) -> Any:
        *three, of_q, of_k = arrays
        return peers.ours("attention")(*three, causal=shape.causal, cu_seqlens_q=of_q, cu_seqlens_k=of_k)

    def _all(q: Any, k: Any, v: Any, of_q: Any, of_k: Any, grad: Any) -> Any:
        return _gradients(_forward(q, k, v, of_q, of_k), (q, k, v), grad)

    def prepare(*inputs: Any) -> tuple[Any, ...]:
        q, k, v, of_q, of_k = gpu_attention_paths.arrays(shape, inputs[:3])
        grad = inputs[3].unflatten(0, q.shape[:-2])
        if not path:
            leaves = _leaves((q, k, v))
            return (*leaves, of_q, of_k, grad) if both else (_forward(*leaves, of_q, of_k), leaves, grad)
        if both:
            return q, k, v, of_q, of_k, grad
        from earnest.ops.attention import _forward_on_cuda

        rest = (None, shape.causal, shape.dim**-0.5)
        return q, k, v, of_q, of_k, grad, *_forward_on_cuda(q, k, v, of_q, of_k, *rest, with_lse=True)

    return Implementation(
        name,
        build,
        role,
        prepare=prepare,
        outputs=lambda grads: _parts([gpu_attention_paths.packed(shape, x) for x in grads], shape, checked),
    )


def _leaves(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.detach().requires_grad_() for x in inputs)


def _gradients(out: Any, leaves: tuple[Any, ...], grad: Any) -> Any:
    import torch

    return torch.autograd.grad(out, leaves, grad)


def _backward_of(out: Any, leaves: tuple[Any, ...], grad: Any) -> Any:
    """Of a forward pass that has run, as often as one likes."""
    import torch

    return torch.autograd.grad(out, leaves, grad, retain_graph=True)


def _peer(
    form: Form, shape: Shape, checked: tuple[int, int], both: bool, deterministic: bool
) -> Implementation:
    name = f"{form.name}, deterministic" if deterministic else form.name

    def build() -> Callable[..., Any]:
        forward = form.build(deterministic)

        def backward(out: Any, leaves: tuple[Any, ...], grad: Any) -> Any:
            with determined(deterministic):
                return _backward_of(out, leaves, grad)

        def all_of_it(grad: Any, *arrays: Any) -> Any:
            with determined(deterministic):
                return _gradients(forward(*arrays), arrays[:3], grad)

        return peers.unless_nondeterministic(name, all_of_it if both else backward)

    def prepare(q: Any, k: Any, v: Any, grad: Any) -> tuple[Any, ...]:
        arrays = form.prepare(q, k, v)
        leaves = _leaves(arrays[:3])
        wanted = form.laid_out(grad, False)
        if both:
            return wanted, *leaves, *arrays[3:]
        with gpu.aside():
            out = peers.unless_nondeterministic(name, form.build(deterministic))(*leaves, *arrays[3:])
        return out, leaves, wanted

    def outputs(grads: Any) -> list[Any]:
        return _parts([form.packed(x, i > 0) for i, x in enumerate(grads)], shape, checked)

    return Implementation(
        name, build, prepare=prepare, outputs=outputs, extra=form.extra, padding=form.padding
    )

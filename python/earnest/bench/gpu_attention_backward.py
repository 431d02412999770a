# SPDX-License-Identifier: Apache-2.0
"""Cases of attention with its backward pass on a GPU, against every backend that torch has there, each also
told to be deterministic, as ours always is. Both passes are timed together, so that a CUDA graph can hold
them; the difference from the forward pass alone (gpu_attention.py) is the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from earnest.bench import peers
from earnest.bench.attention import DIALOGUES, Shape, _packed, _padded, _short_lengths
from earnest.bench.case import ALSO, OURS, Absent, Case, Implementation, Problem, Target

TOLERANCE = 2e-2  # of each gradient's largest number
DETERMINISTIC = "torch, flash, deterministic"  # torch's sources refuse cudnn there


def cases() -> list[Case]:
    found = []
    target = Target(ratio=1.0, against=DETERMINISTIC, also={peers.CUDNN: 0.9})
    for tokens in (4096, 8192, 16_384):
        shape = Shape((tokens,) * (16_384 // tokens), 16, 16, 128)
        name = f"{len(shape.lengths)}x{tokens}-causal-16/16x128"
        found.append(case(name, shape, target, quick=tokens == 4096))
    found.append(case("2x8192-causal-16/16x64", Shape((8192,) * 2, 16, 16, 64)))
    found.append(case("2x8192-full-16/16x128", Shape((8192,) * 2, 16, 16, 128, causal=False)))
    ragged = Shape(DIALOGUES, 28, 4, 128)
    found.append(case("ragged-16x200-8000-causal-28/4x128", ragged))
    found.append(case("64x1500-full-20/20x64", Shape((1500,) * 64, 20, 20, 64, causal=False)))
    for dim in (128, 64):  # last: nothing has executed that path yet
        for tokens in (4096, 8192, 16_384) if dim == 128 else (8192,):
            shape = Shape((tokens,) * (16_384 // tokens), 16, 16, dim)
            name = f"sm90a-{len(shape.lengths)}x{tokens}-causal-16/16x{dim}"
            found.append(case(name, shape, target if dim == 128 else None, path="sm90a"))
    found.append(case("sm90a-2x8192-full-16/16x128", Shape((8192,) * 2, 16, 16, 128, False), path="sm90a"))
    found.append(case("sm90a-ragged-16x200-8000-causal-28/4x128", ragged, path="sm90a"))
    return found


def case(
    name: str,
    shape: Shape,
    target: Target | None = None,
    quick: bool = False,
    device: str = "cuda",
    path: str = "best",
) -> Case:
    """path: of the backward pass, other than the best, which is by name; it has one tile."""
    return Case(
        name=f"attention/cuda-{name}-forward+backward",
        problem=partial(_problem, shape=shape, device=device, path=path),
        shape=vars(shape) | {"lengths": _short_lengths(shape.lengths), "pass": "forward+backward"},
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
        for heads in (shape.heads, shape.kv_heads, shape.kv_heads, shape.heads)
    )
    checked = int(rng.integers(len(shape.lengths))), int(rng.integers(shape.kv_heads))
    if path == "best":
        entries = [_ours("earnest", OURS, shape, device, checked)]
        for rows in (64, 128):
            entries.append(_ours(f"earnest, tiles of {rows}", ALSO, shape, device, checked, tile_rows=rows))
    else:
        entries = [_ours(f"earnest, {path} backward", OURS, shape, device, checked, path=path)]
        entries.append(_ours("earnest", ALSO, shape, device, checked))
    for name, backend in peers.attention_backends(device).items():
        for expanded in (False, True) if shape.heads != shape.kv_heads else (False,):
            more = ", heads expanded" if expanded else ""
            entries.append(_torch(f"{name}{more}", backend, shape, checked, expanded, deterministic=False))
            entries.append(
                _torch(f"{name}{more}, deterministic", backend, shape, checked, expanded, deterministic=True)
            )
    return Problem(
        inputs=[inputs],
        reference=partial(reference, shape=shape, checked=checked),
        implementations=entries,
        tolerance=TOLERANCE,
        bytes=2 * tokens * shape.dim * 6 * (shape.heads + shape.kv_heads),
        operations=shape.operations * 7 // 2,  # five more products backward
    )


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
    heads = (shape.heads, shape.kv_heads, shape.kv_heads)
    return [_part(x, shape, checked, n) for x, n in zip(grads, heads, strict=True)]


def _ours(
    name: str, role: str, shape: Shape, device: str, checked: tuple[int, int], **variant: Any
) -> Implementation:
    """Sequences of equal length by a leading axis, others by their bounds. variant: of the backward pass."""
    equal = len(set(shape.lengths)) == 1

    def build() -> Callable[..., Any]:
        import torch

        from earnest.ops import cuda
        from earnest.ops.attention import _backward, _forward_on_cuda

        attention = peers.ours("attention")
        ends = np.cumsum(shape.lengths)
        bounds = None if equal else torch.tensor([0, *ends], dtype=torch.int32).to(device)
        if not variant:
            return _with_gradients(partial(attention, causal=shape.causal, cu_seqlens_q=bounds))
        if not cuda.takes(torch.empty(0, device=device)):
            raise Absent("variants are the GPU's")
        rest = (bounds, bounds, None, shape.causal, shape.dim**-0.5)

        def run(q: Any, k: Any, v: Any, grad: Any) -> Any:
            out, lse = _forward_on_cuda(q, k, v, *rest, with_lse=True)
            return _backward(grad, None, q, k, v, out, lse, *rest, **variant)

        return peers.unless_refused(run)

    def prepare(*inputs: Any) -> tuple:
        ready = tuple(x.unflatten(0, (-1, shape.lengths[0])) if equal else x for x in inputs)
        return ready if variant else _leaves(ready)

    return Implementation(
        name,
        build,
        role,
        prepare=prepare,
        outputs=lambda grads: _parts([x.flatten(0, 1) if equal else x for x in grads], shape, checked),
    )


def _leaves(inputs: tuple) -> tuple:
    return *(x.detach().requires_grad_() for x in inputs[:3]), inputs[3]


def _with_gradients(forward: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    return lambda q, k, v, grad: torch.autograd.grad(forward(q, k, v), (q, k, v), grad)


def _torch(
    name: str, backend: str, shape: Shape, checked: tuple[int, int], expanded: bool, deterministic: bool
) -> Implementation:
    """One backend of scaled_dot_product_attention, on a padded batch where lengths differ."""
    group = shape.heads // shape.kv_heads

    def build() -> Callable[..., Any]:
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention

        grouped = group > 1 and not expanded
        both = _with_gradients(
            partial(scaled_dot_product_attention, is_causal=shape.causal, enable_gqa=grouped)
        )

        def run(*inputs: Any) -> Any:
            try:
                with sdpa_kernel(getattr(SDPBackend, backend)), _told_to_be_deterministic(deterministic):
                    return both(*inputs)
            except RuntimeError as error:
                if "No available kernel" in str(error) or "deterministic" in str(error):
                    raise Absent(f"{name}: {error}") from None
                raise

        return run

    def outputs(grads: Any) -> list[Any]:
        found = list(grads)
        if expanded:  # what a training step would sum over the group
            found[1:] = [x.unflatten(1, (shape.kv_heads, group)).float().sum(2) for x in found[1:]]
        return _parts([_packed(x, shape) for x in found], shape, checked)

    return Implementation(
        name,
        build,
        prepare=lambda *x: _leaves(_padded(x, shape, group if expanded else 1)),
        outputs=outputs,
        extra=False,
    )


@contextmanager
def _told_to_be_deterministic(on: bool) -> Iterator[None]:
    import torch

    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(on)
    settings.fill_uninitialized_memory = False  # it would be timed
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]

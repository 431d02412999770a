# SPDX-License-Identifier: Apache-2.0
"""Cases of linear layers on a GPU, in bfloat16 and on int8 and int4 weights, from one row to thousands. The
peer is torch's product in bfloat16, which is cuBLAS; our paths stand beside the one that is chosen."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from earnest.bench import peers
from earnest.bench.case import ALSO, OURS, Absent, Case, Implementation, Problem, Target
from earnest.bench.gpu_forecast import BRIEF
from earnest.bench.limits import Threads

TORCH = "torch"
TOLERANCE = 1e-2  # of the largest result: bfloat16's rounding
CHECKED_ROWS = 64
ROWS = (1, 8, 64, 4096)
# A decoder's of 1.5B: o, gate, down; of 7B: gate.
SHAPES = ((1536, 1536), (1536, 8960), (8960, 1536), (3584, 18944))
PATHS = {"bfloat16": ("sm80", "few", "vendor"), "int8": ("sm80", "few"), "int4": ("sm80", "few")}
MANY = 256  # rows from which on path few is not timed


def cases() -> list[Case]:
    found = [case(rows, *shape, "bfloat16") for shape in SHAPES for rows in ROWS]
    for codes in ("int8", "int4"):
        found += [case(rows, *shape, codes) for shape in (SHAPES[1], SHAPES[3]) for rows in ROWS]
    return found


def case(rows: int, inputs: int, outputs: int, weights: str, *, device: str = "cuda") -> Case:
    large = inputs * outputs >= 1 << 24
    if rows >= MANY:
        target = Target()
    else:  # reading the weights is all there is to it
        target = Target(ratio=1.0, against=TORCH, fraction=0.8 if rows == 1 and large else None)
    short = "bf16" if weights == "bfloat16" else weights
    return Case(
        name=f"linear/cuda-{rows}x{inputs}x{outputs}-{short}",
        problem=partial(_problem, rows=rows, inputs=inputs, outputs=outputs, weights=weights, device=device),
        shape={"rows": rows, "in": inputs, "out": outputs, "weights": weights},
        dtype="bfloat16",
        target=target,
        quick=(inputs, outputs) == SHAPES[1] and rows in (1, 64),
        device=device,
        setup=BRIEF,
    )


def _problem(
    rng: np.random.Generator, rows: int, inputs: int, outputs: int, weights: str, device: str
) -> Problem:
    import torch

    g = torch.Generator(device).manual_seed(int(rng.integers(1 << 31)))
    x = torch.randn(rows, inputs, generator=g, device=device).bfloat16()
    weight = torch.randn(outputs, inputs, generator=g, device=device).mul_(inputs**-0.5).bfloat16()
    kept = 2 * weight.numel()
    given: tuple[Any, Any, Any] = (x, weight, weight)
    if weights != "bfloat16":
        from earnest.ops.quantized import quantize

        with Threads(os.cpu_count() or 1):  # 68 million codes of int4 take one thread three seconds
            codes = quantize(weight.cpu(), weights)
            exact = codes.dequantize(torch.float32).to(device)
        kept = codes.packed.numel()
        given = (x, codes.to(device), exact)
    checked = np.sort(rng.choice(rows, min(CHECKED_ROWS, rows), replace=False))
    entries = [_ours("earnest", OURS, weights, device, "best", checked)]
    for path in PATHS[weights]:
        if path != "few" or rows < MANY:
            entries.append(_ours(f"earnest, {path}", ALSO, weights, device, path, checked))
    entries.append(
        Implementation(
            TORCH,
            lambda: torch.nn.functional.linear,
            prepare=lambda x, _, exact: (x, exact.bfloat16()),
            outputs=lambda y: [y[checked]],
            extra=False,
        )
    )
    return Problem(
        inputs=[given],
        reference=lambda x, _, exact: [x[checked].double() @ exact.double().T],
        implementations=entries,
        tolerance=TOLERANCE,
        bytes=kept + 2 * rows * (inputs + outputs),
        operations=2 * rows * inputs * outputs,
    )


def _ours(
    name: str, role: str, weights: str, device: str, path: str, checked: np.ndarray
) -> Implementation:  # fmt: skip
    def build() -> Callable[..., Any]:
        import torch

        from earnest.ops import cuda

        if not cuda.takes(torch.empty(0, device=device)):
            if path != "best":
                raise Absent("paths are the GPU's")
            return peers.ours("linear") if weights == "bfloat16" else _quantized
        run = _linear_on_cuda if weights == "bfloat16" else _quantized_on_cuda
        return peers.unless_refused(partial(run, path=path))

    return Implementation(
        name, build, role, prepare=lambda x, weight, _: (x, weight), outputs=lambda y: [y[checked]]
    )


def _quantized(x: Any, weight: Any) -> Any:
    from earnest.ops.quantized import quantized_linear

    return quantized_linear(x, weight)


def _linear_on_cuda(x: Any, weight: Any, path: str) -> Any:
    from earnest.ops.linear import _forward_on_cuda

    return _forward_on_cuda(x, weight, None, path)


def _quantized_on_cuda(x: Any, weight: Any, path: str) -> Any:
    from earnest.ops.quantized import _on_cuda

    y = x.new_empty(len(x), weight.outputs)
    _on_cuda(x, weight, None, y, path=path)
    return y

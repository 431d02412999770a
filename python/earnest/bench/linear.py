# SPDX-License-Identifier: Apache-2.0
"""Cases of linear: rows [N, in] times weight [out, in], packed once as in inference and training.

Many rows: an operation for every two bytes counts, and weights and rows change from call to call. Few rows:
reading the weight is all there is to it, so the weight stays where the caches leave it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from earnest.bench import peers
from earnest.bench.case import OURS, Case, Implementation, Problem, Target

MANY, FEW = Target(ratio=1.0), Target(ratio=1.1, fraction=0.85)
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}  # of the largest result; sums of up to 8192 products


def cases() -> list[Case]:
    found = []
    for dtype in ("float32", "bfloat16"):
        for rows, inputs, outputs in ((512, 2048, 2048), (2048, 576, 1536)):
            found.append(case(rows, inputs, outputs, dtype, MANY, quick=rows == 512))
        for rows in (1, 8):
            found.append(case(rows, 2048, 8192, dtype, FEW))
    found.append(case(8192, 192, 512, "float32", MANY, quick=True))  # the demo's, many tokens packed
    found.append(case(128, 192, 512, "float32", MANY))  # and its sampler's
    return found


def case(rows: int, inputs: int, outputs: int, dtype: str, target: Target, quick: bool = False) -> Case:
    short = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    return Case(
        name=f"linear/{rows}x{inputs}x{outputs}-{short}",
        problem=lambda rng: _problem(rng, rows, inputs, outputs, dtype),
        shape={"rows": rows, "in": inputs, "out": outputs},
        dtype=dtype,
        threads=2,
        target=target,
        quick=quick,
    )


def _problem(rng: np.random.Generator, rows: int, inputs: int, outputs: int, dtype: str) -> Problem:
    size = 4 if dtype == "float32" else 2
    moved = size * (rows * inputs + inputs * outputs + rows * outputs)
    count = 1 if rows <= 8 else peers.sets_beyond_caches(moved, most=8)

    def one() -> tuple[Any, Any]:
        x = peers.random_tensor(rng, rows, inputs, dtype=dtype)
        return x, peers.random_tensor(rng, outputs, inputs, dtype=dtype, scale=inputs**-0.5)

    return Problem(
        inputs=[one() for _ in range(count)],
        reference=lambda x, weight: [x.double() @ weight.double().T],
        implementations=[
            Implementation("earnest", lambda: peers.ours("linear"), OURS),
            Implementation("torch", _torch, extra=False),
            Implementation(
                "oneDNN packed", lambda: lambda multiply, x: multiply(x), prepare=_onednn, extra=False
            ),
            Implementation("zentorch", _zentorch, prepare=_pack_for_zentorch),
        ],
        tolerance=TOLERANCE[dtype],
        bytes=moved,
        operations=2 * rows * inputs * outputs,
    )


def _torch() -> Callable[..., Any]:
    import torch

    return torch.nn.functional.linear


def packed_by_onednn(x: Any, weight: Any) -> Callable[[Any], Any]:
    """x -> x weight^T with the weight packed for as many rows as x has: torch's fastest product on a CPU."""
    import torch

    packed = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda rows: multiply(rows, packed, None, "none", [], "")


def _onednn(x: Any, weight: Any) -> tuple:
    return packed_by_onednn(x, weight), x


def _pack_for_zentorch(x: Any, weight: Any) -> tuple:
    return x, peers.zentorch().zentorch_weight_prepack_for_linear(weight)


def _zentorch() -> Callable[..., Any]:
    linear = peers.zentorch().zentorch_linear_unary
    return lambda x, packed: linear(x, packed, None, is_weight_prepacked=True)

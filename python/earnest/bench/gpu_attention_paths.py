# SPDX-License-Identifier: Apache-2.0
"""Our attention on a GPU, each of its paths by name, so that one case times them beside the same peers: sm80
runs on every GPU, sm90a on Hopper in several schedules. The fastest is judged, each keeps its own record."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from earnest.bench import peers
from earnest.bench.case import ALSO, OURS, Absent, Implementation
from earnest.bench.gpu_attention_peers import bounds
from earnest.bench.gpu_attention_shape import Shape

WITHOUT = "EARNEST_BENCH_WITHOUT"  # names of paths that are not to be tried, such as one that faults
SCHEDULES = ("series", "turns", "ahead", "both", "wide")  # of path sm90a, forward
ALTERNATIVE = "both"  # the schedule to be timed beside its own choice
TILES = (64, 128)  # rows, of path sm80


def variants(device: str, every: bool = False) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, role, what to ask for) of the forward pass; every: each schedule and tile too. Without a GPU, or
    its emulator, there is one path."""
    if not has_paths(device):
        return [("earnest", OURS, {})]
    found: list[tuple[str, str, dict[str, Any]]] = [
        (f"earnest, {path}", OURS, {"path": path}) for path in ("sm80", "sm90a")
    ]
    for schedule in SCHEDULES if every else (ALTERNATIVE,):
        found.append((f"earnest, sm90a, {schedule}", OURS, {"path": "sm90a", "schedule": schedule}))
    if every:
        found += [
            (f"earnest, sm80, tiles of {rows}", ALSO, {"path": "sm80", "tile_rows": rows}) for rows in TILES
        ]
    return found


def has_paths(device: str) -> bool:
    if device == "cuda":
        return True
    import torch

    from earnest.ops import cuda

    return cuda.takes(torch.empty(0))


def asked_for(path: str) -> None:
    """Absent where it is not to be tried."""
    if path and path in os.environ.get(WITHOUT, "").split(","):
        raise Absent(f"{path}: {WITHOUT} says so")


def forward(shape: Shape, device: str, rows: Any, every: bool = False) -> list[Implementation]:
    """rows: those of the packed result that are checked."""
    return [_forward(name, role, shape, rows, variant) for name, role, variant in variants(device, every)]


def _forward(
    name: str, role: str, shape: Shape, rows: Any, variant: dict[str, Any]
) -> Implementation:  # fmt: skip
    def build() -> Callable[..., Any]:
        asked_for(variant.get("path", ""))
        if not variant:
            attention = peers.ours("attention")
            return lambda q, k, v, of_q, of_k: attention(
                q, k, v, causal=shape.causal, cu_seqlens_q=of_q, cu_seqlens_k=of_k
            )
        from earnest.ops.attention import _forward_on_cuda

        rest: Any = (None, shape.causal, shape.dim**-0.5)

        def run(*arrays: Any) -> Any:
            q, k, v, *bounds = arrays
            return _forward_on_cuda(q, k, v, *bounds, *rest, **variant)[0]

        return peers.unless_refused(run)

    return Implementation(
        name,
        build,
        role,
        prepare=lambda *x: arrays(shape, x),
        outputs=lambda out: [packed(shape, out)[rows]],
    )


def arrays(shape: Shape, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """q, k, v with an axis of sequences where these are equal, and the bounds of others."""
    if not shape.equal:
        device = inputs[0].device
        return *inputs, bounds(shape.lengths, device), bounds(shape.key_lengths, device)
    sizes = (shape.lengths[0], shape.key_lengths[0], shape.key_lengths[0])
    return *(x.unflatten(0, (-1, n)) for x, n in zip(inputs, sizes, strict=True)), None, None


def packed(shape: Shape, x: Any) -> Any:
    return x.flatten(0, 1) if shape.equal else x

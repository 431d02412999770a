# SPDX-License-Identifier: Apache-2.0
"""Cases of token log-probabilities on a GPU. The yardstick is the bare product through torch, which writes
the logits that we never hold; three of them with gradients. Of our paths the fastest is judged, by that and
by torch.compile of the cross-entropy in chunks; Liger's is listed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from earnest.bench import gpu_attention_paths, peers
from earnest.bench.case import ALSO, OURS, YARDSTICK, Case, Implementation, Problem, Target
from earnest.bench.gpu_forecast import BRIEF, LOADING
from earnest.bench.logprob import Check, leaves, logits_at_once, row_chunks, with_gradients

CHUNK = 2048  # rows of logits that a frugal peer holds
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-1}
OURS_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
PRODUCT, COMPILED = "bare product", "torch.compile, chunks"
# Within 1.25 times the product's time, and 1.3 times three of them; 200 MB beside the results.
WITHIN, MEMORY = {False: 1 / 1.25, True: 1 / 1.3}, 200 << 20
FASTER = 1.3  # times, than the compiled chunks
# Predicted: seven calls of six who take 300 or 800 ms together, and the check.
SETUP = {False: 3.5, True: 7.0}


def cases() -> list[Case]:
    sizes = ((16_384, 3584, 158_720), (2048, 576, 32_000))
    return [case(*size, gradients=gradients) for size in sizes for gradients in (False, True)]


def case(
    rows: int, hidden: int, words: int, *, gradients: bool, dtype: str = "bfloat16", device: str = "cuda"
) -> Case:
    ending = "forward+backward" if gradients else "forward"
    large = rows > 8192
    wanted = Target(ratio=WITHIN[gradients], against=PRODUCT, also={COMPILED: FASTER}, extra_bytes=MEMORY)
    return Case(
        name=f"logprob/cuda-{rows}x{hidden}x{words}-{ending}",
        problem=partial(
            _problem, rows=rows, hidden=hidden, words=words, gradients=gradients, dtype=dtype, device=device
        ),
        shape={"rows": rows, "hidden": hidden, "words": words, "pass": ending},
        dtype=dtype,
        target=wanted if large else Target(),
        quick=not large,
        device=device,
        setup=(SETUP[gradients] if large else BRIEF) + LOADING,
        compiles=True,
    )


def _problem(
    rng: np.random.Generator, rows: int, hidden: int, words: int, gradients: bool, dtype: str, device: str
) -> Problem:
    import torch

    g = torch.Generator(device).manual_seed(int(rng.integers(1 << 31)))

    def normal(*shape: int, scale: float = 1.0, kind: str = "float32") -> Any:
        return torch.randn(shape, generator=g, device=device).mul_(scale).to(getattr(torch, kind))

    inputs = (
        normal(rows, hidden, kind=dtype),
        normal(words, hidden, scale=2 * hidden**-0.5, kind=dtype),
        torch.randint(words, (rows,), generator=g, device=device),
        normal(rows),
        normal(rows, scale=0.1),
    )
    check = Check(rng, rows, words, gradients)
    products = 3 if gradients else 1

    def entry(
        name: str, build: Callable[[], Callable[..., Any]], path: str = "", **rest: Any
    ) -> Implementation:
        def whole() -> Callable[..., Any]:
            gpu_attention_paths.asked_for(path)
            run = with_gradients(build()) if gradients else build()
            return peers.forced(path, run) if path else run

        return Implementation(
            name,
            whole,
            prepare=(lambda *x: (*leaves(*x[:2]), *x[2:])) if gradients else (lambda *x: x[:3]),
            outputs=check.outputs,
            result_bytes=check.result_bytes,
            choose=check.choose,
            **rest,
        )

    return Problem(
        inputs=[inputs],
        reference=check.reference,
        implementations=[
            *(
                entry(name, lambda: peers.ours("logprob"), path, role=OURS, tolerance=OURS_TOLERANCE[dtype])
                for name, path in _paths(device)
            ),
            entry("torch, chunks", lambda: row_chunks(logits_at_once, gradients, CHUNK), extra=False),
            entry(
                COMPILED,
                lambda: row_chunks(peers.compiled(logits_at_once), gradients, CHUNK),
                compiles=True,
            ),
            Implementation(
                "Liger, fused linear cross-entropy", partial(_liger, gradients), ALSO,
                prepare=lambda *x: (*leaves(*x[:2]), x[2]) if gradients else x[:3],
                reference=None, definition="the mean of -logp; no entropy",
            ),
            Implementation(
                PRODUCT, lambda: partial(_products, count=products), YARDSTICK,
                prepare=lambda *x: (x[0], x[1], x[0].new_empty(rows, words)), reference=None, extra=False,
            ),
        ],
        tolerance=TOLERANCE[dtype],
        bytes=inputs[0].element_size() * hidden * (rows + words) * products,
        operations=2 * rows * hidden * words * products,
    )  # fmt: skip


def _paths(device: str) -> list[tuple[str, str]]:
    """(name, path): both where there are two."""
    if not gpu_attention_paths.has_paths(device):
        return [("earnest", "")]
    return [(f"earnest, {path}", path) for path in ("sm80", "sm90a")]


def _products(hidden: Any, weight: Any, logits: Any, count: int) -> None:
    import torch

    with torch.no_grad():
        for _ in range(count):
            torch.mm(hidden, weight.T, out=logits)


def _liger(gradients: bool) -> Callable[..., Any]:
    functional = peers.load("liger_kernel.transformers.functional", "liger-kernel")

    def run(hidden: Any, weight: Any, targets: Any) -> Any:
        import torch

        loss = functional.liger_fused_linear_cross_entropy(hidden, weight, targets)
        return torch.autograd.grad(loss, (hidden, weight)) if gradients else loss

    run.waits = True  # type: ignore[attr-defined]  # for a count of its targets: no CUDA graph can hold it
    return run

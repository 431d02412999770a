# SPDX-License-Identifier: Apache-2.0
"""Cases of token log-probabilities and entropy from hidden states and the output matrix.

The yardstick is one matrix product of the same size (three with gradients) at the rate of a product with
packed weights, done in pieces so that no logits are written to memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from earnest.bench import peers
from earnest.bench.case import OURS, YARDSTICK, Case, Implementation, Problem, Target
from earnest.bench.linear import packed_by_onednn

CHUNK = 256  # rows of logits that a frugal peer holds
CHECKED_ROWS, CHECKED_WORDS, PIECE = 64, 512, 8192
WITHIN, MEMORY = 1 / 1.15, 64 << 20
# Of the largest value; bfloat16 peers round their logits, which alone makes some 1e-2.
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-1}
OURS_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
YARDSTICK_NAME = "packed product"
ENTROPY_SCALE = 0.1


def cases() -> list[Case]:
    found = []
    for rows, hidden, words in ((2048, 576, 32_000), (1024, 2048, 151_936)):
        for dtype in ("float32", "bfloat16"):
            for gradients in (False, True):
                found.append(case(rows, hidden, words, dtype, gradients))
    return [*found, *(case(8192, 192, 1024, "float32", gradients) for gradients in (False, True))]


def case(rows: int, hidden: int, words: int, dtype: str, gradients: bool) -> Case:
    ending = "forward+backward" if gradients else "forward"
    demo = words == 1024
    # Beyond the gradients: what a call holds besides its results.
    target = Target() if demo else Target(ratio=WITHIN, against=YARDSTICK_NAME, extra_bytes=MEMORY)
    return Case(
        name=f"logprob/{rows}x{hidden}x{words}-{'fp32' if dtype == 'float32' else 'bf16'}-{ending}",
        problem=lambda rng: _problem(rng, rows, hidden, words, dtype, gradients),
        shape={"rows": rows, "hidden": hidden, "words": words, "pass": ending},
        dtype=dtype,
        threads=2,
        target=target,
        quick=demo,
    )


def _problem(
    rng: np.random.Generator, rows: int, hidden: int, words: int, dtype: str, gradients: bool
) -> Problem:
    import torch

    inputs = (
        peers.random_tensor(rng, rows, hidden, dtype=dtype),
        peers.random_tensor(rng, words, hidden, dtype=dtype, scale=2 * hidden**-0.5),
        torch.from_numpy(rng.integers(0, words, rows)),
        peers.random_tensor(rng, rows),
        peers.random_tensor(rng, rows, scale=ENTROPY_SCALE),
    )
    check = Check(rng, rows, words, gradients)
    size = inputs[0].element_size()
    products = 3 if gradients else 1

    def entry(name: str, build: Callable[[], Callable[..., Any]], **rest: Any) -> Implementation:
        return Implementation(
            name,
            lambda: with_gradients(build()) if gradients else build(),
            prepare=(lambda *x: (*leaves(*x[:2]), *x[2:])) if gradients else (lambda *x: x[:3]),
            outputs=check.outputs,
            result_bytes=check.result_bytes,
            choose=check.choose,
            **rest,
        )

    found = [
        entry("earnest", lambda: peers.ours("logprob"), role=OURS, tolerance=OURS_TOLERANCE[dtype]),
        entry("torch, chunks", lambda: row_chunks(logits_at_once, gradients, CHUNK), extra=False),
        entry(
            "torch.compile, chunks",
            lambda: row_chunks(peers.compiled(logits_at_once), gradients, CHUNK),
            compiles=True,
        ),
        Implementation(
            YARDSTICK_NAME, lambda: _product, YARDSTICK, prepare=lambda *x: _pieces(x[0], x[1], products),
            reference=None, extra=False,
        ),
    ]  # fmt: skip
    if rows * words * 4 < 512 << 20:  # the whole logits, several times over
        found[1:1] = [
            entry("torch", lambda: logits_at_once, extra=False),
            entry("torch.compile", lambda: peers.compiled(logits_at_once), compiles=True),
        ]
    return Problem(
        inputs=[inputs],
        reference=check.reference,
        implementations=found,
        tolerance=TOLERANCE[dtype],
        bytes=size * hidden * (rows + words) * products,
        operations=2 * rows * hidden * words * products,
    )


class Check:
    """Compares some rows of the results, and of the gradients with everything upstream of other rows at 0: in
    float64 all of them would take longer than the measurement."""

    def __init__(self, rng: np.random.Generator, rows: int, words: int, gradients: bool) -> None:
        self.rows = np.sort(rng.choice(rows, min(CHECKED_ROWS, rows), replace=False))
        self.words = np.sort(rng.choice(words, min(CHECKED_WORDS, words), replace=False))
        self.gradients = gradients

    def choose(self, *prepared: Any) -> tuple:
        """The inputs of the checked call: with gradients, upstream only of the rows that are compared."""
        if not self.gradients:
            return prepared
        import torch

        some = torch.zeros_like(prepared[3])
        some[self.rows] = 1
        return (*prepared[:3], *(x * some for x in prepared[3:]))

    def outputs(self, result: Any) -> list[Any]:
        found = [result[0][self.rows], result[1][self.rows]]
        if self.gradients:
            found += [result[2][self.rows], result[3][self.words]]
        return found

    def result_bytes(self, result: Any) -> int:
        return sum(x.numel() * x.element_size() for x in result)

    def reference(self, hidden: Any, weight: Any, targets: Any, of_logp: Any, of_entropy: Any) -> list[Any]:
        """log_softmax by its definition in float64, a piece of the vocabulary at a time, and the gradient by
        its formula: dlogit = g (1[target] - p) - e p (log p + entropy)."""
        import torch

        x, chosen = hidden[self.rows].detach().double(), targets[self.rows]
        pieces = [weight[i : i + PIECE].detach() for i in range(0, len(weight), PIECE)]
        logits = torch.cat([x @ piece.double().T for piece in pieces], 1)
        log_p = logits.log_softmax(1)
        p = log_p.exp()
        entropy = -(p * log_p).sum(1)
        found = [log_p.gather(1, chosen[:, None])[:, 0], entropy]
        if self.gradients:
            g, e = (y[self.rows].double()[:, None] for y in (of_logp, of_entropy))
            at_logits = -g * p - e * p * (log_p + entropy[:, None])
            at_logits.scatter_add_(1, chosen[:, None], g)
            parts = zip(at_logits.split(PIECE, 1), pieces, strict=True)
            at_hidden = torch.stack([part @ piece.double() for part, piece in parts]).sum(0)
            found += [at_hidden, at_logits[:, self.words].T @ x]
        return found


def leaves(*inputs: Any) -> tuple:
    return tuple(x.detach().requires_grad_() for x in inputs)


def with_gradients(forward: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    def run(hidden: Any, weight: Any, targets: Any, of_logp: Any, of_entropy: Any) -> list[Any]:
        results = forward(hidden, weight, targets)
        return [*results, *torch.autograd.grad(results, (hidden, weight), (of_logp, of_entropy))]

    return run


def logits_at_once(hidden: Any, weight: Any, targets: Any) -> tuple[Any, Any]:
    """With the logits of all its rows."""
    import torch

    log_p = torch.log_softmax((hidden @ weight.T).float(), -1)
    return log_p.gather(-1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def row_chunks(function: Callable[..., Any], gradients: bool, chunk: int) -> Callable[..., Any]:
    """`chunk` rows at a time; with gradients, its logits computed again in the backward pass."""
    import torch
    from torch.utils.checkpoint import checkpoint

    def run(hidden: Any, weight: Any, targets: Any) -> tuple[Any, Any]:
        parts = []
        for x, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            if gradients:
                parts.append(
                    checkpoint(function, x, weight, t, use_reentrant=False, preserve_rng_state=False)
                )
            else:
                parts.append(function(x, weight, t))
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    return run


def _pieces(hidden: Any, weight: Any, products: int) -> tuple:
    """A packed piece of the vocabulary, and how often its product makes the whole."""
    words = weight.shape[0]
    count = next(n for n in range(1, words + 1) if words % n == 0 and words // n <= 4096)
    piece = weight[: words // count].contiguous()
    return packed_by_onednn(hidden[:CHUNK], piece), hidden.split(CHUNK), count * products


def _product(multiply: Any, rows: Any, times: int) -> None:
    for _ in range(times):
        for x in rows:
            multiply(x)

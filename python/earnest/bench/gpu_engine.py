# SPDX-License-Identifier: Apache-2.0
"""Cases of the engine on a GPU: tokens given one after the other to one sequence and to many, with random
weights of a 1.5B and of a 7B decoder in bfloat16, int8 and int4. The limit is what weights, keys and values
take at the rate of a copy; in each step ids go to the GPU and a token that was drawn there comes back, as in
an answer, but in the last one logits. What they end with is compared with the definition in float32 on the
same numbers: it may be off by twice as much as the definition in bfloat16 is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from earnest.bench import engine, engine_peers, gpu_peers, gpu_weights, qwen2
from earnest.bench.case import OURS, PEER, Case, Implementation, Problem, Target, share_off
from earnest.bench.engine_weights import QWEN2, QWEN2_7B, Decoder

SEQUENCES = (1, 8, 64)
PROMPT, TOKENS = 128, 8
CHECKED_SEQUENCES = 4
SIZES = {QWEN2.name: "1.5b", QWEN2_7B.name: "7b"}
ROUNDING = 2.0  # times the error of torch's own bfloat16


@dataclass(frozen=True)
class Shape:
    """decoder, and what its weights are kept in; tokens of each sequence behind its prompt; whether steps
    become CUDA graphs."""

    decoder: Decoder
    weights: str
    sequences: int
    prompt: int = PROMPT
    tokens: int = TOKENS
    graphs: bool = True

    @property
    def name(self) -> str:
        size = SIZES.get(self.decoder.name, self.decoder.name)
        launched = "" if self.graphs else "-launched"
        return f"{size}-{self.sequences}x{self.tokens}{launched}-{self.weights}"


def cases() -> list[Case]:
    """Those of one decoder's weights follow each other, so that these are made once; those that take longest
    to make come last, as the script on a GPU has little time."""
    orders = [(d, w) for w in engine.WEIGHTS for d in (QWEN2, QWEN2_7B)]
    return [
        case(Shape(decoder, weights, n, graphs=graphs))
        for decoder, weights in orders
        for graphs in ((True, False) if (decoder, weights) == (QWEN2, "bf16") else (True,))
        for n in SEQUENCES
    ]


def case(shape: Shape, device: str = "cuda") -> Case:
    return Case(
        name=f"engine/cuda-decode-{shape.name}",
        problem=partial(_problem, shape=shape, device=device),
        shape={
            "decoder": shape.decoder.name,
            "sequences": shape.sequences,
            "prompt": shape.prompt,
            "tokens": shape.tokens,
            "graphs": shape.graphs,
        },
        dtype="bfloat16",
        target=Target(fraction=0.8 if shape.sequences == 1 and shape.graphs else None),
        per=(shape.sequences * shape.tokens, "token"),
        quick=shape == Shape(QWEN2, "bf16", 1),
        device=device,
    )


def _problem(rng: np.random.Generator, shape: Shape, device: str) -> Problem:
    decoder, room = shape.decoder, shape.prompt + shape.tokens
    held = gpu_weights.drawn(decoder, shape.weights, device)
    ids = rng.integers(0, decoder.vocabulary, (shape.sequences, room))
    checked = np.sort(rng.choice(shape.sequences, min(CHECKED_SEQUENCES, shape.sequences), replace=False))

    def logits(dtype: str) -> list[Any]:
        weights = held.model.state_dict()
        return [qwen2.last_logits(weights, decoder.sizes, ids[checked], device, dtype)]

    exact = logits("float32")

    def fed(make: Callable[[], Any]) -> Callable[[], Callable[..., Any]]:
        def build() -> Callable[..., Any]:
            run = engine.stepping(make(), ids, shape.prompt)
            run.waits = True  # type: ignore[attr-defined]  # for ids or logits: no graph can hold it
            return run

        return build

    def implementation(name: str, make: Callable[[], Any], role: str) -> Implementation:
        return Implementation(name, fed(make), role, outputs=lambda found: [found[checked]])

    def ours() -> engine_peers.Ours:
        return engine_peers.Ours(
            decoder,
            shape.weights,
            shape.sequences,
            room,
            graphs=shape.graphs,
            loaded=held.engine,
            draws=True,
        )

    found = [implementation("earnest", ours, OURS)]
    if shape.weights == "bf16" and shape.graphs:
        name, peer = _peer()
        found.append(implementation(name, partial(peer, held.model, shape.sequences, room), PEER))
    return Problem(
        inputs=[(ids,)],
        reference=lambda ids: exact,
        implementations=found,
        tolerance=ROUNDING * share_off(logits("bfloat16"), exact),
        bytes=engine.bytes_of_steps(decoder, shape.weights, shape.sequences, shape.prompt, shape.tokens),
        error=share_off,
    )


def _peer() -> tuple[str, Callable[..., Any]]:
    """In bfloat16, which transformers has there; the model's own loop where that is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return "Python loop", gpu_peers.PythonLoop
    return "transformers", gpu_peers.Transformers

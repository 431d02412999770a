# SPDX-License-Identifier: Apache-2.0
"""Cases of the engine on a GPU: tokens given one after the other to one sequence and to many, and prompts,
with random weights of a 1.5B and of a 7B decoder in bfloat16, int8 and int4. The limit is what weights, keys
and values take at the rate of a copy, of prompts the products; in each step ids go to the GPU and a token
that was drawn there comes back, as in an answer, but in the last one logits. What they end with is compared
with the definition in float32 on the same numbers: it may be off by twice as much as the definition in
bfloat16 is.

In bfloat16 the engine with the vendor's products stands beside the one with ours: what that is faster, batch
invariance costs. Of one sequence, an engine that goes by path sm90a whole stands there too."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from earnest.bench import (
    engine,
    engine_peers,
    gpu_attention_paths,
    gpu_peers,
    gpu_weights,
    peers,
    qwen2,
)
from earnest.bench.case import ALSO, OURS, PEER, Absent, Case, Implementation, Problem, Target, share_off
from earnest.bench.engine_weights import QWEN2, QWEN2_7B, Decoder
from earnest.bench.gpu_forecast import BRIEF

SEQUENCES = (1, 8, 64)
PROMPT, TOKENS = 128, 8
LONG_PROMPT = 2048
CHECKED_SEQUENCES = 4
SIZES = {QWEN2.name: "1.5b", QWEN2_7B.name: "7b"}
PATH = "sm90a"  # that is no choice yet
ROUNDING = 2.0  # times the error of torch's own bfloat16


@dataclass(frozen=True)
class Shape:
    """decoder, and what its weights are kept in; tokens of each sequence behind its prompt, 0: the prompt is
    what is timed; whether steps become CUDA graphs."""

    decoder: Decoder
    weights: str
    sequences: int
    prompt: int = PROMPT
    tokens: int = TOKENS
    graphs: bool = True

    @property
    def name(self) -> str:
        size = SIZES.get(self.decoder.name, self.decoder.name)
        if not self.tokens:
            return f"prompt-{size}-{self.sequences}x{self.prompt}-{self.weights}"
        launched = "" if self.graphs else "-launched"
        return f"decode-{size}-{self.sequences}x{self.tokens}{launched}-{self.weights}"


def cases() -> list[Case]:
    """Those of one decoder's weights follow each other, so that these are made once; those that take longest
    to make come last, as the script on a GPU has little time."""
    found = []
    for weights in engine.WEIGHTS:
        for decoder in (QWEN2, QWEN2_7B):
            both = (True, False) if (decoder, weights) == (QWEN2, "bf16") else (True,)
            found += [case(Shape(decoder, weights, n, graphs=on)) for on in both for n in SEQUENCES]
            if weights == "bf16":
                found.append(case(Shape(decoder, weights, 1, LONG_PROMPT, 0)))
    return found


def _setup(shape: Shape) -> float:
    """Codes are made for the first of the cases that share them."""
    sizes = shape.decoder.sizes
    numbers = 3 * sizes["hidden_size"] * sizes["intermediate_size"] * sizes["num_hidden_layers"]
    makes_codes = shape.weights != "bf16" and shape.sequences == SEQUENCES[0]
    return BRIEF + numbers / 3e9 + (numbers / 500e6 if makes_codes else 0)


def case(shape: Shape, device: str = "cuda") -> Case:
    return Case(
        name=f"engine/cuda-{shape.name}",
        problem=partial(_problem, shape=shape, device=device),
        shape={
            "decoder": shape.decoder.name,
            "sequences": shape.sequences,
            "prompt": shape.prompt,
            "tokens": shape.tokens,
            "graphs": shape.graphs,
        },
        dtype="bfloat16",
        target=Target(fraction=0.8 if shape.sequences == 1 and shape.graphs and shape.tokens else None),
        per=(shape.sequences * (shape.tokens or shape.prompt), "token"),
        quick=shape == Shape(QWEN2, "bf16", 1),
        device=device,
        setup=_setup(shape),
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

    def fed(make: Callable[[], Any], path: str) -> Callable[[], Callable[..., Any]]:
        def begun() -> Callable[..., Any]:
            model = make()
            return (
                engine.stepping(model, ids, shape.prompt) if shape.tokens else lambda ids: model.feed(ids, 0)
            )

        def build() -> Callable[..., Any]:
            gpu_attention_paths.asked_for(path)
            run = peers.forced(path, peers.forced(path, begun)()) if path else begun()
            run.waits = True  # type: ignore[attr-defined]  # for ids or logits: no graph can hold it
            return run

        return build

    def implementation(name: str, make: Callable[[], Any], role: str, path: str = "") -> Implementation:
        """path: that it takes from its prompt on, as what is recorded of a step has one for good."""
        return Implementation(name, fed(make, path), role, outputs=lambda found: [found[checked]])

    def ours(products: str = "ours") -> engine_peers.Ours:
        return engine_peers.Ours(
            decoder,
            shape.weights,
            shape.sequences,
            room,
            graphs=shape.graphs,
            loaded=held.engine if products == "ours" else _with_vendor(held),
            draws=True,
        )

    found = [implementation("earnest", ours, OURS)]
    if shape.weights == "bf16" and shape.graphs:
        found.append(implementation("earnest, vendor", partial(ours, "vendor"), ALSO))
        if shape.sequences == 1 and gpu_attention_paths.has_paths(device):
            found.append(implementation(f"earnest, {PATH}", ours, ALSO, PATH))
        name, peer = _peer()
        found.append(implementation(name, partial(peer, held.model, shape.sequences, room), PEER))
    return Problem(
        inputs=[(ids,)],
        reference=lambda ids: exact,
        implementations=found,
        tolerance=ROUNDING * share_off(logits("bfloat16"), exact),
        bytes=_bytes(shape),
        operations=0 if shape.tokens else 2 * decoder.layer_weights * shape.sequences * shape.prompt,
        error=share_off,
    )


def _bytes(shape: Shape) -> int:
    if not shape.tokens:
        return shape.decoder.bytes_read(shape.weights)
    return engine.bytes_of_steps(shape.decoder, shape.weights, shape.sequences, shape.prompt, shape.tokens)


def _with_vendor(held: gpu_weights.Drawn) -> Any:
    try:
        return held.vendor
    except RuntimeError as error:
        if "] products: expected" in str(error):
            raise Absent(str(error)) from None
        raise


def _peer() -> tuple[str, Callable[..., Any]]:
    """In bfloat16, which transformers has there; the model's own loop where that is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return "Python loop", gpu_peers.PythonLoop
    return "transformers", gpu_peers.Transformers

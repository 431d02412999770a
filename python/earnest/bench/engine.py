# SPDX-License-Identifier: Apache-2.0
"""The engine's cases: decoding, one sequence and many, and prompts, in bfloat16, int8 and int4, here; what is
heard, rollouts and dialogues in modules of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from earnest.bench import engine_dialogue, engine_hearing, engine_peers, engine_rollouts, qwen2
from earnest.bench.case import OURS, Case, Implementation, Problem, Target
from earnest.bench.engine_weights import QWEN2, SMOLLM2, Decoder

WEIGHTS = ("bf16", "int8", "int4")
DECODE = {"bf16": 1.4, "int8": 1.7, "int4": 1.8}  # against llama.cpp at the same width
LARGE = {"bf16": 0.9, "int8": 0.85, "int4": 0.8}  # of the rate at which this machine reads
PREFILL = {"bf16": 1.15, "int8": 1.25}  # against OpenVINO
# Of the largest logit, against float32: random prompts, and a file that is quantised twice.
TOLERANCE = {"bf16": 0.1, "int8": 0.2, "int4": 1.0}


def cases() -> list[Case]:
    found = []
    for weights in WEIGHTS:
        for threads in (1, 2):
            found.append(
                decode(SMOLLM2, weights, threads, Target(ratio=DECODE[weights], against="llama.cpp"))
            )
            for tokens in (512, 4096):
                found.append(prefill(SMOLLM2, weights, tokens, threads))
        for sequences in (8, 32):
            found.append(batched(SMOLLM2, weights, sequences))
        target = Target(fraction=LARGE[weights])
        found.append(decode(QWEN2, weights, 2, target, prompt=128, tokens=32, size="1.5b-"))
    return [*found, *engine_hearing.cases(), *engine_rollouts.cases(), *engine_dialogue.cases()]


def decode(
    decoder: Decoder,
    weights: str,
    threads: int,
    target: Target,
    *,
    sequences: int = 1,
    prompt: int = 512,
    tokens: int = 128,
    size: str = "",
) -> Case:
    return Case(
        name=f"engine/decode-{size}{sequences}x{tokens}-{weights}-{threads}t",
        problem=lambda rng: _decoding(rng, decoder, weights, sequences, prompt, tokens),
        shape={"decoder": decoder.name, "sequences": sequences, "prompt": prompt, "tokens": tokens},
        dtype="bfloat16",
        threads=threads,
        target=target,
        per=(sequences * tokens, "token"),
    )


def batched(decoder: Decoder, weights: str, sequences: int, prompt: int = 128, tokens: int = 16) -> Case:
    """Beside transformers as well, which keeps no quantised weights here: its bfloat16 stands for them."""
    target = Target(ratio=1.3, against="llama.cpp", also={"transformers": 3.0})
    return decode(decoder, weights, 2, target, sequences=sequences, prompt=prompt, tokens=tokens)


def prefill(decoder: Decoder, weights: str, tokens: int, threads: int) -> Case:
    against = "OpenVINO" if weights in PREFILL else "llama.cpp"
    return Case(
        name=f"engine/prefill-{tokens}-{weights}-{threads}t",
        problem=lambda rng: _prefilling(rng, decoder, weights, tokens),
        shape={"decoder": decoder.name, "tokens": tokens},
        dtype="bfloat16",
        threads=threads,
        target=Target(ratio=PREFILL.get(weights, 1.0), against=against),
        per=(tokens, "token"),
    )


def _decoding(
    rng: np.random.Generator, decoder: Decoder, weights: str, sequences: int, prompt: int, tokens: int
) -> Problem:
    ids = rng.integers(0, decoder.vocabulary, (sequences, prompt + tokens))

    def build(kind: engine_peers.Feed, weights: str = weights) -> Callable[[], Callable[..., Any]]:
        def make() -> Callable[..., Any]:
            return stepping(kind(decoder, weights, sequences, prompt + tokens), ids, prompt)

        return make

    others = []
    if sequences > 1:
        loop = build(engine_peers.Transformers, "bf16")
        others.append(Implementation("transformers", loop, tolerance=TOLERANCE["bf16"]))
    read = bytes_of_steps(decoder, weights, sequences, prompt, tokens)
    return _problem(decoder, weights, [(ids,)], build, read, others)


def stepping(model: Any, ids: np.ndarray, prompt: int) -> Callable[..., Any]:
    """What feeds a model the tokens of all sequences behind their prompts, one after the other, again and
    again, and returns the last logits."""
    model.feed(ids[:, :prompt], 0)

    def run(given: np.ndarray) -> Any:
        for at in range(prompt, given.shape[1]):
            logits = model.feed(given[:, at : at + 1], at)
        return logits

    return run


def bytes_of_steps(decoder: Decoder, weights: str, sequences: int, prompt: int, tokens: int) -> int:
    """Of weights, and of the keys and values that are attended to."""
    before = sequences * (prompt * tokens + tokens * (tokens + 1) // 2)
    return decoder.bytes_read(weights) * tokens + decoder.cache_bytes(before)


def _prefilling(rng: np.random.Generator, decoder: Decoder, weights: str, tokens: int) -> Problem:
    # Fresh prompts: pipelines remember those that they have seen.
    sets = [(rng.integers(0, decoder.vocabulary, (1, tokens)),) for _ in range(16)]

    def build(kind: engine_peers.Feed) -> Callable[[], Callable[..., Any]]:
        def make() -> Callable[..., Any]:
            model = kind(decoder, weights, 1, tokens)
            return lambda given: model.feed(given, 0)

        return make

    def openvino() -> Callable[..., Any]:
        return engine_peers.OpenVino(decoder, weights).prefill

    others = [
        Implementation(
            "OpenVINO",
            openvino,
            outputs=lambda tokens: [np.zeros(1)],
            reference=lambda ids: [np.zeros(1)],
            definition="with the token it says, which is not compared",
        )
    ]
    if weights == "bf16":
        others.append(Implementation("transformers", build(engine_peers.Transformers)))
        others.append(Implementation("zentorch", build(engine_peers.Zentorch), compiles=True))
    operations = 2 * decoder.layer_weights * tokens
    return _problem(decoder, weights, sets, build, decoder.bytes_read(weights), others, operations)


def _problem(
    decoder: Decoder,
    weights: str,
    inputs: list[tuple],
    build: Callable[..., Callable[[], Callable[..., Any]]],
    read: int,
    others: list[Implementation],
    operations: int = 0,
) -> Problem:
    return Problem(
        inputs=inputs,
        reference=lambda ids: [qwen2.last_logits(decoder.tensors(), decoder.sizes, ids)],
        implementations=[
            Implementation("earnest", build(engine_peers.Ours), OURS),
            Implementation("llama.cpp", build(engine_peers.LlamaCpp)),
            *others,
        ],
        tolerance=TOLERANCE[weights],
        bytes=read,
        operations=operations,
    )

# SPDX-License-Identifier: Apache-2.0
"""Cases of the engine on SmolLM2-135M: decoding 128 tokens from 512, many sequences at one time, and prompts,
in bfloat16, int8 and int4."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from earnest.bench import engine_peers
from earnest.bench.case import OURS, Case, Implementation, Problem, Target

VOCABULARY, PARAMETERS, LAYERS = 49152, 134_515_008, 106_168_320  # of SmolLM2-135M; those of its layers
READ = {"bf16": 2 * PARAMETERS, "int8": PARAMETERS, "int4": LAYERS * 5 // 8 + (PARAMETERS - LAYERS)}
DECODE = {"bf16": 1.4, "int8": 1.7, "int4": 1.8}  # against llama.cpp at the same width
PREFILL = {"bf16": 1.15, "int8": 1.25}  # against OpenVINO
# Of the largest logit, against float32: random prompts, and a file that is quantised twice.
TOLERANCE = {"bf16": 0.1, "int8": 0.2, "int4": 1.0}


def cases() -> list[Case]:
    found = []
    for weights in ("bf16", "int8", "int4"):
        for threads in (1, 2):
            found.append(decode(weights, threads))
            for tokens in (512, 4096):
                found.append(prefill(weights, tokens, threads))
        for sequences in (8, 32):
            found.append(decode(weights, 2, sequences=sequences))
    return found


def decode(weights: str, threads: int, sequences: int = 1, prompt: int = 512, tokens: int = 128) -> Case:
    prompt, tokens = (prompt, tokens) if sequences == 1 else (128, 16)
    ratio = DECODE[weights] if sequences == 1 else 1.3
    return Case(
        name=f"engine/decode-{sequences}x{tokens}-{weights}-{threads}t",
        problem=lambda rng: _decoding(rng, weights, sequences, prompt, tokens),
        shape={"sequences": sequences, "prompt": prompt, "tokens": tokens},
        dtype="bfloat16",
        threads=threads,
        target=Target(ratio=ratio, against="llama.cpp"),
        per=(sequences * tokens, "token"),
    )


def prefill(weights: str, tokens: int, threads: int) -> Case:
    against = "OpenVINO" if weights in PREFILL else "llama.cpp"
    return Case(
        name=f"engine/prefill-{tokens}-{weights}-{threads}t",
        problem=lambda rng: _prefilling(rng, weights, tokens),
        shape={"tokens": tokens},
        dtype="bfloat16",
        threads=threads,
        target=Target(ratio=PREFILL.get(weights, 1.0), against=against),
        per=(tokens, "token"),
    )


def _decoding(rng: np.random.Generator, weights: str, sequences: int, prompt: int, tokens: int) -> Problem:
    ids = rng.integers(0, VOCABULARY, (sequences, prompt + tokens))

    def build(kind: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
        def make() -> Callable[..., Any]:
            model = kind(weights, sequences, prompt + tokens)
            model.feed(ids[:, :prompt], 0)

            def run(given: np.ndarray) -> Any:
                for at in range(prompt, prompt + tokens):
                    logits = model.feed(given[:, at : at + 1], at)
                return logits

            return run

        return make

    return _problem(weights, [(ids,)], build, READ[weights] * tokens, [])


def _prefilling(rng: np.random.Generator, weights: str, tokens: int) -> Problem:
    # Fresh prompts: pipelines remember those that they have seen.
    sets = [(rng.integers(0, VOCABULARY, (1, tokens)),) for _ in range(16)]

    def build(kind: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
        def make() -> Callable[..., Any]:
            model = kind(weights, 1, tokens)
            return lambda given: model.feed(given, 0)

        return make

    def openvino() -> Callable[..., Any]:
        return engine_peers.OpenVino(weights).prefill

    said = Implementation(
        "OpenVINO",
        openvino,
        outputs=lambda tokens: [np.zeros(1)],
        reference=lambda ids: [np.zeros(1)],
        definition="with the token it says, which is not compared",
    )
    return _problem(weights, sets, build, READ[weights], [said], operations=2 * LAYERS * tokens)


def _problem(
    weights: str,
    inputs: list[tuple],
    build: Callable[..., Callable[[], Callable[..., Any]]],
    read: int,
    others: list[Implementation],
    operations: int = 0,
) -> Problem:
    return Problem(
        inputs=inputs,
        reference=_float32,
        implementations=[
            Implementation("earnest", build(engine_peers.Ours), OURS),
            Implementation("llama.cpp", build(engine_peers.LlamaCpp)),
            *others,
        ],
        tolerance=TOLERANCE[weights],
        bytes=read,
        operations=operations,
    )


def _float32(ids: np.ndarray) -> list[Any]:
    """Logits after the last token of each sequence, by the Python model in float32."""
    import torch

    from earnest.model import AudioLM

    model = AudioLM.from_pretrained(engine_peers.joined(), dtype=torch.float32)
    rows = torch.from_numpy(ids)
    count, length = rows.shape
    with torch.no_grad():
        x = model.model.embed_tokens(rows.reshape(-1))
        bounds = torch.arange(0, count * length + 1, length, dtype=torch.int32)
        hidden = model.model(x, torch.arange(length).repeat(count), bounds)
        return [model.logits(hidden[length - 1 :: length])]

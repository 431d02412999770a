# SPDX-License-Identifier: Apache-2.0
"""Cases of the engine on a GPU: tokens given one after the other to one sequence and to many, with random
weights of a 1.5B and of a 7B decoder. The limit is what weights, keys and values take at the rate of a copy;
ids go to the GPU and logits come back in each step, as in an answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from earnest.bench import engine, engine_peers, qwen2
from earnest.bench.case import OURS, Case, Implementation, Problem, Target
from earnest.bench.engine_weights import QWEN2, QWEN2_7B, Decoder

SEQUENCES = (1, 8, 64)
PROMPT, TOKENS = 128, 32
CHECKED_SEQUENCES = 4
SIZES = {QWEN2.name: "1.5b", QWEN2_7B.name: "7b"}


def cases() -> list[Case]:
    """Those whose weights take longest to make come last: the script on a GPU has little time."""
    found = [case(QWEN2, "bf16", sequences) for sequences in SEQUENCES]
    found.append(case(QWEN2, "int8", 1))
    found += [case(QWEN2, "bf16", sequences, graphs=False) for sequences in SEQUENCES]
    found += [case(QWEN2_7B, "bf16", sequences) for sequences in SEQUENCES]
    return [*found, case(QWEN2, "int4", 1)]


def case(
    decoder: Decoder,
    weights: str,
    sequences: int,
    prompt: int = PROMPT,
    tokens: int = TOKENS,
    device: str = "cuda",
    graphs: bool = True,
) -> Case:
    size = SIZES.get(decoder.name, decoder.name)
    return Case(
        name=f"engine/cuda-decode-{size}-{sequences}x{tokens}-{weights}{'' if graphs else '-launched'}",
        problem=partial(
            _problem,
            decoder=decoder,
            weights=weights,
            sequences=sequences,
            prompt=prompt,
            tokens=tokens,
            device=device,
            graphs=graphs,
        ),
        shape={
            "decoder": decoder.name,
            "sequences": sequences,
            "prompt": prompt,
            "tokens": tokens,
            "graphs": graphs,
        },
        dtype="bfloat16",
        target=Target(fraction=0.8 if sequences == 1 and graphs else None),
        per=(sequences * tokens, "token"),
        quick=(decoder, weights, sequences) == (QWEN2, "bf16", 1),
        device=device,
    )


def _problem(
    rng: np.random.Generator,
    decoder: Decoder,
    weights: str,
    sequences: int,
    prompt: int,
    tokens: int,
    device: str,
    graphs: bool,
) -> Problem:
    ids = rng.integers(0, decoder.vocabulary, (sequences, prompt + tokens))
    rows = np.sort(rng.choice(sequences, min(CHECKED_SEQUENCES, sequences), replace=False))

    def build() -> Callable[..., Any]:
        run = engine.stepping(
            engine_peers.Ours(decoder, weights, sequences, prompt + tokens, device, graphs), ids, prompt
        )
        run.waits = True  # type: ignore[attr-defined]  # for logits: no graph can hold it
        return run

    return Problem(
        inputs=[(ids,)],
        reference=lambda ids: [qwen2.last_logits(decoder.tensors(), decoder.sizes, ids[rows], device)],
        implementations=[Implementation("earnest", build, OURS, outputs=lambda logits: [logits[rows]])],
        tolerance=engine.TOLERANCE[weights],
        bytes=engine.bytes_of_steps(decoder, weights, sequences, prompt, tokens),
    )

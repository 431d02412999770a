# SPDX-License-Identifier: Apache-2.0
"""Cases of dialogues: how long after a spoken turn the first token of the reply comes, in turn 50 beside turn
2, and what a model costs to load and to have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from earnest.bench import engine_peers, engine_weights, qwen2
from earnest.bench.case import OURS, YARDSTICK, Case, Implementation, Problem, Target
from earnest.bench.engine_weights import Decoder
from earnest.bench.pitch import voice

SECONDS, RATE = 5, 16_000  # of a turn
# An answer of 20 tokens, as a sentence has: the small vocabulary knows hardly any other words whole.
WORDS = "a few words to read and to say, a few words to read and to say, "
SLOWER = 1.2  # what turn 50 may take of turn 2's time
LOAD_SECONDS, REST_BYTES = 0.3, 64 << 20
LOAD_TOLERANCE = 0.1  # of the largest logit, against float32
KV_BYTES, TOKENS = 64 << 20, 64
Folder = Callable[[], Path]


def cases() -> list[Case]:
    return [first_token(), load(engine_weights.SMOLLM2), memory()]


def first_token(late: int = 50, folder: Folder = engine_weights.talking) -> Case:
    return Case(
        name=f"engine/first-token-turn-{late}",
        problem=lambda rng: _first_token(rng, late, folder),
        shape={"turns": late, "seconds": SECONDS},
        dtype="bfloat16",
        threads=2,
        target=Target(ratio=1 / SLOWER, against="turn 2"),
    )


def load(decoder: Decoder) -> Case:
    """Of a checkpoint whose pages the system has already."""
    return Case(
        name="engine/load-bf16",
        problem=lambda rng: _load(rng, decoder),
        shape={"decoder": decoder.name},
        dtype="bfloat16",
        threads=2,
        target=Target(seconds=LOAD_SECONDS),
    )


def memory(folder: Folder = engine_weights.talking) -> Case:
    """Beside weights, keys and values, from before the model is loaded to the end of an answer."""
    return Case(
        name="engine/memory-bf16",
        problem=lambda rng: _memory(rng, folder),
        shape={"seconds": SECONDS, "tokens": TOKENS},
        dtype="bfloat16",
        threads=2,
        target=Target(extra_bytes=REST_BYTES),
    )


# ---- the first token ----


def _first_token(rng: np.random.Generator, late: int, folder: Folder) -> Problem:
    spoken, _ = voice(rng, SECONDS)
    turns = {
        name: partial(_Dialogue, folder, spoken, count) for name, count in (("earnest", late), ("turn 2", 2))
    }

    def implementation(name: str, role: str) -> Implementation:
        return Implementation(
            name, turns[name], role, extra=False,
            checked=lambda: turns[name]().after(2),
            reference=lambda: [turns[name](calls=2).after(0)],
        )  # fmt: skip

    return Problem(
        inputs=[()],
        reference=lambda: [],
        implementations=[implementation("earnest", OURS), implementation("turn 2", YARDSTICK)],
        tolerance=0.0,  # what was kept gives the bits of what is computed again
        bytes=0,
    )


class _Dialogue:
    """Spoken turns, and one more that is spoken when this is called: from its last sample to the first token
    of the reply, then back. Each time it is another sound, so that nothing of it is remembered. `calls`: as
    if there had been so many."""

    def __init__(self, folder: Folder, spoken: np.ndarray, turns: int, calls: int = 0) -> None:
        from earnest.engine import Engine

        self._spoken, self._calls = spoken, calls
        self._engine = Engine(folder())
        self._session = self._engine.session()
        for turn in range(turns - 1):
            self._session.add_audio(self._sound(-turn - 1), RATE)
            self._session.add_answer(WORDS)
        self._past = len(self._session)
        if calls == 0:
            self._session.warm()
        self._speak()

    def __call__(self) -> np.ndarray:
        logp = self._reply()
        self._session.truncate(self._past)
        self._speak()
        return logp

    def after(self, calls: int) -> np.ndarray:
        """The log-probability of the first token of the next reply."""
        for _ in range(calls):
            self()
        return self._reply()

    def _reply(self) -> np.ndarray:
        self._clip.commit()
        with self._session.generate(max_tokens=1, temperature=0.0) as answer:
            for _ in answer:
                pass
            return answer.tokens()[1]

    def _sound(self, number: int) -> np.ndarray:
        return np.roll(self._spoken, 1234 * number)

    def _speak(self) -> None:
        """All of the turn but its end: its features are there before that."""
        self._calls += 1
        self._clip = self._session.speak(RATE)
        self._clip.push(self._sound(self._calls))


# ---- loading ----


def _load(rng: np.random.Generator, decoder: Decoder) -> Problem:
    ids = rng.integers(0, decoder.vocabulary, (1, 32))

    def ours() -> Callable[..., Any]:
        from earnest import _native

        folder = str(decoder.checkpoint())
        return lambda ids: _native.engine.load(folder, "bfloat16")

    return Problem(
        inputs=[(ids,)],
        reference=lambda ids: [qwen2.last_logits(decoder.tensors(), decoder.sizes, ids)],
        implementations=[
            Implementation(
                "earnest", ours, OURS, result_bytes=lambda model: model.weight_bytes,
                checked=lambda ids: engine_peers.Ours(decoder, "bf16", 1, ids.shape[1]).feed(ids, 0),
            )
        ],
        tolerance=LOAD_TOLERANCE,
        bytes=0,
    )  # fmt: skip


# ---- memory ----


def _memory(rng: np.random.Generator, folder: Folder) -> Problem:
    spoken, _ = voice(rng, SECONDS)

    def whole(spoken: np.ndarray) -> tuple[int, int]:
        """(tokens of the answer, bytes of weights, keys and values in use)."""
        from earnest.engine import Engine

        path = folder()
        with Engine(path, kv_bytes=KV_BYTES) as engine:
            session = engine.session()
            session.add_audio(spoken, RATE)
            with session.generate(max_tokens=TOKENS, temperature=0.0) as answer:
                for _ in answer:
                    pass
                said = len(answer.tokens()[0])
            counts = engine.stats()
        weights = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        return said, weights + KV_BYTES * counts["kv_tokens_used"] // counts["kv_tokens"]

    return Problem(
        inputs=[(spoken,)],
        reference=lambda spoken: [np.ones(1)],
        implementations=[
            Implementation(
                "earnest", lambda: whole, OURS, result_bytes=lambda result: result[1],
                outputs=lambda result: [np.array([float(result[0] > 0)])],
            )
        ],
        tolerance=0.0,
        bytes=0,
    )  # fmt: skip

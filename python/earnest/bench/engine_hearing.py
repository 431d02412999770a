# SPDX-License-Identifier: Apache-2.0
"""Cases of hearing: Whisper's base encoder over 30 s of frames. Ours is the engine's, its adaptor included;
the peers' is the encoder alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from earnest.bench import engine_weights, whisper_peers
from earnest.bench.case import ALSO, OURS, Case, Implementation, Problem, Target, share_off
from earnest.bench.pitch import voice
from earnest.bench.whisper_peers import Encoder
from earnest.features import LogMel

FRAMES = 3000
WANTED = 1.3  # times faster than the best peer
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}  # against float32
INT8_TOLERANCE = 0.2


def cases() -> list[Case]:
    return [case(dtype, threads) for dtype in ("float32", "bfloat16") for threads in (1, 2)]


def case(dtype: str, threads: int, folder: Callable[[], Path] = engine_weights.joined) -> Case:
    short = "fp32" if dtype == "float32" else "bf16"
    return Case(
        name=f"engine/encoder-30s-{short}-{threads}t",
        problem=partial(_problem, dtype=dtype, folder=folder),
        shape={"frames": FRAMES},
        dtype=dtype,
        threads=threads,
        target=Target(ratio=WANTED),
        per=(30, "second"),
    )


def _problem(rng: np.random.Generator, *, dtype: str, folder: Callable[[], Path]) -> Problem:
    encoder = Encoder(folder())
    mel = np.ascontiguousarray(LogMel(encoder.config.n_mels)(voice(rng, FRAMES // 100)[0]).T)
    theirs = {
        "CTranslate2": whisper_peers.ctranslate2,
        "OpenVINO": whisper_peers.openvino,
        "torch": whisper_peers.plain_torch,
        "zentorch": whisper_peers.zentorch,
    }
    peers = [
        Implementation(
            f"{name} int8" if (int8 := name == "CTranslate2" and dtype == "bfloat16") else name,
            partial(build, encoder, dtype),
            tolerance=INT8_TOLERANCE if int8 else None,
            definition="it has no bfloat16" if int8 else "",
            compiles=name in ("OpenVINO", "zentorch"),
        )
        for name, build in theirs.items()
    ]
    whisper_cpp = partial(whisper_peers.WhisperCpp, encoder)
    return Problem(
        inputs=[(mel,)],
        reference=lambda mel: [encoder.heard(mel)],
        implementations=[
            Implementation(
                "earnest", partial(_ours, encoder, dtype), OURS, definition="with the adaptor",
                reference=lambda mel: [encoder.embeddings(mel)],
            ),
            Implementation("earnest in Python", partial(_in_python, encoder, dtype), ALSO, extra=False),
            *peers,
            Implementation(
                "whisper.cpp", whisper_cpp, tolerance=TOLERANCE["bfloat16"],
                checked=lambda mel: whisper_cpp().answers(mel), reference=lambda mel: [encoder.answers(mel)],
                definition="with float16 weights",
            ),
        ],
        tolerance=TOLERANCE[dtype],
        bytes=encoder.weights * (4 if dtype == "float32" else 2),
        operations=encoder.operations(FRAMES),
        error=share_off,
    )  # fmt: skip


def _ours(encoder: Encoder, dtype: str) -> Callable[..., Any]:
    import torch

    from earnest import _native

    model = _native.engine.load(str(encoder.folder), dtype)
    out = torch.empty(model.audio_tokens(FRAMES), encoder.config.llm_dim, dtype=getattr(torch, dtype))

    def run(mel: np.ndarray) -> Any:
        model.hear(mel, out)
        return out

    return run


def _in_python(encoder: Encoder, dtype: str) -> Callable[..., Any]:
    import torch

    module = encoder.module(getattr(torch, dtype))

    def run(mel: np.ndarray) -> Any:
        with torch.inference_mode():
            return module([torch.from_numpy(mel.T)])[0]

    return run

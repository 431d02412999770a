# SPDX-License-Identifier: Apache-2.0
"""The engine and its peers on SmolLM2-135M, each with the weights in the form it reads, kept in a cache
folder. Tokens are given, not drawn, so that all do the same work and end with comparable logits."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from earnest.bench import peers
from earnest.bench.case import Absent

GGUF = {"bf16": "MOSTLY_BF16", "f16": "MOSTLY_F16", "int8": "MOSTLY_Q8_0", "int4": "MOSTLY_Q4_0"}


def models() -> Path:
    """The folder of pretrained weights: EARNEST_MODELS, or the data pack beside the checkout."""
    folder = Path(os.environ.get("EARNEST_MODELS", "shared/data/models"))
    if not (folder / "smollm2-135m-instruct").is_dir():
        raise Absent(f"{folder}: no smollm2-135m-instruct (EARNEST_MODELS names another folder)")
    return folder


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """What `make` writes, made once."""
    path = Path(os.environ.get("EARNEST_BENCH_CACHE", Path(tempfile.gettempdir()) / "earnest-bench")) / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"making-{os.getpid()}-{name}")
        make(beside)
        beside.rename(path)
    return path


def joined() -> Path:
    """Whisper base and SmolLM2 as one checkpoint in bfloat16."""

    def make(path: Path) -> None:
        import torch

        from earnest.model.join import join

        parts = (models() / "whisper-base-encoder", models() / "smollm2-135m-instruct")
        generator = torch.Generator().manual_seed(0)
        join(*parts, dtype=torch.bfloat16, generator=generator).save_pretrained(path)

    return cached("smollm2-whisper-base", make)


def gguf(weights: str) -> Path:
    """SmolLM2 as llama.cpp keeps it; from the given file, so other formats are twice quantised: for speed."""
    llama = peers.load("llama_cpp", "llama-cpp-python")
    source = next((models() / "smollm2-135m-instruct").glob("*.gguf"))

    def make(path: Path) -> None:
        settings = llama.llama_model_quantize_default_params()
        settings.ftype = getattr(llama, f"LLAMA_FTYPE_{GGUF[weights]}")
        settings.allow_requantize = True
        if llama.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(settings)):
            raise Absent("llama-cpp-python: cannot convert the model")

    return cached(f"smollm2-{weights}.gguf", make)


class Ours:
    """The engine with caches for some sequences."""

    def __init__(self, weights: str, sequences: int, room: int) -> None:
        import torch

        from earnest import _native

        quantization = "none" if weights == "bf16" else weights
        self._model = _native.engine.load(str(joined()), "bfloat16", quantization)
        pool = self._model.pool(sequences * room)
        self._caches = [pool.allocate(room) for _ in range(sequences)]
        self._torch, self._hidden = torch, torch.empty(sequences, 576, dtype=torch.bfloat16)
        self._logits = torch.empty(sequences, 49152)

    def feed(self, ids: np.ndarray, start: int) -> Any:
        """Tokens [sequences, count] at position `start` of each -> logits after the last of each."""
        rows = self._torch.from_numpy(ids)
        for cache in self._caches:
            if cache.length > start:
                cache.truncate(start)
        segments = [(cache, row, None, 1) for cache, row in zip(self._caches, rows, strict=True)]
        self._model.forward(segments, self._hidden)
        self._model.logits(self._hidden, self._logits)
        return self._logits


class LlamaCpp:
    """The same with llama.cpp."""

    def __init__(self, weights: str, sequences: int, room: int) -> None:
        from earnest import ops

        self._api = api = peers.load("llama_cpp", "llama-cpp-python")
        self._silence = api.llama_log_callback(lambda *_: None)
        api.llama_log_set(self._silence, None)
        path = str(gguf(weights)).encode()
        self._model = api.llama_model_load_from_file(path, api.llama_model_default_params())
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = sequences * room, room * sequences, 512
        settings.n_seq_max, settings.kv_unified = sequences, sequences > 1
        settings.n_threads = settings.n_threads_batch = ops.num_threads()
        self._context = api.llama_init_from_model(self._model, settings)
        self._batch = api.llama_batch_init(sequences * room, 0, 1)
        self._sequences = sequences

    def feed(self, ids: np.ndarray, start: int) -> np.ndarray:
        api, batch = self._api, self._batch
        memory = api.llama_get_memory(self._context)
        api.llama_memory_seq_rm(memory, -1, start, -1)
        for i, (sequence, offset) in enumerate(np.ndindex(*ids.shape)):
            batch.token[i] = int(ids[sequence, offset])
            batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = start + offset, 1, sequence
            batch.logits[i] = offset == ids.shape[1] - 1
        batch.n_tokens = ids.size
        if api.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        last = [(i + 1) * ids.shape[1] - 1 for i in range(self._sequences)]
        rows = [np.ctypeslib.as_array(api.llama_get_logits_ith(self._context, i), (49152,)) for i in last]
        return rows[0][None] if len(rows) == 1 else np.stack(rows)


class OpenVino:
    """OpenVINO GenAI's pipeline on the given file. It says a token, no logits."""

    def __init__(self, weights: str) -> None:
        from earnest import ops

        genai = peers.load("openvino_genai", "openvino-genai")
        self._openvino = peers.load("openvino")
        properties = {
            "INFERENCE_NUM_THREADS": ops.num_threads(),
            "INFERENCE_PRECISION_HINT": "bf16",
            "ATTENTION_BACKEND": "SDPA",  # without its cache of prefixes
        }
        form = "f16" if weights == "bf16" else weights  # it reads no bfloat16
        self._pipeline = genai.LLMPipeline(str(gguf(form)), "CPU", **properties)

    def prefill(self, ids: np.ndarray) -> list[int]:
        tensor = self._openvino.Tensor(np.ascontiguousarray(ids))
        return self._pipeline.generate(tensor, max_new_tokens=1, do_sample=False).tokens[0]

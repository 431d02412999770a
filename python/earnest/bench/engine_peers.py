# SPDX-License-Identifier: Apache-2.0
"""The engine and its peers on a decoder, each with the weights in the form it reads. Tokens are given, not
drawn, so that all do the same work and end with comparable logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from earnest.bench import peers
from earnest.bench.case import Absent
from earnest.bench.engine_weights import Decoder


class Ours:
    """The engine with caches for some sequences. On a GPU, too, it is given tokens and gives logits in the
    memory of the host. graphs: its steps there are CUDA graphs; one that cannot be recorded is an error.
    loaded: over weights that somebody holds, not those of the checkpoint. draws: as in an answer, each step
    but the last of its room draws a token, which nobody looks at, in place of logits."""

    def __init__(
        self,
        decoder: Decoder,
        weights: str,
        sequences: int,
        room: int,
        device: str = "cpu",
        graphs: bool = True,
        loaded: Any = None,
        draws: bool = False,
    ) -> None:
        import torch

        from earnest import _native

        if loaded is None:
            loaded = _native.engine.load(str(decoder.checkpoint(weights)), "bfloat16", device=device)
        self._model = loaded
        pool = self._model.pool(sequences * room)
        self._caches = [pool.allocate(room) for _ in range(sequences)]
        self._graphs = _native.engine.DecodeGraphs(graphs)
        self._torch = torch
        self._hidden = torch.empty(sequences, decoder.width, dtype=torch.bfloat16)
        self._logits = torch.empty(sequences, decoder.vocabulary)
        self._draws = (1.0, torch.rand(sequences, dtype=torch.float64), torch.empty(sequences).int())
        self._last_drawn = room - 1 if draws else 0

    def feed(self, ids: np.ndarray, start: int) -> Any:
        """Tokens [sequences, count] at position `start` of each -> logits after the last of each."""
        rows = self._torch.from_numpy(ids)
        for cache in self._caches:
            if cache.length > start:
                cache.truncate(start)
        segments = [(cache, row, None, 1) for cache, row in zip(self._caches, rows, strict=True)]
        if ids.shape[1] > 1:
            self._model.forward(segments, self._hidden)
            self._model.logits(self._hidden, self._logits)
            return self._logits
        draws = self._draws if start < self._last_drawn else None
        self._model.decode(segments, self._hidden, self._logits, self._graphs, draws)
        if trouble := self._graphs.counts()["graph_trouble"]:
            raise RuntimeError(trouble)
        return self._logits

    def counts(self) -> dict[str, Any]:
        return self._graphs.counts()


def qwen2_config(transformers: Any, text: Any) -> Any:
    """A decoder's config as transformers has it."""
    sizes = {
        name: getattr(text, name)
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
        )
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": text.rope_theta}
    return transformers.Qwen2Config(**sizes, rope_parameters=rope, bos_token_id=None, eos_token_id=None)


class LlamaCpp:
    """The same with llama.cpp."""

    def __init__(self, decoder: Decoder, weights: str, sequences: int, room: int) -> None:
        from earnest import ops

        self._api = api = peers.load("llama_cpp", "llama-cpp-python")
        self._silence = api.llama_log_callback(lambda *_: None)
        api.llama_log_set(self._silence, None)
        path = str(decoder.gguf(weights)).encode()
        self._model = api.llama_model_load_from_file(path, api.llama_model_default_params())
        if not self._model:
            raise RuntimeError("llama.cpp does not load its file")
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = sequences * room, room * sequences, 512
        settings.n_seq_max, settings.kv_unified = sequences, sequences > 1
        settings.n_threads = settings.n_threads_batch = ops.num_threads()
        self._context = api.llama_init_from_model(self._model, settings)
        self._batch = api.llama_batch_init(sequences * room, 0, 1)
        self._shape = sequences, decoder.vocabulary

    def feed(self, ids: np.ndarray, start: int) -> np.ndarray:
        api, batch = self._api, self._batch
        sequences, vocabulary = self._shape
        memory = api.llama_get_memory(self._context)
        api.llama_memory_seq_rm(memory, -1, start, -1)
        for i, (sequence, offset) in enumerate(np.ndindex(*ids.shape)):
            batch.token[i] = int(ids[sequence, offset])
            batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = start + offset, 1, sequence
            batch.logits[i] = offset == ids.shape[1] - 1
        batch.n_tokens = ids.size
        if api.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        last = [(i + 1) * ids.shape[1] - 1 for i in range(sequences)]
        rows = [
            np.ctypeslib.as_array(api.llama_get_logits_ith(self._context, i), (vocabulary,)) for i in last
        ]
        return rows[0][None] if len(rows) == 1 else np.stack(rows)

    def __del__(self) -> None:  # the weights of a large one should not stay until the process ends
        if hasattr(self, "_context"):
            self._api.llama_batch_free(self._batch)
            self._api.llama_free(self._context)
        if getattr(self, "_model", None):
            self._api.llama_model_free(self._model)


class Transformers:
    """The loop that transformers' generate runs: all sequences in one batch, each step's keys and values put
    behind the others."""

    def __init__(self, decoder: Decoder, weights: str, sequences: int, room: int) -> None:
        import torch

        if weights != "bf16":
            raise Absent(f"transformers: bfloat16 on CPUs, not {weights}")
        self._torch, self._transformers = torch, peers.load("transformers")
        self._transformers.logging.set_verbosity_error()
        config = qwen2_config(self._transformers, decoder.config().text_config)
        with torch.device("meta"):
            model = self._transformers.Qwen2ForCausalLM(config)
        model = model.to(torch.bfloat16).to_empty(device="cpu")
        stored = decoder.tensors()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(stored[name])
        rotary = type(model.model.rotary_emb)
        model.model.rotary_emb = rotary(config=config)  # its frequencies are no parameters
        self.model = model.eval()
        self._cache: Any = None

    def feed(self, ids: np.ndarray, start: int) -> Any:
        if start == 0:
            self._cache = self._transformers.DynamicCache(config=self.model.config)
        elif (beyond := self._cache.get_seq_length() - start) > 0:
            self._cache.crop(-beyond)
        with self._torch.inference_mode():
            said = self.model(input_ids=self._torch.from_numpy(ids), cache=self._cache, logits_to_keep=1)
        return said.logits[:, -1]


class Zentorch(Transformers):
    """transformers compiled by AMD's zentorch, with frozen weights."""

    def __init__(self, decoder: Decoder, weights: str, sequences: int, room: int) -> None:
        super().__init__(decoder, weights, sequences, room)
        self.model.forward = peers.compiled_by_zentorch(self.model.forward)


class OpenVino:
    """OpenVINO GenAI's pipeline on the given file. It says a token, no logits."""

    def __init__(self, decoder: Decoder, weights: str) -> None:
        from earnest import ops

        genai = peers.load("openvino_genai", "openvino-genai")
        self._openvino = peers.load("openvino")
        properties = {
            "INFERENCE_NUM_THREADS": ops.num_threads(),
            "INFERENCE_PRECISION_HINT": "bf16",
            "ATTENTION_BACKEND": "SDPA",  # without its cache of prefixes
        }
        form = "f16" if weights == "bf16" else weights  # it reads no bfloat16
        self._pipeline = genai.LLMPipeline(str(decoder.gguf(form)), "CPU", **properties)

    def prefill(self, ids: np.ndarray) -> list[int]:
        tensor = self._openvino.Tensor(np.ascontiguousarray(ids))
        return self._pipeline.generate(tensor, max_new_tokens=1, do_sample=False).tokens[0]


Feed = Callable[[Decoder, str, int, int], Any]

# SPDX-License-Identifier: Apache-2.0
"""Who decodes beside the engine on a GPU, over the same tensors and from the same given tokens."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from earnest.bench import peers
from earnest.bench.engine_peers import qwen2_config


class Transformers:
    """transformers' Qwen2 with its static cache. generate() compiles a step with that cache, which takes
    minutes; here the step is recorded as a CUDA graph as it is, so that launches do not count either."""

    def __init__(self, model: Any, sequences: int, room: int) -> None:
        import torch

        self._torch, self._transformers = torch, peers.load("transformers")
        self._transformers.logging.set_verbosity_error()
        config = qwen2_config(self._transformers, model.config.text_config)
        with torch.device("meta"):
            self._model = self._transformers.Qwen2ForCausalLM(config)
        held = model.state_dict()
        self._model.load_state_dict({name: held[name] for name in self._model.state_dict()}, assign=True)
        rotary = type(self._model.model.rotary_emb)
        self._model.model.rotary_emb = rotary(config=config).to(
            model.device
        )  # its frequencies are no weights
        self._model.eval()
        # "past_key_values" until 5.2x
        named = inspect.signature(self._model.forward).parameters
        self._cache_name = "cache" if "cache" in named else "past_key_values"
        self._room = room
        self._ids = torch.zeros(sequences, 1, dtype=torch.int64, device=model.device)
        self._cache: Any = None
        self._next = 0
        self._graph: Any = None
        self._logits: Any = None

    def feed(self, ids: np.ndarray, start: int) -> Any:
        """Tokens [sequences, count] at position `start` of each -> logits after the last of each."""
        given = self._torch.from_numpy(ids)
        if start == 0:
            self._graph, self._next = None, ids.shape[1]
            self._cache = self._transformers.StaticCache(config=self._model.config, max_cache_len=self._room)
            return self._run(given.to(self._ids.device))
        if start != self._next:  # else each layer has counted on
            self._go_to(start)
        self._next = start + ids.shape[1]
        self._ids.copy_(given)
        if not self._ids.is_cuda:
            return self._run(self._ids)
        if self._graph is None:
            self._record()
            self._go_to(start)
        self._graph.replay()
        return self._logits

    def _go_to(self, start: int) -> None:
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(start)

    def _run(self, ids: Any) -> Any:
        with self._torch.no_grad():  # what inference_mode makes could not be set back outside
            said = self._model(input_ids=ids, logits_to_keep=1, **{self._cache_name: self._cache})
        return said.logits[:, -1]

    def _record(self) -> None:
        """One step as a graph, after one that is not, in which libraries take the memory that they keep."""
        cuda = self._torch.cuda
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            self._run(self._ids)
        cuda.current_stream().wait_stream(side)
        self._graph = cuda.CUDAGraph()
        with cuda.graph(self._graph):
            self._logits = self._run(self._ids)


class PythonLoop:
    """The loop of earnest.model.generate, by torch's operations and our attention."""

    def __init__(self, model: Any, sequences: int, room: int) -> None:
        from earnest.model.kv_cache import KVCache

        self._model = model
        self._cache = KVCache(
            model.config.text_config, sequences, room, dtype=model.head_weight.dtype, device=model.device
        )
        self._live: Any = None
        self._next = 0

    def feed(self, ids: np.ndarray, start: int) -> Any:
        """The same."""
        import torch

        from earnest.model.kv_cache import LiveRows
        from earnest.model.packed import cu_seqlens_of

        decoder, device = self._model.model, self._model.device
        rows, count = ids.shape
        x = decoder.embed_tokens(torch.from_numpy(ids).to(device).reshape(-1))
        with torch.no_grad():
            if start == 0:
                bounds = cu_seqlens_of([count] * rows, device)
                positions = torch.arange(count, device=device).repeat(rows)
                hidden = decoder.run(x, positions, self._cache.prefill(bounds), bounds[1:].long() - 1)
                return self._model.logits(hidden)
            if self._live is None or start != self._next:
                self._live = LiveRows(self._cache, torch.full((rows,), start, device=device))
            hidden = decoder.run(x, self._live.lengths, self._live.attend)
            self._live.advance()
            self._next = start + 1
            return self._model.logits(hidden)

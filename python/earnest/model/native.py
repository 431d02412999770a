# SPDX-License-Identifier: Apache-2.0
"""The native engine as the sampler of a model: it reads the model's own tensors where they lie, and draws
without Python between two tokens. On the CPU it gives the tokens and log-probabilities that the loop in
generate.py gives, bit for bit; on a GPU, where bits depend on who multiplies, the same up to rounding.

On a GPU the engine's work stands on the default stream. Each call lets that wait, by an event, for what the
current stream has been given (an update of the weights, the prompts), and afterwards the current stream for
the engine's: the host waits for neither."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from earnest import _native
from earnest.ops import cuda
from earnest.ops.eager import call

if TYPE_CHECKING:
    from earnest.model.audio_lm import AudioLM
    from earnest.model.generate import Sampling
    from earnest.model.kv_cache import KVCache


_HEADS_ON_CUDA = (64, 128)


def precision_of(model: AudioLM) -> str | None:
    """How the engine would compute what the model computes here and now; None where it cannot."""
    weight = model.lm_head.weight
    if cuda.takes(weight):
        return _precision_on_cuda(model)
    if not weight.is_cpu or weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    if weight.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
        return "mixed" if torch.get_autocast_dtype("cpu") == torch.bfloat16 else None
    return str(weight.dtype).removeprefix("torch.")


def gives_the_models_bits(model: AudioLM) -> bool:
    """Whether what the engine samples has the very log-probabilities that the model would compute."""
    return not cuda.takes(model.lm_head.weight) and precision_of(model) is not None


def _precision_on_cuda(model: AudioLM) -> str | None:
    """There it has bfloat16 alone: not float32 weights, whose numbers are not these."""
    weight, config = model.lm_head.weight, model.config
    if weight.dtype != torch.bfloat16 or (weight.is_cuda and _native.CUDA_BUILD != "ON"):
        return None
    if torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") != torch.bfloat16:
        return None
    audio = config.audio_encoder_config
    heads = (config.text_config.head_dim, audio.n_audio_state // audio.n_audio_head)
    return "bfloat16" if all(dim in _HEADS_ON_CUDA for dim in heads) else None


@contextmanager
def _after_the_current_stream(weight: Tensor) -> Iterator[None]:
    """Inside, the engine may work on the weight's GPU: after the current stream, and that after it."""
    if not weight.is_cuda:
        yield
        return
    with torch.cuda.device(weight.device):
        current, default = torch.cuda.current_stream(), torch.cuda.default_stream()
        default.wait_stream(current)
        yield
        current.wait_stream(default)


class Twin:
    """The engine's model over the tensors of a Python one, which it keeps up with."""

    def __init__(self, model: AudioLM, precision: str) -> None:
        self.precision = precision
        self._tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        self._weight = self._tensors["lm_head.weight"]
        config = json.dumps(model.config.to_dict())
        with _after_the_current_stream(self._weight):
            self._native: Any = call(_native.engine.from_memory, config, self._tensors, precision)
        self._seen = self._state()

    @staticmethod
    def of(model: AudioLM, precision: str) -> Twin:
        """The twin that the model has, or a new one where its tensors have moved."""
        twin = _twins.get(model)
        if twin is None or twin.precision != precision or not twin._lies_where(model):
            twin = _twins[model] = Twin(model, precision)
        twin._keep_up()
        return twin

    def generate(
        self,
        cache: KVCache,
        lengths: Tensor,
        hidden: Tensor,
        uniforms: Tensor,
        sampling: Sampling,
        stop_ids: list[int],
        after_stop: int,
    ) -> tuple[list[tuple[list[int], list[float], bool]], Tensor]:
        """(ids, log-probabilities, whether a stop token ended it) of each row of the cache, which holds the
        prompts; and the states [rows, hidden] from which the last tokens were drawn."""
        lengths, hidden, uniforms = lengths.cpu(), hidden.cpu(), uniforms.cpu()
        drawn_from = torch.empty_like(hidden)
        with _after_the_current_stream(self._weight):
            said = call(
                self._native.generate,
                cache.keys, cache.values, lengths, cache.max_tokens, hidden, uniforms, sampling.temperature,
                sampling.top_p, sampling.top_k, list(sampling.suppress_ids), stop_ids, after_stop, drawn_from,
            )  # fmt: skip
        return said, drawn_from

    def _lies_where(self, model: AudioLM) -> bool:
        now = model.state_dict()
        return now.keys() == self._tensors.keys() and all(
            tensor.data_ptr() == self._tensors[name].data_ptr() for name, tensor in now.items()
        )

    def _keep_up(self) -> None:
        state = self._state()
        if state != self._seen:
            with _after_the_current_stream(self._weight):
                self._native.refresh()
            self._seen = state

    def _state(self) -> list[int]:
        """Differs after every change that leaves a trace: torch counts those in place, and where somebody
        wrote past it, a look at some numbers of each matrix shows it (as for ops.linear). On a GPU matrices
        are read where they lie, so that no change to them can be missed."""
        versions = [tensor._version for tensor in self._tensors.values()]
        if cuda.takes(self._weight):
            return versions
        looks = [
            _native.linear_fingerprint(to_dlpack(tensor))
            for tensor in self._tensors.values()
            if tensor.ndim == 2 and tensor.is_contiguous()
        ]
        return versions + looks


_twins: weakref.WeakKeyDictionary[AudioLM, Twin] = weakref.WeakKeyDictionary()

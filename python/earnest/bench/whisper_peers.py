# SPDX-License-Identifier: Apache-2.0
"""Whisper's encoder as the peers have it, each built from the weights of one checkpoint."""

from __future__ import annotations

import atexit
import json
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from earnest.bench import ggml_whisper, peers
from earnest.bench.case import Absent

Run = Callable[[np.ndarray], Any]  # mel [frames, n_mels] -> what it heard


class Encoder:
    """The encoder of a checkpoint as Whisper runs it: every frame counts, no pool before the last norm."""

    def __init__(self, folder: Path) -> None:
        from dataclasses import replace

        from earnest.model import AudioLMConfig
        from earnest.model.weights import Checkpoint

        self.folder = folder
        joined = AudioLMConfig.load(folder).audio_encoder_config
        self.config = replace(joined, avg_pool=False, audio_len="vllm")
        stored = Checkpoint(folder)
        names = [name for name in stored.files if name.startswith("encoder.")]
        self.tensors = {name.removeprefix("encoder."): stored.tensor(name).float() for name in names}

    @property
    def weights(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    def operations(self, frames: int) -> int:
        """Products and sums: two convolutions, and in each layer twelve matrices and attention."""
        width, positions = self.config.n_audio_state, frames // 2
        convolutions = 3 * width * (frames * self.config.n_mels + positions * width)
        layer = positions * 12 * width**2 + 2 * positions**2 * width
        return 2 * (convolutions + self.config.n_audio_layer * layer)

    def module(self, dtype: Any) -> Any:
        """The Python encoder on this package's kernels."""
        import torch

        from earnest.model.encoder import AudioEncoder

        module = AudioEncoder(self.config)
        module.load_state_dict(self.tensors)
        return module.to(dtype) if dtype != torch.float32 else module

    def heard(self, mel: np.ndarray) -> Any:
        """By the Python encoder in float32."""
        import torch

        with torch.no_grad():
            return self.module(torch.float32)([torch.from_numpy(mel.T)])[0]

    def embeddings(self, mel: np.ndarray) -> Any:
        """With the pool and the adaptor of the checkpoint."""
        import torch

        from earnest.model import AudioLM

        with torch.no_grad():
            model = AudioLM.from_pretrained(self.folder, dtype=torch.float32)
            return model.embed_audio([torch.from_numpy(mel.T)])

    def answers(self, mel: np.ndarray) -> Any:
        """What `WhisperCpp.answers` shall be."""
        return ggml_whisper.answers(self, self.heard(mel))

    @cached_property
    def in_torch(self) -> Any:
        """The same in torch's own operations: float32 [1, n_mels, frames] -> [positions, width]."""
        return _in_torch(self)


def plain_torch(encoder: Encoder, dtype: str) -> Run:
    import torch

    return _run(encoder.in_torch.to(getattr(torch, dtype)), dtype)


def zentorch(encoder: Encoder, dtype: str) -> Run:
    import torch

    peers.zentorch()
    return _run(peers.compiled_by_zentorch(encoder.in_torch.to(getattr(torch, dtype))), dtype)


def _run(module: Callable[..., Any], dtype: str) -> Run:
    import torch

    def run(mel: np.ndarray) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(mel.T)[None].to(getattr(torch, dtype)))

    return run


def openvino(encoder: Encoder, dtype: str) -> Run:
    import torch

    from earnest import ops

    api = peers.load("openvino")
    frames = torch.zeros(1, encoder.config.n_mels, 2 * encoder.config.n_audio_ctx)
    with torch.no_grad():
        model = api.convert_model(encoder.in_torch.float(), example_input=frames, input=list(frames.shape))
    settings = {
        "INFERENCE_NUM_THREADS": ops.num_threads(),
        "INFERENCE_PRECISION_HINT": "f32" if dtype == "float32" else "bf16",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = api.Core().compile_model(model, "CPU", settings)
    return lambda mel: compiled(np.ascontiguousarray(mel.T)[None])[0]


def ctranslate2(encoder: Encoder, dtype: str) -> Run:
    """It has no bfloat16 on this kind of processor; its int8 stands for that."""
    from earnest import ops

    api = peers.load("ctranslate2")
    specs = peers.load("ctranslate2.specs", "ctranslate2")
    with tempfile.TemporaryDirectory(prefix="earnest-bench-") as folder:
        _save_for_ctranslate2(encoder, specs, folder)
        kind = "float32" if dtype == "float32" else "int8_float32"
        model = api.models.Whisper(folder, "cpu", compute_type=kind, intra_threads=ops.num_threads())

    def run(mel: np.ndarray) -> np.ndarray:
        frames = api.StorageView.from_array(np.ascontiguousarray(mel.T)[None])
        return np.array(model.encode(frames))[0]

    return run


def _save_for_ctranslate2(encoder: Encoder, specs: Any, folder: str) -> None:
    """A model whose decoder is one layer of zeros: nobody asks it."""
    config, w = encoder.config, {name: tensor.numpy() for name, tensor in encoder.tensors.items()}
    width = config.n_audio_state
    spec = specs.WhisperSpec(config.n_audio_layer, config.n_audio_head, 1, config.n_audio_head)

    def fill(part: Any, weight: Any, bias: Any = None) -> None:
        part.weight = weight
        if bias is not None:
            part.bias = bias

    def norm(part: Any, gamma: Any, beta: Any) -> None:
        part.gamma, part.beta = gamma, beta

    ours = spec.encoder
    for name in ("conv1", "conv2"):
        fill(getattr(ours, name), w[f"{name}.weight"], w[f"{name}.bias"])
    ours.position_encodings.encodings = w["positional_embedding.weight"]
    norm(ours.layer_norm, w["after_norm.weight"], w["after_norm.bias"])
    for number, layer in enumerate(ours.layer):
        at = f"blocks.{number}."
        fused = np.concatenate([w[f"{at}attn.{part}.weight"] for part in ("query", "key", "value")])
        no_bias = np.zeros(width, np.float32)
        biases = np.concatenate([w[at + "attn.query.bias"], no_bias, w[at + "attn.value.bias"]])
        fill(layer.self_attention.linear[0], fused, biases)
        fill(layer.self_attention.linear[1], w[at + "attn.out.weight"], w[at + "attn.out.bias"])
        norm(layer.self_attention.layer_norm, w[at + "attn_ln.weight"], w[at + "attn_ln.bias"])
        fill(layer.ffn.linear_0, w[at + "mlp.0.weight"], w[at + "mlp.0.bias"])
        fill(layer.ffn.linear_1, w[at + "mlp.2.weight"], w[at + "mlp.2.bias"])
        norm(layer.ffn.layer_norm, w[at + "mlp_ln.weight"], w[at + "mlp_ln.bias"])
    words = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", *map(str, range(61))]
    silent, zeros = spec.decoder, lambda *shape: np.zeros(shape, np.float32)
    silent.embeddings.weight = zeros(len(words), width)
    silent.position_encodings.encodings = zeros(8, width)
    fill(silent.projection, zeros(len(words), width))
    norm(silent.layer_norm, zeros(width), zeros(width))
    only = silent.layer[0]
    for attention, rows in ((only.self_attention, (3, 1)), (only.attention, (1, 2, 1))):
        for linear, count in zip(attention.linear, rows, strict=True):
            fill(linear, zeros(count * width, width), zeros(count * width))
        norm(attention.layer_norm, zeros(width), zeros(width))
    fill(only.ffn.linear_0, zeros(4 * width, width), zeros(4 * width))
    fill(only.ffn.linear_1, zeros(width, 4 * width), zeros(width))
    norm(only.ffn.layer_norm, zeros(width), zeros(width))
    spec.register_vocabulary(words)
    spec.validate()
    spec.save(folder)
    (Path(folder) / "preprocessor_config.json").write_text(json.dumps({"feature_size": config.n_mels}))


class WhisperCpp:
    """whisper.cpp on a file in its own format. It does not give away what it heard, but a decoder asked about
    it answers with numbers."""

    def __init__(self, encoder: Encoder) -> None:
        from earnest import ops

        peers.load("pywhispercpp")
        self._api = api = peers.load("_pywhispercpp", "pywhispercpp")
        api.whisper_log_set(lambda *_: None)
        # It keeps its callback beyond Python's end: one that is freed then takes the process down.
        atexit.register(api.whisper_log_set, print)
        self._threads = ops.num_threads()
        with tempfile.NamedTemporaryFile(prefix="earnest-bench-") as file:
            ggml_whisper.write(encoder, Path(file.name))
            self._context = api.whisper_init_from_file_with_params(
                file.name, api.whisper_context_default_params()
            )
        if self._context is None:
            raise Absent("pywhispercpp: whisper.cpp does not load its file")

    def __call__(self, mel: np.ndarray) -> None:
        api, frames = self._api, np.ascontiguousarray(mel.T)
        api.whisper_set_mel(self._context, frames, frames.shape[1], frames.shape[0])
        if api.whisper_encode(self._context, 0, self._threads):
            raise RuntimeError("whisper_encode failed")

    def answers(self, mel: np.ndarray) -> np.ndarray:
        self(mel)
        found = []
        for token in range(ggml_whisper.VOCABULARY):
            if self._api.whisper_decode(self._context, token, 1, 0, self._threads):
                raise RuntimeError("whisper_decode failed")
            found.append(self._api.whisper_get_logits(self._context))
        return np.array(found)

    def __del__(self) -> None:
        if getattr(self, "_context", None) is not None and callable(self._api.whisper_free):
            self._api.whisper_free(self._context)


def _in_torch(encoder: Encoder) -> Any:
    import torch.nn.functional as F
    from torch import nn

    config, width = encoder.config, encoder.config.n_audio_state

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.ModuleDict({n: nn.Linear(width, width, n != "key") for n in
                                       ("query", "key", "value", "out")})  # fmt: skip
            self.attn_ln, self.mlp_ln = nn.LayerNorm(width), nn.LayerNorm(width)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

        def forward(self, x: Any) -> Any:
            y, rows = self.attn_ln(x), (x.shape[0], x.shape[1], config.n_audio_head, -1)
            q, k, v = (self.attn[n](y).view(rows).transpose(1, 2) for n in ("query", "key", "value"))
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
            x = x + self.attn["out"](mixed)
            return x + self.mlp(self.mlp_ln(x))

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv1d(config.n_mels, width, 3, padding=1)
            self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
            self.positional_embedding = nn.Embedding(config.n_audio_ctx, width)
            self.blocks = nn.ModuleList([Block() for _ in range(config.n_audio_layer)])
            self.after_norm = nn.LayerNorm(width)

        def forward(self, mel: Any) -> Any:
            x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
            x = x + self.positional_embedding.weight
            for block in self.blocks:
                x = block(x)
            return self.after_norm(x)[0]

    whole = Whole()
    whole.load_state_dict(encoder.tensors)
    return whole.eval().requires_grad_(False)

# SPDX-License-Identifier: Apache-2.0
"""Whisper's encoder in the file format of whisper.cpp, with a small decoder whose answers show what the
encoder heard: its first logit after one token is a product with what one attention found among all frames."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from earnest.bench.whisper_peers import Encoder

VOCABULARY, CONTEXT = 64, 8
_MAGIC = 0x67676D6C
_BINS = 201  # of a spectrum, in the filters that the file must have and nobody uses


def write(encoder: Encoder, path: Path) -> None:
    """Matrices in float16: its convolutions know no others."""
    config = encoder.config
    decoder = [CONTEXT, config.n_audio_state, config.n_audio_head, 1]
    sizes = [VOCABULARY, config.n_audio_ctx, config.n_audio_state, config.n_audio_head, config.n_audio_layer]
    with path.open("wb") as file:
        file.write(struct.pack("12i", _MAGIC, *sizes, *decoder, config.n_mels, 1))
        file.write(struct.pack("2i", config.n_mels, _BINS) + bytes(4 * config.n_mels * _BINS))
        file.write(struct.pack("i", VOCABULARY))
        for token in range(VOCABULARY):
            file.write(struct.pack("I", 1) + bytes([token + 32]))
        for name, tensor in _named(encoder).items():
            _write_tensor(file, name, tensor)


def answers(encoder: Encoder, heard: Any) -> Any:
    """The first logit after each token of the vocabulary, of a decoder that attends to `heard`."""
    import torch
    import torch.nn.functional as F

    w = {name: torch.from_numpy(x) for name, x in _decoder(encoder).items()}
    width, heads = encoder.config.n_audio_state, encoder.config.n_audio_head
    at = "decoder.blocks.0.cross_attn."
    x = w["decoder.token_embedding.weight"] + w["decoder.positional_embedding"][0]
    q = F.linear(F.layer_norm(x, (width,)), w[at + "query.weight"])
    k, v = (F.linear(heard, w[f"{at}{part}.weight"]) for part in ("key", "value"))
    q, k, v = (part.view(-1, heads, width // heads).transpose(0, 1) for part in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(VOCABULARY, width)
    x = F.layer_norm(x + F.linear(mixed, w[at + "out.weight"]), (width,))
    return x @ w["decoder.token_embedding.weight"][0]


def _named(encoder: Encoder) -> dict[str, np.ndarray]:
    found = {}
    for name, tensor in encoder.tensors.items():
        name = name.replace("after_norm", "ln_post").replace("embedding.weight", "embedding")
        found[f"encoder.{name}"] = tensor.numpy()
    return found | _decoder(encoder)


def _decoder(encoder: Encoder) -> dict[str, np.ndarray]:
    """One layer that only attends to the encoder, with random matrices that float16 holds exactly."""
    width, rng = encoder.config.n_audio_state, np.random.default_rng(0)

    def drawn(rows: int, scale: float) -> np.ndarray:
        values = rng.standard_normal((rows, width)) * scale
        return values.astype(np.float16).astype(np.float32)

    found = {
        "decoder.positional_embedding": drawn(CONTEXT, 0.1),
        "decoder.token_embedding.weight": drawn(VOCABULARY, 1.0),
    }
    for part in ("attn", "cross_attn"):
        at = f"decoder.blocks.0.{part}"
        scale = width**-0.5 if part == "cross_attn" else 0.0
        for name in ("query", "key", "value", "out"):
            found[f"{at}.{name}.weight"] = drawn(width, scale)
            if name != "key":
                found[f"{at}.{name}.bias"] = np.zeros(width, np.float32)
    for part, rows, columns in (("0", 4 * width, width), ("2", width, 4 * width)):
        found[f"decoder.blocks.0.mlp.{part}.weight"] = np.zeros((rows, columns), np.float32)
        found[f"decoder.blocks.0.mlp.{part}.bias"] = np.zeros(rows, np.float32)
    for norm in ("blocks.0.attn_ln", "blocks.0.cross_attn_ln", "blocks.0.mlp_ln", "ln"):
        found[f"decoder.{norm}.weight"] = np.ones(width, np.float32)
        found[f"decoder.{norm}.bias"] = np.zeros(width, np.float32)
    return found


def _write_tensor(file: Any, name: str, tensor: np.ndarray) -> None:
    half = tensor.ndim > 1 and "positional" not in name
    if name.startswith("encoder.conv") and tensor.ndim == 1:
        tensor = tensor[:, None]  # biases of convolutions are columns there
    values = np.ascontiguousarray(tensor, np.float16 if half else np.float32)
    label = name.encode()
    file.write(struct.pack("3i", values.ndim, len(label), int(half)))
    file.write(struct.pack(f"{values.ndim}i", *reversed(values.shape)) + label)
    file.write(values.tobytes())

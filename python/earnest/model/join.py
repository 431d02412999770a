# SPDX-License-Identifier: Apache-2.0
"""A new audio language model out of two pretrained halves: a Whisper encoder and a small Llama or Qwen2
language model, joined by a fresh adaptor. A Llama-type decoder is a Qwen2-type one whose q, k and v biases
are zero."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from earnest.errors import InvalidInput, MissingExtra
from earnest.model.audio_lm import AudioLM
from earnest.model.config import AudioLMConfig, EncoderConfig, TextConfig
from earnest.model.weights import Checkpoint

GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_EOS = "tokenizer.ggml.eos_token_id"
_GGUF_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}


def join(
    whisper: str | Path,
    language_model: str | Path,
    *,
    extra_tokens: int = 0,
    avg_pool: bool = True,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> AudioLM:
    """An AudioLM from the folders of a Whisper encoder and of a language model (or one .gguf file).

    extra_tokens: rows to add to the vocabulary (for the family's special tokens); they start at the mean row.
    avg_pool: 12.5 decoder positions a second as in the published format; False keeps the 25 that follow from
    an encoder trained without the pool."""
    return assemble(
        read_whisper(whisper),
        read_language_model(language_model),
        extra_tokens=extra_tokens,
        avg_pool=avg_pool,
        dtype=dtype,
        generator=generator,
    )


def assemble(
    whisper: tuple[dict[str, Any], dict[str, Tensor]],
    language_model: tuple[TextConfig, dict[str, Tensor]],
    *,
    extra_tokens: int = 0,
    avg_pool: bool = True,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> AudioLM:
    """`join` for halves that are already in memory, as `read_whisper` and `read_language_model` return
    them."""
    (encoder, hearing), (text, language) = whisper, language_model
    config = AudioLMConfig(
        TextConfig.from_dict(text.to_dict() | {"vocab_size": text.vocab_size + extra_tokens}),
        EncoderConfig.from_dict(encoder | {"llm_dim": text.hidden_size, "avg_pool": avg_pool}),
    )
    model = AudioLM(config, dtype=dtype, initialise=False)
    with torch.no_grad():
        for name, target in model.state_dict().items():
            source = hearing.get(name) if name.startswith("encoder.") else language.get(name)
            if source is None:
                _fill(name, target, config)
                continue
            known = target[: len(source)] if "embed_tokens" in name or "lm_head" in name else target
            if known.shape != source.shape:
                raise InvalidInput("join", name, f"shape {list(known.shape)}", str(list(source.shape)))
            known.copy_(source)
            if len(known) < len(target):
                target[len(known) :] = source.float().mean(0)
        rms = float(model.model.embed_tokens.weight.float().pow(2).mean().sqrt())
    model.adapter.initialise(rms, generator)
    return model


def _fill(name: str, target: Tensor, config: AudioLMConfig) -> None:
    """A weight that neither half brings: the adaptor's are drawn later, missing biases are zero."""
    if name.startswith("adapter.") or (name == "lm_head.weight" and config.text_config.tie_word_embeddings):
        return
    if not name.endswith("_proj.bias"):
        raise InvalidInput("join", name, "a tensor", "none")
    target.zero_()


def read_whisper(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields for EncoderConfig and the tensors ``encoder.*`` of a folder in the published naming."""
    path = Path(folder) / "config.json"
    raw = _read_json(path)
    names = ("n_mels", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer")
    missing = [name for name in names if name not in raw]
    if missing:
        raise InvalidInput("join", str(path), f"a field {missing[0]}", "none")
    checkpoint = Checkpoint(Path(folder))
    tensors = {name: checkpoint.tensor(name) for name in checkpoint.entries if name.startswith("encoder.")}
    return {name: raw[name] for name in names}, tensors


def read_language_model(path: str | Path) -> tuple[TextConfig, dict[str, Tensor]]:
    """The decoder's config and tensors under their published names, from a Llama or Qwen2 folder or a GGUF
    file."""
    place = Path(path)
    files = sorted(place.glob("*.gguf")) if place.is_dir() else [place]
    if place.is_dir() and (place / "config.json").exists():
        raw = _read_json(place / "config.json")
        if raw.get("model_type") not in ("llama", "qwen2"):
            raise InvalidInput("join", "model_type", '"llama" or "qwen2"', repr(raw.get("model_type")))
        checkpoint = Checkpoint(place)
        raw = {key: value for key, value in raw.items() if key != "attention_bias"}
        return TextConfig.from_dict(raw), {name: checkpoint.tensor(name) for name in checkpoint.entries}
    if len(files) != 1 or not files[0].is_file():
        raise InvalidInput("join", "language_model", "a folder with config.json or one .gguf file", str(path))
    return read_gguf(files[0])


def read_gguf(path: Path) -> tuple[TextConfig, dict[str, Tensor]]:
    """A Llama-type GGUF file, dequantised to float32, with llama.cpp's row order of q and k undone."""
    try:
        import gguf
    except ImportError:
        raise MissingExtra("read_gguf", "gguf", "dev") from None
    try:
        reader = gguf.GGUFReader(str(path))
    except (ValueError, OSError) as error:
        raise InvalidInput("read_gguf", str(path), "a GGUF file", str(error)) from None
    fields = {
        name: field.contents() for name, field in reader.fields.items() if name == _EOS or "token" not in name
    }
    if fields.get("general.architecture") != "llama":
        raise InvalidInput("read_gguf", "architecture", "llama", str(fields.get("general.architecture")))
    config = _gguf_config(fields, tied=all(t.name != "output.weight" for t in reader.tensors))
    tensors: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        name = _gguf_name(tensor.name)
        weight = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32)
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if f".{part}." in name:
                weight = weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        tensors[name] = weight
    return config, tensors


def _gguf_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in GGUF_LAYER:
        return f"model.layers.{parts[1]}.{GGUF_LAYER[parts[2]]}.{parts[3]}"
    if len(parts) == 2 and parts[0] in _GGUF_TOP:
        return f"{_GGUF_TOP[parts[0]]}.{parts[1]}"
    raise InvalidInput("read_gguf", "tensors", "those of a Llama decoder", name)


def _gguf_config(fields: Mapping[str, Any], tied: bool) -> TextConfig:
    def of(key: str) -> Any:
        if f"llama.{key}" not in fields:
            raise InvalidInput("read_gguf", f"llama.{key}", "a value", "none")
        return fields[f"llama.{key}"]

    return TextConfig(
        vocab_size=of("vocab_size"),
        hidden_size=of("embedding_length"),
        intermediate_size=of("feed_forward_length"),
        num_hidden_layers=of("block_count"),
        num_attention_heads=of("attention.head_count"),
        num_key_value_heads=of("attention.head_count_kv"),
        max_position_embeddings=of("context_length"),
        # Stored as float32; the shortest decimal that reads back as it is what was meant.
        rms_norm_eps=float(f"{of('attention.layer_norm_rms_epsilon'):.6g}"),
        rope_theta=float(of("rope.freq_base")),
        eos_token_id=fields.get(_EOS),
        tie_word_embeddings=tied,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput("join", str(path), "readable JSON", type(error).__name__) from None
    if not isinstance(raw, dict):
        raise InvalidInput("join", str(path), "a JSON object", type(raw).__name__)
    return raw

# SPDX-License-Identifier: Apache-2.0
"""The configuration of an audio language model: the published ``config.json`` and the sizes we ship as
presets.

Field names are the published ones (``StepAudio2ForCausalLM``). Keys of ours (`avg_pool`, `audio_len`,
`tie_word_embeddings`) are written only where they differ from what the published models do, so that a model
we save loads where the published ones load."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from earnest.errors import InvalidInput
from earnest.model.features import chunk_sizes, mel_frames

ARCHITECTURE = "StepAudio2ForCausalLM"
MODEL_TYPE = "step_audio_2"
# Keys of text_config that would change the arithmetic, with the only value this implementation computes.
_FIXED_TEXT = {
    "hidden_act": "silu",
    "rope_scaling": None,
    "use_sliding_window": False,
    "attention_bias": True,
}


@dataclass(frozen=True)
class TextConfig:
    """The Qwen2-type decoder. Head size is hidden_size / num_attention_heads."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int = 16384
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def __post_init__(self) -> None:
        _positive(
            "text_config",
            self,
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "rms_norm_eps",
            "rope_theta",
        )
        if self.hidden_size % self.num_attention_heads or self.head_dim % 8 or self.head_dim > 256:
            raise InvalidInput(
                "text_config",
                "num_attention_heads",
                "heads that split hidden_size into sizes that are a multiple of 8, at most 256",
                f"{self.num_attention_heads} heads for {self.hidden_size}",
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise InvalidInput(
                "text_config",
                "num_key_value_heads",
                f"a divisor of num_attention_heads ({self.num_attention_heads})",
                str(self.num_key_value_heads),
            )

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> TextConfig:
        for key, value in _FIXED_TEXT.items():
            if raw.get(key, value) != value:
                raise InvalidInput("text_config", key, repr(value), repr(raw[key]))
        groups, heads = raw.get("num_attention_groups"), raw.get("num_key_value_heads")
        if groups is not None and heads is not None and groups != heads:
            raise InvalidInput(
                "text_config", "num_attention_groups", f"num_key_value_heads ({heads})", str(groups)
            )
        values = dict(raw)
        values.setdefault(
            "num_key_value_heads", groups if groups is not None else raw.get("num_attention_heads")
        )
        width, count = values.get("hidden_size"), values.get("num_attention_heads")
        if isinstance(width, int) and count and values.get("head_dim") not in (None, width // count):
            raise InvalidInput(
                "text_config", "head_dim", "hidden_size / num_attention_heads", str(raw["head_dim"])
            )
        if isinstance(values.get("eos_token_id"), list):
            values["eos_token_id"] = tuple(values["eos_token_id"])
        return _build(TextConfig, "text_config", values)

    def to_dict(self) -> dict[str, Any]:
        out = _public(self)
        out["num_attention_groups"] = self.num_key_value_heads
        if not self.tie_word_embeddings:
            del out["tie_word_embeddings"]
        return self.extra | {key: list(v) if isinstance(v, tuple) else v for key, v in out.items()}


@dataclass(frozen=True)
class EncoderConfig:
    """The Whisper-type audio encoder and the adaptor that follows it.

    avg_pool: average neighbouring frames before the last norm (all published models do; plain Whisper does
    not).
    audio_len: how many mel frames of a clip of T count: "hf" T - 2 (the two that only the padding made; the
    published Python code), "vllm" all T (the published server). Their token counts differ for a quarter of
    all lengths."""

    n_mels: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    llm_dim: int
    n_audio_ctx: int = 1500
    kernel_size: int = 3
    adapter_stride: int = 2
    avg_pool: bool = True
    audio_len: Literal["hf", "vllm"] = "hf"
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def head_dim(self) -> int:
        return self.n_audio_state // self.n_audio_head

    def __post_init__(self) -> None:
        _positive(
            "audio_encoder_config",
            self,
            "n_mels",
            "n_audio_state",
            "n_audio_head",
            "n_audio_layer",
            "llm_dim",
            "n_audio_ctx",
        )
        if self.n_audio_state % self.n_audio_head or self.head_dim % 8 or self.head_dim > 256:
            raise InvalidInput(
                "audio_encoder_config",
                "n_audio_head",
                "heads that split n_audio_state into sizes that are a multiple of 8, at most 256",
                f"{self.n_audio_head} heads for {self.n_audio_state}",
            )
        if (self.kernel_size, self.adapter_stride) != (3, 2):
            raise InvalidInput(
                "audio_encoder_config",
                "kernel_size and adapter_stride",
                "3 and 2",
                f"{self.kernel_size} and {self.adapter_stride}",
            )
        if self.audio_len not in ("hf", "vllm"):
            raise InvalidInput("audio_encoder_config", "audio_len", '"hf" or "vllm"', repr(self.audio_len))

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> EncoderConfig:
        return _build(EncoderConfig, "audio_encoder_config", raw)

    def to_dict(self) -> dict[str, Any]:
        out = _public(self)
        for key, usual in (("avg_pool", True), ("audio_len", "hf")):
            if out[key] == usual:
                del out[key]
        return self.extra | out

    def positions(self, frames: int) -> tuple[int, int]:
        """Encoder positions of a clip of `frames` mel frames, and how many of them may be attended to."""
        counted = frames if self.audio_len == "vllm" else max(frames - 2, 0)
        return (frames + 1) // 2, (counted + 1) // 2

    def audio_tokens(self, frames: int) -> int:
        """Adaptor frames, that is decoder positions, of a clip of `frames` mel frames."""
        valid = self.positions(frames)[1]
        return ((valid // 2 if self.avg_pool else valid) + 1) // 2

    def kept_frames(self, frames: int) -> int:
        """Encoder frames that the adaptor can see: those of its outputs' windows that exist."""
        positions = self.positions(frames)[0]
        return min(positions // 2 if self.avg_pool else positions, 2 * self.audio_tokens(frames))


@dataclass(frozen=True)
class AudioLMConfig:
    """A whole model. `from_dict`/`to_dict` are the published config.json; `preset` names the sizes below."""

    text_config: TextConfig
    audio_encoder_config: EncoderConfig
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.audio_encoder_config.llm_dim != self.text_config.hidden_size:
            raise InvalidInput(
                "config",
                "llm_dim",
                f"hidden_size ({self.text_config.hidden_size})",
                str(self.audio_encoder_config.llm_dim),
            )

    @staticmethod
    def preset(name: str, **overrides: Any) -> AudioLMConfig:
        """The preset `name`, with fields of either part replaced by keyword (`vocab_size=...`,
        `n_mels=...`)."""
        if name not in PRESETS:
            raise InvalidInput("preset", "name", " or ".join(sorted(PRESETS)), repr(name))
        text, audio = (dict(part) for part in PRESETS[name])
        for key, value in overrides.items():
            parts = [
                part
                for part, kind in ((text, TextConfig), (audio, EncoderConfig))
                if key != "extra" and key in {f.name for f in dataclasses.fields(kind)}
            ]
            if not parts:
                raise InvalidInput(
                    "preset", key, "a field of text_config or audio_encoder_config", "an unknown name"
                )
            for part in parts:
                part[key] = value
        audio["llm_dim"] = text["hidden_size"]
        return AudioLMConfig(TextConfig(**text), EncoderConfig(**audio))

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> AudioLMConfig:
        kind = raw.get("model_type", MODEL_TYPE)
        if kind != MODEL_TYPE:
            raise InvalidInput("config", "model_type", f'"{MODEL_TYPE}"', json.dumps(kind))
        if ARCHITECTURE not in raw.get("architectures", [ARCHITECTURE]):
            raise InvalidInput("config", "architectures", ARCHITECTURE, str(raw["architectures"]))
        if raw.get("quantization_config"):
            raise InvalidInput("config", "quantization_config", "plain weights", "a quantised checkpoint")
        for part in ("text_config", "audio_encoder_config"):
            if not isinstance(raw.get(part), dict):
                raise InvalidInput(
                    "config", part, "an object", "none" if part not in raw else repr(raw[part])
                )
        known = {"model_type", "architectures", "text_config", "audio_encoder_config"}
        return AudioLMConfig(
            TextConfig.from_dict(raw["text_config"]),
            EncoderConfig.from_dict(raw["audio_encoder_config"]),
            {key: value for key, value in raw.items() if key not in known},
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "architectures": [ARCHITECTURE],
            "model_type": MODEL_TYPE,
            **self.extra,
            "text_config": self.text_config.to_dict(),
            "audio_encoder_config": self.audio_encoder_config.to_dict(),
        }

    @staticmethod
    def load(folder: str | Path) -> AudioLMConfig:
        path = Path(folder) / "config.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InvalidInput("load", "folder", "a model folder with a config.json", str(folder)) from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InvalidInput("load", str(path), "readable JSON", str(error)) from None
        if not isinstance(raw, dict):
            raise InvalidInput("load", str(path), "a JSON object", type(raw).__name__)
        return AudioLMConfig.from_dict(raw)

    def audio_token_counts(self, samples: int) -> list[int]:
        """Decoder positions of a clip of `samples` at 16 kHz, one number for each chunk that it is split
        into."""
        return [self.audio_encoder_config.audio_tokens(mel_frames(size)) for size in chunk_sizes(samples)]


def _positive(op: str, config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise InvalidInput(op, name, "a positive number", repr(value))


def _public(config: Any) -> dict[str, Any]:
    return {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if f.name != "extra" and getattr(config, f.name) is not None
    }


def _build(kind: type, op: str, raw: dict[str, Any]) -> Any:
    """A config from published keys: those that we compute with are read, all others are carried along
    unread."""
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name != "extra"}
    missing = [name for name, f in fields.items() if f.default is dataclasses.MISSING and name not in raw]
    if missing:
        raise InvalidInput(op, missing[0], "a value", "none")
    used = {key: value for key, value in raw.items() if key in fields and value is not None}
    for key, value in used.items():
        wants_int = fields[key].type == "int"
        if wants_int and (isinstance(value, bool) or not isinstance(value, int)):
            raise InvalidInput(op, key, "a whole number", repr(value))
    return kind(**used, extra={key: value for key, value in raw.items() if key not in fields})


_WHISPER_LARGE = {
    "n_mels": 128,
    "n_audio_ctx": 1500,
    "n_audio_state": 1280,
    "n_audio_head": 20,
    "n_audio_layer": 32,
    "extra": {"n_codebook_size": 4096},
}
_PUBLISHED = {"vocab_size": 158720, "rope_theta": 1_000_000.0, "eos_token_id": 151643, "pad_token_id": 151643}

PRESETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tiny": (
        {
            "vocab_size": 1024,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_theta": 10_000.0,
        },
        {"n_mels": 80, "n_audio_state": 160, "n_audio_head": 5, "n_audio_layer": 3},
    ),
    "tiny-64": (  # tiny in heads of 64, as the kernels on a GPU want them
        {
            "vocab_size": 1024,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "max_position_embeddings": 4096,
            "rope_theta": 10_000.0,
        },
        {"n_mels": 80, "n_audio_state": 192, "n_audio_head": 3, "n_audio_layer": 3},
    ),
    "small": (
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100_000.0,
            "eos_token_id": 2,
            "tie_word_embeddings": True,
        },
        {"n_mels": 80, "n_audio_state": 512, "n_audio_head": 8, "n_audio_layer": 6},
    ),
    "step-audio-2-mini": (
        {
            **_PUBLISHED,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 16384,
            "rms_norm_eps": 1e-6,
        },
        _WHISPER_LARGE,
    ),
    "step-audio-r1": (
        {
            **_PUBLISHED,
            "hidden_size": 5120,
            "intermediate_size": 27648,
            "num_hidden_layers": 64,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "max_position_embeddings": 65536,
            "rms_norm_eps": 1e-5,
        },
        _WHISPER_LARGE,
    ),
}

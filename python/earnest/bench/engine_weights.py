# SPDX-License-Identifier: Apache-2.0
"""Decoders that the engine's cases run, in the forms that we and the peers read, kept in a cache folder."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earnest.bench import peers
from earnest.bench.case import Absent

if TYPE_CHECKING:
    from earnest.model import AudioLMConfig

GGUF = {"bf16": "MOSTLY_BF16", "f16": "MOSTLY_F16", "int8": "MOSTLY_Q8_0", "int4": "MOSTLY_Q4_0"}
_ENCODER = {"n_audio_state": 64, "n_audio_head": 1, "n_audio_layer": 1}  # of decoders that hear nothing
_DRAWN = 16_777_213  # random numbers, a prime: no two rows of a matrix begin at the same one


@dataclass(frozen=True)
class Decoder:
    """A Qwen2-type decoder with tied embeddings. sizes: fields of its text_config; without `pretrained` its
    weights are random."""

    name: str
    sizes: Mapping[str, Any]
    pretrained: bool = False

    @property
    def vocabulary(self) -> int:
        return int(self.sizes["vocab_size"])

    @property
    def width(self) -> int:
        return int(self.sizes["hidden_size"])

    @property
    def kv_width(self) -> int:
        """Numbers of one token's keys in one layer."""
        size = self.sizes
        return int(self.width // size["num_attention_heads"] * size["num_key_value_heads"])

    @property
    def layer_weights(self) -> int:
        """Weights of all layers' matrices."""
        mixing = 2 * self.width * (self.width + self.kv_width)
        layers = self.sizes["num_hidden_layers"]
        return int(layers * (mixing + 3 * self.width * self.sizes["intermediate_size"]))

    def bytes_read(self, weights: str) -> int:
        """Of weights, for one token: those of the layers and of the head."""
        head = self.width * self.vocabulary
        return {
            "bf16": 2 * (self.layer_weights + head),
            "int8": self.layer_weights + head,
            "int4": self.layer_weights * 5 // 8 + head,  # 5 bits a weight; the head keeps 8
        }[weights]

    def cache_bytes(self, tokens: int) -> int:
        """Of keys and values of so many tokens in bfloat16."""
        return int(4 * tokens * self.kv_width * self.sizes["num_hidden_layers"])

    def config(self) -> AudioLMConfig:
        """As a model that hears next to nothing."""
        from earnest.model import AudioLMConfig

        return AudioLMConfig.preset("tiny", **self.sizes, **_ENCODER, tie_word_embeddings=True)

    def checkpoint(self, weights: str = "bf16") -> Path:
        """A folder of the published format, in bfloat16 or quantised from that."""
        if weights == "bf16":
            return joined() if self.pretrained else cached(self.name, self._save_random)
        source = self.checkpoint()
        return cached(f"{source.name}-{weights}", lambda path: _quantise(source, path, weights))

    def gguf(self, weights: str) -> Path:
        """As llama.cpp keeps it. The pretrained one comes out of the given file, so that other formats than
        that file's are twice quantised: for speed."""
        llama = peers.load("llama_cpp", "llama-cpp-python")
        if self.pretrained:
            source = next((models() / "smollm2-135m-instruct").glob("*.gguf"))
        else:
            source = cached(f"{self.name}-bf16.gguf", self.write_gguf)
            if weights == "bf16":
                return source

        def make(path: Path) -> None:
            settings = llama.llama_model_quantize_default_params()
            settings.ftype = getattr(llama, f"LLAMA_FTYPE_{GGUF[weights]}")
            settings.allow_requantize = True
            if llama.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(settings)):
                raise Absent("llama-cpp-python: cannot convert the model")

        return cached(f"{self.name}-{weights}.gguf", make)

    def tensors(self) -> Mapping[str, Any]:
        """The weights as the checkpoint has them, read when they are asked for."""
        return _Stored(self.checkpoint())

    def write_gguf(self, path: Path) -> None:
        """The checkpoint as one file in bfloat16 without a vocabulary. Rows of q and k stay as they are, as
        llama.cpp turns those of Qwen2 in halves."""
        gguf, size = peers.load("gguf"), self.sizes
        import torch

        out = gguf.GGUFWriter(str(path), "qwen2")
        out.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
        out.add_tokenizer_model("none")
        out.add_vocab_size(self.vocabulary)
        out.add_context_length(size["max_position_embeddings"])
        out.add_embedding_length(self.width)
        out.add_block_count(size["num_hidden_layers"])
        out.add_feed_forward_length(size["intermediate_size"])
        out.add_head_count(size["num_attention_heads"])
        out.add_head_count_kv(size["num_key_value_heads"])
        out.add_layer_norm_rms_eps(size["rms_norm_eps"])
        out.add_rope_freq_base(size["rope_theta"])
        tensors = self.tensors()
        for name, theirs in gguf_names(size["num_hidden_layers"]).items():
            x = tensors[name].contiguous()
            if x.ndim == 1:
                out.add_tensor(theirs, x.float().numpy())
            else:
                words = x.to(torch.bfloat16).view(torch.uint8).numpy()
                out.add_tensor(theirs, words, raw_dtype=gguf.GGMLQuantizationType.BF16)
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()

    def _save_random(self, path: Path) -> None:
        import torch

        from earnest.model import AudioLM

        model = AudioLM(self.config(), dtype=torch.bfloat16, initialise=False)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(_DRAWN, generator=generator).mul_(self.width**-0.5).bfloat16()
        at = 0
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("norm.weight"):
                    weight.fill_(1.0)
                    continue
                for part in weight.view(-1).split(_DRAWN):  # drawing billions would take minutes
                    part.copy_(drawn.roll(-at)[: len(part)])
                    at = (at + len(part)) % _DRAWN
        model.save_pretrained(path)


SMOLLM2 = Decoder(
    "smollm2",
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
    },
    pretrained=True,
)
QWEN2 = Decoder(
    "qwen2-1.5b-random",
    {
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
    },
)
QWEN2_7B = Decoder(
    "qwen2-7b-random",
    {
        **QWEN2.sizes,
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
)


def gguf_names(layers: int) -> dict[str, str]:
    """The names of a tied decoder's tensors -> llama.cpp's."""
    from earnest.model.join import GGUF_LAYER

    found = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for layer in range(layers):
        for theirs, name in GGUF_LAYER.items():
            kinds = ("weight", "bias") if theirs in ("attn_q", "attn_k", "attn_v") else ("weight",)
            found |= {f"model.layers.{layer}.{name}.{k}": f"blk.{layer}.{theirs}.{k}" for k in kinds}
    return found


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


def talking() -> Path:
    """The same with a small vocabulary of words, so that it takes part in dialogues."""

    def make(path: Path) -> None:
        from earnest.dialogue import Tokenizer

        shutil.copytree(joined(), path)
        Tokenizer.train(["a few words to read and to say"], 512).save(path)

    return cached("smollm2-whisper-base-talking", make)


def _quantise(source: Path, path: Path, weights: str) -> None:
    from earnest import _native

    _native.engine.quantize(str(source), str(path), weights)


class _Stored(Mapping):
    def __init__(self, folder: Path) -> None:
        from earnest.model.weights import Checkpoint

        self._checkpoint = Checkpoint(folder)

    def __getitem__(self, name: str) -> Any:
        return self._checkpoint.tensor(name)

    def __iter__(self) -> Any:
        return iter(self._checkpoint.files)

    def __len__(self) -> int:
        return len(self._checkpoint.files)

# SPDX-License-Identifier: Apache-2.0
"""The audio language model: encoder, adaptor, decoder and output matrix under their published names.

hidden = model(batch)                      packed dialogues -> final hidden states [tokens, hidden]
logp, entropy = ops.logprob(hidden[rows], model.head_weight, targets)
out = model.generate_ids(batch, max_new_tokens=64, stop_ids=[...],
generator=torch.Generator().manual_seed(0))"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from earnest import ops
from earnest.errors import InvalidInput
from earnest.model import generate as sampling_loop
from earnest.model import weights
from earnest.model.adaptor import Adaptor
from earnest.model.answer import answer
from earnest.model.config import AudioLMConfig
from earnest.model.decoder import Decoder
from earnest.model.encoder import AudioEncoder
from earnest.model.generate import Generation, PackedInputs, Sampling, attended
from earnest.model.linear import linear
from earnest.model.packed import allocate_fused, lay_end_to_end
from earnest.ops import cuda

if TYPE_CHECKING:
    from earnest.dialogue import Message, Tokenizer


class AudioLM(nn.Module):
    """State dict names are the published ones: encoder.*, adapter.*, model.*, lm_head.weight.

    On the CPU the model is batch-invariant, always: hidden states and log-probabilities of a dialogue are the
    same bits alone and in any batch, on any number of threads, in one pass and token by token from a cache.
    There is no setting for it: the kernels have no other way (kernels/README.md).

    Fresh weights are drawn from `generator` (torch's own if None) unless initialise is False, which leaves
    memory as it is for a loader to fill. Under ``torch.device("meta")`` only names and shapes are made."""

    def __init__(
        self,
        config: AudioLMConfig,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
        initialise: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self._folder: Path | None = None
        self._tokenizer: Tokenizer | None = None
        text = config.text_config
        place = torch.device(device) if device is not None else torch.get_default_device()
        with torch.device("meta"):
            self.encoder = AudioEncoder(config.audio_encoder_config)
            self.adapter = Adaptor(config.audio_encoder_config)
            self.model = Decoder(text)
            self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        if text.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        if place.type != "meta":
            allocate(self, self._fused_groups(), place, dtype)
            if initialise:
                self.initialise(generator)

    def _fused_groups(self) -> list[list[Tensor]]:
        return self.encoder.fused_groups() + self.model.fused_groups()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        lay_end_to_end(self._fused_groups())
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> AudioLM:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        lay_end_to_end(twin._fused_groups())
        return twin

    @property
    def device(self) -> torch.device:
        """Where the weights lie; what a batch holds is brought there."""
        return self.lm_head.weight.device

    @property
    def adaptor(self) -> Adaptor:
        return self.adapter

    @property
    def decoder(self) -> Decoder:
        return self.model

    @property
    def head_weight(self) -> Tensor:
        """[vocab, hidden]: the output matrix, for ops.logprob."""
        return self.lm_head.weight

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that was set, or the one in the folder that the model was loaded from."""
        from earnest.dialogue import Tokenizer

        if self._tokenizer is None:
            if self._folder is None:
                raise InvalidInput(
                    "AudioLM", "tokenizer", "one to be set, since no folder was loaded", "none"
                )
            self._tokenizer = Tokenizer.load(self._folder)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draws every weight afresh."""
        self.encoder.initialise(generator)
        self.adapter.initialise(self.config.text_config.hidden_size**-0.5, generator)
        self.model.initialise(generator)
        if not self.config.text_config.tie_word_embeddings:
            self.lm_head.weight.normal_(0.0, 0.02, generator=generator)

    # ---- hearing ----

    def encode(self, mel: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """mel: [n_mels, frames] per chunk -> encoder frames [F, n_audio_state], cu_seqlens int32 [chunks +
        1].

        A chunk's frames do not depend on the others, so that those of a frozen encoder can be kept and
        reused."""
        return self.encoder(mel)

    def adapt(self, frames: Tensor, cu_seqlens: Tensor) -> Tensor:
        """What `encode` returned -> [audio tokens, hidden]."""
        return self.adapter(frames, cu_seqlens)

    def embed_audio(self, mel: Sequence[Tensor]) -> Tensor:
        """mel: [n_mels, frames] per chunk -> decoder inputs [audio tokens, hidden], chunks in order."""
        return self.adapter(*self.encoder(mel))

    def embed(self, batch: PackedInputs, audio_embeddings: Tensor | None = None) -> Tensor:
        """Decoder inputs [tokens, hidden]: token embeddings, with audio frames at batch.audio_positions."""
        ids = batch.input_ids.to(self.lm_head.weight.device)
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.config.text_config.vocab_size:
            raise InvalidInput(
                "forward",
                "input_ids",
                f"ids in [0, {self.config.text_config.vocab_size})",
                f"{int(ids.min())} to {int(ids.max())}",
            )
        x = self.model.embed_tokens(ids)
        if audio_embeddings is None:
            if not batch.mel and not batch.audio_positions.numel():
                return x
            audio_embeddings = self.embed_audio(batch.mel)
        if audio_embeddings.shape[0] != batch.audio_positions.shape[0]:
            raise InvalidInput(
                "forward",
                "audio_positions",
                f"{audio_embeddings.shape[0]}, one per adaptor frame",
                str(batch.audio_positions.shape[0]),
            )
        return x.index_copy(0, batch.audio_positions.to(x.device), audio_embeddings.to(x))

    def forward(self, batch: PackedInputs, audio_embeddings: Tensor | None = None) -> Tensor:
        """Final-normed hidden states [tokens, hidden]; row t predicts token t + 1 of its sequence."""
        x = self.embed(batch, audio_embeddings)
        return self.model(x, *attended(batch, x.device))

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, hidden] -> float32 [N, vocab]. Training uses ops.logprob, which never holds this: the same
        numbers are multiplied here, in the weights' precision."""
        kept = self.lm_head.weight.dtype
        hidden, weight = self._head(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            return linear(hidden.to(kept), [weight.to(kept)]).float()

    def logprob(self, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probability of the targets int64 [N] after hidden [N, hidden], and entropy: the trainer's
        numbers, which the sampler reports too."""
        return ops.logprob(*self._head(hidden), targets, temperature=temperature)

    def _head(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What the last product multiplies: of the weights' type, on the CPU under autocast too. On cuda
        autocast to bfloat16 takes tensor cores, whose sums are float32: no logit is rounded there either."""
        weight = self.lm_head.weight
        kind, device = weight.dtype, weight.device.type
        if kind == torch.float32 and cuda.takes(weight) and torch.is_autocast_enabled(device):
            low = torch.get_autocast_dtype(device)
            kind = low if low == torch.bfloat16 else kind
        return hidden.to(kind), weight.to(kind)

    # ---- answering ----

    def generate(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        think: bool = True,
        template: Literal["canonical", "stepfun-compat"] = "canonical",
    ) -> Message:
        """The assistant's next turn, an `earnest.dialogue.Message` with `reasoning` and `text` apart.

        messages: `Message`s, or dictionaries in the style of the data files; clips by path or as samples.
        """
        return answer(
            self,
            self.tokenizer,
            messages,
            think=think,
            template=template,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            generator=generator,
        )

    def generate_ids(
        self,
        batch: PackedInputs,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        suppress_ids: Sequence[int] = (),
        generator: torch.Generator | None = None,
        stop_ids: Sequence[int] = (),
        after_stop: int = 0,
        forced_prefix: Sequence[int] = (),
        samples_per_prompt: int = 1,
        audio_embeddings: Tensor | None = None,
    ) -> Generation:
        """Continues every prompt. See generate.Generation, generate.Sampling (what truncation means for
        training).

        forced_prefix: ids appended to every prompt before sampling. samples_per_prompt: the prompt is
        computed once."""
        sampling = Sampling(temperature, top_p, top_k, tuple(suppress_ids))
        return sampling_loop.generate_ids(
            self,
            batch,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            generator=generator,
            stop_ids=stop_ids,
            after_stop=after_stop,
            forced_prefix=forced_prefix,
            samples_per_prompt=samples_per_prompt,
            audio_embeddings=audio_embeddings,
        )

    def stream_ids(
        self,
        batch: PackedInputs,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        suppress_ids: Sequence[int] = (),
        generator: torch.Generator | None = None,
        stop_ids: Sequence[int] = (),
        forced_prefix: Sequence[int] = (),
        audio_embeddings: Tensor | None = None,
    ) -> Iterator[tuple[int, float]]:
        """One prompt, token by token: (id, log-probability)."""
        sampling = Sampling(temperature, top_p, top_k, tuple(suppress_ids))
        return sampling_loop.stream_ids(
            self,
            batch,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            generator=generator,
            stop_ids=stop_ids,
            forced_prefix=forced_prefix,
            audio_embeddings=audio_embeddings,
        )

    # ---- on disk ----

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        revision: str | None = None,
    ) -> AudioLM:
        """Loads a folder, or a hub id (needs the extra `hub`). Weights are converted to `dtype`."""
        folder = weights.find_folder(path_or_id, revision)
        config = AudioLMConfig.load(folder)
        checkpoint = weights.Checkpoint(folder)
        with torch.device("meta"):
            expected = cls(config).state_dict()
        optional = {"lm_head.weight"} if config.text_config.tie_word_embeddings else set()
        checkpoint.check({name: tuple(t.shape) for name, t in expected.items()}, optional)
        model = cls(config, dtype=dtype, device=device, initialise=False)
        checkpoint.read_into(model.state_dict())
        model._folder = folder
        return model

    def save_pretrained(
        self, path: str | Path, *, max_shard_bytes: int = 5_000_000_000, tokenizer: Any = None
    ) -> None:
        """Writes config.json and safetensors (sharded by size), and tokenizer.save(...) if given, beside
        `path`, then renames: `path` is the old model or the new one, whenever the process is stopped."""
        with weights.replacing(path) as folder:
            weights.write(folder, self.state_dict(), self.config.to_dict(), max_shard_bytes)
            if tokenizer is not None:
                tokenizer.save(folder)


def allocate(
    module: nn.Module, fused_groups: list[list[Tensor]], device: torch.device, dtype: torch.dtype
) -> None:
    """Gives every meta parameter memory; those of a group lie end to end, so that `fused` can view them as
    one."""
    made: dict[int, nn.Parameter] = {}
    for group in fused_groups:
        for old, new in zip(group, allocate_fused([p.shape for p in group], device, dtype), strict=True):
            made[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad)
    for part in module.modules():
        for name, old in list(part.named_parameters(recurse=False)):
            if id(old) not in made:
                made[id(old)] = nn.Parameter(
                    torch.empty(old.shape, device=device, dtype=dtype), requires_grad=old.requires_grad
                )
            part.register_parameter(name, made[id(old)])

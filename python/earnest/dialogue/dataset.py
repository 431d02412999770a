# SPDX-License-Identifier: Apache-2.0
"""Dataset: a file of dialogues as training examples, with clips loaded, chunked and turned into features."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from earnest.dialogue.collate import Example
from earnest.dialogue.message import Audio, clips
from earnest.dialogue.records import BadLine, Dialogue, load_dialogues
from earnest.dialogue.template import render
from earnest.dialogue.tokenizer import Tokenizer
from earnest.dialogue.validate import validate_example
from earnest.errors import InvalidInput

if TYPE_CHECKING:
    from earnest.features import LogMel

SAMPLE_RATE = 16000


def read_audio(audio: Audio) -> np.ndarray:
    """The samples of a clip, float32 [samples] mono at 16 kHz."""
    if audio.pcm is not None:
        return audio.pcm
    from earnest.audio import load_audio

    assert audio.path is not None
    return load_audio(audio.path, SAMPLE_RATE)


class DialogueDataset:
    """Dialogues -> `Example`s. Features and counts come from the model that will hear them.

    source          a JSON-lines file, or dialogues
    audio_tokens    log-mel frames of a chunk -> the model's tokens (``audio_encoder_config.audio_tokens``)
    features        samples [n] of a chunk -> log-mel float32 [n_mels, frames]; default `LogMel`
    n_mels          mel bins of the default features
    device          where the default features are computed and left, such as the model's: on cuda one launch
                    does a clip (in this process: worker processes have no CUDA)
    max_length      a dialogue of more tokens is an error, reported with its file and line
    strict          refuse dialogues in which `validate_example` finds a problem
    bad             a list to collect bad lines of the file in; without it the first one is raised
    render_options  as `render` takes them; by default all assistant turns are learnt, those without reasoning
                    with an empty think block, and the last turn is closed
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[Dialogue],
        tokenizer: Tokenizer,
        *,
        audio_tokens: Callable[[int], int],
        features: Callable[[np.ndarray], Any] | None = None,
        n_mels: int = 128,
        device: torch.device | str = "cpu",
        max_length: int | None = None,
        strict: bool = False,
        bad: list[BadLine] | None = None,
        **render_options: Any,
    ) -> None:
        self.dialogues = (
            load_dialogues(source, bad) if isinstance(source, str | os.PathLike) else list(source)
        )
        self.tokenizer, self.audio_tokens, self.max_length, self.strict = (
            tokenizer,
            audio_tokens,
            max_length,
            strict,
        )
        self.render_options = {"empty_think": True, "close_last": True} | render_options
        self._features, self._n_mels, self._device = features, n_mels, torch.device(device)
        self._log_mel: LogMel | None = None

    def __len__(self) -> int:
        return len(self.dialogues)

    def _hear(self, audio: Audio) -> list[torch.Tensor]:
        from earnest.model.features import chunk_audio, hear

        pcm = read_audio(audio)
        if self._features is not None:
            return [
                torch.as_tensor(self._features(np.ascontiguousarray(chunk))) for chunk in chunk_audio(pcm)
            ]
        if self._log_mel is None:
            from earnest.features import LogMel

            self._log_mel = LogMel(n_mels=self._n_mels, padding="step_audio")
        return hear(pcm, self._log_mel, self._device)

    def _example(self, dialogue: Dialogue) -> Example:
        if self.strict:
            problems = validate_example(dialogue)
            if problems:
                raise InvalidInput("validate_example", "line", "a clean example", "; ".join(problems))
        heard = {id(audio): self._hear(audio) for audio in clips(dialogue.messages)}
        rendered = render(
            dialogue.messages,
            self.tokenizer,
            **self.render_options,
            audio_tokens=lambda audio: [self.audio_tokens(int(m.shape[-1])) for m in heard[id(audio)]],
        )
        if self.max_length is not None and len(rendered) > self.max_length:
            raise InvalidInput("render", "line", f"at most {self.max_length} tokens", str(len(rendered)))
        mel = [m for audio in clips(dialogue.messages) for m in heard[id(audio)]]
        return Example(rendered, mel, dialogue)

    def __getitem__(self, index: int) -> Example:
        dialogue = self.dialogues[index]
        try:
            return self._example(dialogue)
        except InvalidInput as error:
            if dialogue.origin is None:
                raise
            got = error.got if error.argument == "line" else f"{error.got} ({error.op}: {error.argument})"
            raise BadLine("dataset", *dialogue.origin, error.expected, got) from error

    def check(self) -> list[BadLine]:
        """Go through every dialogue, clips included: what is wrong with those that cannot be used."""
        bad = []
        for index in range(len(self)):
            try:
                self[index]
            except BadLine as error:
                bad.append(error)
            except InvalidInput as error:
                bad.append(
                    BadLine("dataset", "dialogues", index, error.expected, f"{error.got} ({error.argument})")
                )
        return bad

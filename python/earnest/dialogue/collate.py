# SPDX-License-Identifier: Apache-2.0
"""Collate: many rendered dialogues as one packed batch, with no padding anywhere."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal

import torch

from earnest.dialogue.template import Rendered
from earnest.errors import InvalidInput


@dataclass
class Example:
    """A rendered dialogue with the log-mel features of its chunks: float32 [n_mels, frames] each, in
    order."""

    rendered: Rendered
    mel: list[torch.Tensor] = field(default_factory=list)
    record: Any = None

    def __len__(self) -> int:
        return len(self.rendered)


@dataclass
class PackedBatch:
    """Dialogues one after another. Position ids start again at 0 in each.

    input_ids int64 [tokens], position_ids int64 [tokens], cu_seqlens int32 [sequences + 1],
    loss_mask bool [tokens] (the token at this position is a target), mel: float32 [n_mels, frames] per chunk,
    audio_positions int64 [audio tokens]: where the adaptor frames go, in the order of ``mel``.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    loss_mask: torch.Tensor
    mel: list[torch.Tensor]
    audio_positions: torch.Tensor
    # Where sequences share a beginning that stands in the batch once: the rows that each sequence attends to,
    # one # after another (int64), and where each one's begin (int32 [sequences + 1]). None: each attends to
    # its own rows.
    key_rows: torch.Tensor | None = None
    cu_seqlens_k: torch.Tensor | None = None

    @property
    def sequences(self) -> int:
        return self.cu_seqlens.numel() - 1

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on a device."""
        rows, bounds = self.key_rows, self.cu_seqlens_k
        return PackedBatch(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.cu_seqlens.to(device),
            self.loss_mask.to(device),
            [mel.to(device) for mel in self.mel],
            self.audio_positions.to(device),
            None if rows is None else rows.to(device),
            None if bounds is None else bounds.to(device),
        )


def truncate(example: Example, max_length: int) -> Example:
    """The first ``max_length`` tokens. Cuts inside a clip's sound, or that leave no target, are refused."""
    rendered = example.rendered
    if len(rendered) <= max_length:
        return example
    for span in rendered.audio_spans:
        # The markers around the patches belong to the sound: one token before it and one behind.
        if span.start - 1 < max_length < span.start + span.length + 1:
            raise InvalidInput(
                "truncate",
                "max_length",
                "a cut outside every audio span",
                f"{max_length}, inside chunk {span.chunk} of clip {span.clip} "
                f"({span.start - 1} to {span.start + span.length + 1})",
            )
    if any(rendered.loss_mask) and not any(rendered.loss_mask[:max_length]):
        raise InvalidInput(
            "truncate",
            "max_length",
            "at least one training target before the cut",
            f"none in the first {max_length} of {len(rendered)} tokens",
        )
    spans = [span for span in rendered.audio_spans if span.start < max_length]
    return replace(
        example,
        rendered=Rendered(rendered.ids[:max_length], rendered.loss_mask[:max_length], spans),
        mel=example.mel[: len(spans)],
    )


def _check_audio(index: int, example: Example, adaptor_frames: Callable[[int], int]) -> Example:
    """Every placeholder against its chunk. A chunk that gives no frame (under 20 ms) has none, and goes."""
    for mel in example.mel:
        if mel.ndim != 2:
            raise InvalidInput(
                "collate", f"mel of example {index}", "shape [n_mels, frames]", str(list(mel.shape))
            )
    frames = [adaptor_frames(int(mel.shape[1])) for mel in example.mel]
    kept = [(mel, count) for mel, count in zip(example.mel, frames, strict=True) if count]
    spans = example.rendered.audio_spans
    if len(spans) != len(kept):
        raise InvalidInput(
            "collate",
            f"mel of example {index}",
            f"{len(spans)} chunks, one for each placeholder",
            str(len(kept)),
        )
    for span, (mel, count) in zip(spans, kept, strict=True):
        if count != span.length:
            raise InvalidInput(
                "collate",
                f"placeholder of example {index}, clip {span.clip}, chunk {span.chunk}",
                f"{count} tokens, the adaptor's frames for log-mel {list(mel.shape)}",
                str(span.length),
            )
    return replace(example, mel=[mel for mel, _ in kept])


def collate(
    items: Sequence[Rendered | Example],
    *,
    adaptor_frames: Callable[[int], int] | None = None,
    max_length: int | None = None,
    truncation: Literal["error", "right"] = "error",
) -> PackedBatch:
    """Pack examples in the order given.

    ``adaptor_frames`` maps the log-mel frames of a chunk to the model's tokens for it
    (``config.audio_encoder_config.audio_tokens``); every placeholder is checked against it. A `Rendered`
    alone has its placeholders packed unchecked: its audio is embedded elsewhere. A sequence longer than
    ``max_length`` is an error unless ``truncation="right"``.
    """
    examples = []
    for index, item in enumerate(items):
        example = item if isinstance(item, Example) else Example(item)
        if not len(example):
            raise InvalidInput("collate", f"example {index}", "at least one token", "none")
        if isinstance(item, Example) and (example.mel or example.rendered.audio_spans):
            if adaptor_frames is None:
                raise InvalidInput(
                    "collate", "adaptor_frames", "a function, since the examples hold audio", "None"
                )
            example = _check_audio(index, example, adaptor_frames)
        if max_length is not None and len(example) > max_length:
            if truncation != "right":
                raise InvalidInput(
                    "collate",
                    f"example {index}",
                    f"at most {max_length} tokens (or truncation='right')",
                    str(len(example)),
                )
            example = truncate(example, max_length)
        examples.append(example)
    if not examples:
        raise InvalidInput("collate", "items", "at least one example", "none")
    starts = [0, *accumulate(len(example) for example in examples)]
    positions = [
        start + offset
        for start, example in zip(starts, examples, strict=False)
        for span in example.rendered.audio_spans
        for offset in range(span.start, span.start + span.length)
    ]
    return PackedBatch(
        input_ids=torch.tensor([token for e in examples for token in e.rendered.ids], dtype=torch.int64),
        position_ids=torch.cat([torch.arange(len(e)) for e in examples]),
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        loss_mask=torch.tensor([m for e in examples for m in e.rendered.loss_mask], dtype=torch.bool),
        mel=[torch.as_tensor(mel) for e in examples for mel in e.mel],
        audio_positions=torch.tensor(positions, dtype=torch.int64),
    )


def pack(examples: Sequence[Sized | int], max_tokens: int, *, seed: int | None = None) -> list[list[int]]:
    """Length-bucketed batching: indices of examples (or of lengths), batches of at most ``max_tokens`` tokens
    each.

    Neighbours in length share a batch, so that the steps of one batch cost alike. With a seed, equal lengths
    are mixed and the order of the batches is shuffled, the same way every time; without, short comes first.
    """
    lengths = [item if isinstance(item, int) else len(item) for item in examples]
    for index, length in enumerate(lengths):
        if not 0 < length <= max_tokens:
            raise InvalidInput("pack", f"example {index}", f"1 to {max_tokens} tokens", str(length))
    order = list(range(len(lengths)))
    shuffler = random.Random(seed)
    if seed is not None:
        shuffler.shuffle(order)
    order.sort(key=lengths.__getitem__)  # stable: the shuffle survives among equal lengths
    batches: list[list[int]] = []
    filled = 0
    for index in order:
        if not batches or filled + lengths[index] > max_tokens:
            batches.append([])
            filled = 0
        batches[-1].append(index)
        filled += lengths[index]
    if seed is not None:
        shuffler.shuffle(batches)
    return batches

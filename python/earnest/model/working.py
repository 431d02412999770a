# SPDX-License-Identifier: Apache-2.0
"""Working weights. On a GPU the engine decodes in bfloat16, while what a trainer moves are master weights in
float32, lest small steps are lost in rounding. So each call that samples from such a model, under autocast,
brings a copy in bfloat16 up to date first, whose tensors the engine reads where they lie: 6 bytes for each
weight, read or written once, beside a whole answer's steps, each of which reads 2."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from earnest.ops import cuda

if TYPE_CHECKING:
    from earnest.model.audio_lm import AudioLM


def is_needed(model: AudioLM) -> bool:
    """Whether the engine decodes with a copy: master weights on a GPU, products in bfloat16."""
    weight = model.lm_head.weight
    kind = weight.device.type
    return (
        cuda.takes(weight)
        and weight.dtype == torch.float32
        and torch.is_autocast_enabled(kind)
        and torch.get_autocast_dtype(kind) == torch.bfloat16
    )


@contextmanager
def working(model: AudioLM) -> Iterator[AudioLM]:
    """The model that decodes for this one, with its numbers as they are now: itself, or its copy, which is
    computed with as it is, without autocast."""
    if not is_needed(model):
        yield model
        return
    with torch.autocast(model.device.type, enabled=False):
        yield _copy_of(model)


@torch.inference_mode(False)  # the copy outlives whoever asks first
@torch.no_grad()
def _copy_of(model: AudioLM) -> AudioLM:
    copy = _copies.get(model)
    if copy is None or copy.device != model.device:
        copy = type(model)(model.config, dtype=torch.bfloat16, device=model.device, initialise=False)
        _copies[model] = copy.requires_grad_(False)
    masters = model.state_dict()
    for name, weight in copy.state_dict().items():
        weight.copy_(masters[name])
    return copy


_copies: weakref.WeakKeyDictionary[AudioLM, AudioLM] = weakref.WeakKeyDictionary()

# SPDX-License-Identifier: Apache-2.0
"""Variation of what is heard: the same words in a voice a little larger or smaller, with parts hidden. An
encoder learns to hear from it; to a policy it gives questions that are hard to hear, since those in known
voices leave little to learn."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from earnest.learn.types import Case, Clip


def vary_cases(cases: Sequence[Case], share: float, seed: int) -> list[Case]:
    """The cases, with the sound of a `share` of them varied; a pure function of the seed and the cases'
    ids."""
    return [_vary_case(case, seed) if _draw(f"{seed}/{case.id}") < share else case for case in cases]


def _draw(name: str) -> float:
    return zlib.crc32(name.encode()) / 2**32


def _vary_case(case: Case, seed: int) -> Case:
    return replace(case, clips=tuple(tuple(_vary_clip(chunk, seed) for chunk in clip) for clip in case.clips))


def _vary_clip(clip: Clip, seed: int) -> Clip:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{clip.id}".encode()))
    mel = vary_mel(torch.from_numpy(clip.mel), generator, longest=20)
    return replace(clip, id=f"{clip.id}/varied-{seed}", mel=mel.numpy())


def vary_mel(
    mel: Tensor,
    generator: torch.Generator,
    *,
    bands: int = 2,
    widest: int = 14,
    longest: int = 12,
    stretch: float = 0.1,
) -> Tensor:
    """The features of a voice a little larger or smaller, with two bands and a span of time hidden: all
    frequencies moved by up to `stretch` (vocal tract length perturbation, Jaitly and Hinton 2013), then the
    mean in place of what is hidden (SpecAugment, arXiv 1904.08779)."""
    bins, frames = mel.shape
    factor = 1 + stretch * (2 * float(torch.rand((), generator=generator)) - 1)
    source = (torch.arange(bins) * factor).clamp(max=bins - 1)
    low = source.long()
    share = (source - low)[:, None]
    mel = mel[low] * (1 - share) + mel[(low + 1).clamp(max=bins - 1)] * share
    mean = mel.mean()
    for _ in range(bands):
        width = int(torch.randint(widest, (), generator=generator))
        first = int(torch.randint(max(bins - width, 1), (), generator=generator))
        mel[first : first + width] = mean
    span = int(torch.randint(longest, (), generator=generator))
    first = int(torch.randint(max(frames - span, 1), (), generator=generator))
    mel[:, first : first + span] = mean
    return mel

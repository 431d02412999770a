# SPDX-License-Identifier: Apache-2.0
"""From samples to what an encoder takes: chunks, the lengths that follow from them, and their features.

Source of the rules: the published helper code of the family (479 zeros on the right, hop 160, last frame
dropped)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from earnest.errors import InvalidInput

if TYPE_CHECKING:
    from earnest.features import LogMel

SAMPLE_RATE = 16_000
HOP = 160
MEL_PADDING = 479
# 3,000 mel frames fill the encoder's 1,500 positions; one sample more would overflow them.
MAX_CHUNK_SAMPLES = 3000 * HOP + HOP - 1 - MEL_PADDING
CHUNK_SAMPLES = 25 * SAMPLE_RATE


def mel_frames(samples: int) -> int:
    """Mel frames of one chunk of `samples` at 16 kHz: ceil(samples / 160) + 2, of which two come from
    padding."""
    return (samples + MEL_PADDING) // HOP


def chunk_sizes(samples: int) -> list[int]:
    """Lengths of the chunks of a clip: one up to 29.98 s, otherwise 25 s each and the rest; none for no
    samples."""
    if samples <= MAX_CHUNK_SAMPLES:
        return [samples] if samples > 0 else []
    return [min(CHUNK_SAMPLES, samples - start) for start in range(0, samples, CHUNK_SAMPLES)]


def chunk_audio(pcm: Any) -> list[Any]:
    """Views of `pcm` (numpy or torch, [samples], 16 kHz) that the encoder can take whole, in order, nothing
    cut off."""
    if pcm.ndim != 1:
        raise InvalidInput("chunk_audio", "pcm", "[samples], one channel", f"shape {tuple(pcm.shape)}")
    chunks, start = [], 0
    for size in chunk_sizes(pcm.shape[0]):
        chunks.append(pcm[start : start + size])
        start += size
    return chunks


def hear(pcm: np.ndarray, log_mel: LogMel, device: torch.device | str = "cpu") -> list[torch.Tensor]:
    """The features of a clip's chunks, float32 [n_mels, frames] each, computed and left on `device`: all
    samples go there at once, and on cuda one launch does all chunks.

    pcm: float32 [samples], 16 kHz. Raises InvalidInput as `LogMel` does."""
    samples = torch.from_numpy(np.require(pcm, requirements=["C", "W"])).to(device)
    return log_mel.batch(chunk_audio(samples))

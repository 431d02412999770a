# SPDX-License-Identifier: Apache-2.0
"""What the frozen encoder makes of a clip, computed once and shared by policy, reference, critic and
judge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from earnest.learn.types import Clip
from earnest.model import AudioLM


class Hearing:
    """Encoder output by clip. Every model that descends from one frozen encoder may use the same `Hearing`.

    Kept clips are bounded by `max_bytes`; when full, the oldest go first. What is kept equals what would be
    computed.
    """

    def __init__(self, model: AudioLM, max_bytes: int = 2 << 30) -> None:
        self.encoder_owner = model
        self.max_bytes = max_bytes
        self._kept: dict[str, Tensor] = {}
        self._bytes = 0

    @torch.no_grad()
    def frames(self, clips: Sequence[Clip]) -> list[Tensor]:
        """Encoder output [frames, width] of each clip."""
        missing = {clip.id: clip for clip in clips if clip.id not in self._kept}
        fresh: dict[str, Tensor] = {}
        if missing:
            mels = [torch.from_numpy(clip.mel) for clip in missing.values()]
            encoded, cu_seqlens = self.encoder_owner.encode(mels)
            bounds = cu_seqlens.tolist()
            for index, name in enumerate(missing):
                fresh[name] = encoded[bounds[index] : bounds[index + 1]].clone()
        found = [fresh[clip.id] if clip.id in fresh else self._kept[clip.id] for clip in clips]
        for name, frames in fresh.items():
            self._keep(name, frames)
        return found

    def encoded(self, clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
        """Encoder output of the clips end to end: frames [F, width], cu_seqlens int32 [clips + 1]."""
        frames = self.frames(clips)
        lengths = torch.tensor([0, *(len(f) for f in frames)], dtype=torch.int32)
        return torch.cat(frames), lengths.cumsum(0, dtype=torch.int32)

    def embed(self, model: AudioLM, clips: Sequence[Clip]) -> Tensor | None:
        """What `model`'s adaptor makes of the clips, [audio tokens, hidden], in order; None where there are
        none."""
        return model.adapt(*self.encoded(clips)) if clips else None

    def _keep(self, name: str, frames: Tensor) -> None:
        size = frames.numel() * frames.element_size()
        while self._kept and self._bytes + size > self.max_bytes:
            oldest = next(iter(self._kept))
            gone = self._kept.pop(oldest)
            self._bytes -= gone.numel() * gone.element_size()
        self._kept[name] = frames
        self._bytes += size

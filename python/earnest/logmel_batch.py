# SPDX-License-Identifier: Apache-2.0
"""Log-mel on a GPU: whole clips in a batch, and many streams at once, one launch for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from earnest import _native
from earnest.errors import InvalidInput
from earnest.ops import cuda
from earnest.ops.cupy_arrays import accepts_cupy
from earnest.ops.eager import call, capsule

_OP = "logmel"
_Scratch = dict[tuple[torch.device, int], Tensor]


def features(
    clips: Sequence[Tensor] | Tensor,
    n_mels: int,
    step_audio: bool,
    normalized: bool,
    scratch: _Scratch,
    explain: Callable[[], Any],
    path: str = "best",
) -> list[Tensor] | Tensor:
    """float32 [n_mels, frames] of each clip, float32 [samples] of at least one sample on one device; of a
    tensor [clips, samples] a tensor. scratch: memory between calls, of one caller. explain: as of
    cuda.launching. path: as ClipsPath of kernels/logmel/logmel_batch.h, whose bits are the same."""
    frames = [_native.logmel_frames(len(clip), step_audio) for clip in clips]
    pcm = clips.reshape(-1) if isinstance(clips, Tensor) else torch.cat(list(clips))
    offsets: list[Tensor | None] = [None, None]  # clips of one length need none
    if len({len(clip) for clip in clips}) > 1:
        offsets = [*_sent(pcm.device, _starts([len(clip) for clip in clips]), _starts(frames))]
    out = pcm.new_empty(n_mels * sum(frames))
    with cuda.launching(_OP, pcm, explain) as launch:
        workspace = _workspace(scratch, pcm.device, launch.stream, len(clips)) if normalized else None
        call(
            _native.logmel_clips, capsule(pcm), len(clips), *map(capsule, offsets), n_mels, step_audio,
            normalized, capsule(out), capsule(workspace), *launch, path,
        )  # fmt: skip
    return out.view(len(clips), n_mels, -1) if isinstance(clips, Tensor) else _parted(out, n_mels, frames)


def normalized(raw: Tensor, scratch: _Scratch) -> Tensor:
    """(max(raw, raw.max() - 8) + 4) / 4 of a clip's raw features float32 [n_mels, frames]."""
    rows = raw.contiguous().view(-1)
    out = torch.empty_like(rows)
    cu_frames = raw.shape[1] * torch.arange(2, device=raw.device)  # made there, for a CUDA graph too
    with cuda.launching(_OP, rows) as launch:
        workspace = _workspace(scratch, raw.device, launch.stream, 1)
        call(
            _native.logmel_normalize_clips, capsule(rows), capsule(cu_frames), raw.shape[0], capsule(out),
            capsule(workspace), *launch,
        )  # fmt: skip
    return out.view(raw.shape)


class LogMelStreams:
    """The raw features of many speakers while their samples arrive: each step takes a chunk, of any length,
    of as many of the streams as have one, in one launch. Their state lies on the device. What a stream gives,
    joined, equals LogMel.raw of the whole clip bit for bit. Made by LogMel.streams(); one owner, no threads.

        streams = LogMel(128).streams(512, device="cuda")
        frames = streams.push(pcm)                        # [512, samples] -> 512 x float32 [128, k]
        frames = streams.push(chunks, ids=[3, 7])         # of streams 3 and 7 alone
        rest = streams.finish(ids=[3])                    # and stream 3 can begin anew: reset
    """

    def __init__(self, n_mels: int, step_audio: bool, count: int, device: torch.device | str) -> None:
        if count < 1:
            raise InvalidInput(_OP, "count", "at least one stream", str(count))
        self.n_mels, self._step_audio = n_mels, step_audio
        size = _native.logmel_stream_size()
        self._states = torch.zeros(count, size, dtype=torch.uint8, device=device)
        self.pushed = [0] * count  # samples of each stream so far
        self._ended = [False] * count
        self._offsets: tuple[Any, list[Tensor]] = ((), [])  # of the last step, which is often like the next

    def __len__(self) -> int:
        return len(self.pushed)

    @accepts_cupy
    def push(
        self, chunks: Sequence[Any] | Any, ids: Sequence[int] | None = None, *, last: bool = False
    ) -> Any:
        """Chunks float32 [samples] at 16 kHz on the streams' device, one for each of the streams `ids` (all,
        in their order) -> a list of float32 [n_mels, k] of each, the k >= 0 frames now ready; with `last`,
        all that are left. Tensors or cupy arrays, in a list or as [streams, samples]; the same kind out.

        InvalidInput names a chunk that is refused (see LogMel). Its stream is then as it was; the others have
        taken theirs, and all frames are in the error's `frames`, which are tensors."""
        ids = range(len(self)) if ids is None else [int(i) for i in ids]
        self._check(chunks, ids, last)
        pcm = chunks.reshape(-1) if isinstance(chunks, Tensor) else torch.cat(list(chunks))
        lengths = [len(chunk) for chunk in chunks]
        frames = [
            _native.logmel_ready_frames(self.pushed[i], n, last, self._step_audio)
            for i, n in zip(ids, lengths, strict=True)
        ]
        out = pcm.new_empty(self.n_mels * sum(frames))
        parts = _parted(out, self.n_mels, frames)
        which, cu_samples, cu_frames = self._told(list(ids), _starts(lengths), _starts(frames))
        ending = torch.ones(len(ids), dtype=torch.uint8, device=pcm.device) if last else None
        refused: list[int] = []

        def explain() -> None:
            wrong = {
                place: at for place, chunk in enumerate(chunks) if (at := _first_wrong(chunk)) is not None
            }
            refused.extend(wrong)
            place, at = next(iter(wrong.items()))
            expected = "finite samples of magnitude at most 1e15"
            got = f"{float(chunks[place][at])} at sample {self.pushed[ids[place]] + at}"
            error = InvalidInput(_OP, f"chunks[{place}]", expected, got)
            error.frames = parts  # type: ignore[attr-defined]
            raise error

        try:
            with cuda.launching(_OP, pcm, explain) as launch:
                call(
                    _native.logmel_push, capsule(self._states), capsule(pcm), capsule(which),
                    capsule(cu_samples), capsule(cu_frames), max(frames, default=0), capsule(ending),
                    self.n_mels, self._step_audio, capsule(out), *launch,
                )  # fmt: skip
        finally:
            for place, (i, n) in enumerate(zip(ids, lengths, strict=True)):
                if place not in refused:
                    self.pushed[i] += n
                    self._ended[i] |= last
        return parts

    def finish(self, ids: Sequence[int] | None = None) -> list[Tensor]:
        """The last frames of these streams, as tensors; each needs at least one sample, and takes none
        after."""
        count = len(self) if ids is None else len(ids)
        last: list[Tensor] = self.push(torch.zeros(count, 0, device=self._states.device), ids, last=True)
        return last

    def reset(self, ids: Sequence[int] | None = None) -> None:
        """These streams begin anew."""
        for i in range(len(self)) if ids is None else ids:
            self._states[i].zero_()
            self.pushed[i], self._ended[i] = 0, False

    def _check(self, chunks: Any, ids: Sequence[int], last: bool) -> None:
        if len(set(ids)) != len(ids) or any(not 0 <= i < len(self) for i in ids):
            raise InvalidInput(_OP, "ids", f"different streams of {len(self)}", str(list(ids)))
        if len(chunks) != len(ids):
            raise InvalidInput(_OP, "chunks", f"{len(ids)}, one for each stream", str(len(chunks)))
        for place, chunk in enumerate(chunks):
            check_samples(f"chunks[{place}]", chunk, self._states.device)
        for place, i in enumerate(ids):
            if self._ended[i]:
                raise InvalidInput(_OP, f"chunks[{place}]", "a stream that is not finished", "one that is")
            if last and self.pushed[i] + len(chunks[place]) == 0:
                raise InvalidInput(_OP, f"chunks[{place}]", "at least one sample", "none")

    def _told(self, *numbers: list[int]) -> list[Tensor]:
        """The numbers on the device; the same as at the last step need not be sent again."""
        if self._offsets[0] != numbers:
            self._offsets = (numbers, _sent(self._states.device, *numbers))
        return self._offsets[1]


def check_samples(name: str, pcm: Any, device: torch.device) -> None:
    """Refuses what is not float32 [samples] on the device."""
    if not isinstance(pcm, Tensor) or pcm.device != device:
        got = pcm.device if isinstance(pcm, Tensor) else type(pcm).__name__
        raise InvalidInput(_OP, name, f"a tensor on {device}", str(got))
    if pcm.dtype != torch.float32 or pcm.ndim != 1:
        raise InvalidInput(_OP, name, "float32 [samples]", f"{pcm.dtype} {list(pcm.shape)}")


def _first_wrong(chunk: Tensor) -> int | None:
    wrong = ~(chunk.abs() <= 1e15)
    return int(wrong.nonzero()[0]) if bool(wrong.any()) else None


def _starts(lengths: Sequence[int]) -> list[int]:
    return [0, *accumulate(lengths)]


def _sent(device: torch.device, *numbers: list[int]) -> list[Tensor]:
    """int64 tensors on the device, in one transfer."""
    together = torch.tensor([n for some in numbers for n in some], dtype=torch.int64)
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():  # a replay would read memory of the host that is gone
            raise InvalidInput(_OP, "pcm", "clips of one length in a CUDA graph", "many lengths")
        together = together.pin_memory().to(device, non_blocking=True)
    return list(together.split([len(some) for some in numbers]))


def _parted(out: Tensor, n_mels: int, frames: Sequence[int]) -> list[Tensor]:
    return [part.view(n_mels, -1) for part in out.split([n_mels * n for n in frames])]


def _workspace(scratch: _Scratch, device: torch.device, stream: int, clips: int) -> Tensor:
    """Zeros that every launch leaves as zeros; two streams, which may run at a time, have each their own, and
    so has a CUDA graph, each of whose replays clears it."""
    size = _native.logmel_workspace_size(clips)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(size, dtype=torch.uint8, device=device)
    kept = scratch.get((device, stream))
    if kept is None or kept.numel() < size:
        kept = scratch[device, stream] = torch.zeros(size, dtype=torch.uint8, device=device)
    return kept[:size]

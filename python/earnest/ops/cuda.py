# SPDX-License-Identifier: Apache-2.0
"""How kernels are launched on cuda tensors: on torch's current stream, with scratch memory from torch's
allocator, and with a word of device memory into which a kernel writes what is wrong with its input.

On the CPU a wrong entry is found while the kernel runs. On a GPU the call has returned by then, so somebody
has to wait for the word: an eager call does, and raises what the CPU would have said. While a CUDA graph is
captured nobody may wait; the word then belongs to the device, every replay may write to it, and
:func:`raise_faults` reads it. Families without a kernel of ours run torch's own operators, a back end with a
name of its own ("cuda/torch").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from earnest import _native
from earnest.errors import InvalidInput

NO_FAULT = -1  # all bits 1: kernels/common/device_fault.h

_words: dict[torch.device, Tensor] = {}  # of graphs, by device
_emulating = False


class Launch(NamedTuple):
    """The last arguments of a kernel's binding: a cudaStream_t, where scratch memory comes from, and the word
    for faults (None: they are not recorded)."""

    stream: int
    allocate: Callable[[int], Any]
    fault: Any


def takes(x: Tensor) -> bool:
    """Whether the CUDA kernels run on this tensor: one on a GPU, or any while they are emulated."""
    return x.is_cuda or _emulating


def is_capturing(x: Tensor) -> bool:
    """Whether what is done with x now becomes part of a CUDA graph, so that nobody may wait for it."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


@contextmanager
def launching(op: str, x: Tensor, explain: Callable[[], Any] | None = None) -> Iterator[Launch]:
    """The block launches kernels of `op` on the device of x, and passes what this yields.

    explain: says what is wrong, by an exception, once a fault was found; best by the same call on the CPU.
    None: nothing can be."""

    def allocate(size: int) -> Any:
        return to_dlpack(torch.empty(size, dtype=torch.uint8, device=x.device))

    if not x.is_cuda:
        word = None if explain is None else _new_word(x.device)
        yield Launch(0, allocate, None if word is None else to_dlpack(word))
    else:
        with torch.cuda.device(x.device):
            stream = torch.cuda.current_stream().cuda_stream
            capturing = torch.cuda.is_current_stream_capturing()
            word = None if explain is None else _word_for(op, x.device, capturing)
            yield Launch(stream, allocate, None if word is None else to_dlpack(word))
        if capturing:
            return
    if word is not None and explain is not None and word.item() != NO_FAULT:
        with emulated(False):
            explain()
        raise RuntimeError(f"[{op}] input: expected an error where the CUDA kernel found one, got none")


def raise_faults(device: torch.device | str | None = None) -> None:
    """Waits for the GPU (all of them, unless one is named), and raises InvalidInput for the first wrong entry
    that a replayed CUDA graph has met since this was last called. Results since then are not to be used."""
    chosen = None if device is None else torch.empty(0, device=device).device
    for place, word in _words.items():
        if chosen in (None, place):
            torch.cuda.synchronize(place)
            found = word.item()
            word.fill_(NO_FAULT)
            if found != NO_FAULT:
                op, index = _native.cuda_fault(found)
                expected = "what the operator promises to take"
                raise InvalidInput(op, "input", expected, f"something else at {index}, in a CUDA graph")


def require(op: str) -> None:
    """InvalidInput where cuda cannot be computed on: torch sees no GPU, or the kernels were built without."""
    if not torch.cuda.is_available():
        raise InvalidInput(op, "device", f"cpu (torch {torch.__version__} sees no GPU)", "cuda")
    if _native.CUDA_BUILD != "ON":
        raise InvalidInput(op, "device", "cpu (earnest was built without CUDA)", "cuda")


def torch_backend(family: str) -> str:
    """The name of the back end where torch's operators stand in for a family. RuntimeError where torch sees
    no GPU."""
    if not torch.cuda.is_available():
        raise RuntimeError(f"[{family}] device: expected cpu (torch sees no GPU), got cuda")
    return "cuda/torch"


@contextmanager
def emulated(on: bool = True) -> Iterator[None]:
    """For tests: inside, CUDA kernels take tensors in CPU memory. Needs an extension that was built with
    EARNEST_CUDA=EMULATED; kernels/common/simt_emulator.h then runs them."""
    global _emulating
    before, _emulating = _emulating, on
    if on != before:
        _native.emulate_cuda(on)
    try:
        yield
    finally:
        if on != before:
            _native.emulate_cuda(before)
        _emulating = before


def _new_word(device: torch.device) -> Tensor:
    return torch.full((1,), NO_FAULT, dtype=torch.int64, device=device)


def _lasting_word() -> Tensor:
    """Of graphs on the current device: set outside of any, whose replays would set it back, and not in memory
    of torch's allocator. This may be the warm-up of torch.compile(mode="reduce-overhead"), where all that it
    gives comes from the pool of the graph to be, which takes it for its own and gives it away again."""
    word: Tensor = _native.lasting_fault_word()
    return word


def _word_for(op: str, device: torch.device, capturing: bool) -> Tensor:
    if capturing and device not in _words:
        expected = "a call of an earnest operator on this device before its capture in a CUDA graph"
        raise InvalidInput(op, "graph", expected, "none")
    if device not in _words:
        _words[device] = _lasting_word()
    return _words[device] if capturing else _new_word(device)

# SPDX-License-Identifier: Apache-2.0
"""Eager calls that go straight to a kernel, without torch's dispatcher."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.dlpack import to_dlpack

from earnest.errors import InvalidInput

_SENTENCE = re.compile(r"\[(.*?)\] (.*?): expected (.*), got (.*)", re.DOTALL)


def runs_directly(*tensors: Tensor | None) -> bool:
    """Whether nothing but eager autograd has to see the operation: all tensors (None: one left out) are plain
    ones on the CPU, and no tracer, subclass, mode or transform is at work."""
    for x in tensors:
        if x is not None and not ((type(x) is Tensor or type(x) is torch.nn.Parameter) and x.is_cpu):
            return False
    return _nobody_traces()


def is_eager(*tensors: Tensor | None) -> bool:
    """The same of tensors on the CPU or on cuda, for operators that have kernels there too."""
    for x in tensors:
        if x is not None and not (
            (type(x) is Tensor or type(x) is torch.nn.Parameter) and (x.is_cpu or x.is_cuda)
        ):
            return False
    return _nobody_traces()


def _nobody_traces() -> bool:
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for a backward pass; else torch.autograd.Function is only overhead."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def capsule(x: Tensor | None) -> Any:
    """The tensor's memory for a kernel: a DLPack capsule, which costs a fifth of what x.__dlpack__() would,
    being Python code. Copies what is not contiguous."""
    if x is None:
        return None
    return to_dlpack(x if x.is_contiguous() else x.contiguous())


def bits(x: Tensor | None) -> Any:
    """The same for kernels that take bfloat16 as its bits in int16, as numpy has no such type."""
    return capsule(x.detach().view(torch.int16) if x is not None and x.dtype == torch.bfloat16 else x)


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a kernel, and gives its sentence about a wrong argument the type that callers expect."""
    try:
        return function(*arguments)
    except ValueError as error:
        sentence = _SENTENCE.fullmatch(str(error))
        if sentence is None:
            raise
        raise InvalidInput(*sentence.groups()) from None

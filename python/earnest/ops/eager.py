# SPDX-License-Identifier: Apache-2.0
"""When a call may go straight to a kernel, without torch's dispatcher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.dlpack import to_dlpack


def runs_directly(*tensors: Tensor) -> bool:
    """Whether nothing but eager autograd has to see the operation: all tensors are plain ones on the CPU, and
    no tracer, subclass, mode or transform is at work."""
    for x in tensors:
        if not ((type(x) is Tensor or type(x) is torch.nn.Parameter) and x.is_cpu):
            return False
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether autograd will ask for a backward pass; else torch.autograd.Function is only overhead."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def capsule(x: Tensor) -> Any:
    """The tensor's memory for a kernel: a DLPack capsule, which costs a fifth of what x.__dlpack__() would;
    bfloat16 goes as its bits. Copies what is not contiguous."""
    if x.requires_grad:
        x = x.detach()
    if not x.is_contiguous():
        x = x.contiguous()
    return to_dlpack(x.view(torch.int16) if x.dtype == torch.bfloat16 else x)

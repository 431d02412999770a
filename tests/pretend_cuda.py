# SPDX-License-Identifier: Apache-2.0
"""A GPU made of the CPU, to find tensors of two devices that meet, where there is no GPU.

Inside ``pretend_cuda()`` tensors can be moved to "cuda": they then say that they are there, are computed with on
the CPU, and refuse what a GPU refuses, which is any tensor of the CPU beside them but a single number, an index,
or one end of a copy. Kernels of ours see the CPU's memory and run as on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
MEETING = {aten.copy_.default, aten.index.Tensor, aten.index_put_.default, aten.index_put.default,
           aten._index_put_impl_.default, aten._to_copy.default}  # fmt: skip


class OnCuda(torch.Tensor):
    """A tensor of the CPU (`inner`) that says it is on cuda:0."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnCuda:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=CUDA, requires_grad=inner.requires_grad,
        )  # fmt: skip
        made.inner = inner.detach()
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnCuda({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        target = kwargs.get("device")
        if function not in MEETING:
            for x in tree_flatten((args, kwargs))[0]:
                if isinstance(x, torch.Tensor) and not isinstance(x, OnCuda) and x.ndim:
                    raise RuntimeError(f"{function}: expected all tensors on cuda:0, got one on {x.device}")
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        inner_args, inner_kwargs = tree_map_only(OnCuda, lambda x: x.inner, (args, kwargs))
        out = function(*inner_args, **inner_kwargs)
        if target is not None and torch.device(target).type == "cpu":
            return out.clone() if function is aten._to_copy.default else out
        wrapped = tree_map_only(torch.Tensor, lambda x: x if isinstance(x, OnCuda) else OnCuda(x), out)
        return return_and_correct_aliasing(function, args, kwargs, wrapped)


class _Moves(TorchFunctionMode):
    """What names a device before any tensor is there."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is F.scaled_dot_product_attention and isinstance(args[0], OnCuda):
            return aten._scaled_dot_product_attention_math(
                *args[:3], kwargs.get("attn_mask"), 0.0, kwargs.get("is_causal", False), scale=kwargs.get("scale")
            )[0]
        if function is torch.Tensor.tolist and isinstance(args[0], OnCuda):
            return args[0].inner.tolist()
        named = [x for x in (*args, *kwargs.values()) if isinstance(x, str | torch.device)]
        if not any(str(x).startswith("cuda") for x in named):
            return function(*args, **kwargs)
        if function is torch.Tensor.to:
            rest = [x for x in args[1:] if isinstance(x, torch.dtype | torch.Tensor)]
            kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking")}
            x = args[0].to(*rest, **kwargs) if rest or kwargs else args[0]
            return x if isinstance(x, OnCuda) else _Arrive.apply(x)
        if isinstance(args[0] if args else None, OnCuda) or function in (torch.device, torch._C._nn._parse_to):
            return function(*args, **kwargs)
        kwargs["device"] = "cpu"
        return OnCuda(function(*args, **kwargs))


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return OnCuda(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.cpu()


@contextmanager
def pretend_cuda() -> Iterator[torch.device]:
    """The device to compute on."""
    with pytest.MonkeyPatch.context() as patch, _Moves():
        # Wrapped tensors have no addresses: what lies end to end in memory is not looked for.
        for module in ("audio_lm", "value"):
            patch.setattr(f"earnest.model.{module}.lay_end_to_end", lambda groups: None)
        patch.setattr("earnest.model.linear.fused", lambda tensors: torch.cat(list(tensors)))
        yield CUDA

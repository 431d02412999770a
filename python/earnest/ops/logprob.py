# SPDX-License-Identifier: Apache-2.0
"""Log-probability of chosen tokens, and entropy, from hidden states; the logits [N, V] are never held
(kernels/logprob)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from earnest import _native
from earnest.errors import InvalidInput

_OP = "logprob"
_ROW_TYPE = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.float32}
_NUMPY_TYPES = (np.dtype(np.float32), np.dtype(np.float64))
_SENTENCE = re.compile(r"\[(.*?)\] (.*?): expected (.*), got (.*)", re.DOTALL)

Results = tuple[Tensor, Tensor, Tensor, Tensor]


def logprob(hidden: Any, weight: Any, targets: Any, *, temperature: float = 1.0) -> tuple[Any, Any]:
    """Log-probability of ``targets`` and entropy in nats, row by row, under
    softmax(hidden @ weight.T / temperature).

    hidden [N, H] and weight [V, H] are float32, float64 or bfloat16, both the same; targets [N] are int64 in
    [0, V). Torch tensors on the CPU, or numpy arrays (float32, float64), which give numpy arrays, without
    gradients. Returns (logp [N], entropy [N]) in float32, or float64 for float64; bfloat16 is summed
    in float32.

    Differentiable, once, in hidden and weight through both results: the backward pass recomputes the logits
    tile by tile, but for at most 16 MiB of them that are kept where gradients are wanted (a small vocabulary
    is kept whole). Scratch memory does not grow with N V (formula: kernels/logprob/README.md); arrays that
    are not contiguous are copied. A row's results, and its gradient, depend on that row and ``weight`` alone,
    bit for bit: not on the rest of the batch, nor on the number of threads. A row of hidden that holds NaN or
    Inf gives NaN for itself only.

    Raises InvalidInput for shapes or types that do not fit, a target outside [0, V) (there is no "ignore"
    index: select the rows instead), or a temperature that is not a finite number above 0.
    """
    if isinstance(hidden, np.ndarray):
        return _logprob_numpy(hidden, weight, targets, temperature)
    _check_tensors(hidden, weight, targets)
    _check_shapes(hidden, weight, targets, temperature)
    if _needs_dispatch(hidden, weight, targets):
        # A compiled graph keeps no logits: how many there are would bind it to the number of rows.
        keep = _wants_gradient(hidden, weight) and not torch.compiler.is_compiling()
        results = _logprob_op(hidden, weight, targets, float(temperature), keep)
    else:
        results = _forward(hidden, weight, targets, float(temperature), keep=False)
    return results[0], results[1]


def which(device: str = "cpu") -> str:
    """The back end that would run, e.g. "cpu/avx512"; an error where there is none."""
    with _kernel_errors():
        return _native.logprob_which(device)


def _wrong(argument: str, expected: str, got: object) -> NoReturn:
    raise InvalidInput(_OP, argument, expected, str(got))


def _check_tensors(hidden: Any, weight: Any, targets: Any) -> None:
    for name, x in (("hidden", hidden), ("weight", weight), ("targets", targets)):
        if not isinstance(x, Tensor):
            _wrong(name, "a torch tensor (or numpy arrays throughout)", type(x).__name__)
        if x.device.type not in ("cpu", "meta") or x.device != hidden.device:
            _wrong(name, "a tensor on the cpu", x.device)
    if hidden.dtype not in _ROW_TYPE:
        _wrong("hidden", "float32, float64 or bfloat16", hidden.dtype)
    if weight.dtype != hidden.dtype:
        _wrong("weight", f"{hidden.dtype} as hidden", weight.dtype)
    if targets.dtype != torch.int64:
        _wrong("targets", "int64", targets.dtype)


def _check_shapes(hidden: Any, weight: Any, targets: Any, temperature: float) -> None:
    if hidden.ndim != 2 or hidden.shape[1] < 1:
        _wrong("hidden", "[N, H] with H >= 1", list(hidden.shape))
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[1] or weight.shape[0] < 1:
        _wrong("weight", f"[V, {hidden.shape[1]}] with V >= 1", list(weight.shape))
    if targets.ndim != 1 or targets.shape[0] != hidden.shape[0]:
        _wrong("targets", f"[{hidden.shape[0]}], one per row of hidden", list(targets.shape))
    if not (math.isfinite(temperature) and temperature > 0):
        _wrong("temperature", "a finite number above 0", temperature)


def _wants_gradient(hidden: Tensor, weight: Tensor) -> bool:
    return torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)


def _needs_dispatch(hidden: Tensor, weight: Tensor, targets: Tensor) -> bool:
    """False for plain tensors that need no gradient: they go to the kernel without torch's machinery."""
    return (
        _wants_gradient(hidden, weight)
        or torch.compiler.is_compiling()
        or any(type(x) not in (Tensor, torch.nn.Parameter) for x in (hidden, weight, targets))
        or hidden.is_meta
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


@contextmanager
def _kernel_errors() -> Iterator[None]:
    """Gives the kernel's own sentence the type that callers expect."""
    try:
        yield
    except ValueError as error:
        sentence = _SENTENCE.fullmatch(str(error))
        if sentence is None:
            raise
        raise InvalidInput(*sentence.groups()) from None


def _raw(x: Tensor) -> Tensor:
    """What crosses into the kernel: contiguous, without autograd, bfloat16 as its bits."""
    x = x.detach().contiguous()
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x


def _kept_size(hidden: Tensor, weight: Tensor) -> int:
    return _native.logprob_kept_size(
        int(hidden.shape[0]), int(weight.shape[0]), hidden.dtype == torch.float64
    )


def _forward(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, keep: bool) -> Results:
    row_type = _ROW_TYPE[hidden.dtype]
    logp, entropy, lse = (torch.empty(hidden.shape[0], dtype=row_type) for _ in range(3))
    logits = torch.empty(_kept_size(hidden, weight) if keep else 0, dtype=row_type)
    with _kernel_errors():
        _native.logprob_forward(
            _raw(hidden),
            _raw(weight),
            _raw(targets),
            temperature,
            logp,
            entropy,
            lse,
            logits if keep else None,
        )
    return logp, entropy, lse, logits


def _logprob_numpy(
    hidden: np.ndarray, weight: Any, targets: Any, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    for name, x in (("weight", weight), ("targets", targets)):
        if not isinstance(x, np.ndarray):
            _wrong(name, "a numpy array as hidden", type(x).__name__)
    if hidden.dtype not in _NUMPY_TYPES:
        _wrong("hidden", "float32 or float64", hidden.dtype)
    if weight.dtype != hidden.dtype:
        _wrong("weight", f"{hidden.dtype} as hidden", weight.dtype)
    if targets.dtype != np.int64:
        _wrong("targets", "int64", targets.dtype)
    _check_shapes(hidden, weight, targets, temperature)
    rows = [np.empty(hidden.shape[0], dtype=hidden.dtype) for _ in range(3)]
    arrays = [np.ascontiguousarray(x) for x in (hidden, weight, targets)]
    with _kernel_errors():
        _native.logprob_forward(*arrays, float(temperature), *rows, None)
    return rows[0], rows[1]


@torch.library.custom_op("earnest::logprob", mutates_args=())
def _logprob_op(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, keep: bool = False
) -> Results:
    """logp, entropy and log-sum-exp, each [N]; all three are differentiable. The fourth is what backward
    need not make again: some logits in the kernel's own layout, or nothing."""
    return _forward(hidden, weight, targets, temperature, keep)


@_logprob_op.register_fake
def _(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, keep: bool = False) -> Results:
    row_type = _ROW_TYPE[hidden.dtype]
    logp, entropy, lse = (hidden.new_empty(hidden.shape[0], dtype=row_type) for _ in range(3))
    return logp, entropy, lse, hidden.new_empty(_kept_size(hidden, weight) if keep else 0, dtype=row_type)


@torch.library.custom_op("earnest::logprob_backward", mutates_args=())
def _backward_op(
    grad_logp: Tensor | None,
    grad_entropy: Tensor | None,
    grad_lse: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    entropy: Tensor,
    lse: Tensor,
    logits: Tensor,
    temperature: float,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden [N, H] and weight [V, H]; one that is not needed has no elements. A gradient
    that is None is zero."""
    grad_hidden = torch.empty(hidden.shape if need_hidden else (0,), dtype=hidden.dtype)
    grad_weight = torch.empty(weight.shape if need_weight else (0,), dtype=weight.dtype)
    grads = [None if x is None else _raw(x) for x in (grad_logp, grad_entropy, grad_lse)]
    _native.logprob_backward(
        *grads,
        *(_raw(x) for x in (hidden, weight, targets, entropy, lse)),
        logits if logits.numel() else None,
        temperature,
        _raw(grad_hidden) if need_hidden else None,
        _raw(grad_weight) if need_weight else None,
    )
    return grad_hidden, grad_weight


@_backward_op.register_fake
def _(
    grad_logp: Tensor | None,
    grad_entropy: Tensor | None,
    grad_lse: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    entropy: Tensor,
    lse: Tensor,
    logits: Tensor,
    temperature: float,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape if need_hidden else (0,)),
        weight.new_empty(weight.shape if need_weight else (0,)),
    )


def _save_for_backward(ctx: Any, inputs: tuple, output: Results) -> None:
    hidden, weight, targets, ctx.temperature, _ = inputs
    _, entropy, lse, logits = output
    ctx.mark_non_differentiable(logits)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, targets, entropy, lse, logits)


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    need_hidden, need_weight = ctx.needs_input_grad[:2]
    grad_hidden, grad_weight = _backward_op(
        *grads[:3], *ctx.saved_tensors, ctx.temperature, need_hidden, need_weight
    )
    return grad_hidden if need_hidden else None, grad_weight if need_weight else None, None, None, None


_logprob_op.register_autograd(_differentiate, setup_context=_save_for_backward)

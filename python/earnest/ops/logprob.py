# SPDX-License-Identifier: Apache-2.0
"""Log-probability of chosen tokens, and entropy, straight from hidden states; the logits [N, V] are never held."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from earnest import _native
from earnest.errors import InvalidInput

_ROW_TYPE = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.float32}


def logprob(hidden: Any, weight: Any, targets: Any, *, temperature: float = 1.0) -> tuple[Any, Any]:
    """Log-probability of ``targets`` and entropy (nats) of softmax(hidden @ weight.T / temperature), row by row.

    hidden [N, H], weight [V, H]: float32, float64 or bfloat16, both the same; targets [N]: int64 in [0, V).
    Torch tensors on the CPU, or numpy arrays (then numpy arrays come back, without gradients).
    Returns (logp [N], entropy [N]), float32 (float64 for float64 input; bfloat16 is computed in float32).

    Differentiable once in hidden and weight through both results: the backward pass recomputes the logits tile by
    tile. Extra memory does not grow with N V (kernels/logprob/README.md has the formula); arrays that are not
    contiguous are copied. A row's results depend on nothing but that row and ``weight``, bit for bit, whatever else
    is in the batch and however many threads run. A row of hidden with NaN or Inf gives NaN for that row.

    Raises InvalidInput for wrong shapes, a target outside [0, V) or a temperature that is not a finite number above
    0, TypeError for types that do not match.
    """
    if isinstance(hidden, np.ndarray):
        logp, entropy, _ = _numpy_forward(hidden, weight, targets, float(temperature))
        return logp, entropy
    _check(hidden, weight, targets, temperature)
    if _needs_dispatch(hidden, weight):
        logp, entropy, _ = _logprob_op(hidden, weight, targets, float(temperature))
    else:
        logp, entropy, _ = _forward(hidden, weight, targets, float(temperature))
    return logp, entropy


def which(device: str = "cpu") -> str:
    """The back end that would run on ``device``: "scalar", "avx2" or "avx512"."""
    return _native.logprob_which(device)


def _check(hidden: Any, weight: Any, targets: Any, temperature: float) -> None:
    for name, array in (("hidden", hidden), ("weight", weight), ("targets", targets)):
        if not isinstance(array, type(hidden) if isinstance(hidden, np.ndarray) else Tensor):
            expected = "a numpy array as hidden" if isinstance(hidden, np.ndarray) else "a torch tensor"
            raise TypeError(f"[logprob] {name}: expected {expected}, got {type(array).__name__}")
    shape = f"[{', '.join(map(str, hidden.shape))}]"
    if hidden.ndim != 2:
        raise InvalidInput("logprob", "hidden", "two dimensions [N, H]", shape)
    if hidden.shape[1] < 1:
        raise InvalidInput("logprob", "hidden", "at least one column", shape)
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[1] or weight.shape[0] < 1:
        raise InvalidInput("logprob", "weight", f"[V, {hidden.shape[1]}] with V >= 1", str(list(weight.shape)))
    if targets.ndim != 1 or targets.shape[0] != hidden.shape[0]:
        raise InvalidInput("logprob", "targets", f"[{hidden.shape[0]}], one per row of hidden",
                           str(list(targets.shape)))
    if not (0 < temperature < float("inf")):
        raise InvalidInput("logprob", "temperature", "a finite number above 0", str(temperature))
    if isinstance(hidden, np.ndarray):
        if hidden.dtype not in (np.float32, np.float64):
            raise TypeError(f"[logprob] hidden: expected float32 or float64, got {hidden.dtype}")
    elif hidden.dtype not in _ROW_TYPE:
        raise TypeError(f"[logprob] hidden: expected float32, float64 or bfloat16, got {hidden.dtype}")
    if weight.dtype != hidden.dtype:
        raise TypeError(f"[logprob] weight: expected {hidden.dtype} as hidden, got {weight.dtype}")
    if targets.dtype not in (torch.int64, np.int64):
        raise TypeError(f"[logprob] targets: expected int64, got {targets.dtype}")
    if isinstance(hidden, Tensor):
        for name, tensor in (("hidden", hidden), ("weight", weight), ("targets", targets)):
            if tensor.device.type not in ("cpu", "meta"):
                _native.logprob_which(tensor.device.type)  # says why it cannot run
                raise InvalidInput("logprob", name, "a tensor on the cpu", f"one on {tensor.device}")


def _needs_dispatch(hidden: Tensor, weight: Tensor) -> bool:
    """False when plain tensors need no gradient: the kernel is then called without torch's machinery around it."""
    return (
        (torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad))
        or torch.compiler.is_compiling()
        or any(type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.device.type != "cpu"
               for tensor in (hidden, weight))
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _raw(tensor: Tensor) -> Tensor:
    """What crosses into the kernel: contiguous, without autograd, bfloat16 as its bits."""
    tensor = tensor.detach().contiguous()
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


def _forward(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    rows = [torch.empty(hidden.shape[0], dtype=_ROW_TYPE[hidden.dtype]) for _ in range(3)]
    with _as_invalid_input():
        _native.logprob_forward(_raw(hidden), _raw(weight), _raw(targets), temperature, *rows)
    return rows[0], rows[1], rows[2]


def _numpy_forward(
    hidden: np.ndarray, weight: Any, targets: Any, temperature: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    _check(hidden, weight, targets, temperature)
    rows = [np.empty(hidden.shape[0], dtype=hidden.dtype) for _ in range(3)]
    arrays = [np.ascontiguousarray(array) for array in (hidden, weight, targets)]
    with _as_invalid_input():
        _native.logprob_forward(*arrays, temperature, *rows)
    return rows[0], rows[1], rows[2]


class _as_invalid_input:
    """Turns the kernel's "[op] argument: expected X, got Y" into InvalidInput."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if kind is ValueError and str(error).startswith("[logprob] "):
            argument, _, rest = str(error).removeprefix("[logprob] ").partition(": expected ")
            expected, _, got = rest.rpartition(", got ")
            raise InvalidInput("logprob", argument, expected, got) from None


@torch.library.custom_op("earnest::logprob", mutates_args=(), device_types="cpu")
def _logprob_op(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """logp, entropy and log-sum-exp, each [N]."""
    return _forward(hidden, weight, targets, temperature)


@_logprob_op.register_fake
def _(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    row_type = _ROW_TYPE[hidden.dtype]
    return tuple(hidden.new_empty(hidden.shape[0], dtype=row_type) for _ in range(3))  # type: ignore[return-value]


@torch.library.custom_op("earnest::logprob_backward", mutates_args=(), device_types="cpu")
def _backward_op(
    grad_logp: Tensor, grad_entropy: Tensor, grad_lse: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor,
    entropy: Tensor, lse: Tensor, temperature: float, need_hidden: bool, need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden [N, H] and weight [V, H]; one that is not needed has no elements."""
    grad_hidden = hidden.new_empty(hidden.shape if need_hidden else (0,))
    grad_weight = weight.new_empty(weight.shape if need_weight else (0,))
    rows = [_raw(tensor) for tensor in (grad_logp, grad_entropy, grad_lse)]
    _native.logprob_backward(
        *rows, _raw(hidden), _raw(weight), _raw(targets), _raw(entropy), _raw(lse), temperature,
        _raw(grad_hidden) if need_hidden else None, _raw(grad_weight) if need_weight else None,
    )
    return grad_hidden, grad_weight


@_backward_op.register_fake
def _(
    grad_logp: Tensor, grad_entropy: Tensor, grad_lse: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor,
    entropy: Tensor, lse: Tensor, temperature: float, need_hidden: bool, need_weight: bool,
) -> tuple[Tensor, Tensor]:
    return (hidden.new_empty(hidden.shape if need_hidden else (0,)),
            weight.new_empty(weight.shape if need_weight else (0,)))


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, targets, ctx.temperature = inputs
    ctx.save_for_backward(hidden, weight, targets, output[1], output[2])


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
    hidden, weight, targets, entropy, lse = ctx.saved_tensors
    rows = [torch.zeros_like(lse) if grad is None else grad for grad in grads]
    need_hidden, need_weight = ctx.needs_input_grad[:2]
    grad_hidden, grad_weight = _backward_op(
        rows[0], rows[1], rows[2], hidden, weight, targets, entropy, lse, ctx.temperature, need_hidden, need_weight
    )
    return grad_hidden if need_hidden else None, grad_weight if need_weight else None, None, None


_logprob_op.register_autograd(_differentiate, setup_context=_save)

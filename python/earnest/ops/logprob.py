# SPDX-License-Identifier: Apache-2.0
"""Log-probability of chosen tokens, and entropy, from hidden states; the logits [N, V] are never held
(kernels/logprob)."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from earnest import _native
from earnest.errors import InvalidInput
from earnest.ops import cuda
from earnest.ops.cupy_arrays import accepts_cupy
from earnest.ops.eager import bits, call, capsule, is_eager, needs_gradient

_OP = "logprob"
_ROW_TYPE = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.float32}
_NUMPY_TYPES = (np.dtype(np.float32), np.dtype(np.float64))

Results = tuple[Tensor, Tensor, Tensor, Tensor]


@accepts_cupy
def logprob(hidden: Any, weight: Any, targets: Any, *, temperature: float = 1.0) -> tuple[Any, Any]:
    """Log-probability of ``targets`` and entropy in nats, row by row, under
    softmax(hidden @ weight.T / temperature).

    hidden [N, H] and weight [V, H] are float32, float64 or bfloat16, both the same; targets [N] are int64 in
    [0, V). Torch tensors on the CPU or on cuda; or numpy or cupy arrays (float32, float64), which give their
    like, without gradients. Returns (logp [N], entropy [N]) in float32, or float64 for float64; bfloat16 is
    summed in float32.

    Differentiable, once, in hidden and weight through both results: the backward pass recomputes the logits
    tile by tile, but for at most 16 MiB of them that are kept where gradients are wanted (a small vocabulary
    is kept whole; none on cuda). Scratch memory does not grow with N V (formula: kernels/logprob/README.md);
    arrays that are not contiguous are copied. A row's results, and its gradient, depend on that row and
    ``weight`` alone, bit for bit: not on the rest of the batch, nor on the number of threads. A row of hidden
    that holds NaN or Inf gives NaN for itself only.

    Raises InvalidInput for shapes or types that do not fit, a target outside [0, V) (there is no "ignore"
    index: select the rows instead), or a temperature that is not a finite number above 0. On cuda the call
    waits for the kernel to say that every target was in range (in a CUDA graph: ops.raise_faults).
    """
    if isinstance(hidden, np.ndarray):
        return _logprob_numpy(hidden, weight, targets, temperature)
    if is_eager(hidden, weight, targets) and not needs_gradient(hidden, weight):
        try:
            if hidden.dtype == weight.dtype and hidden.device == weight.device == targets.device:
                return _forward(hidden, weight, targets, float(temperature), None)[:2]
        except (AttributeError, KeyError, TypeError, ValueError):  # the checks below find words for it
            pass
    _check_tensors(hidden, weight, targets)
    _check_shapes(hidden, weight, targets, temperature)
    # A compiled graph keeps no logits: how many there are would bind it to the number of rows.
    keep = needs_gradient(hidden, weight) and not torch.compiler.is_compiling() and not cuda.takes(hidden)
    results = _logprob_op(hidden, weight, targets, float(temperature), keep)
    return results[0], results[1]


def which(device: str = "cpu") -> str:
    """The back end that would run, e.g. "cpu/avx512"; an error where there is none."""
    return call(_native.logprob_which, device)


def _wrong(argument: str, expected: str, got: object) -> NoReturn:
    raise InvalidInput(_OP, argument, expected, str(got))


def _check_tensors(hidden: Any, weight: Any, targets: Any) -> None:
    for name, x in (("hidden", hidden), ("weight", weight), ("targets", targets)):
        if not isinstance(x, Tensor):
            _wrong(name, "a torch tensor (or numpy arrays throughout)", type(x).__name__)
        if x.device.type not in ("cpu", "meta", "cuda"):
            _wrong(name, "a tensor on cpu or cuda", x.device)
        if x.device != hidden.device:
            _wrong(name, f"a tensor on {hidden.device} as hidden", x.device)
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


def _kept_size(hidden: Tensor, weight: Tensor) -> int:
    return _native.logprob_kept_size(
        int(hidden.shape[0]), int(weight.shape[0]), hidden.dtype == torch.float64
    )


def _forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, logits: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    row_type = _ROW_TYPE[hidden.dtype]
    logp, entropy, lse = (hidden.new_empty(hidden.shape[0], dtype=row_type) for _ in range(3))
    arrays = (*map(bits, (hidden, weight, targets)), temperature, *map(capsule, (logp, entropy, lse, logits)))
    if not cuda.takes(hidden):
        call(_native.logprob_forward, *arrays)
        return logp, entropy, lse
    with cuda.launching(_OP, hidden, lambda: _check_targets(targets, weight.shape[0])) as launch:
        call(_native.logprob_forward, *arrays, *launch)
    return logp, entropy, lse


def _check_targets(targets: Tensor, vocabulary: int) -> None:
    """What the CPU says of the first target that is out of range."""
    row = int(((targets < 0) | (targets >= vocabulary)).nonzero()[0])
    _wrong("targets", f"token ids in [0, {vocabulary})", f"{int(targets[row])} in row {row}")


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
    call(_native.logprob_forward, *arrays, float(temperature), *rows, None)
    return rows[0], rows[1]


@torch.library.custom_op("earnest::logprob", mutates_args=())
def _logprob_op(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, keep: bool = False
) -> Results:
    """logp, entropy and log-sum-exp, each [N]; all three are differentiable. The fourth is what backward
    need not make again: some logits in the kernel's own layout, or nothing."""
    logits = hidden.new_empty(_kept_size(hidden, weight) if keep else 0, dtype=_ROW_TYPE[hidden.dtype])
    return *_forward(hidden, weight, targets, temperature, logits if keep else None), logits


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
    grad_hidden = hidden.new_empty(hidden.shape if need_hidden else (0,))
    grad_weight = weight.new_empty(weight.shape if need_weight else (0,))
    arrays = (
        *map(bits, (hidden, weight, targets, grad_logp, grad_entropy, grad_lse, entropy, lse)),
        bits(logits if logits.numel() else None),
        temperature,
        bits(grad_hidden if need_hidden else None),
        bits(grad_weight if need_weight else None),
    )
    if not cuda.takes(hidden):
        _native.logprob_backward(*arrays)
    else:
        with cuda.launching(_OP, hidden) as launch:  # forward has looked at the targets
            _native.logprob_backward(*arrays, *launch)
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

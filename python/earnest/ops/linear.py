# SPDX-License-Identifier: Apache-2.0
"""Linear layers, x W^T + b, on packed weights, with gradients (kernels/linear)."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from earnest import _native
from earnest.errors import InvalidInput
from earnest.ops import cuda
from earnest.ops.cupy_arrays import accepts_cupy
from earnest.ops.eager import call, capsule, needs_gradient, runs_directly
from earnest.ops.packed_weights import PackedWeights

_OP = "linear"
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_NUMPY_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
_packed = PackedWeights()


@accepts_cupy
def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """x @ weight.T + bias over the last axis of x; differentiable, once, in all three.

    x [..., K], weight [N, K] and bias [N] are float32, float64 or bfloat16, all the same, on the CPU or on
    cuda, where torch's own product runs ("cuda/torch", without what is said of bits and packing below); the
    result is [..., N]. Several weights [N_i, K], given as a tuple, count as one that has them one below the
    other. Where x is bfloat16, weight and bias may be float32: they are rounded as they are packed, and get
    float32 gradients, which is what training in mixed precision needs. bfloat16 is summed in float32 and
    rounded once, the bias included. What is not contiguous is copied. numpy or cupy arrays (float32, float64)
    give their like, without gradients. The bits of a row of the result, and of x's gradient, depend on that
    row, weight and bias alone: not on the other rows, nor on the number of threads.

    The weight is packed for the kernel when it is first seen, and the packed copy (as large as the weight;
    a second one for x's gradient) is kept as long as the tensor lives. A change of the weight is seen where
    torch counts it: any operation in place on the tensor, its views or ``weight.detach()``, with gradients
    or under ``torch.no_grad()``, such as an optimiser's step, ``copy_`` or ``load_state_dict``; and where
    the storage moves, as by ``weight.data = other``. torch does not count writes in place to ``weight.data``,
    through ``weight.numpy()`` or a pointer, or FSDP's gathering of shards into the same memory. These are
    seen where they change one of 64 numbers spread over the weight, as a change of all of it does; after a
    change of a part call ``forget_packed(weight)``. Not kept, but packed at each call: float64 weights,
    those made under ``torch.inference_mode()``, and numpy arrays.

    Raises InvalidInput for shapes or types that do not fit.
    """
    if isinstance(x, np.ndarray):
        return _linear_numpy(x, weight, bias)
    weights = (weight,) if isinstance(weight, Tensor) else tuple(weight)
    _check_tensors(x, weights, bias)
    _check_shapes(x.shape, [w.shape for w in weights], None if bias is None else bias.shape)
    bias = bias if bias is None or bias.dtype == x.dtype else bias.to(x.dtype)
    if not runs_directly(x, *weights, bias):
        whole = weights[0] if len(weights) == 1 else torch.cat(weights)
        return (F.linear if x.is_cuda else _linear_op)(x, whole.to(x.dtype), bias)
    if needs_gradient(x, *weights, bias):
        return _Linear.apply(x, bias, *weights)
    return _forward(x, weights, bias)


def forget_packed(weight: Tensor) -> None:
    """Drops the packed copies of a weight; for use after a change that torch does not count."""
    _packed.forget(weight)


def which(device: str = "cpu") -> str:
    """The back end that would run, e.g. "cpu/avx512_bf16"; an error where there is none."""
    return cuda.torch_backend("linear") if device == "cuda" else _native.linear_which(device)


def _wrong(argument: str, expected: str, got: object) -> NoReturn:
    raise InvalidInput(_OP, argument, expected, str(got))


def _check_tensors(x: Any, weights: tuple[Any, ...], bias: Any) -> None:
    if not weights:
        _wrong("weight", "a tensor, or a tuple of at least one", "none")
    if not isinstance(x, Tensor):
        _wrong("x", "a torch tensor or a numpy array", type(x).__name__)
    if x.dtype not in _DTYPES:
        _wrong("x", "float32, float64 or bfloat16", x.dtype)
    if not (x.is_cpu or x.is_meta or x.is_cuda):
        _wrong("x", "a tensor on cpu or cuda", x.device)
    named = [("weight", weight) for weight in weights] + ([] if bias is None else [("bias", bias)])
    for name, other in named:
        if not isinstance(other, Tensor):
            _wrong(name, "a torch tensor like x", type(other).__name__)
        mixed = (x.dtype, other.dtype) == (torch.bfloat16, torch.float32)
        if (other.dtype != x.dtype and not mixed) or other.device != x.device:
            _wrong(name, f"{x.dtype} on {x.device} as x", f"{other.dtype} on {other.device}")


def _check_shapes(x: Any, weights: Any, bias: Any) -> None:
    for weight in weights:
        if len(weight) != 2 or weight[0] < 1 or weight[1] < 1:
            _wrong("weight", "[N, K] with N and K at least 1", list(weight))
        if len(x) < 1 or x[-1] != weight[1]:
            _wrong("x", f"[..., {weight[1]}] to match weight {list(weight)}", list(x))
    outputs = sum(weight[0] for weight in weights)
    if bias is not None and tuple(bias) != (outputs,):
        _wrong("bias", f"[{outputs}] to match weight {[list(w) for w in weights]}", list(bias))


def _product(left: Tensor, packed: Tensor, bias: Tensor | None, columns: int) -> Tensor:
    output = torch.empty((*left.shape[:-1], columns), dtype=left.dtype)
    call(
        _native.linear_product,
        capsule(left),
        capsule(packed),
        capsule(bias),
        capsule(output),
    )
    return output


def _forward_on_cuda(x: Tensor, weight: Tensor, bias: Tensor | None, path: str = "best") -> Tensor:
    """By our kernels, without gradients, from the weight as it is; "best", "sm80", "few" or "vendor"."""
    output = torch.empty((*x.shape[:-1], len(weight)), dtype=x.dtype, device=x.device)
    with cuda.launching(_OP, x) as launch:
        call(
            _native.linear_product_on_cuda, *map(capsule, (x, weight, bias)), capsule(output), *launch, path
        )  # fmt: skip
    return output


def _forward(x: Tensor, weights: tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
    return _product(x, _packed.of(weights, x.dtype, transposed=False), bias, sum(len(w) for w in weights))


def _backward(
    grad_output: Tensor, x: Tensor | None, weights: tuple[Tensor, ...], need_weight: bool, need_bias: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x (where weights are given), of the weights as one, and of bias."""
    grad_output = grad_output.contiguous()
    grad_x = grad_weight = grad_bias = None
    if weights:
        packed = _packed.of(weights, grad_output.dtype, transposed=True)
        grad_x = _product(grad_output, packed, None, weights[0].shape[1])
    if need_weight or need_bias:
        rows = grad_output if x is None else x
        if need_weight:
            grad_weight = torch.empty((grad_output.shape[-1], rows.shape[-1]), dtype=grad_output.dtype)
        if need_bias:
            grad_bias = torch.empty(grad_output.shape[-1], dtype=grad_output.dtype)
        call(
            _native.linear_weight_gradient,
            capsule(grad_output),
            capsule(rows),
            capsule(grad_weight),
            capsule(grad_bias),
        )
    return grad_x, grad_weight, grad_bias


class _Linear(torch.autograd.Function):
    """The eager path with gradients: what the operator below does, at a fraction of its dispatch time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, *weights: Tensor) -> Tensor:
        need_x, _, *need_weights = ctx.needs_input_grad
        ctx.save_for_backward(x if any(need_weights) else None, *(weights if need_x else ()))
        ctx.outputs = [(len(weight), weight.dtype) for weight in weights]
        return _forward(x, weights, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise NotImplementedError("[linear] create_graph: expected first derivatives only, got True")
        x, *weights = ctx.saved_tensors
        _, need_bias, *need_weights = ctx.needs_input_grad
        grad_x, grad_weight, grad_bias = _backward(
            grad_output, x, tuple(weights), any(need_weights), need_bias
        )
        if grad_weight is None:
            return grad_x, grad_bias, *(None for _ in need_weights)
        parts = grad_weight.split([rows for rows, _ in ctx.outputs])
        kept = (part.to(dtype) for part, (_, dtype) in zip(parts, ctx.outputs, strict=True))
        return grad_x, grad_bias, *kept


@torch.library.custom_op("earnest::linear", mutates_args=(), device_types="cpu")
def _linear_op(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _forward(x, (weight,), bias)


@_linear_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op("earnest::linear_backward", mutates_args=(), device_types="cpu")
def _linear_backward_op(
    grad_output: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; one that is not needed has no elements."""
    grads = _backward(grad_output, x, (weight,) if need_x else (), need_weight, need_bias)
    none = (grad_output.new_empty(0) if g is None else g for g in grads)
    grad_x, grad_weight, grad_bias = none
    return grad_x, grad_weight, grad_bias


@_linear_backward_op.register_fake
def _(
    grad_output: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if need_x else (0,)),
        weight.new_empty(weight.shape if need_weight else (0,)),
        weight.new_empty(weight.shape[:1] if need_bias else (0,)),
    )


def _save_for_backward(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _differentiate(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    grads = _linear_backward_op(grad_output, *ctx.saved_tensors, *ctx.needs_input_grad)
    return tuple(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad, strict=True))


_linear_op.register_autograd(_differentiate, setup_context=_save_for_backward)


def _linear_numpy(x: np.ndarray, weight: Any, bias: Any) -> np.ndarray:
    for name, array in (("x", x), ("weight", weight), ("bias", bias)):
        if array is None and name == "bias":
            continue
        if not isinstance(array, np.ndarray) or array.dtype != x.dtype or array.dtype not in _NUMPY_DTYPES:
            got = getattr(array, "dtype", type(array).__name__)
            _wrong(name, "a float32 or float64 numpy array, as x and the others", got)
    _check_shapes(x.shape, [weight.shape], None if bias is None else bias.shape)
    x, weight = np.ascontiguousarray(x), np.ascontiguousarray(weight)
    packed = np.empty(_native.linear_packed_size(weight, False), np.uint8)
    output = np.empty((*x.shape[:-1], weight.shape[0]), x.dtype)
    _native.linear_pack(weight, False, packed)
    bias = None if bias is None else np.ascontiguousarray(bias)
    call(_native.linear_product, x, packed, bias, output)
    return output

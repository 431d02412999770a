# SPDX-License-Identifier: Apache-2.0
"""Scaled dot-product attention over packed variable-length sequences, with gradients (kernels/attention)."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from earnest import _native
from earnest.errors import InvalidInput
from earnest.ops import attention_torch, cuda
from earnest.ops.cupy_arrays import accepts_cupy
from earnest.ops.eager import call, capsule, is_eager, needs_gradient
from earnest.ops.known import Known

_OP = "attention"
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_CUDA_DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}  # of the kernel there
_NUMPY_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


@accepts_cupy
def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    causal: bool,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    seqused_k: Any = None,
    scale: float | None = None,
    most_keys: int = 0,
) -> Any:
    """softmax(scale * q k^T) v per head and per sequence; differentiable in q, k and v.

    q is [tokens, heads, dim] and k, v are [tokens_k, kv_heads, dim]: packed sequences, whose bounds are
    cu_seqlens_q and cu_seqlens_k (int32 [sequences + 1], first 0, last all tokens). Without cu_seqlens they
    hold one sequence; cu_seqlens_k may be left out where it equals cu_seqlens_q. Or all three have one more
    leading axis, the sequences, and no cu_seqlens. heads is a multiple of kv_heads: query head h reads key
    head h // (heads // kv_heads).

    seqused_k (int32 [sequences]) says how many keys of each sequence are valid, from its start: a KV cache
    [sequences, capacity, kv_heads, dim] is passed whole, never sliced, and what lies beyond is never read.
    causal aligns the last query with the last valid key. Rows that see no key give 0, and gradients of 0.

    most_keys is for steps of decoding by our kernels on cuda, and changes nothing elsewhere. Above 0 it says
    that no sequence uses more keys; every 512 of them, counted from the sequence's first, are then a softmax
    of their own (as always on the CPU), so that many blocks share the keys of a sequence of one query. Rows
    that see more than 512 keys get other bits than without it, which depend on the batch as little; prompts
    take longer.

    dim: a multiple of 8 up to 256; scale defaults to 1/sqrt(dim). dtype float32, float64 or bfloat16
    (sums in float32), the same for q, k, v and the result, which has q's shape. Inputs that are not
    contiguous are copied. numpy arrays (float32, float64) give a numpy array, and cupy arrays (float16 too)
    a cupy array, without gradients. On the CPU the bits of a row depend neither on the batch, nor on the
    threads, nor on whether its keys come from a cache. On cuda float32 is computed in the precision of
    autocast. There our kernels run in bfloat16 and float16 and for a dim of 64 or 128, with the same promise,
    of gradients too: theirs depend on their own sequence alone. Elsewhere torch's own operators do
    ("cuda/torch"), without it. EARNEST_CUDA_TIER=sm80 or sm90a forces one of the kernels' two paths, whose
    bits differ, forward and backward; it never comes to torch's operators where the GPU lacks the path.

    Raises InvalidInput. On cuda the call waits for the kernel to say that bounds were right, once for tensors
    that are passed again and again (in a CUDA graph: ops.raise_faults).
    """
    if isinstance(q, np.ndarray):
        return _attention_numpy(q, k, v, causal, cu_seqlens_q, cu_seqlens_k, seqused_k, scale)
    if cu_seqlens_k is None:
        cu_seqlens_k = cu_seqlens_q
    _check_tensors(q, k, v, cu_seqlens_q, cu_seqlens_k, seqused_k)
    if most_keys < 0:
        _wrong("most_keys", "at least 0", most_keys)
    if cu_seqlens_k is None and seqused_k is None:
        _check_most_keys(k.shape[-3], most_keys)
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    rest = (cu_seqlens_q, cu_seqlens_k, seqused_k, causal, factor)
    if cuda.takes(q):
        precision = attention_torch.precision_of(q)
        if not _kernel_takes(precision, q.shape[-1]):
            return attention_torch.attention(q, k, v, *rest)
        return _dispatch(*(x.to(precision) for x in (q, k, v)), *rest, most_keys).to(q.dtype)
    return _dispatch(q, k, v, *rest, most_keys)


def _dispatch(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    """By our kernels: directly where nobody but autograd has to see it, else as an operator."""
    if not is_eager(q, k, v):
        return _attention_op(q, k, v, *rest)[0]
    if needs_gradient(q, k, v):
        return _Attention.apply(q, k, v, *rest)
    return _forward(q, k, v, *rest, with_lse=False)[0]


def which(device: str = "cpu", dtype: str = "float32", dim: int = 64, gradients: bool = False) -> str:
    """The back end that would run, e.g. "cpu/avx512"; an error where there is none. gradients: of a call
    whose backward pass is wanted too, which every back end has."""
    if device != "cuda":
        return _native.attention_which(device, dtype, dim)
    kernel = _kernel_on_cuda(dtype, dim)
    return cuda.torch_backend("attention") if kernel is None else kernel


@torch.compiler.assume_constant_result
def _kernel_on_cuda(dtype: str, dim: int) -> str | None:
    """The name of our kernel; None where it does not take these, or cannot run. InvalidInput where the path
    that the environment forces cannot."""
    try:
        return call(_native.attention_which, "cuda", dtype, dim)
    except RuntimeError:
        return None


def _kernel_takes(precision: torch.dtype, dim: int) -> bool:
    dtype = _CUDA_DTYPES.get(precision)
    size = next((n for n in range(8, 257, 8) if dim == n), None)  # a constant, where a tracer has a symbol
    return dtype is not None and size is not None and _kernel_on_cuda(dtype, size) is not None


def _wrong(argument: str, expected: str, got: object) -> NoReturn:
    raise InvalidInput(_OP, argument, expected, str(got))


def _check_tensors(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, seqused_k: Any) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            _wrong(name, "a torch tensor like q (or numpy arrays throughout)", type(x).__name__)
        if x.dtype != q.dtype or x.device != q.device:
            _wrong(name, f"{q.dtype} on {q.device} as q", f"{x.dtype} on {x.device}")
    if q.dtype not in _DTYPES and not (q.dtype == torch.float16 and cuda.takes(q)):
        _wrong("q", "float32, float64 or bfloat16", q.dtype)
    if not (q.is_cpu or q.is_meta or q.is_cuda):
        _wrong("q", "a tensor on cpu or cuda", q.device)
    _check_shapes(tuple(q.shape), tuple(k.shape), tuple(v.shape), cu_q, cu_k, seqused_k)
    for name, x in (("cu_seqlens_q", cu_q), ("cu_seqlens_k", cu_k), ("seqused_k", seqused_k)):
        if x is not None and (not isinstance(x, Tensor) or x.dtype != torch.int32):
            _wrong(name, "an int32 tensor", x.dtype if isinstance(x, Tensor) else type(x).__name__)
        if x is not None and x.device != q.device:
            _wrong(name, f"a tensor on {q.device} as q", x.device)


def _check_most_keys(used: int, most_keys: int) -> None:
    if 0 < most_keys < used:
        _wrong("most_keys", f"at least the {used} keys of the longest sequence", most_keys)


def _check_shapes(q: tuple, k: tuple, v: tuple, cu_q: Any, cu_k: Any, seqused_k: Any) -> None:
    if len(q) not in (3, 4):
        _wrong("q", "[tokens, heads, dim] or [sequences, tokens, heads, dim]", list(q))
    if len(k) != len(q) or k[-1] != q[-1] or (len(q) == 4 and k[0] != q[0]):
        _wrong("k", f"tokens, kv_heads and dim (and leading axis) to match q {list(q)}", list(k))
    if v != k:
        _wrong("v", f"the shape of k {list(k)}", list(v))
    if q[-1] % 8 != 0 or not 8 <= q[-1] <= 256:
        _wrong("q", "a head size that is a multiple of 8 up to 256", q[-1])
    if k[-2] == 0 or q[-2] == 0 or q[-2] % k[-2] != 0:
        _wrong("k", f"a number of heads that divides q's {q[-2]}", k[-2])
    if (cu_q is None) != (cu_k is None):
        _wrong("cu_seqlens_q", "given together with cu_seqlens_k", None)
    if len(q) == 4 and cu_q is not None:
        _wrong("cu_seqlens_q", "none where q has a leading axis of sequences", "one")
    sequences = q[0] if len(q) == 4 else 1 if cu_q is None else _length("cu_seqlens_q", cu_q) - 1
    if cu_q is not None and sequences < 0:
        _wrong("cu_seqlens_q", "at least one entry", 0)
    if cu_k is not None and _length("cu_seqlens_k", cu_k) != sequences + 1:
        _wrong("cu_seqlens_k", f"{sequences + 1} entries as cu_seqlens_q", _length("cu_seqlens_k", cu_k))
    if seqused_k is not None and _length("seqused_k", seqused_k) != sequences:
        _wrong("seqused_k", f"{sequences} entries, one per sequence", _length("seqused_k", seqused_k))


def _length(name: str, x: Any) -> int:
    if getattr(x, "ndim", None) != 1:
        _wrong(name, "an int32 array of one axis", getattr(x, "shape", type(x).__name__))
    return x.shape[0]


def _sequences(q: Any, cu_seqlens_q: Any) -> int:
    return q.shape[0] if q.ndim == 4 else 1 if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1


def _forward(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor | None, cu_k: Tensor | None, seqused_k: Tensor | None,
    causal: bool, scale: float, most_keys: int = 0, *, with_lse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out, log-sum-exp); without the latter out again."""
    if cuda.takes(q):
        bounds = (cu_q, cu_k, seqused_k)
        return _forward_on_cuda(q, k, v, *bounds, causal, scale, most_keys=most_keys, with_lse=with_lse)
    out = torch.empty(q.shape, dtype=q.dtype)
    lse = torch.empty(q.shape[:-1], dtype=torch.float64) if with_lse else None
    call(
        _native.attention_forward, capsule(q), capsule(k), capsule(v), capsule(out), capsule(lse),
        capsule(cu_q), capsule(cu_k), capsule(seqused_k), _sequences(q, cu_q), causal, scale,
    )  # fmt: skip
    return out, out if lse is None else lse


_bounds = Known(16)


def _forward_on_cuda(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor | None, cu_k: Tensor | None, seqused_k: Tensor | None,
    causal: bool, scale: float, tile_rows: int = 0, path: str = "best", schedule: str = "best", *,
    most_keys: int = 0, with_lse: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As above. Bounds that come again, as from layer to layer, are not waited for again. tile_rows:
    its choice of 64 or 128, which changes no bit, if 0; path: "best" (what is forced, or the choice), "sm80"
    or "sm90a"; schedule, of the last: "best", "series", "turns", "ahead", "both" or "wide"."""
    bounds, sizes = (cu_q, cu_k, seqused_k), (q.shape[:-2], k.shape[:-2])

    def explain() -> None:
        """What the CPU says of these bounds."""
        wide_q, wide_k, wide_v = (x.cpu().float() for x in (q, k, v))
        cpu_q, cpu_k, used = (None if x is None else x.cpu() for x in bounds)
        _forward(wide_q, wide_k, wide_v, cpu_q, cpu_k, used, causal, scale, with_lse=False)
        counts = used if used is not None else cpu_k.diff() if cpu_k is not None else None
        if counts is not None and len(counts) > 0:
            _check_most_keys(int(counts.max()), most_keys)

    capturing = cuda.is_capturing(q)
    given = any(x is not None for x in bounds)
    known = not given or (not capturing and _bounds.holds(bounds, *sizes, most_keys))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:-1], dtype=torch.float64, device=q.device) if with_lse else None
    with cuda.launching(_OP, q, None if known else explain) as launch:
        call(
            _native.attention_forward, *map(capsule, (q, k, v, out, lse)), *map(capsule, bounds),
            _sequences(q, cu_q), causal, scale, *launch, tile_rows, path, schedule, most_keys,
        )  # fmt: skip
    if not known and not capturing:
        _bounds.add(bounds, *sizes, most_keys)
    return out, out if lse is None else lse


def _backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    cu_q: Tensor | None, cu_k: Tensor | None, seqused_k: Tensor | None, causal: bool, scale: float,
    tile_rows: int = 0, path: str = "best",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if cuda.takes(q) and grad_out.data_ptr() % 16 != 0:  # a part of the gradient of something larger
        grad_out = grad_out.clone(memory_format=torch.contiguous_format)
    grads = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    arrays = (
        *map(capsule, (q, k, v, out, lse, grad_out, grad_lse)), *map(capsule, grads),
        *map(capsule, (cu_q, cu_k, seqused_k)), _sequences(q, cu_q), causal, scale,
    )  # fmt: skip
    if not cuda.takes(q):
        call(_native.attention_backward, *arrays)
    else:
        with cuda.launching(_OP, q) as launch:  # forward has looked at the bounds
            call(_native.attention_backward, *arrays, *launch, tile_rows, path)
    return grads[0], grads[1], grads[2]


class _Attention(torch.autograd.Function):
    """The eager path with gradients: what the operator below does, at a fraction of its dispatch time."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        out, lse = _forward(*inputs, with_lse=True)
        q, k, v, cu_q, cu_k, seqused_k, ctx.causal, ctx.scale, _ = inputs
        ctx.save_for_backward(q, k, v, out, lse, cu_q, cu_k, seqused_k)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise NotImplementedError("[attention] create_graph: expected first derivatives only, got True")
        arguments: tuple[Any, ...] = (grad_out, None, *ctx.saved_tensors, ctx.causal, ctx.scale)
        return *_backward(*arguments), *(None,) * 6


@torch.library.custom_op("earnest::attention", mutates_args=(), device_types=("cpu", "cuda"))
def _attention_op(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None,
    seqused_k: Tensor | None, causal: bool, scale: float, most_keys: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out, log-sum-exp): what tracers see."""
    return _forward(q, k, v, cu_seqlens_q, cu_seqlens_k, seqused_k, causal, scale, most_keys, with_lse=True)


@torch.library.custom_op("earnest::attention_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _attention_backward_op(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None, seqused_k: Tensor | None,
    causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    lengths = (cu_seqlens_q, cu_seqlens_k, seqused_k)
    return _backward(grad_out, grad_lse, q, k, v, out, lse, *lengths, causal, scale)


@_attention_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=torch.float64)


@_attention_backward_op.register_fake
def _(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    q, k, v, cu_q, cu_k, seqused_k, ctx.causal, ctx.scale, _ = inputs
    ctx.save_for_backward(q, k, v, *output, cu_q, cu_k, seqused_k)
    ctx.set_materialize_grads(False)


def _backward_of_op(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple:
    if grad_out is None and grad_lse is None:
        return (None,) * 9
    if grad_out is None:
        grad_out = torch.zeros_like(ctx.saved_tensors[0])
    grads = _attention_backward_op(grad_out, grad_lse, *ctx.saved_tensors, ctx.causal, ctx.scale)
    return *grads, *(None,) * 6


_attention_op.register_autograd(_backward_of_op, setup_context=_setup_context)


def _attention_numpy(
    q: np.ndarray, k: Any, v: Any, causal: bool, cu_q: Any, cu_k: Any, seqused_k: Any, scale: float | None
) -> np.ndarray:
    cu_k = cu_q if cu_k is None else cu_k
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, np.ndarray) or x.dtype != q.dtype or x.dtype not in _NUMPY_DTYPES:
            got = getattr(x, "dtype", type(x).__name__)
            _wrong(name, "a float32 or float64 numpy array, as q and the others", got)
    _check_shapes(q.shape, k.shape, v.shape, cu_q, cu_k, seqused_k)
    for name, x in (("cu_seqlens_q", cu_q), ("cu_seqlens_k", cu_k), ("seqused_k", seqused_k)):
        if x is not None and (not isinstance(x, np.ndarray) or x.dtype != np.int32):
            _wrong(name, "an int32 numpy array", getattr(x, "dtype", type(x).__name__))
    lengths = [None if x is None else np.ascontiguousarray(x) for x in (cu_q, cu_k, seqused_k)]
    out = np.empty(q.shape, q.dtype)
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    call(
        _native.attention_forward, *map(np.ascontiguousarray, (q, k, v)), out, None, *lengths,
        _sequences(q, cu_q), causal, factor,
    )  # fmt: skip
    return out

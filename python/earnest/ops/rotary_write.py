# SPDX-License-Identifier: Apache-2.0
"""What stands between the product that makes queries, keys and values and attention over pages, in one pass
over memory: bias, rotary positions, and the write to the cache (kernels/attention)."""

from __future__ import annotations

import torch
from torch import Tensor

from earnest import _native
from earnest.ops import cuda, pages
from earnest.ops.cupy_arrays import accepts_cupy
from earnest.ops.eager import call, capsule, is_eager, needs_gradient
from earnest.ops.known import Known

_OP = "rotary_write"
_places, _scales = Known(16), Known(256)


@accepts_cupy
def rotary_write(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    theta: float,
    bias: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    """Turns the queries and keys of qkv + bias to their positions (arXiv 2104.09864; pairs (j, j + dim /
    2), as in Qwen2), writes keys and values to their slots in k and v, and returns the queries [tokens,
    heads, dim]. There are no gradients. Tensors, or cupy arrays where cupy has the type (pools of e4m3 stay
    tensors), whose pools are written in place too.

    qkv [tokens, (heads + 2 kv_heads) dim] and bias [the same width]: bfloat16 or float16; the result has
    their dtype. k, v [pages, kv_heads, page_size, dim], contiguous and written in place: pools of the same
    dtype, or float8_e4m3fn with float32 scales k_scale and v_scale [kv_heads], which numbers are divided by
    (what is then beyond 448 stays 448). positions int64 [tokens], 0 to 2^24, in tokens. slots int64
    [tokens]: token i goes to place slots[i] % page_size of page slots[i] // page_size; -1: it is not kept
    (as what only fills a CUDA graph). Two tokens of one call should not have one slot. theta: of the angles
    position / theta^(2 j / dim).

    A token's results depend on that token alone. Angles are rounded as ops.rotary_angles does; arithmetic
    is float32, rounded once. On the CPU in plain loops, for trying a program, not for speed. Runs under
    torch.compile, which sees that k and v are written, and in CUDA graphs.

    Raises InvalidInput. On cuda the call waits for the kernel to say that positions, slots and scales were
    right, once for tensors that are passed again unchanged (in a CUDA graph: ops.raise_faults).
    """
    pages.check_pools(_OP, "qkv", qkv, k, v, k_scale, v_scale)
    heads = _heads(qkv, k)
    for name, x in (("positions", positions), ("slots", slots)):
        pages.check_entries(_OP, name, x, torch.int64, [qkv.shape[0]], qkv)
    if bias is not None:
        pages.check_entries(_OP, "bias", bias, qkv.dtype, [qkv.shape[1]], qkv)
        if needs_gradient(bias):
            pages.wrong(_OP, "bias", "a tensor without gradients (torch.no_grad)", "one that requires them")
    tensors = (qkv, bias, positions, slots, k, v, k_scale, v_scale)
    if not is_eager(*tensors):
        turned: Tensor = _write_op(*tensors, heads, float(theta))
        return turned
    q = _write(*tensors, heads, float(theta))
    written = [x for x in (k, v) if not x.is_inference()]
    if written:  # as torch's own operators in place do
        torch.autograd.graph.increment_version(written)
    return q


def which(device: str = "cpu") -> str:
    """The back end that would run, "cuda/simt" or "cpu/scalar"; an error where there is none."""
    return call(_native.rotary_write_which, device)


def _heads(qkv: Tensor, k: Tensor) -> int:
    kv_heads, dim = k.shape[1], k.shape[3]
    if qkv.ndim != 2 or dim == 0 or qkv.shape[1] % dim != 0 or qkv.shape[1] // dim <= 2 * kv_heads:
        expected = f"[tokens, (heads + 2 * {kv_heads}) * {dim}]"
        pages.wrong(_OP, "qkv", expected, list(qkv.shape))
    return qkv.shape[1] // dim - 2 * kv_heads


def _write(
    qkv: Tensor, bias: Tensor | None, positions: Tensor, slots: Tensor, k: Tensor, v: Tensor,
    k_scale: Tensor | None, v_scale: Tensor | None, heads: int, theta: float,
) -> Tensor:  # fmt: skip
    q = torch.empty(qkv.shape[0], heads, k.shape[3], dtype=qkv.dtype, device=qkv.device)
    entries, scales = (positions, slots), (k_scale, v_scale)
    arrays = (qkv, bias, *entries, q, pages.stored(k), pages.stored(v), *scales)
    if not cuda.takes(qkv):
        call(_native.rotary_write, *map(capsule, arrays), theta)
        return q
    sizes = (k.shape[0], k.shape[2])

    def explain() -> None:
        """What the CPU says of these entries."""
        on_cpu = (None if x is None else capsule(x.cpu()) for x in (*entries, *scales))
        call(_native.rotary_write_check, *on_cpu, *sizes)

    capturing = cuda.is_capturing(qkv)
    known = not capturing and _places.holds(entries, *sizes) and _scales.holds(scales)
    with cuda.launching(_OP, qkv, None if known else explain) as launch:
        call(_native.rotary_write, *map(capsule, arrays), theta, *launch)
    if not known and not capturing:
        _places.add(entries, *sizes)
        if len(qkv):  # else nobody has looked at them
            _scales.add(scales)
    return q


@torch.library.custom_op("earnest::rotary_write", mutates_args=("k", "v"))
def _write_op(
    qkv: Tensor, bias: Tensor | None, positions: Tensor, slots: Tensor, k: Tensor, v: Tensor,
    k_scale: Tensor | None, v_scale: Tensor | None, heads: int, theta: float,
) -> Tensor:  # fmt: skip
    """What tracers see."""
    return _write(qkv, bias, positions, slots, k, v, k_scale, v_scale, heads, theta)


@_write_op.register_fake
def _(
    qkv: Tensor, bias: Tensor | None, positions: Tensor, slots: Tensor, k: Tensor, v: Tensor,
    k_scale: Tensor | None, v_scale: Tensor | None, heads: int, theta: float,
) -> Tensor:  # fmt: skip
    return qkv.new_empty(qkv.shape[0], heads, k.shape[3])

# SPDX-License-Identifier: Apache-2.0
"""Who computes attention beside ours on a GPU, each in the layout that it likes: every backend of torch's
scaled_dot_product_attention by itself, torch's varlen_attn, and the packages flash-attn (2 and 3) and
flashinfer where they are installed.

Told to be deterministic, torch's flash and efficient backends are so in their backward pass; torch refuses
cudnn there (sdp_utils.cpp: check_cudnn_deterministic), whose own deterministic backward pass it does not ask
for (github.com/pytorch/pytorch/pull/182551). That one gpu_cudnn.py asks for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from earnest.bench import peers
from earnest.bench.case import Absent
from earnest.bench.gpu_attention_shape import Shape

EXPANDED = ("CUDNN_ATTENTION", "EFFICIENT_ATTENTION")  # the latter takes no grouped heads
ROOM = 128 << 20  # bytes that flashinfer works in


def _nothing(q: Any) -> tuple[Any, ...]:
    return ()


@dataclass(frozen=True)
class Form:
    """A peer and its layout. build: told whether to be deterministic, makes the function of q, k, v and
    `more`. laid_out: packed rows of q (False) or keys (True), as it wants them. packed: the way back, of
    results and gradients. padding: as of an implementation. differentiable: of three arrays, with one
    result."""

    name: str
    build: Callable[[bool], Callable[..., Any]]
    laid_out: Callable[[Any, bool], Any] = lambda x, of_keys: x
    packed: Callable[[Any, bool], Any] = lambda x, of_keys: x
    more: Callable[[Any], tuple[Any, ...]] = _nothing
    padding: float = 0.0
    differentiable: bool = True
    extra: bool = True

    def prepare(self, q: Any, k: Any, v: Any) -> tuple[Any, ...]:
        return self.laid_out(q, False), self.laid_out(k, True), self.laid_out(v, True), *self.more(q)


def forms(shape: Shape, device: str) -> list[Form]:
    found = []
    grouped = shape.heads != shape.kv_heads
    sizes = (len(shape.lengths), shape.heads, max(shape.lengths), max(shape.key_lengths), shape.dim)
    for name, backend in peers.attention_backends(device, *sizes).items():
        if not (grouped and backend == "EFFICIENT_ATTENTION"):
            found += _padded(name, backend, shape, expanded=False)
        if grouped and backend in EXPANDED:
            found += _padded(f"{name}, heads expanded", backend, shape, expanded=True)
        if not shape.equal and backend not in EXPANDED:
            found.append(_one_by_one(f"{name}, one by one", backend, shape))
    if device == "cuda":
        if not shape.equal:
            found.append(_varlen(shape))
        found += [_flash_attn(name, module, shape) for name, module in FLASH_ATTN.items()]
        found.append(_flashinfer(shape))
    return found


# ---- scaled_dot_product_attention ----


def _padded(name: str, backend: str, shape: Shape, expanded: bool) -> list[Form]:
    """On a batch [sequences, heads, tokens, dim], padded where lengths differ: causal rows see no padding;
    others would, and no case asks for them. flash has no masks but causal ones: it takes no chunks whose
    prefixes differ."""
    aligned_by_mask = bool(shape.prefixes) and shape.causal
    flash = backend == "FLASH_ATTENTION"
    if not shape.equal and (not shape.causal or (flash and aligned_by_mask)):
        return []
    group = shape.heads // shape.kv_heads

    def build(deterministic: bool) -> Callable[..., Any]:
        grouped = group > 1 and not expanded
        run = peers.attention_on(name, backend)
        rest = {"enable_gqa": grouped, "is_causal": shape.causal and not aligned_by_mask}
        return told_to_be_deterministic(
            lambda q, k, v, mask=None: run(q, k, v, attn_mask=mask, **rest), deterministic
        )

    def laid_out(x: Any, of_keys: bool) -> Any:
        return padded(x, lengths_of(shape, of_keys), group if expanded and of_keys else 1)

    def packed(x: Any, of_keys: bool) -> Any:
        if expanded and of_keys:  # what a training step would sum over the group
            x = x.unflatten(1, (shape.kv_heads, group)).float().sum(2)
        return unpadded(x, lengths_of(shape, of_keys))

    def more(q: Any) -> tuple[Any, ...]:
        if not aligned_by_mask:
            return ()
        return (_lower_right(shape) if flash else mask(shape, q.device),)

    return [Form(name, build, laid_out, packed, more, 0.0 if shape.equal else shape.padding, extra=False)]


def _one_by_one(name: str, backend: str, shape: Shape) -> Form:
    """A call for each sequence, on views: nothing is padded, and little runs at a time. Not by cudnn, which
    would plan for each length anew, seconds long."""

    def build(deterministic: bool) -> Callable[..., Any]:
        run = peers.attention_on(name, backend)
        lengths = list(zip(shape.lengths, shape.key_lengths, strict=True))
        rest = {"enable_gqa": shape.heads != shape.kv_heads}

        def one(q: Any, k: Any, v: Any, queries: int, keys: int) -> Any:
            if not shape.causal or queries == keys:
                return run(q, k, v, is_causal=shape.causal, **rest)
            from torch.nn.attention.bias import causal_lower_right

            return run(q, k, v, attn_mask=causal_lower_right(queries, keys), **rest)

        def each(q: Any, k: Any, v: Any) -> list[Any]:
            parts = zip(
                *(_views(x, n) for x, n in zip((q, k, v), _split(shape), strict=True)), lengths, strict=True
            )
            return [one(*arrays, *sizes) for *arrays, sizes in parts]

        return each

    def packed(outs: Any, of_keys: bool) -> Any:
        import torch

        return torch.cat([out[0].transpose(0, 1) for out in outs])

    return Form(name, build, packed=packed, differentiable=False, extra=False)


def _split(shape: Shape) -> tuple[Sequence[int], ...]:
    return shape.lengths, shape.key_lengths, shape.key_lengths


def _views(x: Any, lengths: Sequence[int]) -> list[Any]:
    """[1, heads, n, dim] of each sequence."""
    return [part.transpose(0, 1)[None] for part in x.split(list(lengths))]


def _lower_right(shape: Shape) -> Any:
    from torch.nn.attention.bias import causal_lower_right

    return causal_lower_right(shape.lengths[0], shape.key_lengths[0])


def mask(shape: Shape, device: Any) -> Any:
    """[sequences or 1, 1, queries, keys]: who sees whom, the last query of each the last key of its own."""
    import torch

    queries = torch.arange(max(shape.lengths), device=device)[:, None]
    keys = torch.arange(max(shape.key_lengths), device=device)
    prefixes = shape.prefixes[:1] if shape.equal else shape.prefixes
    return torch.stack([keys <= queries + before for before in prefixes])[:, None]


def lengths_of(shape: Shape, of_keys: bool) -> Sequence[int]:
    return shape.key_lengths if of_keys else shape.lengths


def padded(x: Any, lengths: Sequence[int], repeats: int = 1) -> Any:
    """Packed [tokens, heads, dim] -> [sequences, heads, longest, dim], each head so many times."""
    import torch

    rows = torch.nn.utils.rnn.pad_sequence(list(x.split(list(lengths))), batch_first=True).transpose(1, 2)
    return (rows.repeat_interleave(repeats, 1) if repeats > 1 else rows).contiguous()


def unpadded(x: Any, lengths: Sequence[int]) -> Any:
    import torch

    return torch.cat([row[:, :n].transpose(0, 1) for row, n in zip(x, lengths, strict=True)])


def told_to_be_deterministic(run: Callable[..., Any], on: bool) -> Callable[..., Any]:
    """The same with torch told so: `backward` of what it returns has to be told by `determined` too."""
    if not on:
        return run

    def told(*inputs: Any) -> Any:
        with determined(True):
            return run(*inputs)

    return told


@contextmanager
def determined(on: bool) -> Iterator[None]:
    import torch

    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(on)
    settings.fill_uninitialized_memory = False  # it would be timed
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


# ---- packed rows ----


def bounds(lengths: Sequence[int], device: Any) -> Any:
    """cu_seqlens."""
    import torch

    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    return torch.tensor(ends, dtype=torch.int32).to(device)


def _bounds_of(shape: Shape, q: Any) -> tuple[Any, Any]:
    return bounds(shape.lengths, q.device), bounds(shape.key_lengths, q.device)


def _varlen(shape: Shape) -> Form:
    """torch's own packed call, by its flash backend. It aligns to the last key. Later ones are told of
    grouped heads; that of torch 2.11 hands them on untold, whatever comes of it; earlier ones have no
    window."""
    group = shape.heads // shape.kv_heads

    def build(deterministic: bool) -> Callable[..., Any]:
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError:
            raise Absent("torch.nn.attention.varlen: this torch has none") from None
        named = inspect.signature(varlen_attn).parameters
        rest: dict[str, Any] = {"enable_gqa": group > 1} if "enable_gqa" in named else {}
        if "window_size" in named:
            rest["window_size"] = (-1, 0) if shape.causal else (-1, -1)
        else:
            rest["is_causal"] = shape.causal
        untold = group > 1 and "enable_gqa" not in named
        most = max(shape.lengths), max(shape.key_lengths)

        def run(q: Any, k: Any, v: Any, of_q: Any, of_k: Any) -> Any:
            try:
                return varlen_attn(q, k, v, of_q, of_k, *most, **rest)
            except (RuntimeError, ValueError) as error:
                if untold and "out of memory" not in str(error) and "CUDA error" not in str(error):
                    raise Absent(f"torch.nn.attention.varlen: takes no grouped heads: {error}") from None
                raise

        return told_to_be_deterministic(run, deterministic)

    return Form("torch, varlen", build, more=partial(_bounds_of, shape), extra=False)


FLASH_ATTN = {"flash-attn": "flash_attn", "flash-attn 3": "flash_attn_interface"}


def _flash_attn(name: str, module: str, shape: Shape) -> Form:
    """Both have the same functions and align to the last key; some versions return more than the result."""

    def build(deterministic: bool) -> Callable[..., Any]:
        package = peers.load(module, name)
        rest = {"causal": shape.causal, "deterministic": deterministic}
        most = max(shape.lengths), max(shape.key_lengths)

        def run(q: Any, k: Any, v: Any, *of_both: Any) -> Any:
            if of_both:
                return first(package.flash_attn_varlen_func(q, k, v, *of_both, *most, **rest))
            return first(package.flash_attn_func(q, k, v, **rest))

        return run

    if not shape.equal:
        return Form(name, build, more=partial(_bounds_of, shape))
    return Form(
        name,
        build,
        laid_out=lambda x, of_keys: x.unflatten(0, (-1, lengths_of(shape, of_keys)[0])),
        packed=lambda x, of_keys: x.flatten(0, 1),
    )


def first(found: Any) -> Any:
    return found[0] if isinstance(found, tuple) else found


def _flashinfer(shape: Shape) -> Form:
    """Planning, once for all layers of a model, is not timed; compiling, which takes it a minute where no
    compiled kernels are installed, is none of the call's either."""

    def more(q: Any) -> tuple[Any, ...]:
        import torch

        flashinfer = peers.load("flashinfer", "flashinfer-python")
        wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(
            torch.empty(ROOM, dtype=torch.uint8, device=q.device), "NHD"
        )
        wrapper.plan(
            *_bounds_of(shape, q), shape.heads, shape.kv_heads, shape.dim,
            causal=shape.causal, q_data_type=q.dtype, kv_data_type=q.dtype,
        )  # fmt: skip
        return (wrapper,)

    def build(deterministic: bool) -> Callable[..., Any]:
        peers.load("flashinfer", "flashinfer-python")
        return lambda q, k, v, wrapper: wrapper.run(q, k, v)

    return Form("flashinfer", build, more=more, differentiable=False)

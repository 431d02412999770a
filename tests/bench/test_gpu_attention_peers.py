# SPDX-License-Identifier: Apache-2.0
"""Packages that no machine of ours has: made-up modules with their signatures stand in, and compute. What
they are given must be laid out and bounded as they want it, or the result is another."""

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from earnest.bench import (
    gpu_attention,
    gpu_attention_backward,
    gpu_attention_peers,
    gpu_cudnn,
    gpu_decode,
    gpu_decode_peers,
)
from earnest.bench.case import Absent, Implementation, Problem
from earnest.bench.gpu_attention_peers import mask
from earnest.bench.gpu_attention_shape import Shape

SHAPES = {
    "equal": Shape((40, 40), 4, 2, 64),
    "full": Shape((40, 40), 4, 4, 64, causal=False),
    "ragged": Shape((9, 40, 1), 4, 2, 64),
    "chunks": Shape((9, 9), 4, 2, 64, prefixes=(30, 30)),
    "ragged, full": Shape((9, 40), 4, 2, 64, causal=False),
    "ragged chunks": Shape((9, 3), 4, 2, 64, prefixes=(0, 30)),
}


def attend(q: Any, k: Any, v: Any, causal: bool) -> Any:
    """[tokens, heads, dim], the last query aligned to the last key."""
    seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q)) if causal else None
    arrays = (x.transpose(0, 1)[None].float() for x in (q, k, v))
    out = scaled_dot_product_attention(*arrays, attn_mask=seen, enable_gqa=q.shape[1] != k.shape[1])
    return out[0].transpose(0, 1).to(q.dtype)


def each(q: Any, k: Any, v: Any, of_q: Any, of_k: Any, causal: bool) -> Any:
    assert of_q.dtype == of_k.dtype == torch.int32
    parts = zip(
        q.tensor_split(of_q[1:-1].long()), *(x.tensor_split(of_k[1:-1].long()) for x in (k, v)), strict=True
    )
    return torch.cat([attend(*arrays, causal) for arrays in parts])


def flash_attn_func(q, k, v, *, causal=False, deterministic=False):
    return torch.stack([attend(*arrays, causal) for arrays in zip(q, k, v, strict=True)])


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *, causal=False, deterministic=False
):
    assert (max_seqlen_q, max_seqlen_k) == (int(cu_seqlens_q.diff().max()), int(cu_seqlens_k.diff().max()))
    return each(q, k, v, cu_seqlens_q, cu_seqlens_k, causal), "log-sum-exp"  # as some versions of 3 do


def flash_attn_with_kvcache(q, k_cache, v_cache, *, cache_seqlens, causal=False):
    rows = [
        attend(a, b[:n], c[:n], causal) for a, b, c, n in zip(q, k_cache, v_cache, cache_seqlens, strict=True)
    ]
    return torch.stack(rows)


class Ragged:
    def __init__(self, room: Any, kv_layout: str):
        assert (room.dtype, kv_layout) == (torch.uint8, "NHD")

    def plan(
        self,
        qo_indptr,
        kv_indptr,
        num_qo_heads,
        num_kv_heads,
        head_dim_qk,
        *,
        causal,
        q_data_type,
        kv_data_type,
    ):
        self._planned = qo_indptr, kv_indptr, causal
        self._sizes = (num_qo_heads, num_kv_heads, head_dim_qk, q_data_type, kv_data_type)

    def run(self, q, k, v):
        assert self._sizes == (q.shape[1], k.shape[1], q.shape[2], q.dtype, k.dtype)
        return each(q, k, v, *self._planned)


class Paged:
    """Of both kinds: for one query without a plan of queries."""

    def __init__(self, room: Any, kv_layout: str, **rest: Any):
        assert kv_layout == "HND"

    def plan(self, *planned, causal=None, q_data_type, kv_data_type):
        *first, num_qo_heads, num_kv_heads, head_dim, page_size = planned
        self._queries = first.pop(0) if causal else None
        self._pages, self._kinds = first, (q_data_type, kv_data_type)
        self._sizes = num_qo_heads, num_kv_heads, head_dim, page_size

    def run(self, q, pools, k_scale=1.0, v_scale=1.0):
        k, v = pools
        assert self._kinds == (q.dtype, k.dtype)
        assert self._sizes == (q.shape[1], k.shape[1], q.shape[2], k.shape[2])
        first, table, of_last = self._pages
        queries = torch.arange(len(q) + 1) if self._queries is None else self._queries
        found = []
        for i, last in enumerate(of_last):
            pages = table[first[i] : first[i + 1]].long()
            keys = len(pages) * k.shape[2] - k.shape[2] + int(last)
            seen = [
                scale * x[pages].float().transpose(1, 2).flatten(0, 1)[:keys]
                for x, scale in ((k, k_scale), (v, v_scale))
            ]
            found.append(attend(q[queries[i] : queries[i + 1]].float(), *seen, True))
        return torch.cat(found).to(q.dtype)


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    functions = {f.__name__: f for f in (flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache)}
    wrappers = {
        "BatchPrefillWithRaggedKVCacheWrapper": Ragged,
        "BatchPrefillWithPagedKVCacheWrapper": Paged,
        "BatchDecodeWithPagedKVCacheWrapper": Paged,
    }
    for name, what in (
        ("flash_attn", functions),
        ("flash_attn_interface", functions),
        ("flashinfer", wrappers),
    ):
        module = types.ModuleType(name)
        vars(module).update(what)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)


def varlen_attn(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False):
    assert (max_q, max_k) == (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max()))
    assert window_size in ((-1, -1), (-1, 0))
    assert enable_gqa == (q.shape[1] != k.shape[1])
    return each(q, k, v, cu_seq_q, cu_seq_k, window_size == (-1, 0))


def error_of(one: Implementation, problem: Problem) -> float:
    result = one.build()(*one.prepare(*problem.inputs[0]))
    return problem.error(one.outputs(result), problem.reference(*problem.inputs[0]))


def packages_of(shape: Shape) -> list[gpu_attention_peers.Form]:
    found = [
        gpu_attention_peers._flash_attn(*names, shape) for names in gpu_attention_peers.FLASH_ATTN.items()
    ]
    return [*found, gpu_attention_peers._flashinfer(shape), gpu_attention_peers._varlen(shape)]


@pytest.mark.parametrize("name", SHAPES)
def test_a_package_gets_what_it_wants_forward(name: str):
    shape = SHAPES[name]
    problem = gpu_attention.case(shape, device="cpu").problem(np.random.default_rng(0))
    rows = np.arange(sum(shape.lengths))
    wanted = gpu_attention.reference(*problem.inputs[0], shape=shape, rows=rows)
    for form in packages_of(shape):
        one = gpu_attention._peer(form, rows)
        result = one.build()(*one.prepare(*problem.inputs[0]))
        assert problem.error(one.outputs(result), wanted) <= problem.tolerance, form.name


@pytest.mark.parametrize("name", ["equal", "full", "ragged"])
@pytest.mark.parametrize("both", [False, True])
def test_a_package_gets_what_it_wants_backward(name: str, both: bool):
    shape = SHAPES[name]
    problem = gpu_attention_backward.case(shape, device="cpu", both=both).problem(np.random.default_rng(0))
    checked = problem.reference.keywords["checked"]  # type: ignore[attr-defined]
    tried = [form for form in packages_of(shape) if form.differentiable]
    assert len(tried) == 3
    for form in tried:
        for deterministic in (False, True):
            one = gpu_attention_backward._peer(form, shape, checked, both, deterministic)
            assert error_of(one, problem) <= problem.tolerance, one.name


def test_expanded_heads_give_the_gradients_of_those_that_they_stand_for():
    shape = SHAPES["ragged"]
    (form,) = gpu_attention_peers._padded("torch, heads expanded", "MATH", shape, expanded=True)
    problem = gpu_attention.case(shape, device="cpu").problem(np.random.default_rng(0))
    rows = problem.reference.keywords["rows"]  # type: ignore[attr-defined]
    assert error_of(gpu_attention._peer(form, rows), problem) <= problem.tolerance
    problem = gpu_attention_backward.case(shape, device="cpu").problem(np.random.default_rng(0))
    checked = problem.reference.keywords["checked"]  # type: ignore[attr-defined]
    one = gpu_attention_backward._peer(form, shape, checked, both=False, deterministic=False)
    assert error_of(one, problem) <= problem.tolerance


def test_a_backward_pass_alone_runs_no_forward_pass(monkeypatch: pytest.MonkeyPatch):
    shape, calls = SHAPES["equal"], []
    monkeypatch.setattr(
        sys.modules["flash_attn"],
        "flash_attn_func",
        lambda *x, **rest: calls.append(1) or flash_attn_func(*x, **rest),
    )
    problem = gpu_attention_backward.case(shape, device="cpu").problem(np.random.default_rng(0))
    form = gpu_attention_peers._flash_attn("flash-attn", "flash_attn", shape)
    one = gpu_attention_backward._peer(form, shape, (0, 0), both=False, deterministic=False)
    prepared, run = one.prepare(*problem.inputs[0]), one.build()
    assert calls == [1]
    first, second = run(*prepared), run(*prepared)
    assert calls == [1]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_peer_is_told_to_be_deterministic_and_torch_is_as_before():
    seen = []
    form = gpu_attention_peers.Form("a", lambda deterministic: lambda q, k, v: Watched.apply(q + k + v, seen))
    for deterministic in (False, True):
        one = gpu_attention_backward._peer(form, SHAPES["equal"], (0, 0), False, deterministic)
        one.build()(*one.prepare(*(torch.randn(80, 2, 64) for _ in range(4))))
    assert seen == [False, True]
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


class Watched(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, seen: list[bool]) -> Any:
        ctx.seen = seen
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        ctx.seen.append(torch.are_deterministic_algorithms_enabled())
        return grad, None


def test_who_cannot_be_deterministic_is_absent():
    def refuse(*inputs: Any) -> Any:
        raise RuntimeError("x does not have a deterministic implementation")

    form = gpu_attention_peers.Form("a", lambda deterministic: lambda q, k, v: Refusing.apply(q, refuse))
    one = gpu_attention_backward._peer(form, SHAPES["equal"], (0, 0), False, True)
    with pytest.raises(Absent, match="a, deterministic: x does not have"):
        one.build()(*one.prepare(*(torch.randn(80, 2, 64) for _ in range(4))))


class Refusing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, refuse: Any) -> Any:
        ctx.refuse = refuse
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return ctx.refuse(grad)


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("float8", [False, True])
def test_a_package_gets_what_it_wants_decoding(queries: int, float8: bool):
    shape = gpu_decode.Shape(3, 41, 4, 2, 64, queries=queries, float8=float8)
    problem = gpu_decode.case(shape, device="cpu").problem(np.random.default_rng(0))
    rows, gather = problem.reference.keywords["rows"], gpu_decode_peers._Gathered(shape)  # type: ignore[attr-defined]
    found = [gpu_decode_peers._flashinfer(shape, rows)]
    for name, module in gpu_attention_peers.FLASH_ATTN.items():
        found.append(gpu_decode_peers._flash_attn(name, module, rows, gather))
    for one in found:
        assert error_of(one, problem) <= problem.tolerance, one.name


def test_keys_are_gathered_once_for_all_peers():
    shape = gpu_decode.Shape(2, 40, 4, 2, 64)
    inputs = gpu_decode._inputs(np.random.default_rng(0), shape, "cpu")
    gather = gpu_decode_peers._Gathered(shape)
    assert gather(*inputs)[0] is gather(*inputs)[0]
    others = gpu_decode._inputs(np.random.default_rng(1), shape, "cpu")
    assert not torch.equal(gather(*others)[0], gather(*inputs)[0])


def test_masks_align_to_the_last_key():
    assert mask(SHAPES["chunks"], "cpu").shape == (1, 1, 9, 39)
    found = mask(SHAPES["ragged chunks"], "cpu")
    assert found.shape == (2, 1, 9, 33)
    assert found[0, 0].sum(1).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert found[1, 0, :3].sum(1).tolist() == [31, 32, 33]


def test_an_older_varlen_takes_causal_by_name_and_may_refuse_grouped_heads(monkeypatch: pytest.MonkeyPatch):
    def older(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
        if q.shape[1] != k.shape[1]:
            raise RuntimeError("as many heads")
        return each(q, k, v, cu_seq_q, cu_seq_k, is_causal)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", older)
    run = gpu_attention_peers._varlen(SHAPES["ragged"]).build(False)
    many, few = torch.zeros(49, 4, 64), torch.zeros(49, 2, 64)
    with pytest.raises(Absent, match="takes no grouped heads: as many heads"):
        run(many, few, few, None, None)
    with pytest.raises(AttributeError):  # nothing that a refusal would say
        run(None, None, None, None, None)
    shape = Shape((9, 40), 2, 2, 64)
    problem = gpu_attention.case(shape, device="cpu").problem(np.random.default_rng(0))
    rows = problem.reference.keywords["rows"]  # type: ignore[attr-defined]
    assert (
        error_of(gpu_attention._peer(gpu_attention_peers._varlen(shape), rows), problem) <= problem.tolerance
    )


def test_who_is_not_installed_is_absent(monkeypatch: pytest.MonkeyPatch):
    for name in ("flash_attn", "flash_attn_interface", "flashinfer", "cudnn"):
        monkeypatch.setitem(sys.modules, name, None)
    shape = SHAPES["equal"]
    for form in packages_of(shape)[:3]:
        with pytest.raises(Absent, match=form.name):
            form.build(False)
    with pytest.raises(Absent, match="nvidia-cudnn-frontend"):
        gpu_cudnn.backward(shape, list).build()

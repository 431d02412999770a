# SPDX-License-Identifier: Apache-2.0
"""cupy arrays in, cupy arrays out: the results of tensors, on cupy's stream, in the arrays' own memory."""

import pytest
import torch
from torch import Tensor

from earnest import ops
from earnest.errors import InvalidInput
from earnest.features import LogMel
from earnest.ops import cupy_arrays
from made_up_cupy import Array, Cupy

GENERATOR = torch.Generator()


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR.manual_seed(sum(shape))).to(dtype)


def gae_arrays() -> list[Tensor]:
    values, flags = torch.zeros(4), torch.ones(4, dtype=torch.bool)
    return [values.clone(), values.clone(), flags, torch.tensor([0, 4], dtype=torch.int32)]


def test_they_run_on_cupys_stream_and_come_back_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = Cupy(monkeypatch)
    arrays = gae_arrays()
    advantages, returns = ops.gae(*map(Array, arrays))
    assert isinstance(advantages, Array)
    assert isinstance(returns, Array)
    out = (Array(torch.ones(4)), Array(torch.ones(4)))
    cupy.pointer = 0
    ops.gae(*map(Array, arrays), out=out)
    assert bool((out[0].values == 0).all())
    assert cupy.streams == [("external", 77), "default"]
    loss = ops.ppo_loss(*map(Array, arrays[:2]), Array(arrays[0] + 2), None, None, None, Array(arrays[2]))
    assert float(loss.loss.values) == float(loss.policy_loss.values) == -2
    assert float(loss.metrics["tokens"]) == 4
    assert cupy_arrays.accepts_cupy(lambda x: x)(5) == 5


def test_linear_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = Cupy(monkeypatch)
    x, weight, bias = normal(3, 8), normal(5, 8), normal(5)
    assert torch.equal(ops.linear(*map(Array, (x, weight, bias))).values, ops.linear(x, weight, bias))
    assert cupy.streams == [("external", 77)]
    two = ops.linear(Array(x), (Array(weight), Array(weight)))  # weights in a tuple
    assert torch.equal(two.values, ops.linear(x, (weight, weight)))


def test_attention_takes_them_with_bounds_and_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = Cupy(monkeypatch)
    q, k, v = normal(7, 4, 16).requires_grad_(), normal(7, 2, 16), normal(7, 2, 16)
    bounds = torch.tensor([0, 3, 7], dtype=torch.int32)
    found = ops.attention(*(Array(x.detach()) for x in (q, k, v)), causal=True, cu_seqlens_q=Array(bounds))
    assert torch.equal(found.values, ops.attention(q, k, v, causal=True, cu_seqlens_q=bounds).detach())
    assert cupy.streams == [("external", 77)]
    with pytest.raises(InvalidInput, match=r"\[attention\] v: expected the shape of k"):
        ops.attention(Array(q.detach()), Array(k), Array(v[:6]), causal=True)


def test_what_is_written_to_their_pages_is_in_their_own_memory_and_attended_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cupy = Cupy(monkeypatch)
    heads, kv_heads, dim, tokens = 4, 2, 64, 5
    qkv = normal(tokens, (heads + 2 * kv_heads) * dim, dtype=torch.float16)
    places = [torch.arange(tokens), torch.arange(tokens) + 16]  # page 1
    pools = [torch.zeros(3, kv_heads, 16, dim, dtype=torch.float16) for _ in range(2)]
    theirs = [Array(pool.clone()) for pool in pools]
    q = ops.rotary_write(qkv, *places, *pools, theta=1e4)
    found = ops.rotary_write(*map(Array, (qkv, *places)), *theirs, theta=1e4)
    assert torch.equal(found.values, q)
    for pool, own in zip(theirs, pools, strict=True):
        assert torch.equal(pool.values, own)
        assert bool((pool.values[1, :, :tokens] != 0).any())
    table, lengths = torch.tensor([[1]], dtype=torch.int32), torch.tensor([tokens], dtype=torch.int32)
    seen = ops.paged_attention(Array(found.values[-1:]), *theirs, Array(table), Array(lengths))
    assert torch.equal(seen.values, ops.paged_attention(q[-1:], *pools, table, lengths))
    assert cupy.streams == [("external", 77)] * 2


def test_every_way_to_features_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = Cupy(monkeypatch)
    clips = [normal(n) / 8 for n in (400, 1601)]
    mel = LogMel(80)
    wanted = [mel.raw(clip) for clip in clips]
    assert torch.equal(mel.raw(Array(clips[0])).values, wanted[0])
    for found, raw in zip(mel.batch([Array(clip) for clip in clips], raw=True), wanted, strict=True):
        assert torch.equal(found.values, raw)
        assert torch.equal(mel.normalize(Array(raw)).values, mel.normalize(raw))
    both = torch.stack([clips[0], clips[0].flip(0)])
    assert torch.equal(mel.batch(Array(both)).values, mel.batch(both))
    assert cupy.streams == [("external", 77)] * 5

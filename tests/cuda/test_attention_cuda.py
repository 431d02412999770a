# SPDX-License-Identifier: Apache-2.0
"""attention on cuda: who runs, the definition in float64, a row that stands alone, bounds that are wrong."""

import pytest
import torch
from torch import Tensor

import earnest
from earnest import _native
from earnest.errors import InvalidInput
from earnest.ops import attention, attention_torch
from reference import attention as reference

LENGTHS_Q, LENGTHS_K = [5, 0, 33, 1], [5, 2, 70, 64]
DTYPES = [torch.bfloat16, torch.float16]


def bounds(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def problem(dtype: torch.dtype, heads: int = 4, kv_heads: int = 2, dim: int = 64) -> list[Tensor]:
    g = torch.Generator().manual_seed(dim)
    shapes = ((sum(LENGTHS_Q), heads), (sum(LENGTHS_K), kv_heads), (sum(LENGTHS_K), kv_heads))
    return [torch.randn(*shape, dim, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


def named(device: torch.device, **more: Tensor) -> dict:
    given = {"cu_seqlens_q": bounds(LENGTHS_Q), "cu_seqlens_k": bounds(LENGTHS_K), **more}
    return {name: x.to(device) for name, x in given.items()}


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The calls that torch's operators get."""
    calls, real = [], attention_torch.attention
    monkeypatch.setattr(attention_torch, "attention", lambda *inputs: calls.append(inputs) or real(*inputs))
    return calls


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(4, 2, 64), (7, 1, 128)])
def test_results_are_those_of_the_definition(device, by_torch, heads, dtype, causal: bool) -> None:
    inputs = problem(dtype, *heads)
    lists = {"cu_seqlens_q": bounds(LENGTHS_Q).tolist(), "cu_seqlens_k": bounds(LENGTHS_K).tolist()}
    used = torch.tensor([5, 2, 67, 64]).int()
    found = attention(*(x.to(device) for x in inputs), causal=causal, **named(device, seqused_k=used))
    wanted, _ = reference.attention(*inputs, causal=causal, seqused_k=used.tolist(), **lists)
    assert found.dtype == dtype
    assert float((found.cpu().double() - wanted).abs().max()) < (2e-2 if dtype == torch.bfloat16 else 3e-3)
    assert not by_torch


def test_prefill_in_chunks_gives_the_bits_of_prefill_at_once(device) -> None:
    q, k, v = (torch.randn(90, n, 64).to(device, torch.bfloat16) for n in (4, 2, 2))
    whole = attention(q, k, v, causal=True)
    parts = [attention(q[a:b], k[:b], v[:b], causal=True) for a, b in ((0, 7), (7, 64), (64, 90))]
    assert torch.equal(torch.cat(parts), whole)


def test_a_leading_axis_and_arrays_that_are_not_contiguous(device) -> None:
    q = torch.randn(3, 4, 20, 64).to(device, torch.bfloat16).transpose(1, 2)
    k, v = (torch.randn(3, 26, 2, 64).to(device, torch.bfloat16) for _ in range(2))
    used = torch.tensor([26, 20, 3]).int().to(device)
    found = attention(q, k, v, causal=True, seqused_k=used)
    for n, count in enumerate(used.tolist()):
        assert torch.equal(found[n], attention(q[n], k[n, :count], v[n, :count], causal=True))


def test_torchs_operators_run_where_our_kernel_does_not(device, by_torch) -> None:
    q, k, v = (x.to(device) for x in problem(torch.bfloat16))
    results = [attention(q, k, v, causal=True, **named(device))]
    assert len(by_torch) == 0
    results.append(attention(q.clone().requires_grad_(), k, v, causal=True, **named(device)).detach())
    results.append(attention(q.float(), k.float(), v.float(), causal=True, **named(device)))
    assert len(by_torch) == 2
    for other in results[1:]:
        torch.testing.assert_close(results[0].float(), other.float(), atol=3e-2, rtol=0)
    attention(*(torch.randn(3, 2, 32).to(device, torch.bfloat16) for _ in range(3)), causal=True)
    assert len(by_torch) == 3
    with torch.autocast(device.type, torch.bfloat16):
        lower = attention(q.float(), k.float(), v.float(), causal=True, **named(device))
    assert lower.dtype == torch.float32
    assert torch.equal(lower, results[0].float())
    with torch.no_grad():
        again = attention(q.clone().requires_grad_(), k, v, causal=True, **named(device))
    assert torch.equal(again, results[0])
    assert len(by_torch) == 3


def test_which_says_who_runs(device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for dtype, dim, gradients, name in (
        ("bfloat16", 64, False, "cuda/sm80"),
        ("float16", 128, False, "cuda/sm80"),
        ("bfloat16", 64, True, "cuda/torch"),
        ("bfloat16", 80, False, "cuda/torch"),
        ("float32", 64, False, "cuda/torch"),
    ):
        details = {"dtype": dtype, "dim": dim, "gradients": gradients}
        assert earnest.which("attention", device="cuda", **details) == name
    with pytest.raises(RuntimeError, match=r"\[attention\] q: expected a head size of 64 or 128 on cuda"):
        _native.attention_which("cuda", "bfloat16", 80)


def test_wrong_bounds_are_refused_in_the_words_of_the_cpu(device) -> None:
    q, k, v = (x.to(device) for x in problem(torch.bfloat16))
    for name, wrong, sentence in (
        ("cu_seqlens_q", [0, 5, 4, 38, 39], r"entries that never decrease, got 5 before 4"),
        ("cu_seqlens_k", [0, 5, 7, 77, 140], r"a last entry of 141 \(all tokens\), got 140"),
        ("seqused_k", [5, 2, 71, 64], r"0 to 70 \(the keys of sequence 2\), got 71"),
    ):
        arguments = named(device, **{name: torch.tensor(wrong).int()})
        with pytest.raises(InvalidInput, match=rf"\[attention\] {name}: expected {sentence}"):
            attention(q, k, v, causal=True, **arguments)
    right = named(device)
    for _ in range(2):  # nobody waits for the second
        attention(q, k, v, causal=True, **right)
    right["cu_seqlens_q"][1] += 40
    with pytest.raises(InvalidInput, match="cu_seqlens_q"):
        attention(q, k, v, causal=True, **right)

# SPDX-License-Identifier: Apache-2.0
"""attention on cuda: who runs, the definition in float64 with its gradients, a row that stands alone, bounds
that are wrong, and what torch does with an operator: compiling, checkpoints, autocast."""

import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import earnest
from earnest import _native
from earnest.errors import InvalidInput
from earnest.ops import attention, attention_torch
from earnest.ops.attention import _attention_op, _backward, _forward_on_cuda
from model_cases import Batch, packed, toy_model
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


def gradients(function, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The result and the gradients of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def share_off(found: Tensor, wanted: Tensor) -> float:
    return float((found.cpu().double() - wanted).norm() / wanted.norm())


def by_definition_and_plainly(
    inputs: list[Tensor], grad: Tensor, used: Tensor, causal: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """The result and the gradients by their definition, and by torch's operators in the same precision."""
    lists = {"cu_seqlens_q": bounds(LENGTHS_Q).tolist(), "cu_seqlens_k": bounds(LENGTHS_K).tolist()}
    scale = inputs[0].shape[-1] ** -0.5
    return (
        gradients(
            lambda *x: reference.attention(*x, causal=causal, seqused_k=used.tolist(), **lists)[0],
            inputs,
            grad,
        ),
        gradients(
            lambda *x: attention_torch.attention(
                *x, bounds(LENGTHS_Q), bounds(LENGTHS_K), used, causal, scale
            ),
            inputs,
            grad,
        ),
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(4, 2, 64), (7, 1, 128)])
def test_gradients_are_those_of_the_definition(device, by_torch, heads, dtype, causal: bool) -> None:
    inputs = problem(dtype, *heads)
    grad = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    used = torch.tensor([5, 2, 67, 64]).int()
    more = named(device, seqused_k=used)
    found = gradients(
        lambda *x: attention(*x, causal=causal, **more), [x.to(device) for x in inputs], grad.to(device)
    )
    wanted, plain = by_definition_and_plainly(inputs, grad, used, causal)
    assert len(by_torch) == 1  # the plain one
    for mine, theirs, honest in zip(found, wanted, plain, strict=True):
        assert mine.dtype == dtype
        assert share_off(mine, theirs.double()) <= 2 * share_off(honest, theirs.double())
    assert bool((found[2][5 + 2 + 67 : 5 + 2 + 70] == 0).all())  # keys that are not used


@pytest.mark.parametrize(("heads", "causal"), [((4, 2, 64), True), ((7, 1, 128), False)])
def test_by_path_sm90a_results_and_gradients_are_those_of_the_definition(device, heads, causal: bool) -> None:
    inputs = problem(torch.bfloat16, *heads)
    grad = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    used = torch.tensor([5, 2, 67, 64]).int()
    q, k, v = (x.to(device) for x in inputs)
    rest = (*named(device, seqused_k=used).values(), causal, heads[2] ** -0.5)
    try:
        out, lse = _forward_on_cuda(q, k, v, *rest, path="sm90a", with_lse=True)
    except RuntimeError as error:
        if "path: expected sm90a on compute capability 9.0" not in str(error):
            raise
        pytest.skip(str(error))
    found = (out, *_backward(grad.to(device), None, q, k, v, out, lse, *rest, path="sm90a"))
    wanted, plain = by_definition_and_plainly(inputs, grad, used, causal)
    for mine, theirs, honest in zip(found, wanted, plain, strict=True):
        assert share_off(mine, theirs.double()) <= 2 * share_off(honest, theirs.double())
    again = _backward(grad.to(device), None, q, k, v, out, lse, *rest, path="sm90a")
    assert all(torch.equal(a, b) for a, b in zip(again, found[1:], strict=True))


@pytest.fixture
def forced() -> Iterator[Callable[[str], None]]:
    """Forces a tier as EARNEST_CUDA_TIER does."""
    yield _native.force_cuda_tier
    _native.force_cuda_tier("")


def test_the_tier_that_is_forced_is_named_and_taken_by_calls_that_name_none(device, by_torch, forced) -> None:
    inputs = [x.to(device) for x in problem(torch.bfloat16)]
    rest = (*named(device).values(), None, True, 0.125)

    def bits(**words: str) -> list[Tensor]:
        out, lse = _forward_on_cuda(*inputs, *rest, **words, with_lse=True)
        return [out, lse, *_backward(out, None, *inputs, out, lse, *rest, **words)]

    named_path = earnest.which("attention", device="cuda", dtype="bfloat16").removeprefix("cuda/")
    assert all(map(torch.equal, bits(), bits(path=named_path)))  # where nothing is forced
    older = bits(path="sm80")
    forced("sm80")
    assert earnest.which("attention", device="cuda", dtype="bfloat16", gradients=True) == "cuda/sm80"
    assert all(map(torch.equal, bits(), older))
    forced("sm90a")
    sentence = r"EARNEST_CUDA_TIER: expected sm90a on compute capability 9.0, got compute capability \d"
    try:
        newer = bits(path="sm90a")
    except RuntimeError:  # never torch's operators instead
        for family, dtype in (("attention", {"dtype": "bfloat16"}), ("logprob", {})):
            with pytest.raises(ValueError, match=rf"\[{family}\] {sentence}"):
                earnest.which(family, device="cuda", **dtype)
        with pytest.raises(InvalidInput, match=rf"\[attention\] {sentence}"):
            attention(*inputs, causal=True, **named(device))
    else:
        assert earnest.which("attention", device="cuda", dtype="float16", dim=128) == "cuda/sm90a"
        assert earnest.which("logprob", device="cuda") == "cuda/sm90a"
        assert all(map(torch.equal, bits(), newer))
        assert not all(map(torch.equal, newer, older))
    assert all(map(torch.equal, bits(path="sm80"), older))
    assert not by_torch
    with pytest.raises(ValueError, match=r"EARNEST_CUDA_TIER: expected sm80 or sm90a, got 'sm70'"):
        forced("sm70")


def test_a_path_or_schedule_that_is_not_there_is_named(device) -> None:
    q, k, v = (x.to(device) for x in problem(torch.bfloat16))
    rest = (*named(device).values(), None, True, 0.125)
    for words, sentence in (
        ({"path": "sm70"}, "path: expected best, sm80 or sm90a, got sm70"),
        ({"path": "sm90a", "schedule": "chaos"}, "schedule: expected best, series, turns, .* got chaos"),
        ({"path": "sm80", "schedule": "turns"}, "schedule: expected best on other paths than sm90a"),
    ):
        with pytest.raises((InvalidInput, RuntimeError), match=rf"\[attention\] {sentence}"):
            _forward_on_cuda(q, k, v, *rest, **words)


def test_gradients_of_a_sequence_are_the_same_in_any_batch_and_order(device) -> None:
    q, k, v = (x.to(device) for x in problem(torch.bfloat16))
    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).to(q)

    def run(*order: int) -> dict[int, list[Tensor]]:
        """Of the sequences together in this order, what each gets."""
        places = [
            x.long().split(n) for x, n in ((torch.arange(39), LENGTHS_Q), (torch.arange(141), LENGTHS_K))
        ]
        rows, keys = (torch.cat([of[n] for n in order]).to(device) for of in places)
        lengths = [[of[n] for n in order] for of in (LENGTHS_Q, LENGTHS_K)]
        cu_q, cu_k = (bounds(x).to(device) for x in lengths)
        found = gradients(
            lambda *x: attention(*x, causal=True, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k),
            [q[rows], k[keys], v[keys]],
            grad[rows],
        )
        parts = [x.split(lengths[place > 1]) for place, x in enumerate(found)]
        return {n: [part[i] for part in parts] for i, n in enumerate(order)}

    together = run(0, 1, 2, 3)
    for other in (run(3, 2, 1, 0), run(2), run(2)):
        assert all(torch.equal(a, b) for n in other for a, b in zip(other[n], together[n], strict=True))


def test_compiled_and_from_checkpoints_gradients_have_the_same_bits(device, by_torch) -> None:
    inputs = [x.to(device) for x in problem(torch.bfloat16)]
    grad, more = torch.randn_like(inputs[0]), named(device)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, causal=True, **more)

    wanted = gradients(plain, inputs, grad)
    torch.compiler.reset()
    for other in (
        torch.compile(plain, backend="aot_eager", fullgraph=True),
        torch.compile(plain, backend="aot_eager", fullgraph=True, dynamic=True),
        lambda *x: checkpoint(plain, *x, use_reentrant=False),
    ):
        assert all(torch.equal(a, b) for a, b in zip(gradients(other, inputs, grad), wanted, strict=True))
    assert not by_torch


def test_a_gradient_that_is_a_part_of_a_larger_one_may_begin_anywhere(device) -> None:
    inputs = [x.to(device) for x in problem(torch.bfloat16)]
    grad, more = torch.randn_like(inputs[0]), named(device)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, causal=True, **more)

    wanted = gradients(plain, inputs, grad)
    leaves = [x.clone().requires_grad_() for x in inputs]
    three = torch.zeros(3, dtype=torch.bfloat16, device=device, requires_grad=True)
    joined = torch.cat([three, plain(*leaves).flatten()])
    found = torch.autograd.grad(joined, leaves, torch.cat([three.detach(), grad.flatten()]))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted[1:], strict=True))


def test_the_operator_keeps_torchs_rules(device) -> None:
    q, k, v = (x.to(device).requires_grad_() for x in problem(torch.bfloat16))
    bounds_q, bounds_k = named(device).values()
    arguments = (q, k, v, bounds_q, bounds_k, None, True, 0.125)
    torch.library.opcheck(_attention_op, arguments, atol=0, rtol=0)
    out, lse = _attention_op(*arguments)
    both = torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), 0 * lse + 1))
    alone = torch.autograd.grad(_attention_op(*arguments)[0], (q, k, v), torch.ones_like(out))
    assert not torch.equal(both[0], alone[0])  # lse is differentiable in q and k
    assert torch.equal(both[2], alone[2])


def test_autocast_computes_gradients_of_float32_in_its_precision(device, by_torch) -> None:
    inputs = problem(torch.bfloat16)
    grad = torch.randn(inputs[0].shape).bfloat16()
    more = named(device)
    wanted = gradients(
        lambda *x: attention(*x, causal=True, **more), [x.to(device) for x in inputs], grad.to(device)
    )
    with torch.autocast(device.type, torch.bfloat16):
        found = gradients(
            lambda *x: attention(*x, causal=True, **more),
            [x.to(device).float() for x in inputs],
            grad.to(device).float(),
        )
    assert all(
        torch.equal(a, b.float()) and a.dtype == torch.float32 for a, b in zip(found, wanted, strict=True)
    )
    assert not by_torch


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_on_a_gpu_too(gpu, mode: str) -> None:
    inputs = [x.to(gpu) for x in problem(torch.bfloat16)]
    grad, more = torch.randn_like(inputs[0]), named(gpu)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return 2 * attention(q, k, v, causal=True, **more)

    wanted = gradients(plain, inputs, grad)
    torch.compiler.reset()
    compiled = torch.compile(plain, fullgraph=True, mode=mode)
    for _ in range(4):  # the first ones record
        torch.compiler.cudagraph_mark_step_begin()
        assert all(torch.equal(a, b) for a, b in zip(gradients(compiled, inputs, grad), wanted, strict=True))


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
    results.append(attention(q.clone().requires_grad_(), k, v, causal=True, **named(device)).detach())
    assert torch.equal(*results)
    assert len(by_torch) == 0
    results.append(attention(q.float(), k.float(), v.float(), causal=True, **named(device)))
    assert len(by_torch) == 1
    for other in results[1:]:
        torch.testing.assert_close(results[0].float(), other.float(), atol=3e-2, rtol=0)
    attention(*(torch.randn(3, 2, 32).to(device, torch.bfloat16) for _ in range(3)), causal=True)
    assert len(by_torch) == 2
    with torch.autocast(device.type, torch.bfloat16):
        lower = attention(q.float(), k.float(), v.float(), causal=True, **named(device))
    assert lower.dtype == torch.float32
    assert torch.equal(lower, results[0].float())
    with torch.no_grad():
        again = attention(q.clone().requires_grad_(), k, v, causal=True, **named(device))
    assert torch.equal(again, results[0])
    assert len(by_torch) == 2


def test_which_says_who_runs(device, forced, monkeypatch: pytest.MonkeyPatch) -> None:
    forced("sm80")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for dtype, dim, gradients, name in (
        ("bfloat16", 64, False, "cuda/sm80"),
        ("float16", 128, False, "cuda/sm80"),
        ("bfloat16", 64, True, "cuda/sm80"),
        ("bfloat16", 80, False, "cuda/torch"),
        ("float32", 64, False, "cuda/torch"),
    ):
        details = {"dtype": dtype, "dim": dim, "gradients": gradients}
        assert earnest.which("attention", device="cuda", **details) == name
    with pytest.raises(RuntimeError, match=r"\[attention\] q: expected a head size of 64 or 128 on cuda"):
        _native.attention_which("cuda", "bfloat16", 80)


def test_every_layer_of_the_model_reaches_the_kernel(
    device, by_torch: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    dims = []

    def forward(q: Tensor, *rest, **named):
        dims.append(q.shape[-1])
        return _forward_on_cuda(q, *rest, **named)

    monkeypatch.setattr(sys.modules[attention.__module__], "_forward_on_cuda", forward)
    model = toy_model(
        hidden_size=256, num_attention_heads=2, num_key_value_heads=1, n_audio_state=128, n_audio_head=2
    )
    model = model.to(device, torch.bfloat16).requires_grad_(False)
    batch = packed(model, [(6, [40]), (9, [])])
    here = {name: x.to(device) for name, x in vars(batch).items() if name != "mel"}
    hidden = model(Batch(**here, mel=[x.to(device, torch.bfloat16) for x in batch.mel]))
    assert bool(hidden.isfinite().all())
    assert dims == [64] * 2 + [128] * 3  # the encoder's layers, then the decoder's
    assert by_torch == []


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

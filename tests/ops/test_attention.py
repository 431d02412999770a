# SPDX-License-Identifier: Apache-2.0
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from earnest import _native
from earnest.errors import InvalidInput
from earnest.ops.attention import _attention_op, attention, which
from reference import attention as reference
from shapes import PACKS, QUERIES_AND_KEYS
from tiers import TIERS as ALL_TIERS
from tiers import usable_tiers
from tolerances import ATTENTION, FACTOR

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
TIERS = usable_tiers("attention")
# Lengths of queries and keys of each sequence; test_attention_properties.py takes every pack there is.
SHAPES = {
    name: (PACKS[name], PACKS[name]) for name in ("primes", "ragged", "edges of tiles")
} | QUERIES_AND_KEYS


@pytest.fixture(autouse=True)
def _leave_tier_and_threads_as_they_were() -> Iterator[None]:
    threads, torch_threads = _native.num_threads(), torch.get_num_threads()
    torch.set_num_threads(1)  # its small operations only get slower with more
    yield
    torch.set_num_threads(torch_threads)
    _native.force_cpu_tier("")
    _native.set_num_threads(threads)


def bounds(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def random_inputs(
    lengths_q: Sequence[int],
    lengths_k: Sequence[int],
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((sum(lengths_q), heads, dim), *((sum(lengths_k), kv_heads, dim),) * 2)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return q, k, v


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def exact(q: Tensor, k: Tensor, v: Tensor, **options) -> Tensor:
    lists = {name: x.tolist() if isinstance(x, Tensor) else x for name, x in options.items()}
    lists.setdefault("cu_seqlens_k", lists["cu_seqlens_q"])
    return reference.attention(q, k, v, **lists)[0]


def plain(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor
) -> Tensor:
    """torch's own arithmetic in the same precision, sequence by sequence."""
    cu_q, cu_k = cu_seqlens_q, cu_seqlens_k
    group = q.shape[1] // k.shape[1]
    out = []
    for n in range(len(cu_q) - 1):
        queries = q[cu_q[n] : cu_q[n + 1]].transpose(0, 1)
        keys, values = (x[cu_k[n] : cu_k[n + 1]].repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
        visible = torch.ones(queries.shape[1], keys.shape[1], dtype=torch.bool)
        visible = visible.tril(keys.shape[1] - queries.shape[1]) if causal else visible
        scores = (queries @ keys.transpose(1, 2) * q.shape[2] ** -0.5).masked_fill(~visible, -torch.inf)
        out.append((scores.softmax(-1).nan_to_num(0.0) @ values).transpose(0, 1))
    return torch.cat(out)


def run(inputs: Sequence[Tensor], grad_out: Tensor, function=attention, **options) -> list[Tensor]:
    """The result and the gradients of q, k, v."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_out)]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_definition_and_is_as_exact_as_plain_arithmetic(tier, dtype, causal, shape) -> None:
    _native.force_cpu_tier(tier)
    lengths_q, lengths_k = SHAPES[shape]
    cu_q, cu_k = bounds(lengths_q), bounds(lengths_k)
    options = {"causal": causal, "cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k}
    for dim, (heads, kv_heads) in ((32, (6, 2)), (40, (3, 1)), (64, (2, 2))):
        inputs = random_inputs(lengths_q, lengths_k, heads, kv_heads, dim, dtype)
        grad_out = random_inputs(lengths_q, lengths_k, heads, kv_heads, dim, dtype, seed=1)[0]
        ours = run(inputs, grad_out, **options)
        true = run([x.double() for x in inputs], grad_out.double(), exact, **options)
        honest = run(inputs, grad_out, plain, **options)
        for i, (a, b, c) in enumerate(zip(ours, true, honest, strict=True)):
            error, plain_error = ((x.double() - b).abs().max().item() if b.numel() else 0.0 for x in (a, c))
            floor = ATTENTION["backward" if i else "forward"][name_of(dtype)]
            assert error <= floor, (dim, i, error)
            if dtype != torch.float64:  # there the reference is no more exact than what it judges
                assert error <= FACTOR * plain_error + floor / 10, (dim, i, error, plain_error)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_log_sum_exp_is_that_of_the_scores(dtype) -> None:
    q, k, v = random_inputs([5, 0, 70], [66, 4, 64], 6, 2, 32, dtype)
    cu_q, cu_k = bounds([5, 0, 70]), bounds([66, 4, 64])
    lse = _attention_op(q, k, v, cu_q, cu_k, None, True, 0.3)[1]
    exact = reference.attention(
        q, k, v, causal=True, cu_seqlens_q=cu_q.tolist(), cu_seqlens_k=cu_k.tolist(), scale=0.3
    )[1]
    assert torch.equal(lse.isinf(), exact.isinf())
    seen = ~exact.isinf()
    assert (lse.double() - exact)[seen].abs().max() <= ATTENTION["lse"][name_of(dtype)]


@pytest.mark.parametrize("dim", [8, 16, 24, 48, 72, 96, 120, 128, 136, 200, 256])
@pytest.mark.parametrize("tier", TIERS)
def test_every_head_size(dim, tier) -> None:
    _native.force_cpu_tier(tier)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = random_inputs([7, 66], [7, 66], 2, 1, dim, dtype)
        cu = bounds([7, 66])
        ours = run(inputs, inputs[0], causal=True, cu_seqlens_q=cu)
        true = run([x.double() for x in inputs], inputs[0].double(), exact, causal=True, cu_seqlens_q=cu)
        for i, (a, b) in enumerate(zip(ours, true, strict=True)):
            bound = ATTENTION["backward" if i else "forward"][name_of(dtype)]
            assert (a.double() - b).abs().max() <= bound * (1 if i == 0 else 2), (dim, i)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_a_row_is_the_same_by_prefill_and_by_cached_decoding_bit_for_bit(tier, dtype) -> None:
    _native.force_cpu_tier(tier)
    for heads, kv_heads, dim, length in ((6, 6, 32, 150), (6, 2, 40, 70), (7, 1, 64, 129)):
        q, k, v = random_inputs([length], [length], heads, kv_heads, dim, dtype)
        prefill = attention(q, k, v, causal=True)
        cache_k, cache_v = (x.new_full((length + 10, kv_heads, dim), torch.nan) for x in (k, v))
        for step in range(length):
            cache_k[step], cache_v[step] = k[step], v[step]
            used = torch.tensor([step + 1], dtype=torch.int32)
            row = attention(
                q[None, step : step + 1], cache_k[None], cache_v[None], causal=True, seqused_k=used
            )
            assert torch.equal(row[0, 0], prefill[step]), (heads, dim, step)
        late = attention(q[33:], k, v, causal=True)  # a prompt in two pieces
        assert torch.equal(late, prefill[33:])


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_the_last_rows_are_those_of_prefill_however_few_they_are(tier, dtype) -> None:
    _native.force_cpu_tier(tier)
    for dim, length in ((8, 67), (24, 80), (64, 130)):
        q, k, v = random_inputs([length], [length], 1, 1, dim, dtype)
        prefill = attention(q, k, v, causal=True)
        for rows in range(1, 10):
            assert torch.equal(attention(q[-rows:], k, v, causal=True), prefill[-rows:]), (dim, rows)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_nothing_depends_on_the_batch_or_on_threads(tier, dtype) -> None:
    _native.force_cpu_tier(tier)
    lengths = [100, 1, 64, 0, 37, 98, 200, 65]
    cu = bounds(lengths)
    inputs = random_inputs(lengths, lengths, 6, 2, 32, dtype)
    grad_out = inputs[0].flip(0)
    results = []
    for threads in (1, 3):
        _native.set_num_threads(threads)
        results.append(run(inputs, grad_out, causal=True, cu_seqlens_q=cu))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    for n in range(len(lengths)):
        part = slice(cu[n], cu[n + 1])
        alone = run([x[part] for x in inputs], grad_out[part], causal=True)
        assert all(torch.equal(a, b[part]) for a, b in zip(alone, results[0], strict=True)), lengths[n]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_long_caches_give_the_rows_of_prefill_whoever_takes_their_parts(tier, dtype) -> None:
    _native.force_cpu_tier(tier)
    length = 1100  # three parts of keys, the last one short
    for heads, kv_heads, dim in ((7, 1, 64), (4, 4, 40)):
        q, k, v = random_inputs([length], [length], heads, kv_heads, dim, dtype)
        prefill = attention(q, k, v, causal=True)
        true = exact(q, k, v, causal=True, cu_seqlens_q=[0, length])
        assert (prefill.double() - true).abs().max() <= ATTENTION["forward"][name_of(dtype)]
        for threads in (1, 3):  # one thread takes the parts in turn, several one each
            _native.set_num_threads(threads)
            for used in (511, 512, 513, 1024, 1025, 1100):
                count = torch.tensor([used], dtype=torch.int32)
                row = attention(q[None, used - 1 : used], k[None], v[None], causal=True, seqused_k=count)
                assert torch.equal(row[0, 0], prefill[used - 1]), (heads, threads, used)
            late = attention(q[1090:], k, v, causal=True)
            assert torch.equal(late, prefill[1090:]), (heads, threads)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "keys"), [(14, 2, 64, [1100, 513, 1]), (20, 10, 8, [6000])]
)
def test_heads_that_one_task_takes_together_give_what_each_gives_alone(
    tier, dtype, heads, kv_heads, dim, keys
) -> None:
    _native.force_cpu_tier(tier)
    shape = len(keys), max(keys), kv_heads, dim  # enough parts of keys for a task to take all heads of one
    k, v = (torch.randn(shape).to(dtype) for _ in range(2))
    q, used = torch.randn(len(keys), 1, heads, dim).to(dtype), torch.tensor(keys, dtype=torch.int32)
    _native.set_num_threads(1)
    alone = attention(q, k, v, causal=True, seqused_k=used)
    _native.set_num_threads(3 if len(keys) == 1 else 2)
    assert torch.equal(attention(q, k, v, causal=True, seqused_k=used), alone)
    true = exact(
        q[0], k[0, : keys[0]], v[0, : keys[0]], causal=False, cu_seqlens_q=[0, 1], cu_seqlens_k=[0, keys[0]]
    )
    assert (alone[0].double() - true).abs().max() <= ATTENTION["forward"][name_of(dtype)]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_gradients_of_a_long_sequence_are_exact_and_depend_on_nothing_else(tier, dtype) -> None:
    _native.force_cpu_tier(tier)
    lengths_q, lengths_k = [1030, 20, 3], [1100, 20, 2100]  # several shares; one; one with many keys
    cu_q, cu_k = bounds(lengths_q), bounds(lengths_k)
    inputs = random_inputs(lengths_q, lengths_k, 2, 1, 16, dtype)
    grad_out = inputs[0].flip(0)
    for causal in (True, False):
        options = {"causal": causal, "cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k}
        results = []
        for threads in (1, 3):
            _native.set_num_threads(threads)
            results.append(run(inputs, grad_out, **options))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        parts = [slice(0, 1030), slice(0, 1100), slice(0, 1100)]
        alone = run([x[part] for x, part in zip(inputs, parts, strict=True)], grad_out[:1030], causal=causal)
        assert all(
            torch.equal(a, b[part]) for a, b, part in zip(alone, results[0], [parts[0], *parts], strict=True)
        )
        true = run([x.double() for x in inputs], grad_out.double(), exact, **options)
        honest = run(inputs, grad_out, plain, **options)
        for i, (a, b, c) in enumerate(zip(results[0], true, honest, strict=True)):
            error, plain_error = ((x.double() - b).abs().max().item() for x in (a, c))
            floor = ATTENTION["backward" if i else "forward"][name_of(dtype)]
            assert error <= floor, (causal, i, error)
            if dtype != torch.float64:  # there the reference is no more exact than what it judges
                assert error <= FACTOR * plain_error + floor / 10, (causal, i, error, plain_error)


@pytest.mark.parametrize("tier", TIERS)
def test_keys_beyond_seqused_are_never_read_and_get_no_gradient(tier) -> None:
    _native.force_cpu_tier(tier)
    used = torch.tensor([3, 0, 65, 9], dtype=torch.int32)
    q = torch.randn(4, 2, 4, 24)
    k, v = torch.randn(4, 70, 2, 24), torch.randn(4, 70, 2, 24)
    for n, count in enumerate(used.tolist()):
        k[n, count:], v[n, count:] = torch.nan, torch.inf
    out, grad_q, grad_k, grad_v = run((q, k, v), torch.ones_like(q), causal=False, seqused_k=used)
    clean = [x.nan_to_num(0.0, 0.0) for x in (k, v)]
    expected = run((q, *clean), torch.ones_like(q), causal=False, seqused_k=used)
    assert all(torch.equal(a, b) for a, b in zip((out, grad_q, grad_k, grad_v), expected, strict=True))
    assert out[1].eq(0).all()
    assert grad_q[1].eq(0).all()
    for n, count in enumerate(used.tolist()):
        assert grad_k[n, count:].eq(0).all()
        assert grad_v[n, count:].eq(0).all()
        assert count == 0 or grad_v[n, :count].ne(0).all()


def test_rows_that_see_no_key_are_zero_with_zero_gradients() -> None:
    q, k, v = random_inputs([9], [4], 2, 2, 16, torch.float32)
    out, grad_q, _, _ = run((q, k, v), torch.ones_like(q), causal=True)
    assert out[:5].eq(0).all()
    assert grad_q[:5].eq(0).all()
    assert out[5:].ne(0).all()
    assert torch.equal(out[5], v[0])  # one key: its value


def test_large_scores_neither_overflow_nor_lose_the_largest() -> None:
    q = torch.full((2, 1, 8), 1e4)
    k = torch.stack([torch.full((1, 8), 1e4), torch.full((1, 8), -1e4)])
    v = torch.arange(16.0).reshape(2, 1, 8)
    assert torch.equal(attention(q, k, v, causal=False), v[:1].expand(2, 1, 8))


@pytest.mark.parametrize("causal", [False, True])
def test_gradcheck_through_ragged_grouped_sequences(causal) -> None:
    lengths = {"cu_seqlens_q": bounds([3, 0, 4]), "cu_seqlens_k": bounds([5, 1, 3])}
    used = torch.tensor([4, 1, 3], dtype=torch.int32)
    inputs = [x.requires_grad_() for x in random_inputs([3, 0, 4], [5, 1, 3], 4, 2, 8, torch.float64)]
    assert torch.autograd.gradcheck(
        lambda q, k, v: attention(q, k, v, causal=causal, seqused_k=used, scale=0.7, **lengths), inputs
    )
    assert torch.autograd.gradcheck(  # the operator also carries gradients of its log-sum-exp
        lambda q, k, v: _attention_op(q, k, v, *lengths.values(), None, False, 0.7)[1][:3], inputs
    )


def test_the_operator_passes_opcheck_and_traces_whole() -> None:
    cu = bounds([3, 4])
    q, k, v = (x.requires_grad_() for x in random_inputs([3, 4], [3, 4], 4, 2, 8, torch.float32))
    torch.library.opcheck(_attention_op, (q, k, v, cu, cu, None, True, 0.3))

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q * 2, k, v, causal=True, cu_seqlens_q=cu).square().sum()

    eager = torch.autograd.grad(loss(q, k, v), (q, k, v))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert all(
        torch.equal(a, b)
        for a, b in zip(torch.autograd.grad(compiled(q, k, v), (q, k, v)), eager, strict=True)
    )


def test_meta_and_fake_tensors_give_shapes() -> None:
    q = torch.empty(2, 5, 4, 16, device="meta", dtype=torch.bfloat16)
    k = torch.empty(2, 9, 2, 16, device="meta", dtype=torch.bfloat16)
    out = attention(q, k, k, causal=True)
    assert (out.shape, out.dtype, out.device.type) == (q.shape, q.dtype, "meta")
    with torch._subclasses.FakeTensorMode():
        fake = torch.empty(7, 4, 16)
        assert attention(fake, fake, fake, causal=True).shape == (7, 4, 16)


def test_double_backward_is_refused_rather_than_wrong() -> None:
    q, k, v = (x.requires_grad_() for x in random_inputs([3], [3], 1, 1, 8, torch.float64))
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(attention(q, k, v, causal=True).sum(), q, create_graph=True)


def test_numpy_in_numpy_out_even_read_only_and_strided() -> None:
    q, k, v = (x.numpy() for x in random_inputs([7], [9], 4, 2, 16, torch.float32))
    expected = attention(*map(torch.from_numpy, (q, k, v)), causal=True)
    for x in (q, k, v):
        x.flags.writeable = False
    out = attention(q, k, v, causal=True)
    assert isinstance(out, np.ndarray)
    assert np.array_equal(out, expected.numpy())
    wide = np.repeat(q, 2, axis=2)[:, :, ::2]
    assert np.array_equal(attention(wide, k, v, causal=True), out)
    cu = np.array([0, 3, 7], np.int32)
    assert attention(q, k[:7], v[:7], causal=True, cu_seqlens_q=cu).shape == q.shape


def test_strided_tensors_give_what_their_copies_give() -> None:
    q, k, v = random_inputs([70], [70], 2, 2, 32, torch.float32)
    fused = torch.stack([q, k, v], 2).reshape(70, 6, 32)
    views = [fused[:, i::3] for i in range(3)]
    assert not views[0].is_contiguous()
    ours = run(views, q.transpose(0, 1).contiguous().transpose(0, 1), causal=True)
    copies = run([x.contiguous() for x in views], q, causal=True)
    assert all(torch.equal(a, b) for a, b in zip(ours, copies, strict=True))


def test_which_names_the_forced_tier_and_torch_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    for tier in TIERS:
        _native.force_cpu_tier(tier)
        assert which(dtype="bfloat16") == f"cpu/{tier}"
        for dtype in ("float32", "float64"):  # which have no code of their own for the last tier
            assert which(dtype=dtype) == f"cpu/{min(tier, 'avx512', key=ALL_TIERS.index)}"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"expected cpu \(torch sees no GPU\), got cuda"):
        which("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert which("cuda") == "cuda/torch"


def test_a_tier_is_forced_by_the_environment() -> None:
    code = "from earnest import _native; print(_native.attention_which('cpu', 'float32', 64))"
    environment = {**os.environ, "EARNEST_CPU_TIER": "scalar"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "cpu/scalar"


Q, K = torch.zeros(6, 4, 16), torch.zeros(6, 2, 16)
CU = torch.tensor([0, 2, 6], dtype=torch.int32)
BAD = {
    "dtype": ((Q.half(), K.half(), K.half()), {}, "q: expected float32, float64 or bfloat16"),
    "mixed dtypes": ((Q, K.double(), K), {}, "k: expected torch.float32"),
    "one axis": ((Q[0, 0], K, K), {}, "q: expected"),
    "axes differ": ((Q[None], K, K), {}, "k: expected"),
    "head size differs": ((Q, K[..., :8], K[..., :8]), {}, "k: expected"),
    "v differs": ((Q, K, K[:5]), {}, "v: expected"),
    "head size": ((Q[..., :12], K[..., :12], K[..., :12]), {}, "multiple of 8 up to 256, got 12"),
    "head size 264": ((Q.new_zeros(1, 1, 264),) * 3, {}, "multiple of 8 up to 256, got 264"),
    "heads": ((Q[:, :3], K, K), {}, "divides q's 3, got 2"),
    "no heads": ((Q, K[:, :0], K[:, :0]), {}, "got 0"),
    "int64 bounds": ((Q, K, K), {"cu_seqlens_q": CU.long()}, "cu_seqlens_q: expected an int32 tensor"),
    "list bounds": ((Q, K, K), {"cu_seqlens_q": [0, 6]}, "cu_seqlens_q: expected"),
    "k bounds alone": ((Q, K, K), {"cu_seqlens_k": CU}, "cu_seqlens_q: expected given"),
    "bounds and batch": ((Q[None], K[None], K[None]), {"cu_seqlens_q": CU}, "cu_seqlens_q: expected none"),
    "first bound": ((Q, K, K), {"cu_seqlens_q": CU.clamp(min=1)}, "first entry of 0, got 1"),
    "last bound": ((Q, K, K), {"cu_seqlens_q": CU.clamp(max=5)}, "last entry of 6 .all tokens., got 5"),
    "falling": ((Q, K, K), {"cu_seqlens_q": CU[[0, 2, 1, 2]]}, "never decrease, got 6 before 2"),
    "lengths of bounds": ((Q, K, K), {"cu_seqlens_q": CU, "cu_seqlens_k": CU[[0, 2]]}, "expected 3 entries"),
    "used too many": ((Q, K, K), {"seqused_k": CU[2:] + 1}, "seqused_k: expected 0 to 6 .*got 7"),
    "used negative": ((Q, K, K), {"seqused_k": CU[:1] - 1}, "seqused_k: expected 0 to 6 .*got -1"),
    "used length": ((Q, K, K), {"seqused_k": CU}, "seqused_k: expected 1 entries"),
    "scale": ((Q, K, K), {"scale": float("nan")}, "scale: expected a positive finite number"),
    "numpy mixed": ((Q.numpy(), K, K), {}, "k: expected"),
    "numpy float16": ((Q.numpy().astype(np.float16),) * 3, {}, "q: expected"),
    "not an array": ((Q, None, None), {}, "k: expected a torch tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_sentence(case) -> None:
    inputs, options, sentence = BAD[case]
    with pytest.raises(InvalidInput, match=sentence) as caught:
        attention(*inputs, causal=True, **options)
    assert str(caught.value).startswith("[attention] ")

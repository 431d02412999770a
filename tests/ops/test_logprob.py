# SPDX-License-Identifier: Apache-2.0
"""earnest.ops.logprob: the formula, its gradients, its errors, and the promise that a row stands alone."""

import math
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from earnest import _native
from earnest.errors import InvalidInput
from earnest.ops.logprob import logprob, which
from reference import logprob as reference
from shapes import PRODUCTS
from tiers import usable_tiers
from tolerances import FACTOR, LOGPROB

TIERS = usable_tiers("logprob")


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    _native.force_cpu_tier(request.param)
    yield request.param
    _native.force_cpu_tier("")


@pytest.fixture
def threads() -> Iterator[None]:
    before = _native.num_threads()
    yield
    _native.set_num_threads(before)


def problem(rows: int, depth: int, vocabulary: int, dtype=torch.float64, seed: int = 0, spread: float = 2.0):
    """Logits of a few units, whatever the depth."""
    generator = torch.Generator().manual_seed(seed + rows + 31 * depth + 997 * vocabulary)
    hidden = torch.randn(rows, depth, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, depth, generator=generator, dtype=torch.float64) * spread / depth**0.5
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    return hidden.to(dtype), weight.to(dtype), targets


def row_gradients(rows: int, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return tuple(torch.randn(rows, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))


def kernel_gradients(hidden, weight, targets, grad_logp, grad_entropy, temperature=1.0):
    """Gradients of hidden and weight for these of logp and entropy."""
    hidden, weight = (x.detach().clone().requires_grad_() for x in (hidden, weight))
    results = logprob(hidden, weight, targets, temperature=temperature)
    return torch.autograd.grad(results, (hidden, weight), (grad_logp, grad_entropy))


def error(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest entry of b (or to 1 where that is smaller)."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1))


@pytest.mark.parametrize("shape", PRODUCTS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_float64_equals_the_definition(tier: str, shape, temperature: float):
    rows, vocabulary, depth = shape
    hidden, weight, targets = problem(rows, depth, vocabulary)
    grads = row_gradients(rows)
    results = logprob(hidden, weight, targets, temperature=temperature)
    expected = reference.logprob(hidden, weight, targets, temperature)
    for got, want in zip(results, expected, strict=True):
        assert got.dtype == torch.float64
        assert error(got, want) < LOGPROB["float64"]
    grads_got = kernel_gradients(hidden, weight, targets, *grads, temperature)
    grads_want = reference.gradients(hidden, weight, targets, *grads, temperature)
    for got, want in zip(grads_got, grads_want, strict=True):
        assert error(got, want) < LOGPROB["float64"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(96, 389, 2311), (1601, 33, 257)])
def test_rounding_stays_within_the_budget_of_plain_float32(tier: str, shape, dtype: torch.dtype):
    hidden, weight, targets = problem(*shape, dtype=dtype)
    grads = row_gradients(shape[0], torch.float32)
    exact = reference.logprob(hidden, weight, targets, 0.9)
    plain = reference.logprob(hidden, weight, targets, 0.9, torch.float32)
    ours = logprob(hidden, weight, targets, temperature=0.9)
    for got, same_precision, want in zip(ours, plain, exact, strict=True):
        assert got.dtype == torch.float32
        assert error(got, want) <= FACTOR * error(same_precision, want) + LOGPROB["floor"]
    exact = reference.gradients(hidden, weight, targets, *grads, 0.9)
    plain = reference.gradients(hidden, weight, targets, *grads, 0.9, torch.float32)
    ours = kernel_gradients(hidden, weight, targets, *grads, 0.9)
    for got, same_precision, want in zip(ours, plain, exact, strict=True):
        assert got.dtype == dtype
        rounded = same_precision.to(dtype)  # a bfloat16 gradient is float32 arithmetic, rounded once
        assert error(got, want) <= FACTOR * error(rounded, want) + LOGPROB["floor"]


@pytest.mark.parametrize("shape", [(64, 769, 601), (193, 97, 1201), (5, 64, 3)])
def test_bfloat16_is_at_most_twice_as_far_off_as_torch(tier: str, shape):
    hidden, weight, targets = problem(*shape, dtype=torch.bfloat16, seed=int(torch.randint(99, ()).item()))
    grads = row_gradients(shape[0], torch.float32)
    exact = reference.logprob(hidden, weight, targets), reference.gradients(hidden, weight, targets, *grads)
    plain = (
        reference.logprob(hidden, weight, targets, dtype=torch.bfloat16),
        reference.gradients(hidden, weight, targets, *grads, dtype=torch.bfloat16),
    )
    ours = logprob(hidden, weight, targets), kernel_gradients(hidden, weight, targets, *grads)
    for got, same_precision, want in zip(sum(ours, ()), sum(plain, ()), sum(exact, ()), strict=True):
        assert error(got, want) <= FACTOR * error(same_precision, want) + LOGPROB["floor"]


@pytest.mark.parametrize("which_result", [0, 1])
def test_gradcheck(tier: str, which_result: int):
    hidden, weight, targets = problem(5, 7, 41)
    hidden.requires_grad_()
    weight.requires_grad_()
    torch.autograd.gradcheck(
        lambda h, w: logprob(h, w, targets, temperature=0.7)[which_result], (hidden, weight)
    )


def test_the_operator_passes_opcheck():
    for dtype, need in ((torch.float64, True), (torch.bfloat16, False)):
        hidden, weight, targets = problem(5, 8, 23, dtype)
        inputs = (hidden.requires_grad_(need), weight.requires_grad_(need), targets, 0.8)
        torch.library.opcheck(torch.ops.earnest.logprob.default, inputs)


def test_log_sum_exp_is_differentiable_too():
    hidden, weight, targets = problem(5, 7, 29)
    hidden.requires_grad_()
    weight.requires_grad_()
    op = torch.ops.earnest.logprob.default
    torch.autograd.gradcheck(lambda h, w: op(h, w, targets, 0.7), (hidden, weight))
    expected = torch.logsumexp(hidden @ weight.T / 0.7, -1)
    torch.testing.assert_close(op(hidden, weight, targets, 0.7)[2], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_alone_equals_the_row_in_any_batch(tier: str, dtype: torch.dtype):
    hidden, weight, targets = problem(1543, 43, 211, dtype)
    grads = row_gradients(1543, torch.float32)
    whole = logprob(hidden, weight, targets)
    whole_gradient = kernel_gradients(hidden, weight, targets, *grads)[0]
    generator = torch.Generator().manual_seed(3)
    for count in (1, 2, 3, 8, 97, 1000):
        rows = torch.randperm(1543, generator=generator)[:count]
        part = logprob(hidden[rows], weight, targets[rows])
        gradient = kernel_gradients(hidden[rows], weight, targets[rows], *(g[rows] for g in grads))[0]
        assert torch.equal(part[0], whole[0][rows])
        assert torch.equal(part[1], whole[1][rows])
        assert torch.equal(gradient, whole_gradient[rows])


def test_threads_change_no_bit(tier: str, threads: None):
    hidden, weight, targets = problem(1543, 19, 1361, torch.float32)
    grads = row_gradients(1543, torch.float32)
    seen = []
    for count in (1, 2, 7):
        _native.set_num_threads(count)
        seen.append((*logprob(hidden, weight, targets), *kernel_gradients(hidden, weight, targets, *grads)))
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_the_path_without_gradients_gives_the_same_bits():
    hidden, weight, targets = problem(33, 24, 301, torch.float32)
    direct = logprob(hidden, weight, targets)
    recorded = logprob(hidden.clone().requires_grad_(), weight, targets)
    assert recorded[0].requires_grad
    assert not direct[0].requires_grad
    assert all(torch.equal(a, b) for a, b in zip(direct, recorded, strict=True))
    with torch.no_grad():
        assert not logprob(hidden.clone().requires_grad_(), weight, targets)[0].requires_grad


# One tile that is not whole, all tiles, some of many, and none because a tile alone is too large.
@pytest.mark.parametrize("shape", [(5, 9, 131), (97, 33, 1500), (1543, 5, 3001), (21847, 2, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_logits_change_no_bit(shape, dtype: torch.dtype):
    hidden, weight, targets = problem(*shape, dtype=dtype)
    grads = row_gradients(shape[0], torch.float32)
    seen = []
    for keep in (True, False):
        inputs = [x.clone().requires_grad_() for x in (hidden, weight)]
        results = torch.ops.earnest.logprob.default(*inputs, targets, 0.8, keep)
        assert not results[3].requires_grad
        assert results[3].numel() * 4 <= 16 << 20
        assert (results[3].numel() > 0) == (keep and shape[0] < 21846)
        for _ in range(2):  # backward leaves what was kept as it was
            gradients = torch.autograd.grad(results[:2], inputs, grads, retain_graph=True)
            seen.append((*results[:2], *gradients))
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_gradients_only_where_they_are_wanted():
    hidden, weight, targets = problem(9, 6, 31)
    both = kernel_gradients(hidden, weight, targets, torch.ones(9).double(), torch.zeros(9).double())
    for index in range(2):
        inputs = [hidden.clone(), weight.clone()]
        inputs[index].requires_grad_()
        logprob(*inputs, targets)[0].sum().backward()
        assert torch.equal(inputs[index].grad, both[index])
        assert inputs[1 - index].grad is None


def test_certain_and_uniform_distributions(tier: str):
    targets = torch.zeros(3, dtype=torch.int64)
    logp, entropy = logprob(torch.randn(3, 4), torch.randn(1, 4), targets, temperature=1.7)
    assert torch.equal(logp, torch.zeros(3))
    assert torch.equal(entropy, torch.zeros(3))
    grads = row_gradients(3, torch.float32)
    gradient = kernel_gradients(torch.randn(3, 4), torch.randn(1, 4), targets, *grads, 1.7)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradient)
    logp, entropy = logprob(torch.randn(3, 4), torch.zeros(997, 4), targets)
    torch.testing.assert_close(logp, torch.full((3,), -math.log(997)))
    torch.testing.assert_close(entropy, torch.full((3,), math.log(997)))


def test_logits_far_beyond_what_exp_holds(tier: str):
    hidden = torch.tensor([[1e4], [-1e4]])
    weight = torch.linspace(-1, 1, 401)[:, None].contiguous()
    targets = torch.tensor([400, 400])
    logp, entropy = logprob(hidden, weight, targets)
    torch.testing.assert_close(logp, torch.tensor([0.0, -2e4]), atol=0.01, rtol=0)
    torch.testing.assert_close(entropy, torch.zeros(2), atol=1e-6, rtol=0)
    gradient = kernel_gradients(hidden, weight, targets, torch.ones(2), torch.ones(2))
    assert all(torch.isfinite(g).all() for g in gradient)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_spoils_itself_only(tier: str, bad: float):
    hidden, weight, targets = problem(19, 24, 301, torch.float32)
    clean = logprob(hidden, weight, targets)
    spoiled = hidden.clone()
    spoiled[5, 3] = bad
    others = torch.arange(19) != 5
    for got, want in zip(logprob(spoiled, weight, targets), clean, strict=True):
        assert got[5].isnan()
        assert torch.equal(got[others], want[others])
    grads = row_gradients(19, torch.float32)
    got = kernel_gradients(spoiled, weight, targets, *grads)[0]
    assert got[5].isnan().any()
    assert torch.equal(got[others], kernel_gradients(hidden, weight, targets, *grads)[0][others])


def test_a_logit_of_minus_infinity_has_no_weight(tier: str):
    hidden = torch.full((1, 1), 1e20)
    weight = torch.tensor([[-1e20], [0.0], [0.0]])  # the first logit overflows to -inf
    logp, entropy = logprob(hidden, weight, torch.tensor([1]))
    torch.testing.assert_close(logp, torch.tensor([-math.log(2)]))
    torch.testing.assert_close(entropy, torch.tensor([math.log(2)]))


def test_a_whole_tile_of_minus_infinities_has_no_weight(tier: str):
    weight = torch.full((400, 1), -1e20)
    weight[397:] = 0.0
    logp, entropy = logprob(torch.full((1, 1), 1e20), weight, torch.tensor([398]))
    torch.testing.assert_close(logp, torch.tensor([-math.log(3)]))
    torch.testing.assert_close(entropy, torch.tensor([math.log(3)]))


def test_no_rows():
    hidden, weight, targets = problem(0, 6, 11, torch.float32)
    hidden.requires_grad_()
    weight.requires_grad_()
    logp, entropy = logprob(hidden, weight, targets)
    assert logp.shape == entropy.shape == (0,)
    (logp.sum() + entropy.sum()).backward()
    assert hidden.grad.shape == (0, 6)
    assert torch.equal(weight.grad, torch.zeros(11, 6))


def test_numpy_in_numpy_out():
    hidden, weight, targets = problem(9, 6, 31, torch.float32)
    results = logprob(hidden.numpy(), weight.numpy(), targets.numpy(), temperature=1.3)
    expected = logprob(hidden, weight, targets, temperature=1.3)
    for got, want in zip(results, expected, strict=True):
        assert isinstance(got, np.ndarray)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, want.numpy())


def test_strides_do_not_matter():
    hidden, weight, targets = problem(9, 6, 31, torch.float32)
    strided = (hidden.T.contiguous().T, weight.T.contiguous().T, torch.stack([targets, targets], 1)[:, 0])
    assert not any(x.is_contiguous() for x in strided)
    grads = row_gradients(9, torch.float32)
    assert all(map(torch.equal, logprob(*strided), logprob(hidden, weight, targets)))
    dense_gradients = kernel_gradients(hidden, weight, targets, *grads)
    assert all(map(torch.equal, kernel_gradients(*strided, *grads), dense_gradients))
    as_numpy = logprob(*(x.numpy() for x in strided))
    assert np.array_equal(as_numpy[0], logprob(hidden, weight, targets)[0].numpy())


def test_meta_tensors_and_torch_compile():
    hidden, weight, targets = problem(9, 6, 31)
    meta = logprob(hidden.to("meta"), weight.to("meta"), targets.to("meta"))
    assert meta[0].is_meta
    assert meta[0].shape == (9,)

    def loss(h: Tensor) -> Tensor:
        logp, entropy = logprob(h, weight, targets)
        return (logp + 0.1 * entropy).sum()

    eager, compiled = (hidden.clone().requires_grad_() for _ in range(2))
    loss(eager).backward()
    torch.compile(loss, backend="aot_eager", fullgraph=True)(compiled).backward()
    assert torch.equal(compiled.grad, eager.grad)


def test_a_second_derivative_is_refused():
    hidden, weight, targets = problem(3, 4, 5)
    hidden.requires_grad_()
    (first,) = torch.autograd.grad(logprob(hidden, weight, targets)[0].sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()


def call(**changes):
    hidden, weight, targets = problem(3, 4, 5, torch.float32)
    arguments = {"hidden": hidden, "weight": weight, "targets": targets, "temperature": 1.0} | changes
    return logprob(arguments.pop("hidden"), arguments.pop("weight"), arguments.pop("targets"), **arguments)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"targets": torch.tensor([0, 5, 1])}, "targets: expected token ids in [0, 5), got 5 in row 1"),
        ({"targets": torch.tensor([0, 1, -100])}, "got -100 in row 2"),
        ({"targets": torch.tensor([0, 1])}, "targets: expected [3], one per row of hidden, got [2]"),
        ({"targets": torch.zeros(3)}, "targets: expected int64, got torch.float32"),
        ({"weight": torch.zeros(5, 3)}, "weight: expected [V, 4] with V >= 1, got [5, 3]"),
        ({"weight": torch.zeros(0, 4)}, "got [0, 4]"),
        ({"weight": torch.zeros(5, 4).double()}, "weight: expected torch.float32 as hidden"),
        ({"hidden": torch.zeros(3)}, "hidden: expected [N, H] with H >= 1, got [3]"),
        ({"hidden": torch.zeros(3, 4).half()}, "hidden: expected float32, float64 or bfloat16"),
        ({"hidden": [[0.0]]}, "hidden: expected a torch tensor (or numpy arrays throughout), got list"),
        ({"hidden": np.zeros((3, 4), np.float32)}, "weight: expected a numpy array as hidden, got Tensor"),
        ({"temperature": 0.0}, "temperature: expected a finite number above 0, got 0.0"),
        ({"temperature": -1.0}, "got -1.0"),
        ({"temperature": math.nan}, "got nan"),
        ({"temperature": math.inf}, "got inf"),
        ({"temperature": 1e-300}, "temperature: expected a number whose inverse is a float"),
    ],
)
def test_bad_input_is_one_clear_sentence(changes: dict, sentence: str):
    with pytest.raises(InvalidInput) as caught:
        call(**changes)
    assert str(caught.value).startswith("[logprob] ")
    assert sentence in str(caught.value)


def test_the_same_sentence_when_gradients_are_wanted():
    with pytest.raises(InvalidInput, match="got 5 in row 1"):
        call(hidden=torch.zeros(3, 4, requires_grad=True), targets=torch.tensor([0, 5, 1]))


def test_which(tier: str):
    assert which() == f"cpu/{tier}"
    with pytest.raises(RuntimeError, match="without CUDA"):
        which("cuda")


def test_the_logits_are_never_held():
    """2048 x 65536 logits would take 512 MiB; forward and backward raise the peak by a small part of that."""
    program = """
import resource, torch
from earnest.ops.logprob import logprob
hidden, weight = torch.randn(2048, 4, requires_grad=True), torch.randn(65536, 4, requires_grad=True)
sum(logprob(hidden[:8], weight, torch.zeros(8, dtype=torch.int64))).sum().backward()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
sum(logprob(hidden, weight, torch.zeros(2048, dtype=torch.int64))).sum().backward()
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 40  # MiB

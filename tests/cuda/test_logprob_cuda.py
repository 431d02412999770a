# SPDX-License-Identifier: Apache-2.0
"""logprob on cuda: the formula and its gradients against float64, its promise that a row stands alone."""

import pytest
import torch
from torch import Tensor

from earnest.errors import InvalidInput
from earnest.ops import logprob
from reference import logprob as reference
from shapes import LAYOUTS, PRODUCTS
from tolerances import FACTOR, LOGPROB

SHAPES = [(1, 1, 1), (1, 33, 7), (13, 65, 64), (5, 31, 257), (97, 7, 515), (211, 201, 3)]
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def problem(rows: int, vocabulary: int, depth: int, dtype: torch.dtype) -> list[Tensor]:
    """hidden, weight, targets, and gradients of the two results."""
    g = torch.Generator().manual_seed(rows + 31 * depth + 997 * vocabulary)
    hidden = torch.randn(rows, depth, generator=g, dtype=torch.float64)
    weight = torch.randn(vocabulary, depth, generator=g, dtype=torch.float64) * 2 / depth**0.5
    targets = torch.randint(0, vocabulary, (rows,), generator=g)
    row_type = torch.float64 if dtype == torch.float64 else torch.float32
    upstream = [torch.randn(rows, generator=g, dtype=torch.float64).to(row_type) for _ in range(2)]
    return [hidden.to(dtype), weight.to(dtype), targets, *upstream]


def run(hidden: Tensor, weight: Tensor, targets: Tensor, *upstream: Tensor, temperature=0.7) -> list[Tensor]:
    """logp, entropy and the gradients of hidden and weight."""
    hidden, weight = (x.detach().clone().requires_grad_() for x in (hidden, weight))
    results = logprob(hidden, weight, targets, temperature=temperature)
    return [x.detach() for x in (*results, *torch.autograd.grad(results, (hidden, weight), upstream))]


def exact(hidden, weight, targets, *upstream, temperature=0.7, dtype=torch.float64) -> list[Tensor]:
    results = reference.logprob(hidden, weight, targets, temperature, dtype)
    return [*results, *reference.gradients(hidden, weight, targets, *upstream, temperature, dtype)]


def error(a: Tensor, b: Tensor) -> float:
    return float((a.cpu().double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, *(s for s in PRODUCTS if s[0] * s[1] * s[2] < 1 << 20)])
def test_results_and_gradients_are_those_of_the_definition(device, shape, dtype: str) -> None:
    inputs = problem(*shape, DTYPES[dtype])
    found, wanted = run(*(x.to(device) for x in inputs)), exact(*inputs)
    plain = exact(*inputs, dtype=torch.float64 if dtype == "float64" else torch.float32)
    for mine, honest, theirs in zip(found, plain, wanted, strict=True):
        if dtype == "float64":
            assert error(mine, theirs) < LOGPROB["float64"]
        else:  # of its own arithmetic, rounded once to what it returns
            limit = FACTOR * error(honest.to(mine.dtype), theirs) + LOGPROB["floor"]
            # bfloat16: the gradients of the logits are rounded to it between two products
            assert error(mine, theirs) <= limit + (2.0**-8 if dtype == "bfloat16" else 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_stands_alone(device, dtype: str) -> None:
    hidden, weight, targets, *_ = (x.to(device) for x in problem(150, 611, 96, DTYPES[dtype]))
    together = logprob(hidden, weight, targets)
    for rows in (slice(0, 1), slice(70, 75), slice(149, 150)):
        alone = logprob(hidden[rows], weight, targets[rows])
        assert all(torch.equal(a, b[rows]) for a, b in zip(alone, together, strict=True))
    hidden = hidden.clone()
    hidden[3] = float("nan")
    spoiled = logprob(hidden, weight, targets)
    for a, b in zip(spoiled, together, strict=True):
        assert bool(a[3].isnan())
        assert torch.equal(a[4:], b[4:])


def test_two_runs_and_any_layout_give_the_same_bits(device) -> None:
    inputs = [x.to(device) for x in problem(97, 201, 96, torch.bfloat16)]
    first = run(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(run(*inputs), first, strict=True))
    hidden, weight, targets, *_ = inputs
    plain = logprob(hidden, weight, targets)
    for layout in LAYOUTS.values():
        moved = [layout(x.cpu()).to(device) for x in (hidden, weight, targets)]
        assert all(torch.equal(a, b) for a, b in zip(logprob(*moved), plain, strict=True))


@pytest.mark.parametrize("target", [-1, 65, 1 << 40])
def test_a_target_out_of_range_is_named_as_on_the_cpu(device, target: int) -> None:
    hidden, weight, targets, *_ = problem(13, 65, 64, torch.float32)
    targets[7] = targets[9] = target
    with pytest.raises(InvalidInput) as found:
        logprob(*(x.to(device) for x in (hidden, weight, targets)))
    assert str(found.value) == f"[logprob] targets: expected token ids in [0, 65), got {target} in row 7"


def test_no_rows(device) -> None:
    inputs = [x.to(device) for x in problem(0, 5, 8, torch.float32)]
    found = run(*inputs)
    assert found[0].shape == (0,)
    assert bool((found[3] == 0).all())

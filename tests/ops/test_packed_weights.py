# SPDX-License-Identifier: Apache-2.0
"""A packed weight is never an old one: changes of the tensor are seen, and nothing outlives it."""

import copy
import gc

import pytest
import torch
from torch import Tensor

from earnest.ops import linear
from earnest.ops.linear import _packed, forget_packed


@pytest.fixture
def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(6, 5))


X = torch.randn(3, 5)


def is_current(weight: Tensor) -> bool:
    """Whether result and x's gradient (the two packed copies) are those of the weight as it is now."""
    x = X.clone().requires_grad_()
    result = linear(x, weight)
    (grad_x,) = torch.autograd.grad(result, x, torch.ones_like(result))
    fresh = weight.detach().clone()
    return torch.equal(result, linear(X, fresh)) and torch.allclose(
        grad_x, fresh.sum(0).expand(3, 5), atol=1e-5
    )


def edit_view(weight: Tensor) -> None:
    with torch.no_grad():
        weight[2:4].mul_(3)


def edit_detached(weight: Tensor) -> None:
    weight.detach().add_(1)


def edit_parameter(weight: Tensor) -> None:
    with torch.no_grad():
        weight.copy_(torch.randn(6, 5))


def replace_storage(weight: Tensor) -> None:
    weight.data = torch.randn(6, 5)


def load_state(weight: Tensor) -> None:
    module = torch.nn.Linear(5, 6, bias=False)
    module.weight = weight
    module.load_state_dict({"weight": torch.randn(6, 5)})


def edit_data(weight: Tensor) -> None:
    weight.data.add_(1)  # not counted by torch: seen by its numbers


def edit_one_number(weight: Tensor) -> None:
    weight.data[0, 0] += 1  # may fall between the numbers that are looked at
    forget_packed(weight)


@pytest.mark.parametrize(
    "change",
    [edit_view, edit_detached, edit_parameter, replace_storage, load_state, edit_data, edit_one_number],
)
def test_a_change_is_seen(weight: torch.nn.Parameter, change):
    assert is_current(weight)
    before = linear(X, weight)
    for _ in range(3):
        change(weight)
        assert is_current(weight)
    assert not torch.equal(linear(X, weight), before)


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimisers_step_is_seen(weight: torch.nn.Parameter, kind, options: dict):
    optimiser = kind([weight], lr=0.1, **options)
    for _ in range(3):
        before = weight.detach().clone()
        linear(X, weight).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        assert not torch.equal(weight, before)
        assert is_current(weight)


def test_a_turned_square_matrix_is_another():
    weight = torch.randn(5, 5)
    before = linear(X, weight)
    weight.data = weight.data.T  # the same memory, the same count
    assert torch.equal(linear(X, weight), linear(X, weight.clone()))
    assert not torch.equal(linear(X, weight), before)


def test_it_is_packed_once_while_it_stays(weight: torch.nn.Parameter):
    linear(X, weight)
    first = _packed.of((weight,), torch.float32, transposed=False)
    linear(X, weight)
    assert _packed.of((weight,), torch.float32, transposed=False) is first
    assert _packed.of((weight,), torch.float32, transposed=True) is not first
    assert _packed.of((weight,), torch.bfloat16, transposed=False) is not first


def test_the_copy_goes_with_the_tensor():
    gc.collect()  # what earlier tests left in cycles
    before = len(_packed)
    weights = [torch.randn(6, 5) for _ in range(20)]
    for weight in weights:
        linear(X, weight)
    assert len(_packed) == before + 20
    del weights, weight
    gc.collect()
    assert len(_packed) == before


def test_a_copied_module_has_a_packed_copy_of_its_own(weight: torch.nn.Parameter):
    linear(X, weight)
    other = copy.deepcopy(weight)
    edit_parameter(other)
    assert is_current(other)
    assert is_current(weight)
    assert not torch.equal(linear(X, other), linear(X, weight))


def test_a_change_of_all_of_a_large_weight_behind_torchs_back_is_seen():
    weight = torch.nn.Parameter(torch.randn(300, 257))
    x = torch.randn(2, 257)
    linear(x, weight)
    weight.data.mul_(1.5)
    assert torch.equal(linear(x, weight), linear(x, weight.detach().clone()))


def test_inference_tensors_are_packed_each_time():
    with torch.inference_mode():
        weight = torch.randn(6, 5)
        before = linear(X, weight)
        weight.mul_(2)
        assert torch.equal(linear(X, weight), 2 * before)

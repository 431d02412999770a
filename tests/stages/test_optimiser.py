# SPDX-License-Identifier: Apache-2.0
"""The optimiser of the supervised stages: what moves which weights, and that it goes on where it stopped."""

import copy
import math

import pytest
import torch
from torch import nn

from earnest.stages.optimiser import OptimiserSettings, Paired, matrices_of, optimiser_step


def network(seed=0):
    torch.manual_seed(seed)
    layers = nn.ModuleDict(
        {
            "embed": nn.Embedding(7, 6),
            "inner": nn.Linear(6, 6),
            "norm": nn.LayerNorm(6),
            "lm_head": nn.Linear(6, 7),
        }
    )
    layers["frozen"] = nn.Linear(6, 6)
    layers["frozen"].requires_grad_(False)
    return layers


def loss_of(layers, step):
    ids = torch.arange(5) + step % 3
    return layers["lm_head"](layers["norm"](layers["inner"](layers["embed"](ids)).tanh())).square().mean()


def learn(layers, optimiser, steps, settings):
    parameters = [p for p in layers.parameters() if p.requires_grad]
    for step in steps:
        loss_of(layers, step).backward()
        optimiser_step(optimiser, parameters, settings.rate(step, 10), settings.clip_norm)


def test_only_matrices_between_layers_are_muons():
    layers = network()
    assert [id(p) for p in matrices_of(layers)] == [id(layers["inner"].weight)]
    paired = OptimiserSettings(matrices="muon").build(layers)
    assert isinstance(paired, Paired)
    moved = [id(p) for group in paired.param_groups for p in group["params"]]
    assert sorted(moved) == sorted(id(p) for p in layers.parameters() if p.requires_grad)  # each one once
    assert [id(p) for group in paired.muon.param_groups for p in group["params"]] == [
        id(layers["inner"].weight)
    ]
    assert isinstance(OptimiserSettings().build(layers), torch.optim.AdamW)


def test_a_muon_step_turns_all_directions_alike_and_is_of_adamws_size():
    """The update is a nearly orthogonal matrix, scaled to a root mean square of 0.2 lr."""
    layers, settings = network(), OptimiserSettings(lr=0.1, matrices="muon", weight_decay=0.0)
    before, optimiser = layers["inner"].weight.detach().clone(), settings.build(layers)
    loss_of(layers, 0).backward()
    optimiser_step(optimiser, list(layers.parameters()), 0.1, 1.0)
    update = (layers["inner"].weight.detach() - before).double()
    spread = torch.linalg.svdvals(update)[:4]  # four tokens differ enough to fill four directions well
    assert float(spread.max() / spread.min()) < 3
    assert float(update.square().mean().sqrt()) == pytest.approx(0.2 * 0.1, rel=0.35)


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_a_state_that_is_loaded_goes_on_to_the_same_weights(matrices):
    settings = OptimiserSettings(lr=0.02, warmup_steps=2, matrices=matrices)
    whole, stopped = network(), network()
    learn(whole, settings.build(whole), range(8), settings)
    first = settings.build(stopped)
    learn(stopped, first, range(5), settings)
    state = copy.deepcopy(first.state_dict())
    again = settings.build(stopped)
    again.load_state_dict(state)
    learn(stopped, again, range(5, 8), settings)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), stopped.parameters(), strict=True))


def test_a_gradient_that_is_no_number_moves_nothing():
    layers, settings = network(), OptimiserSettings(matrices="muon")
    before = copy.deepcopy(layers.state_dict())
    (loss_of(layers, 0) * math.nan).backward()
    with pytest.raises(FloatingPointError, match="finite norm"):
        optimiser_step(settings.build(layers), list(layers.parameters()), 0.1, 1.0)
    assert all(torch.equal(before[name], value) for name, value in layers.state_dict().items())


def test_the_rate_warms_up_and_comes_down():
    settings = OptimiserSettings(lr=1.0, warmup_steps=4, final_lr=0.1)
    rates = [settings.rate(step, 10) for step in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] > 0.1

# SPDX-License-Identifier: Apache-2.0
"""T3: a language model so small that every sentence can be written down: vocabulary 3, length 3, 27
sequences.

The exact gradient of the expected reward equals finite differences, and the first PPO step, averaged over
the exact sampling weights, equals both: through packing, masked gaps, GAE and the clipped loss."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from earnest.learn.advantage import AdvantageSettings, estimate, place_scores
from earnest.learn.loss import LossSettings, check_first_step, loss_of
from tolerances import PPO

VOCABULARY, LENGTH, WIDTH = 3, 3, 4
SEQUENCES = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))
SHAPES = {"embed": (VOCABULARY + 1, WIDTH), "recur": (WIDTH, WIDTH), "out": (WIDTH, VOCABULARY)}


@pytest.fixture
def weights() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(11)
    return {name: torch.randn(shape, generator=g, dtype=torch.float64) for name, shape in SHAPES.items()}


@pytest.fixture
def rewards() -> Tensor:
    return torch.randn(len(SEQUENCES), generator=torch.Generator().manual_seed(12), dtype=torch.float64)


def logprobs(weights: dict[str, Tensor]) -> Tensor:
    """[27, LENGTH]: a small recurrent model; its weights are shared by all positions."""
    state = torch.zeros(len(SEQUENCES), WIDTH, dtype=torch.float64)
    previous = torch.full((len(SEQUENCES),), VOCABULARY)
    columns = []
    for t in range(LENGTH):
        state = torch.tanh(state @ weights["recur"] + weights["embed"][previous])
        table = torch.log_softmax(state @ weights["out"], 1)
        previous = SEQUENCES[:, t]
        columns.append(table.gather(1, previous[:, None])[:, 0])
    return torch.stack(columns, 1)


def expected_reward(weights: dict[str, Tensor], rewards: Tensor) -> Tensor:
    return (logprobs(weights).sum(1).exp() * rewards).sum()


def exact_gradient(weights: dict[str, Tensor], rewards: Tensor) -> Tensor:
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    found = torch.autograd.grad(expected_reward(leaves, rewards), list(leaves.values()))
    return torch.cat([g.flatten() for g in found])


def first_step(
    weights: dict[str, Tensor], rewards: Tensor, gap: int, settings: LossSettings
) -> tuple[Tensor, dict]:
    """Minus the gradient of the PPO loss over all 27 sequences, each weighed by its probability, and
    metrics. `gap` masked tokens, holding NaN, follow each token, also the last of a sequence."""
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    logp = logprobs(leaves)
    trainable = torch.tensor(([True] + [False] * gap) * LENGTH).repeat(len(SEQUENCES))

    def spread(x: Tensor) -> Tensor:
        return torch.full(trainable.shape, math.nan, dtype=torch.float64).masked_scatter(trainable, x)

    bounds = torch.arange(len(SEQUENCES) + 1, dtype=torch.int32) * (LENGTH * (1 + gap))
    token_rewards = place_scores(rewards, trainable, bounds)
    no_critic = torch.zeros_like(token_rewards)
    found = estimate(token_rewards, trainable, bounds, AdvantageSettings(whiten=False), values=no_critic)
    probability = logp.detach().sum(1).exp()
    step = loss_of(
        spread(logp), spread(logp.detach()), found.advantages, trainable, settings,
        normalizer=torch.ones_like(token_rewards), weights=spread(probability[:, None].expand(-1, LENGTH)),
    )  # fmt: skip
    gradient = torch.autograd.grad(step.loss, list(leaves.values()))
    return -torch.cat([g.flatten() for g in gradient]), {k: float(v) for k, v in step.metrics.items()}


def test_the_sequences_are_all_there_is(weights) -> None:
    assert float(logprobs(weights).sum(1).exp().sum()) == pytest.approx(1, abs=1e-14)


def test_exact_gradient_equals_finite_differences(weights, rewards) -> None:
    gradient, step, place = exact_gradient(weights, rewards), 1e-5, 0
    for name, w in weights.items():
        for i in range(w.numel()):
            shift = torch.zeros_like(w).flatten()
            shift[i] = step
            up, down = ({**weights, name: w + sign * shift.view_as(w)} for sign in (1, -1))
            slope = float(expected_reward(up, rewards) - expected_reward(down, rewards)) / (2 * step)
            assert float(gradient[place]) == pytest.approx(slope, abs=1e-9)
            place += 1


@pytest.mark.parametrize("gap", [0, 1, 4])
@pytest.mark.parametrize("settings", [LossSettings(), LossSettings(dual_clip=3.0, clip=0.1, clip_high=0.28)])
def test_mean_first_step_gradient_equals_the_exact_one(
    weights, rewards, gap: int, settings: LossSettings
) -> None:
    found, metrics = first_step(weights, rewards, gap, settings)
    assert float((found - exact_gradient(weights, rewards)).abs().max()) < PPO["first_step"]
    check_first_step(metrics)


def test_a_policy_that_moved_is_no_first_step(weights, rewards) -> None:
    metrics = first_step(weights, rewards, 0, LossSettings())[1]
    with pytest.raises(RuntimeError, match=r"\[first step\] ratio_max: expected exactly 1, got 1.01"):
        check_first_step({**metrics, "ratio_max": 1.01})

# SPDX-License-Identifier: Apache-2.0
"""T2: a bandit whose best KL-regularised policy is known, pi* = pi_ref exp(r / beta) / Z, learned to its
fixed point.

Every arm is one token, and its gradient is weighed by its probability: exact expectations, no sampling
noise. KL in the reward (k1) and k2 in the loss must reach pi*. k3 in the loss must miss it, and reach beta
pi_ref / (c - r) instead: its gradient is that of the other KL. That third part guards the test itself: a
loss that ignored the estimator would pass the first two."""

import pytest
import torch

from earnest.learn.advantage import AdvantageSettings, estimate
from earnest.ops import ppo_loss
from tolerances import PPO

ARMS = 6
BETA = 0.3


@pytest.fixture
def bandit():
    """(reward, log pi_ref), each [ARMS]; the best arm is one that the reference seldom draws."""
    reward = torch.tensor([0.1, 1.0, 0.2, 0.5, -0.3, 0.6], dtype=torch.float64)
    reference = torch.tensor([0.3, 0.05, 0.2, 0.25, 0.1, 0.1], dtype=torch.float64)
    return reward, reference.log()


def learn(reward: torch.Tensor, log_ref: torch.Tensor, kl_in: str) -> torch.Tensor:
    """The policy after exact gradient steps, preconditioned by its own probabilities (natural gradient)."""
    logits = log_ref.clone()
    one_each = torch.arange(ARMS + 1, dtype=torch.int32)
    trainable = torch.ones(ARMS, dtype=torch.bool)
    settings = AdvantageSettings(whiten=False)
    for _ in range(400):
        log_pi = torch.log_softmax(logits, 0)
        pi = log_pi.exp()
        token_reward = reward - BETA * (log_pi - log_ref) if kl_in == "reward" else reward
        value = (pi * token_reward).sum().expand(ARMS)  # a perfect critic
        found = estimate(token_reward, trainable, one_each, settings, values=value)
        leaf = log_pi.clone().requires_grad_()
        loss = ppo_loss(
            leaf, log_pi, found.advantages, None, None, None, trainable, normalizer=1.0,
            logp_ref=log_ref, kl_coef=0.0 if kl_in == "reward" else BETA,
            kl_estimator="k2" if kl_in == "reward" else kl_in,
        ).loss  # fmt: skip
        (per_arm,) = torch.autograd.grad(loss, leaf)  # of an arm, once it is drawn
        expected = pi * per_arm
        gradient = expected - pi * expected.sum()  # through log_softmax
        logits = logits - 0.2 / BETA * gradient / pi
    return torch.softmax(logits, 0)


def variation(p: torch.Tensor, q: torch.Tensor) -> float:
    return float((p - q).abs().sum() / 2)


def optimum(reward: torch.Tensor, log_ref: torch.Tensor) -> torch.Tensor:
    return torch.softmax(log_ref + reward / BETA, 0)


def fixed_point_of_k3(reward: torch.Tensor, log_ref: torch.Tensor) -> torch.Tensor:
    """beta pi_ref / (c - r), with c > max r from normalisation, by bisection."""
    low, high = float(reward.max()), float(reward.max()) + BETA
    for _ in range(200):
        c = (low + high) / 2
        total = float((BETA * log_ref.exp() / (c - reward)).sum())
        low, high = (c, high) if total > 1 else (low, c)
    return BETA * log_ref.exp() / (c - reward)


@pytest.mark.parametrize("kl_in", ["reward", "k2"])
def test_kl_in_the_reward_and_k2_in_the_loss_reach_the_optimum(bandit, kl_in: str) -> None:
    assert variation(learn(*bandit, kl_in), optimum(*bandit)) < PPO["bandit"]


def test_k3_in_the_loss_reaches_its_own_fixed_point_instead(bandit) -> None:
    learned = learn(*bandit, "k3")
    assert variation(learned, fixed_point_of_k3(*bandit)) < PPO["bandit"]
    assert variation(learned, optimum(*bandit)) > 50 * PPO["bandit"]


def test_k1_in_the_loss_regularises_nothing(bandit) -> None:
    """Its expected gradient is 0: the policy runs off to the best arm as if there were no KL at all."""
    reward, _ = bandit
    learned = learn(*bandit, "k1")
    assert float(learned[reward.argmax()]) > 0.999

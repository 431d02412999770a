# SPDX-License-Identifier: Apache-2.0
"""Advantages of packed replies: which estimator runs, what counts, and that whitening sees the whole batch
once."""

import pytest
import torch

from earnest.errors import InvalidInput
from earnest.learn.advantage import AdvantageSettings, estimate, place_scores
from earnest.ops import gae, whiten

BOUNDS = torch.tensor([0, 3, 5, 9, 10], dtype=torch.int32)
TRAINABLE = torch.tensor([1, 1, 1, 0, 1, 1, 0, 1, 0, 1], dtype=torch.bool)
SCORES = torch.tensor([1.0, 0.0, 0.5, -1.0])
GROUPS = torch.tensor([7, 7, 3, 3])
PLAIN = AdvantageSettings(whiten=False)


def test_scores_stand_on_the_last_trainable_token() -> None:
    assert place_scores(SCORES, TRAINABLE, BOUNDS).tolist() == [0, 0, 1, 0, 0, 0, 0, 0.5, 0, -1]


def test_with_a_critic_it_is_gae_and_a_lambda_of_its_own_for_the_targets() -> None:
    rewards, values = place_scores(SCORES, TRAINABLE, BOUNDS), torch.linspace(-1, 1, 10)
    settings = AdvantageSettings(gamma=0.9, lam=0.5, lam_value=1.0, whiten=False)
    found = estimate(rewards, TRAINABLE, BOUNDS, settings, values=values)
    policy = gae(rewards, values, TRAINABLE, BOUNDS, gamma=0.9, lam=0.5)[0]
    targets = gae(rewards, values, TRAINABLE, BOUNDS, gamma=0.9, lam=1.0)[1]
    assert torch.equal(found.advantages, policy)
    assert torch.equal(found.returns, targets)


def test_without_a_critic_a_reply_is_compared_with_its_group() -> None:
    rewards = place_scores(SCORES, TRAINABLE, BOUNDS)
    rewards[0] -= 0.5  # a per-token penalty counts towards the score of its reply
    rewards[3] -= 9.0  # but not at a token that is not trainable
    found = estimate(rewards, TRAINABLE, BOUNDS, PLAIN, groups=GROUPS)
    assert found.advantages.tolist() == [0.25, 0.25, 0.25, 0, -0.25, 0.75, 0, 0.75, 0, -0.75]
    others = AdvantageSettings(whiten=False, baseline="leave_one_out")
    found = estimate(rewards, TRAINABLE, BOUNDS, others, groups=GROUPS)
    assert found.advantages.tolist() == [0.5, 0.5, 0.5, 0, -0.5, 1.5, 0, 1.5, 0, -1.5]
    assert found.returns.tolist() == [0.5, 1, 1, 0, 0, 0.5, 0, 0.5, 0, -1]


def test_a_reply_without_trainable_tokens_leaves_its_group() -> None:
    rewards = place_scores(SCORES, TRAINABLE, BOUNDS)
    trainable = TRAINABLE & (torch.arange(10) < 9)  # the last reply's verdict is invalid
    found = estimate(rewards, trainable, BOUNDS, PLAIN, groups=GROUPS)
    assert found.advantages[5:].tolist() == [0, 0, 0, 0, 0]
    assert found.metrics["zero_variance_groups"] == 0.5


@pytest.mark.parametrize("estimator", ["gae", "group"])
def test_whitening_is_over_trainable_tokens_of_all_replies(estimator: str) -> None:
    rewards = place_scores(SCORES, TRAINABLE, BOUNDS)
    given = {"values": torch.zeros(10)} if estimator == "gae" else {"groups": GROUPS}
    raw = estimate(rewards, TRAINABLE, BOUNDS, PLAIN, **given)
    found = estimate(rewards, TRAINABLE, BOUNDS, AdvantageSettings(), **given)
    assert torch.equal(found.advantages, whiten(raw.advantages, TRAINABLE))
    assert torch.equal(found.returns, raw.returns)
    assert found.metrics["advantage_std"] == pytest.approx(float(raw.advantages[TRAINABLE].std(correction=0)))
    assert float(found.advantages[TRAINABLE].mean()) == pytest.approx(0, abs=1e-6)


def test_neither_critic_nor_groups_is_an_error() -> None:
    with pytest.raises(InvalidInput, match=r"\[advantage\] groups: expected the prompt of each reply"):
        estimate(torch.zeros(10), TRAINABLE, BOUNDS, PLAIN)

# SPDX-License-Identifier: Apache-2.0
"""One normaliser for a whole optimiser step: how it is cut into micro-batches and ranks may not matter
(T5)."""

import pytest
import torch
from torch import Tensor

from earnest.learn.loss import LossSettings, join, loss_of, step_normalizer, truncated_weights

LENGTHS = [3, 40, 1, 17, 25]  # unequal on purpose: a mean of means would differ
BOUNDS = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
TOKENS = sum(LENGTHS)
NAMES = ("logp", "logp_old", "advantages", "values", "values_old", "returns", "logp_ref", "entropy")
AGGREGATIONS = [
    LossSettings(),
    LossSettings(aggregation="seq_mean"),
    LossSettings(aggregation="constant", constant=32),
]


@pytest.fixture
def rows() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(TOKENS, generator=g, dtype=torch.float64) for name in NAMES} | {
        "trainable": torch.rand(TOKENS, generator=g) > 0.3
    }


def step(
    rows: dict[str, Tensor], settings: LossSettings, parts: list[range]
) -> tuple[Tensor, dict[str, float]]:
    """(gradient of logp over the whole step, joined metrics), in micro-batches of whole replies."""
    normalizer = step_normalizer(rows["trainable"], BOUNDS, settings)
    logp = rows["logp"].clone().requires_grad_()
    losses = []
    for replies in parts:
        at = torch.cat([torch.arange(int(BOUNDS[i]), int(BOUNDS[i + 1])) for i in replies])
        part = {name: x[at] for name, x in (rows | {"logp": logp}).items()}
        losses.append(loss_of(**part, settings=settings, normalizer=normalizer[at]))
        losses[-1].loss.backward()
    assert logp.grad is not None
    return logp.grad, join(losses)


@pytest.mark.parametrize("settings", AGGREGATIONS, ids=lambda s: s.aggregation)
def test_micro_batches_change_nothing(rows: dict[str, Tensor], settings: LossSettings) -> None:
    whole, metrics = step(rows, settings, [range(5)])
    for parts in ([range(1), range(1, 5)], [range(3, 5), range(0, 2), range(2, 3)]):
        gradient, joined = step(rows, settings, parts)
        assert torch.equal(gradient, whole)
        assert joined == pytest.approx(metrics, rel=1e-11, abs=1e-13)


def test_each_aggregation_weighs_tokens_as_it_says(rows: dict[str, Tensor]) -> None:
    trainable = rows["trainable"]
    counts = [int(trainable[BOUNDS[i] : BOUNDS[i + 1]].sum()) for i in range(5)]
    token_mean, seq_mean, constant = (step_normalizer(trainable, BOUNDS, s) for s in AGGREGATIONS)
    counted = sum(count > 0 for count in counts)
    assert token_mean.tolist() == [sum(counts)] * TOKENS
    assert seq_mean.tolist() == [
        max(c, 1) * counted for c, n in zip(counts, LENGTHS, strict=True) for _ in range(n)
    ]
    assert constant.tolist() == [32 * counted] * TOKENS


def test_settings_reach_the_loss(rows: dict[str, Tensor]) -> None:
    normalizer = torch.full((TOKENS,), 10.0, dtype=torch.float64)
    settings = LossSettings(value_coef=0.5, kl_coef=0.1, entropy_coef=0.01, kl_estimator="k3")
    found = loss_of(**rows, settings=settings, normalizer=normalizer)
    wanted = found.policy_loss + 0.5 * found.value_loss + 0.1 * found.kl_loss + 0.01 * found.entropy_loss
    assert float(found.loss) == pytest.approx(float(wanted), rel=1e-14)
    k2 = loss_of(**rows, settings=LossSettings(), normalizer=normalizer)
    assert float(k2.kl_loss) != float(found.kl_loss)


def test_truncated_weights_are_capped_constants() -> None:
    old = torch.tensor([-1.0, -1.0, -1.0, 300.0], requires_grad=True)
    weights = truncated_weights(old, torch.tensor([-1.0, -4.0, 0.0, 0.0]))
    assert weights.tolist() == pytest.approx([1.0, 2.0, 0.36787944, 2.0])
    assert not weights.requires_grad

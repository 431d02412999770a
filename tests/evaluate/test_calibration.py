# SPDX-License-Identifier: Apache-2.0
"""The judge's report finds what was planted: a temperature, a position bias, calibrated and bold judges."""

import math
from dataclasses import dataclass

import pytest
import torch

from earnest.evaluate.calibration import fit_position, fit_temperature, judge_report
from earnest.learn.judge import PHI

LEVELS = sorted(PHI)


@dataclass(frozen=True)
class Pair:
    level: int
    true_level: int | None = None


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def verdicts(seed: int, count: int, spread: float = 1.5) -> tuple[torch.Tensor, list[Pair]]:
    """Logits [count, 5] of a judge that is right about its own chances: the levels are drawn from them."""
    logits = torch.randn(count, len(LEVELS), generator=generator(seed)) * spread
    drawn = torch.multinomial(logits.softmax(1), 1, generator=generator(seed + 1)).squeeze(1)
    return logits, [Pair(LEVELS[int(i)]) for i in drawn]


@pytest.mark.parametrize("planted", [0.4, 1.0, 3.0])
def test_a_planted_temperature_is_found(planted: float):
    logits, pairs = verdicts(0, 6000)
    classes = torch.tensor([LEVELS.index(pair.level) for pair in pairs])
    assert fit_temperature(logits * planted, classes) == pytest.approx(planted, rel=0.06)


def test_a_judge_that_mirrors_itself_has_no_swap_bias():
    logits, pairs = verdicts(1, 500)
    report = judge_report(logits, logits.flip(1), pairs, PHI)
    assert report["swap_bias"] == pytest.approx(0.0, abs=1e-7)
    assert report["swap_disagree"] == pytest.approx(0.0, abs=1e-6)
    assert report["comparisons"] == 500


def test_noise_between_the_orders_is_disagreement_and_no_bias():
    logits, pairs = verdicts(2, 2000)
    noise = torch.randn(logits.shape, generator=generator(5))
    report = judge_report(logits, logits.flip(1) + noise, pairs, PHI)
    assert report["swap_disagree"] > 0.1
    assert abs(report["swap_bias"]) < 3 * report["swap_bias_standard_error"]


def test_a_planted_position_bias_is_seen_with_its_size():
    logits, pairs = verdicts(3, 2000)
    first = torch.tensor([PHI[level] for level in LEVELS])  # adds weight to whatever stands first
    report = judge_report(logits + first, logits.flip(1) + first, pairs, PHI)
    assert report["swap_bias"] > 10 * report["swap_bias_standard_error"] > 0
    backwards = judge_report(logits - first, logits.flip(1) - first, pairs, PHI)
    assert backwards["swap_bias"] < -10 * backwards["swap_bias_standard_error"]
    gap = (logits + first).softmax(1) @ first + (logits.flip(1) + first).softmax(1) @ first
    assert report["swap_bias"] == pytest.approx(float(gap.mean()), abs=1e-6)
    assert report["swap_bias_standard_error"] == pytest.approx(float(gap.std() / math.sqrt(2000)), rel=1e-5)


def test_what_standing_first_is_worth_is_found_on_other_comparisons_and_taken_off():
    first = 0.3 * torch.tensor([PHI[level] for level in LEVELS])
    (known, _), (fresh, pairs) = verdicts(30, 3000), verdicts(40, 3000)
    raw = judge_report(fresh + first, fresh.flip(1) + first, pairs, PHI)
    position = fit_position(known + first, known.flip(1) + first, PHI)
    freed = judge_report(fresh + first, fresh.flip(1) + first, pairs, PHI, position)
    assert raw["swap_bias"] > 10 * raw["swap_bias_standard_error"]
    assert abs(freed["swap_bias"]) < 3 * freed["swap_bias_standard_error"]
    assert freed["swap_bias"] == pytest.approx(raw["swap_bias"] - 2 * position[0], abs=1e-6)
    both = math.hypot(raw["swap_bias_standard_error"], 2 * position[1])  # the offset is no better known
    assert freed["swap_bias_standard_error"] == pytest.approx(both, rel=1e-6)
    assert freed["position_offset"] == position[0]
    assert freed["accuracy"] == raw["accuracy"]
    assert freed["ece"] == raw["ece"]


def test_a_judge_that_knows_its_chances_is_calibrated_and_a_bold_one_is_not():
    logits, pairs = verdicts(4, 8000)
    report = judge_report(logits, logits.flip(1), pairs, PHI)
    assert report["ece"] < 0.03
    for point in report["calibration_curve"]:
        error = math.sqrt(0.25 / point["count"])
        assert abs(point["said"] - point["happened"]) < 4 * error
    assert judge_report(3 * logits, 3 * logits.flip(1), pairs, PHI)["ece"] > 0.1
    assert judge_report(logits / 6, logits.flip(1) / 6, pairs, PHI)["ece"] > 0.1


def test_the_curve_holds_every_decided_comparison_once():
    logits, pairs = verdicts(6, 1000)
    report = judge_report(logits, logits.flip(1), pairs, PHI)
    decided = sum(pair.level != 0 for pair in pairs)
    assert sum(point["count"] for point in report["calibration_curve"]) == decided
    certain = torch.full((4, 5), -50.0)
    certain[:, 4] = 50.0  # a probability of exactly 1 belongs to the last bin
    whole = judge_report(certain, certain.flip(1), [Pair(2)] * 4, PHI)
    assert whole["calibration_curve"] == [{"said": pytest.approx(1.0), "happened": 1.0, "count": 4}]
    assert whole["ece"] == pytest.approx(0.0, abs=1e-6)


def test_accuracy_counts_signs_where_the_rater_names_a_winner():
    sure = {
        level: torch.full((5,), -9.0).index_fill(0, torch.tensor(LEVELS.index(level)), 9.0)
        for level in LEVELS
    }
    said, rated = (2, -1, 1, 1, 0), (1, -2, -1, 2, 0)
    logits = torch.stack([sure[level] for level in said])
    pairs = [Pair(level, true_level=1) for level in rated]
    report = judge_report(logits, logits.flip(1), pairs, PHI)
    assert report["accuracy"] == pytest.approx(3 / 4)
    assert report["accuracy_by_distance"] == {"1": pytest.approx(1 / 2), "2": pytest.approx(1.0)}
    assert report["accuracy_true"] == pytest.approx(3 / 5)
    assert report["rater_agrees_with_itself"] == pytest.approx(2 / 4)
    assert report["ties_rated"] == pytest.approx(1 / 5)
    assert report["ties_judged"] == pytest.approx(1 / 5)
    unknown = judge_report(logits, logits.flip(1), [Pair(level) for level in rated], PHI)
    assert "accuracy_true" not in unknown

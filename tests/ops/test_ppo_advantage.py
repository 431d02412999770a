# SPDX-License-Identifier: Apache-2.0
"""Advantages: GAE against its definition (T4), whitening, group baselines."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earnest import _native
from earnest.errors import InvalidInput
from earnest.ops import gae, group_advantage, num_threads, set_num_threads, whiten
from earnest.ops.ppo import join_moments, masked_moments
from reference import ppo as reference
from tiers import usable_tiers
from tolerances import PPO

DISCOUNTS = [(1.0, 1.0), (0.99, 0.95), (1.0, 0.95), (0.9, 1.0), (0.0, 0.5), (0.7, 0.0)]


@pytest.fixture(params=usable_tiers("ppo"))
def tier(request):
    _native.force_cpu_tier(request.param)
    yield request.param
    _native.force_cpu_tier("")


def cu(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


def batch(lengths: list[int], dtype=torch.float64, seed: int = 0):
    """(rewards, values, trainable, cu_seqlens): turns of random length, gaps between them, random ends."""
    g = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    turns = torch.rand(n, generator=g).lt(0.1).cumsum(0) % 2 == 0
    rewards, values = torch.randn(2, n, generator=g, dtype=torch.float64).to(dtype)
    return rewards, values, turns, cu(lengths)


# ---- T4: generalised advantage estimation ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize(("gamma", "lam"), DISCOUNTS)
def test_gae_equals_its_definition(gamma: float, lam: float, dtype: torch.dtype, tier: str) -> None:
    rewards, values, trainable, bounds = batch([1, 0, 2, 7, 8, 9, 63, 64, 65, 130, 0], dtype)
    found = gae(rewards, values, trainable, bounds, gamma=gamma, lam=lam)
    wanted = reference.gae(rewards.double(), values.double(), trainable, bounds, gamma, lam)
    bound = PPO["gae"][str(dtype).removeprefix("torch.")] * max(1.0, float(wanted[1].abs().max()))
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == dtype
        assert float((mine.double() - theirs).abs().max()) <= bound
        assert bool((mine[~trainable] == 0).all())


@given(
    turns=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 30)), min_size=1, max_size=5),
    discounts=st.sampled_from(DISCOUNTS),
    seed=st.integers(0, 10),
)
@settings(max_examples=60, deadline=None)
def test_gaps_change_nothing(turns, discounts, seed: int) -> None:
    """Any masked tokens, holding anything, between, before and after the trainable ones."""
    gamma, lam = discounts
    g = torch.Generator().manual_seed(seed)
    mask = torch.tensor(
        [flag for kept, gap in turns for flag in [True] * kept + [False] * gap], dtype=torch.bool
    )
    rewards, values = torch.randn(2, int(mask.sum()), generator=g, dtype=torch.float64)
    dense = gae(
        rewards, values, torch.ones_like(rewards, dtype=torch.bool), cu([len(rewards)]), gamma=gamma, lam=lam
    )
    spread = [torch.full(mask.shape, math.nan, dtype=torch.float64) for _ in range(2)]
    spread[0][mask], spread[1][mask] = rewards, values
    found = gae(*spread, mask, cu([len(mask)]), gamma=gamma, lam=lam)
    for mine, theirs in zip(found, dense, strict=True):
        torch.testing.assert_close(mine[mask], theirs, rtol=0, atol=1e-12)


@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6), discounts=st.sampled_from(DISCOUNTS))
@settings(max_examples=40, deadline=None)
def test_packed_equals_padded_and_alone_bit_for_bit(lengths, discounts) -> None:
    gamma, lam = discounts
    rewards, values, trainable, bounds = batch(lengths)
    together = gae(rewards, values, trainable, bounds, gamma=gamma, lam=lam)
    longest = max(lengths)
    for i, length in enumerate(lengths):
        begin, end = int(bounds[i]), int(bounds[i + 1])
        part = [x[begin:end] for x in (rewards, values, trainable)]
        alone = gae(*part, cu([length]), gamma=gamma, lam=lam)
        padded = [torch.nn.functional.pad(x, (0, longest - length)) for x in part]
        for mine, single, pad in zip(
            together, alone, gae(*padded, cu([longest]), gamma=gamma, lam=lam), strict=True
        ):
            assert torch.equal(mine[begin:end], single)
            torch.testing.assert_close(mine[begin:end], pad[:length], rtol=0, atol=1e-12)


def test_undiscounted_path_is_reverse_cumulative_reward() -> None:
    rewards, values, trainable, bounds = batch([300, 41])
    advantages, returns = gae(rewards, values, trainable, bounds)
    nearly = gae(rewards, values, trainable, bounds, gamma=1.0, lam=1 - 1e-15)[0]
    for begin, end in ((0, 300), (300, 341)):
        kept = torch.where(trainable, rewards, 0.0)[begin:end]
        wanted = kept.flip(0).cumsum(0).flip(0)
        torch.testing.assert_close(returns[begin:end][trainable[begin:end]], wanted[trainable[begin:end]])
    torch.testing.assert_close(advantages[trainable], (returns - values)[trainable])
    torch.testing.assert_close(advantages, nearly, rtol=0, atol=1e-11)


def test_a_score_reaches_every_earlier_turn_though_the_sequence_ends_masked() -> None:
    trainable = torch.tensor([True, True, False, False, True, True, False])
    rewards = torch.zeros(7)
    rewards[5] = 1.0
    advantages, _ = gae(rewards, torch.zeros(7), trainable, cu([7]))
    assert advantages.tolist() == [1, 1, 0, 0, 1, 1, 0]


def test_rewards_on_masked_tokens_are_ignored_or_refused() -> None:
    rewards, values = torch.tensor([0.0, 1.0, 0.0, 5.0]), torch.zeros(4)
    trainable = torch.tensor([True, True, False, False])
    assert gae(rewards, values, trainable, cu([4]))[0].tolist() == [1, 1, 0, 0]
    with pytest.raises(
        ValueError, match=r"rewards: expected 0 at tokens that are not trainable, got 5\.0+ at token 3"
    ):
        gae(rewards, values, trainable, cu([4]), masked_rewards="refuse")
    rewards[3] = 0
    assert gae(rewards, values, trainable, cu([4]), masked_rewards="refuse")[0].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("name", ["rewards", "values"])
def test_gae_names_what_is_not_finite_at_a_trainable_token(name: str) -> None:
    arrays = dict(zip(("rewards", "values"), torch.zeros(2, 50), strict=True))
    arrays[name][33] = math.nan
    trainable = torch.ones(50, dtype=torch.bool)
    with pytest.raises(ValueError, match=rf"\[gae\] {name}: expected finite numbers .* at token 33"):
        gae(**arrays, trainable=trainable, cu_seqlens=cu([20, 30]))
    trainable[33] = False
    assert bool(gae(**arrays, trainable=trainable, cu_seqlens=cu([20, 30]))[0].isfinite().all())


def test_advantages_do_not_depend_on_the_number_of_threads(tier: str) -> None:
    rewards, values, trainable, bounds = batch([20_000, 3, 30_000, 17_000], torch.float32)
    x, before = values, num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            set_num_threads(threads)
            results.append(
                [*gae(rewards, values, trainable, bounds, gamma=0.99, lam=0.95), whiten(x, trainable)]
            )
    finally:
        set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cu_seqlens": torch.tensor([0, 10])}, "cu_seqlens: expected int32, got int64"),
        ({"cu_seqlens": cu([3, 6])}, r"cu_seqlens: expected 10 \(the number of tokens\) at the end, got 9"),
        ({"cu_seqlens": cu([11, -1])}, "cu_seqlens: expected numbers that never fall, got 11 before 10"),
        ({"cu_seqlens": cu([10]) + 1}, "cu_seqlens: expected 0 at the start, got 1"),
        (
            {"cu_seqlens": torch.zeros(0, dtype=torch.int32)},
            r"cu_seqlens: expected \[sequences \+ 1\], got \[0\]",
        ),
        ({"values": torch.zeros(9)}, r"values: expected shape \[10\], got shape \[9\]"),
        ({"gamma": 1.5}, r"gamma: expected a number in \[0, 1\], got 1.5"),
        ({"lam": math.nan}, r"lam: expected a number in \[0, 1\], got nan"),
        ({"masked_rewards": "drop"}, "masked_rewards: expected ignore or refuse, got 'drop'"),
    ],
)
def test_bad_arguments_of_gae_are_named(change: dict, sentence: str) -> None:
    good = {
        "rewards": torch.zeros(10),
        "values": torch.zeros(10),
        "trainable": torch.ones(10, dtype=torch.bool),
        "cu_seqlens": cu([10]),
    }
    with pytest.raises(ValueError, match=r"^\[gae\] " + sentence):
        gae(**(good | change))


def test_numpy_in_numpy_out() -> None:
    rewards, values, trainable, bounds = batch([5, 30], torch.float32)
    arrays = [x.numpy() for x in (rewards, values, trainable, bounds)]
    for mine, theirs in zip(
        gae(*arrays, gamma=0.9), gae(rewards, values, trainable, bounds, gamma=0.9), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs.numpy())
    np.testing.assert_array_equal(whiten(arrays[0], arrays[2]), whiten(rewards, trainable).numpy())
    groups = np.arange(35) // 4
    np.testing.assert_array_equal(
        group_advantage(arrays[0], groups), group_advantage(rewards, torch.from_numpy(groups)).numpy()
    )


def test_numpy_arrays_of_every_make_give_the_same_bits() -> None:
    rewards, values, trainable, bounds = (x.numpy() for x in batch([40, 3, 0, 58], torch.float32))
    wanted = gae(rewards, values, trainable, bounds, gamma=0.9, lam=0.8)

    def every_second(x: np.ndarray) -> np.ndarray:
        wide = np.zeros(2 * x.size, x.dtype)
        wide[::2] = x
        return wide[::2]

    def locked(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x.flags.writeable = False
        return x

    makes = (every_second, locked, lambda x: x[::-1].copy()[::-1], lambda x: x.copy().view(np.memmap))
    for make in makes:
        found = gae(make(rewards), make(values), make(trainable), make(bounds), gamma=0.9, lam=0.8)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(InvalidInput, match="values: expected a numpy array like the others, got Tensor"):
        gae(rewards, torch.from_numpy(values), trainable, bounds)


def test_operator_contracts() -> None:
    rewards, values, trainable, bounds = batch([5, 30])
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    groups = torch.arange(35) // 4
    torch.library.opcheck(
        torch.ops.earnest.gae, (rewards, values, trainable, bounds, 0.9, 0.9, False), **checks
    )
    torch.library.opcheck(torch.ops.earnest.masked_moments, (rewards, trainable), **checks)
    moments = masked_moments(rewards, trainable)
    torch.library.opcheck(torch.ops.earnest.whiten, (rewards, trainable, moments, 1e-8, 1e-3), **checks)
    settings = (False, False, 1e-8, 1e-3)
    torch.library.opcheck(torch.ops.earnest.group_advantage, (rewards, groups, None, *settings), **checks)


# ---- whitening ----


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_whitening_equals_its_definition(shift: float, tier: str) -> None:
    x, _, trainable, _ = batch([9001])
    x = x * 3 + shift
    torch.testing.assert_close(whiten(x, trainable), reference.whiten(x, trainable), rtol=0, atol=1e-9)
    spoilt = torch.where(trainable, x, math.nan)
    assert torch.equal(whiten(spoilt, trainable), whiten(x, trainable))


@pytest.mark.parametrize(("spread", "scaled"), [(0.9e-3, False), (1.1e-3, True), (0.0, False)])
def test_a_batch_of_all_but_equal_rewards_is_not_blown_up(spread: float, scaled: bool) -> None:
    x = 0.7 + spread * torch.tensor([1.0, -1.0] * 50, dtype=torch.float64)
    out = whiten(x, torch.ones(100, dtype=torch.bool))
    wanted = spread / math.sqrt(spread**2 + 1e-8) if scaled else spread
    assert float(out.abs().max()) == pytest.approx(wanted, abs=1e-12)


def test_padding_would_change_whitening_and_does_not() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 0.0, 0.0, 0.0])
    padded = whiten(x, torch.arange(6) < 3)
    assert torch.equal(padded[:3], whiten(x[:3], torch.ones(3, dtype=torch.bool)))
    assert padded[3:].tolist() == [0, 0, 0]


def test_moments_of_ranks_join_to_those_of_the_batch() -> None:
    x, _, trainable, _ = batch([9000])
    parts = torch.stack(
        [masked_moments(a, b) for a, b in zip(x.split(2999), trainable.split(2999), strict=True)]
    )
    empty = torch.zeros(1, 3, dtype=torch.float64)
    joined = join_moments(torch.cat([empty, parts, empty]))
    torch.testing.assert_close(joined, masked_moments(x, trainable), rtol=1e-12, atol=1e-12)
    whole = whiten(x, trainable)
    pieces = [whiten(a, b, moments=joined) for a, b in zip(x.split(2999), trainable.split(2999), strict=True)]
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=0, atol=1e-12)


def test_whitening_names_what_is_not_finite() -> None:
    with pytest.raises(
        ValueError, match=r"\[whiten\] x: expected finite numbers at trainable tokens, got inf at position 2"
    ):
        whiten(torch.tensor([0.0, 1.0, math.inf]), torch.ones(3, dtype=torch.bool))


def test_whitening_nothing_gives_zeros() -> None:
    assert whiten(torch.ones(3), torch.zeros(3, dtype=torch.bool)).tolist() == [0, 0, 0]
    assert whiten(torch.ones(0), torch.zeros(0, dtype=torch.bool)).tolist() == []


# ---- group baseline ----


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("normalize_std", [False, True])
def test_group_advantage_equals_its_definition(baseline: str, normalize_std: bool) -> None:
    g = torch.Generator().manual_seed(1)
    scores = torch.rand(60, generator=g, dtype=torch.float64)
    groups = torch.randint(-3, 9, (60,), generator=g)
    valid = torch.rand(60, generator=g) > 0.2
    found = group_advantage(scores, groups, valid=valid, baseline=baseline, normalize_std=normalize_std)
    for i in range(60):
        members = [j for j in range(60) if valid[j] and groups[j] == groups[i]]
        if not valid[i] or len(members) < 2:
            assert found[i] == 0
            continue
        against = [j for j in members if baseline == "mean" or j != i]
        wanted = scores[i] - scores[against].mean()
        if normalize_std:
            wanted /= torch.sqrt(scores[members].var() + 1e-8)
        assert float(found[i]) == pytest.approx(float(wanted), rel=1e-12, abs=1e-14)


def test_equal_scores_single_members_and_invalid_samples_teach_nothing() -> None:
    scores = torch.tensor([0.3, 0.3, 0.3, 1.0, math.nan, 2.0])
    groups = torch.tensor([7, 7, 7, 8, 9, 9])
    valid = torch.tensor([True, True, True, True, False, True])
    for baseline in ("mean", "leave_one_out"):
        found = group_advantage(scores, groups, valid=valid, baseline=baseline, normalize_std=True)
        assert float(found.abs().max()) < 1e-7


def test_bad_arguments_of_group_advantage_are_named() -> None:
    with pytest.raises(InvalidInput, match="baseline: expected mean or leave_one_out, got 'median'"):
        group_advantage(torch.zeros(2), torch.zeros(2, dtype=torch.int64), baseline="median")
    with pytest.raises(InvalidInput, match=r"groups: expected shape \[2\], got \[3\]"):
        group_advantage(torch.zeros(2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(
        ValueError, match="scores: expected finite numbers at valid samples, got nan at position 1"
    ):
        group_advantage(torch.tensor([0.0, math.nan]), torch.zeros(2, dtype=torch.int64))

# SPDX-License-Identifier: Apache-2.0
"""What the ppo family promises for every batch: shapes from hell, error budgets, and laws that hold bit for
bit or to rounding."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earnest import _native
from earnest.ops import gae, ppo_loss, whiten
from earnest.ops.ppo import join_sums, metrics_of
from reference import ppo as reference
from shapes import LAYOUTS, LENGTHS, MASKS, PACKS, cu_seqlens
from tiers import usable_tiers
from tolerances import FACTOR, PPO

DISCOUNTS = [(1.0, 1.0), (0.99, 0.95), (0.5, 0.25), (0.3, 0.3), (0.0, 0.5)]
NAMES = ("logp", "logp_old", "advantages", "values", "values_old", "returns")


@pytest.fixture(params=usable_tiers("ppo"))
def tier(request):
    _native.force_cpu_tier(request.param)
    yield request.param
    _native.force_cpu_tier("")


def pack(lengths, mask="turns", dtype=torch.float32, seed=0):
    """(rewards, values, trainable, cu_seqlens); masked entries are not numbers."""
    g, n = torch.Generator().manual_seed(seed), sum(lengths)
    trainable = MASKS[mask](n)
    rewards, values = torch.randn(2, n, generator=g, dtype=torch.float64).to(dtype)
    spoilt = [torch.where(trainable, x, math.nan) for x in (rewards, values)]
    return *spoilt, trainable, cu_seqlens(lengths)


def tokens(n, mask="turns", dtype=torch.float32, seed=0, policy_shift=0.4):
    """Inputs of the loss by name."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(8, n, generator=g, dtype=torch.float64)
    data = {
        "logp_old": x[0] - 2, "logp": x[0] - 2 + policy_shift * x[1], "advantages": x[2], "values_old": x[3],
        "values": x[3] + 0.3 * x[4], "returns": x[5], "logp_ref": x[0] - 2 + 0.4 * x[6], "entropy": x[7] ** 2,
    }  # fmt: skip
    return {k: v.to(dtype) for k, v in data.items()} | {"trainable": MASKS[mask](n)}


def loss_and_gradients(data, **chosen):
    """[loss, d/dlogp, d/dvalues, d/dentropy] with every term in the sum, and the sums."""
    leaves = {k: data[k].detach().requires_grad_() for k in ("logp", "values", "entropy")}
    d = data | leaves
    chosen = {"kl_coef": 0.1, "entropy_coef": 0.02, "value_coef": 0.7} | chosen
    found = ppo_loss(
        *(d[k] for k in NAMES), d["trainable"], logp_ref=d["logp_ref"], entropy=d["entropy"], **chosen
    )
    return [found.loss.detach(), *torch.autograd.grad(found.loss, list(leaves.values()))], found.sums


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- shapes from hell ----


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("lengths", PACKS.values(), ids=PACKS)
def test_advantages_of_every_pack_and_mask(lengths, mask: str, tier: str) -> None:
    rewards, values, trainable, bounds = pack(lengths, mask, torch.float64)
    found = gae(rewards, values, trainable, bounds, gamma=0.9, lam=0.8)
    clean = [torch.where(trainable, x, 0.0) for x in (rewards, values)]
    if max(lengths, default=0) > 1000:  # the definition is O(n^2): through the recurrence instead
        wanted = recurrence(*clean, trainable, bounds, 0.9, 0.8)
    else:
        wanted = reference.gae(*clean, trainable, bounds, 0.9, 0.8)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_losses_of_every_length_and_mask(length: int, mask: str) -> None:
    data = tokens(length, mask, torch.float64)
    found, _ = loss_and_gradients(data)
    leaves = {k: data[k].clone().requires_grad_() for k in ("logp", "values", "entropy")}
    parts = reference.losses(
        **(data | leaves), clip=0.2, clip_high=0.2, clip_value=0.2, dual_clip=None, kl_estimator="k2",
        normalizer=max(1.0, float(data["trainable"].sum())), weights=None,
    )  # fmt: skip
    total = (
        parts["policy_loss"]
        + 0.7 * parts["value_loss"]
        + 0.1 * parts["kl_loss"]
        + 0.02 * parts["entropy_loss"]
    )
    wanted = [total.detach(), *torch.autograd.grad(total, list(leaves.values()))]
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_where_arrays_lie_in_memory_changes_no_bit(layout, tier: str) -> None:
    rewards, values, trainable, bounds = pack((1, 16, 333, 64), "random")
    plain = gae(rewards, values, trainable, bounds, gamma=0.99, lam=0.95)
    moved = [layout(x) for x in (rewards, values, trainable, bounds)]
    assert equal(plain, gae(*moved, gamma=0.99, lam=0.95))
    assert equal([whiten(plain[0], trainable)], [whiten(layout(plain[0]), moved[2])])
    data = tokens(414, "random")
    mine, sums = loss_and_gradients(data)
    other, other_sums = loss_and_gradients({k: layout(x) for k, x in data.items()})
    assert equal([*mine, sums], [*other, other_sums])


def test_out_is_written_and_returned() -> None:
    rewards, values, trainable, bounds = pack((5, 100))
    wanted = gae(rewards, values, trainable, bounds, gamma=0.9)
    room = torch.full((3, 106), 7.0)
    out = (room[0, 1:], room[1, 1:])
    found = gae(rewards, values, trainable, bounds, gamma=0.9, out=out)
    assert found[0] is out[0]
    assert found[1] is out[1]
    assert equal(found, wanted)
    assert room[:, 0].tolist() == room[2, 1:4].tolist() == [7.0] * 3  # and nothing around it
    arrays = [x.numpy() for x in (rewards, values, trainable, bounds)]
    fresh = torch.zeros(2, 105)
    gae(*arrays, gamma=0.9, out=(fresh[0].numpy(), fresh[1].numpy()))
    assert equal(fresh.unbind(), wanted)
    compiled = torch.compile(
        lambda *x: gae(*x[:4], gamma=0.9, out=x[4:]), backend="aot_eager", fullgraph=True
    )
    assert equal(compiled(rewards, values, trainable, bounds, *torch.zeros(2, 105)), wanted)


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        (
            (torch.zeros(2, 20)[:, ::2]).unbind(),
            "out: advantages: expected a contiguous array, got one with strides",
        ),
        ((torch.zeros(10), torch.zeros(9)), r"out: returns: expected shape \[10\], got shape \[9\]"),
        ((torch.zeros(10), torch.zeros(10).double()), "out: returns: expected float32, got float64"),
        (torch.zeros(2, 10), r"out: expected \(advantages, returns\), got Tensor"),
    ],
)
def test_an_out_that_does_not_fit_is_refused(out, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^\[gae\] " + sentence):
        gae(*pack((10,)), out=out)


# ---- error budgets ----


def recurrence(rewards, values, trainable, bounds, gamma, lam):
    """The recurrence as it is written, one token at a time, in the precision of its arguments."""
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    r, v, m = rewards.numpy(), values.numpy(), trainable.numpy()
    a, q = advantages.numpy(), returns.numpy()
    g, gl = v.dtype.type(gamma), v.dtype.type(gamma) * v.dtype.type(lam)
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        next_v, next_a = v.dtype.type(0), v.dtype.type(0)
        for t in range(end - 1, begin - 1, -1):
            if m[t]:
                next_a = r[t] + g * next_v - v[t] + gl * next_a
                next_v = v[t]
                a[t], q[t] = next_a, next_a + next_v
    return advantages, returns


@pytest.mark.parametrize(
    "lengths", [(100_000,), (1,) * 3000, (7, 500, 3, 64) * 20], ids=["long", "alone", "ragged"]
)
@pytest.mark.parametrize(("gamma", "lam"), DISCOUNTS[:4])
def test_float32_advantages_are_as_good_as_plain_float32(gamma, lam, lengths, tier: str) -> None:
    rewards, values, trainable, bounds = pack(lengths, "turns")
    clean = [torch.where(trainable, x, 0.0) for x in (rewards, values)]
    wanted = recurrence(*(x.double() for x in clean), trainable, bounds, gamma, lam)
    plain = recurrence(*clean, trainable, bounds, gamma, lam)
    found = gae(rewards, values, trainable, bounds, gamma=gamma, lam=lam)
    for mine, theirs, exact in zip(found, plain, wanted, strict=True):
        floor = PPO["rounding"] * float(exact.abs().max())
        for norm in (lambda x: x.abs().max(), lambda x: x.square().mean().sqrt()):
            assert float(norm(mine - exact)) <= FACTOR * float(norm(theirs - exact)) + floor


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.9999), (0.9999, 1.0)])
def test_rounding_is_not_carried_along_a_long_sequence(gamma, lam, tier: str) -> None:
    rewards, values, trainable, bounds = pack((100_000,), "turns")
    clean = [torch.where(trainable, x, 0.0).double() for x in (rewards, values)]
    wanted = recurrence(*clean, trainable, bounds, gamma, lam)
    for mine, exact in zip(
        gae(rewards, values, trainable, bounds, gamma=gamma, lam=lam), wanted, strict=True
    ):
        assert float((mine - exact).abs().max()) <= 4 * PPO["rounding"] * float(exact.abs().max())


@pytest.mark.parametrize("kl_estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("shift", [1e-4, 0.4, 5.0])
def test_float32_losses_are_as_good_as_plain_float32(shift: float, kl_estimator: str, tier: str) -> None:
    data = tokens(20_001, "random", policy_shift=shift)
    chosen = {
        "clip": 0.2,
        "clip_high": 0.2,
        "clip_value": 0.2,
        "dual_clip": None,
        "kl_estimator": kl_estimator,
    }
    count = float(data["trainable"].sum())

    def plain(d):
        leaves = {k: d[k].clone().requires_grad_() for k in ("logp", "values", "entropy")}
        parts = reference.losses(**(d | leaves), **chosen, normalizer=count, weights=None)
        p = [parts[k] for k in ("policy_loss", "value_loss", "kl_loss", "entropy_loss")]
        total = p[0] + 0.7 * p[1] + 0.1 * p[2] + 0.02 * p[3]
        return [total.detach(), *torch.autograd.grad(total, list(leaves.values()))]

    exact = plain({k: x if x.dtype == torch.bool else x.double() for k, x in data.items()})
    found, _ = loss_and_gradients(data, kl_estimator=kl_estimator)
    for mine, theirs, wanted in zip(found, plain(data), exact, strict=True):
        # A ratio within rounding of an edge may fall on either side: at those tokens both are right.
        near = (mine == 0) != (wanted == 0) if mine.ndim else torch.tensor(False)
        assert int(near.sum()) <= 2
        floor = PPO["rounding"] * float(wanted.abs().max())
        for norm in (lambda x: x.abs().max(), lambda x: x.square().mean().sqrt()):
            error = torch.where(near, 0.0, mine - wanted)
            same = (
                torch.where((theirs == 0) != (wanted == 0), 0.0, theirs - wanted)
                if mine.ndim
                else theirs - wanted
            )
            assert float(norm(error)) <= FACTOR * float(norm(same)) + floor


def test_float32_metrics_are_sums_in_double(tier: str) -> None:
    """20 million would lose whole tokens in a float32 sum; equal returns must leave no variance at all."""
    n = 300_001
    x = torch.full((n,), 0.8)
    found = ppo_loss(x - 0.1, x, x, x * 0 + 0.3, x, x, x > 0)
    assert float(found.metrics["tokens"]) == n
    assert float(found.metrics["explained_variance"]) == 0
    assert float(found.metrics["return_mean"]) == pytest.approx(float(x[0].double()), rel=1e-13)


@pytest.mark.parametrize("k1", [1e-7, -1e-4, 0.02, 0.3466, -0.3466, 0.6, -1.2, 8.0, -20.0])
def test_float32_kl_has_no_cancellation(k1: float, tier: str) -> None:
    x = torch.tensor([k1], dtype=torch.float32)
    zero = torch.zeros(1)
    found = ppo_loss(x, zero, zero, None, None, None, x == x, logp_ref=zero, kl_estimator="k3", normalizer=1)
    for value, exponent in ((found.sums[2], -x.double()), (found.metrics["approx_kl"], x.double())):
        wanted = float(torch.expm1(exponent) - exponent)
        if abs(k1) < 1e-3:
            wanted = float(exponent**2 / 2 + exponent**3 / 6)
        assert float(value) == pytest.approx(wanted, rel=1e-6)


def test_large_finite_numbers_are_no_error() -> None:
    big = torch.tensor([3e38, -3e38])
    found = gae(big, -big, torch.tensor([True, True]), cu_seqlens([2]))
    assert not bool(found[0].isnan().any())
    huge = torch.tensor([1e300, -1e300], dtype=torch.float64)
    assert bool(ppo_loss(huge, huge, huge * 0, huge, huge, -huge, huge != 0).policy_loss == 0)


# ---- laws ----

LENGTH_LISTS = st.lists(st.integers(0, 40), min_size=1, max_size=6)
DTYPES = st.sampled_from([torch.float32, torch.float64])


@given(lengths=LENGTH_LISTS, discounts=st.sampled_from(DISCOUNTS), dtype=DTYPES, data=st.data())
@settings(max_examples=40, deadline=None)
def test_sequences_of_a_pack_may_change_places(lengths, discounts, dtype, data) -> None:
    rewards, values, trainable, bounds = pack(lengths, "random", dtype)
    order = data.draw(st.permutations(range(len(lengths))))
    split = [[x[bounds[i] : bounds[i + 1]] for i in order] for x in (rewards, values, trainable)]
    moved = [torch.cat(x) for x in split]
    chosen = dict(zip(("gamma", "lam"), discounts, strict=True))
    found = gae(rewards, values, trainable, bounds, **chosen)
    other = gae(*moved, cu_seqlens([lengths[i] for i in order]), **chosen)
    for mine, theirs in zip(found, other, strict=True):
        assert torch.equal(torch.cat([mine[bounds[i] : bounds[i + 1]] for i in order]), theirs)


@given(
    turns=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 30)), min_size=1, max_size=5),
    discounts=st.sampled_from(DISCOUNTS), dtype=DTYPES,
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_gaps_change_nothing_but_rounding(turns, discounts, dtype) -> None:
    mask = torch.cat([torch.arange(gap + kept) >= gap for gap, kept in turns])
    rewards, values, _, _ = pack((int(mask.sum()),), "all", dtype)
    chosen = dict(zip(("gamma", "lam"), discounts, strict=True))
    dense = gae(
        rewards, values, torch.ones_like(rewards, dtype=torch.bool), cu_seqlens([len(rewards)]), **chosen
    )
    spread = [torch.full(mask.shape, math.nan, dtype=dtype) for _ in range(2)]
    spread[0][mask], spread[1][mask] = rewards, values
    found = gae(*spread, mask, cu_seqlens([len(mask)]), **chosen)
    for mine, theirs in zip(found, dense, strict=True):
        size = max(1.0, float(theirs.abs().max())) if len(theirs) else 1.0
        torch.testing.assert_close(mine[mask], theirs, rtol=0, atol=8 * torch.finfo(dtype).eps * size)


@given(
    lengths=LENGTH_LISTS, discounts=st.sampled_from(DISCOUNTS), exponent=st.integers(-20, 20), dtype=DTYPES
)
@settings(max_examples=40, deadline=None)
def test_advantages_scale_with_rewards_and_values(lengths, discounts, exponent, dtype) -> None:
    rewards, values, trainable, bounds = pack(lengths, "random", dtype)
    chosen, scale = dict(zip(("gamma", "lam"), discounts, strict=True)), 2.0**exponent
    found = gae(rewards, values, trainable, bounds, **chosen)
    scaled = gae(rewards * scale, values * scale, trainable, bounds, **chosen)
    assert equal([x * scale for x in found], scaled)  # a power of two rounds nothing


@given(n=st.integers(1, 300), exponent=st.integers(0, 12), mask=st.sampled_from(sorted(MASKS)), dtype=DTYPES)
@settings(max_examples=40, deadline=None)
def test_gradients_scale_with_one_over_the_normalizer(n, exponent, mask, dtype) -> None:
    data = tokens(n, mask, dtype)
    one, _ = loss_and_gradients(data, normalizer=3.0)
    other, _ = loss_and_gradients(data, normalizer=3.0 * 2**exponent)
    assert equal([x / 2**exponent for x in one[1:]], other[1:])
    per_token, _ = loss_and_gradients(data, normalizer=torch.full((n,), 3.0, dtype=dtype))
    for mine, theirs in zip(per_token, one, strict=True):
        torch.testing.assert_close(
            mine, theirs, rtol=20 * torch.finfo(dtype).eps, atol=1e-6 if not mine.ndim else 0
        )


@given(n=st.integers(1, 300), scale=st.sampled_from([2.0, -3.0, 0.0, 65536.0]), dtype=DTYPES)
@settings(max_examples=20, deadline=None)
def test_a_scaled_loss_has_scaled_gradients(n, scale, dtype) -> None:
    data = tokens(n, dtype=dtype)
    plain, _ = loss_and_gradients(data)
    leaves = {k: data[k].clone().requires_grad_() for k in ("logp", "values", "entropy")}
    d = data | leaves
    loss = ppo_loss(
        *(d[k] for k in NAMES), d["trainable"], logp_ref=d["logp_ref"], entropy=d["entropy"], kl_coef=0.1,
        entropy_coef=0.02, value_coef=0.7,
    ).loss  # fmt: skip
    for _ in range(2):  # the second time they are computed again
        scaled = torch.autograd.grad(loss * scale, list(leaves.values()), retain_graph=True)
        for mine, theirs in zip(scaled, plain[1:], strict=True):
            size = float((theirs * scale).abs().max())  # a sum of two slopes may cancel
            bound = 8 * torch.finfo(dtype).eps * size
            torch.testing.assert_close(mine, theirs * scale, rtol=0, atol=bound)


@given(n=st.integers(0, 400), cuts=st.lists(st.integers(0, 400), max_size=5), dtype=DTYPES)
@settings(max_examples=40, deadline=None)
def test_micro_batches_are_the_batch(n, cuts, dtype) -> None:
    data = tokens(n, "random", dtype)
    edges = [0, *sorted(min(c, n) for c in cuts), n]
    whole, sums = loss_and_gradients(data, normalizer=77.0)
    parts = [
        loss_and_gradients({k: x[a:b] for k, x in data.items()}, normalizer=77.0) for a, b in pairwise(edges)
    ]
    for i in (1, 2, 3):
        assert torch.equal(whole[i], torch.cat([part[0][i] for part in parts]))
    joined = metrics_of(join_sums(torch.stack([part[1] for part in parts])))
    for name, value in metrics_of(sums).items():
        assert float(joined[name]) == pytest.approx(float(value), rel=1e-9, abs=1e-12), name


def test_inputs_changed_before_a_second_pass_are_noticed() -> None:
    data = tokens(20)
    leaf = data["logp"].clone().requires_grad_()
    found = ppo_loss(leaf, *(data[k] for k in NAMES[1:]), data["trainable"])
    data["advantages"].mul_(2)
    with pytest.raises(RuntimeError, match="expected the inputs of the loss, got changed ones"):
        found.policy_loss.backward()

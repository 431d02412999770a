# SPDX-License-Identifier: Apache-2.0
"""The ppo family on cuda: against its definition in float64, and what neither company, order nor runs may
change."""

import pytest
import torch
from torch import Tensor

from earnest.ops import gae, group_advantage, ppo_loss, whiten
from earnest.ops.cuda import emulated
from earnest.ops.ppo import masked_moments, metrics_of
from reference import ppo as reference
from shapes import LAYOUTS, LENGTHS, MASKS, PACKS, cu_seqlens
from tolerances import PPO

DTYPES = {"float32": torch.float32, "float64": torch.float64}
DISCOUNTS = [(1.0, 1.0), (0.99, 0.95), (0.7, 0.0)]
DIFFERENTIABLE = ("logp", "values", "entropy")
SETTINGS = {
    "recipe": {},
    "asymmetric": {"clip": 0.1, "clip_high": 0.28, "clip_value": 0.5},
    "dual": {"dual_clip": 3.0},
    "no value clip": {"clip_value": None},
    "k1": {"kl_estimator": "k1"},
    "k3": {"kl_estimator": "k3"},
    "given normalizer": {"normalizer": 321.5},
}
COEFS = {"kl_coef": 0.3, "value_coef": 0.7, "entropy_coef": 0.05}


def normals(count: int, tokens: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed + tokens)
    return [torch.randn(tokens, generator=g, dtype=torch.float64).to(dtype) for _ in range(count)]


def on(device: torch.device, *xs):
    return [x.to(device) if isinstance(x, Tensor) else x for x in xs]


# ---- advantages ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("lengths", PACKS.values(), ids=PACKS)
def test_gae_equals_its_definition(device, lengths, mask, dtype: str) -> None:
    tokens = sum(lengths)
    rewards, values = normals(2, tokens, DTYPES[dtype])
    trainable, bounds = mask(tokens), cu_seqlens(lengths)
    slow = tokens > 1000  # for the O(n^2) definition: our CPU kernel in float64, which is held to it
    for gamma, lam in DISCOUNTS:
        exact = (rewards.double(), values.double(), trainable, bounds)
        with emulated(False):
            wanted = gae(*exact, gamma=gamma, lam=lam) if slow else reference.gae(*exact, gamma, lam)
        found = gae(*on(device, rewards, values, trainable, bounds), gamma=gamma, lam=lam)
        scale = max(1.0, float(wanted[1].abs().max())) if tokens else 1.0
        for mine, theirs in zip(found, wanted, strict=True):
            assert mine.dtype == DTYPES[dtype]
            assert mine.device.type == device.type
            difference = (mine.cpu().double() - theirs).abs()
            assert not tokens or float(difference.max()) <= PPO["gae"][dtype] * scale
            assert bool((mine.cpu()[~trainable] == 0).all())


def test_a_sequence_is_the_same_in_any_company(device) -> None:
    lengths = (3, 700, 0, 64, 1, 1025)
    rewards, values = on(device, *normals(2, sum(lengths), torch.float32))
    trainable, bounds = MASKS["turns"](sum(lengths)), cu_seqlens(lengths)
    together = gae(*on(device, rewards, values, trainable, bounds), gamma=0.99, lam=0.95)
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        own = [x[start:end].clone() for x in (rewards, values, trainable)]
        alone = gae(*on(device, *own, cu_seqlens((end - start,))), gamma=0.99, lam=0.95)
        assert all(torch.equal(a, b[start:end]) for a, b in zip(alone, together, strict=True))


def test_gae_writes_where_it_is_told_and_takes_any_layout(device) -> None:
    rewards, values = normals(2, 251, torch.float32)
    trainable, bounds = MASKS["random"](251), cu_seqlens((251,))
    wanted = gae(*on(device, rewards, values, trainable, bounds))
    out = torch.empty(2, 251, device=device)
    found = gae(*on(device, rewards, values, trainable, bounds), out=(out[0], out[1]))
    assert found[0].data_ptr() == out[0].data_ptr()
    assert all(torch.equal(a, b) for a, b in zip(out, wanted, strict=True))
    for layout in LAYOUTS.values():
        moved = [
            layout(x.to(device)) if device.type == "cpu" else layout(x).to(device) for x in (rewards, values)
        ]
        found = gae(*moved, *on(device, trainable, bounds))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


# ---- losses ----


def batch(tokens: int, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Ratios on both sides of every edge, both signs of advantage, values inside and outside their clip."""
    a, b, c, d, e, f, g, h, i = normals(9, tokens, torch.float64, seed)
    logp_old, values_old = a - 2, 0.5 * b
    data = {
        "logp": logp_old + 0.6 * c,
        "logp_old": logp_old,
        "advantages": d,
        "values": values_old + 0.4 * e,
        "values_old": values_old,
        "returns": 0.7 * f,
        "logp_ref": logp_old + 0.5 * g,
        "entropy": 0.3 * h + 1.5,
        "weights": i.abs(),
    }
    return {name: x.to(dtype) for name, x in data.items()} | {"trainable": MASKS["random"](tokens)}


def losses(data: dict[str, Tensor], **settings):
    positional = ("logp", "logp_old", "advantages", "values", "values_old", "returns", "trainable")
    rest = {name: x for name, x in data.items() if name not in positional}
    return ppo_loss(*(data[name] for name in positional), **rest, **settings)


def with_gradients(data: dict[str, Tensor], **settings) -> list[Tensor]:
    """The loss, the sums, and the gradients."""
    leaves = {name: data[name].clone().requires_grad_() for name in DIFFERENTIABLE}
    found = losses(data | leaves, **settings)
    return [found.loss.detach(), found.sums, *torch.autograd.grad(found.loss, list(leaves.values()))]


def moved(data: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: x.to(device) for name, x in data.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SETTINGS)
def test_losses_and_gradients_are_those_of_the_definition(device, name: str, dtype: str) -> None:
    data = batch(1237, DTYPES[dtype])
    exact = {k: x if x.dtype == torch.bool else x.double() for k, x in data.items()}
    settings = {"clip": 0.2, "clip_high": 0.2, "clip_value": 0.2, "dual_clip": None, "kl_estimator": "k2"}
    settings |= {"normalizer": float(data["trainable"].sum())} | SETTINGS[name]
    limit = PPO["loss"][dtype]

    def total(d: dict[str, Tensor]) -> Tensor:
        parts = reference.losses(**d, **settings)
        weights = {"policy": 1.0, "value": 0.7, "kl": 0.3, "entropy": 0.05}
        return sum(weight * parts[f"{part}_loss"] for part, weight in weights.items())

    leaves = {k: exact[k].clone().requires_grad_() for k in DIFFERENTIABLE}
    wanted = total(exact | leaves)
    loss, _, *gradients = with_gradients(moved(data, device), **SETTINGS[name], **COEFS)
    exact_loss = float(wanted.detach())
    assert abs(float(loss) - exact_loss) <= limit * max(abs(exact_loss), 0.1)
    for mine, theirs in zip(gradients, torch.autograd.grad(wanted, list(leaves.values())), strict=True):
        found = mine.cpu().double()
        assert float((found - theirs).abs().max()) <= limit * float(theirs.abs().max())
        assert bool((found[theirs == 0] == 0).all())


@pytest.mark.parametrize("tokens", LENGTHS.values(), ids=LENGTHS)
def test_sums_and_metrics_are_the_cpus(device, tokens: int) -> None:
    data = batch(tokens, torch.float32)
    with emulated(False):
        wanted = with_gradients(data, **COEFS)
        metrics = metrics_of(wanted[1])
    found = with_gradients(moved(data, device), **COEFS)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=2e-5, atol=2e-6)
    for name, value in metrics_of(found[1]).items():
        torch.testing.assert_close(value, metrics[name], rtol=2e-5, atol=2e-6)


def test_each_loss_carries_its_own_gradient(device) -> None:
    data = batch(300, torch.float64)
    for part, leaf in (("policy_loss", "logp"), ("value_loss", "values"), ("kl_loss", "logp")):
        x = data[leaf].to(device).clone().requires_grad_()
        (mine,) = torch.autograd.grad(3 * getattr(losses(moved(data, device) | {leaf: x}), part), x)
        y = data[leaf].clone().requires_grad_()
        with emulated(False):
            (theirs,) = torch.autograd.grad(3 * getattr(losses(data | {leaf: y}), part), y)
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-9, atol=1e-12)


# ---- whitening and groups ----


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("tokens", [1, 13, 4097, 9001])
def test_whitening_is_that_of_the_definition(device, tokens: int, mask) -> None:
    (x,) = normals(1, tokens, torch.float32)
    x, trainable = 5 * x + 3, mask(tokens)
    mine = whiten(*on(device, x, trainable)).cpu()
    with emulated(False):
        theirs = whiten(x.double(), trainable)
        moments = masked_moments(x, trainable)
    torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)
    assert bool((mine[~trainable] == 0).all())
    torch.testing.assert_close(
        masked_moments(*on(device, x, trainable)).cpu(), moments, rtol=1e-12, atol=1e-9
    )


@pytest.mark.parametrize("normalize_std", [False, True], ids=["centred", "scaled"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("samples", [1, 13, 512, 4099])
def test_groups_are_the_cpus(device, samples: int, baseline: str, normalize_std: bool) -> None:
    (scores,) = normals(1, samples, torch.float64)
    g = torch.Generator().manual_seed(samples)
    groups = torch.randint(-3, max(samples // 8, 1), (samples,), generator=g) * 1_000_003
    valid = torch.rand(samples, generator=g) < 0.9
    settings = {"baseline": baseline, "normalize_std": normalize_std}
    with emulated(False):
        theirs = group_advantage(scores, groups, valid=valid, **settings)
    mine = group_advantage(*on(device, scores, groups), valid=valid.to(device), **settings)
    torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-12, atol=1e-12)


# ---- what is refused, and what no run may change ----


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 700, 5000])
def test_a_wrong_entry_is_named_as_on_the_cpu(device, value: float, place: int) -> None:
    lengths = (600, 4000, 401)
    rewards, values = normals(2, sum(lengths), torch.float32)
    trainable, bounds = torch.ones(sum(lengths), dtype=torch.bool), cu_seqlens(lengths)
    values[place] = values[-1] = value
    calls = [lambda to: gae(*on(to, rewards, values, trainable, bounds))]
    data = batch(5001, torch.float32) | {"trainable": trainable, "returns": values}
    calls += [lambda to: losses(moved(data, to)), lambda to: whiten(*on(to, values, trainable))]
    for call in calls:
        with pytest.raises(ValueError, match=rf"at (token|position) {place}$") as found:
            call(device)
        with emulated(False), pytest.raises(ValueError, match=r"^\[") as wanted:
            call(torch.device("cpu"))
        assert str(found.value) == str(wanted.value)
    masked = trainable.clone()
    masked[place] = masked[-1] = False
    assert bool(torch.isfinite(gae(*on(device, rewards, values, masked, bounds))[0]).all())


def test_scores_and_bounds_that_do_not_fit_are_named(device) -> None:
    scores, groups = torch.tensor([0.0, float("nan"), 1.0]), torch.tensor([5, 5, 5])
    rewards, values = normals(2, 9, torch.float32)
    trainable = torch.ones(9, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"\[group_advantage\] scores: expected finite"):
        group_advantage(*on(device, scores, groups))
    for bounds in ([0, 5, 3, 9], [1, 9], [0, 8]):
        with pytest.raises(ValueError, match=r"\[gae\] cu_seqlens: expected .*, got "):
            gae(*on(device, rewards, values, trainable, torch.tensor(bounds, dtype=torch.int32)))
    lost = MASKS["first alone"](9)
    with pytest.raises(ValueError, match=r"\[gae\] rewards: expected 0 at tokens that are not trainable"):
        gae(*on(device, rewards, values, lost, cu_seqlens((9,))), masked_rewards="refuse")


def test_two_runs_give_the_same_bits(device) -> None:
    data = moved(batch(9001, torch.float32), device)
    bounds = cu_seqlens((1, 9000)).to(device)

    def everything() -> list[Tensor]:
        advantages = gae(data["advantages"], data["values"], data["trainable"], bounds, gamma=0.99, lam=0.95)
        white = whiten(advantages[0], data["trainable"])
        return [*with_gradients(data, **COEFS), *advantages, white]

    assert all(torch.equal(a, b) for a, b in zip(everything(), everything(), strict=True))

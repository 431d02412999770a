# SPDX-License-Identifier: Apache-2.0
"""The PPO losses: against autograd (T1), their conventions at ties, what masks, threads and splits may not
change."""

import math

import numpy as np
import pytest
import torch

from earnest import _native
from earnest.errors import InvalidInput
from earnest.ops import num_threads, ppo_loss, set_num_threads
from earnest.ops.ppo import join_sums, metrics_of
from reference import ppo as reference
from tiers import usable_tiers
from tolerances import PPO

LOSSES = ("policy_loss", "value_loss", "kl_loss", "entropy_loss")
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


@pytest.fixture(params=usable_tiers("ppo"))
def tier(request):
    _native.force_cpu_tier(request.param)
    yield request.param
    _native.force_cpu_tier("")


def batch(tokens: int = 1237, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, torch.Tensor]:
    """Ratios on both sides of every edge, both signs of advantage, values inside and outside their clip."""
    g = torch.Generator().manual_seed(seed)

    def normal(scale: float, shift: float = 0.0) -> torch.Tensor:
        return torch.randn(tokens, generator=g, dtype=torch.float64) * scale + shift

    logp_old, values_old = normal(1.0, -2.0), normal(0.5)
    data = {
        "logp": logp_old + normal(0.6),
        "logp_old": logp_old,
        "advantages": normal(1.0),
        "values": values_old + normal(0.4),
        "values_old": values_old,
        "returns": normal(0.7),
        "logp_ref": logp_old + normal(0.5),
        "entropy": normal(0.3, 1.5),
        "weights": torch.rand(tokens, generator=g, dtype=torch.float64) * 2,
    }
    data = {name: x.to(dtype) for name, x in data.items()}
    return data | {"trainable": torch.rand(tokens, generator=g) > 0.35}


def call(data: dict[str, torch.Tensor], **settings):
    positional = ("logp", "logp_old", "advantages", "values", "values_old", "returns", "trainable")
    rest = {name: x for name, x in data.items() if name not in positional}
    return ppo_loss(*(data[name] for name in positional), **rest, **settings)


def gradients(data: dict[str, torch.Tensor], run) -> list[torch.Tensor]:
    leaves = {name: data[name].clone().requires_grad_() for name in DIFFERENTIABLE}
    return list(torch.autograd.grad(run(data | leaves), list(leaves.values())))


def assert_close(found: torch.Tensor, expected: torch.Tensor, relative: float) -> None:
    """Relative to the largest entry, as sums are; an exact 0 must be met exactly."""
    found, expected = found.double(), expected.double()
    assert float((found - expected).abs().max()) <= relative * max(float(expected.abs().max()), 1e-300)
    assert bool((found[expected == 0] == 0).all())


# ---- T1: kernel losses and gradients against autograd ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("name", SETTINGS)
def test_losses_and_gradients_equal_autograd(name: str, dtype: torch.dtype, tier: str) -> None:
    data = batch(dtype=dtype)
    exact = {k: x if x.dtype == torch.bool else x.double() for k, x in data.items()}
    chosen = SETTINGS[name]
    settings = {
        "clip": 0.2,
        "clip_high": 0.2,
        "clip_value": 0.2,
        "dual_clip": None,
        "kl_estimator": "k2",
    } | chosen
    settings.setdefault("normalizer", float(data["trainable"].sum()))
    relative = PPO["loss"][str(dtype).removeprefix("torch.")]

    def expected(d):
        return reference.losses(**d, **settings)

    parts = expected(exact)
    found = call(data, **chosen)
    for loss in LOSSES:
        scale = max(
            abs(float(parts[loss])), 0.1
        )  # sums of both signs: what cancels is not an error of the kernel
        assert abs(float(getattr(found, loss)) - float(parts[loss])) <= relative * scale
    coefs = {"kl_coef": 0.3, "value_coef": 0.7, "entropy_coef": 0.05}

    def expected_total(d):
        p = expected(d)
        return p["policy_loss"] + 0.7 * p["value_loss"] + 0.3 * p["kl_loss"] + 0.05 * p["entropy_loss"]

    ours = gradients(data, lambda d: call(d, **chosen, **coefs).loss)
    theirs = gradients(exact, expected_total)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert_close(mine, wanted, relative)


def test_each_loss_carries_its_own_gradient() -> None:
    data = batch(64)
    for loss, touched in zip(LOSSES, (("logp",), ("values",), ("logp",), ("entropy",)), strict=True):
        found = gradients(data, lambda d, loss=loss: getattr(call(d), loss))
        assert [n for n, g in zip(DIFFERENTIABLE, found, strict=True) if g.abs().sum() > 0] == list(touched)


def test_losses_may_be_mixed_and_changed_in_place() -> None:
    data = batch(40)
    alone = [gradients(data, lambda d, x=x: getattr(call(d), x))[0] for x in ("policy_loss", "kl_loss")]

    def mixed(d):
        found = call(d, kl_coef=0.25)
        loss = found.loss
        loss *= 2
        with torch.no_grad():
            part = found.kl_loss  # its gradient does not depend on where it is first looked at
        return loss - part

    assert_close(gradients(data, mixed)[0], 2 * alone[0] + (0.5 - 1) * alone[1], 1e-12)
    with torch.no_grad():
        assert not call(data | {"logp": data["logp"].clone().requires_grad_()}).kl_loss.requires_grad


def test_gradients_of_a_large_batch_share_nothing_but_memory() -> None:
    """They come from one block: each must be its own numbers and count its own changes."""
    data = batch(300_001, torch.float32)
    found = gradients(data, lambda d: call(d, value_coef=0.7, entropy_coef=0.1).loss)
    parts = [{name: x[i : i + 100_001] for name, x in data.items()} for i in range(0, 300_001, 100_001)]
    count = float(data["trainable"].sum())
    small = [
        gradients(p, lambda d: call(d, value_coef=0.7, entropy_coef=0.1, normalizer=count).loss)
        for p in parts
    ]
    kept, version = found[1].clone(), found[1]._version
    found[0].zero_()
    assert found[1]._version == version
    assert torch.equal(found[1], kept)
    for i in (1, 2):
        assert torch.equal(found[i], torch.cat([p[i] for p in small]))


def test_a_normalizer_per_token_divides_every_term() -> None:
    data = batch(200)
    per_token = torch.rand(200, dtype=torch.float64) * 9 + 1
    wanted = reference.losses(
        **data,
        clip=0.2,
        clip_high=0.2,
        clip_value=0.2,
        dual_clip=None,
        kl_estimator="k2",
        normalizer=per_token,
    )
    found = call(data, normalizer=per_token)
    for loss in LOSSES:
        assert float(getattr(found, loss)) == pytest.approx(float(wanted[loss]), rel=1e-12)


def test_metrics_equal_their_definitions(tier: str) -> None:
    data = batch()
    data["logp"][5], data["trainable"][5] = data["logp_old"][5] + 21, True
    settings = {"clip": 0.1, "clip_high": 0.28, "clip_value": 0.3, "dual_clip": 3.0}
    found, wanted = call(data, **settings).metrics, reference.metrics(**data, **settings)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-10, abs=1e-12), name
        assert found[name].ndim == 0
        assert not found[name].requires_grad


def test_gradcheck_and_operator_contract() -> None:
    data = batch(24)
    leaves = [data[name].clone().requires_grad_() for name in DIFFERENTIABLE]

    def total(*xs):
        return call(
            data | dict(zip(DIFFERENTIABLE, xs, strict=True)), dual_clip=3.0, kl_coef=0.1, entropy_coef=0.2
        ).loss

    assert torch.autograd.gradcheck(total, leaves, eps=1e-7, atol=1e-6)
    names = (
        "logp",
        "logp_old",
        "advantages",
        "values",
        "values_old",
        "returns",
        "logp_ref",
        "entropy",
        "weights",
    )
    arguments = [
        leaf for name in names for leaf in [data[name].clone().requires_grad_(name in DIFFERENTIABLE)]
    ]
    torch.library.opcheck(
        torch.ops.earnest.ppo_loss,
        (*arguments, None, data["trainable"], 0.0, 0.2, 0.2, 0.2, None, "k2", 1.0, 0.5, 0.1, 0.0),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_compiles_into_one_graph() -> None:
    data = batch(50)

    def total(logp):
        return call(data | {"logp": logp}).loss

    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    leaf = data["logp"].clone().requires_grad_()
    (mine,) = torch.autograd.grad(compiled(leaf), leaf)
    assert torch.equal(mine, gradients(data, lambda d: call(d).loss)[0])


# ---- conventions at edges ----


def one_token(log_ratio: float = 0.0, advantage: float = 1.0, **settings) -> tuple[float, float, dict]:
    """(policy loss, its gradient with respect to logp, metrics) of a single token."""
    logp = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    found = ppo_loss(
        logp,
        zero,
        torch.tensor([advantage], dtype=torch.float64),
        None,
        None,
        None,
        torch.tensor([True]),
        **settings,
    )
    (gradient,) = torch.autograd.grad(found.loss, logp)
    return float(found.policy_loss.detach()), float(gradient), found.metrics


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_at_exactly_a_clip_edge_the_gradient_flows(advantage: float, tier: str) -> None:
    # clip 0 puts both edges at 1, which the ratio of equal log-probabilities meets exactly
    loss, gradient, metrics = one_token(0.0, advantage, clip=0.0)
    assert loss == gradient == -advantage
    assert float(metrics["clip_fraction"]) == 0


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "flows", "clipped"),
    [
        (0.5, 1, False, "high"),
        (-0.5, 1, True, None),
        (0.5, -1, True, None),
        (-0.5, -1, False, "low"),
        (0.1, 1, True, None),
    ],
)
def test_the_gradient_is_cut_only_where_moving_on_would_gain(log_ratio, advantage, flows, clipped) -> None:
    _, gradient, metrics = one_token(log_ratio, advantage)
    assert gradient == pytest.approx(-math.exp(log_ratio) * advantage if flows else 0.0, rel=1e-15)
    for side in ("low", "high"):
        assert float(metrics[f"clip_fraction_{side}"]) == (clipped == side)


@pytest.mark.parametrize(("log_ratio", "bound"), [(math.log(2.9), False), (math.log(3.1), True)])
def test_dual_clip_bounds_bad_tokens_alone(log_ratio: float, bound: bool) -> None:
    loss, gradient, metrics = one_token(log_ratio, -2.0, dual_clip=3.0)
    assert loss == pytest.approx(6.0 if bound else 5.8, rel=1e-12)
    assert (gradient == 0) == bound
    assert float(metrics["dual_clip_fraction"]) == bound
    assert one_token(log_ratio, 2.0, dual_clip=3.0)[0] == pytest.approx(-2.4)


@pytest.mark.parametrize(("log_ratio", "flows"), [(20.0, True), (20.5, False), (800.0, False)])
def test_log_ratio_is_clamped_at_20(log_ratio: float, flows: bool, tier: str) -> None:
    loss, gradient, metrics = one_token(log_ratio, -1.0)
    assert loss == pytest.approx(math.exp(20), rel=1e-14)
    assert (gradient != 0) == flows
    assert float(metrics["log_ratio_clamped_fraction"]) == (not flows)
    assert one_token(-log_ratio, 1.0)[0] == pytest.approx(-math.exp(-20), rel=1e-14)


@pytest.mark.parametrize(("value", "flows"), [(0.25, False), (0.2, True), (-0.3, True), (0.1, True)])
def test_value_gradient_is_cut_where_the_clipped_error_is_larger(value: float, flows: bool) -> None:
    x = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    found = ppo_loss(zero, zero, zero, x, zero, one, torch.tensor([True]))
    (gradient,) = torch.autograd.grad(found.value_loss, x)
    assert float(gradient) == (value - 1 if flows else 0)
    assert float(found.metrics["value_clip_fraction"]) == (not flows)


def test_small_kl_is_not_lost_to_cancellation(tier: str) -> None:
    k1 = torch.tensor([1e-7, -1e-7, 3e-5], dtype=torch.float64)
    found = ppo_loss(
        k1, k1 * 0, k1 * 0, None, None, None, k1 > -1, logp_ref=k1 * 0, kl_estimator="k3", normalizer=1
    )
    series = k1**2 / 2 - k1**3 / 6 + k1**4 / 24
    assert float(found.kl_loss) == pytest.approx(float(series.sum()), rel=1e-12)
    assert float(found.metrics["approx_kl"]) == pytest.approx(float((k1**2 / 2 + k1**3 / 6).mean()), rel=1e-9)


def test_the_first_step_is_reinforce() -> None:
    """T8: same policy, same numbers: ratio 1, nothing clipped, no KL, and the gradient of REINFORCE."""
    data = batch(dtype=torch.float32)
    data["logp_old"] = data["logp"].clone()
    del data["weights"]
    found = call(data)
    for name, value in {"ratio_max": 1, "ratio_min": 1, "clip_fraction": 0, "approx_kl": 0}.items():
        assert float(found.metrics[name]) == value
    gradient = gradients(data, lambda d: call(d).policy_loss)[0]
    count = data["trainable"].sum()
    wanted = torch.where(data["trainable"], -data["advantages"].double() / count, 0.0)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1.2e-7, atol=0)  # two roundings


def test_explained_variance_of_equal_returns_is_zero() -> None:
    x = torch.full((1000,), 0.8, dtype=torch.float64)
    found = ppo_loss(x, x, x, x * 0, x * 0, x, x > 0)
    assert float(found.metrics["explained_variance"]) == 0


# ---- what may not change a result ----


def test_what_masked_entries_hold_never_matters(tier: str) -> None:
    data = batch()
    spoilt = {
        name: x
        if name == "trainable"
        else torch.where(data["trainable"], x, torch.tensor(bad, dtype=x.dtype))
        for (name, x), bad in zip(data.items(), [math.nan, math.inf, -math.inf, 1e300] * 3, strict=False)
    }
    assert torch.equal(call(data).loss, call(spoilt).loss)
    assert torch.equal(call(data).sums, call(spoilt).sums)

    def run(d):
        return call(d, kl_coef=1.0, entropy_coef=1.0).loss

    for clean, other in zip(gradients(data, run), gradients(spoilt, run), strict=True):
        assert torch.equal(clean, other)
        assert bool((other[~data["trainable"]] == 0).all())


@pytest.mark.parametrize("name", [n for n in batch(1) if n != "trainable"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_entry_that_is_not_finite_at_a_trainable_token_is_named(name: str, bad: float) -> None:
    data = batch(9000)
    token = int(data["trainable"].nonzero()[-1])
    data[name][token] = bad
    with pytest.raises(
        ValueError, match=rf"\[ppo_loss\] {name}: expected finite numbers .* at token {token}$"
    ):
        call(data)


def test_results_do_not_depend_on_the_number_of_threads(tier: str) -> None:
    data, before = batch(100_000, torch.float32), num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            set_num_threads(threads)
            results.append([call(data).sums, *gradients(data, lambda d: call(d).loss)])
    finally:
        set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_parts_of_a_batch_add_up_to_the_batch() -> None:
    """T5: uneven micro-batches under one normaliser; gradients bit for bit, sums to rounding."""
    data = batch(5000, torch.float32)
    count = float(data["trainable"].sum())
    whole = call(data, normalizer=count)
    whole_gradients = gradients(data, lambda d: call(d, normalizer=count).loss)
    parts, part_gradients = [], []
    for begin, end in [(0, 1), (1, 14), (14, 4100), (4100, 5000)]:
        part = {name: x[begin:end] for name, x in data.items()}
        parts.append(call(part, normalizer=count))
        part_gradients.append(gradients(part, lambda d: call(d, normalizer=count).loss))
    for all_at_once, pieces in zip(whole_gradients, zip(*part_gradients, strict=True), strict=True):
        assert torch.equal(all_at_once, torch.cat(pieces))
    assert float(sum(part.loss for part in parts)) == pytest.approx(float(whole.loss), rel=1e-6)
    joined = metrics_of(join_sums(torch.stack([part.sums for part in parts])))
    for name, value in whole.metrics.items():
        assert float(joined[name]) == pytest.approx(float(value), rel=1e-11, abs=1e-13), name


def test_metrics_are_a_mapping_whose_scalars_are_made_on_demand() -> None:
    metrics = call(batch(40)).metrics
    together = dict(metrics.items())
    assert list(metrics) == list(together)
    assert len(metrics) == len(together) > 10
    for name, value in together.items():
        assert metrics[name].shape == ()
        assert not metrics[name].requires_grad
        assert torch.equal(metrics[name], value)
    assert [float(x) for x in metrics.values()] == [float(x) for x in together.values()]
    assert "tokens" in metrics
    assert "tokens" in repr(metrics)
    with pytest.raises(KeyError):
        metrics["no such metric"]


@pytest.mark.parametrize("tokens", [0, 3])
def test_no_trainable_token_gives_zero(tokens: int) -> None:
    data = batch(tokens) | {"trainable": torch.zeros(tokens, dtype=torch.bool)}
    found = call(data)
    assert float(found.loss) == 0
    assert all(float(value) == 0 for value in found.metrics.values())
    assert all(bool((g == 0).all()) for g in gradients(data, lambda d: call(d, entropy_coef=1.0).loss))


def test_numpy_in_numpy_out() -> None:
    data = batch(dtype=torch.float32)
    found = call({name: x.numpy() for name, x in data.items()}, kl_coef=0.1)
    wanted = call(data, kl_coef=0.1)
    assert found.loss.dtype == np.float32
    assert float(found.loss) == pytest.approx(float(wanted.loss), rel=1e-6)
    np.testing.assert_array_equal(found.sums, wanted.sums.numpy())
    assert {k: float(v) for k, v in found.metrics.items()} == {k: float(v) for k, v in wanted.metrics.items()}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"logp_old": torch.zeros(9, dtype=torch.float64)},
            r"logp_old: expected shape \[10\], got shape \[9\]",
        ),
        ({"advantages": torch.zeros(10)}, "advantages: expected float64, got float32"),
        ({"trainable": torch.ones(10)}, "trainable: expected bool, got float32"),
        ({"returns": np.zeros(10)}, "returns: expected a torch tensor like the others, got ndarray"),
        ({"logp": torch.zeros(2, 5)}, r"logp: expected one dimension, got shape \[2, 5\]"),
        ({"logp": torch.zeros(10, dtype=torch.float16)}, "logp: expected float32 or float64, got float16"),
        ({"logp": [0.0] * 10}, "logp: expected a torch tensor or a numpy array, got list"),
        ({"returns": None}, "returns: expected an array beside values, got None"),
        ({"values_old": None}, "values_old: expected an array beside clip_value, got None"),
        ({"normalizer": 0.0}, "normalizer: expected a number above 0, got 0.0"),
        ({"clip": 1.0}, r"clip: expected a number in \[0, 1\), got 1.0"),
        ({"clip_high": -0.1}, "clip_high: expected a number of at least 0"),
        ({"clip_value": 0.0}, "clip_value: expected a number above 0"),
        ({"dual_clip": 1.0}, "dual_clip: expected a number above 1"),
        ({"kl_estimator": "k4"}, "kl_estimator: expected k1, k2 or k3, got 'k4'"),
    ],
)
def test_bad_arguments_are_named(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^\[ppo_loss\] " + sentence):
        call(batch(10) | change)


def test_shape_errors_are_invalid_input() -> None:
    with pytest.raises(InvalidInput):
        call(batch(10) | {"logp_old": torch.zeros(3)})

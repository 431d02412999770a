# SPDX-License-Identifier: Apache-2.0
"""A tiny real run of each family, the cases of the targets, and the references against those of the tests."""

import json

import bench_cases
import numpy as np
import pytest
import torch
from bench_cases import FakeLimits, settings

from earnest import cli, ops
from earnest.bench import attention, command, decode, linear, logmel, logprob, pitch, ppo, rowwise, scans
from earnest.bench.case import OURS, Target
from earnest.bench.harness import measure
from earnest.bench.limits import Limits
from reference import attention as attention_reference
from reference import logmel as logmel_reference
from reference import logprob as logprob_reference
from reference import ppo as ppo_reference

TINY = {
    "linear": linear.case(7, 16, 24, "float32", Target()),
    "attention": attention.case("tiny", attention.Shape((5, 3), 4, 2, 8), "float32", Target()),
    "attention with gradients": attention.case(
        "tiny", attention.Shape((9,), 4, 2, 8), "float32", Target(), gradients=True
    ),
    "encoder": attention.case("tiny", attention.Shape((6,), 2, 2, 8, causal=False), "bfloat16", Target()),
    "decode": decode.case(2, 11, 4, 2, 8, "float32", Target(), quick=False),
    "logprob": logprob.case(9, 16, 50, "float32", gradients=False),
    "logprob with gradients": logprob.case(9, 16, 50, "float32", gradients=True),
    "gae": ppo.case("gae", 3, 40, 1),
    "losses": ppo.case("losses", 3, 40, 1),
    "logmel": logmel.whole(1, 80),
    "stream": logmel.stream(10, 80),
    "pitch": pitch.case(2),
    "pitch stream": pitch.stream(10),
} | {
    f"{operation} {dtype}": rowwise.case(operation, rowwise.Layer(5, 3, 2, 8, 7), dtype, gradients=True)
    for operation, dtype in zip(rowwise.OPERATIONS, ("float32", "bfloat16", "float32"), strict=True)
}


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_real_run(name: str):
    record = measure(TINY[name], settings(quick=True), FakeLimits())
    assert record["wrong"] == {}
    ours = [r for r in record["results"] if r["role"] == OURS]
    if name == "linear" and not hasattr(ops, "linear"):
        assert record["absent"]["earnest"] == "earnest.ops.linear: this version has none"
        assert not ours
    else:
        assert ours[0]["median"] > 0
        assert ours[0]["error"] is not None
    if "pitch" not in name:  # whose peers are all of the extra
        assert record["best_peer"]


@pytest.mark.parametrize(
    "name", [name for name in TINY if name not in ("linear", "stream", "pitch", "pitch stream")]
)
def test_a_kernel_that_is_off_is_refused(name: str, monkeypatch: pytest.MonkeyPatch):
    case = TINY[name]
    problem = case.problem(np.random.default_rng(0))
    ours = next(i for i in problem.implementations if i.role == OURS)

    def spoiled(result):
        outputs = list(ours.outputs(result))
        outputs[-1] = torch.as_tensor(outputs[-1]) * 1.3
        return outputs

    bad = type(ours)(**{**vars(ours), "outputs": spoiled})
    others = [i for i in problem.implementations if i is not ours]
    problem = type(problem)(**{**vars(problem), "implementations": [bad, *others]})
    record = measure(
        type(case)(**{**vars(case), "problem": lambda rng: problem}), settings(quick=True), FakeLimits()
    )
    assert "off by" in record["wrong"]["earnest"]
    assert record["results"] == []


def test_a_pitch_an_octave_off_is_refused():
    samples, f0 = pitch.voice(np.random.default_rng(1), 3)
    assert samples.dtype == np.float32
    assert pitch.share_off([f0], [f0]) == 0
    assert pitch.share_off([f0 * 2], [f0]) == 1
    assert pitch.share_off([f0 * 1.02], [f0]) == 0
    assert pitch.share_off([np.zeros_like(f0)], [f0]) == 1


@pytest.mark.parametrize("milliseconds", [10, 80])
def test_a_stream_of_pitch_is_checked_with_all_of_its_frames(milliseconds: int):
    case = pitch.stream(milliseconds)
    problem = case.problem(np.random.default_rng(2))
    ours = next(i for i in problem.implementations if i.role == OURS)
    found, (truth,) = ours.checked(*problem.inputs[0]), problem.reference(*problem.inputs[0])
    assert found.shape == truth.shape == (300,)
    assert problem.error([found], [truth]) <= problem.tolerance
    chunks = [chunk for chunk, *_ in problem.inputs]
    assert {len(chunk) for chunk in chunks} == {16 * milliseconds}
    assert all(np.array_equal(piece[-len(chunk) :], chunk) for chunk, piece, _ in problem.inputs)
    assert problem.operations > 0


def test_every_case_of_the_targets_is_there_once():
    cases = command.all_cases()
    names = [case.name for case in cases]
    assert len(names) == len(set(names))
    assert {case.family for case in cases} == set(command.FAMILIES)
    targets = {case.name: case.target for case in cases}
    assert targets["logmel/30s-128-bins"].ratio == 2.2
    for heads in ("14/2x64", "28/4x128"):
        for dtype in ("bf16", "fp32"):
            for tokens in (512, 2048):
                assert targets[f"attention/causal-{tokens}-{heads}-{dtype}-forward"].ratio == 1.25
            wanted = 2.5 if dtype == "bf16" else 2.2
            assert targets[f"attention/causal-2048-{heads}-{dtype}-forward+backward"].ratio == wanted
            for keys in ("1k", "8k", "32k"):
                assert targets[f"attention/decode-{keys}-{heads}-{dtype}"] == Target(ratio=2.0, fraction=0.8)
    for dtype in ("bf16", "fp32"):
        for size in ("512x2048x2048", "2048x576x1536"):
            assert targets[f"linear/{size}-{dtype}"].ratio == 1.0
        for rows in (1, 8):
            assert targets[f"linear/{rows}x2048x8192-{dtype}"] == Target(ratio=1.1, fraction=0.85)
        for size in ("2048x576x32000", "1024x2048x151936"):
            for ending in ("forward", "forward+backward"):
                assert targets[f"logprob/{size}-{dtype}-{ending}"].extra_bytes == 64 << 20
    assert {"ppo/gae-16x1024", "ppo/gae-512x2048", "ppo/losses-16x1024", "ppo/losses-512x2048"} <= set(names)
    assert {targets[f"learning/step-5m-32x64-{dtype}"].ratio for dtype in ("fp32", "bf16")} == {4.0}
    # a step of learning and the engine's cases take seconds, and their peers are all of the extra
    assert {case.family for case in cases if case.quick} == set(command.FAMILIES) - {"learning", "engine"}


def test_words_choose_cases():
    assert {c.family for c in command.chosen(["linear", "ppo"], quick=False)} == {"linear", "ppo"}
    assert [c.name for c in command.chosen(["ppo/gae-16"], quick=False)] == ["ppo/gae-16x1024"]
    assert len(command.chosen(["logprob/2048x576x32000-fp32-forward"], quick=False)) == 1  # not +backward
    assert all(c.quick for c in command.chosen([], quick=True))
    assert [c.name for c in command.chosen(["decode-32k-14/2x64-bf16"], quick=True)] == [
        "attention/decode-32k-14/2x64-bf16"
    ]


def test_the_command_prints_lines_of_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(command, "all_cases", lambda device: [bench_cases.case()])
    monkeypatch.setattr(command, "FAMILIES", ("toy",))
    assert cli.main(["bench", "--quick", "--json"]) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert record["case"] == "toy/doubling"
    assert record["quick"] is True
    assert "toy/doubling" in captured.err


def test_a_wrong_result_ends_the_command_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(command, "all_cases", lambda device: [bench_cases.case(ours=lambda x: x)])
    assert cli.main(["bench", "toy", "--quick"]) == 1
    assert "WRONG earnest is off by" in capsys.readouterr().out


# ---- the references are those of the tests ----


def test_attention_reference():
    torch.manual_seed(0)
    shape = attention.Shape((7, 1, 4), 4, 2, 8)
    q, k, v, grad = (torch.randn(12, h, 8, dtype=torch.float64) for h in (4, 2, 2, 4))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    bounds = [0, 7, 8, 12]
    out, _ = attention_reference.attention(*leaves, causal=True, cu_seqlens_q=bounds, cu_seqlens_k=bounds)
    expected = [out, *torch.autograd.grad(out, leaves, grad)]
    found = attention.reference(q, k, v, grad, shape=shape, gradients=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    one = q[:1, None], torch.stack([k[:5]]), torch.stack([v[:5]])
    expected, _ = attention_reference.attention(
        q[:1], k[:5], v[:5], causal=True, cu_seqlens_q=[0, 1], cu_seqlens_k=[0, 5]
    )
    torch.testing.assert_close(decode.reference(*one)[0], expected, rtol=0, atol=1e-12)


def test_logmel_reference():
    pcm = np.random.default_rng(0).uniform(-0.5, 0.5, 3333).astype(np.float32)
    for n_mels in (80, 128):
        np.testing.assert_allclose(logmel.raw(pcm, n_mels), logmel_reference.raw(pcm, n_mels), atol=1e-9)
        raw = logmel_reference.raw(pcm, n_mels)
        np.testing.assert_array_equal(logmel.normalize(raw), logmel_reference.normalize(raw))
    for n_mels, taps in logmel.FILTER_TAPS.items():
        assert np.count_nonzero(logmel.filters(n_mels) > 1e-12) == taps


def test_logprob_reference():
    rng = np.random.default_rng(0)
    hidden, weight = torch.randn(6, 5), torch.randn(11, 5)
    targets, g, e = torch.randint(0, 11, (6,)), torch.randn(6), torch.randn(6)
    check = logprob.Check(rng, 6, 11, gradients=True)
    expected = [*logprob_reference.logprob(hidden, weight, targets)]
    expected += logprob_reference.gradients(hidden, weight, targets, g, e)
    for a, b in zip(check.reference(hidden, weight, targets, g, e), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_gae_reference_and_scans():
    rng = np.random.default_rng(0)
    r, v = (rng.standard_normal((3, 60), dtype=np.float32) for _ in range(2))
    m = ppo.turns(rng, 3, 60)
    assert 0 < m.mean() < 1
    packed = [torch.from_numpy(x.reshape(-1)) for x in (r, v, m)]
    bounds = torch.arange(0, 181, 60)
    expected = ppo_reference.gae(packed[0].double(), packed[1].double(), packed[2], bounds, 0.99, 0.95)
    found = scans.reference((r.T, v.T, m.T), 0.99, 0.95)
    loop = scans.torch_loop(0.99, 0.95)(r, v, m)
    for a, b, c in zip(found, expected, loop, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-12)
        np.testing.assert_allclose(c.reshape(-1).numpy(), b.numpy(), atol=1e-5)


def test_loss_reference():
    problem = ppo.case("losses", 2, 50, 1).problem(np.random.default_rng(0))
    arrays = [x.detach().double() if x.is_floating_point() else x for x in problem.inputs[0]]
    logp, logp_old, advantages, values, values_old, returns, entropy, mask = arrays
    parts = ppo_reference.losses(
        logp, logp_old, advantages, values, values_old, returns, mask, clip=ppo.CLIP, clip_high=ppo.CLIP,
        clip_value=ppo.CLIP_VALUE, dual_clip=None, logp_ref=None, kl_estimator="k2", entropy=entropy,
        normalizer=float(mask.sum()), weights=None,
    )  # fmt: skip
    expected = (
        parts["policy_loss"] + ppo.VALUE_COEF * parts["value_loss"] + ppo.ENTROPY_COEF * parts["entropy_loss"]
    )
    torch.testing.assert_close(ppo._reference(*problem.inputs[0])[0].detach(), expected, rtol=1e-12, atol=0)


def test_limits_are_rates_of_this_machine():
    limits = Limits(seconds=0.01, most_bytes=8 << 20)
    assert 1e8 < limits.read_rate(1 << 18, 1) < 1e13
    rates = limits.arithmetic("float32", 1)
    assert set(rates) == {"loop", "product"}
    assert 1e8 < rates["loop"] < 1e13
    assert set(limits.table(1)) == {"read L2", "read L3", "read memory", "copy memory"}

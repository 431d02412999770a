# SPDX-License-Identifier: Apache-2.0
"""The GPU's cases in small on the CPU, where all but their clock is the same."""

import os

import bench_cases
import numpy as np
import pytest
import torch
from bench_cases import FakeLimits, settings

from earnest import cli
from earnest.bench import (
    command,
    gpu_attention,
    gpu_attention_backward,
    gpu_compile,
    gpu_decode,
    gpu_linear,
    gpu_logmel,
    gpu_logprob,
    gpu_ppo,
    gpu_write,
)
from earnest.bench.case import OURS, Implementation, Target
from earnest.bench.gpu_attention_shape import Shape
from earnest.bench.harness import measure

SMALL = {
    "gae": gpu_ppo.case("gae", 4096, 256, "cpu"),
    "losses": gpu_ppo.case("losses", 4096, 256, "cpu"),
    "whiten": gpu_ppo.case("whiten", 4096, 256, "cpu"),
    "groups": gpu_ppo.case("groups", 4096, 256, "cpu"),
    "groups, deviation": gpu_ppo.case("groups-deviation", 4096, 256, "cpu"),
    "groups, leave-one-out": gpu_ppo.case("groups-leave-one-out", 4096, 256, "cpu"),
    "logprob": gpu_logprob.case(9, 16, 50, gradients=False, device="cpu"),
    "logprob with gradients": gpu_logprob.case(9, 16, 50, gradients=True, device="cpu"),
    "attention": gpu_attention.case(Shape((70, 70), 4, 4, 64), device="cpu"),
    "attention, ragged": gpu_attention.case(Shape((9, 70), 4, 2, 64), device="cpu"),
    "attention, ragged, full": gpu_attention.case(Shape((9, 70), 4, 2, 64, causal=False), device="cpu"),
    "chunks": gpu_attention.case(Shape((9, 9), 4, 2, 64, prefixes=(70, 70)), device="cpu"),
    "chunks, ragged": gpu_attention.case(Shape((9, 3, 5), 4, 2, 64, prefixes=(0, 70, 2)), device="cpu"),
    "linear": gpu_linear.case(9, 40, 24, "bfloat16", device="cpu"),
    "linear, int8": gpu_linear.case(9, 40, 24, "int8", device="cpu"),
    "linear, int4": gpu_linear.case(1, 64, 24, "int4", device="cpu"),
    "backward": gpu_attention_backward.case(Shape((70, 70), 4, 4, 64), device="cpu"),
    "backward, full": gpu_attention_backward.case(Shape((40,), 4, 4, 64, causal=False), device="cpu"),
    "backward, ragged": gpu_attention_backward.case(Shape((9, 70), 4, 2, 64), device="cpu"),
    "both passes": gpu_attention_backward.case(Shape((9, 70), 4, 2, 64), device="cpu", both=True),
    "clips": gpu_logmel.clips(2, 1, "cpu"),
    "decoding": gpu_decode.case(gpu_decode.Shape(6, 40, 4, 2, 64), device="cpu"),
    "decoding, 3 queries over e4m3": gpu_decode.case(
        gpu_decode.Shape(2, 70, 4, 2, 64, queries=3, float8=True, dtype="float16"), device="cpu"
    ),
    "rotary write": gpu_write.case(gpu_write.Shape(20, 4, 2, 64), device="cpu"),
    "rotary write, e4m3": gpu_write.case(gpu_write.Shape(5, 4, 2, 64, float8=True), device="cpu"),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_case_in_small_is_right_and_has_a_peer(name: str) -> None:
    record = measure(SMALL[name], settings(quick=True), FakeLimits())
    assert record["wrong"] == {}
    ours = next(r for r in record["results"] if r["role"] == OURS)
    assert ours["error"] is not None
    assert record["best_peer"]


def test_a_record_names_the_kernel_that_ran() -> None:
    record = measure(SMALL["rotary write"], settings(quick=True), FakeLimits())
    assert (record["family"], record["backend"]) == ("attention", "cpu/scalar")


def test_the_cases_of_the_targets_are_there_once() -> None:
    cases = command.all_cases("cuda")
    targets = {case.name: case.target for case in cases}
    assert len(targets) == len(cases)
    assert {case.device for case in cases} == {"cuda"}
    assert all(case.setup > 0 for case in cases)  # or a run of few seconds would begin what it cannot end
    assert {case.family for case in cases} == set(command.ON_CUDA)
    assert targets["logmel/cuda-1x30s-128-bins"].seconds == 12e-6
    assert targets["logmel/cuda-64x30s-128-bins"].fraction == 0.6
    assert targets["logmel/cuda-512-streams-80ms-128-bins"].seconds == 20e-6
    assert targets[f"ppo/cuda-gae-{1 << 20}"].seconds == 15e-6
    assert targets[f"ppo/cuda-gae-{1 << 26}"].fraction == 0.6
    assert targets[f"ppo/cuda-losses-{1 << 24}"].fraction == 0.8
    assert targets[f"ppo/cuda-whiten-{1 << 24}"].fraction == 0.6
    for ending in ("", "-deviation", "-leave-one-out"):
        assert targets[f"ppo/cuda-groups{ending}-{1 << 24}"].fraction == 0.6
    large = targets["logprob/cuda-16384x3584x158720-forward+backward"]
    assert (large.ratio, large.extra_bytes) == (1 / 1.3, 200 << 20)
    assert large.also == {"torch.compile, chunks": 1.3}
    assert targets["linear/cuda-1x3584x18944-int4"].fraction == 0.8
    assert targets["engine/cuda-decode-7b-1x8-int4"].fraction == 0.8
    assert targets["engine/cuda-decode-7b-64x8-bf16"].fraction is None
    for sequences in (1, 8, 64):  # as graphs, and launch by launch
        assert f"engine/cuda-decode-1.5b-{sequences}x8-bf16" in targets
        assert targets[f"engine/cuda-decode-1.5b-{sequences}x8-launched-bf16"].fraction is None
    assert command.chosen(["ppo/cuda-gae"], False, "cuda")[0].family == "ppo"


def test_what_is_judged_comes_first_and_cases_of_the_engine_stay_together() -> None:
    late = [case.target == Target() for case in command.all_cases("cuda") if case.family != "engine"]
    assert late == sorted(late)
    names = [case.name for case in command.all_cases("cuda")]
    assert names.index("engine/cuda-decode-7b-64x8-int4") < names.index("ppo/cuda-losses-1048576")


@pytest.mark.parametrize("name", SMALL)
def test_a_case_says_whether_torch_compiles_something(name: str) -> None:
    found = SMALL[name].problem(np.random.default_rng(0)).implementations
    assert SMALL[name].compiles == any(one.compiles for one in found)


def test_what_torch_compiles_is_compiled_ahead_and_nothing_else_called(capsys: pytest.CaptureFixture) -> None:
    called: list[str] = []

    def implementation(name: str, fails: bool = False, compiles: bool = True) -> Implementation:
        def call(x: np.ndarray) -> np.ndarray:
            called.append(name)
            if fails:
                raise RuntimeError("no compiler")
            return x

        return Implementation(name, lambda: call, compiles=compiles)

    some = [
        implementation("first", fails=True),
        implementation("plain", compiles=False),
        implementation("last"),
    ]
    assert gpu_compile.of([bench_cases.case(*some)]) == 1
    assert called == ["first", "last"]
    assert "toy/doubling, first: no compiler" in capsys.readouterr().out


def test_who_forks_has_not_touched_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch lets no process use CUDA that was forked from one that has so much as looked for a GPU."""
    touched: list[int] = []
    for name in ("is_available", "device_count", "current_device", "_lazy_init", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: touched.append(os.getpid()))
    assert cli.main(["bench", "--device", "cuda", "--peers"]) == 2  # in the process beside
    assert os.getpid() not in touched


def test_without_a_gpu_the_bench_says_so(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["bench", "ppo", "--device", "cuda"]) == 2
    assert "[bench] device: expected cpu (torch" in capsys.readouterr().err
    assert cli.main(["bench", "pitch", "--device", "cuda"]) == 2
    assert "expected logmel, ppo, attention, logprob, linear, engine, part of" in capsys.readouterr().err

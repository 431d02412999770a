# SPDX-License-Identifier: Apache-2.0
"""The GPU's cases of attention: every line of what was promised is there, and its peers get what they
want; what cases are predicted to take, and how a run shares its seconds."""

import numpy as np
import pytest
from bench_cases import FakeLimits, settings

from earnest.bench import (
    gpu_attention,
    gpu_attention_backward,
    gpu_attention_paths,
    gpu_cudnn,
    gpu_decode,
    gpu_forecast,
    peers,
)
from earnest.bench.budget import LEAST, MOST, Budget
from earnest.bench.case import ALSO, OURS, Case, Target
from earnest.bench.gpu_attention_shape import Shape
from earnest.bench.harness import measure
from earnest.bench.timing import Pace


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return {case.name.removeprefix("attention/cuda-"): case for case in gpu_attention.cases()}


def ours_of(case: Case) -> list[str]:
    entries = gpu_attention._entries(shape_of(case), "cuda", False, None)
    return [one.name for one in entries if one.role == OURS]


def shape_of(case: Case) -> Shape:
    return case.problem.keywords["shape"]  # type: ignore[attr-defined]


def test_forward_is_there_in_all_lengths_and_both_head_sizes(cases):
    for dim, rates in ((128, (620e12, 560e12)), (64, (450e12, 450e12))):
        for tokens in (2048, 4096, 8192, 16_384):
            for kind, rate in zip(("full", "causal"), rates, strict=True):
                name = f"forward-{16_384 // tokens}x{tokens}-{kind}-16/16x{dim}-bf16"
                wanted = cases[name].target
                assert wanted.ratio == 1.0
                assert wanted.against == (peers.CUDNN if dim == 128 else "")
                operations = 4 * (16_384 // tokens) * tokens**2 * 16 * dim // (2 if kind == "causal" else 1)
                assert wanted.seconds == (operations / rate if tokens == 8192 else None)
                paths = ["earnest, sm80", "earnest, sm90a", "earnest, sm90a, both"]
                assert ours_of(cases[name]) == paths


def test_ragged_encoder_and_short_sequences_are_there(cases):
    for heads in ("28/4", "40/8"):
        ragged = cases[f"forward-ragged-16x200-8000-causal-{heads}x128-bf16"]
        assert ragged.target == Target(ratio=1.2)
        assert "earnest, sm90a" in ours_of(ragged)
    assert cases["forward-64x1500-full-20/20x64-bf16"].target == Target(ratio=1.1)
    for tokens in (128, 256, 512):
        for ending in ("causal-28/4x128", "full-20/20x64"):
            assert cases[f"forward-1x{tokens}-{ending}-bf16"].target == Target(ratio=1.0)


def test_the_backward_pass_is_there_alone_and_once_with_the_forward_pass(cases):
    for tokens in (4096, 8192, 16_384):
        wanted = cases[f"backward-{16_384 // tokens}x{tokens}-causal-16/16x128-bf16"].target
        assert (wanted.ratio, wanted.against) == (1.0, "cudnn, deterministic")
        assert (wanted.instead, wanted.also) == ("torch, flash, deterministic", {"torch, cudnn": 0.9})
    both = cases["forward+backward-2x8192-causal-16/16x128-bf16"].problem.keywords
    assert both["both"] is True
    shape = shape_of(cases["backward-2x8192-causal-16/16x128-bf16"])
    names = [one.name for one in gpu_attention_backward._entries(shape, "cuda", (0, 0), both=False)]
    wanted = ["earnest, sm80", "earnest, sm90a", gpu_attention_backward.FLASH, peers.CUDNN, gpu_cudnn.NAME]
    assert set(wanted) <= set(names)
    assert {"flash-attn", "flash-attn 3, deterministic"} <= set(names)
    assert len(names) == len(set(names))


def test_tiles_of_the_backward_pass_are_timed_of_both_head_sizes(cases):
    timed = [
        name
        for name, case in cases.items()
        if name.startswith("backward") and case.problem.keywords["tiles"]  # type: ignore[attr-defined]
    ]
    assert timed == ["backward-2x8192-causal-16/16x128-bf16", "backward-2x8192-causal-16/16x64-bf16"]
    entries = gpu_attention_backward._entries(shape_of(cases[timed[0]]), "cuda", (0, 0), False, True)
    assert [one.name for one in entries if one.role == ALSO] == [
        "earnest, sm80, tiles of 64",
        "earnest, sm80, tiles of 128",
    ]


def test_torchs_plain_attention_stands_beside_small_cases_alone(cases):
    """Those whose scores, and keys and values for each head, are no gigabytes."""
    small = {name for name, case in cases.items() if "torch, math" in peers_of(case)}
    brief = {
        f"forward-1x{n}-{ending}-bf16"
        for n in (128, 256, 512)
        for ending in ("causal-28/4x128", "full-20/20x64")
    }
    assert small == brief | {"decode-1x1k-28/4x128-bf16", "decode-1x8k-28/4x128-bf16"}


def peers_of(case: Case) -> list[str]:
    shape = case.problem.keywords["shape"]  # type: ignore[attr-defined]
    if case.name.startswith("attention/cuda-decode"):
        return [one.name for one in gpu_decode._entries(shape, "cuda", np.zeros(0, int))]
    if case.name.startswith("attention/cuda-rotary"):
        return []
    if "backward" in case.name:
        return [one.name for one in gpu_attention_backward._entries(shape, "cuda", (0, 0), False)]
    every = case.name.startswith("attention/cuda-schedules")
    return [one.name for one in gpu_attention._entries(shape, "cuda", every, np.zeros(0, int))]


def test_decoding_is_there_from_1_to_256_sequences_and_from_1k_to_64k_keys(cases):
    found = {name: case for name, case in cases.items() if name.startswith("decode")}
    for size in ("1x1k", "1x64k", "256x1k", "256x64k", "64x16k"):
        assert found[f"decode-{size}-28/4x128-bf16"].target.ratio == 1.1
    for case in found.values():
        shape = case.problem.keywords["shape"]
        assert case.target.fraction == (0.85 if shape.cache_bytes >= 2e9 else None)
        by_whom = ("flashinfer", "torch, flash") if shape.float8 else ("", "")
        assert (case.target.ratio, case.target.against, case.target.instead) == (1.1, *by_whom)
        assert {*by_whom} - {""} <= {*peers_of(case)}
    large = [c.problem.keywords["shape"] for c in found.values() if c.target.fraction]
    assert set(range(1, 9)) == {shape.queries for shape in large}
    assert found["decode-256x1k-28/4x128-bf16"].target.fraction is None  # half a gigabyte


def test_variants_of_decoding_stand_beside_the_one_that_is_judged(cases):
    shapes = {name: c.problem.keywords["shape"] for name, c in cases.items() if name.startswith("decode")}
    found = {
        name: [one.name for one in gpu_decode._entries(shape, "cuda", np.zeros(0, int)) if one.role == ALSO]
        for name, shape in shapes.items()
    }
    longer = ["earnest, pieces of 1024", "earnest, pieces of 2048"]
    assert {name: several for name, several in found.items() if several} == {
        "decode-1x64k-28/4x128-bf16": ["earnest, pieces of 256", *longer],
        "decode-1x8k-28/4x128-bf16": ["earnest, pieces of 256", "earnest, 2 tiles"],
        "decode-64x16k-28/4x128-bf16": [*longer, "earnest, 3 tiles", "earnest, 4 tiles"],
        "decode-64x16k-28/4x128-bf16-8-queries": [*longer, "earnest, 2 tiles"],
    }  # fmt: skip
    for name in found:  # and the seconds of a case know of them
        assert cases[name].setup > gpu_forecast.EACH * (1 + len(found[name]))


def test_each_pass_is_there_in_float16(cases):
    for name in (
        "forward-2x8192-causal-16/16x128",
        "backward-2x8192-causal-16/16x128",
        "decode-64x16k-28/4x128",
    ):
        assert cases[f"{name}-fp16"].dtype == "float16"


def test_chunks_are_there(cases):
    alike = shape_of(cases["chunks-8x512-after-7680-causal-28/4x128-bf16"])
    assert alike.key_lengths == (8192,) * 8
    ragged = shape_of(cases["chunks-ragged-16x64-544-after-0-7680-causal-28/4x128-bf16"])
    assert len(set(ragged.key_lengths)) == 16


def test_what_is_promised_comes_first_and_schedules_last(cases):
    promised = [
        bool(c.target != Target()) and not c.name.startswith("attention/cuda-rotary") for c in cases.values()
    ]
    first = list(cases)
    assert all(promised[:28])
    assert [name for name in first if name.startswith("schedules")] == first[-5:]
    assert first[-2:] == [
        "schedules-ragged-16x200-8000-causal-28/4x128-bf16",
        "schedules-1x256-causal-28/4x128-bf16",
    ]
    assert first.index("backward-2x8192-causal-16/16x128-bf16") < first.index(
        "forward-64x1500-full-20/20x64-bf16"
    )


# ---- seconds ----


def test_a_run_that_is_late_times_all_others_shorter_and_leaves_out_what_has_no_time():
    made = [Case(f"a/{i}", lambda rng: None, {}, setup=1.0) for i in range(4)]  # type: ignore[arg-type, return-value]
    now = 0.0
    budget = Budget(10.0, made, lambda: now)
    assert budget.pace(Pace(), 0).shared == MOST
    now = 6.5  # the first took six seconds more than it should
    assert budget.pace(Pace(), 1).shared == pytest.approx(0.5 / 3)
    now = 8.8
    assert budget.pace(Pace(), 2).shared == LEAST
    assert budget.pace(Pace(), 3).shared == pytest.approx(0.2)
    now = 8.95
    assert budget.pace(Pace(), 3) is None
    assert Budget(None, made).pace(Pace(), 3) == Pace()


def test_a_case_that_hangs_is_waited_for_no_longer_than_the_run_has():
    made = [Case("a", lambda rng: None, {}, setup=2.0)] * 2  # type: ignore[arg-type, return-value]
    now = 0.0
    budget = Budget(40.0, made, lambda: now)
    assert budget.limit(0) == 15 + 5 * 2.0
    now = 36.0
    assert budget.limit(1) == 4.0
    assert Budget(None, made).limit(1) is None


def test_more_operations_bytes_and_peers_take_longer():
    def setup(**changes: object) -> float:
        shape = Shape(**({"lengths": (8192,), "heads": 16, "kv_heads": 16, "dim": 128} | changes))
        return gpu_forecast.setup(shape, gpu_attention._entries(shape, "cuda", False, None))

    assert setup() < setup(lengths=(8192, 8192)) < setup(lengths=(16_384, 16_384))
    assert setup(lengths=(8192, 200)) > setup(lengths=(8192,)) + 2 * gpu_forecast.EACH  # and padded ones
    shape = Shape((8192,), 16, 16, 128)
    few = [one for one in gpu_attention._entries(shape, "cuda", False, None) if "torch" not in one.name]
    assert gpu_forecast.setup(shape, few) + gpu_forecast.PLAN < setup()


# ---- padding and paths ----


def test_padding_is_counted_by_hand():
    assert Shape((8, 8), 1, 1, 8).padding == 0.0
    assert Shape((8, 4), 1, 1, 8, causal=False).padding == 1 - (64 + 16) / 128
    assert Shape((8, 4), 1, 1, 8).padding == 1 - (32 + 8) / 64
    ragged = Shape((4, 2), 1, 1, 8, prefixes=(4, 0))
    assert ragged.operations == 4 * 8 * ((4 * 8 - 8) + (2 * 2 - 2))
    assert ragged.padding == 1 - (24 + 2) / (2 * 4 * 8)


def test_the_record_of_a_ragged_case_tells_padding_apart():
    case = gpu_attention.case(Shape((9, 70), 4, 2, 64), device="cpu")
    record = measure(case, settings(quick=True), FakeLimits())
    padded = next(r for r in record["results"] if r["name"] == "torch")
    share = 1 - (9 * 9 - 40 + 2450) / (2 * 2450)
    assert padded["padding"] == pytest.approx(share)
    one_by_one = next(r for r in record["results"] if r["name"] == "torch, one by one")
    assert one_by_one["padding"] == 0.0
    real = min(one_by_one["ratio"], (1 - share) * padded["ratio"])
    assert record["ratio_without_padding"] == pytest.approx(real)


def test_a_path_that_is_not_to_be_tried_is_absent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(gpu_attention_paths.WITHOUT, "sm90a")
    gpu_attention_paths.asked_for("sm80")
    gpu_attention_paths.asked_for("")
    with pytest.raises(peers.Absent, match="sm90a: EARNEST_BENCH_WITHOUT says so"):
        gpu_attention_paths.asked_for("sm90a")

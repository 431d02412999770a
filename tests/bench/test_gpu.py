# SPDX-License-Identifier: Apache-2.0
"""The GPU's cases in small on the CPU, where all but their clock is the same; and bench/gpu.sh, which checks
itself."""

import subprocess
from pathlib import Path

import pytest
from bench_cases import FakeLimits, settings

from earnest import cli
from earnest.bench import (
    command,
    gpu_attention,
    gpu_attention_backward,
    gpu_decode,
    gpu_linear,
    gpu_logmel,
    gpu_logprob,
    gpu_ppo,
    gpu_write,
)
from earnest.bench.case import OURS
from earnest.bench.gpu_attention_shape import Shape
from earnest.bench.harness import measure

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "gpu.sh"
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


def test_without_a_gpu_the_bench_says_so(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["bench", "ppo", "--device", "cuda"]) == 2
    assert "[bench] device: expected cpu (torch" in capsys.readouterr().err
    assert cli.main(["bench", "pitch", "--device", "cuda"]) == 2
    assert "expected logmel, ppo, attention, logprob, linear, engine, part of" in capsys.readouterr().err


def test_the_gpu_script_is_whole_and_fits_into_nine_minutes() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    done = subprocess.run([SCRIPT, "--dry-run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *steps, total = done.stdout.splitlines()
    words = [step.split() for step in steps]
    assert [word[2] for word in words] == [
        "environment", "build", "programs", "tests", "sanitizers", "determinism", "hopper", "ppo",
        "logmel", "attention", "decode", "logprob", "linear", "engine", "demo",
    ]  # fmt: skip
    assert total == f"{sum(int(word[0]) for word in words)} s planned, at most 530 s in all"
    assert [word[0] for word in words[-2:]] == ["105", "40"]  # as long as they like
    for family in ("ppo", "logmel", "attention", "logprob", "linear", "engine"):
        assert family in command.ON_CUDA


def test_the_gpu_script_does_the_steps_that_are_named_alone() -> None:
    done = subprocess.run([SCRIPT, "--dry-run", "engine", "decode"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split()[2] for line in done.stdout.splitlines()[:-1]] == ["decode", "engine"]
    done = subprocess.run([SCRIPT, "--dry-run", "engines"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "expected a step (environment build" in done.stderr
    assert "got engines" in done.stderr


def test_a_step_of_the_gpu_script_that_hangs_costs_its_own_time_alone(tmp_path: Path) -> None:
    """The script's own step(), on steps of a second."""
    text = SCRIPT.read_text()
    body = text[text.index("# step NAME LIMIT") : text.index("environment() {")]
    program = f"""
      set -uo pipefail; MOST=60 dry=0 out={tmp_path} worst=0 planned=0 steps="" known=""
      ONLY="  " SUMMARY=summary.json
      hangs() {{ sleep 30; }}; fails() {{ return 3; }}; works() {{ echo "$1 works"; }}
      export -f hangs fails works
      {body}
      step first 5 works well; step second 5 hangs; step third 5 fails; step fourth 5 works again
      exit "$worst"
    """
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=50)
    assert done.returncode == 124, done.stderr
    log = (tmp_path / "log.txt").read_text()
    assert "well works" in log
    assert "again works" in log
    import json

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [step["code"] for step in summary["steps"]] == [0, 124, 3, 0]


@pytest.mark.parametrize(
    ("only", "left", "seconds"),
    [
        ("  ", 200, {"a": 10, "b": 30, "c": 20}),
        ("  ", 36, {"a": 5, "b": 15, "c": 10}),  # in proportion, but for what it takes to start
        (" b c ", 34, {"b": 18, "c": 12}),
        ("  ", 5, {"a": 0, "b": 0, "c": 3}),  # who gets 0 is left out by step()
    ],
)
def test_measurements_of_the_gpu_script_share_what_is_left(only: str, left: int, seconds: dict) -> None:
    """The script's own shared(), where steps take all that they are given."""
    program = f"""
      set -uo pipefail; MOST={left} START=2 dry=0 ONLY="{only}" MEASURED="a:12 b:32 c:22"
      unset SECONDS; SECONDS=0
      step() {{ [[ $ONLY == "  " || $ONLY == *" $1 "* ]] || return 0; echo "$@"; SECONDS=$((SECONDS + $2)); }}
      {function_of_script("shared")}
      for name in a b c; do shared $name measure some words; done
    """
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{name} {s + 2 if s else 0} measure {s} some words" for name, s in seconds.items()
    ]


def function_of_script(name: str) -> str:
    text = SCRIPT.read_text()
    begin = text.index(f"\n{name}() {{")
    return text[begin : text.index("\n}\n", begin) + 3]


@pytest.mark.parametrize(
    ("ends", "said"), [(True, "by sm90a, by sm90a, 00  attention sm90a sm90a"), (False, "left out")]
)
def test_the_gpu_script_has_an_engine_go_by_sm90a_where_the_digests_came_to_their_end(
    tmp_path: Path, ends: bool, said: str
) -> None:
    """By digests that print a line, and then end or fault."""
    (tmp_path / "whole").touch()  # of an earlier call
    tool = tmp_path / "python3"
    tool.write_text(f'#!/bin/sh\necho "00  attention sm90a $EARNEST_CUDA_TIER"\nexit {int(not ends)}\n')
    for name in ("test_engine_cuda", "test_engine_graphs_cuda"):
        (tmp_path / name).write_text('#!/bin/sh\nprintf "by $EARNEST_CUDA_TIER, "\n')
    for program in tmp_path.iterdir():
        program.chmod(0o755)
    text = SCRIPT.read_text()
    body = text[text.index("\ndeterminism() {") : text.index("\n# measure SECONDS")]
    program = f"""
      set -uo pipefail; PATH={tmp_path}:$PATH BUILD={tmp_path}
      {body}
      determinism >{tmp_path}/log; echo $?
      hopper
    """
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    code, rest = done.stdout.split("\n", 1)
    assert (code == "0") == ends
    assert rest.startswith(said)


def test_the_gpu_script_checks_barriers_of_those_that_have_them_and_sees_a_tool_fail(tmp_path: Path) -> None:
    """By a tool that writes down how it was called, and finds something in one program."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"""#!/bin/sh
      echo "$@" >> {tmp_path}/calls
      case "$2 $5" in
        "synccheck {tmp_path}/b" | "memcheck {tmp_path}/whole") exit "$(cat {tmp_path}/code)" ;;
      esac
    """)
    tool.chmod(0o755)
    body = function_of_script("sanitizers")
    program = f"""
      set -uo pipefail; PATH={tmp_path}:$PATH BUILD={tmp_path} CHECKED="a b" SYNCED="b" MEMCHECKED="whole"
      {body}
      sanitizers
    """
    for code in (0, 9, 124):
        (tmp_path / "code").write_text(str(code))
        (tmp_path / "calls").write_text("")
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=50)
        assert done.returncode == (1 if code else 0), done.stdout
        for failed in ("synccheck:b", "memcheck:whole"):
            assert (f"{failed} FAILED: exit code {code}" in done.stdout) == bool(code)
            assert (f"{failed} had not ended after 70 s" in done.stdout) == (code == 124)
        assert done.stdout.count("FAILED") == 2 * bool(code)
        called = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
        tools = sorted((words[1], Path(words[-1]).name) for words in called if words[0] == "--tool")
        assert tools == [
            *(("initcheck", name) for name in "ab"),
            *(("memcheck", name) for name in ("a", "b", "whole")),
            *(("racecheck", name) for name in "ab"),
            ("synccheck", "b"),
        ]


def test_the_gpu_script_keeps_what_ptxas_gave_kernels_there(tmp_path: Path) -> None:
    """What is compiled for sm_90 there runs as what the gate compiles for sm_90a."""
    (tmp_path / "report.txt").write_text("""[1/2] Building CUDA object a.cu.o
ptxas info    : Compiling entry function '_ZN7earnest3ppo5copy_EPi' for 'sm_90'
ptxas info    : Function properties for _ZN7earnest3ppo5copy_EPi
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 77 registers, used 1 barriers, 8 bytes cumulative stack size
""")
    program = f"""
      set -uo pipefail; BUILD={tmp_path} out={tmp_path}
      {function_of_script("resources")}
      resources
    """
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=50)
    assert done.returncode == 0, done.stderr
    assert "ppo::copy_ (sm_90a): expected neither spills nor a stack frame" in done.stdout
    kept = (tmp_path / "resources.json").read_text()
    assert "ppo::copy_" in kept
    assert "77" in kept
    assert "attention::" not in kept  # of another build

# SPDX-License-Identifier: Apache-2.0
"""bench/gpu.sh, which checks itself, on tools that stand in for those of a GPU; and bench/steps.py, which
carries out its plan, on plans of a second."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from earnest.bench import command, gpu_compile, gpu_forecast
from earnest.bench.budget import Budget
from earnest.bench.timing import Pace

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "gpu.sh"
STEPS = ROOT / "bench" / "steps.py"
TEXT = SCRIPT.read_text()


# ---- the plan ----


def dry_run(*only: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, "--dry-run", *only], capture_output=True, text=True)


def likely() -> dict[str, tuple[int, int]]:
    """Begin and end of each step by forecast."""
    words = [line.split() for line in dry_run().stdout.splitlines()[:-1]]
    return {word[2]: (int(word[3]), int(word[5])) for word in words}


def test_the_script_is_whole_and_does_everything_within_nine_minutes_by_its_forecast() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    done = dry_run()
    assert done.returncode == 0, done.stderr
    steps = likely()
    assert list(steps) == [
        "wheels", "environment", "build", "determinism", "compile", "programs", "tests", "sanitizers",
        "hopper", "measure", "demo",
    ]  # fmt: skip
    assert done.stdout.splitlines()[-1] == f"{steps['demo'][1]} s forecast, at most 530 s in all"
    assert steps["demo"][1] + 40 <= 530  # what may come between


def test_what_is_timed_runs_alone() -> None:
    steps = likely()
    for name in ("measure", "demo"):
        begin, end = steps.pop(name)
        assert all(other_end <= begin or end <= other for other, other_end in steps.values())


def test_all_cases_are_predicted_to_fit_and_each_is_timed_for_long_enough() -> None:
    begin, end = likely()["measure"]
    cases = command.chosen([], False, "cuda")
    assert gpu_forecast.of_run(cases) <= end - begin
    clock = [0.0]
    budget = Budget(end - begin - gpu_forecast.START, cases, partial(sum, clock))
    for done, case in enumerate(cases):
        pace = budget.pace(Pace(), done)
        assert pace is not None
        assert pace.shared >= gpu_forecast.ENOUGH
        clock.append(case.setup + pace.shared)
    assert f"export START={gpu_forecast.START:.0f} " in TEXT


def test_all_that_torch_compiles_is_compiled_ahead() -> None:
    words = TEXT.partition('COMPILED="')[2].partition('"')[0].split()
    ahead = [case.name for word in words for case in gpu_compile.chosen([word])]
    assert sorted(ahead) == sorted(case.name for case in command.all_cases("cuda") if case.compiles)


def test_the_script_does_the_steps_that_are_named_alone() -> None:
    done = dry_run("measure", "build")
    assert done.returncode == 0, done.stderr
    assert [line.split()[2] for line in done.stdout.splitlines()[:-1]] == ["build", "measure"]
    done = dry_run("engines")
    assert done.returncode == 2
    assert "expected a step (wheels environment build" in done.stderr
    assert "got engines" in done.stderr


# ---- carried out ----


def carry_out(plan: str, out: Path, *only: str, most: int = 60) -> subprocess.Popen[str]:
    (out / "plan").write_text(plan)
    with (out / "plan").open() as file:
        return subprocess.Popen(
            [sys.executable, STEPS, "--most", str(most), "--out", out, "--", *only],
            stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


def summary(out: Path, name: str = "summary.json") -> dict[str, dict]:
    return {step["step"]: step for step in json.loads((out / name).read_text())["steps"]}


def test_steps_run_side_by_side_unless_they_wait_and_none_costs_another(tmp_path: Path) -> None:
    """first and second need each other to end: one after the other, neither would."""
    for name in ("a", "b"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "first.sh").write_text(
        f"echo one; read x < {tmp_path}/a; echo met > {tmp_path}/b; echo two\n"
    )
    (tmp_path / "second.sh").write_text(f"echo hello > {tmp_path}/a; read x < {tmp_path}/b; exit 3\n")
    (tmp_path / "last.sh").write_text(f"wc -l < {tmp_path}/log.txt\n")
    plan = f"""
      # a comment
      first 20 1 - sh {tmp_path}/first.sh
      second 20 1 - sh {tmp_path}/second.sh
      last 30 1 first,second sh {tmp_path}/last.sh
      hangs 2 1 last sleep 50
    """
    done = carry_out(plan, tmp_path)
    said, errors = done.communicate(timeout=50)
    assert done.returncode == 124, errors
    assert {name: step["code"] for name, step in summary(tmp_path).items()} == {
        "first": 0, "second": 3, "last": 0, "hangs": 124,
    }  # fmt: skip
    blocks = (tmp_path / "log.txt").read_text().split("::: ")
    assert f"first: sh {tmp_path}/first.sh\none\ntwo\n" in blocks
    assert f"last: sh {tmp_path}/last.sh\n6\n" in blocks  # which begins when both are in the log
    assert "::: hangs (at most 2 s): sleep 50" in said
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".txt", ".json", ".log")) == [
        "log.txt", "summary.json",
    ]  # fmt: skip


def test_a_step_without_a_limit_leaves_theirs_to_those_behind_it(tmp_path: Path) -> None:
    (tmp_path / "left.sh").write_text("echo left: $((ENDS - $(date +%s)))\n")
    plan = f"measure rest 1 - sh {tmp_path}/left.sh\ndemo 45 1 measure true\n"
    said, _ = carry_out(plan, tmp_path).communicate(timeout=50)
    assert "\nleft: 1" in (tmp_path / "log.txt").read_text()
    assert "::: measure (at most 14 s)" in said or "::: measure (at most 15 s)" in said
    assert "::: demo (at most 45 s)" in said


def test_who_is_too_late_is_not_begun(tmp_path: Path) -> None:
    done = carry_out(f"late 30 1 - touch {tmp_path}/begun\n", tmp_path, most=1)
    done.communicate(timeout=50)
    assert done.returncode == 124
    assert summary(tmp_path)["late"]["code"] == 124
    assert not (tmp_path / "begun").exists()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_all_that_a_step_has_started_ends_with_it(tmp_path: Path) -> None:
    """timeout makes a group of its own; one process hears no word but the last."""
    (tmp_path / "deaf.sh").write_text(f"trap '' TERM; echo $$ > {tmp_path}/deaf; while :; do sleep 1; done\n")
    (tmp_path / "leaves.sh").write_text(
        f"timeout 60 sh {tmp_path}/deaf.sh & while [ ! -s {tmp_path}/deaf ]; do :; done\n"
    )
    carry_out(f"leaves 20 1 - sh {tmp_path}/leaves.sh\n", tmp_path).communicate(timeout=50)
    assert summary(tmp_path)["leaves"]["code"] == 0
    assert not alive(int((tmp_path / "deaf").read_text()))


def test_a_call_that_is_ended_ends_its_steps_and_keeps_what_they_said(tmp_path: Path) -> None:
    (tmp_path / "long.sh").write_text(f"echo said; echo $$ > {tmp_path}/pid; exec sleep 50\n")
    done = carry_out(f"long 50 1 - sh {tmp_path}/long.sh\n", tmp_path)
    end = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < end
    done.send_signal(signal.SIGTERM)
    done.communicate(timeout=50)
    assert done.returncode == 128 + signal.SIGTERM
    assert not alive(int((tmp_path / "pid").read_text()))
    assert "said\n::: long: exit code -15" in (tmp_path / "log.txt").read_text()


def test_a_call_for_some_steps_keeps_an_earlier_log_and_summary(tmp_path: Path) -> None:
    plan = "one 9 1 - true\ntwo 9 1 one true\n"
    carry_out(plan, tmp_path).communicate(timeout=50)
    carry_out(plan, tmp_path, "two").communicate(timeout=50)  # which waits for nothing then
    assert list(summary(tmp_path)) == ["one", "two"]
    assert list(summary(tmp_path, "summary-two.json")) == ["two"]
    assert (tmp_path / "log.txt").read_text().count("::: two: true") == 2
    done = carry_out("two 9 1 one true\n", tmp_path)
    assert "expected two behind steps above it, got one" in done.communicate(timeout=50)[1]


# ---- what the steps do ----


def function_of_script(name: str) -> str:
    begin = TEXT.index(f"\n{name}() {{")
    ends = TEXT.index("\n", begin + 1)
    if TEXT[begin:ends].rstrip().endswith("}") or "; }" in TEXT[begin:ends]:
        return TEXT[begin : ends + 1]
    return TEXT[begin : TEXT.index("\n}\n", begin) + 3]


def by_script(program: str, *functions: str) -> subprocess.CompletedProcess[str]:
    """The script's own functions."""
    bodies = "".join(map(function_of_script, functions))
    whole = f"set -uo pipefail\n{bodies}\nexport -f {' '.join(functions)}\n{program}"
    return subprocess.run(["bash", "-c", whole], capture_output=True, text=True, cwd=ROOT, timeout=50)


@pytest.mark.parametrize(
    ("ends", "said"), [(True, "by sm90a, by sm90a, 00  attention sm90a sm90a"), (False, "left out")]
)
def test_an_engine_goes_by_sm90a_where_the_digests_came_to_their_end(
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
    done = by_script(
        f"PATH={tmp_path}:$PATH BUILD={tmp_path}; determinism >{tmp_path}/log; echo $?; hopper",
        "determinism", "sm90a_ends", "hopper",
    )  # fmt: skip
    code, rest = done.stdout.split("\n", 1)
    assert (code == "0") == ends
    assert rest.startswith(said)
    assert ("two runs gave the same bits" in (tmp_path / "log").read_text()) == ends


def test_two_runs_that_differ_are_no_determinism(tmp_path: Path) -> None:
    tool = tmp_path / "python3"
    tool.write_text("#!/bin/sh\necho $$\n")
    tool.chmod(0o755)
    done = by_script(f"PATH={tmp_path}:$PATH BUILD={tmp_path}; determinism; echo code $?", "determinism")
    assert "differ" in done.stdout
    assert "code 1" in done.stdout


LATE = "FAILED: had not ended after "
TOOLS = {0: "", 9: "FAILED: exit code 9", 124: LATE, 137: LATE}


@pytest.mark.parametrize("code", TOOLS)
def test_barriers_are_checked_of_those_that_have_them_and_a_tool_that_fails_is_seen(
    tmp_path: Path, code: int
) -> None:
    """By a tool that writes down how it was called, and finds something in one program."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"""#!/bin/sh
      echo "$@" >> {tmp_path}/calls
      tool=$2
      for program; do :; done
      case "$tool $program" in
        "synccheck {tmp_path}/b" | "memcheck {tmp_path}/whole") exit {code} ;;
      esac
    """)
    tool.chmod(0o755)
    done = by_script(
        f"""export PATH={tmp_path}:$PATH BUILD={tmp_path} CHECKED="a b" SYNCED="b" MEMCHECKED="whole"
        export ENDS=$(($(date +%s) + 60)); sanitizers""",
        "sanitizers", "sanitizer", "seconds_left",
    )  # fmt: skip
    assert done.returncode == (1 if code else 0), done.stdout
    for failed in ("synccheck:b", "memcheck:whole"):
        assert f"{failed} {TOOLS[code]}" in done.stdout or not code
    assert done.stdout.count("FAILED") == 2 * bool(code)
    called = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    tools = sorted((words[1], Path(words[-1]).name) for words in called if words[0] == "--tool")
    assert tools == [
        *(("initcheck", name) for name in "ab"),
        *(("memcheck", name) for name in ("a", "b", "whole")),
        *(("racecheck", name) for name in "ab"),
        ("synccheck", "b"),
    ]
    alone = {words[1]: "--racecheck-num-workers" in words for words in called if words[0] == "--tool"}
    assert alone == {tool: tool == "racecheck" for tool, _ in tools}


def test_a_long_step_loses_its_middle_alone() -> None:
    sys.path.insert(0, str(STEPS.parent))
    try:
        from steps import shortened
    finally:
        sys.path.pop(0)
    assert shortened(b"0123456789", 10) == b"0123456789"
    assert shortened(b"0123456789a", 10) == b"01234\n::: (1 bytes left out)\n6789a"


def test_a_program_under_a_tool_that_does_not_end_is_said_to_before_its_step_ends(tmp_path: Path) -> None:
    """What was looked into first takes its time from all."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text("#!/bin/sh\ncase $1 in --tool) exec sleep 50 ;; esac\n")
    tool.chmod(0o755)
    began = time.monotonic()
    done = by_script(
        f"""export PATH={tmp_path}:$PATH BUILD={tmp_path} CHECKED="a" SYNCED="" MEMCHECKED=""
        export ENDS=$(($(date +%s) + 12)); sanitizers; ENDS=$(date +%s); sanitizer memcheck:a""",
        "sanitizers", "sanitizer", "seconds_left",
    )  # fmt: skip
    assert time.monotonic() - began < 12
    assert done.stdout.count("FAILED: had not ended after ") == 3
    assert "memcheck:a FAILED: no time was left to begin" in done.stdout


def test_a_device_that_the_tool_does_not_support_is_said_and_no_failure(tmp_path: Path) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text("#!/bin/sh\necho Device not supported\nsleep 0.1\nyes more | head -9999\nexit 1\n")
    tool.chmod(0o755)
    done = by_script(f"PATH={tmp_path}:$PATH BUILD={tmp_path}; sanitizers", "sanitizers")
    assert (done.returncode, done.stdout.count("left out")) == (0, 1)


def test_programs_are_told_apart_and_one_that_fails_is_seen(tmp_path: Path) -> None:
    for name, text in (("a", "echo of a"), ("b", "echo of b; exit 5")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    told = f'export BUILD={tmp_path} ENDS=$(($(date +%s) + 60)) PROGRAMS="b a"; programs'
    done = by_script(told, "programs", "program", "seconds_left")
    assert done.stdout == "of b\nb FAILED: exit code 5\nof a\na passed\n"
    assert done.returncode == 1
    late = told.replace("+ 60", "+ 8")
    done = by_script(late, "programs", "program", "seconds_left")
    assert done.stdout == "b FAILED: no time was left to begin\na FAILED: no time was left to begin\n"


def test_what_ptxas_gave_kernels_there_is_kept(tmp_path: Path) -> None:
    """What is compiled for sm_90 there runs as what the gate compiles for sm_90a."""
    (tmp_path / "report.txt").write_text("""[1/2] Building CUDA object a.cu.o
ptxas info    : Compiling entry function '_ZN7earnest3ppo5copy_EPi' for 'sm_90'
ptxas info    : Function properties for _ZN7earnest3ppo5copy_EPi
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 77 registers, used 1 barriers, 8 bytes cumulative stack size
""")
    done = by_script(f"BUILD={tmp_path} out={tmp_path}; resources", "resources")
    assert done.returncode == 0, done.stderr
    assert "ppo::copy_ (sm_90a): expected neither spills nor a stack frame" in done.stdout
    kept = (tmp_path / "resources.json").read_text()
    assert "ppo::copy_" in kept
    assert "77" in kept
    assert "attention::" not in kept  # of another build

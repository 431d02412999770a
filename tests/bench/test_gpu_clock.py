# SPDX-License-Identifier: Apache-2.0
"""How a GPU's time is shared among those that are compared, on a clock that the test turns; and what a run
says of our paths, of time that is over and of a GPU that is lost."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import bench_cases
import pytest
from bench_cases import FakeLimits

from earnest import cli
from earnest.bench import apart, budget, command, gpu, gpu_attention_paths, instrument, results, show, sitting
from earnest.bench.case import OURS, Absent, Implementation, Target
from earnest.bench.harness import measure
from earnest.bench.timing import Pace


def test_who_shares_time_is_called_until_each_has_had_its_part():
    flushed: list[int] = []
    ready = {"a": lambda: 1 / 128, "b": lambda: 1 / 16, "c": lambda: 3.0, "d": lambda: 1e-6}
    found = gpu.sampled(ready, Pace(shared=0.5), lambda: flushed.append(1))
    counts = {name: len(samples) for name, samples in found.items()}
    assert counts == {"a": 16, "b": gpu.FEWEST, "c": gpu.FEWEST, "d": gpu.MOST}
    assert len(flushed) == sum(counts.values())


def test_without_a_budget_everybody_has_the_pace():
    ready = {"a": lambda: 1 / 64, "b": lambda: 1e-6}
    found = gpu.sampled(ready, Pace(seconds=0.25, rounds=5, most_rounds=30), lambda: None)
    assert {name: len(samples) for name, samples in found.items()} == {"a": 16, "b": 30}


def test_rounds_turn_and_nobody_waits_for_who_is_done():
    order: list[str] = []
    ready = {
        "slow": lambda: order.append("slow") or 1.0,  # type: ignore[func-returns-value]
        "fast": lambda: order.append("fast") or 0.1,  # type: ignore[func-returns-value]
    }
    gpu.sampled(ready, Pace(shared=1.0), lambda: None)
    assert order == ["slow", "fast", "fast", "slow", "slow", "fast", "fast", "fast"]


# ---- several paths of ours ----


def with_paths(*more: Implementation, target: Target | None = None) -> dict:
    """A case whose own implementation is slow, and `more` beside it."""
    case = bench_cases.case(*more, ours=bench_cases.slowly_doubled, target=target)
    return measure(case, bench_cases.settings(peers=True), FakeLimits())


def path(name: str, function: Any = bench_cases.doubled) -> Implementation:
    return Implementation(f"earnest, {name}", lambda: function, OURS)


def test_the_fastest_path_is_judged_and_each_keeps_its_own_ratio():
    record = with_paths(path("fast"), target=Target(ratio=5.0))
    assert record["results"][0]["name"] == "earnest, fast"
    assert record["met"] is True
    slow = next(r for r in record["results"] if r["name"] == "earnest")
    assert slow["to_best_peer"] == pytest.approx(1.0, rel=0.5)
    assert record["results"][0]["to_best_peer"] == record["ratio"] > 5
    text = show.line(record)
    assert "\n  earnest, fast: " in text
    assert "\n  earnest: " in text
    assert "x slow" in text


def test_a_wrong_path_is_said_and_the_right_one_is_timed():
    record = with_paths(path("wrong", lambda x: x * 3))
    assert "off by" in record["wrong"]["earnest, wrong"]
    assert record["results"][0]["name"] == "earnest"


def test_where_no_path_is_right_nobody_is_timed():
    def missing() -> Any:
        raise Absent("another device")

    wrong = path("wrong", lambda x: x * 3)
    case = bench_cases.case(wrong, Implementation("earnest, gone", missing, OURS), ours=lambda x: x)
    assert measure(case, bench_cases.settings(), FakeLimits())["results"] == []


def test_who_is_not_there_is_stood_in_for():
    record = with_paths(path("fast"), target=Target(ratio=2.0, against="nobody", instead="slow"))
    assert (record["yardstick"], record["met"]) == ("slow", True)
    assert record["yardstick_ratio"] == record["ratio"]
    assert "slow " in show.target(record)
    record = with_paths(path("fast"), target=Target(ratio=2.0, against="nobody", instead="no one"))
    assert record["met"] is None


def test_padding_costs_as_it_is_and_is_told_apart():
    padded = Implementation("padded", lambda: bench_cases.slowly_doubled, extra=False, padding=0.9)
    record = with_paths(path("fast"), padded)
    one = next(r for r in record["results"] if r["name"] == "padded")
    assert record["best_peer_without_padding"] == "padded"
    assert record["ratio_without_padding"] == pytest.approx(0.1 * one["ratio"])
    assert record["ratio"] > 3 * record["ratio_without_padding"]
    assert f"padding 0.90 of padded: {one['ratio']:.2f}x as it is, {0.1 * one['ratio']:.2f}x" in show.line(
        record
    )
    assert "best_peer_without_padding" not in with_paths(path("fast"))


# ---- a run ----


class Faulting(instrument.Instrument):
    """Of a GPU on which what `fails` says of a path happens in every case, or without that path, too."""

    def __init__(self, fails: Callable[[], Any], always: bool = False) -> None:
        self._fails, self._always = fails, always

    def times(self, *inputs: Any) -> Any:
        if self._always or not os.environ.get(gpu_attention_paths.WITHOUT):
            self._fails()
        return super().times(*inputs)


def run(
    monkeypatch: pytest.MonkeyPatch,
    names: Sequence[str],
    one: instrument.Instrument,
    *words: str,
    ours: Any = None,
) -> int:
    case = bench_cases.case(ours=ours or bench_cases.doubled)
    made = [type(case)(name, case.problem, case.shape, setup=0.0) for name in names]
    monkeypatch.setattr(command, "all_cases", lambda device: made)
    monkeypatch.setattr(command, "ON_CUDA", ("toy", "attention"))
    monkeypatch.setattr(sitting.harness, "surroundings", lambda *x: bench_surroundings())
    monkeypatch.setattr(sitting, "pace_of", lambda *x: bench_cases.BLINK)
    monkeypatch.setattr(sitting, "measured_with", lambda *x: (one, FakeLimits()))
    families = {name.partition("/")[0]: None for name in names}
    return cli.main(["bench", "--device", "cuda", *families, *words])


def bench_surroundings() -> dict[str, Any]:
    from earnest.bench import machine

    return {
        "cpu": machine.cpu(),
        "versions": machine.versions(),
        "system": "toy",
        "command": "earnest bench",
    }


ENDS = {
    "dies": (os.abort, "its process was ended by SIGABRT"),
    "is killed": (lambda: os.kill(os.getpid(), signal.SIGSEGV), "its process was ended by SIGSEGV"),
    "leaves": (lambda: os._exit(3), "its process ended with exit code 3"),
    "hangs": (threading.Event().wait, "no answer after 2 s"),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_spoils_a_process_costs_its_case_alone(end, monkeypatch, capfd, tmp_path):
    """In the second of three. Where it was, the process says itself, but for one that leaves by itself."""
    fails, reason = ENDS[end]
    monkeypatch.setattr(budget, "GRACE", 2.0 if end == "hangs" else 60.0)
    monkeypatch.setenv(gpu_attention_paths.WITHOUT, "")

    class Second(instrument.Instrument):
        cases = 0

        def times(self, *inputs: Any) -> Any:
            self.cases += 1
            if self.cases == 2:
                fails()
            return super().times(*inputs)

    names = ["toy/a", "toy/b", "toy/c"]
    file = tmp_path / "kept.jsonl"
    assert run(monkeypatch, names, Second(), "--seconds", "60", "--json", str(file)) == 1
    out, err = capfd.readouterr()
    assert f"toy/b: not measured, {reason}" in out
    assert ("in times" in err) == (end != "leaves")
    assert list(results.read(file)) == ["toy/a", "toy/c"]


def test_a_faulty_path_is_left_out_of_its_family_and_the_case_is_measured(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(gpu_attention_paths.WITHOUT, "")
    names = ["attention/a", "attention/b", "toy/c", "toy/d"]
    file = tmp_path / "kept.jsonl"
    assert run(monkeypatch, names, Faulting(os.abort), "--json", str(file)) == 1
    out = capsys.readouterr().out
    assert list(results.read(file)) == ["attention/a", "attention/b"]
    lost = "LOST its process was ended by SIGABRT; measured without sm90a, as are all others of attention"
    assert out.count(lost) == 1  # the second one was not tried with it
    assert out.count("not measured, its process was ended by SIGABRT") == 2  # of toy nothing is left out


def test_what_fails_without_the_path_too_is_said_and_what_goes_without_is_tried_once(monkeypatch, capfd):
    aborted = "not measured, its process was ended by SIGABRT"
    begun = processes_begun(monkeypatch)
    for without, twice in (("", "; without sm90a: its process was ended by SIGABRT"), ("sm90a", "")):
        monkeypatch.setenv(gpu_attention_paths.WITHOUT, without)
        before = begun()
        assert run(monkeypatch, ["attention/a"], Faulting(os.abort, always=True)) == 1
        assert f"attention/a: {aborted}{twice}\n" in capfd.readouterr().out
        assert begun() - before == 1 + bool(twice)


def test_a_path_that_hangs_until_the_end_of_the_run_is_not_tried_without(monkeypatch, capfd):
    monkeypatch.setenv(gpu_attention_paths.WITHOUT, "")
    begun = processes_begun(monkeypatch)
    assert run(monkeypatch, ["attention/a"], Faulting(threading.Event().wait), "--seconds", "3") == 1
    assert "; no time is left to try it without sm90a" in capfd.readouterr().out
    assert begun() == 1


def test_a_gpu_that_is_gone_ends_the_run_and_says_what_is_missing(monkeypatch, capfd):
    """What is asked of a new process fails from the second one on."""
    begun = processes_begun(monkeypatch)

    class Gone(Faulting):
        def broken(self) -> str:
            return "CUDA error: no device" if begun() > 1 else ""

    assert run(monkeypatch, [f"toy/{i}" for i in range(4)], Gone(os.abort, always=True)) == 1
    out = capfd.readouterr().out
    assert out.count("toy/0: not measured, its process was ended by SIGABRT") == 1
    assert "3 cases not measured: CUDA error: no device" in out


def processes_begun(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many processes have begun; counted where they are forked."""
    begun = [0]
    start = apart.Apart._start

    def counted(self: apart.Apart) -> None:
        begun[0] += 1
        start(self)

    monkeypatch.setattr(apart.Apart, "_start", counted)
    return lambda: begun[0]


def test_a_spoiled_context_is_left(monkeypatch, capsys):
    class Spoiled(instrument.Instrument):
        times_asked = 0

        def broken(self) -> str:
            self.times_asked += 1
            return "CUDA error: an illegal memory access" if self.times_asked == 2 else ""

    begun = processes_begun(monkeypatch)
    assert run(monkeypatch, ["toy/0", "toy/1"], Spoiled()) == 1
    out = capsys.readouterr().out
    for name in ("toy/0", "toy/1"):  # each the first of its process
        assert f"{name}: not measured, CUDA error: an illegal memory access" in out
    assert begun() == 2


def test_a_gpu_that_does_not_start_is_said(monkeypatch, capsys):
    def begins(*_: Any) -> Any:
        raise RuntimeError("CUDA error: no memory left")

    monkeypatch.setattr(command, "ON_CUDA", ("toy",))
    monkeypatch.setattr(command, "all_cases", lambda device: [bench_cases.case()])
    monkeypatch.setattr(sitting, "measured_with", begins)
    assert cli.main(["bench", "--device", "cuda"]) == 1
    assert "1 cases not measured: RuntimeError: CUDA error: no memory left" in capsys.readouterr().out


def test_a_case_that_fails_while_it_is_timed_does_not_cost_the_others(monkeypatch, capsys):
    class Full(instrument.Instrument):
        def times(self, *inputs: Any) -> Any:
            raise RuntimeError("CUDA out of memory")

    assert run(monkeypatch, ["toy/0", "toy/1"], Full()) == 1
    out = capsys.readouterr().out
    assert "toy/0: not measured, CUDA out of memory" in out
    assert "toy/1: not measured, CUDA out of memory" in out


def test_a_wrong_path_of_ours_ends_the_run_with_1(monkeypatch):
    assert run(monkeypatch, ["toy/0"], instrument.Instrument()) == 0
    assert run(monkeypatch, ["toy/0"], instrument.Instrument(), ours=lambda x: x) == 1
    assert command._is_ours("earnest, sm90a, wide")
    assert not command._is_ours("earnestly")


def test_a_case_without_time_is_named(monkeypatch, capsys):
    names = ["toy/0", "toy/1"]
    assert run(monkeypatch, names, instrument.Instrument(), "--seconds", "0.05") == 0
    out = capsys.readouterr().out
    assert "toy/0: not measured, no time is left of 0.05 s" in out
    assert "toy/1: not measured" in out
    assert run(monkeypatch, names, instrument.Instrument(), "--seconds", "60") == 0
    assert "not measured" not in capsys.readouterr().out


def test_seconds_are_of_a_gpu_and_more_than_0(monkeypatch, capsys):
    assert run(monkeypatch, ["toy/0"], instrument.Instrument(), "--seconds", "0") == 2
    assert cli.main(["bench", "logmel", "--seconds", "5"]) == 2
    assert capsys.readouterr().err.count("[bench] --seconds: expected more than 0, with --device cuda") == 2

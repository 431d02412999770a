# SPDX-License-Identifier: Apache-2.0
"""How a GPU's time is shared among those that are compared, on a clock that the test turns; and what a run
says of our paths, of time that is over and of a GPU that is lost."""

from typing import Any

import bench_cases
import pytest
from bench_cases import FakeLimits

from earnest import cli
from earnest.bench import command, gpu, instrument, show
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


class Lost(instrument.Instrument):
    """Of a GPU that is lost in the second case."""

    def __init__(self) -> None:
        self.cases = 0

    def broken(self) -> str:
        self.cases += 1
        return "CUDA error: an illegal memory access" if self.cases == 2 else ""


def run(
    monkeypatch: pytest.MonkeyPatch, count: int, one: instrument.Instrument, *words: str, ours: Any = None
) -> int:
    case = bench_cases.case(ours=ours or bench_cases.doubled)
    made = [type(case)(f"toy/{i}", case.problem, case.shape, setup=0.0) for i in range(count)]
    monkeypatch.setattr(command, "all_cases", lambda device: made)
    monkeypatch.setattr(command, "ON_CUDA", ("toy",))
    monkeypatch.setattr(command.harness, "surroundings", lambda *x: bench_surroundings())
    monkeypatch.setattr(command, "_measured_with", lambda *x: (bench_cases.BLINK, one, FakeLimits()))
    return cli.main(["bench", "--device", "cuda", *words])


def bench_surroundings() -> dict[str, Any]:
    from earnest.bench import machine

    return {"cpu": machine.cpu(), "versions": machine.versions()}


def test_a_lost_gpu_ends_the_run_and_says_what_is_missing(monkeypatch, capsys):
    assert run(monkeypatch, 5, Lost()) == 1
    out = capsys.readouterr().out
    assert "toy/1" in out
    assert "toy/2 " not in out
    assert "3 cases not measured: CUDA error: an illegal memory access" in out


def test_a_case_that_fails_while_it_is_timed_does_not_cost_the_others(monkeypatch, capsys):
    class Full(instrument.Instrument):
        def times(self, *inputs: Any) -> Any:
            raise RuntimeError("CUDA out of memory")

    assert run(monkeypatch, 2, Full()) == 1
    out = capsys.readouterr().out
    assert "toy/0: not measured, CUDA out of memory" in out
    assert "toy/1: not measured, CUDA out of memory" in out


def test_a_wrong_path_of_ours_ends_the_run_with_1(monkeypatch):
    assert run(monkeypatch, 1, instrument.Instrument()) == 0
    assert run(monkeypatch, 1, instrument.Instrument(), ours=lambda x: x) == 1
    assert command._is_ours("earnest, sm90a, wide")
    assert not command._is_ours("earnestly")


def test_a_case_without_time_is_named(monkeypatch, capsys):
    assert run(monkeypatch, 2, instrument.Instrument(), "--seconds", "0.05") == 0
    out = capsys.readouterr().out
    assert "toy/0: not measured, no time is left of 0.05 s" in out
    assert "toy/1: not measured" in out
    assert run(monkeypatch, 2, instrument.Instrument(), "--seconds", "60") == 0
    assert "not measured" not in capsys.readouterr().out


def test_seconds_are_of_a_gpu_and_more_than_0(monkeypatch, capsys):
    assert run(monkeypatch, 1, instrument.Instrument(), "--seconds", "0") == 2
    assert cli.main(["bench", "logmel", "--seconds", "5"]) == 2
    assert capsys.readouterr().err.count("[bench] --seconds: expected more than 0, with --device cuda") == 2

# SPDX-License-Identifier: Apache-2.0
"""A wrong result is refused, what is absent is said, and where a case stands is right arithmetic."""

import bench_cases
import numpy as np
import pytest
from bench_cases import FakeLimits, doubled, settings

from earnest.bench.case import Absent, Implementation, Target, largest_difference, largest_error
from earnest.bench.harness import is_met, measure
from earnest.bench.limits import Limits


def run(case=None, **changes):
    return measure(case or bench_cases.case(), settings(**changes), FakeLimits())


def named(record, name):
    return next(r for r in record["results"] if r["name"] == name)


def test_a_right_result_is_timed_beside_its_peer():
    record = run()
    assert record["wrong"] == record["absent"] == {}
    assert record["best_peer"] == "slow"
    assert record["ratio"] > 10
    assert record["ratio"] == named(record, "slow")["ratio"]
    assert named(record, "earnest")["ratio"] == 1.0
    low, high = record["ratio_quartiles"]
    assert 0 < low <= record["ratio"] <= high
    assert named(record, "earnest")["error"] == 0.0
    assert named(record, "earnest")["samples"] == 3


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x * 2.001,
        lambda x: x * np.nan,
        lambda x: (x * 2)[:9],
        lambda x: np.where(np.arange(10) == 7, x, x * 2),
    ],
)
def test_a_wrong_result_of_ours_gives_no_times(wrong):
    record = run(bench_cases.case(ours=wrong))
    assert "off by" in record["wrong"]["earnest"]
    assert record["results"] == []
    assert record["ratio"] is None


def test_ours_that_raises_is_wrong_too():
    def broken(x):
        raise RuntimeError("no such tier")

    record = run(bench_cases.case(ours=broken))
    assert record["wrong"] == {"earnest": "fails: RuntimeError: no such tier"}
    assert record["results"] == []


def test_a_wrong_peer_is_named_and_never_the_best():
    record = run(bench_cases.case(Implementation("liar", lambda: lambda x: x, extra=False)))
    assert "off by" in record["wrong"]["liar"]
    assert {r["name"] for r in record["results"]} == {"earnest", "slow"}
    assert record["best_peer"] == "slow"


def test_what_is_absent_is_said_with_its_reason():
    def missing():
        raise Absent("turbo: not installed")

    record = run(bench_cases.case(Implementation("turbo", missing, extra=False)))
    assert record["absent"] == {"turbo": "turbo: not installed"}
    assert record["ratio"] > 1


def test_ours_absent_leaves_the_peers():
    def missing():
        raise Absent("earnest.ops.linear: this version has none")

    case = bench_cases.case()
    problem = case.problem(np.random.default_rng(0))
    problem.implementations[0] = Implementation("earnest", missing, "ours")
    lone = type(case)(case.name, lambda rng: problem, case.shape, target=Target(ratio=2.0))
    record = run(lone, peers=True)
    assert [r["name"] for r in record["results"]] == ["slow"]
    assert record["ratio"] is record["fraction"] is record["met"] is None


def test_a_case_that_nobody_can_run_says_why_and_ends():
    def missing():
        raise Absent("models: none")

    case = bench_cases.case()
    problem = case.problem(np.random.default_rng(0))
    problem.implementations[:] = [Implementation("earnest", missing, "ours")]
    record = run(type(case)(case.name, lambda rng: problem, case.shape, target=Target(ratio=2.0)), peers=True)
    assert record["absent"] == {"earnest": "models: none"}
    assert record["results"] == []
    assert record["met"] is None


def test_peers_of_the_extra_run_only_when_asked_for_and_slow_starters_not_in_a_hurry():
    more = (Implementation("extra", lambda: doubled), Implementation("jit", lambda: doubled, compiles=True))

    def names(**changes):
        return {r["name"] for r in run(bench_cases.case(*more), **changes)["results"]}

    assert names() == {"earnest", "slow"}
    assert names(peers=True) == {"earnest", "slow", "extra", "jit"}
    assert names(peers=True, quick=True) == {"earnest", "slow", "extra"}


def test_another_definition_is_timed_but_never_the_best():
    other = Implementation("other", lambda: lambda x: x, reference=None, definition="copies", extra=False)
    record = run(bench_cases.case(other))
    assert named(record, "other")["error"] is None
    assert named(record, "other")["definition"] == "copies"
    assert record["best_peer"] == "slow"


def test_its_own_reference_holds_a_peer_to_its_own_definition():
    def tripled(x):
        return [x * 3]

    right = Implementation("right", lambda: lambda x: x * 3, reference=tripled, extra=False)
    wrong = Implementation("wrong", lambda: doubled, reference=tripled, extra=False)
    record = run(bench_cases.case(right, wrong))
    assert named(record, "right")["error"] == 0.0
    assert set(record["wrong"]) == {"wrong"}


def test_the_fraction_is_the_longer_of_reading_and_computing():
    record = run()
    assert record["limit"] == {"seconds": pytest.approx(160e-9), "by": "read"}  # 160 bytes at 1 GB/s
    assert record["fraction"] == pytest.approx(160e-9 / named(record, "earnest")["median"])
    busy = bench_cases.case()
    problem = busy.problem(np.random.default_rng(0))
    heavy = type(problem)(**{**vars(problem), "operations": 200})
    record = run(type(busy)(busy.name, lambda rng: heavy, busy.shape))
    assert record["limit"] == {"seconds": pytest.approx(200e-9), "by": "arithmetic"}  # at the loop's rate


def test_a_product_faster_than_the_limit_raises_the_limit():
    limits = FakeLimits()
    busy = bench_cases.case()
    problem = busy.problem(np.random.default_rng(0))
    heavy = type(problem)(**{**vars(problem), "operations": 10**12})
    record = measure(type(busy)(busy.name, lambda rng: heavy, busy.shape), settings(), limits)
    assert record["fraction"] == pytest.approx(1.0)
    assert limits.arithmetic("float32", 1)["reached"] > 1e12


def test_reading_faster_than_the_limit_raises_the_limit():
    limits = Limits(seconds=0.01, most_bytes=1 << 20)
    problem = bench_cases.case().problem(np.random.default_rng(0))
    before = limits.read_rate(problem.working_set, 1)
    limits.reached(problem, "float32", 1, 1.0)
    assert limits.read_rate(problem.working_set, 1) == before
    limits.reached(problem, "float32", 1, 1e-15)
    assert limits.time(problem, "float32", 1)[0] == pytest.approx(1e-15)


def test_targets_are_judged_part_by_part_and_only_beside_all_peers():
    assert run(bench_cases.case(target=Target(ratio=2.0)))["met"] is None
    assert run(bench_cases.case(target=Target(ratio=2.0)), peers=True, quick=True)["met"] is None
    assert run(bench_cases.case(target=Target(ratio=2.0)), peers=True)["met"] is True
    assert run(bench_cases.case(target=Target(ratio=1e9)), peers=True)["met"] is False
    assert run(bench_cases.case(target=Target(ratio=2.0, fraction=2.0)), peers=True)["met"] is False
    assert run(bench_cases.case(target=Target(ratio=2.0, against="slow")), peers=True)["met"] is True
    assert run(bench_cases.case(target=Target(ratio=2.0, against="nobody")), peers=True)["met"] is None
    record = run(bench_cases.case(target=Target(ratio=2.0, against="slow")))
    assert record["yardstick_ratio"] == record["ratio"]
    record = {"results": [{"role": "ours", "extra_bytes": 5, "first_call_bytes": 90, "error": 1e-3}]}
    assert is_met(Target(extra_bytes=89), record | {"ratio": None, "fraction": None}) is False
    assert is_met(Target(extra_bytes=90), record | {"ratio": None, "fraction": None}) is True
    assert is_met(Target(error=1e-4), record | {"ratio": None, "fraction": None}) is False


def test_errors_are_of_the_largest_value_or_as_they_are():
    got, expected = [np.array([10.0, 1.0])], [np.array([10.0, 2.0])]
    assert largest_error(got, expected) == pytest.approx(0.1)
    assert largest_difference(got, expected) == pytest.approx(1.0)
    assert largest_error([], expected) == float("inf")
    assert largest_error([np.array([0.5])], [np.array([0.0])]) == 0.5
    assert largest_error([np.zeros(0)], [np.zeros(0)]) == 0.0

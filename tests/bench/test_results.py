# SPDX-License-Identifier: Apache-2.0
"""Result files, their comparison and their report, with records of the made-up case."""

import json
import re
from pathlib import Path

import bench_cases
import pytest

from earnest import cli
from earnest.bench import command, compare, harness, report, results, show
from earnest.bench.case import Target
from earnest.errors import InvalidInput

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def measured() -> dict:
    settings = bench_cases.settings(peers=True)
    record = harness.measure(bench_cases.case(target=Target(ratio=2.0)), settings, bench_cases.FakeLimits())
    shared = harness.surroundings("earnest bench toy")
    return {"case": record["case"], "time": "2026-01-02T03:04:05+00:00", **shared, **record}


def with_times(record: dict, case: str = "toy/doubling", **medians: float) -> dict:
    """The record with other medians; the ratio stays in step."""
    ours = medians.get("earnest")
    chosen = [
        dict(r, median=medians[r["name"]], ratio=ours and medians[r["name"]] / ours)
        for r in record["results"]
        if r["name"] in medians
    ]
    ratio = ours and medians["slow"] / ours
    quartiles = ratio and [ratio, ratio]
    return record | {"case": case, "results": chosen, "ratio": ratio, "ratio_quartiles": quartiles}


def write(path: Path, *records: dict) -> Path:
    for record in records:
        results.append(record, path)
    return path


def test_a_record_survives_the_file_and_has_every_field(measured: dict, tmp_path: Path):
    assert [key for key in results.REQUIRED if key not in measured] == []
    path = write(tmp_path / "deep" / "a.jsonl", measured)
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["cpu"]["cores"] >= 1
    found = results.read(path)["toy/doubling"]
    assert found["ratio"] == pytest.approx(measured["ratio"], rel=1e-5)
    assert found["versions"]["torch"] == measured["versions"]["torch"]
    assert found["met"] is True
    assert found["seed"] == 1


def test_the_last_record_of_a_case_counts(measured: dict, tmp_path: Path):
    path = write(
        tmp_path / "a.jsonl",
        with_times(measured, slow=2.0, earnest=1.0),
        with_times(measured, "toy/other", slow=2.0, earnest=1.0),
        with_times(measured, slow=6.0, earnest=1.0),
    )
    assert [(name, r["ratio"]) for name, r in results.read(path).items()] == [
        ("toy/doubling", 6.0),
        ("toy/other", 2.0),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "a.jsonl:1: expected a JSON object"),
        ("[1]", "got list"),
        ('{"case": "x"}', "none called family"),
    ],
)
def test_a_broken_file_is_named_with_line_and_reason(line: str, words: str, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(InvalidInput, match="expected") as caught:
        results.read(tmp_path / "a.jsonl")
    assert words in str(caught.value)
    with pytest.raises(InvalidInput, match="No such file"):
        results.read(tmp_path / "none.jsonl")


# ---- compare ----


@pytest.mark.parametrize(
    ("slower", "ratio", "code"), [(3.0, 2.0, 1), (3.0, 4.0, 0), (1.0, 1.0, 0), (0.2, 1.0, 0)]
)
def test_compare_exits_with_1_beyond_the_ratio(
    slower: float, ratio: float, code: int, measured: dict, tmp_path: Path, capsys: pytest.CaptureFixture
):
    # The new machine is ten times slower altogether: only the ratio to the peer may count.
    old = write(tmp_path / "old.jsonl", with_times(measured, slow=2.0, earnest=1.0))
    new = write(tmp_path / "new.jsonl", with_times(measured, slow=20.0, earnest=10.0 * slower))
    assert cli.main(["bench", "compare", str(old), str(new), "--ratio", str(ratio)]) == code
    out = capsys.readouterr().out
    assert "toy/doubling" in out
    assert ("more than the limit" in out) == (code == 1)


def test_a_case_that_is_wrong_now_is_a_regression(measured: dict, tmp_path: Path):
    old = write(tmp_path / "old.jsonl", with_times(measured, slow=2.0, earnest=1.0))
    new = write(
        tmp_path / "new.jsonl", measured | {"results": [], "ratio": None, "wrong": {"earnest": "off"}}
    )
    (change,) = compare.compare(old, new).changes
    assert change.after is None
    assert cli.main(["bench", "compare", str(old), str(new), "--ratio", "100"]) == 1


def test_the_same_peer_is_compared_with_even_if_a_better_one_came(measured: dict, tmp_path: Path):
    old = write(tmp_path / "old.jsonl", with_times(measured, slow=2.0, earnest=1.0))
    better = with_times(measured, slow=2.0, earnest=1.0)
    better["results"].append(dict(better["results"][0], name="new peer", role="peer", median=0.1, ratio=0.1))
    new = write(tmp_path / "new.jsonl", better)
    (change,) = compare.compare(old, new).changes
    assert (change.against, change.before, change.after) == ("slow", 2.0, 2.0)
    (change,) = compare.compare(new, new).changes  # of two that both have, the stronger
    assert (change.against, change.before) == ("new peer", 0.1)


def test_a_case_that_is_lost_fails_and_what_cannot_be_compared_is_said(
    measured: dict, tmp_path: Path, capsys: pytest.CaptureFixture
):
    plain = with_times(measured, slow=2.0, earnest=1.0)
    alone = with_times(measured, "toy/alone", slow=2.0, earnest=1.0)
    alone["results"] = [r for r in alone["results"] if r["name"] == "earnest"]
    other = with_times(measured, "toy/other peer", slow=2.0, earnest=1.0)
    renamed = other | {"results": [dict(r, name=r["name"].replace("slow", "new")) for r in other["results"]]}
    lost, added = (plain | {"case": f"toy/{word}"} for word in ("lost", "added"))
    old = write(tmp_path / "old.jsonl", plain, alone, other)
    new = write(tmp_path / "new.jsonl", plain, alone, renamed, added)
    assert cli.main(["bench", "compare", str(old), str(new), "--ratio", "1"]) == 0
    out = capsys.readouterr().out
    for said in (
        r"toy/alone +not compared: no peer in the old file",
        r"toy/other peer +not compared: no peer in both files: slow then, new now",
        r"toy/added +not compared: not in the old file",
    ):
        assert re.search(said, out), said
    write(old, lost)
    assert cli.main(["bench", "compare", str(old), str(new), "--ratio", "1000"]) == 1
    assert re.search(r"toy/lost +LOST: not in the new file", capsys.readouterr().out)


def test_ours_may_not_vanish_from_a_case_without_peers(measured: dict, tmp_path: Path):
    plain = with_times(measured, slow=2.0, earnest=1.0)
    alone = with_times(measured, "toy/alone", slow=2.0, earnest=1.0)
    alone["results"] = [r for r in alone["results"] if r["name"] == "earnest"]
    old = write(tmp_path / "old.jsonl", plain, alone)
    new = write(tmp_path / "new.jsonl", plain, alone | {"results": [], "wrong": {"earnest": "off"}})
    assert compare.compare(old, new).is_worse(1000.0)


def test_the_baseline_of_ci_is_one_of_quick_cases_that_there_are():
    """CI compares a quick run with it, and a case that it has and the run has not would fail."""
    records = results.read(ROOT / ".ci" / "bench_baseline.jsonl")
    assert len(records) > 10
    assert records.keys() <= {case.name for case in command.chosen([], quick=True)}
    assert all(record["quick"] and not record["wrong"] for record in records.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare"], "two result files"),
        (["compare", "a", "b", "--ratio", "0.5"], "at least 1"),
        (["compare", "none.jsonl", "none.jsonl"], "No such file"),
        (["nothing"], "expected logmel, pitch"),
        (["linear", "--threads", "0"], "--threads: expected 1 to"),
        (["--json", "linear"], "name it first"),
    ],
)
def test_mistakes_are_one_sentence_and_code_2(words: list[str], said: str, capsys: pytest.CaptureFixture):
    assert cli.main(["bench", *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_nothing_in_common_is_a_mistake(measured: dict, tmp_path: Path):
    old = write(tmp_path / "old.jsonl", with_times(measured, slow=2.0, earnest=1.0))
    new = write(tmp_path / "new.jsonl", with_times(measured, "toy/other", slow=2.0, earnest=1.0))
    with pytest.raises(InvalidInput, match="a case with a common peer"):
        compare.compare(old, new)


# ---- report ----


def test_a_report_is_a_page_and_a_plot_and_the_block_of_the_readme(
    measured: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "bench" / "results"
    absent = with_times(measured, "toy/absent", slow=2.0) | {"absent": {"turbo": "turbo: not installed"}}
    write(folder / "here.jsonl", with_times(measured, slow=3.0, earnest=1.0), absent)
    readme = tmp_path / "README.md"
    readme.write_text(f"# toy\n\n{report.BEGIN}\nold\n{report.END}\n\nend\n")
    assert cli.main(["bench", "report"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    page = (folder / "here.md").read_text()
    assert "| toy/doubling (1T) | 1 s | 3 s | slow | 3.00x | 2x met |" in page
    assert "turbo: not installed" in page
    svg = (folder / "here.svg").read_text()
    assert "3.00x slow" in svg
    text = readme.read_text()
    assert text.startswith("# toy\n")
    assert text.endswith("\nend\n")
    assert "old" not in text
    assert report.block_in(text) == report.block([Path("bench/results/here.jsonl")])
    assert "| toy/doubling | 1 | 3.00x | slow |" in report.block_in(text)
    assert cli.main(["bench", "report"]) == 0  # the same again: the same bytes
    assert (readme.read_text(), (folder / "here.svg").read_text()) == (text, svg)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("ppo/gae-16x1024", "ppo/gae"),
        ("logmel/30s-80-bins", "logmel"),
        ("engine/first-token-turn-50", "engine/first-token-turn"),
        ("engine/memory-bf16", "engine/memory"),
        ("toy/doubling", "toy/doubling"),
    ],
)
def test_a_case_is_of_a_kind(case: str, kind: str):
    assert report.kind_of(case) == kind


def test_the_readme_has_a_row_for_each_kind_with_the_least_and_the_most(measured: dict, tmp_path: Path):
    path = tmp_path / "here.jsonl"
    fast = with_times(measured, "toy/sum-1", slow=3.0, earnest=1.0) | {"fraction": 0.5}
    slow = with_times(measured, "toy/sum-2", slow=1.5, earnest=1.0) | {"fraction": 0.25, "met": False}
    other = with_times(measured, "toy/product-2x2", slow=2.0, earnest=1.0) | {
        "ratio": None,
        "met": None,
        "fraction": 0.25,
    }
    unasked = with_times(measured, "toy/sum-3", slow=9.0, earnest=1.0) | {"target": {}}
    write(path, fast, slow, other, unasked)
    rows = report.block([path]).splitlines()[-2:]
    assert rows == [
        "| toy/sum | 2 | 1.50x to 3.00x | slow | 25% to 50% | 1 of 2 |",
        "| toy/product | 1 | - | - | 25% | 0 of 0 |",
    ]


def test_no_results_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "report"]) == 2
    assert report.block([]) == report.NOTHING_YET


def test_the_block_of_the_readme_is_that_of_the_committed_results(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    paths = sorted(Path("bench/results").glob("*.jsonl"))
    assert report.block_in((ROOT / "README.md").read_text()) == report.block(paths)
    for path in paths:
        records = results.read(path).values()
        assert not any(record["quick"] for record in records)
        assert path.with_suffix(".md").is_file()


def test_every_commit_of_a_page_is_named(measured: dict):
    records = [measured | {"commit": commit * 8, "changed": commit == "c"} for commit in "abbcbc"]
    assert "cores, commits bbbbbbb, ccccccc (changed), aaaaaaa, 20" in report.heading(records)
    assert "cores, commit aaaaaaa, 20" in report.heading(records[:1])


def test_words_for_numbers(measured: dict):
    assert [show.seconds(x) for x in (2.5, 0.0123, 4.2e-6, 5e-8)] == [
        "2.5 s",
        "12.3 ms",
        "4.2 us",
        "0.050 us",
    ]
    record = with_times(measured, slow=3.0, earnest=1.5) | {"per": [1500, "frame"]}
    assert show.time_of(show.our_result(record), record) == "1 ms/frame"
    assert show.target(record | {"target": {"ratio": 2.0, "fraction": 0.8}, "met": False}) == "2x+80% missed"
    logprob = {"target": {"ratio": 0.87, "against": "packed product"}, "yardstick_ratio": 0.9, "met": True}
    assert show.target(record | logprob) == "packed product 0.90x of 0.87x met"
    memory = {"target": {"extra_bytes": 64 << 20}, "met": False}
    assert show.target(record | memory) == "at most 64 MB missed"
    assert "WRONG earnest is off" in show.line(record | {"wrong": {"earnest": "is off"}})


def test_a_command_is_kept_without_this_machines_folders():
    from earnest.bench.command import _said

    assert _said(["bench", "ppo", "--json", "/tmp/x y/a.jsonl"]) == "earnest bench ppo --json a.jsonl"
    assert _said(["bench", "--json", "results/a.jsonl"]) == "earnest bench --json results/a.jsonl"

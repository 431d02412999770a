# SPDX-License-Identifier: Apache-2.0
"""The tables in plain text and Markdown, several runs together, the figure, what is said of the numbers."""

import json
import math
import struct
from pathlib import Path

import pytest
from fake_run import TASKS, fake_metrics, make_run

from earnest import cli
from earnest.report import markdown, plot, table, table_by_manner, table_of_runs
from earnest.report.chart import Line, line_chart, ticks
from earnest.report.columns import mean_and_spread
from earnest.report.summary import accuracy_change, summary


def columns(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_one_row_for_each_stage_and_one_column_for_each_figure():
    accuracy, replies = (part.splitlines() for part in table(fake_metrics()).split("\n\n"))
    assert columns(accuracy[0]) == ["accuracy", "all", *TASKS, "no audio"]
    assert columns(replies[0]) == [
        "replies", "utility", "wins vs SFT", "wins vs RLVR", "reply words", "takes up voice", "reasoning"
    ]  # fmt: skip
    assert [columns(line)[0] for line in accuracy[2:]] == ["mid-trained", "SFT", "RLVR", "RLHF"]
    assert columns(accuracy[4])[1:3] == ["75.0%", "75.0%"]
    assert columns(replies[5])[1:] == ["1.70", "79.0% [75, 83]", "83.0% [79, 87]", "8.8", "44.0%", "18.0"]
    assert columns(replies[3])[2] == "-"  # SFT against itself says nothing
    assert len({len(line) for line in accuracy}) == 1
    assert len(accuracy[0]) <= 100
    assert len(replies[0]) <= 100


def test_figures_that_nobody_knows_have_no_column_and_single_ones_a_dash():
    metrics = fake_metrics()
    for row in metrics["stages"].values():
        del row["listener_utility"]
        row["acknowledges_speaker"] = float("nan")
    metrics["stages"]["rlhf"]["reply_words"] = None
    text = table(metrics)
    assert "utility" not in text
    assert "takes up voice" not in text
    assert columns(text.splitlines()[-1]) == ["RLHF", "79.0% [75, 83]", "83.0% [79, 87]", "-", "18.0"]
    assert table({"stages": {}}) == table({})


def test_accuracy_by_how_it_sounds_has_a_column_for_each_third():
    pitch, rate, level = (part.splitlines() for part in table_by_manner(fake_metrics()).split("\n\n"))
    assert columns(pitch[0]) == [
        "by pitch",
        "nothing to measure (2)",
        "92 to 118 Hz (160)",
        "118 to 183 Hz (160)",
        "183 to 301 Hz (160)",
    ]
    assert columns(rate[0])[1] == "1.9 to 3.3 syllables/s (160)"
    assert columns(level[4]) == ["RLVR", "75.0% [70, 80]", "76.0% [71, 81]", "77.0% [72, 82]"]
    assert max(len(line) for line in (*pitch, *rate, *level)) <= 110
    metrics = fake_metrics()
    for row in metrics["stages"].values():
        del row["accuracy_by_measured"]
    assert table_by_manner(metrics) == ""
    assert table(metrics) == table(fake_metrics())


def test_thirds_of_different_cases_are_not_named_by_the_values_of_one():
    metrics = fake_metrics()
    metrics["stages"]["rlvr"]["accuracy_by_measured"]["f0_hz"]["low"]["to"] = 130.0
    lines = table_by_manner(metrics).splitlines()
    assert columns(lines[0])[2:4] == ["lowest third", "118 to 183 Hz (160)"]


def test_markdown_has_the_same_cells():
    lines = markdown(fake_metrics()).splitlines()
    assert lines[0].startswith("| accuracy | all | arithmetic |")
    assert lines[1].count("---:") == lines[0].count("|") - 2
    assert "| RLHF | 1.70 | 79.0% [75, 83] | 83.0% [79, 87] | 8.8 | 44.0% | 18.0 |" in lines


def test_several_runs_give_mean_and_standard_deviation(tmp_path: Path):
    folders = [make_run(tmp_path / str(seed), seed) for seed in range(3)]
    for folder, accuracy in zip(folders, (0.70, 0.76, 0.82), strict=True):
        metrics = fake_metrics()
        metrics["stages"]["rlvr"]["accuracy"] = accuracy
        (folder / "metrics.json").write_text(json.dumps(metrics))
    text = table_of_runs(folders)
    assert "3 runs" in text
    assert "76.0% ± 6.0" in text
    assert "60.0% ± 0.0" in text
    assert "| RLVR | 76.0% ± 6.0 |" in table_of_runs(folders, as_markdown=True)
    assert "±" not in table_of_runs(folders[:1]).split("\n\n", 1)[1]


def test_the_spread_is_the_sample_standard_deviation():
    assert mean_and_spread([1.0, 2.0, 3.0, 4.0]) == (2.5, pytest.approx(math.sqrt(5 / 3)))
    assert mean_and_spread([7.0]) == (7.0, 0.0)


def test_the_figure_is_wide_enough_for_a_readme(tmp_path: Path):
    data = plot(make_run(tmp_path / "run"), tmp_path / "figure.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data[:4] == b"\x89PNG"
    assert (width, height) == (1600, 480)


# ---- sentences ----


def say(**changes: dict) -> str:
    metrics = fake_metrics()
    for stage, values in changes.items():
        metrics["stages"][stage] |= values
    return " ".join(summary(metrics))


def test_the_trap_is_called_by_its_name_and_only_then():
    text = say()
    assert "RLVR raised verified accuracy: 60.0% to 75.0% (+15.0 points" in text
    assert "Words in a reply went from 7.4 to 2.2" in text
    assert "34.0% [30, 38]" in text
    assert "this is the trap" in text
    liked = {"win_rate_vs_sft": 0.6, "win_rate_vs_sft_low": 0.55, "win_rate_vs_sft_high": 0.65}
    assert "more liked as well: the trap did not appear" in say(rlvr=liked)
    even = {"win_rate_vs_sft": 0.49, "win_rate_vs_sft_low": 0.45, "win_rate_vs_sft_high": 0.53}
    assert "liked no differently" in say(rlvr=even)
    assert "without the gain in accuracy" in say(rlvr={"accuracy": 0.61})
    assert "did not move verified accuracy beyond chance" in say(rlvr={"accuracy": 0.61})
    assert "RLVR lowered verified accuracy" in say(rlvr={"accuracy": 0.4})
    assert "there is no trap" in say(rlvr={"accuracy": 0.4, **even})


def test_each_mark_of_rlhf_is_met_or_not():
    text = say()
    assert "83.0% [79, 87] of the cases (at least 70% was wanted: met)" in text
    assert (
        "accuracy is 74.0%, RLVR's 75.0% (-1.0 points; no more than 2 points below was wanted: met)" in text
    )
    assert "Reasoning is kept: 18.0 to 18.0 tokens" in text
    poor = say(rlhf={"win_rate_vs_rlvr": 0.68, "win_rate_vs_rlvr_low": 0.64, "win_rate_vs_rlvr_high": 0.72,
                     "accuracy": 0.72, "reasoning_tokens": 2.0})  # fmt: skip
    assert "at least 70% was wanted: not met; the interval [64, 72] holds both sides" in poor
    assert "(-3.0 points; no more than 2 points below was wanted: not met)" in poor
    assert "Reasoning is not kept" in poor


def test_the_judge_and_the_silence_are_spoken_of():
    metrics = fake_metrics()
    text = " ".join(summary(metrics))
    assert "86.0% (above 80% was wanted: met)" in text
    assert "+0.004 ± 0.006 (standard error): within noise" in text
    assert "RLHF 74.0% with sound and 11.0% without" in text
    metrics["judge"] |= {"accuracy": 0.7, "swap_bias": -0.1}
    text = " ".join(summary(metrics))
    assert "wanted: not met" in text
    assert "more than noise" in text


def test_a_run_that_knows_nothing_says_nothing():
    assert summary({"stages": {}}) == []
    assert "too short to learn" in summary({"quick": True})[0]


def test_the_noise_of_a_difference():
    change = accuracy_change({"accuracy": 0.5, "cases": 400}, {"accuracy": 0.5, "cases": 400})
    assert change == (0.0, pytest.approx(2 * math.sqrt(0.25 / 400 * 2)))


# ---- charts ----


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25]),
        (0, 60, [0, 20, 40, 60]),
        (-3, 7, [-2, 0, 2, 4, 6]),
        (0.5, 0.5001, None),
        (0, 1e-9, None),
    ],
)
def test_ticks_are_round_few_and_inside(low: float, high: float, expected: list[float] | None):
    found = ticks(low, high, most=5)
    assert 2 <= len(found) <= 5
    slack = 1e-6 * (high - low)
    assert all(low - slack <= tick <= high + slack for tick in found)
    if expected is not None and len(expected) > 2:
        assert found == pytest.approx(expected)


def test_a_chart_leaves_out_what_cannot_be_drawn():
    points = [(0.0, 1.0), (1.0, float("nan")), (2.0, float("inf")), (3.0, -1.0), (4.0, 2.0)]
    figure = line_chart("loss", [Line("a", "sft", points)])
    assert "nan" not in figure
    assert "inf" not in figure
    assert figure.count('class="line sft" d="M0 ') == 1  # the key
    assert line_chart("loss", [Line("a", "sft", [])]) == ""
    assert line_chart("loss", [Line("a", "sft", [(1.0, -1.0)])], log=True) == ""
    assert "circle" in line_chart("one", [Line("a", "sft", [(1.0, 2.0)])])
    assert "<" not in line_chart("<x>", [Line("<y>", "sft", points)]).split("figcaption>")[1].split("</")[0]


# ---- the command ----


def test_report_prints_the_table_and_the_path(tmp_path: Path, capsys: pytest.CaptureFixture):
    run_dir = make_run(tmp_path / "run")
    assert cli.main(["report", str(run_dir), "--set", f"plot={tmp_path / 'f.png'}"]) == 0
    out = capsys.readouterr().out
    assert "mid-trained" in out
    assert str(run_dir / "report.html") in out
    assert (tmp_path / "f.png").is_file()
    assert cli.main(["report", str(run_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"]["rlhf"]["accuracy"] == 0.74


def test_report_of_several_runs_writes_their_table(tmp_path: Path, capsys: pytest.CaptureFixture):
    folders = [str(make_run(tmp_path / name, seed)) for seed, name in enumerate(("a", "b", 'c, "d"'))]
    assert cli.main(["report", *folders]) == 0
    assert "3 runs, mean ± standard deviation" in capsys.readouterr().out
    assert "| RLHF |" in (tmp_path / "seeds.md").read_text()
    assert "over seeds 0, 1, 2" in (tmp_path / "b" / "report.html").read_text()


def test_report_makes_lost_metrics_again_from_the_answers(tmp_path: Path, capsys: pytest.CaptureFixture):
    run_dir = make_run(tmp_path / "run")
    (run_dir / "metrics.json").unlink()
    (run_dir / "judge" / "judge.json").write_text(json.dumps(fake_metrics()["judge"]))
    assert cli.main(["report", str(run_dir)]) == 0
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["judge"]["accuracy"] == 0.86
    row = metrics["stages"]["rlhf"]
    assert row["cases"] == 24
    assert row["win_rate_vs_rlvr_low"] < row["win_rate_vs_rlvr"] < row["win_rate_vs_rlvr_high"]
    assert cli.main(["report", str(tmp_path / "nothing")]) == 2
    assert "expected a run folder with metrics.json or evaluation/, got neither" in capsys.readouterr().err

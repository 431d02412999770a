# SPDX-License-Identifier: Apache-2.0
"""The command `earnest evaluate`: which questions it asks, what it keeps, what it prints. No model is run."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import earnest.evaluate.stage
from earnest import cli
from earnest.evaluate.stage import Answer
from earnest.model import answer as answering
from earnest.ops import num_threads, set_num_threads
from earnest.stages import evaluate
from earnest.stages.source import DataSettings, PlaygroundSettings

REPLIES = {"q0": "it is eight", "q1": "B", "q2": "not fast"}


class FakeModel:
    """Has the one thing that evaluation asks of a model before it answers."""

    config = SimpleNamespace(audio_encoder_config=SimpleNamespace(n_mels=80))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were loaded. Each answers REPLIES, and nothing to silence."""
    loaded: list[str] = []

    def load_model(folder: Any, *, train: bool = True, device: str = "cpu") -> tuple[FakeModel, None]:
        loaded.append(str(folder))
        return FakeModel(), None

    def answer(
        model: FakeModel, tokenizer: None, cases: list, *, max_new_tokens: int, what: str
    ) -> list[Answer]:
        silent = "silence" in what
        replies = ["" if silent else REPLIES[case.history[-1].text] for case in cases]
        return [
            Answer(case.id, case.task, "", reply, bool(case.verify(reply)), 0)
            for case, reply in zip(cases, replies, strict=True)
        ]

    monkeypatch.setattr(evaluate, "load_model", load_model)
    monkeypatch.setattr(earnest.evaluate.stage, "answer", answer)
    return loaded


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    phase = 2 * np.pi * 150 * np.arange(8000) / 16000
    buzz = sum(np.sin(k * phase) / k for k in range(1, 10))
    buzz /= np.sqrt(np.mean(np.square(buzz)))
    soundfile.write(tmp_path / "quiet.wav", 0.01 * buzz, 16000)
    soundfile.write(tmp_path / "loud.wav", 0.2 * np.repeat(buzz, 2), 16000)  # an octave lower
    soundfile.write(tmp_path / "silence.wav", np.zeros(3200), 16000)

    def line(text: str, clip: str = "quiet.wav", **more: object) -> str:
        content = [{"type": "audio", "audio": clip}, {"type": "text", "text": text}]
        return json.dumps({"messages": [{"role": "user", "content": content}], **more})

    lines = [
        line("q0", answer=8, task="sums"),
        line("q1", "loud.wav", answer="drums", choices=["piano", "drums"], task="music"),
        line("q2", "silence.wav", answer="fast", task="sums"),
        line("q0", task="no answer"),
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def model_folder(path: Path) -> str:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return str(path)


def test_files_with_answers_are_scored_and_kept(
    asked: list[str], questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    model = model_folder(tmp_path / "m" / "sft")
    command = ["evaluate", model, "--set", f"data.files=[{questions}]", "--run", str(tmp_path / "out")]
    assert cli.main([*command, "--json"]) == 0
    captured = capsys.readouterr()
    row = json.loads(captured.out)["stages"]["sft"]
    assert row["cases"] == 3
    assert row["accuracy"] == pytest.approx(2 / 3)
    assert row["accuracy_by_task"] == {"music": 1.0, "sums": 0.5}
    assert row["accuracy_low"] < 2 / 3 < row["accuracy_high"]
    assert row["accuracy_audio_zeroed"] == 0.0
    assert "66.7%" in captured.err
    assert "utility" not in captured.err.split("accuracy ")[-1]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["stages"]["sft"] == row

    assert cli.main(command) == 0
    assert len(asked) == 1  # the same model on the same questions: read from the folder
    (tmp_path / "m" / "sft" / "config.json").write_text('{"changed": 1}')
    assert cli.main(command) == 0
    assert len(asked) == 2
    questions.write_text(questions.read_text().replace('"fast"', '"slow"'))
    assert cli.main(command) == 0
    assert cli.main([*command, "--fresh"]) == 0
    assert len(asked) == 4


def test_files_are_measured_and_accuracy_told_by_how_they_sound(
    asked: list[str], questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    command = ["evaluate", model_folder(tmp_path / "sft"), "--set", f"data.files=[{questions}]"]
    command += ["--run", str(tmp_path / "out")]
    assert cli.main([*command, "--json"]) == 0
    captured = capsys.readouterr()
    row = json.loads(captured.out)["stages"]["sft"]["accuracy_by_measured"]
    assert row.keys() == {"f0_hz", "syllables_per_second", "level_db"}
    pitch, level = row["f0_hz"], row["level_db"]
    assert [(third, group["cases"]) for third, group in pitch.items()] == [
        ("none", 1),
        ("low", 1),
        ("high", 1),
    ]
    assert pitch["low"]["from"] == pytest.approx(75, rel=0.01)
    assert pitch["high"]["to"] == pytest.approx(150, rel=0.01)
    assert (pitch["none"]["accuracy"], pitch["low"]["accuracy"]) == (0.0, 1.0)
    assert level["low"]["from"] == pytest.approx(20 * np.log10(0.01), abs=0.3)
    assert level["high"]["from"] == pytest.approx(20 * np.log10(0.2), abs=0.3)
    assert "75 to 75 Hz (1)" in captured.err
    kept = list((tmp_path / "out").glob("sft-*.json"))
    answers = json.loads(kept[0].read_text())
    assert [round(a["f0_hz"]) for a in answers["heard"]] == [150, 75, 0]
    assert {a["f0_hz"] for a in answers["unheard"]} == {None}  # to silence: nothing of the clip was heard
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"]["sft"]["accuracy_by_measured"] == row
    assert len(asked) == 1


def test_answers_kept_before_anything_was_measured_are_still_read(
    asked: list[str], questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    command = ["evaluate", model_folder(tmp_path / "sft"), "--set", f"data.files=[{questions}]"]
    command += ["--run", str(tmp_path / "out"), "--json"]
    assert cli.main(command) == 0
    kept = next((tmp_path / "out").glob("sft-*.json"))
    answers = json.loads(kept.read_text())
    for given in (*answers["heard"], *answers["unheard"]):
        del given["f0_hz"], given["syllables_per_second"], given["level_db"]
    kept.write_text(json.dumps(answers))
    capsys.readouterr()
    assert cli.main(command) == 0
    captured = capsys.readouterr()
    row = json.loads(captured.out)["stages"]["sft"]
    assert row["accuracy"] == pytest.approx(2 / 3)
    assert "accuracy_by_measured" not in row
    assert "by pitch" not in captured.err
    assert len(asked) == 1


def test_several_models_share_a_table(
    asked: list[str], questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    folders = [model_folder(tmp_path / name) for name in ("a/rlhf", "b/rlhf", "b/sft")]
    options = ["--set", f"data.files=[{questions}]", "--run", str(tmp_path / "out")]
    assert cli.main(["evaluate", *folders, *options]) == 0
    assert asked == folders
    out = capsys.readouterr().out
    assert folders[0] in out
    assert folders[1] in out
    assert "SFT" in out


def test_threads_are_set_for_torch_and_for_the_kernels(asked: list[str], questions: Path, tmp_path: Path):
    before = torch.get_num_threads(), num_threads()
    options = ["--set", f"data.files=[{questions}]", "--set", "run.threads=1", "--run", str(tmp_path / "out")]
    try:
        for set_threads in (torch.set_num_threads, set_num_threads):
            set_threads(2)
        assert cli.main(["evaluate", model_folder(tmp_path / "sft"), *options]) == 0
        assert (torch.get_num_threads(), num_threads()) == (1, 1)
    finally:
        torch.set_num_threads(before[0])
        set_num_threads(before[1])


def test_files_without_answers_are_refused(
    asked: list[str], questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    questions.write_text(questions.read_text().splitlines()[-1] + "\n")
    model = model_folder(tmp_path / "sft")
    assert (
        cli.main(["evaluate", model, "--set", f"data.files=[{questions}]", "--run", str(tmp_path / "o")]) == 2
    )
    assert "expected at least one line with an answer, got none" in capsys.readouterr().err


def test_the_playground_is_the_one_the_model_was_trained_in(tmp_path: Path):
    model = model_folder(tmp_path / "sft")
    settings = evaluate.Settings(model=model)
    assert evaluate.data_of(settings, model) == settings.data
    (tmp_path / "sft" / "settings.yaml").write_text(
        "data:\n  cases: 9\n  playground:\n    seed: 4\n    voices: words.tar\n    leave_out: theo\n"
    )
    found = evaluate.data_of(settings, model)
    assert found == replace(settings.data, playground=PlaygroundSettings(4, "words.tar", "theo"))
    given = evaluate.Settings(model=model, data=DataSettings(playground=PlaygroundSettings(seed=1)))
    assert evaluate.data_of(given, model) == given.data
    (tmp_path / "sft" / "settings.yaml").write_text("data:\n  playground:\n    unknown: 4\n")
    assert evaluate.data_of(settings, model) == settings.data


# ---- the Step sets ----


def test_answers_made_elsewhere_are_scored(
    asked: list[str], shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    folder = shared_data / "step_benchmarks" / "step_spqa"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps({"id": r["id"], "answer": r["label"]}) + "\n" for r in rows[:64]))
    options = [
        "--set",
        f"step.folder={folder}",
        "--set",
        f"step.answers={answers}",
        "--run",
        str(tmp_path / "o"),
    ]
    assert cli.main(["evaluate", "any/model", *options, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)["models"]["model"]
    assert result["score"] == pytest.approx(0.5)
    assert result["how"] == {"match": 64, "unanswered": 64}
    assert asked == []
    table = captured.err.splitlines()
    assert table[-1].split()[:2] == ["model", "50.0"]
    kept = json.loads((tmp_path / "o" / "step_spqa-model.json").read_text())
    assert len(kept["scores"]) == 128
    answers.write_text('{"answer": "no id"}\n')
    assert cli.main(["evaluate", "any/model", *options]) == 2
    assert f"{answers}:1: expected the keys id and answer" in capsys.readouterr().err


def test_missing_clips_are_said_before_a_model_is_loaded(
    asked: list[str], shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    folder = shared_data / "step_benchmarks" / "step_dialogue_understanding"
    command = [
        "evaluate",
        model_folder(tmp_path / "m"),
        "--set",
        f"step.folder={folder}",
        "--run",
        str(tmp_path / "o"),
    ]
    assert cli.main(command) == 2
    assert "row 1: expected its clip in the folder of the set, got audio/01.wav" in capsys.readouterr().err
    assert asked == []


def test_a_stopped_evaluation_of_a_set_goes_on(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    folder = tmp_path / "set"
    (folder / "audio").mkdir(parents=True)
    rows = [
        {"id": i, "recording_requirement_or_qa_category": "青年；男", "input_question_text": f"q{i}",  # noqa: RUF001
         "audio_path": f"audio/{i}.wav", "secondary_dimension": "s"} for i in range(3)
    ]  # fmt: skip
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i in range(3):
        (folder / "audio" / f"{i}.wav").write_bytes(b"clip")
    said: list[str] = []

    def answer(model: Any, tokenizer: Any, messages: list, **_: object) -> SimpleNamespace:
        said.append(messages[-1].text)
        if len(said) == 2:
            raise KeyboardInterrupt
        return SimpleNamespace(text="青年男性")

    monkeypatch.setattr(answering, "answer", answer)
    command = [
        "evaluate",
        model_folder(tmp_path / "m"),
        "--set",
        f"step.folder={folder}",
        "--run",
        str(tmp_path / "o"),
    ]
    assert cli.main(command) == 130
    assert cli.main(command) == 0
    assert said == ["q0", "q1", "q1", "q2"]
    assert "100.0" in capsys.readouterr().out.splitlines()[-1]

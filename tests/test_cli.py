# SPDX-License-Identifier: Apache-2.0
"""The command line: its words, its exit codes, one sentence for each mistake."""

import errno
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

import toy_loop
from earnest import cli
from earnest.errors import MissingExtra
from earnest.run import DiskFull, Interrupted
from earnest.settings import RunSettings

COMMANDS = ("demo", "midtrain", "sft", "rlvr", "judge", "rlhf", "chat", "evaluate", "report", "bench")


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stage in the place of sft, midtrain, evaluate, report and demo, that writes down what it was
    given."""
    module = types.ModuleType("stage")
    module.Settings = toy_loop.Settings
    module.given = []

    def main(settings: toy_loop.Settings, run_dir: Path) -> dict | None:
        module.given.append((settings, run_dir))
        print("a table")
        return module.result

    module.main, module.result = main, {"loss": 0.5}
    for name in ("sft", "evaluate", "report", "demo"):
        monkeypatch.setitem(sys.modules, f"earnest.stages.{name}", module)
    return module


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "earnest", *arguments], capture_output=True, text=True, timeout=300
    )


def test_help_names_every_command_and_loads_nothing_heavy():
    began = time.monotonic()
    done = python("--help")
    assert time.monotonic() - began < 60  # about 0.1 s on an idle machine
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"\n    {command} " in done.stdout
    heavy = "{'torch', 'numpy', 'yaml'} & {*sys.modules}"
    code = f"import sys; from earnest import cli; cli._parser(); print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"example: earnest {command}" in said
    if command not in ("chat", "bench"):
        assert "--set KEY=VALUE" in said
    assert "--json" in said


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["sft", "--steps", "3"], ["chat"], ["sft", "--conf", "x"]]
)
def test_words_nobody_knows_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: earnest" in capsys.readouterr().err


def test_a_stage_gets_its_settings_and_folder(
    stage: types.ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
):
    config = tmp_path / "sft.yaml"
    config.write_text("steps: 5\nseed: 2\n")
    assert (
        cli.main(
            [
                "sft",
                str(config),
                "--set",
                "seed=3",
                "--set",
                "seed=4",
                "--run",
                str(tmp_path / "r"),
                "--fresh",
            ]
        )
        == 0
    )
    settings, run_dir = stage.given[0]
    assert (settings.steps, settings.seed, settings.run.resume) == (5, 4, False)
    assert run_dir == tmp_path / "r"
    captured = capsys.readouterr()
    assert f"{config}:1" in captured.err
    assert "--set" in captured.err
    assert captured.out == "a table\n"


def test_the_default_folder_is_named_after_the_stage(stage: types.ModuleType):
    assert cli.main(["sft"]) == 0
    assert stage.given[0][1] == Path("runs/sft")


def test_json_is_all_that_stdout_gets(stage: types.ModuleType, capsys: pytest.CaptureFixture):
    assert cli.main(["sft", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"loss": 0.5}
    assert "a table" in captured.err
    stage.result = None
    assert cli.main(["sft", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {}


def test_print_settings_runs_nothing(stage: types.ModuleType, capsys: pytest.CaptureFixture):
    assert cli.main(["sft", "--print-settings", "--set", "steps=9"]) == 0
    out = capsys.readouterr().out
    assert "steps of each phase" in out
    assert stage.given == []


def test_evaluate_and_report_take_a_folder(stage: types.ModuleType, monkeypatch: pytest.MonkeyPatch):
    assert cli.main(["report", "runs/demo"]) == 0
    assert stage.given[0][1] == Path("runs/demo")
    assert cli.main(["evaluate", "runs/demo/rlhf"]) == 2  # the toy has no setting `model`


def test_demo_flags_are_settings(stage: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--seed", "7"]) == 0
    assert stage.given[0][0].seed == 7
    assert cli.main(["demo", "--quick"]) == 2  # the toy has no setting `quick`


def test_a_finished_demo_makes_way_and_an_unfinished_one_does_not(
    stage: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    demo = Path("runs/demo")
    assert cli.main(["demo", "--seed", "1"]) == 0
    (demo / "midtrain").mkdir()
    assert cli.main(["demo", "--seed", "2"]) == 2
    assert "begun with (seed = 1), got 2" in capsys.readouterr().err
    assert cli.main(["demo", "--seed", "1", "--set", "run.keep=3"]) == 0
    (demo / "metrics.json").write_text("{}")
    assert cli.main(["demo", "--seed", "2"]) == 0
    assert "kept as runs/demo-2" in capsys.readouterr().err
    assert Path("runs/demo-2/midtrain").is_dir()
    assert not (demo / "midtrain").exists()
    (demo / "midtrain").mkdir()
    assert cli.main(["demo", "--seed", "2", "--fresh"]) == 0
    assert not (demo / "midtrain").exists()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MissingExtra("playground", "espeakng-loader", "voice"), 2, "pip install 'earnest[voice]'"),
        (KeyboardInterrupt(), 130, "stopped"),
        (Interrupted("sft: stopped after step 3", 130), 130, "stopped after step 3"),
        (Interrupted("sft: stopped after step 3", 143), 143, "stopped after step 3"),
        (DiskFull(errno.ENOSPC, "[run] no room"), 1, "earnest: [run] no room"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 1, "Permission denied: 'runs'"),
    ],
)
def test_errors_are_one_line_and_a_code(
    stage: types.ModuleType, capsys: pytest.CaptureFixture, error: BaseException, code: int, words: str
):
    def main(settings: object, run_dir: Path) -> None:
        raise error

    stage.main = main
    assert cli.main(["sft"]) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("earnest: ")
    assert words in last


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sft", "--set", "stepps=3"], "the nearest is steps"),
        (["sft", "none.yaml"], "none.yaml (No such file or directory)"),
        (["sft", "--set", "steps=many"], "expected a whole number, got 'many'"),
    ],
)
def test_wrong_settings_exit_with_2(
    stage: types.ModuleType, capsys: pytest.CaptureFixture, arguments: list[str], words: str
):
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("earnest: [settings]")
    assert said.count("\n") == 1
    assert words in said
    assert stage.given == []


def test_a_reader_that_leaves_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m earnest --help | head -c 1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in done.stderr


def test_a_stage_with_run_settings_goes_through_the_real_loop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
):
    monkeypatch.setitem(sys.modules, "earnest.stages.sft", toy_loop)
    folder = str(tmp_path / "run")
    assert cli.main(["sft", "--run", folder, "--set", "steps=4"]) == 0
    assert cli.main(["sft", "--run", folder, "--set", "steps=5"]) == 2
    assert "(steps = 4), got 5" in capsys.readouterr().err
    assert cli.main(["sft", "--run", folder, "--set", "steps=5", "--fresh"]) == 0
    assert os.path.exists(f"{folder}/done.json")


def test_the_run_settings_do_not_touch_numbers():
    from earnest.settings import differences, to_plain

    changed = RunSettings(
        save_every_seconds=1.0, save_every_steps=2, keep=3, tensorboard=False, threads=4, resume=False
    )
    assert differences(to_plain(RunSettings()), changed) == []
    assert differences(to_plain(RunSettings()), RunSettings(precision="float32")) != []  # this one does


def test_a_device_without_a_gpu_ends_the_demo_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    folder = tmp_path / "demo"
    assert cli.main(["demo", "--device", "cuda", "--run", str(folder)]) == 2
    assert "[run] device: expected cpu (torch" in capsys.readouterr().err
    assert not folder.exists()
    assert cli.main(["sft", "--device", "cuda", "--run", str(folder)]) == 2
    assert not folder.exists()

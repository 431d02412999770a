# SPDX-License-Identifier: Apache-2.0
"""The run folder: a run stopped in any way goes on to the numbers, and the log, that it would have had."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import toy_loop
from earnest import checkpoint
from earnest.errors import InvalidInput
from earnest.metrics import read_metrics
from earnest.run import DiskFull, Interrupted, Run, device_of, has_native_bfloat16
from earnest.settings import RunSettings

SETTINGS = toy_loop.Settings()


def numbers(folder: Path) -> list[dict]:
    """The log without what depends on the clock."""
    return [{key: value for key, value in line.items() if key != "wall"} for line in read_metrics(folder)]


def weights(folder: Path) -> str:
    return (folder / "weights.sha256").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    toy_loop.main(SETTINGS, folder)
    return folder


class Stop(Exception):
    """Stands for a crash in the middle of a step."""


def stop_at(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The `count`-th call of run.log in the process raises Stop."""
    calls = iter(range(1, 10**6))
    log = Run.log

    def logging(self: Run, step: int, **metrics: object) -> None:
        if next(calls) == count:
            raise Stop
        log(self, step, **metrics)

    monkeypatch.setattr(Run, "log", logging)


def test_a_run_logs_each_step_once(whole: Path):
    lines = numbers(whole)
    assert [line["step"] for line in lines if line["phase"] == "first"] == [*range(30), 30]
    assert [line["step"] for line in lines if line["phase"] == "second phase"] == list(range(30))
    wall = read_metrics(whole, "first")[3]["wall"]
    assert set(wall) == {"time", "step_seconds"}
    assert not (whole / "checkpoints").exists()
    assert set(json.loads((whole / "done.json").read_text())["seconds"]) == {"first", "second phase"}


@pytest.mark.parametrize("crash", [1, 3, 10, 16, 31, 32, 33, 36, 47, 62])
def test_a_crash_anywhere_changes_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: int
):
    with monkeypatch.context() as patch:
        stop_at(patch, crash)
        with pytest.raises(Stop):
            toy_loop.main(SETTINGS, tmp_path)
    toy_loop.main(SETTINGS, tmp_path)
    assert weights(tmp_path) == weights(whole)
    assert numbers(tmp_path) == numbers(whole)


def test_saving_often_or_never_changes_nothing(whole: Path, tmp_path: Path):
    for name, options in {
        "often": RunSettings(save_every_steps=1, tensorboard=False),
        "never": RunSettings(save_every_steps=0, save_every_seconds=1e9, tensorboard=False),
    }.items():
        toy_loop.main(replace(SETTINGS, run=options), tmp_path / name)
        assert weights(tmp_path / name) == weights(whole)
        assert numbers(tmp_path / name) == numbers(whole)


def start(folder: Path, *settings: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, toy_loop.__file__, str(folder), *settings], stderr=subprocess.PIPE, text=True
    )


def wait_for_state(folder: Path, phase: str, step: int) -> None:
    deadline = time.monotonic() + 300
    while not any(folder.glob(f"checkpoints/{phase}/step-{step:08d}")):
        assert time.monotonic() < deadline, "the toy run never got there"
        time.sleep(0.01)


def test_kill_in_each_phase_then_the_same_command(whole: Path, tmp_path: Path):
    for phase in ("first", "second-phase"):
        process = start(tmp_path, "pause=0.02")
        wait_for_state(tmp_path, phase, 14)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    toy_loop.main(SETTINGS, tmp_path)
    assert weights(tmp_path) == weights(whole)
    assert numbers(tmp_path) == numbers(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_saves_the_step_at_hand(whole: Path, tmp_path: Path, number: int, code: int):
    process = start(tmp_path, "pause=0.02", "run.save_every_steps=5")
    wait_for_state(tmp_path, "first", 5)
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == code
    assert "finishing this step" in said
    assert "state saved" in said
    states = sorted(path.name for path in (tmp_path / "checkpoints" / "first").iterdir())
    assert len(numbers(tmp_path)) == 1 + int(
        states[-1].removeprefix("step-")
    )  # one line before the first phase
    toy_loop.main(SETTINGS, tmp_path)
    assert weights(tmp_path) == weights(whole)
    assert numbers(tmp_path) == numbers(whole)


def test_the_second_signal_ends_at_once(tmp_path: Path):
    process = start(tmp_path, "pause=1000", "run.save_every_steps=1")
    deadline = time.monotonic() + 300
    while not (tmp_path / "metrics.jsonl").exists() or len(read_metrics(tmp_path)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=100)
    assert process.returncode == -signal.SIGINT
    assert time.monotonic() - began < 500


def test_the_old_handler_comes_back(tmp_path: Path):
    before = signal.getsignal(signal.SIGINT)
    with Run(tmp_path, SETTINGS) as run:
        steps = run.steps(3, run.restore("phase"))
        assert next(steps) == 0
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before  # with the loop left in the middle, and not closed
    with Run(tmp_path, SETTINGS) as run:
        for _ in run.steps(3, run.restore("phase")):
            pass
        assert signal.getsignal(signal.SIGINT) == before


def test_interrupted_is_a_keyboard_interrupt_with_a_code(tmp_path: Path):
    def loop(run: Run) -> None:
        for step in run.steps(10, run.restore("phase", state={"x": torch.ones(1)})):
            if step == 1:
                os.kill(os.getpid(), signal.SIGINT)

    with Run(tmp_path, SETTINGS) as run, pytest.raises(Interrupted, match=r"stopped after step 2") as caught:
        loop(run)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.exit_code == 130


# ---- finished, changed, shared ----


def test_a_finished_run_has_nothing_left_to_do(whole: Path):
    before = (whole / "metrics.jsonl").read_bytes()
    with Run(whole, SETTINGS) as run:
        assert run.finished
        assert run.summary()["model"] == "toy"
        assert set(run.seconds) == {"first", "second phase"}
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_other_settings_are_refused_and_fresh_starts_over(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        stop_at(patch, 12)
        with pytest.raises(Stop):
            toy_loop.main(SETTINGS, tmp_path)
    other = replace(SETTINGS, learning_rate=0.1)
    with pytest.raises(InvalidInput, match=r"learning_rate = 0\.05.*got 0\.1"):
        toy_loop.main(other, tmp_path)
    toy_loop.main(replace(other, run=replace(SETTINGS.run, resume=False)), tmp_path)
    assert weights(tmp_path) != weights(whole)
    assert len(numbers(tmp_path)) == len(numbers(whole))


def test_two_processes_do_not_share_a_folder(tmp_path: Path):
    with (
        Run(tmp_path, SETTINGS),
        pytest.raises(InvalidInput, match="another process"),
        Run(tmp_path, SETTINGS),
    ):
        pass
    with Run(tmp_path, SETTINGS):
        pass


def test_only_the_last_states_are_kept(tmp_path: Path):
    settings = replace(SETTINGS, run=RunSettings(save_every_steps=1, keep=2, tensorboard=False))
    with Run(tmp_path, settings) as run:
        for _ in run.steps(6, run.restore("phase", state={"x": 1})):
            pass
    assert sorted(path.name for path in (tmp_path / "checkpoints/phase").iterdir()) == [
        "step-00000005",
        "step-00000006",
    ]


def test_published_files_appear_whole_or_not_at_all(tmp_path: Path):
    def publish(run: Run, text: str, fail: bool) -> None:
        with run.publish() as folder:
            (folder / "config.json").write_text(text)
            (folder / "model.safetensors").write_text(text)
            if fail:
                raise Stop

    (tmp_path / "model-00001-of-00002.safetensors").write_text("of an older, larger model")
    with Run(tmp_path, SETTINGS) as run:
        with pytest.raises(Stop):
            publish(run, "first", fail=True)
        assert not (tmp_path / "config.json").exists()
        assert (tmp_path / "model-00001-of-00002.safetensors").exists()
        publish(run, "second", fail=False)
    assert (tmp_path / "config.json").read_text() == "second"
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert not (tmp_path / ".publish").exists()


# ---- damage ----


def crashed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    with monkeypatch.context() as patch:
        stop_at(patch, 25)
        with pytest.raises(Stop):
            toy_loop.main(SETTINGS, folder)
    states = sorted((folder / "checkpoints" / "first").iterdir())
    assert [path.name for path in states] == ["step-00000014", "step-00000021"]
    return states


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.TREE, checkpoint.MANIFEST])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_damaged_state_is_said_aloud_and_the_one_before_used(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    name: str,
    harm: str,
):
    newest = crashed(tmp_path, monkeypatch)[-1] / name
    if harm == "flip":
        newest.write_bytes(b"x" + newest.read_bytes()) if name == checkpoint.MANIFEST else flip_a_bit(newest)
    elif harm == "truncate":
        newest.write_bytes(newest.read_bytes()[:-20])
    else:
        newest.unlink()
    toy_loop.main(SETTINGS, tmp_path)
    said = capsys.readouterr().err
    assert "warning: [checkpoint]" in said
    assert "going on from step 14" in said
    assert weights(tmp_path) == weights(whole)
    assert numbers(tmp_path) == numbers(whole)


def test_with_no_whole_state_left_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for state in crashed(tmp_path, monkeypatch):
        flip_a_bit(state / checkpoint.TENSORS)
    with pytest.raises(checkpoint.Damaged, match=r"sha256.*no older state is left: delete .*first"):
        toy_loop.main(SETTINGS, tmp_path)


def test_a_state_of_another_shape_is_refused(tmp_path: Path):
    with Run(tmp_path, SETTINGS) as run:
        for _ in run.steps(1, run.restore("phase", one={"x": 1})):
            pass
    with Run(tmp_path, SETTINGS) as run, pytest.raises(InvalidInput, match="the state of 'two'"):
        run.restore("phase", two={"x": 1})


# ---- no disk left ----


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def safetensors_no_space(*_: object, **__: object) -> None:
    raise safetensors.SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    )


@pytest.mark.parametrize(("place", "failure"), [("save_file", safetensors_no_space), ("_sync", no_space)])
def test_a_full_disk_is_one_sentence_and_loses_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, failure: object
):
    states = crashed(tmp_path, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomic", lambda *_: None)
        patch.setattr(checkpoint, place, failure)
        with pytest.raises(DiskFull, match=r"saved up to step 21 of first") as caught:
            toy_loop.main(SETTINGS, tmp_path)
        assert caught.value.errno == errno.ENOSPC
        assert "\n" not in str(caught.value)
    assert sorted((tmp_path / "checkpoints" / "first").iterdir()) == states
    toy_loop.main(SETTINGS, tmp_path)
    assert weights(tmp_path) == weights(whole)
    assert numbers(tmp_path) == numbers(whole)


def test_a_full_disk_while_publishing_a_model(tmp_path: Path):
    with Run(tmp_path, SETTINGS) as run, pytest.raises(DiskFull, match="none left"), run.publish():
        safetensors_no_space()
    assert not (tmp_path / ".publish").exists()


def test_a_full_disk_under_the_log(tmp_path: Path):
    with Run(tmp_path, SETTINGS) as run:
        run.restore("phase")
        run._log._file = open("/dev/full", "ab")  # noqa: SIM115
        with pytest.raises(DiskFull, match="nothing saved yet"):
            run.log(0, loss=1.0)
        run._log._file = open("/dev/null", "ab")  # noqa: SIM115


# ---- what a state may hold ----


def test_a_tree_comes_back_as_it_was(tmp_path: Path):
    shared = torch.arange(6.0).reshape(2, 3)
    tree = {
        "tensors": [
            shared,
            shared.T,
            shared[0],
            torch.tensor(3.5),
            torch.zeros(0, 4),
            torch.ones(3, dtype=torch.bfloat16),
        ],
        "flag": torch.tensor([True, False]),
        "array": np.arange(5, dtype=np.uint32)[::2],
        "half": np.float32(0.1),
        "int keys": {0: {"step": torch.tensor(7.0)}, 1: (1, 2.5, None, "x", True)},
        "$odd": [float("inf"), 2**100, -0.0, 0.1 + 0.2],
        "empty": {},
    }
    checkpoint.save(tmp_path / "s", tree, {"step": 1})
    back = checkpoint.load(tmp_path / "s")
    for old, new in zip(tree["tensors"], back["tensors"], strict=True):
        assert old.dtype == new.dtype
        assert torch.equal(old, new)
    assert np.array_equal(back["array"], [0, 2, 4])
    assert back["array"].dtype == np.uint32
    assert back["int keys"][0]["step"].shape == ()
    assert back["int keys"][1] == (1, 2.5, None, "x", True)
    assert back["$odd"] == tree["$odd"]
    assert back["half"] == float(np.float32(0.1))
    assert back["empty"] == {}


def test_an_object_that_needs_pickle_is_refused(tmp_path: Path):
    with pytest.raises(TypeError, match=r"a/b: expected tensors and plain values"):
        checkpoint.save(tmp_path / "s", {"a": {"b": object()}}, {})
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_the_scalars(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Run(tmp_path, replace(SETTINGS, run=RunSettings())) as run:
        for step in run.steps(3, run.restore("phase one")):
            run.log(step, loss=torch.tensor(step * 0.5), word="x", bad=float("nan"))
    events = EventAccumulator(str(tmp_path / "tensorboard" / "phase one"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == [0.0, 0.5, 1.0]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["bad"] == "nan"


def test_a_metric_that_is_no_number_is_refused(tmp_path: Path):
    with Run(tmp_path, SETTINGS) as run:
        run.restore("phase")
        with pytest.raises(TypeError, match=r"\[metrics\] loss: expected a number"):
            run.log(0, loss=[1.0])


@pytest.mark.parametrize(("precision", "low"), [("float32", False), ("bfloat16", True), ("auto", None)])
def test_products_run_in_the_precision_of_the_settings(tmp_path, precision, low):
    settings = replace(SETTINGS, run=RunSettings(precision=precision))
    with Run(tmp_path / "run", settings) as run, run.autocast():
        product = torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3))
    expected = has_native_bfloat16() if low is None else low
    assert product.dtype == (torch.bfloat16 if expected else torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    settings = replace(SETTINGS, run=replace(SETTINGS.run, device="cuda"))
    folder = tmp_path / "run"
    with pytest.raises(
        InvalidInput, match=r"\[run\] device: expected cpu \(torch .* sees no GPU\), got cuda"
    ):
        Run(folder, settings).__enter__()
    assert not folder.exists()


def test_on_cuda_products_are_in_bfloat16_and_sums_in_one_order(tmp_path: Path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("earnest.ops.cuda.require", lambda op: None)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *a, **k: asked.append((a, k)))
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: (a, k))
    for precision, low in (("auto", True), ("bfloat16", True), ("float32", False)):
        options = RunSettings(device="cuda", precision=precision)
        assert device_of(options) == torch.device("cuda")
        run = Run(tmp_path / precision, replace(SETTINGS, run=options))
        assert run.autocast() == (("cuda", torch.bfloat16), {"enabled": low})
    assert asked == [((True,), {"warn_only": True})] * 3

# SPDX-License-Identifier: Apache-2.0
"""A run folder: metrics, saved states, finished phases. A run killed at any moment goes on to the numbers it
would have had.

A stage reads: settings, load, loop, save::

    def main(settings: Settings, run_dir: Path) -> None:
        with Run(run_dir, settings) as run:
            if run.finished:
                return
            seed_everything(settings.seed)
            model, optimizer = ...
            start = run.restore("mid-training", model=model, optimizer=optimizer)
            for step in run.steps(settings.steps, start):
                ...                                   # everything random from global generators or ones given
                to restore run.log(step, loss=loss)
            with run.publish() as folder:         # the run folder is a model folder from now on
                model.save_pretrained(folder)
                tokenizer.save(folder)
            run.finish()

A run may have several phases, each `restore` + `steps`, always in the same order. The folder::

    settings.yaml                    what it runs with
    metrics.jsonl                    one line per log(); fields that depend on the clock stand under "wall"
    tensorboard/<phase>/             the same as scalars
    checkpoints/<phase>/step-N/      the last states (see checkpoint.py), with the random generators' states
    done.json                        written by finish(): the same command then has nothing left to do
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError

from earnest import checkpoint, ops
from earnest.errors import InvalidInput
from earnest.metrics import MetricsLog
from earnest.progress import Progress, track
from earnest.settings import RunSettings, differences, to_yaml

OP = "run"
STEP = re.compile(r"step-(\d{8})")


@functools.cache
def has_native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; elsewhere it is slower than float32. A torch
    that cannot tell (before get_capabilities) counts as no."""
    found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))


class Interrupted(KeyboardInterrupt):
    """Ctrl-C (or SIGTERM) came, the step was finished and the state saved."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class DiskFull(OSError):
    """No room to write; the states saved before are whole."""


class Run:
    """The folder `path` of one run with `settings` (a dataclass; its field `run: RunSettings` says how it is
    kept). `name` is what messages call it. Raises InvalidInput when the folder was begun with other settings
    or is in use."""

    def __init__(self, path: str | Path, settings: Any, *, resume: bool | None = None) -> None:
        self.path = Path(path)
        self.settings = settings
        self.options: RunSettings = getattr(settings, "run", None) or RunSettings()
        self._resume = self.options.resume if resume is None else resume
        self._phase = ""
        self._items: dict[str, Any] = {}
        self._seconds: dict[str, float] = {}
        self._phase_began = 0.0
        self.device = torch.device(self.options.device)
        self._lock: IO[str] | None = None
        self._log: MetricsLog | None = None
        self._signal = 0
        self._old_handlers: dict[int, Any] = {}

    # ---- the folder ----

    def __enter__(self) -> Run:
        self.device = device_of(self.options)
        with self._disk_errors():
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock_folder()
            if not self._resume:
                self._clear()
            self._check_settings()
            self._sweep()
            self._log = MetricsLog(self.path, tensorboard=self.options.tensorboard)
            if not self._has_state() and not self.finished:
                self._log.truncate(0)
            done = self.path / "done.json"
            if done.is_file():
                self._seconds = dict(json.loads(done.read_text())["seconds"])
        use_threads(self.options)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore_handlers()
        if self._log is not None:
            with contextlib.nullcontext() if kind else self._disk_errors():
                self._log.close()
        if self._lock is not None:
            self._lock.close()

    def autocast(self) -> torch.autocast:
        """A context in which matrix products run in the precision of the settings, and on cuda attention too.
        Weights, norms, residuals and losses stay float32."""
        wanted, kind = self.options.precision, self.device.type
        fast = kind == "cuda" or has_native_bfloat16()
        return torch.autocast(
            kind, torch.bfloat16, enabled=fast if wanted == "auto" else wanted == "bfloat16"
        )

    @property
    def finished(self) -> bool:
        """Whether finish() was reached before: there is nothing left to do."""
        return (self.path / "done.json").is_file()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in the steps of each phase, all sittings together."""
        return dict(self._seconds)

    def finish(self, **summary: Any) -> None:
        """Records that the whole run is done, with the plain values of `summary`, and lets go of the saved
        states."""
        with self._disk_errors():
            record = {"seconds": self.seconds, **summary}
            checkpoint.write_atomic(self.path / "done.json", json.dumps(record, indent=1) + "\n")
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    @contextlib.contextmanager
    def publish(self) -> Iterator[Path]:
        """A folder to write files into. When the block ends well they are moved into the run folder, each
        whole, and take the place of older ones of the same name; config.json comes last, so that a model is
        there or is not."""
        with self._disk_errors():
            beside = self.path / ".publish"
            shutil.rmtree(beside, ignore_errors=True)
            try:
                beside.mkdir()
                yield beside
                for stale in (*self.path.glob("*.safetensors"), *self.path.glob("*.safetensors.index.json")):
                    stale.unlink()
                for file in sorted(beside.iterdir(), key=lambda file: file.name == "config.json"):
                    file.replace(self.path / file.name)
            finally:
                shutil.rmtree(beside, ignore_errors=True)

    def summary(self) -> dict[str, Any]:
        """What finish() recorded."""
        return json.loads((self.path / "done.json").read_text())

    # ---- a phase ----

    def restore(self, phase: str, **items: Any) -> int:
        """Begins `phase`: puts the newest whole state into `items` (modules, optimizers, generators, dicts)
        and the global random generators, and returns the number of steps done (0 when there is none). Later
        saves save `items`. A damaged state is said aloud and the one before it used; with none left,
        checkpoint.Damaged."""
        assert self._log is not None, "use `with Run(...) as run:`"
        self._phase, self._items = phase, items
        self._log.begin_phase(phase)
        folders = self._states(phase)
        for folder in reversed(folders):
            try:
                state = checkpoint.load(folder)
                manifest = checkpoint.manifest_of(folder)
            except checkpoint.Damaged as error:
                self._set_aside(folder, error, last=folder == folders[0])
                continue
            for name, item in items.items():
                if name not in state["items"]:
                    raise InvalidInput(
                        OP, str(folder), f"the state of {name!r}", f"only {sorted(state['items'])}"
                    )
                checkpoint.put_state(item, state["items"][name])
            _set_random_state(state["random"])
            self._seconds = dict(state["seconds"])
            if not self._covered_later(phase, manifest["log_bytes"]):
                self._log.truncate(manifest["log_bytes"], manifest["step"])
            if manifest["step"]:
                print(
                    f"{phase}: going on from step {manifest['step']} ({folder})", file=sys.stderr, flush=True
                )
            return manifest["step"]
        self._log.live = True
        return 0

    def steps(self, total: int, start: int = 0) -> Iterator[int]:
        """The steps start .. total - 1 of the phase that `restore` began, with a progress bar. After each one
        the state may be saved (which changes no number); at the end it is. Ctrl-C finishes the step, saves,
        raises Interrupted; a second one ends the process at once."""
        assert self._phase, "call restore() before steps()"
        if start >= total:
            return
        assert self._log is not None
        progress = Progress(self._phase, total, start)
        self._phase_began = last_save = time.monotonic()
        done = start
        self._catch_signals()
        try:
            for step in range(start, total):
                yield step
                done = step + 1
                progress.update(done, self._log.latest)
                due = time.monotonic() - last_save >= self.options.save_every_seconds
                every = self.options.save_every_steps
                if due or done == total or self._signal or (every and done % every == 0):
                    self.save(done)
                    last_save = time.monotonic()
                if self._signal:
                    raise self._interrupted(done)
        finally:
            progress.close()
            self._restore_handlers()

    def save(self, step: int) -> None:
        """Saves the state after `step` steps of this phase; `steps` calls it. Raises DiskFull, older states
        untouched."""
        assert self._log is not None
        now = time.monotonic()
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._phase_began
        self._phase_began = now
        with self._disk_errors():
            log_bytes = self._log.sync()
            state = {
                "items": {name: checkpoint.state_of(item) for name, item in self._items.items()},
                "random": _random_state(),
                "seconds": self._seconds,
            }
            folder = self._phase_folder(self._phase) / f"step-{step:08d}"
            checkpoint.save(folder, state, {"step": step, "phase": self._phase, "log_bytes": log_bytes})
            for old in self._states(self._phase)[: -self.options.keep]:
                shutil.rmtree(old, ignore_errors=True)

    def log(self, step: int, **metrics: Any) -> None:
        """One line of metrics.jsonl: numbers, strings, bools or one-element tensors. A name that ends in
        "seconds" or "per_second" depends on the clock and goes under "wall"."""
        assert self._log is not None
        with self._disk_errors():
            self._log.write(self._phase, step, metrics)

    def track(self, items: Any, what: str, total: int | None = None) -> Iterator[Any]:
        """`items` with a progress bar called `what`; no state is kept."""
        return track(items, what, len(items) if total is None else total)

    # ---- inside ----

    def _phase_folder(self, phase: str) -> Path:
        return self.path / "checkpoints" / (re.sub(r"[^A-Za-z0-9._-]+", "-", phase) or "phase")

    def _states(self, phase: str) -> list[Path]:
        return _states_in(self._phase_folder(phase))

    def _has_state(self) -> bool:
        return any(_states_in(folder) for folder in (self.path / "checkpoints").glob("*"))

    def _covered_later(self, phase: str, log_bytes: int) -> bool:
        """Whether a state of another phase was saved after this one: what is logged until then is already
        there."""
        mine = self._phase_folder(phase)
        others = (folder for folder in (self.path / "checkpoints").glob("*") if folder != mine)
        for state in (state for folder in others for state in _states_in(folder)):
            with contextlib.suppress(checkpoint.Damaged):
                if checkpoint.manifest_of(state)["log_bytes"] > log_bytes:
                    return True
        return False

    def _set_aside(self, folder: Path, error: checkpoint.Damaged, last: bool) -> None:
        if last:
            got = f"{error.got}; no older state is left: delete {folder.parent} to start this phase over"
            raise checkpoint.Damaged(error.op, error.argument, error.expected, got)
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        print(
            f"warning: {error}; going back to the state before it (kept as {aside})",
            file=sys.stderr,
            flush=True,
        )

    def _lock_folder(self) -> None:
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidInput(
                OP, str(self.path), "a run folder of its own", "one another process is using"
            ) from None

    def _clear(self) -> None:
        for name in ("checkpoints", "tensorboard"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in ("done.json", "settings.yaml", "metrics.jsonl"):
            (self.path / name).unlink(missing_ok=True)

    def _check_settings(self) -> None:
        file = self.path / "settings.yaml"
        if file.is_file() and (self.finished or self._has_state()):
            for key, old, new in differences(yaml.safe_load(file.read_text()) or {}, self.settings)[:1]:
                raise _other_settings(self.path, key, old, new)
        checkpoint.write_atomic(file, to_yaml(self.settings))

    def _sweep(self) -> None:
        """Removes what a killed save left."""
        for rest in (self.path / "checkpoints").glob("*/.*.tmp"):
            shutil.rmtree(rest, ignore_errors=True)
        for rest in self.path.glob(".*.tmp"):
            rest.unlink(missing_ok=True)
        shutil.rmtree(self.path / ".publish", ignore_errors=True)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            if not checkpoint.is_disk_full(error):
                raise
            states = self._states(self._phase) if self._phase else []
            saved = (
                f"saved up to step {_step_of(states[-1])} of {self._phase}" if states else "nothing saved yet"
            )
            sentence = f"[{OP}] {self.path}: expected room on the disk, got none left ({saved})"
            raise DiskFull(errno.ENOSPC, f"{sentence}: free some and run the same command again") from error

    # ---- signals ----

    def _catch_signals(self) -> None:
        self._signal = 0
        with contextlib.suppress(ValueError):  # not the main thread: leave them alone
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old_handlers[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.write(2, b"\nfinishing this step and saving the state (Ctrl-C again ends at once)\n")

    def _restore_handlers(self) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers.clear()

    def _interrupted(self, done: int) -> Interrupted:
        message = (
            f"{self._phase}: stopped after step {done}, state saved in {self.path}; the same command goes on"
        )
        return Interrupted(message, 128 + self._signal)


def make_way(path: Path, settings: Any) -> None:
    """Prepares the folder of a run of several runs (the demo). A finished one with other settings is kept
    under another name; an unfinished one is not touched: InvalidInput. `run.resume` false deletes what was
    there."""
    device_of(settings.run)  # a run that cannot be begun moves nothing
    file = path / "settings.yaml"
    if file.is_file() and not settings.run.resume:
        shutil.rmtree(path)
    elif file.is_file() and (other := differences(yaml.safe_load(file.read_text()) or {}, settings)):
        key, old, new = other[0]
        if not (path / "metrics.json").is_file():
            raise _other_settings(path, key, old, new)
        aside = next(
            free for n in range(2, 10**6) if not (free := path.with_name(f"{path.name}-{n}")).exists()
        )
        path.rename(aside)
        print(f"{path} holds a finished run with {key} = {old}: kept as {aside}", file=sys.stderr, flush=True)
    checkpoint.write_atomic(file, to_yaml(settings))


def _other_settings(path: Path, key: str, old: Any, new: Any) -> InvalidInput:
    expected = f"the settings it was begun with ({key} = {old})"
    return InvalidInput(OP, str(path), expected, f"{new}; use another folder, or --fresh to start over")


def device_of(options: RunSettings) -> torch.device:
    """The device of the settings. InvalidInput where there is none: before anything is read or written.

    On cuda torch is told to add up in one order wherever it can, so that a run that is stopped goes on to the
    numbers it would have had; where it cannot, it warns."""
    if options.device == "cuda":
        ops.cuda.require(OP)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when a product first runs
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.device(options.device)


def use_threads(options: RunSettings) -> None:
    """Tells the kernels' pool and torch how many threads to use; what is 0 stays as it is."""
    if options.threads:
        ops.set_num_threads(options.threads)
    if options.torch_threads or options.threads:
        torch.set_num_threads(options.torch_threads or options.threads)


def seed_everything(seed: int) -> None:
    """Seeds the global generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def _states_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if STEP.fullmatch(path.name))


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _random_state() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_random_state(state: Mapping[str, Any]) -> None:
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])

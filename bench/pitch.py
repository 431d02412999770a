# SPDX-License-Identifier: Apache-2.0
"""Pitch beside Praat (parselmouth) and WORLD (pyworld): how often each is wrong, and what a frame costs.

`python bench/pitch.py [--data ../shared/data] [--only speed]`, on one thread; peers not installed are
named as absent. Gross: frames both call voiced and more than 20 % apart. Cents: root mean square of the
others. Voicing: frames called voiced that are not, and the reverse. All trackers search 65 to 600 Hz.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import sys
import tarfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import earnest._native as native
import numpy as np
import soundfile

from earnest.audio import load_audio, resample
from earnest.pitch import Pitch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from reference import pitch as reference
from reference.voices import voice

Tracker = Callable[[np.ndarray], np.ndarray]  # pcm float32 at 16 kHz -> f0 [frames]
CONDITIONS: dict[str, dict] = {
    "clean": {},
    "20 dB": {"snr_db": 20},
    "10 dB": {"snr_db": 10},
    "5 dB": {"snr_db": 5},
    "0 dB": {"snr_db": 0},
    "phone, 20 dB": {"snr_db": 20, "telephone": True},
}


def praat_trackers() -> dict[str, tuple[Tracker, Callable[[np.ndarray], object]]]:
    """For each, the track on our clock, and the bare call, which is what is timed."""
    import parselmouth

    def call(pcm: np.ndarray, method: str) -> object:
        sound = parselmouth.Sound(pcm.astype(np.float64), 16000)
        return getattr(sound, f"to_pitch_{method}")(time_step=0.01, pitch_floor=65, pitch_ceiling=600)

    def track(pcm: np.ndarray, method: str) -> np.ndarray:
        found = call(np.pad(pcm, 1600), method)  # Praat gives the ends of a clip no frames
        wanted = np.arange(len(pcm) // 160) / 100 + 0.1
        nearest = np.abs(found.xs()[None] - wanted[:, None]).argmin(1)
        hz = found.selected_array["frequency"][nearest]
        between = np.array([found.get_value_at_time(t) for t in wanted])
        return np.where(hz > 0, np.where(np.isnan(between), hz, between), 0)

    return {
        f"Praat {name}": (lambda pcm, m=name: track(pcm, m), lambda pcm, m=name: call(pcm, m))
        for name in ("ac", "cc")
    }


def world_trackers() -> dict[str, tuple[Tracker, Callable[[np.ndarray], object]]]:
    try:
        import pkg_resources  # noqa: F401  pyworld asks it for its version; newer setuptools have it no more
    except ImportError:
        stand_in = types.ModuleType("pkg_resources")
        stand_in.get_distribution = lambda name: types.SimpleNamespace(
            version=importlib.metadata.version(name)
        )  # type: ignore[attr-defined]
        sys.modules["pkg_resources"] = stand_in
    import pyworld

    options = {"f0_floor": 65.0, "f0_ceil": 600.0, "frame_period": 10.0}

    def dio(pcm: np.ndarray) -> np.ndarray:
        x = pcm.astype(np.float64)
        f0, at = pyworld.dio(x, 16000, **options)
        return pyworld.stonemask(x, f0, at, 16000)

    def harvest(pcm: np.ndarray) -> np.ndarray:
        return pyworld.harvest(pcm.astype(np.float64), 16000, **options)[0]

    return {
        "WORLD harvest": (lambda pcm: harvest(pcm)[: len(pcm) // 160], harvest),
        "WORLD dio + stonemask": (lambda pcm: dio(pcm)[: len(pcm) // 160], dio),
    }


def figures(pairs: list[tuple[np.ndarray, np.ndarray]]) -> str:
    """Of (known f0, NaN where not to be counted; f0 found)."""
    gross = both = wrong = counted = 0
    cents = []
    for known, found in pairs:
        count = ~np.isnan(known)
        wrong += int(((known > 0) != (found > 0))[count].sum())
        counted += int(count.sum())
        voiced = count & (known > 0) & (found > 0)
        ratio = found[voiced] / known[voiced]
        slips = np.abs(ratio - 1) > 0.2
        gross, both = gross + int(slips.sum()), both + len(ratio)
        cents.append(1200 * np.log2(ratio[~slips]))
    rms = np.sqrt(np.mean(np.concatenate(cents) ** 2))
    return f"gross {100 * gross / both:5.2f} %  cents {rms:5.1f}  voicing {100 * wrong / counted:5.2f} %"


def real_clips(data: Path) -> Iterator[np.ndarray]:
    """80 digits by four speakers and the first 12 s of four clips of conversation."""
    with tarfile.open(data / "fsdd" / "fsdd_dev.tar") as tar:
        for speaker in ("george", "jackson", "lucas", "nicolas"):
            for digit in range(10):
                for take in (0, 11):
                    file = tar.extractfile(f"{digit}_{speaker}_{take}.wav")
                    assert file is not None
                    pcm, rate = soundfile.read(io.BytesIO(file.read()), dtype="float32")
                    yield resample(pcm, rate, 16000)
    for path in sorted((data / "stepfun_clips").glob("*.wav")):
        if path.name != "song.wav":
            yield load_audio(path)[: 12 * 16000]


def real_speech(data: Path, trackers: dict[str, Tracker]) -> None:
    """Nobody knows real speech's pitch: a frame counts where Praat's two methods and harvest are at one."""
    judges = [trackers[name] for name in ("Praat ac", "Praat cc", "WORLD harvest") if name in trackers]
    if len(judges) < 3:
        print("real speech: needs parselmouth and pyworld")
        return
    clips, known = list(real_clips(data)), []
    for pcm in clips:
        votes = np.stack([judge(pcm) for judge in judges])
        middle = np.median(votes, 0)
        agree = (votes > 0).all(0) & (np.abs(votes / np.maximum(middle, 1) - 1).max(0) < 0.06)
        known.append(np.where(agree, middle, np.where((votes == 0).all(0), 0.0, np.nan)))
    for name, track in trackers.items():
        if track in judges:
            continue
        print(
            f"real speech   {name:22} {figures([(k, track(c)) for k, c in zip(known, clips, strict=True)])}"
        )


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of this thread's processor for each call, one after the other in turn."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.thread_time()
            call()
            spent[name].append(time.thread_time() - start)
    return {name: float(np.median(seconds[1:])) for name, seconds in spent.items()}


def speed(calls: dict[str, Callable[[np.ndarray], object]]) -> None:
    pcm = np.concatenate([voice(seed, snr_db=25).pcm for seed in range(8)])[:480_000]
    for seconds, rounds in ((30, 3), (2, 15)):
        clip = pcm[: 16000 * seconds]
        took = interleaved(
            {name: lambda call=call, clip=clip: call(clip) for name, call in calls.items()}, rounds
        )
        for name, value in took.items():
            ratio = value / took["earnest"]
            print(f"{seconds:2} s  {name:22} {value * 1e4 / seconds:8.3f} us a frame  {ratio:6.1f} x earnest")
    for milliseconds in (10, 80):
        stream, size = Pitch().stream(), 16 * milliseconds
        chunks = [pcm[at : at + size] for at in range(0, 200 * size, size)]
        took = interleaved({"push": lambda s=stream, c=chunks: [s.push(chunk) for chunk in c]}, 15)
        print(f"a push of {milliseconds} ms: {took['push'] / 200 * 1e6:.2f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tier", default="", help="scalar, avx2 or avx512; the machine's best if left out")
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="the data pack, for real speech"
    )
    parser.add_argument("--voices", type=int, default=16, help="synthetic voices of each condition")
    parser.add_argument("--only", choices=("known", "real", "speed"), help="one part instead of all three")
    options = parser.parse_args()
    native.force_cpu_tier(options.tier)
    native.set_num_threads(1)
    pitch = Pitch()
    trackers: dict[str, Tracker] = {"earnest": lambda pcm: pitch(pcm).f0}
    calls: dict[str, Callable[[np.ndarray], object]] = {"earnest": pitch}
    for load, package in ((praat_trackers, "parselmouth"), (world_trackers, "pyworld")):
        try:
            for name, (track, call) in load().items():
                trackers[name], calls[name] = track, call
        except ImportError:
            print(f"{package}: absent")

    check = voice(3, snr_db=20).pcm
    error = np.abs(pitch(check).voicing - reference.track(check)[1]).max()
    assert error < 1e-5, f"wrong by {error}"
    print(f"{native.pitch_which()}, voicing within {error:.1e} of float64")
    for condition, how in CONDITIONS.items() if options.only in (None, "known") else ():
        made = [voice(seed, **how) for seed in range(options.voices)]
        for name, track in trackers.items():
            print(f"{condition:13} {name:22} {figures([(v.f0, track(v.pcm)) for v in made])}")
    if options.only in (None, "real") and options.data.is_dir():
        real_speech(options.data, trackers)
    if options.only in (None, "speed"):
        speed(calls)


if __name__ == "__main__":
    main()

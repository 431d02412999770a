# SPDX-License-Identifier: Apache-2.0
"""Log-mel on one thread: check against float64, then time; whole clips in turns with asrfront if it is there.

`python bench/logmel.py [--tier avx2]`
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import earnest._native as native
import numpy as np

from earnest.features import LogMel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from reference import logmel as reference


def median_seconds(*runs: Callable[[], object], budget: float = 3.0) -> list[float]:
    """CPU time of each, taken in turns, so that what else the machine does falls on all alike."""
    taken: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + budget
    while time.perf_counter() < end:
        for run, times in zip(runs, taken, strict=True):
            start = time.thread_time()
            run()
            times.append(time.thread_time() - start)
    return [float(np.median(times)) for times in taken]


def asrfront_call(pcm: np.ndarray, n_mels: int) -> Callable[[], object] | None:
    try:
        from asrfront import _ext
    except ImportError:
        return None
    frontend = _ext.WhisperFrontend(n_mels=n_mels, pad_or_trim=False)
    out = np.empty((n_mels, pcm.size // 160), np.float32)
    return lambda: frontend.log_mel(pcm, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", default="", help="scalar, avx2 or avx512; the machine's best if left out")
    native.force_cpu_tier(parser.parse_args().tier)
    native.set_num_threads(1)
    pcm = np.random.default_rng(0).uniform(-0.5, 0.5, 480_000).astype(np.float32)
    for n_mels in (80, 128):
        name, features = f"{native.logmel_which()} {n_mels:3} bands", LogMel(n_mels)
        error = np.abs(features(pcm) - reference.normalize(reference.raw(pcm, n_mels))).max()
        assert error < 2e-6, f"wrong by {error}"
        for seconds in (30, 1):
            clip = pcm[: 16000 * seconds]
            peer = asrfront_call(clip, n_mels)
            ours, *theirs = median_seconds(lambda: features(clip), *([peer] if peer else []))  # noqa: B023
            against = (
                f"asrfront {theirs[0] * 1e4 / seconds:.3f}, ratio {theirs[0] / ours:.2f}" if theirs else ""
            )
            print(
                f"{name} {seconds:2} s: {ours * 1e4 / seconds:.3f} us a frame, error {error:.1e}; {against}"
            )
        for milliseconds in (10, 80, 1000):
            stream, chunk = features.stream(), pcm[: 16 * milliseconds]
            count = max(1, 2000 // milliseconds)
            (push,) = median_seconds(lambda: [stream.push(chunk) for _ in range(count)], budget=1.0)  # noqa: B023
            print(f"{name}: a push of {milliseconds:4} ms from Python {push / count * 1e6:.2f} us")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Log-mel: check against float64, then time. `python bench/logmel.py [--tier avx2]`, on one thread."""

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


def best_seconds(run: Callable[[], object], budget: float = 0.5) -> float:
    run()
    best, end = float("inf"), time.perf_counter() + budget
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", default="", help="scalar, avx2 or avx512; the machine's best if left out")
    native.force_cpu_tier(parser.parse_args().tier)
    native.set_num_threads(1)
    pcm = np.random.default_rng(0).uniform(-0.5, 0.5, 480_000).astype(np.float32)
    for n_mels in (80, 128):
        features = LogMel(n_mels)
        error = np.abs(features(pcm[:16000]) - reference.normalize(reference.raw(pcm[:16000], n_mels))).max()
        assert error < 1e-5, f"wrong by {error}"
        for seconds in (30, 1):
            clip = pcm[: 16000 * seconds]
            out = np.empty((n_mels, 100 * seconds), np.float32)
            raw = best_seconds(lambda clip=clip, out=out: native.logmel(clip, out, False))
            normal = best_seconds(lambda out=out: native.logmel_normalize(out, out))
            call = best_seconds(lambda clip=clip, features=features: features(clip))
            print(
                f"{native.logmel_which()} {n_mels:3} bands {seconds:2} s: raw {raw * 1e4 / seconds:.3f}, "
                f"normalise {normal * 1e4 / seconds:.3f}, LogMel() {call * 1e4 / seconds:.3f} us a frame"
            )
        for milliseconds in (10, 80, 1000):
            stream, chunk = features.stream(), pcm[: 16 * milliseconds]
            push = best_seconds(lambda stream=stream, chunk=chunk: stream.push(chunk))
            print(
                f"{native.logmel_which()} {n_mels:3} bands: a push of {milliseconds:4} ms {push * 1e6:.2f} us"
            )


if __name__ == "__main__":
    main()

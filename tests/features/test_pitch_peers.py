# SPDX-License-Identifier: Apache-2.0
"""Pitch beside Praat (parselmouth, of the extra `dev`) and WORLD (pyworld, of the extra `bench`: it comes as
source alone), on voices whose pitch is known and on real speech."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from earnest.audio import load_audio
from earnest.bench import peers
from earnest.bench.case import Absent
from earnest.features import Pitch
from reference.voices import voice

LOWEST, HIGHEST = 65.0, 600.0
Tracker = Callable[[np.ndarray], np.ndarray]  # samples at 16 kHz -> f0 [frames], 0 where unvoiced


def praat() -> Tracker:
    parselmouth = pytest.importorskip("parselmouth", reason="Praat is the reference: praat-parselmouth")

    def track(pcm: np.ndarray) -> np.ndarray:
        sound = parselmouth.Sound(np.pad(pcm.astype(np.float64), 1600), 16000)  # else the ends have no frames
        found = sound.to_pitch_ac(time_step=0.01, pitch_floor=LOWEST, pitch_ceiling=HIGHEST)
        at = [found.get_value_at_time(t / 100 + 0.1) for t in range(len(pcm) // 160)]
        return np.nan_to_num(np.array(at))

    return track


def world() -> Tracker:
    try:
        pyworld = peers.pyworld()
    except Absent as reason:
        pytest.skip(f"WORLD is the reference: {reason}")

    def track(pcm: np.ndarray) -> np.ndarray:
        x = pcm.astype(np.float64)
        coarse, at = pyworld.dio(x, 16000, f0_floor=LOWEST, f0_ceil=HIGHEST, frame_period=10.0)
        return pyworld.stonemask(x, coarse, at, 16000)[: len(pcm) // 160]

    return track


TRACKERS = {"Praat": praat, "WORLD": world}


class Figures:
    """Of two tracks: how often both are voiced, and how often then more than a fifth apart; the median
    difference of the others in cents; how often they agree about voicing."""

    def __init__(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
        known, found = (np.concatenate(tracks) for tracks in zip(*pairs, strict=True))
        counted = ~np.isnan(known)
        voiced = counted & (known > 0) & (found > 0)
        off = np.abs(np.log2(found[voiced] / known[voiced]))
        self.both, self.slips = int(voiced.sum()), float((off > np.log2(1.2)).mean())
        self.cents = float(1200 * np.median(off[off <= np.log2(1.2)]))
        self.voicing = float(((known > 0) == (found > 0))[counted].mean())


@pytest.mark.parametrize("peer", TRACKERS)
@pytest.mark.parametrize("snr_db", [None, 20, 10])
def test_known_pitch_is_followed_as_well_as_by_the_peer(peer: str, snr_db: float | None) -> None:
    theirs_of = TRACKERS[peer]()
    made = [voice(seed, snr_db) for seed in range(200, 206)]
    ours = Figures([(v.f0, Pitch()(v.pcm).f0) for v in made])
    theirs = Figures([(v.f0, theirs_of(v.pcm)) for v in made])
    assert min(ours.both, theirs.both) > 1000
    assert ours.slips <= theirs.slips + 0.002
    assert ours.cents <= 1.5 * theirs.cents + 0.5
    assert ours.voicing >= theirs.voicing - 0.002


@pytest.mark.parametrize("peer", TRACKERS)
def test_both_find_the_same_pitch_in_the_same_voice(peer: str) -> None:
    theirs_of = TRACKERS[peer]()
    found = Figures(
        [(theirs_of(v.pcm), Pitch()(v.pcm).f0) for v in (voice(seed, 20) for seed in range(210, 216))]
    )
    assert found.both > 1000
    assert found.slips <= 0.005
    assert found.cents < 12
    assert found.voicing > 0.9


@pytest.mark.parametrize(("peer", "voicing"), [("Praat", 0.85), ("WORLD", 0.8)])
def test_real_speech_agrees_with_the_peer(peer: str, voicing: float, shared_data: Path) -> None:
    theirs_of = TRACKERS[peer]()
    pairs = []
    for path in sorted((shared_data / "stepfun_clips").glob("*.wav")):
        if path.name == "song.wav":
            continue  # voices over instruments have more than one pitch
        pcm = load_audio(path)[:128000]
        pairs.append((theirs_of(pcm), Pitch()(pcm).f0))
    found = Figures(pairs)
    assert found.both > 500
    assert found.slips <= 0.02
    assert found.cents < 20
    assert found.voicing > voicing

# SPDX-License-Identifier: Apache-2.0
"""How turns sound: read off the pitch track, it is what the definition by hops of 10 ms says; and the rate
that finds its syllables by itself, beside the one that knows them."""

from collections.abc import Iterator

import numpy as np
import pytest

from earnest import _native
from earnest.pitch import Pitch
from earnest.playground import World
from earnest.playground.samples import Sound
from earnest.playground.sound import SILENCE_DB, activity, measure, speaking
from earnest.playground.speakers import in_room
from reference.voices import voice
from tiers import usable_tiers


@pytest.fixture
def any_tier() -> Iterator[None]:
    yield
    _native.force_cpu_tier("")


def by_hops(pcm: np.ndarray) -> tuple[np.ndarray, float, float]:
    """(active [frames of 10 ms], seconds of speaking, level in dB), from the samples without a track: active
    is within 30 dB of the loudest, over 30 ms; a silence of up to 150 ms is part of speaking."""
    energy = np.square(pcm[: len(pcm) // 160 * 160].reshape(-1, 160).astype(np.float64)).mean(1)
    energy = np.convolve(energy, [1 / 4, 1 / 2, 1 / 4], "same")
    active = energy > energy.max() / 1000
    pauses = "".join("x" if on else "." for on in active).strip(".").split("x")
    frames = active.sum() + sum(len(pause) for pause in pauses if len(pause) < 15)
    return active, frames / 100, float(10 * np.log10(energy[active].mean()))


@pytest.mark.parametrize("seed", range(40, 46))
def test_activity_is_that_of_the_samples_energy(seed: int) -> None:
    pcm = np.concatenate([np.zeros(3000, np.float32), voice(seed, snr_db=35).pcm, np.zeros(3000, np.float32)])
    speech = activity(pcm)
    active, seconds, level_db = by_hops(pcm)
    assert speech.active.shape == active.shape
    assert (speech.active != active).mean() < 0.02
    assert speech.seconds == pytest.approx(seconds, abs=0.05)
    assert speech.level_db == pytest.approx(level_db, abs=0.15)


def test_pauses_beyond_150_ms_are_no_speaking_time() -> None:
    t = np.arange(8000) / 16000
    tone = (0.1 * np.sin(2 * np.pi * 400 * t) + 0.05 * np.sin(2 * np.pi * 800 * t)).astype(np.float32)
    for pause, counted in ((0.1, 1.1), (0.3, 1.0)):
        silence = np.zeros(int(pause * 16000), np.float32)
        speech = activity(np.concatenate([silence, tone, silence, tone, silence]))
        assert speech.seconds == pytest.approx(counted, abs=0.05)
        assert speech.f0_hz == pytest.approx(400, rel=0.01)
        assert speech.level_db == pytest.approx(10 * np.log10(0.1**2 / 2 + 0.05**2 / 2), abs=0.3)


@pytest.mark.parametrize("samples", [1, 159, 160, 4000])
def test_nobody_speaks_in_silence(samples: int) -> None:
    speech = activity(np.zeros(samples, np.float32))
    assert speech.active.shape == (samples // 160,)
    assert not speech.active.any()
    assert (speech.level_db, speech.seconds, speech.f0_hz) == (SILENCE_DB, 0.0, 0.0)
    assert measure(np.zeros(samples, np.float32), 3) is None


def test_a_clip_measured_already_is_not_measured_otherwise() -> None:
    pcm = voice(50, snr_db=25).pcm
    mine, other = activity(pcm), speaking(Pitch(70.0, 450.0)(pcm))
    assert (mine.level_db, mine.seconds, mine.f0_hz) == (other.level_db, other.seconds, other.f0_hz)


@pytest.mark.parametrize("level_db", [-45.0, -20.0, -4.0])
def test_what_a_room_says_of_a_turn_is_what_the_turn_measures(level_db: float) -> None:
    """A gain moves the level alone, so that nothing is measured twice; the loudest is clipped, and is."""
    for seed in range(6):
        pcm, said = in_room(voice(seed, snr_db=40).pcm, level_db, np.random.default_rng(seed))
        heard = activity(pcm)
        assert said.level_db == pytest.approx(heard.level_db, abs=0.02)
        assert said.f0_hz == pytest.approx(heard.f0_hz, rel=1e-3)
        assert said.seconds == pytest.approx(heard.seconds, abs=0.011)
        assert np.abs(pcm).max() <= 1
        if np.abs(pcm).max() < 1:
            assert said.level_db == level_db


@pytest.mark.usefixtures("any_tier")
def test_a_world_speaks_the_same_samples_on_every_cpu_tier() -> None:
    """The gains are made of the level measured, which the tiers compute with other roundings."""
    pytest.importorskip("espeakng_loader", reason="needs the extra 'voice'")
    spoken = []
    for tier in usable_tiers("pitch"):
        _native.force_cpu_tier(tier)
        samples = [World(seed=6).sample("train", i) for i in (0, 1, 5)]
        spoken.append([a.pcm for s in samples for m in s.messages for a in m.audios])
    for other in spoken[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(spoken[0], other, strict=True))


# ---- the speaking rate that finds its syllables, against the one that knows them ----


def rates(turns: list[tuple[Sound, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(syllables of the sentence by the time spent speaking, PitchTrack.speaking_rate) of each turn."""
    known = np.array([sound.syllables_per_second for sound, _ in turns])
    return known, np.array([Pitch()(pcm).speaking_rate for _, pcm in turns])


def turns_of(world: World, indices: range) -> list[tuple[Sound, np.ndarray]]:
    samples = [world.sample("train", i) for i in indices]
    return [
        turn
        for sample in samples
        for turn in zip(sample.sounds, [a.pcm for m in sample.messages for a in m.audios], strict=True)
    ]


def test_the_rate_of_synthesised_turns_is_found() -> None:
    pytest.importorskip("espeakng_loader", reason="needs the extra 'voice'")
    known, found = rates(turns_of(World(seed=8), range(60)))
    assert len(known) > 80
    assert np.corrcoef(known, found)[0, 1] > 0.8  # 0.86 of 583 turns
    assert np.median(np.abs(found / known - 1)) < 0.14  # 0.115
    assert np.median(found / known) == pytest.approx(1, abs=0.06)


def test_the_rate_of_recorded_digits_is_found(shared_data) -> None:
    known, found = rates(turns_of(World(seed=8, voices=shared_data / "fsdd"), range(60)))
    assert len(known) > 80
    assert np.corrcoef(known, found)[0, 1] > 0.45  # 0.56 of 587 turns
    assert np.median(np.abs(found / known - 1)) < 0.2  # 0.153
    assert np.median(found / known) == pytest.approx(1, abs=0.1)

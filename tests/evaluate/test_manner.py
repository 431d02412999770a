# SPDX-License-Identifier: Apache-2.0
"""What is measured of evaluated clips, and accuracy by thirds of it."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earnest.evaluate.manner import accuracy_by_measured, measure, with_measures
from earnest.evaluate.playground import stage_metrics
from earnest.evaluate.stage import Answer, wilson
from earnest.learn.types import Case, Clip
from earnest.playground.sound import SILENCE_DB
from earnest.stages.cases import case_of, file_cases, hear
from earnest.stages.source import DataSettings, load_cases


def answer(
    case: int, right: bool, f0: float | None = None, rate: float = 4.0, level: float = -25.0
) -> Answer:
    found = {} if f0 is None else {"f0_hz": f0, "syllables_per_second": rate, "level_db": level}
    return Answer(str(case), "sound", "", "eight", right, 0, **found)


def swelling(hz: float, rate: float, level_db: float) -> np.ndarray:
    """Three seconds of syllables of a buzz, between silences."""
    t = np.arange(3 * 16000) / 16000
    wave = sum(np.sin(2 * np.pi * k * hz * t) / k for k in range(1, 10)) * np.sin(np.pi * rate * t) ** 2
    wave *= 10 ** (level_db / 20) / np.sqrt(np.mean(np.square(wave)))
    return np.pad(wave, 8000).astype(np.float32)


@pytest.mark.parametrize(("hz", "rate", "level_db"), [(95.0, 3.0, -20.0), (230.0, 5.0, -38.0)])
def test_pitch_rate_and_level_are_those_of_the_clip(hz: float, rate: float, level_db: float) -> None:
    found = measure(swelling(hz, rate, level_db))
    assert found[0] == pytest.approx(hz, rel=0.01)
    assert found[1] == pytest.approx(rate, rel=0.08)
    assert found[2] == pytest.approx(level_db, abs=1.0)


def test_silence_and_hiss_have_no_pitch_and_no_rate() -> None:
    assert measure(np.zeros(16000, np.float32)) == (0.0, 0.0, SILENCE_DB)
    assert measure(np.zeros(1, np.float32)) == (0.0, 0.0, SILENCE_DB)
    hiss = (0.1 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32)
    assert measure(hiss)[:2] == (0.0, 0.0)
    assert measure(hiss)[2] == pytest.approx(-20, abs=0.3)


def test_a_clip_of_several_chunks_is_measured_as_a_whole() -> None:
    quiet_then_loud = np.concatenate([swelling(110.0, 4.0, -55.0)] * 6 + [swelling(200.0, 4.0, -15.0)] * 4)
    chunks = hear(quiet_then_loud, 80, "clip", measured=True)
    assert len(chunks) > 1
    assert chunks[0].measured == measure(quiet_then_loud)
    assert chunks[0].measured[0] == pytest.approx(200, rel=0.02)
    assert all(chunk.measured == () for chunk in chunks[1:])
    assert hear(quiet_then_loud, 80, "clip")[0].measured == ()


def test_an_answer_is_given_the_measures_of_the_turn_it_answers() -> None:
    def clip(*measured: float) -> tuple[Clip, ...]:
        mel = np.zeros((80, 4), np.float32)
        return Clip("first", mel, measured=measured), Clip("rest", mel)

    cases = [
        Case("0", "sound", (), (clip(100.0, 3.0, -30.0), clip(200.0, 6.0, -20.0))),
        Case("1", "sound", ()),
        Case("2", "sound", (), (clip(),)),
    ]
    found = with_measures([answer(i, True) for i in range(3)], cases)
    assert found[0] == answer(0, True, 200.0, 6.0, -20.0)
    assert found[1:] == [answer(1, True), answer(2, True)]
    with pytest.raises(ValueError, match="zip"):
        with_measures([answer(0, True)], cases)


def test_thirds_are_of_the_values_and_count_what_is_right_in_them() -> None:
    rng = np.random.default_rng(1)
    f0 = rng.permutation(np.arange(90, 90 + 30 * 8, 8)).astype(float)
    given = [answer(i, hz < 170 or hz > 300, hz, rate=hz / 40, level=-hz / 8) for i, hz in enumerate(f0)]
    given.append(answer(30, True, 0.0, rate=0.0, level=SILENCE_DB))
    given.append(answer(31, False))  # without a clip
    found = accuracy_by_measured(given)
    low, middle, high = (found["f0_hz"][third] for third in ("low", "middle", "high"))
    assert [group["cases"] for group in (low, middle, high)] == [10, 10, 10]
    assert (low["from"], low["to"], middle["from"], high["to"]) == (90, 162, 170, 322)
    assert (low["accuracy"], middle["accuracy"], high["accuracy"]) == (1.0, 0.0, 0.3)
    assert (high["accuracy_low"], high["accuracy_high"]) == wilson(0.3, 10)[1:]
    assert found["f0_hz"]["none"]["cases"] == found["level_db"]["none"]["cases"] == 1
    assert found["level_db"]["low"]["accuracy"] == 0.3  # the highest voices are the most quiet
    assert accuracy_by_measured(given[31:]) == {}


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 80.0, 90.5, 120.0, 180.0, 240.0]), st.booleans()), max_size=40)
)
def test_every_case_is_in_one_third_and_equal_values_are_not_parted(drawn: list[tuple[float, bool]]) -> None:
    groups = accuracy_by_measured([answer(i, right, f0) for i, (f0, right) in enumerate(drawn)])
    found = groups.get("f0_hz", {})
    assert sum(group["cases"] for group in found.values()) == len(drawn)
    hits = sum(group["cases"] * group["accuracy"] for group in found.values())
    assert hits == pytest.approx(sum(right for _, right in drawn))
    ranges = [(group["from"], group["to"]) for group in found.values()]
    assert all(before[1] < after[0] for before, after in pairwise(ranges))
    assert list(found) == [third for third in ("none", "low", "middle", "high") if third in found]


def test_rows_have_it_only_where_clips_were_measured() -> None:
    heard = {"sft": [answer(i, i % 2 == 0, 100.0 + i) for i in range(9)]}
    unheard = {"sft": [answer(i, False) for i in range(9)]}
    row = stage_metrics(heard, unheard)["sft"]
    assert row["accuracy_by_measured"] == accuracy_by_measured(heard["sft"])
    assert row["accuracy_by_measured"]["f0_hz"]["high"]["to"] == 108
    before = stage_metrics(unheard, unheard)["sft"]
    assert "accuracy_by_measured" not in before
    assert row.keys() - before.keys() == {"accuracy_by_measured"}


# ---- which cases are measured ----


def test_held_out_cases_of_the_playground_are_measured_and_others_are_not() -> None:
    pytest.importorskip("espeakng_loader", reason="needs the extra 'voice'")
    data = DataSettings(cases=6, processes=1)
    for case in load_cases(data, 80, device="cpu", split="heldout"):
        for clip, sound in zip(case.clips, case.origin.sounds, strict=True):
            f0, rate, level = clip[0].measured
            assert f0 == pytest.approx(sound.f0_hz, rel=0.12)  # labelled before noise was added
            assert rate == pytest.approx(sound.syllables_per_second, rel=0.5)
            assert level == pytest.approx(sound.level_db, abs=1.5)
    train = load_cases(data, 80, device="cpu")
    assert all(clip[0].measured == () for case in train for clip in case.clips)


def test_recorded_voices_are_measured_too(shared_data) -> None:
    from earnest.playground import World

    sample = World(seed=2, voices=shared_data / "fsdd").sample("heldout", 1)
    clips = case_of(sample, 80, measured=True).clips
    assert [clip[0].measured[0] for clip in clips] == [
        pytest.approx(sound.f0_hz, rel=0.12) for sound in sample.sounds
    ]


def test_files_are_measured_when_they_are_evaluated(tmp_path) -> None:
    import soundfile

    soundfile.write(tmp_path / "a.wav", swelling(150.0, 4.0, -25.0), 16000)
    (tmp_path / "d.jsonl").write_text(
        '{"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}], "answer": "8"}\n'
    )
    path = str(tmp_path / "d.jsonl")
    (case,) = load_cases(DataSettings(files=(path,)), 80, device="cpu", split="heldout")
    assert case.clips[0][0].measured[0] == pytest.approx(150, rel=0.01)
    (plain,) = file_cases([path], 80)
    assert plain.clips[0][0].measured == ()

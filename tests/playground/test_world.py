# SPDX-License-Identifier: Apache-2.0
"""The spoken world: pure, disjoint between splits, labelled by what is measured, aligned in time."""

import pickle
import random
import re
from collections import Counter

import numpy as np
import pytest
import soxr

pytest.importorskip("espeakng_loader", reason="needs the extra 'voice'")

import itertools

from earnest.errors import InvalidInput
from earnest.playground import SPLITS, TASKS, World, acknowledges, findings, replies, tasks, verify, voices
from earnest.playground import sentences as language
from earnest.playground import sound as measured
from earnest.playground.speakers import align

TABLES = [
    language.ARITHMETIC,
    language.REPAIR,
    language.NEUTRAL,
    *language.SOUND.values(),
    *language.RECALL_TELL.values(),
    *language.RECALL_ASK.values(),
    *language.RULES.values(),
    *language.CONSISTENCY.values(),
]


@pytest.fixture(scope="module")
def world():
    return World(seed=3)


@pytest.fixture(scope="module")
def samples(world):
    return [world.sample("train" if i < 48 else "heldout", i) for i in range(96)]


def pcm_of(sample):
    return [audio.pcm for message in sample.messages for audio in message.audios]


def test_a_sample_is_a_pure_function_of_seed_split_and_index(world, samples):
    again = pickle.loads(pickle.dumps(World(seed=3)))
    for i in (50, 7, 31, 7, 2):  # out of order, after other speech
        sample, other = samples[i], again.sample("train" if i < 48 else "heldout", i)
        assert (sample.reasoning, sample.replies, sample.sounds, sample.words, sample.rubric) == (
            other.reasoning,
            other.replies,
            other.sounds,
            other.words,
            other.rubric,
        )
        assert [m.text for m in sample.messages] == [m.text for m in other.messages]
        assert all(np.array_equal(a, b) for a, b in zip(pcm_of(sample), pcm_of(other), strict=True))
    other = World(seed=4).sample("train", 7)
    assert not np.array_equal(pcm_of(other)[0], pcm_of(samples[7])[0])


def test_every_clip_is_speech_that_a_model_can_take(samples):
    for sample in samples:
        for pcm in pcm_of(sample):
            assert pcm.dtype == np.float32
            assert pcm.ndim == 1
            assert 0.4 < len(pcm) / 16000 < 7.0
            assert np.isfinite(pcm).all()
            assert np.abs(pcm).max() <= 1.0


def test_tasks_take_turns_and_end_with_a_spoken_turn(samples):
    assert {sample.task for sample in samples[:6]} == set(TASKS)
    for sample in samples:
        assert sample.messages[-1].role == "user"
        assert sample.messages[-1].audios
        assert len(sample.sounds) == len(sample.words) == len(pcm_of(sample))
        roles = ["user", "assistant"] * (len(sample.sounds) - 1) + ["user"]
        assert [message.role for message in sample.messages] == roles


def test_labels_are_what_the_clip_measures(samples):
    """Noise is added after measuring, 15 dB down or more; a second measurement must still agree."""
    for sample in samples[:30]:
        for sound, pcm, words in zip(sample.sounds, pcm_of(sample), sample.words, strict=True):
            assert measured.label(measured.PITCH_HZ, sound.f0_hz) == sound.pitch
            assert measured.label(measured.RATE_SYLLABLES, sound.syllables_per_second) == sound.rate
            speech = np.concatenate([pcm[int(a * 16000) : int(b * 16000)] for _, a, b in words])
            assert 10 * np.log10(np.mean(np.square(speech))) == pytest.approx(sound.level_db, abs=2.5)
            assert measured.activity(pcm).f0_hz == pytest.approx(sound.f0_hz, rel=0.12)


def test_measurement_finds_pitch_rate_and_level_of_a_known_wave():
    t = np.arange(16000 * 2) / 16000
    gate = (np.sin(2 * np.pi * 2.0 * t) > -0.5).astype(np.float32)  # four bursts, no pause over 0.17 s
    tone = (0.1 * gate * np.sign(np.sin(2 * np.pi * 150 * t))).astype(np.float32)
    sound = measured.measure(tone, 9)
    assert sound is not None
    assert sound.f0_hz == pytest.approx(150, rel=0.01)
    assert sound.level_db == pytest.approx(-20.0, abs=1.2)
    assert (sound.pitch, sound.loudness) == ("middle", "loud")
    assert measured.measure(np.zeros(16000, np.float32), 3) is None


def test_words_lie_where_the_speech_is(samples):
    for sample in samples:
        for words, pcm in zip(sample.words, pcm_of(sample), strict=True):
            starts, ends = [a for _, a, _ in words], [b for _, _, b in words]
            assert all(a < b for a, b in zip(starts, ends, strict=True))
            assert all(b <= a + 1e-6 for a, b in zip(starts[1:], ends[:-1], strict=True))
            assert starts[0] > 0
            assert ends[-1] <= len(pcm) / 16000
            level = [np.sqrt(np.mean(np.square(pcm[int(a * 16000) : int(b * 16000)]))) for _, a, b in words]
            outside = np.concatenate([pcm[: int((starts[0] - 0.03) * 16000)]])
            assert np.median(level) > 3 * np.sqrt(np.mean(np.square(outside)))


def test_a_pause_separates_the_words_around_it():
    speech = voices.speak("three plus four, no, plus five", "gmw/en+m3", rate=150)
    pcm = soxr.resample(speech.pcm, speech.sample_rate, 16000, quality="MQ")
    words = align("three plus four, no, plus five", speech, 1.0, measured.activity(pcm).active)
    assert [word for word, _, _ in words] == ["three", "plus", "four", "no", "plus", "five"]
    for before, after in ((2, 3), (3, 4)):
        end, start = words[before][2], words[after][1]
        assert start - end > 0.1
        quiet = pcm[int((end + 0.03) * 16000) : int((start - 0.03) * 16000)]
        assert np.abs(quiet).max() < 0.05 * np.abs(pcm).max()


def test_labels_are_balanced_and_independent_of_the_words(world):
    sounds = [world.sample("train", 6 * i + 1) for i in range(60)]
    for kind, labels in (
        ("rate", ("slow", "normal", "fast")),
        ("pitch", ("low", "middle", "high")),
        ("loudness", ("quiet", "normal", "loud")),
    ):
        counts = Counter(getattr(sample.sounds[-1], kind) for sample in sounds)
        assert min(counts[label] for label in labels) >= 8, (kind, counts)


def test_splits_share_no_voice_no_sum_and_no_sentence():
    names = [set(voices.VOICES[split]) for split in SPLITS]
    assert len(set.union(*names)) == sum(len(group) for group in names)
    found = language.sums()
    assert len(set().union(*found.values())) == sum(len(own) for own in found.values()) == 155
    for a, op, b in (*found["validation"], *found["practice"], *found["heldout"]):
        mirror = (b, op, a) if op == "plus" else (a, op, a - b)
        assert mirror in found["train"]
    for table in TABLES:
        splits = ("train", "practice", "heldout")
        words = [[text.replace(",", "") for text in table[split]] for split in splits]
        assert all(words)
        assert len(set().union(*words)) == sum(len(part) for part in words)  # told apart by more than pauses


def test_each_part_of_a_held_out_sentence_is_heard_in_training():
    parts = (("", "now", "please"), ("what is {x}", "say {x}"), ("", "again", "now"))
    dealt = language.composed(*parts)
    assert sum(len(own) for own in dealt.values()) == 3 * 2 * 3 - 2  # nobody says now twice
    assert {"what is {x}", "say {x}"} <= set(dealt["train"])
    for table in TABLES:
        known = {pair for text in table["train"] for pair in _neighbours(text)}
        for text in (*table["heldout"], *table["practice"]):
            assert set(text.replace(",", "").split()) <= {word for pair in known for word in pair}, text


def _neighbours(text):
    words = ["", *text.replace(",", "").split(), ""]
    return list(itertools.pairwise(words))


def test_training_never_hears_or_writes_a_held_out_sum(world, samples):
    kept = {
        f" {way(tasks.equation(*s))}"
        for way in (str, tasks.looked_up)
        for split in SPLITS[1:]
        for s in language.sums()[split]
    }
    digits = "|".join(language.DIGITS)
    spoken = re.compile(rf"\b({digits}) (plus|minus) ({digits})\b")
    heldout = {
        (language.DIGITS[a], op, language.DIGITS[b])
        for split in SPLITS[1:]
        for a, op, b in language.sums()[split]
    }
    for i in range(3000):
        rng = world._random("train", i, "plan")
        plan = tasks.PLANS[TASKS[i % len(TASKS)]](rng, "train")
        written = f" {plan.step} {tasks.looked_up(plan.step)}"
        assert not any(equation in written for equation in kept), plan
        for turn in plan.turns:
            words = turn.say.replace(",", "")
            assert not set(spoken.findall(words)) & heldout, plan
        text = world.text_sample("train", i)
        assert not any(equation in f" {text.reasoning}" for equation in kept)


def test_every_spoken_word_is_in_the_vocabulary(world, samples):
    assert 60 <= len(world.vocabulary) <= 95
    for sample in samples:
        assert all(word in world.vocabulary for words in sample.words for word, _, _ in words)
        heard = " ".join(word for word, _, _ in sample.words[-1])
        assert sample.reasoning.startswith(f"heard: {heard}.")


def test_what_the_reasoning_marks_of_the_voice_is_what_the_warm_reply_takes_up(samples):
    marked = [sample.reasoning.split(", mostly ")[1].split(".")[0] for sample in samples]
    for sample, mark in zip(samples, marked, strict=True):
        assert mark in sample.sounds[-1].salient
        assert {reply.acknowledges for reply in sample.replies} <= {None, mark}
    assert set(marked) == {"fast", "slow", "loud", "quiet", "high", "low", "calm"}


def test_gold_replies_pass_and_distractors_are_told_apart(world, samples):
    for sample in samples:
        assert all(verify(sample, reply.text) for reply in sample.replies)
        assert [acknowledges(sample, reply.text) for reply in sample.replies] == [
            reply.acknowledges is not None for reply in sample.replies
        ]
        assert all(len(reply.text.split()) <= 16 for reply in sample.replies)
        wrong = replies.distractors(sample, random.Random(sample.id))
        assert not any(verify(sample, reply.text) for reply in wrong[:3])
        assert not acknowledges(sample, wrong[3].text)


def test_text_before_the_last_turn_does_not_tell_what_was_told(world):
    """With the audio taken away, recall must not be answerable from the model's own replies."""
    for i in range(2, 2 + 6 * 20, 6):
        sample = world.sample("train", i)
        assert sample.task == "recall"
        first = sample.messages[1].text
        assert not verify(sample, first)


def test_comparisons_are_pure_and_have_rubrics_for_about_half(world):
    found = [world.comparison("train", i) for i in range(40)]
    again = World(seed=3).comparison("train", 11)
    assert (again.a, again.b, again.level, again.rubric) == (
        found[11].a,
        found[11].b,
        found[11].level,
        found[11].rubric,
    )
    assert 8 <= sum(c.rubric is not None for c in found) <= 32
    assert {c.level for c in found} >= {-2, 2}
    assert all(c.a.text != c.b.text for c in found)


def test_pair_is_the_comparison_of_a_sample_at_hand(world):
    sample = world.sample("train", 4)
    again, direct = world.pair(sample, "train", 4), world.comparison("train", 4)
    assert again.sample is sample
    assert (again.a, again.b, again.level, again.rubric) == (direct.a, direct.b, direct.level, direct.rubric)


def test_what_it_cannot_do_is_said_in_one_sentence(world):
    with pytest.raises(InvalidInput, match="split"):
        world.sample("test", 0)
    with pytest.raises(InvalidInput, match="tasks"):
        World(tasks=("singing",))
    with pytest.raises(InvalidInput, match="index"):
        world.sample("train", -1)


def test_a_dictation_is_pure_and_holds_no_sum_of_another_split():
    from earnest.playground.sentences import DIGITS, any_words, sums

    world = World(3)
    one, again = world.dictation("train", 5), World(3).dictation("train", 5)
    assert one.reasoning == again.reasoning
    assert np.array_equal(one.messages[0].audios[0].pcm, again.messages[0].audios[0].pcm)
    assert " ".join(word for word, _, _ in one.words[0]) == one.answer
    kept = {f"{DIGITS[a]} {op} {DIGITS[b]}" for s in SPLITS[1:] for a, op, b in sums()[s]}
    rng = random.Random(0)
    spoken = [any_words(rng).replace(",", "") for _ in range(20000)]
    assert not any(f" {phrase} " in f" {text} " for text in spoken for phrase in kept)
    assert len({len(text.split()) for text in spoken}) > 3


def test_a_sum_looked_up_is_the_counted_one_without_its_steps():
    counted = f"heard: what is three plus five. voice: fast, low, loud. {tasks.equation(3, 'plus', 5)}"
    assert counted.endswith("3 + 5: 5 3, 6 2, 7 1, 8 0 = 8.")
    assert tasks.looked_up(counted) == "heard: what is three plus five. voice: fast, low, loud. 3 + 5 = 8."
    assert tasks.looked_up("before: 9. 9 - 2: 9 2, 8 1, 7 0 = 7.") == "before: 9. 9 - 2 = 7."
    unchanged = "heard: what was my number. voice: slow, low, loud. before: my number is nine: number 9."
    assert tasks.looked_up(unchanged) == unchanged


def test_what_was_spoken_before_does_not_change_what_is_spoken():
    """Klatt voices draw their noise from libc's generator, which outlives the library."""
    for voice in ("gmw/en+Reed", "gmw/en+klatt4", "gmw/en+f2"):
        first = voices.speak("the car is white", voice, seed=7).pcm
        voices.speak("now tell me", "gmw/en+klatt5", seed=3)
        assert np.array_equal(first, voices.speak("the car is white", voice, seed=7).pcm)
        assert not np.array_equal(first, voices.speak("the car is white", "gmw/en+m3", seed=7).pcm)


def test_findings_say_what_is_so(samples):
    untrue = 0
    for sample in samples:
        answer, rule = sample.topic.answer, "free" if sample.rule is None else "kept"
        for reply in sample.replies:
            wanted, given, right, kept, said, heard, remark, met = findings(sample, reply.text, None).split()
            assert (wanted, given, right, kept, met) == (answer, answer, "right", rule, "open")
            assert said == heard
            assert remark == ("silent" if reply.acknowledges is None else "true")
            assert findings(sample, reply.text, ("gives the right answer",)).endswith(" whole")
        others = replies.distractors(sample, random.Random(sample.id))
        for reply in others[:3]:
            wanted, given, right, *_, met = findings(sample, reply.text, ("gives the right answer",)).split()
            assert wanted == answer != given
            assert (right, met) == ("wrong", "unmet")
        for reply in others[3:6]:
            said, heard, remark = findings(sample, reply.text, None).split()[4:7]
            assert remark != "true"
            assert (remark == "untrue") == (said != heard)
            untrue += remark == "untrue"
    assert untrue > len(samples)

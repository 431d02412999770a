# SPDX-License-Identifier: Apache-2.0
"""Recorded digits as voices: manifests good and bad, splits, labels, and the tasks that digits allow."""

import io
import itertools
import json
import pickle
import random
import re
import tarfile

import numpy as np
import pytest
import soundfile

from earnest.dialogue.records import BadLine
from earnest.errors import InvalidInput
from earnest.playground import SPLITS, TASKS, World, acknowledges, digits, replies, tasks, verify
from earnest.playground import sound as measured
from earnest.playground.recordings import Recordings
from earnest.playground.sentences import DIGITS, sums


def buzz(digit: int, f0: float, take: int) -> np.ndarray:
    """0.3 to 0.5 s of a voice at 8 kHz whose two resonances tell the digit, with silence around it."""
    seconds = 0.3 + 0.03 * digit + 0.02 * take
    t = np.arange(int(seconds * 8000)) / 8000
    phase = 2 * np.pi * f0 * (t + 0.02 * t * t)
    wave = sum(
        np.sin(k * phase) / (1 + ((k * f0 - 300 - 60 * digit) / 150) ** 2)
        + 0.5 * np.sin(k * phase) / (1 + ((k * f0 - 1500 - 120 * digit) / 200) ** 2)
        for k in range(1, int(3600 / f0))
    )
    silence = np.zeros(800)
    return np.concatenate([silence, 0.2 * wave * np.hanning(len(t)) ** 0.3, silence])


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Ten digits by two speakers, three takes each; the tests change copies of the manifest only."""
    path = tmp_path_factory.mktemp("digits")
    lines = []
    for speaker, f0 in (("amy", 190.0), ("bob", 110.0)):
        for digit, take in itertools.product(range(10), range(3)):
            name = f"{digit}_{speaker}_{take}.wav"
            soundfile.write(path / name, buzz(digit, f0, take), 8000)
            lines.append({"file": name, "digit": digit, "speaker": speaker, "take": take, "mood": "any"})
    (path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="session")
def world(folder):
    return World(seed=1, voices=folder)


@pytest.fixture(scope="session")
def samples(world):
    return {split: [world.sample(split, i) for i in range(8)] for split in ("train", "heldout")}


def lines_of(folder):
    return (folder / "manifest.jsonl").read_text().splitlines()


def with_manifest(folder, tmp_path, lines):
    """The folder again, by links, with another manifest."""
    for file in folder.glob("*.wav"):
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    return tmp_path


def pcm_of(sample):
    return [audio.pcm for message in sample.messages for audio in message.audios]


def same(a, b):
    assert (a.id, a.reasoning, a.replies, a.sounds, a.words, a.rubric) == (
        b.id,
        b.reasoning,
        b.replies,
        b.sounds,
        b.words,
        b.rubric,
    )
    assert [m.text for m in a.messages] == [m.text for m in b.messages]
    assert all(np.array_equal(x, y) for x, y in zip(pcm_of(a), pcm_of(b), strict=True))


def test_a_sample_is_a_pure_function_of_seed_split_and_index(folder, world, samples):
    again = pickle.loads(pickle.dumps(world))
    assert not again.recordings._spoken  # what was read is not sent to other processes
    for i in (7, 2, 4):  # out of order, after nothing else was read
        same(samples["train"][i], again.sample("train", i))
    assert samples["train"][3].reasoning != World(seed=2, voices=folder).sample("train", 3).reasoning


def test_a_tar_gives_what_its_folder_gives_and_leaves_nothing_behind(folder, samples, tmp_path):
    inside, beside = tmp_path / "inside.tar", tmp_path / "beside" / "words.tar"
    beside.parent.mkdir()
    for path, files in ((inside, ["manifest.jsonl"]), (beside, [])):
        with tarfile.open(path, "w") as tar:
            for file in files + [f.name for f in sorted(folder.glob("*.wav"), reverse=True)]:
                tar.add(folder / file, arcname=f"./{file}")
            evil = tarfile.TarInfo("../evil.wav")
            evil.size = 4
            tar.addfile(evil, io.BytesIO(b"evil"))
    (beside.parent / "manifest.jsonl").write_bytes((folder / "manifest.jsonl").read_bytes())
    before = sorted(tmp_path.rglob("*"))
    for source in (inside, beside, beside.parent):
        same(samples["heldout"][5], World(seed=1, voices=source).sample("heldout", 5))
    assert sorted(tmp_path.rglob("*")) == before


def test_splits_share_no_speaker_no_take_and_no_pair(folder):
    takes = Recordings(folder).takes
    assert {split: set(takes[split]) for split in SPLITS} == {
        "train": {"amy"},
        "practice": {"amy"},
        "validation": {"amy"},
        "heldout": {"bob"},
    }
    files = [
        {entry for words in takes[split].values() for part in words.values() for entry in part}
        for split in SPLITS
    ]
    assert [len(part) for part in files] == [10, 10, 10, 30]
    assert len(set.union(*files)) == 60
    assert [{entry.take for entry in part} for part in files[:3]] == [{2}, {1}, {0}]
    assert set(Recordings(folder, leave_out="amy").takes["heldout"]) == {"amy"}
    pairs = [set(digits.pairs()[split]) for split in SPLITS]
    assert sum(map(len, pairs)) == len(set.union(*pairs)) == 100
    for table in (
        *digits.ASK.values(),
        *digits.SOUND.values(),
        digits.TELL,
        digits.RECALL,
        digits.LISTEN,
        digits.ADD,
        digits.TAKE,
        digits.REPLACE,
    ):
        assert table["heldout"]
        assert not set(table["train"]) & set(table["heldout"])


def test_takes_may_be_left_out_and_words_be_written(folder, tmp_path):
    lines = [json.loads(line) for line in lines_of(folder)]
    for line in lines:
        del line["take"]
        line["word"] = DIGITS[line.pop("digit")]
    changed = Recordings(with_manifest(folder, tmp_path, [json.dumps(line) for line in lines]))
    plain = Recordings(folder)
    for split in SPLITS:
        assert {
            key: [(e.word, e.take) for part in words.values() for e in part]
            for key, words in changed.takes[split].items()
        } == {
            key: [(e.word, e.take) for part in words.values() for e in part]
            for key, words in plain.takes[split].items()
        }


def test_training_never_hears_or_writes_a_held_out_pair(world):
    kept = {(DIGITS[a], DIGITS[b]) for split in SPLITS[1:] for a, b in digits.pairs()[split]}
    written = {f" {tasks.equation(*s)}" for split in SPLITS[1:] for s in sums()[split]}
    for i in range(3000):
        said = digits.any_digits(world._random("train", i, "dictation"), "train")
        assert not kept & set(itertools.pairwise(said.split())), said
    dictation = world.dictation("train", 1)
    assert dictation.answer == " ".join(word for word, _, _ in dictation.words[0])
    side_by_side = re.compile("({0}) ({0})".format("|".join(DIGITS)))
    for i in range(3000):
        plan = digits.PLANS[TASKS[i % len(TASKS)]](world._random("train", i, "plan"), "train")
        text = world.text_sample("train", i)
        for turn in plan.turns:
            assert not kept & set(itertools.pairwise(turn.say.replace(",", "").split())), plan
        assert not kept & set(side_by_side.findall(text.messages[0].text)), text
        for step in (plan.step, text.reasoning):
            assert not any(equation in f" {step}" for equation in written), (plan, text)


@pytest.mark.parametrize("split", SPLITS)
def test_plans_ask_for_what_is_right(split):
    """The answer, worked out again from the digits spoken and the words written."""
    asked = {question: op for op, table in digits.ASK.items() for part in table.values() for question in part}
    ways = {"plus": lambda a, b: a + b, "minus": lambda a, b: a - b, "larger": max, "smaller": min}
    allowed = set(digits.pairs()[split])
    for i in range(300):
        plan = digits.arithmetic(random.Random(i), split)
        a, b = (DIGITS.index(word) for word in plan.turns[0].say.split())
        assert (a, b) in allowed
        assert int(plan.topic.answer) == ways[asked[plan.turns[0].text]](a, b) >= 0
        plan = digits.repair(random.Random(i), split)
        a, b = (
            DIGITS.index(word)
            for word in plan.turns[0].say.replace(",", "").split()[:: len(plan.turns[0].say.split()) - 1]
        )
        last = re.split(r"(?<=[.?]) (?:No, )?", plan.turns[0].text)[-1]
        last = next(op for question, op in asked.items() if question.lower() == last.lower())
        assert (a, b) in allowed
        assert int(plan.topic.answer) == ways[last](a, b)


def test_samples_have_the_shape_of_the_synthetic_ones(world, samples):
    assert world.vocabulary == tuple(sorted(DIGITS))
    for sample in itertools.chain(*samples.values()):
        roles = ["user", "assistant"] * (len(sample.sounds) - 1) + ["user"]
        assert [message.role for message in sample.messages] == roles
        assert all(message.audios and message.text for message in sample.messages[::2])
        assert len(sample.sounds) == len(sample.words) == len(pcm_of(sample))
        heard = " ".join(word for word, _, _ in sample.words[-1])
        assert sample.reasoning.startswith(f"heard: {heard}. voice: {sample.sounds[-1].rate}, ")
        assert all(verify(sample, reply.text) for reply in sample.replies)
        assert [acknowledges(sample, reply.text) for reply in sample.replies] == [
            reply.acknowledges is not None for reply in sample.replies
        ]
        wrong = replies.distractors(sample, random.Random(sample.id))
        assert not any(verify(sample, reply.text) for reply in wrong[:3])
    assert {sample.task for sample in samples["train"]} == set(TASKS)


def test_labels_are_what_the_clip_measures_and_words_lie_where_they_sound(samples):
    for sample in itertools.chain(*samples.values()):
        for sound, pcm, words in zip(sample.sounds, pcm_of(sample), sample.words, strict=True):
            assert pcm.dtype == np.float32
            assert np.abs(pcm).max() <= 1
            assert measured.label(measured.PITCH_HZ, sound.f0_hz) == sound.pitch
            assert measured.label(measured.RATE_OF_WORDS, sound.syllables_per_second) == sound.rate
            assert measured.label(measured.LEVEL_DB, sound.level_db) == sound.loudness
            # labels are measured before noise is added
            assert measured.activity(pcm).f0_hz == pytest.approx(sound.f0_hz, rel=0.12)
            inside = np.zeros(len(pcm), bool)
            for (_, start, end), (_, after, _) in itertools.pairwise([*words, ("", len(pcm) / 16000, 0.0)]):
                assert start < end < after
                inside[int(start * 16000) : int(end * 16000)] = True
            level = 10 * np.log10(np.mean(np.square(pcm[inside])))
            assert level == pytest.approx(sound.level_db, abs=2.5)
            far = np.convolve(inside, np.ones(1280), "same") < 0.5  # 40 ms and more from any word
            assert 10 * np.log10(np.mean(np.square(pcm[far]))) < level - 10


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ('{"file": "x.wav"', "one JSON object"),
        ("[1]", "one JSON object"),
        ('{"digit": 1, "speaker": "amy"}', "in file"),
        ('{"file": "7_bob_1.wav", "digit": 7}', "a name, got None in speaker"),
        ('{"file": "7_bob_1.wav", "speaker": "bob"}', "the key 'digit' or 'word'"),
        ('{"file": "7_bob_1.wav", "speaker": "bob", "digit": 10}', "from 0 to 9, got 10"),
        ('{"file": "7_bob_1.wav", "speaker": "bob", "digit": true}', "from 0 to 9, got True"),
        ('{"file": "7_bob_1.wav", "speaker": "bob", "word": "apple"}', "'apple' in word"),
        ('{"file": "7_bob_1.wav", "speaker": "bob", "digit": 7, "word": "six"}', "'seven' as in digit"),
        ('{"file": "7_bob_1.wav", "speaker": "bob", "digit": 7, "take": -1}', "at least 0"),
        ('{"file": "none.wav", "speaker": "bob", "digit": 7}', "'none.wav' in file"),
        ('{"file": "../7_bob_1.wav", "speaker": "bob", "digit": 7}', "inside the folder or tar"),
        ('{"file": "/etc/passwd", "speaker": "bob", "digit": 7}', "inside the folder or tar"),
        ('{"file": "7_amy_0.wav", "speaker": "amy", "digit": 7}', "each file once"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(folder, tmp_path, change, reason):
    lines = lines_of(folder)
    lines[51] = change
    with pytest.raises(BadLine, match=re.escape(reason)) as caught:
        World(voices=with_manifest(folder, tmp_path, lines))
    assert caught.value.line == 52
    assert str(caught.value).startswith(f"[recordings] {tmp_path / 'manifest.jsonl'}:52: expected ")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_a_source_is_refused_in_one_sentence(folder, tmp_path):
    with pytest.raises(InvalidInput, match="which does not exist"):
        World(voices=tmp_path / "nowhere")
    with pytest.raises(InvalidInput, match=r"readable file, got .*manifest.jsonl' \(No such file"):
        World(voices=tmp_path)
    with pytest.raises(InvalidInput, match="an uncompressed tar of recorded words"):
        World(voices=folder / "7_bob_1.wav")
    (tmp_path / "manifest.jsonl").write_text("\n\n")
    with pytest.raises(InvalidInput, match="at least one recording, got none"):
        World(voices=tmp_path)
    cut = tmp_path / "cut.tar"
    with tarfile.open(cut, "w") as tar:
        tar.add(folder / "0_amy_0.wav", arcname="0_amy_0.wav")
    cut.write_bytes(cut.read_bytes()[:3000])
    with pytest.raises(InvalidInput, match="uncompressed tar"):
        World(voices=cut)


def test_what_the_splits_need_is_checked(folder, tmp_path):
    with pytest.raises(InvalidInput, match=r"leave_out: expected one of \('amy', 'bob'\), got 'carl'"):
        World(voices=folder, leave_out="carl")
    pytest.importorskip("espeakng_loader")
    with pytest.raises(InvalidInput, match="leave_out: expected none with synthetic voices"):
        World(leave_out="amy")


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        (lambda line: line["speaker"] == "amy", "at least two speakers"),
        (lambda line: line["speaker"] == "amy" or line["digit"] != 4, "at least 1 of 'four' by 'bob', got 0"),
        (
            lambda line: line["speaker"] == "bob" or line["digit"] != 4 or line["take"] == 2,
            "at least 3 of 'four' by 'amy', got 1",
        ),
    ],
)
def test_too_few_recordings_are_refused(folder, tmp_path, keep, reason):
    lines = [line for line in lines_of(folder) if keep(json.loads(line))]
    with pytest.raises(InvalidInput, match=reason):
        World(voices=with_manifest(folder, tmp_path, lines))


@pytest.mark.parametrize("content", ["no audio", "silence", "hiss", "click", "long"])
def test_a_recording_that_cannot_be_used_is_named_when_it_is_wanted(folder, tmp_path, content):
    path = with_manifest(folder, tmp_path, lines_of(folder))
    broken = path / "7_bob_1.wav"
    broken.unlink()
    noise = np.random.default_rng(0).uniform(-1, 1, 32000)
    waves = {
        "silence": np.zeros(4000),
        "hiss": 1e-4 * noise[:4000],
        "long": 0.3 * noise,
        "click": np.where(np.arange(4000) // 100 == 20, 0.5, 0.0),
    }
    if content == "no audio":
        broken.write_bytes(b"RIFF of nothing")
    else:
        soundfile.write(broken, waves[content], 8000)
    recordings = Recordings(path)
    with pytest.raises(BadLine, match=r"manifest.jsonl:53: expected ") as caught:
        recordings.spoken(recordings.takes["heldout"]["bob"]["seven"][1])
    assert "\n" not in str(caught.value)


def test_comparisons_texts_and_corpus_work_as_for_synthetic_voices(world, samples):
    pair = world.pair(samples["train"][1], "train", 1)
    direct = world.comparison("train", 1)
    assert (pair.a, pair.b, pair.level, pair.rubric) == (direct.a, direct.b, direct.level, direct.rubric)
    texts = [world.text_sample("heldout", i) for i in range(40)]
    assert all(verify(text, reply.text) for text in texts for reply in text.replies)
    asked = {question for table in digits.ASK.values() for question in table["heldout"]}
    assert any(text.messages[0].text.endswith(tuple(asked)) for text in texts)
    corpus = set(world.corpus(60))
    assert any("Which is larger?" in line for line in corpus)
    assert any("larger" in line for line in corpus if line.startswith("The "))


def test_real_voices_are_split_by_speaker_and_by_test_takes(shared_data):
    source = shared_data / "fsdd"
    world = World(seed=2, voices=source, leave_out="jackson")
    takes = world.recordings.takes
    assert set(takes["heldout"]) == {"jackson"}
    for split in ("train", "practice", "validation"):
        assert set(takes[split]) == {"george", "lucas", "nicolas"}
    for split, wanted in (
        ("validation", range(5)),
        ("practice", range(5, 10)),
        ("train", range(10, 25)),
        ("heldout", range(25)),
    ):
        assert all(
            [entry.take for entry in part] == list(wanted)
            for words in takes[split].values()
            for part in words.values()
        )
    assert World(voices=source).recordings.leave_out == "nicolas"
    for split in SPLITS:
        for i in (0, 1):
            sample = world.sample(split, i)
            assert all(verify(sample, reply.text) for reply in sample.replies)
    same(sample, World(seed=2, voices=source / "fsdd_dev.tar", leave_out="jackson").sample("heldout", 1))


def test_the_tables_of_both_worlds_name_the_same_tasks():
    assert tuple(digits.PLANS) == tuple(tasks.PLANS) == TASKS

# SPDX-License-Identifier: Apache-2.0
"""Real weights from end to end: what the engine says to real texts and real recordings, long ones included,
against the Python model, and how much memory that takes."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from engine_cases import sequences

from earnest import Engine
from earnest.audio import load_audio
from earnest.dialogue import Audio, Message, Text
from earnest.model import AudioLM
from earnest.model.answer import prompt

RATE = 16_000


@pytest.fixture(scope="module")
def model(joined):
    return AudioLM.from_pretrained(joined, dtype=torch.float32)


@pytest.fixture(scope="module")
def engine(joined):
    with Engine(joined, weights="float32", kv_bytes=1 << 30) as engine:
        yield engine


@pytest.fixture(scope="module")
def clips(shared_data):
    folder = shared_data / "stepfun_clips"
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [(folder / clip["file"], clip["question"]) for clip in map(json.loads, lines)]


def answered(sessions, tokens):
    """Greedy answers to all of them at once: ids and log-probabilities of each."""
    answers = [s.generate(max_tokens=tokens, temperature=0.0, thinking=False) for s in sessions]
    for answer in answers:
        assert list(answer)[-1].finish_reason in ("length", "stop")
    return [answer.tokens() for answer in answers]


@torch.no_grad()
def assert_python_says_so(model, turns, answers):
    """At each token of the answers to `turns`, a user's message each, the Python model, which reads them as
    one prompt, finds that token the likeliest, and just as likely to the last bit."""
    rows, positions, bounds, wanted, targets, given = [], [], [0], [], [], []
    for turn, (ids, logprobs) in zip(turns, answers, strict=True):
        [(asked, heard)] = sequences(model, prompt(model, model.tokenizer, [turn], think=False)[0])
        said = torch.from_numpy(ids).long()
        assert len(said) > 0
        ids = torch.cat([asked, said[:-1]])
        row = model.model.embed_tokens(ids.clamp(min=0))
        row[ids == -1] = heard
        rows.append(row)
        positions.append(torch.arange(len(ids)))
        wanted.append(torch.arange(len(asked) - 1, len(ids)) + bounds[-1])
        bounds.append(bounds[-1] + len(ids))
        targets.append(said)
        given.append(torch.from_numpy(logprobs))
    hidden = model.model(torch.cat(rows), torch.cat(positions), torch.tensor(bounds, dtype=torch.int32))[
        torch.cat(wanted)
    ]
    targets, given = torch.cat(targets), torch.cat(given)
    likeliest = torch.cat([model.logits(part).argmax(-1) for part in hidden.split(256)])
    assert torch.equal(likeliest, targets)
    assert torch.equal(model.logprob(hidden, targets)[0], given)


def texts(shared_data, count):
    """Beginnings of what people wrote: a word or some lines, in two languages."""
    found = set()
    for path in sorted(shared_data.glob("*/*/metadata.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            for name, value in json.loads(line).items():
                if isinstance(value, str) and not name.endswith(("id", "path", "file", "name")):
                    found.add(value)
    rng = random.Random(4)
    return [text[: rng.randrange(5, 80)] for text in rng.sample(sorted(found), count)]


def test_two_hundred_prompts_are_answered_as_by_the_python_model(engine, model, shared_data):
    prompts = texts(shared_data, 200)
    sessions = []
    for text in prompts:
        sessions.append(engine.session())
        sessions[-1].add_text(text)
    answers = answered(sessions, 12)
    assert len({tuple(ids.tolist()) for ids, _ in answers}) > 100
    assert_python_says_so(model, [Message.user(Text(text)) for text in prompts], answers)


def test_real_recordings_are_heard_as_by_the_python_model(engine, model, clips):
    """One of them is an MP3 with a wrong ending, at another rate."""
    sessions, turns = [], []
    for path, question in clips:
        sessions.append(engine.session())
        sessions[-1].add_audio(path)
        sessions[-1].add_text(question or "What is it?")
        turns.append(Message.user(Audio(path=str(path)), Text(question or "What is it?")))
    assert_python_says_so(model, turns, answered(sessions, 6))


def speech(clips, seconds):
    """So many seconds of the recordings, one after another."""
    pcm = np.concatenate([load_audio(path, RATE) for path, _ in clips])
    return np.resize(pcm, seconds * RATE)


def speak(session, pcm, seed):
    """In pushes of any size, from a sample to some seconds."""
    rng = np.random.default_rng(seed)
    at = 0
    with session.speak(RATE) as clip:
        while at < len(pcm):
            size = int(np.exp(rng.uniform(0, np.log(3 * RATE))))
            clip.push(pcm[at : at + size])
            at += size


def test_half_a_minute_and_a_second_is_heard_in_two_chunks(engine, model, clips):
    """Longer than one chunk may be, so that it is cut at 25 s, while it is spoken."""
    pcm = speech(clips, 31)
    session = engine.session()
    speak(session, pcm, 0)
    session.add_text("What do you hear?")
    turn = Message.user(Audio(pcm=pcm), Text("What do you hear?"))
    assert len(prompt(model, model.tokenizer, [turn])[0].mel) == 2
    assert_python_says_so(model, [turn], answered([session], 6))


RESIDENT = """
import sys
from earnest import Engine

def resident():
    with open("/proc/self/status") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith(("RssAnon", "RssFile")))
"""

TALKING = (
    RESIDENT
    + """
before = resident()
with Engine(sys.argv[1], kv_bytes=32 << 20, threads=2) as engine:
    print(resident() - before, engine.info["weight_bytes"])
    session = engine.session()
    session.add_text("What is the capital of France?")
    answer = session.generate(max_tokens=20, temperature=0.0)
    list(answer)
    answer.tokens()  # whose log-probabilities read all of the table
    stats = engine.stats()
    print(resident() - before, (32 << 20) * stats["kv_tokens_used"] // stats["kv_tokens"])
"""
)

HEARING = (
    RESIDENT
    + """
import json
import numpy as np

pcm = np.load(sys.argv[2])
before = resident()
with Engine(sys.argv[1], weights="bfloat16", threads=2) as engine:
    session = engine.session()
    session.add_audio(pcm)
    session.add_text("What was that?")
    answer = session.generate(max_tokens=8, temperature=0.0, thinking=False)
    usage = list(answer)[-1].usage
    ids, logprobs = answer.tokens()  # which reads all of the table
    tokens = usage.prompt_tokens + usage.completion_tokens
    said = [ids.tolist(), logprobs.tolist()]
    print(json.dumps([resident() - before, engine.info["weight_bytes"], tokens, said]))
"""
)


def table_bytes(config):
    """The table of embeddings, which is used where it lies in the file."""
    return 2 * config["vocab_size"] * config["hidden_size"]


def kv_bytes(config):
    """Keys and values of a token."""
    dim = config["hidden_size"] // config["num_attention_heads"]
    return 2 * 2 * config["num_hidden_layers"] * config["num_attention_groups"] * dim


def test_a_model_takes_the_memory_of_its_weights(joined):
    """And at most 64 MB: tokenizer, scratch memory, the program. What was packed no longer stays beside its
    copy; the table of embeddings is used where it lies in the file, by lookups and for log-probabilities."""
    made = subprocess.run(
        [sys.executable, "-c", TALKING, str(joined)], capture_output=True, text=True, check=True
    )
    loaded, packed, talked, kept = map(int, made.stdout.split())
    config = json.loads((joined / "config.json").read_text())["text_config"]
    assert packed > 300e6
    assert loaded - packed < 64 << 20
    assert talked - packed - table_bytes(config) - kept < 64 << 20


def test_ten_minutes_in_pushes_are_the_ten_minutes_at_once(joined, clips, tmp_path):
    """What is spoken is computed as it comes. Given at once to another engine it is computed anew, given to
    another session it is found by the digests of its features: the same is said. And beside its weights and
    its keys and values the other engine takes at most 64 MB then; its features, which all waited at first,
    are gone."""
    pcm = speech(clips, 600)
    np.save(tmp_path / "pcm.npy", pcm)
    with Engine(joined, weights="bfloat16") as engine:
        spoken, again = engine.session(), engine.session()
        speak(spoken, pcm, 1)
        again.add_audio(pcm)
        answers = []
        for session in (spoken, again):
            session.add_text("What was that?")
            answer = session.generate(max_tokens=8, temperature=0.0, thinking=False)
            usage = list(answer)[-1].usage
            ids, logprobs = answer.tokens()
            answers.append([ids.tolist(), logprobs.tolist()])
            assert usage.audio_tokens >= 600 * 12.5
        assert usage.cached_tokens > usage.audio_tokens
    script = [sys.executable, "-c", HEARING, str(joined), str(tmp_path / "pcm.npy")]
    other = subprocess.run(script, capture_output=True, text=True, check=True)
    heard, packed, tokens, whole = json.loads(other.stdout)
    assert answers[0] == answers[1] == whole
    config = json.loads((joined / "config.json").read_text())["text_config"]
    assert tokens > 600 * 12.5
    assert heard - packed - table_bytes(config) - tokens * kv_bytes(config) < 64e6

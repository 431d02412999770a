# SPDX-License-Identifier: Apache-2.0
"""earnest.Engine: what the Python model says, as events, for loops of either kind; and how answers end."""

import asyncio
import gc
import itertools
import math
import threading

import numpy as np
import pytest
import soundfile
import torch

from earnest import Engine, _native
from earnest.cli import main
from earnest.dialogue import Audio, Message, Text, Tokenizer
from earnest.dialogue.tokenizer import FAMILY_SPECIALS
from earnest.engine import Done, Prefill, Reasoning, Reply
from earnest.errors import Busy, ContextFull, InvalidInput
from earnest.model import AudioLM, AudioLMConfig
from earnest.model.answer import prompt

LONG = {"max_tokens": 1500, "temperature": 0.0, "thinking": False}


def tone(seconds, rate=16_000):
    return (0.3 * np.sin(np.arange(int(seconds * rate)) * 0.1)).astype(np.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["how do I sound? you sound calm and low", "it is loud", "tell me more"], 320)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = AudioLMConfig.preset("tiny", vocab_size=len(tokenizer), max_position_embeddings=2048)
    model = AudioLM(config, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
        # It talks until it is stopped, and never says what the engine would not let it say.
        model.lm_head.weight[[tokenizer.special(name) for name in FAMILY_SPECIALS]] = 0
    return model


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("engine") / "model"
    model.save_pretrained(path)
    tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def engine(folder):
    with Engine(folder, weights="float32") as engine:
        yield engine


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_saved_quantised_model_answers_as_one_quantised_on_load(folder, tmp_path, weights):
    saved = tmp_path / weights
    assert main(["quantize", str(folder), str(saved), "--weights", weights]) == 0
    replies = []
    for path, chosen in ((folder, weights), (saved, "as-stored"), (saved, weights)):
        with Engine(path, weights=chosen) as engine:
            assert engine.info["quantization"] == weights
            assert engine.info["precision"] == ("float32" if chosen == "as-stored" else "bfloat16")
            session = engine.session()
            session.add_audio(tone(0.6))
            session.add_text("how do I sound?")
            replies.append(session.reply(max_tokens=40, temperature=0.0))
    assert replies[0] == replies[2] != ""
    with pytest.raises(ValueError, match=f"weights: expected {weights}, as these are saved"):
        Engine(saved, weights="bfloat16")


def test_it_says_what_the_python_model_says(engine, model, tokenizer):
    clips = [tone(0.4), tone(1.7)]
    session = engine.session("be calm")
    session.add_audio(clips[0])
    session.add_text("how do I sound?")
    session.add_answer("you sound calm", "it is low")
    session.add_audio(clips[1])
    session.add_text("tell me more, it is loud")
    turns = [
        Message.system("be calm"),
        Message.user(Audio(pcm=clips[0]), Text("how do I sound?")),
        Message.assistant("you sound calm", "it is low"),
        Message.user(Audio(pcm=clips[1]), Text("tell me more, it is loud")),
    ]
    model.tokenizer = tokenizer
    for think in (True, False):
        batch, _ = prompt(model, tokenizer, turns, think=think)
        with torch.no_grad():
            want = model.generate(turns, max_new_tokens=24, think=think)
            made = model.generate_ids(batch, max_new_tokens=24, temperature=0.0)
        answer = session.fork().generate(max_tokens=24, temperature=0.0, thinking=think)
        events = list(answer)
        assert isinstance(events[0], Prefill)
        assert answer.reasoning == "".join(e.text for e in events if isinstance(e, Reasoning))
        assert answer.reply == "".join(e.text for e in events if isinstance(e, Reply))
        assert (answer.reasoning, answer.reply) == (want.reasoning or "", want.text)
        ids, logprobs = answer.tokens()
        assert ids.tolist() == list(made.ids[0])
        assert logprobs.tolist() == torch.as_tensor(made.logp[0]).tolist()  # to the last bit
        done = events[-1]
        assert isinstance(done, Done)
        assert done.finish_reason == "length"
        assert done.usage.completion_tokens == 24
        assert done.usage.prompt_tokens == len(batch.input_ids)
        assert done.usage.audio_tokens == len(batch.audio_positions)
    assert len(session) == 4
    assert session.tokens(0) > 3
    assert done.usage.cached_tokens > 0  # the second fork found what the first had read


def test_on_the_cpu_graphs_can_only_be_off(folder):
    expected = r"\[engine\] cuda_graphs: expected a model on cuda, got one on cpu"
    with pytest.raises(ValueError, match=expected):
        Engine(folder, cuda_graphs=True)
    with pytest.raises(InvalidInput, match="cuda_graphs: expected True, False or None, got 1"):
        Engine(folder, cuda_graphs=1)
    for graphs in (None, False):
        with Engine(folder, cuda_graphs=graphs) as engine:
            assert engine.session("be calm").reply(max_tokens=3) is not None
            stats = engine.stats()
        assert stats["recorded_graphs"] == stats["graph_steps"] == stats["plain_steps"] == 0
        assert stats["graph_trouble"] is None


def test_on_the_cpu_products_are_ours(folder):
    with pytest.raises(ValueError, match=r"\[engine\] products: expected ours on cpu, got vendor"):
        Engine(folder, products="vendor")
    with pytest.raises(InvalidInput, match="products: expected ours or vendor, got 'cublas'"):
        Engine(folder, products="cublas")
    with pytest.raises(ValueError, match="products: expected ours or vendor, got cublas"):
        _native.engine.load(str(folder), "float32", products="cublas")
    with Engine(folder) as engine:
        assert engine.info["products"] == "ours"


def test_tokens_come_with_their_log_probabilities(engine):
    session = engine.session()
    session.add_text("how do I sound?")
    answer = session.generate(max_tokens=9, seed=2**64 - 1)
    assert isinstance(list(answer)[-1], Done)
    ids, logprobs = answer.tokens()
    assert ids.dtype == np.int32
    assert logprobs.dtype == np.float32
    assert len(ids) == len(logprobs) == 9
    assert (logprobs <= 0).all()
    assert (logprobs > -50).all()


@pytest.mark.parametrize("kind", ["float32", "int16", "float64", "strided", "stereo", "pieces", "file"])
def test_samples_of_any_kind_are_heard_alike(engine, kind, tmp_path):
    pcm = np.round(tone(0.9) * 32768) / 32768
    pcm = pcm.astype(np.float32)
    session = engine.session()
    if kind == "pieces":
        with session.speak(16_000) as clip:
            for at in range(0, len(pcm), 777):
                clip.push(pcm[at : at + 777])
            assert clip.seconds == pytest.approx(0.9)
    elif kind == "file":
        soundfile.write(tmp_path / "clip.wav", pcm, 16_000, "PCM_16")
        session.add_audio(tmp_path / "clip.wav")
    else:
        session.add_audio(
            {
                "float32": pcm,
                "int16": (pcm * 32768).astype(np.int16),
                "float64": pcm.astype(np.float64),
                "strided": np.repeat(pcm, 2)[::2],
                "stereo": np.stack([pcm, pcm], 1),
            }[kind]
        )
    plain = engine.session()
    plain.add_audio(pcm)
    how = {"max_tokens": 12, "temperature": 0.0}
    assert session.reply("how?", **how) == plain.reply("how?", **how)


def test_other_rates_are_resampled(engine):
    session = engine.session()
    session.add_audio(tone(1.0, 44_100), 44_100)
    events = list(session.generate(max_tokens=1))
    assert events[-1].usage.audio_tokens == 13  # of 12.5 a second


def test_forks_truncations_and_files_go_on_alike(engine, tmp_path):
    how = {"max_tokens": 10, "temperature": 0.0}
    session = engine.session()
    session.reply("how do I sound?", audio=tone(0.5), **how)
    fork = session.fork()
    session.save(tmp_path / "session")
    want = session.reply("tell me more", **how)
    fork.reply("it is loud", **how)
    fork.truncate(2)
    assert fork.reply("tell me more", **how) == want
    loaded = engine.load_session(tmp_path / "session")
    assert len(loaded) == 2
    assert loaded.reply("tell me more", **how) == want
    with pytest.raises(ValueError, match="expected"):
        engine.load_session(tmp_path / "none")


def test_an_answer_ends_when_it_is_cancelled_closed_or_forgotten(engine):
    for ending in ("cancel", "close", "forget", "with", "thread"):
        session = engine.session()
        session.add_text("how do I sound?")
        answer = session.generate(**LONG)
        for event in answer:
            if isinstance(event, Reply):
                break
        with pytest.raises(Busy, match="expected"):
            session.add_text("more")
        if ending == "cancel":
            answer.cancel()
            answer.cancel()
            assert list(answer)[-1].finish_reason == "cancelled"
        elif ending == "close":
            answer.close()
            assert list(answer) == []
        elif ending == "forget":
            del answer
            gc.collect()
        elif ending == "with":
            with answer:
                next(answer)
        else:
            thread = threading.Thread(target=answer.cancel)
            thread.start()
            assert list(answer)[-1].finish_reason == "cancelled"
            thread.join()
        assert engine.stats()["running"] == 0
        session.add_text("more")
        assert len(session) == 3  # what had been said stays
    for event in session.generate(**LONG):  # the loop's own iterator, left early
        if isinstance(event, Reply):
            break
    assert engine.stats()["running"] == 0


def test_two_sessions_answer_at_once_in_one_loop(engine):
    how = {"max_tokens": 400, "temperature": 0.0}
    turns = ["how do I sound?", "it is loud"]
    alone = []
    for words in turns:
        session = engine.session()
        alone.append(session.reply(words, **how))
    order = []

    async def answer(number):
        session = engine.session()
        session.add_text(turns[number])
        reply = ""
        async for event in session.generate(**how):
            order.append(number)
            reply += event.text if isinstance(event, Reply) else ""
        return reply

    async def both():
        return await asyncio.gather(answer(0), answer(1))

    assert asyncio.run(both()) == alone
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert changes > 4  # side by side, not one after the other


def test_a_cancelled_task_cancels_its_answer(engine):
    session = engine.session()
    session.add_text("how do I sound?")

    async def talk(begun):
        async for _ in session.generate(**LONG):
            begun.set()

    async def interrupted():
        begun = asyncio.Event()
        task = asyncio.create_task(talk(begun))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(interrupted())
    assert engine.stats()["running"] == 0
    session.add_text("more")

    async def left_early():
        async with session.generate(**LONG) as answer:
            async for event in answer:
                if isinstance(event, Reply):
                    break

    asyncio.run(left_early())
    assert engine.stats()["running"] == 0


def test_others_run_while_one_waits(engine):
    """Python's lock is free while events are waited for."""
    session = engine.session()
    session.add_text("how do I sound?")
    counted, stop = [0], threading.Event()

    def count():
        while not stop.is_set():
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    list(session.generate(max_tokens=200, temperature=0.0))
    stop.set()
    thread.join()
    assert counted[0] > 1000


def test_what_cannot_be_is_refused(engine, folder, tmp_path):
    session = engine.session()
    with pytest.raises(ValueError, match="expected"):
        session.generate()  # nothing to answer
    session.add_text("how?")
    for wrong in ({"temperature": -1.0}, {"temperature": math.nan}, {"top_p": 2.0}, {"stop": [""]},
                  {"stop_ids": [-1]}, {"max_tokens": 0}, {"max_tokens": 1.5}, {"seed": -1}, {"top_k": -1},
                  {"prefill": "a", "thinking": True}):  # fmt: skip
        with pytest.raises(ValueError, match="expected"):
            session.generate(**wrong)
    for pcm in (np.zeros(3, np.int64), np.zeros((2, 2, 2), np.float32), np.array([math.nan], np.float32)):
        with pytest.raises(ValueError, match="expected"):
            session.add_audio(pcm)
    with pytest.raises(InvalidInput), session.speak(16_000) as clip:
        clip.push(np.zeros((4, 2), np.float32))
    assert len(session) == 1  # nothing of them stayed
    for rate in (0, 999, 200_000, 1.5):
        with pytest.raises(ValueError, match="expected"):
            session.add_audio(tone(0.1), rate)
    with pytest.raises(ValueError, match="expected"):
        Engine(tmp_path)
    with pytest.raises(ValueError, match=r"^\[engine\] device: expected cpu, cuda or cuda:N, got tpu$"):
        Engine(folder, device="tpu")
    with pytest.raises(ValueError, match=r"^\[(engine|load)\] .*: expected .*, got (cuda|none|\d+|float32)"):
        Engine(folder, device="cuda")  # no GPU, or heads that it does not take
    with pytest.raises(InvalidInput):
        Engine(folder, weights="int2")
    with pytest.raises(InvalidInput):
        engine.session(history="forget")
    for call in (
        lambda: session.add_answer("a\0b"),
        lambda: session.add_answer("a", "a\0b"),
        lambda: session.add_text("a", role="us\0er"),
        lambda: session.generate(stop=["a\0b"]),
        lambda: session.save("a\0b"),
    ):
        with pytest.raises(ValueError, match="zero"):
            call()
    with Engine(folder, kv_bytes=1 << 18) as small:
        crowded = small.session()
        crowded.add_text("how do I sound? " * 2000)
        with pytest.raises(ContextFull, match="expected"):
            crowded.generate()


def test_what_is_closed_stays_closed(folder):
    engine = Engine(folder)
    session = engine.session()
    session.add_text("how?")
    answer = session.generate(**LONG)
    engine.close()
    assert list(answer) == []
    for call in (engine.session, engine.stats, session.fork, session.generate):
        with pytest.raises(InvalidInput, match="closed"):
            call()


def test_a_request_of_openais_shape_is_answered(engine):
    messages = [{"role": "user", "content": "how do I sound?"}]
    response = engine.chat({"messages": messages, "max_tokens": 8, "temperature": 0})
    assert response["object"] == "chat.completion"
    assert response["usage"]["completion_tokens"] == 8
    session = engine.session()
    assert response["choices"][0]["message"]["content"] == session.reply(
        "how do I sound?", max_tokens=8, temperature=0.0
    )
    with pytest.raises(ValueError, match="stream"):
        engine.chat({"messages": messages, "stream": True})


def test_importing_it_needs_no_torch(folder):
    import subprocess
    import sys

    code = f"""
import sys
from earnest import Engine
from earnest.cli import main
with Engine({str(folder)!r}) as engine:
    print(len(engine.session().reply("how?", max_tokens=5)) > 0, "torch" in sys.modules)
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.split() == ["True", "False"]

# SPDX-License-Identifier: Apache-2.0
"""Chat: what streams, what is kept of it, and what a wrong file costs."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from earnest import cli
from earnest.chat import Printer, Sampling, Session, answer
from earnest.dialogue import Audio, Delta, Text, Tokenizer
from earnest.errors import InvalidInput
from earnest.model import AudioLM, AudioLMConfig


def tone(seconds: float = 0.5, rate: int = 16000) -> np.ndarray:
    return np.sin(np.arange(int(seconds * rate)) * 0.1).astype(np.float32) * 0.3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["how do I sound? you sound calm and low", "it is loud"], 320)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> AudioLM:
    config = AudioLMConfig.preset("tiny", vocab_size=len(tokenizer))
    return AudioLM(config, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(model: AudioLM, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "model"
    model.save_pretrained(path)
    tokenizer.save(path)
    return path


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    path = tmp_path / "a clip.wav"
    soundfile.write(path, np.stack([tone(rate=44100)] * 2, 1), 44100)
    return path


class Scripted:
    """Stands for model.stream_ids: says given texts, and keeps the prompts it was asked to continue."""

    def __init__(self, tokenizer: Tokenizer, *texts: str) -> None:
        self.tokenizer, self.texts, self.prompts = tokenizer, list(texts), []

    def __call__(self, batch: object, **options: object) -> Iterator[tuple[int, float]]:
        self.prompts.append(batch.input_ids.tolist())
        for token in self.tokenizer.encode(self.texts.pop(0)):
            yield token, 0.0
        yield self.tokenizer.special("<|EOT|>"), 0.0


def scripted(session: Session, monkeypatch: pytest.MonkeyPatch, *texts: str) -> Scripted:
    script = Scripted(session.tokenizer, *texts)
    monkeypatch.setattr(session.model, "stream_ids", script)
    return script


def test_reasoning_and_reply_come_apart_and_join_the_history(
    model: AudioLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    session = Session(model, tokenizer)
    script = scripted(session, monkeypatch, "it is loud\n</think>\nyou sound calm", "low\n</think>\nand low")
    deltas = list(session.say([Audio(pcm=tone()), Text("how do I sound?")]))
    assert "".join(d.text for d in deltas if d.kind == "reasoning") == "it is loud"
    assert "".join(d.text for d in deltas if d.kind == "reply") == "you sound calm"
    assert (session.messages[-1].reasoning, session.messages[-1].text) == ("it is loud", "you sound calm")
    list(session.say([Text("and?")]))
    assert [message.role for message in session.messages] == ["user", "assistant", "user", "assistant"]
    first, second = script.prompts
    assert second[: len(first)] == first  # the whole first turn, clip and thought, stands before the second
    text = tokenizer.decode(second)
    assert "it is loud" in text
    assert "you sound calm" in text
    assert (
        second.count(tokenizer.special("<audio_patch>"))
        == first.count(tokenizer.special("<audio_patch>"))
        > 0
    )


def test_an_interrupted_answer_leaves_the_history_as_it_was(
    model: AudioLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    session = Session(model, tokenizer)
    scripted(session, monkeypatch, "it is loud\n</think>\nyou sound calm")
    stream = session.say([Text("how do I sound?")])
    next(stream)
    stream.close()
    assert session.messages == []
    with pytest.raises(InvalidInput, match=r"none\.wav"):
        list(session.say([Audio(path="none.wav")]))
    assert session.messages == []


def test_answers_depend_on_the_seed_and_nothing_else(model: AudioLM, tokenizer: Tokenizer):
    def said(seed: int, temperature: float = 1.0) -> str:
        session = Session(model, tokenizer, Sampling(12, temperature, seed=seed))
        return "".join(delta.text for delta in session.say([Audio(pcm=tone()), Text("how?")]))

    assert said(1) == said(1) != said(2)
    assert said(1, 0.0) == said(2, 0.0)


def test_without_think_the_reply_comes_at_once(
    model: AudioLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    session = Session(model, tokenizer, Sampling(think=False))
    scripted(session, monkeypatch, "you sound calm")
    assert {delta.kind for delta in session.say([Text("how?")])} == {"reply"}
    assert session.messages[-1].reasoning is None


def test_the_printer_sets_reasoning_apart_with_and_without_colour():
    deltas = [Delta("reasoning", "lo"), Delta("reasoning", "ud"), Delta("reply", "calm")]
    for colour, expected in ((True, "\x1b[2mloud\x1b[0m\n\ncalm\n"), (False, "(thinking) loud\n\ncalm\n")):
        out = io.StringIO()
        printer = Printer(out, colour)
        for delta in deltas:
            printer.write(delta)
        printer.end()
        assert out.getvalue() == expected


def test_what_a_model_says_cannot_steer_the_terminal():
    out = io.StringIO()
    Printer(out, colour=False).write(Delta("reply", "a\x1b[2Jb\r\tc\nd\x9b"))
    assert out.getvalue() == "a\ufffd[2Jb\ufffd\tc\nd\ufffd"


def test_colour_is_put_back_when_the_answer_breaks_off(
    model: AudioLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def breaking(batch: object, **options: object) -> Iterator[tuple[int, float]]:
        yield tokenizer.encode("x")[0], 0.0
        raise KeyboardInterrupt

    session, out = Session(model, tokenizer), Terminal()
    monkeypatch.setattr(model, "stream_ids", breaking)
    with pytest.raises(KeyboardInterrupt):
        answer(session, [Text("how?")], out=out)
    assert out.getvalue().endswith("\x1b[0m\n")


# ---- the command ----


def test_one_question_about_files(folder: Path, wav: Path, capsys: pytest.CaptureFixture):
    arguments = [
        "chat",
        str(folder),
        "--audio",
        str(wav),
        "--audio",
        str(wav),
        "--text",
        "how?",
        "--max-new-tokens",
        "6",
    ]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith("(thinking) ")
    assert cli.main([*arguments, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"reasoning", "reply"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--audio", "missing.wav"], "missing.wav"),
        (["--audio", "."], "expected"),
        (["--text", "hi", "--temperature", "-1"], "temperature: expected"),
        (["--text", "hi", "--top-p", "0"], "top_p: expected"),
        (["--text", "hi", "--max-new-tokens", "0"], "max_new_tokens"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture, arguments: list[str], words: str
):
    assert cli.main(["chat", str(folder), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("earnest: [")
    assert said.count("\n") == 1
    assert words in said


def test_a_folder_that_is_no_model_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert cli.main(["chat", str(tmp_path), "--text", "hi"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_conversation_on_standard_input(
    folder: Path, wav: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    lines = [
        "hello",
        f"/audio {wav}",
        "how?",
        "",
        "/audio none.wav",
        "/fly",
        "/help",
        "/reset",
        f"/audio '{wav}'",
        "",
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([*lines, "/quit", "never"]) + "\n"))
    assert cli.main(["chat", str(folder), "--json", "--max-new-tokens", "4"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3  # hello; the clip with how?; the clip alone
    assert "none.wav" in captured.err
    assert "got '/fly'" in captured.err
    assert "/audio FILE" in captured.err


def test_a_conversation_ends_with_its_input(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi"))
    assert cli.main(["chat", str(folder), "--max-new-tokens", "2"]) == 0

# SPDX-License-Identifier: Apache-2.0
"""Talking with a model: one question about sound files, or a conversation in the terminal.

session = Session.load("runs/demo/rlhf")
for delta in session.say([Audio(path="question.wav")]):
    print(delta.kind, delta.text)           # "reasoning" as it thinks, then "reply"
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import torch

from earnest.dialogue import (
    Audio,
    Delta,
    Example,
    Message,
    PackedBatch,
    Part,
    ReasoningStream,
    Text,
    Tokenizer,
    collate,
    read_audio,
    render,
)
from earnest.errors import InvalidInput
from earnest.features import LogMel
from earnest.model import AudioLM
from earnest.model.features import hear
from earnest.model.weights import find_folder

OP = "chat"
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a model says must not steer the terminal
HELP = """\
Write a line to send it. Commands:
  /audio FILE   add a recording to your turn (an empty line sends the turn as it is)
  /reset        forget the conversation
  /help         these lines
  /quit         leave (so does Ctrl-D)"""


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn; temperature 0 takes the likeliest token."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    think: bool = True


class Session:
    """A conversation with a model. Clips are decoded and turned into features once, when they are said."""

    def __init__(self, model: AudioLM, tokenizer: Tokenizer, sampling: Sampling | None = None) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.sampling = sampling or Sampling()
        self.messages: list[Message] = []
        self._generator = torch.Generator().manual_seed(self.sampling.seed)
        self._log_mel = LogMel(model.config.audio_encoder_config.n_mels, padding="step_audio")
        self._heard: dict[int, list[torch.Tensor]] = {}

    @classmethod
    def load(cls, path_or_id: str, sampling: Sampling | None = None) -> Session:
        """The model and the tokenizer of a model folder, or of a hub id."""
        folder = find_folder(path_or_id)
        return cls(AudioLM.from_pretrained(folder), Tokenizer.load(folder), sampling)

    def reset(self, system: str | None = None) -> None:
        """Forgets everything said so far."""
        self.messages = [] if system is None else [Message.system(system)]
        self._heard.clear()

    def say(self, parts: Sequence[Part]) -> Iterator[Delta]:
        """One turn of the user; the answer as it comes, reasoning and reply apart. The turn and its answer
        join the history when the answer is complete: an error or an interruption leaves the history as it
        was."""
        turn = Message.user(*parts)
        for audio in turn.audios:
            self._hear(audio)
        history = [*self.messages, turn]
        rendered = render(
            history,
            self.tokenizer,
            audio_tokens=self._audio_tokens,
            generation_prompt="think" if self.sampling.think else "plain",
        )
        mel = [mel for message in history for audio in message.audios for mel in self._heard[id(audio)]]
        counts = self.model.config.audio_encoder_config.audio_tokens
        batch = collate([Example(rendered, mel)], adaptor_frames=counts)
        stream = ReasoningStream(inside=rendered.inside_thought, tokenizer=self.tokenizer)
        said: dict[str, str] = {"reasoning": "", "reply": ""}
        for delta in self._deltas(batch, stream):
            said[delta.kind] += delta.text
            yield delta
        answer = Message.assistant(said["reply"], said["reasoning"] if stream.thought_seen else None)
        self.messages = [*history, answer]

    def _deltas(self, batch: PackedBatch, stream: ReasoningStream) -> Iterator[Delta]:
        for token, _ in self.model.stream_ids(
            batch,
            max_new_tokens=self.sampling.max_new_tokens,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            generator=self._generator,
            stop_ids=self.tokenizer.stop_ids,
        ):
            yield from stream.push([token])
        yield from stream.finish()

    def _hear(self, audio: Audio) -> None:
        self._heard[id(audio)] = hear(read_audio(audio), self._log_mel, self.model.device)

    def _audio_tokens(self, audio: Audio) -> list[int]:
        counts = self.model.config.audio_encoder_config.audio_tokens
        return [counts(int(mel.shape[1])) for mel in self._heard[id(audio)]]


# ---- writing an answer ----


@dataclass
class Printer:
    """Writes an answer as it streams: the reasoning dim (marked where there is no colour), the reply plain,
    apart."""

    out: TextIO
    colour: bool
    _kind: str = field(default="", init=False)

    def write(self, delta: Delta) -> None:
        if delta.kind != self._kind:
            self._turn_to(delta.kind)
        self.out.write(CONTROLS.sub("\N{REPLACEMENT CHARACTER}", delta.text))
        self.out.flush()

    def end(self) -> None:
        if self.colour and self._kind == "reasoning":
            self.out.write("\x1b[0m")
        self.out.write("\n")
        self.out.flush()
        self._kind = ""

    def _turn_to(self, kind: str) -> None:
        if self._kind:
            self.out.write("\x1b[0m\n\n" if self.colour else "\n\n")
        if kind == "reasoning":
            self.out.write("\x1b[2m" if self.colour else "(thinking) ")
        self._kind = kind


# ---- the command ----


def run(options: argparse.Namespace) -> None:
    """``earnest chat``: answers the turn made of --audio and --text, or holds a conversation."""
    parts = [_part(kind, value) for kind, value in options.parts]
    sampling = Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        think=options.think,
    )
    session = Session.load(options.model, sampling)
    session.reset(options.system)
    if parts:
        answer(session, parts, as_json=options.json)
    else:
        converse(session, system=options.system, as_json=options.json)


def answer(
    session: Session, parts: Sequence[Part], *, as_json: bool = False, out: TextIO | None = None
) -> None:
    """Says one turn and writes the answer: streamed, or as one line of JSON."""
    out = out or sys.stdout
    if as_json:
        for _ in session.say(parts):
            pass
        last = session.messages[-1]
        out.write(json.dumps({"reasoning": last.reasoning, "reply": last.text}, ensure_ascii=False) + "\n")
        out.flush()
        return
    printer = Printer(out, colour=out.isatty())
    try:
        for delta in session.say(parts):
            printer.write(delta)
    finally:
        printer.end()


def converse(session: Session, *, system: str | None = None, as_json: bool = False) -> None:
    """Reads turns from standard input until it ends. What goes wrong in a turn is said and the conversation
    goes on; Ctrl-C stops an answer."""
    interactive = sys.stdin.isatty()
    if interactive:
        _with_history()
        print(
            "A line speaks to the model; /audio FILE adds a recording; /help lists the rest.", file=sys.stderr
        )
    waiting: list[Part] = []
    while (line := _read_line(interactive, waiting)) is not None:
        command, _, rest = line.strip().partition(" ")
        try:
            if command in ("/quit", "/exit"):
                return
            if command == "/help":
                print(HELP, file=sys.stderr)
            elif command == "/reset":
                waiting = []
                session.reset(system)
            elif command == "/audio":
                waiting += [_part("audio", path) for path in _paths(rest)]
            elif command.startswith("/"):
                raise InvalidInput(OP, "command", "/audio FILE, /reset, /help or /quit", repr(command))
            elif line.strip() or waiting:
                turn, waiting = [*waiting, *([Text(line.strip())] if line.strip() else [])], []
                answer(session, turn, as_json=as_json)
        except InvalidInput as error:
            print(f"earnest: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            if not interactive:
                raise
            print("(stopped; your turn was not kept)", file=sys.stderr)


def _part(kind: str, value: str) -> Part:
    """A part of a turn. A clip is decoded at once, so that a file that is none is refused before anything is
    loaded."""
    if kind == "text":
        return Text(value)
    from earnest.audio import load_audio

    return Audio(pcm=load_audio(Path(value).expanduser()))


def _paths(rest: str) -> list[str]:
    if Path(rest.strip()).expanduser().exists():  # a name with spaces, as it was typed
        return [rest.strip()]
    try:
        paths = shlex.split(rest)
    except ValueError:
        paths = [rest]
    if not paths:
        raise InvalidInput(OP, "/audio", "the path of a sound file", "none")
    return paths


def _read_line(interactive: bool, waiting: Sequence[Part]) -> str | None:
    prompt = f"[{len(waiting)} clip{'s' if len(waiting) > 1 else ''}] > " if waiting else "> "
    try:
        if interactive:
            return input(prompt)
        line = sys.stdin.readline()
        return line if line else None
    except EOFError:
        print(file=sys.stderr)
        return None


def _with_history() -> None:
    """Line editing and history, with file names completed."""
    try:
        import readline
    except ImportError:  # not on every system
        return
    readline.set_completer_delims(" \t\n")
    readline.parse_and_bind("tab: complete")

# SPDX-License-Identifier: Apache-2.0
"""Where the cases of a stage come from: the playground, or JSON-lines files. Both give the same `Case`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import multiprocessing
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from earnest.dialogue import Audio, Message, Preference
from earnest.learn.types import Case, Clip
from earnest.progress import Progress

if TYPE_CHECKING:
    from earnest.playground import Sample, World

T = TypeVar("T")
SAMPLE_RATE = 16000
CASES_PER_JOB = 50


def hear(pcm: np.ndarray, n_mels: int, name: str, words: Sequence[tuple[str, float, float]] = ()) -> tuple[Clip, ...]:
    """The chunks of one clip as log-mel features. `words` go with the first chunk (they are used on short clips)."""
    from earnest.features import LogMel
    from earnest.model import chunk_audio

    log_mel = _log_mel(LogMel, n_mels)
    chunks = chunk_audio(np.ascontiguousarray(pcm, dtype=np.float32))
    return tuple(
        Clip(f"{name}.{index}", np.ascontiguousarray(log_mel(chunk)), tuple(words) if index == 0 else ())
        for index, chunk in enumerate(chunks)
    )


@functools.lru_cache(maxsize=4)
def _log_mel(kind: type, n_mels: int):  # building the mel matrix costs more than a short clip
    return kind(n_mels=n_mels, padding="step_audio")


# ---- the playground ----


def case_of(sample: Sample, n_mels: int, keep_audio: bool = False) -> Case:
    """The case of a playground sample. Unless `keep_audio`, samples of sound are dropped once they are features: the
    world can make them again from the sample's id."""
    from earnest.playground import verify

    clips: list[tuple[Clip, ...]] = []
    history: list[Message] = []
    for message in sample.messages:
        parts = []
        for part in message.parts:
            if isinstance(part, Audio):
                index = len(clips)
                assert part.pcm is not None
                words = sample.words[index] if index < len(sample.words) else ()
                clips.append(hear(part.pcm, n_mels, f"{sample.id}/{index}", words))
                parts.append(part if keep_audio else Audio(path=f"{sample.id}/{index}"))
            else:
                parts.append(part)
        history.append(replace(message, parts=tuple(parts)))
    light = sample if keep_audio else replace(sample, messages=tuple(history))
    return Case(
        id=sample.id, task=sample.task, history=tuple(history), clips=tuple(clips), reasoning=sample.reasoning,
        replies=tuple(reply.text for reply in sample.replies), answer=sample.answer, rubric=sample.rubric,
        verify=functools.partial(verify, light), origin=light,
    )


def _make_cases(world: World, split: str, n_mels: int, keep_audio: bool, indices: range) -> list[Case]:
    return [case_of(world.sample(split, index), n_mels, keep_audio) for index in indices]


def playground_cases(
    world: World, split: str, indices: range, n_mels: int, *, processes: int, phase: str, keep_audio: bool = False
) -> list[Case]:
    """Cases of the world."""
    return in_processes(functools.partial(_make_cases, world, split, n_mels, keep_audio), indices, processes, phase)


def in_processes(make: Callable[[range], list[T]], indices: range, processes: int, phase: str) -> list[T]:
    """What `make` makes of the indices, by several processes, in order; it does not depend on how many there are."""
    jobs = [range(start, min(start + CASES_PER_JOB, indices.stop)) for start in range(indices.start, indices.stop, CASES_PER_JOB)]
    progress = Progress(phase, len(indices))
    made: list[T] = []
    with contextlib.ExitStack() as stack:
        stack.callback(progress.close)
        results: Iterable[list[T]]
        if processes <= 1 or len(jobs) <= 2:
            results = map(make, jobs)
        else:  # fresh processes: a forked one would inherit torch's threads as locks without owners
            pool = stack.enter_context(ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")))
            results = pool.map(make, jobs)
        for part in results:
            made += part
            progress.update(len(made))
    return made


# ---- JSON-lines files ----


def file_cases(paths: Iterable[str | Path], n_mels: int) -> list[Case]:
    """Cases of dialogue files (the format of `earnest.dialogue`). The last assistant turn, where there is one, is the
    reply to learn; a dialogue that ends with the user's turn is a case without one."""
    from earnest.dialogue import read_dialogues

    cases = []
    for path in paths:
        for number, dialogue in enumerate(read_dialogues(path)):
            messages = dialogue.messages
            last = messages[-1] if messages and messages[-1].role == "assistant" else None
            history = messages[:-1] if last is not None else messages
            answer = None if dialogue.answer is None else str(dialogue.answer)
            cases.append(
                Case(
                    id=f"{Path(path).name}:{number}", task=str(dialogue.extra.get("task", "dialogue")),
                    history=tuple(history), clips=heard(history, n_mels), reasoning=last.reasoning if last else None,
                    replies=(last.text,) if last else (), answer=answer, rubric=dialogue.rubric,
                    reference=dialogue.reference,
                    verify=None if answer is None else functools.partial(holds_answer, answer),
                )
            )
    return cases


def preference_cases(path: Path, n_mels: int) -> list[tuple[Case, Preference]]:
    """The lines of a preference file, each with its dialogue as a case."""
    from earnest.dialogue import read_preferences

    return [
        (Case(id=f"{path.name}:{number}", task="preference", history=line.messages,
              clips=heard(line.messages, n_mels), rubric=line.rubric), line)
        for number, line in enumerate(read_preferences(path))
    ]


def heard(history: Sequence[Message], n_mels: int) -> tuple[tuple[Clip, ...], ...]:
    """The features of every clip of a dialogue. Raises what load_audio raises."""
    from earnest.audio import load_audio

    clips = []
    for audio in (part for message in history for part in message.audios):
        pcm = audio.pcm if audio.pcm is not None else load_audio(audio.path, SAMPLE_RATE)
        clips.append(hear(pcm, n_mels, hashlib.sha256(pcm.tobytes()).hexdigest()[:24]))
    return tuple(clips)


def holds_answer(answer: str, reply: str) -> bool:
    """Whether the words of `answer` stand in `reply`, letter case and punctuation aside."""
    wanted, said = _words(answer), _words(reply)
    return bool(wanted) and any(said[i : i + len(wanted)] == wanted for i in range(len(said)))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())

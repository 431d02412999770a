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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from earnest.dialogue import Audio, Message, Preference, Text
from earnest.learn.types import Case, Clip
from earnest.progress import Progress

if TYPE_CHECKING:
    from earnest.playground import Sample, World

SAMPLE_RATE = 16000
CASES_PER_JOB = 50
HELD_OUT = "heldout"  # the split that is evaluated: its clips are measured too


def hear(
    pcm: np.ndarray,
    n_mels: int,
    name: str,
    words: Sequence[tuple[str, float, float]] = (),
    manner: Sequence[str] = (),
    *,
    measured: bool = False,
    device: torch.device | str = "cpu",
) -> tuple[Clip, ...]:
    """The chunks of one clip as log-mel features, computed on `device`, on cuda by one launch, and kept in
    the host's memory: a stage has more clips than a GPU should keep. What is known about the clip goes with
    the first chunk (such clips are short), and with `measured` also how the whole clip sounds."""
    from earnest.features import LogMel
    from earnest.model.features import hear as features_of

    found = features_of(np.ascontiguousarray(pcm, dtype=np.float32), _log_mel(LogMel, n_mels), device)
    mels = [np.ascontiguousarray(mel.numpy(force=True)) for mel in found]
    first = Clip(f"{name}.0", mels[0], tuple(words), tuple(manner), _measure(pcm) if measured else ())
    return (first, *(Clip(f"{name}.{index}", mel) for index, mel in enumerate(mels[1:], 1)))


@functools.lru_cache(maxsize=4)
def _log_mel(kind: type, n_mels: int):  # building the mel matrix costs more than a short clip
    return kind(n_mels=n_mels, padding="step_audio")


def _measure(pcm: np.ndarray) -> tuple[float, ...]:
    from earnest.evaluate.manner import measure

    return measure(np.ascontiguousarray(pcm, dtype=np.float32))


# ---- the playground ----


def case_of(
    sample: Sample, n_mels: int, *, measured: bool = False, device: torch.device | str = "cpu"
) -> Case:
    """The case of a playground sample. The samples of sound are dropped once they are features: the world can
    make them again from the sample's id."""
    from earnest.playground import looked_up, verify

    clips: list[tuple[Clip, ...]] = []
    history: list[Message] = []
    for message in sample.messages:
        parts: list[Text | Audio] = []
        for part in message.parts:
            if isinstance(part, Audio):
                index = len(clips)
                assert part.pcm is not None
                sound = sample.sounds[index]
                manner = (sound.rate, sound.pitch, sound.loudness)
                name, words = f"{sample.id}/{index}", sample.words[index]
                clips.append(hear(part.pcm, n_mels, name, words, manner, measured=measured, device=device))
                parts.append(Audio(path=name))
            else:
                parts.append(part)
        history.append(replace(message, parts=tuple(parts)))
    light = replace(sample, messages=tuple(history))
    return Case(
        id=sample.id,
        task=sample.task,
        history=tuple(history),
        clips=tuple(clips),
        reasoning=sample.reasoning,
        hasty=hasty if (hasty := looked_up(sample.reasoning)) != sample.reasoning else None,
        replies=tuple(reply.text for reply in sample.replies),
        answer=sample.answer,
        rubric=sample.rubric,
        verify=functools.partial(verify, light),
        origin=light,
    )


def _speak(world: World, kind: str, split: str, indices: Sequence[int]) -> list[Sample]:
    make = {"dialogue": world.sample, "dictation": world.dictation}[kind]
    return [make(split, index) for index in indices]


def _listen(n_mels: int, measured: bool, device: torch.device | str, samples: list[Sample]) -> list[Case]:
    return [case_of(sample, n_mels, measured=measured, device=device) for sample in samples]


def _speak_and_listen(speak: Callable, listen: Callable, indices: Sequence[int]) -> list[Case]:
    return listen(speak(indices))


@functools.lru_cache(maxsize=8)
def _made_before(
    world: tuple[int, str, str], kind: str, split: str, n_mels: int, device: str
) -> dict[int, Case]:
    """The cases of one world that this process has made: the stages of a demo ask for the same ones again."""
    return {}


def playground_cases(
    world: World,
    split: str,
    indices: range,
    n_mels: int,
    *,
    processes: int,
    phase: str,
    kind: str = "dialogue",
    device: torch.device | str = "cpu",
) -> list[Case]:
    """Cases of the world, spoken by several processes; which ones they are does not depend on how many there
    are. On the CPU each hears what it has spoken; a GPU is this process's alone, and what they speak is heard
    as it arrives."""
    on = torch.device(device).type
    made = _made_before((world.seed, str(world.voices), str(world.leave_out)), kind, split, n_mels, on)
    missing = [index for index in indices if index not in made]
    speak = functools.partial(_speak, world, kind, split)
    listen = functools.partial(_listen, n_mels, split == HELD_OUT, device)
    if on == "cpu":
        both = functools.partial(_speak_and_listen, speak, listen)
        cases = _in_processes(both, list, missing, processes, phase)
    else:
        cases = _in_processes(speak, listen, missing, processes, phase)
    made.update(zip(missing, cases, strict=True))
    return [made[index] for index in indices]


def _in_processes(
    make: Callable[[Sequence[int]], list[Any]],
    take: Callable[[list[Any]], list[Case]],
    indices: Sequence[int],
    processes: int,
    phase: str,
) -> list[Case]:
    """What is made there, taken in here, job by job."""
    jobs = [indices[start : start + CASES_PER_JOB] for start in range(0, len(indices), CASES_PER_JOB)]
    if not jobs:
        return []
    progress = Progress(phase, len(indices))
    cases: list[Case] = []
    with contextlib.ExitStack() as stack:
        stack.callback(progress.close)
        results: Iterable[list[Any]]
        if processes <= 1 or len(jobs) <= 2:
            results = map(make, jobs)
        else:  # fresh processes: a forked one would inherit torch's threads as locks without owners
            pool = stack.enter_context(
                ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
            )
            results = pool.map(make, jobs)
        for part in results:
            cases += take(part)
            progress.update(len(cases))
    return cases


# ---- JSON-lines files ----


def file_cases(
    paths: Iterable[str | Path],
    n_mels: int,
    *,
    measured: bool = False,
    device: torch.device | str = "cpu",
) -> list[Case]:
    """Cases of dialogue files (the format of `earnest.dialogue`). The last assistant turn, where there is
    one, is the reply to learn; a dialogue that ends with the user's turn is a case without one."""
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
                    id=f"{Path(path).name}:{number}",
                    task=str(dialogue.extra.get("task", "dialogue")),
                    history=tuple(history),
                    clips=heard(history, n_mels, measured=measured, device=device),
                    reasoning=last.reasoning if last else None,
                    replies=(last.text,) if last else (),
                    answer=answer,
                    rubric=dialogue.rubric,
                    reference=dialogue.reference,
                    verify=None if answer is None else functools.partial(holds_answer, answer),
                )
            )
    return cases


def preference_cases(
    path: Path, n_mels: int, device: torch.device | str = "cpu"
) -> list[tuple[Case, Preference]]:
    """The lines of a preference file, each with its dialogue as a case."""
    from earnest.dialogue import read_preferences

    return [
        (
            Case(
                id=f"{path.name}:{number}",
                task="preference",
                history=line.messages,
                clips=heard(line.messages, n_mels, device=device),
                rubric=line.rubric,
            ),
            line,
        )
        for number, line in enumerate(read_preferences(path))
    ]


def heard(
    history: Sequence[Message],
    n_mels: int,
    *,
    measured: bool = False,
    device: torch.device | str = "cpu",
) -> tuple[tuple[Clip, ...], ...]:
    """The features of every clip of a dialogue. Raises what load_audio raises."""
    from earnest.audio import load_audio

    clips = []
    for audio in (part for message in history for part in message.audios):
        pcm = load_audio(audio.path, SAMPLE_RATE) if audio.path is not None else audio.pcm
        assert pcm is not None  # an Audio has one of the two
        name = hashlib.sha256(pcm.tobytes()).hexdigest()[:24]
        clips.append(hear(pcm, n_mels, name, measured=measured, device=device))
    return tuple(clips)


def holds_answer(answer: str, reply: str) -> bool:
    """Whether the words of `answer` stand in `reply`, letter case and punctuation aside."""
    wanted, said = _words(answer), _words(reply)
    return bool(wanted) and any(said[i : i + len(wanted)] == wanted for i in range(len(said)))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())

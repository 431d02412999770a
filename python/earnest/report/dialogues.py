# SPDX-License-Identifier: Apache-2.0
"""Three dialogues of the held-out split: every spoken turn to listen to, and what each stage answered, side
by side.

The answers are those kept by the evaluation. The audio is made again by the world, which is a pure function
of the case's id; where the world cannot be made, the answers are shown without it and a line says why.
"""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from earnest.report.columns import STAGE_NAMES, TASK_ORDER, Metrics
from earnest.report.text import escape, paragraph

if TYPE_CHECKING:
    from earnest.playground import Sample, World

SHOWN = ("sound", "recall", "arithmetic")  # families to take a dialogue from, where there are cases of them
SAMPLE_RATE = 16000

Given = Mapping[str, Any]  # one answer, as evaluate.stage.Answer writes it


def dialogues_section(run_dir: Path, metrics: Metrics) -> str:
    """The dialogues of a run folder as HTML."""
    answers = read_answers(run_dir)
    chosen = choose(answers)
    if not chosen:
        return paragraph(
            "No answers were found in evaluation/, so there are no dialogues to show.", "missing"
        )
    world, missing = world_of_run(run_dir, metrics)
    parts = []
    for case in chosen:
        sample = None
        if world is not None:
            try:
                sample = sample_of(world, case)
            except (ValueError, RuntimeError, OSError) as error:
                missing = missing or f"the audio of {case} could not be made: {error}"
        parts.append(
            _dialogue(case, sample, {stage: given[case] for stage, given in answers.items() if case in given})
        )
    line = (
        paragraph(f"The dialogues stand here without their audio: {missing}.", "missing") if missing else ""
    )
    return line + "".join(parts)


def read_answers(run_dir: Path) -> dict[str, dict[str, Given]]:
    """stage -> case id -> answer, from evaluation/<stage>.json; a stage whose file is missing or damaged is
    left out."""
    answers = {}
    for stage in STAGE_NAMES:
        try:
            heard = json.loads((run_dir / "evaluation" / f"{stage}.json").read_text(encoding="utf-8"))[
                "heard"
            ]
            answers[stage] = {str(given["case"]): given for given in heard}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return answers


def choose(answers: Mapping[str, Mapping[str, Given]], count: int = 3) -> list[str]:
    """Ids of `count` cases, one of each of the families in SHOWN (or of those there are): the case in which
    the listener's liking of RLHF's reply exceeds that of RLVR's by the family's median. Neither the best nor
    the worst."""
    known = [set(given) for given in answers.values()]
    common = set.intersection(*known) if known else set()
    if not common:
        return []
    first = next(iter(answers.values()))
    families: dict[str, list[str]] = {}
    for case in sorted(common, key=_index):
        families.setdefault(str(first[case].get("task", "")), []).append(case)
    order = [
        *(f for f in SHOWN if f in families),
        *(f for f in TASK_ORDER if f in families and f not in SHOWN),
    ]
    order += sorted(families.keys() - set(order))

    def gap(case: str) -> float:
        liked = [answers.get(stage, {}).get(case, {}).get("utility") or 0.0 for stage in ("rlhf", "rlvr")]
        return float(liked[0]) - float(liked[1])

    # sorted() is stable: ties stay in the order of their index
    ranked = {family: sorted(families[family], key=gap) for family in order}
    chosen = [ranked[family][len(ranked[family]) // 2] for family in order[:count]]
    rest = [case for case in sorted(common, key=_index) if case not in chosen]
    return chosen + rest[: count - len(chosen)]


# ---- the audio ----


def world_of_run(run_dir: Path, metrics: Metrics) -> tuple[World | None, str]:
    """(the world whose held-out split was answered, "") or (None, what is missing)."""
    spoken = playground_settings(run_dir)
    try:
        from earnest.playground import World

        seed = int(spoken.get("seed", metrics.get("seed")) or 0)
        world = World(
            seed, voices=spoken.get("voices") or "espeak", leave_out=spoken.get("leave_out") or None
        )
        return world, ""
    except (ImportError, ValueError, TypeError, RuntimeError, OSError) as error:
        return None, f"the voices cannot be made here ({error})"


def playground_settings(run_dir: Path) -> dict[str, Any]:
    """seed, voices and leave_out as the run was made with them: those of a stage, or of the whole run."""
    for name, path in (("sft", ("data", "playground")), ("rlhf", ("data", "playground")), ("", ())):
        try:
            found = yaml.safe_load((run_dir / name / "settings.yaml").read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError):
            continue
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, dict) and "voices" in found:
            return found
    return {}


def sample_of(world: World, case: str) -> Sample:
    """The playground's sample of a case id `seed-split-index`. Raises ValueError where it is not of this
    world."""
    seed, split, index = case.rsplit("-", 2)
    if int(seed) != world.seed:
        raise ValueError(f"it is of seed {seed}, the run of seed {world.seed}")
    return world.sample(split, int(index))


def wav_bytes(pcm: np.ndarray, sample_rate: int = SAMPLE_RATE) -> bytes:
    """A 16-bit mono WAV file of `pcm` [samples], float in -1..1."""
    whole = np.round(np.clip(pcm, -1, 1) * 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(whole.tobytes())
    return buffer.getvalue()


# ---- writing ----


def _dialogue(case: str, sample: Sample | None, given: Mapping[str, Given]) -> str:
    task = str(next(iter(given.values())).get("task", ""))
    wanted = (
        f"<p class='wanted'>answer wanted: <b>{escape(sample.answer)}</b></p>" if sample is not None else ""
    )
    turns = f"<ol class='turns'>{_turns(sample)}</ol>" if sample is not None else ""
    columns = "".join(_answer(stage, answer) for stage, answer in given.items())
    return (
        f"<article><h3>{escape(task)} <small>{escape(case)}</small></h3>{turns}{wanted}"
        f"<div class='answers'>{columns}</div></article>"
    )


def _turns(sample: Sample) -> str:
    parts, clip = [], 0
    for message in sample.messages:
        inside = []
        for audio in message.audios:
            inside.append(_player(audio.pcm) + _heard(sample, clip))
            clip += 1
        if message.text:
            inside.append(paragraph(message.text, "said"))
        role = escape(message.role)
        parts.append(f"<li class='{role}'><span class='who'>{role}</span>{''.join(inside)}</li>")
    return "".join(parts)


def _player(pcm: np.ndarray | None) -> str:
    if pcm is None:
        return ""
    data = base64.b64encode(wav_bytes(pcm)).decode("ascii")
    return f'<audio controls preload="metadata" src="data:audio/wav;base64,{data}"></audio>'


def _heard(sample: Sample, clip: int) -> str:
    """What is said in a clip and how it sounds, as measured."""
    words = " ".join(word for word, _, _ in sample.words[clip]) if clip < len(sample.words) else ""
    sound = sample.sounds[clip] if clip < len(sample.sounds) else None
    manner = ""
    if sound is not None:
        manner = (
            f"{sound.rate} ({sound.syllables_per_second:.1f} syllables/s), "
            f"{sound.pitch} ({sound.f0_hz:.0f} Hz), {sound.loudness} ({sound.level_db:.0f} dB)"
        )
    return f"<p class='said'>“{escape(words)}” <small>{escape(manner)}</small></p>"


def _answer(stage: str, given: Given) -> str:
    right = bool(given.get("right"))
    mark = "<b class='right' title='right'>✓</b>" if right else "<b class='wrong' title='wrong'>✗</b>"
    reasoning, reply = str(given.get("reasoning") or ""), str(given.get("reply") or "")
    notes = []
    if isinstance(given.get("utility"), int | float):
        notes.append(f"utility {given['utility']:.2f}")
    if given.get("acknowledges"):
        notes.append("takes up the voice")
    shown = paragraph(reasoning if reasoning.strip() else "(no reasoning)", "reasoning")
    said = paragraph(reply, "reply") if reply.strip() else paragraph("(no reply)", "reply empty")
    title = f"<h4>{escape(STAGE_NAMES.get(stage, stage))} {mark}</h4>"
    below = paragraph(" · ".join(notes), "notes") if notes else ""
    return f"<section class='answer {escape(stage)}'>{title}{shown}{said}{below}</section>"


def _index(case: str) -> tuple[int, str]:
    tail: Sequence[str] = case.rsplit("-", 1)
    return (int(tail[-1]) if tail[-1].isdigit() else 0, case)

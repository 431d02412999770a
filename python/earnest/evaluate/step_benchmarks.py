# SPDX-License-Identifier: Apache-2.0
"""Scores answers to the three sets published with Step-Audio-R1.5: Step-SPQA, Step-Dialogue-Understanding,
Step-Caption.

A set is a folder: metadata.jsonl, and prompts/ with the prompts for the judge. A judge is any callable
(system prompt, user prompt) -> text. What it says is read as data: an answer of the model that quotes a
placeholder or a score changes nothing, and a verdict that cannot be read scores 0 and is counted.

- step_spqa: 1 where the normalised answer equals the reference or the label; else the judge says YES or NO.
- step_dialogue_understanding: the judge gives 0 to 1 (mostly 0, 0.5 and 1). Without a judge, a rough reading
  of the label: a colon ends what counts, "/" means any of these, a semicolon (of either width) all of these.
- step_caption: the judge gives 0 to 1 for every labelled field; a wrong call of one or several speakers
  makes all of it 0. The means are taken here, over fields and then speakers, not by the judge. Fields
  labelled 无法判断 or 无法识别 are left out.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earnest.dialogue.records import parse_line, read_records
from earnest.errors import InvalidInput

OP = "step_benchmarks"
Judge = Callable[[str, str], str]
Row = Mapping[str, Any]

SPQA, DIALOGUE, CAPTION = "step_spqa", "step_dialogue_understanding", "step_caption"
CAPTION_FIELDS = {
    "language": "语种",
    "gender": "性别",
    "age_group": "年龄段",
    "speech_rate": "语速",
    "rhythm": "节奏",
    "pitch": "音调",
    "clarity": "发音清晰度",
    "background_sound": "背景音",
    "timbre": "音色",
    "language_style": "语言风格",
    "paralinguistic_features": "副语言特征",
    "emotion": "情感",
    "overall_impression": "整体印象",
    "dialect_or_accent": "方言或口音类型",
    "formality_level": "词汇正式程度",
}
UNJUDGEABLE = ("无法判断", "无法识别")


@dataclass(frozen=True)
class Benchmark:
    """One set. prompts: the texts under prompts/, by file name without its ending."""

    name: str
    folder: Path
    rows: tuple[Row, ...]
    prompts: Mapping[str, str]
    prompt_of_task: Mapping[str, str] = field(
        default_factory=dict
    )  # step_spqa: task type -> name of a prompt


@dataclass(frozen=True)
class Score:
    """One row's score. how: match, rule, judge, or why 0: unreadable (the judge's reply), unanswered."""

    id: str
    group: str
    score: float
    how: str
    fields: Mapping[str, float] = field(
        default_factory=dict
    )  # step_caption: mean over speakers of each field


# ---- reading ----


def load(folder: str | Path) -> Benchmark:
    """The set in `folder`; which of the three it is is told by its fields. InvalidInput says what is
    missing."""
    folder = Path(folder)
    rows = tuple(read_records(OP, folder / "metadata.jsonl", lambda row, line: row))
    if not rows:
        raise InvalidInput(OP, str(folder / "metadata.jsonl"), "at least one row", "none")
    marks = {SPQA: "reference_answer", DIALOGUE: "recording_requirement_or_qa_category", CAPTION: "speakers"}
    name = next((name for name, key in marks.items() if key in rows[0]), None)
    if name is None:
        raise InvalidInput(OP, str(folder), f"rows of one of {', '.join(marks)}", f"keys {sorted(rows[0])}")
    for number, row in enumerate(rows, start=1):
        for key in (marks[name], "test_id" if name == CAPTION else "id"):
            if key not in row:
                raise InvalidInput(OP, f"{folder / 'metadata.jsonl'} row {number}", f"the key {key}", "none")
    prompts = {p.stem: p.read_text(encoding="utf-8") for p in sorted((folder / "prompts").rglob("*.txt"))}
    mapped = folder / "prompts" / "judge_prompts" / "prompt_map.json"
    of_task = {}
    if mapped.is_file():
        of_task = {str(task): Path(str(file)).stem for task, file in parse_line(mapped.read_bytes()).items()}
    return Benchmark(name, folder, rows, prompts, of_task)


def row_id(row: Row) -> str:
    return str(row["test_id"] if "test_id" in row else row["id"])


def question_of(benchmark: Benchmark, row: Row, *, text_assisted: bool = False) -> str:
    """What the model is asked in writing beside the clip ("" where the clip itself asks)."""
    if benchmark.name == CAPTION:
        return _prompt(benchmark, "model_user_prompt")
    if benchmark.name == SPQA:
        return str(row.get("legacy_question" if text_assisted else "question") or "")
    return str(row["input_question_text"])


def audio_of(benchmark: Benchmark, row: Row) -> Path:
    """The clip of a row. InvalidInput where it is not in the folder (the clips are not given away)."""
    named = str(row.get("audio_path") or row.get("audio") or "")
    for path in (benchmark.folder / named, benchmark.folder / "audio" / named):
        if named and path.is_file():
            return path
    raise InvalidInput(
        OP, f"row {row_id(row)}", "its clip in the folder of the set", named or "no name of one"
    )


# ---- scoring ----


def score(benchmark: Benchmark, answers: Mapping[str, str], judge: Judge | None = None) -> list[Score]:
    """Every row, in order. `answers`: by row id; a row without one scores 0. step_caption needs a judge;
    without one step_spqa counts exact matches alone, and step_dialogue_understanding is read by rule."""
    if judge is None and benchmark.name == CAPTION:
        raise InvalidInput(OP, "judge", f"a judge for {CAPTION}", "none")
    rate = {SPQA: _score_spqa, DIALOGUE: _score_dialogue, CAPTION: _score_caption}[benchmark.name]
    scores = []
    for row in benchmark.rows:
        answer = str(answers.get(row_id(row), ""))
        if answer.strip():
            scores.append(rate(benchmark, row, answer, judge))
        else:
            scores.append(Score(row_id(row), _group(benchmark, row), 0.0, "unanswered"))
    return scores


def summarise_scores(scores: Sequence[Score]) -> dict[str, Any]:
    """The mean score (0..1), overall, by group and by field, and how the rows came by theirs."""
    groups = sorted({s.group for s in scores})
    fields = [name for name in CAPTION_FIELDS if any(name in s.fields for s in scores)]
    return {
        "rows": len(scores),
        "score": _mean([s.score for s in scores]),
        "score_by_group": {group: _mean([s.score for s in scores if s.group == group]) for group in groups},
        "score_by_field": {n: _mean([s.fields[n] for s in scores if n in s.fields]) for n in fields},
        "how": {how: sum(s.how == how for s in scores) for how in sorted({s.how for s in scores})},
    }


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with each {name} of `values` replaced in one pass: other braces (the JSON examples of these
    prompts) stay, and what is put in is never searched again. Raises InvalidInput where a name is not in the
    template."""
    absent = [name for name in values if "{" + name + "}" not in template]
    if absent:
        raise InvalidInput(OP, "template", f"a place for {{{absent[0]}}}", "none")
    names = "|".join(map(re.escape, values))
    return re.sub(r"\{(" + names + r")\}", lambda match: values[match[1]], template)


def normalised(text: str) -> str:
    """Without case, punctuation, spaces and full-width forms."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in plain if unicodedata.category(c)[0] not in "PZSC")


def _score_spqa(benchmark: Benchmark, row: Row, answer: str, judge: Judge | None) -> Score:
    wanted = {normalised(str(row.get(key) or "")) for key in ("reference_answer", "label")} - {""}
    if normalised(answer) in wanted:
        return Score(row_id(row), _group(benchmark, row), 1.0, "match")
    if judge is None:
        return Score(row_id(row), _group(benchmark, row), 0.0, "match")
    task = str(row.get("task_type", "default"))
    name = benchmark.prompt_of_task.get(task) or benchmark.prompt_of_task.get("default", "default")
    prompt = fill(_prompt(benchmark, name), {"text1": str(row["reference_answer"]), "text2": answer})
    verdict = read_yes_no(judge("", prompt))
    how = "unreadable" if verdict is None else "judge"
    return Score(row_id(row), _group(benchmark, row), float(bool(verdict)), how)


def _score_dialogue(benchmark: Benchmark, row: Row, answer: str, judge: Judge | None) -> Score:
    label = str(row["recording_requirement_or_qa_category"])
    if judge is None:
        return Score(row_id(row), _group(benchmark, row), score_by_label(label, answer), "rule")
    values = {
        "secondary_dimension": str(row.get("secondary_dimension", "")),
        "question": str(row["input_question_text"]),
        "reference_answer": label,
        "model_answer": answer,
    }
    prompt = fill(_prompt(benchmark, "judge_user_prompt_template"), values)
    verdict = _number_in_unit(
        read_object(judge(_prompt(benchmark, "judge_system_prompt"), prompt)).get("score")
    )
    how = "unreadable" if verdict is None else "judge"
    return Score(row_id(row), _group(benchmark, row), verdict or 0.0, how)


def _score_caption(benchmark: Benchmark, row: Row, answer: str, judge: Judge | None) -> Score:
    assert judge is not None
    speakers = [judgeable(speaker) for speaker in row["speakers"]]
    values = {
        "ground_truth": "多人" if row.get("is_multi_speakers") else "单人",
        "num_speakers": str(len(speakers)),
        "speakers_str": speakers_text(speakers),
        "model_output": answer,
    }
    prompt = fill(_prompt(benchmark, "judge_user_prompt_template"), values)
    verdict = read_object(judge(_prompt(benchmark, "judge_system_prompt"), prompt))
    group = _group(benchmark, row)
    if verdict.get("multi_speaker_judgment_correct") is False:
        zeros = {name: 0.0 for speaker in speakers for name in speaker}
        return Score(row_id(row), group, 0.0, "judge", zeros)
    rated = verdict.get("speakers")
    if verdict.get("multi_speaker_judgment_correct") is not True or not isinstance(rated, list):
        return Score(row_id(row), group, 0.0, "unreadable")
    found = [_field_scores(speaker, _rating(rated, i)) for i, speaker in enumerate(speakers)]
    names = [name for name in CAPTION_FIELDS if any(name in scores for scores in found)]
    fields = {name: _mean([scores[name] for scores in found if name in scores]) for name in names}
    per_speaker = [_mean(list(scores.values())) for scores in found if scores]
    return Score(row_id(row), group, _mean(per_speaker) if per_speaker else 0.0, "judge", fields)


# ---- labels ----


def judgeable(speaker: Mapping[str, Any]) -> dict[str, str]:
    """The labelled fields of a speaker that count."""
    labels = {name: str(speaker[name]).strip() for name in CAPTION_FIELDS if speaker.get(name) is not None}
    return {name: label for name, label in labels.items() if label and label not in UNJUDGEABLE}


def speakers_text(speakers: Sequence[Mapping[str, str]]) -> str:
    """The labels as the judge reads them."""
    blocks = []
    for number, speaker in enumerate(speakers, start=1):
        lines = [f"- {name} ({CAPTION_FIELDS[name]}): {label}" for name, label in speaker.items()]
        blocks.append("\n".join([f"说话人{number}:", *lines]))
    return "\n\n".join(blocks)


def points_of(label: str) -> list[tuple[str, ...]]:
    """What a label of Step-Dialogue-Understanding asks for: every point, as its alternatives. In "笑声-大笑"
    the kind stands before the thing itself, so "大笑" is an alternative to the whole."""
    core = re.split("[:\uff1a]", label, maxsplit=1)[0]
    points = []
    for point in re.split("[;\uff1b]", core):
        alternatives = [text for text in map(normalised, point.split("/")) if text]
        alternatives += [normalised(text.rsplit("-", 1)[1]) for text in point.split("/") if "-" in text]
        if alternatives:
            points.append(tuple(dict.fromkeys(alternatives)))
    return points


def score_by_label(label: str, answer: str) -> float:
    """1, 0.5 or 0: all, some or none of the label's points stand in the answer word for word. Rough: it
    knows no synonyms, and takes a denial for a mention."""
    said = normalised(answer)
    met = [any(text in said for text in alternatives) for alternatives in points_of(label)]
    return 1.0 if met and all(met) else 0.5 if any(met) else 0.0


# ---- reading verdicts ----


def read_yes_no(text: str) -> bool | None:
    """True or False where exactly one of YES and NO is said, else None."""
    said = {word for word in re.findall(r"[A-Za-z]+", text.upper()) if word in ("YES", "NO")}
    return said == {"YES"} if len(said) == 1 else None


def read_object(text: str) -> dict[str, Any]:
    """The last whole JSON object in a text that may hold more (a thought, a fence); {} if none."""
    decoder = json.JSONDecoder()
    found: dict[str, Any] = {}
    place = text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            found = value if isinstance(value, dict) else found
        place = text.find("{", end)
    return found


def _field_scores(speaker: Mapping[str, str], rating: Mapping[str, Any]) -> dict[str, float]:
    """The score of every field that counts; one that the judge left out, or scored with no number in 0..1,
    is 0."""
    given = rating.get("field_scores")
    given = given if isinstance(given, Mapping) else {}
    scores = {}
    for name in speaker:
        value = given.get(name)
        scores[name] = _number_in_unit(value.get("score") if isinstance(value, Mapping) else value) or 0.0
    return scores


def _rating(rated: Sequence[Any], index: int) -> Mapping[str, Any]:
    """The judge's entry of a speaker: by its number, or by its place where no entry is numbered."""
    entries = [entry for entry in rated if isinstance(entry, Mapping)]
    for entry in entries:
        if entry.get("speaker_index") == index + 1:
            return entry
    numbered = any("speaker_index" in entry for entry in entries)
    return entries[index] if not numbered and index < len(entries) else {}


def _number_in_unit(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value) if 0 <= value <= 1 else None


def _prompt(benchmark: Benchmark, name: str) -> str:
    if name not in benchmark.prompts:
        raise InvalidInput(OP, str(benchmark.folder / "prompts"), f"the prompt {name}.txt", "none")
    return benchmark.prompts[name]


def _group(benchmark: Benchmark, row: Row) -> str:
    if benchmark.name == CAPTION:
        return "several speakers" if row.get("is_multi_speakers") else "one speaker"
    return str(row.get("task_type" if benchmark.name == SPQA else "secondary_dimension", ""))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0

# SPDX-License-Identifier: Apache-2.0
"""The command `earnest evaluate`: what a model can do on sounds and sentences it never trained on.

Three kinds of questions: the playground's held-out split (nothing is named), dialogue files whose lines have
an `answer` (data.files), and the sets published with Step-Audio-R1.5 (step.folder). The answers and the
results are kept in the run folder under the model's name; the same command on the same model reads them from
there.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from earnest.checkpoint import write_atomic
from earnest.dialogue.records import parse_line, read_dialogues, read_records
from earnest.errors import InvalidInput
from earnest.evaluate import step_benchmarks
from earnest.evaluate.matching import choice_right, short_answer_right
from earnest.report.table import table, table_by_manner
from earnest.settings import RunSettings, setting, to_plain
from earnest.stages.source import DataSettings, PlaygroundSettings, load_cases, load_model

if TYPE_CHECKING:
    from earnest.evaluate.stage import Answer
    from earnest.learn.types import Case


@dataclass(frozen=True)
class StepSettings:
    """A set published with Step-Audio-R1.5 (see earnest.evaluate.step_benchmarks)."""

    folder: str = setting("", "the set: metadata.jsonl, prompts/ and the clips that its rows name")
    answers: str = setting("", "answers made elsewhere, JSON lines of id and answer: then no model is asked")
    judge: str = setting("", "a model folder or hub id that answers the judge's prompts")
    text_assisted: bool = setting(False, "step_spqa: put the spoken question in writing too")


@dataclass(frozen=True)
class Settings:
    model: str = setting("", "the model folder, such as runs/demo/rlhf")
    others: tuple[str, ...] = setting((), "further models, for the same table")
    data: DataSettings = field(default_factory=lambda: DataSettings(cases=480))
    step: StepSettings = field(default_factory=StepSettings)
    max_new_tokens: int = setting(0, "of an answer (0: 96 in the playground, 512 elsewhere)", at_least=0)
    seed: int = setting(0, "of the listener that rates the replies", at_least=0)
    run: RunSettings = field(default_factory=RunSettings)


def main(settings: Settings, run_dir: Path) -> dict[str, Any]:
    """Asks every model, prints the table and returns the results."""
    from earnest.run import device_of, use_threads

    use_threads(settings.run)
    device_of(settings.run)
    models = names_of([settings.model, *settings.others])
    run_dir.mkdir(parents=True, exist_ok=True)
    if settings.step.folder:
        results = {name: step_results(settings, folder, run_dir, name) for name, folder in models.items()}
        print(step_table(results))
        return {"benchmark": Path(settings.step.folder).name, "models": results}
    given = {name: case_answers(settings, folder, run_dir, name) for name, folder in models.items()}
    results = {"stages": case_results(given)}
    write_atomic(run_dir / "results.json", json.dumps(results, indent=1) + "\n")
    print(table(results))
    by_manner = table_by_manner(results)
    if by_manner:
        print(f"\n{by_manner}")
    return results


def names_of(folders: Sequence[str]) -> dict[str, str]:
    """A short name for every folder: its last part, or the whole path where that would be said twice."""
    ends = [Path(folder).name for folder in folders]
    return {
        end if ends.count(end) == 1 else folder: folder for end, folder in zip(ends, folders, strict=True)
    }


# ---- cases: the playground, or files with answers ----


def case_answers(settings: Settings, folder: str, run_dir: Path, name: str) -> dict[str, list[Answer]]:
    """ "heard" and "unheard" answers of a model, from an earlier call where nothing has changed since."""
    from earnest.evaluate.manner import with_measures
    from earnest.evaluate.playground import evaluate_model
    from earnest.evaluate.stage import Answer, answer, silenced, to_plain

    data = data_of(settings, folder)
    file = run_dir / f"{_file_name(name)}-{fingerprint(settings, data, folder)}.json"
    if settings.run.resume and file.is_file():
        kept = json.loads(file.read_text(encoding="utf-8"))
        return {key: [Answer(**a) for a in kept[key]] for key in ("heard", "unheard")}
    model, tokenizer = load_model(folder, train=False, device=settings.run.device)
    n_mels = model.config.audio_encoder_config.n_mels
    if data.files:
        cases = answered_cases(data, n_mels, settings.run.device)
        limit = settings.max_new_tokens or 512
        given = answer(model, tokenizer, cases, max_new_tokens=limit, what=f"{name}: answering")
        heard = with_measures(given, cases)
        silent = silenced([case for case in cases if case.clips])
        unheard = answer(model, tokenizer, silent, max_new_tokens=limit, what=f"{name}: answering silence")
    else:
        cases = load_cases(data, n_mels, device=settings.run.device, split="heldout", phase="held-out cases")
        heard, unheard = evaluate_model(Path(folder), cases, settings.seed, name, device=settings.run.device)
    answers = {"heard": heard, "unheard": unheard}
    write_atomic(file, json.dumps({key: to_plain(given) for key, given in answers.items()}) + "\n")
    return answers


def case_results(given: dict[str, dict[str, list[Answer]]]) -> dict[str, dict[str, Any]]:
    """The rows of the table, with a 95% interval of each accuracy."""
    from earnest.evaluate.playground import stage_metrics
    from earnest.evaluate.stage import wilson

    rows = stage_metrics(
        {name: answers["heard"] for name, answers in given.items()},
        {name: answers["unheard"] for name, answers in given.items()},
    )
    for row in rows.values():
        _, row["accuracy_low"], row["accuracy_high"] = wilson(row["accuracy"], row["cases"])
    return rows


def data_of(settings: Settings, folder: str) -> DataSettings:
    """Where the cases come from. Unless the playground's settings are given, a model that was trained in a
    playground is asked in the same one: its held-out voices and sentences are those it has not met."""
    kept = Path(folder) / "settings.yaml"
    if settings.data.files or settings.data.playground != PlaygroundSettings() or not kept.is_file():
        return settings.data
    import yaml

    spoken = ((yaml.safe_load(kept.read_text(encoding="utf-8")) or {}).get("data") or {}).get("playground")
    if not isinstance(spoken, dict) or not spoken.keys() <= PlaygroundSettings.__dataclass_fields__.keys():
        return settings.data
    return replace(settings.data, playground=PlaygroundSettings(**spoken))


def answered_cases(data: DataSettings, n_mels: int, device: torch.device | str) -> list[Case]:
    """The cases of files whose lines have an `answer`; a line may name its `choices`."""
    dialogues = [dialogue for path in data.files for dialogue in read_dialogues(path)]
    cases = []
    heard = load_cases(data, n_mels, device=device, split="heldout")
    for case, dialogue in zip(heard, dialogues, strict=True):
        if dialogue.answer is None:
            continue
        wanted, choices = str(dialogue.answer), dialogue.extra.get("choices")
        if isinstance(choices, list) and choices:
            verify = functools.partial(choice_right, wanted, [str(choice) for choice in choices])
        else:
            verify = functools.partial(short_answer_right, wanted)
        cases.append(replace(case, verify=verify))
    if not cases:
        raise InvalidInput("evaluate", "data.files", "at least one line with an answer", "none")
    return cases


def fingerprint(settings: Settings, data: DataSettings, folder: str) -> str:
    """Changes when the questions or the files of the model do."""
    plain = to_plain(replace(settings, data=data, run=RunSettings(), others=()))
    named = [*data.files, settings.step.folder, settings.step.answers]
    looked_at = [
        *sorted(Path(folder).glob("*.safetensors")),
        Path(folder) / "config.json",
        *map(Path, filter(None, named)),
    ]
    state = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in looked_at if p.exists()]
    return hashlib.sha256(json.dumps([plain, state]).encode()).hexdigest()[:12]


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "-" for c in name).strip("-.") or "model"


# ---- the Step sets ----


def step_results(settings: Settings, folder: str, run_dir: Path, name: str) -> dict[str, Any]:
    """Answers of a model to a Step set, and their scores; both are kept."""
    step = settings.step
    benchmark = step_benchmarks.load(step.folder)
    if step.answers:
        answers = read_answers(step.answers)
    else:
        answers = step_answers(settings, benchmark, folder, run_dir, name)
    judge = model_judge(step.judge) if step.judge else None
    scores = step_benchmarks.score(benchmark, answers, judge)
    results = step_benchmarks.summarise_scores(scores)
    rows = [
        {"id": s.id, "group": s.group, "score": s.score, "how": s.how, "fields": dict(s.fields)}
        for s in scores
    ]
    text = json.dumps({"results": results, "scores": rows}, ensure_ascii=False, indent=1)
    write_atomic(run_dir / f"{benchmark.name}-{_file_name(name)}.json", text + "\n")
    return results


def read_answers(path: str) -> dict[str, str]:
    """Answers by row id, from lines {"id": ..., "answer": ...} (`test_id` and `response` serve too)."""

    def parse(row: dict[str, Any], line: int) -> tuple[str, str]:
        key = next((row[name] for name in ("id", "test_id") if name in row), None)
        said = next((row[name] for name in ("answer", "response") if name in row), None)
        if key is None or not isinstance(said, str):
            raise InvalidInput("evaluate", "line", "the keys id and answer (text)", f"keys {sorted(row)}")
        return str(key), said

    return dict(read_records("evaluate", path, parse))


def step_answers(
    settings: Settings, benchmark: step_benchmarks.Benchmark, folder: str, run_dir: Path, name: str
) -> dict[str, str]:
    """One answer to every row, each kept at once, so that a stopped evaluation goes on where it was."""
    from earnest.dialogue import Audio, Message, Text
    from earnest.model.answer import answer
    from earnest.progress import track

    for row in benchmark.rows:
        step_benchmarks.audio_of(benchmark, row)  # what is missing is said before a model is loaded
    mark = fingerprint(settings, settings.data, folder)
    file = run_dir / f"{benchmark.name}-{_file_name(name)}-{mark}.jsonl"
    answers = _kept_answers(file) if settings.run.resume else {}
    model, tokenizer = load_model(folder, train=False, device=settings.run.device)
    with file.open("a" if answers else "w", encoding="utf-8") as out:
        for row in track(benchmark.rows, f"{name}: {benchmark.name}", len(benchmark.rows)):
            key = step_benchmarks.row_id(row)
            if key in answers:
                continue
            question = step_benchmarks.question_of(benchmark, row, text_assisted=settings.step.text_assisted)
            clip = Audio(path=str(step_benchmarks.audio_of(benchmark, row)))
            turn = Message.user(*([Text(question)] if question else []), clip)
            said = answer(model, tokenizer, [turn], max_new_tokens=settings.max_new_tokens or 512)
            answers[key] = said.text
            out.write(json.dumps({"id": key, "answer": said.text}, ensure_ascii=False) + "\n")
            out.flush()
    return answers


def _kept_answers(file: Path) -> dict[str, str]:
    """Answers of an earlier sitting; a line that a kill cut short is left out."""
    kept: dict[str, str] = {}
    for raw in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            line = parse_line(raw)
        except InvalidInput:
            continue
        kept[str(line["id"])] = str(line["answer"])
    return kept


def model_judge(folder: str) -> step_benchmarks.Judge:
    """A judge that is a model of ours, asked in writing, greedily."""
    from earnest.dialogue import Message
    from earnest.model.answer import answer
    from earnest.model.weights import find_folder

    model, tokenizer = load_model(find_folder(folder), train=False)

    def judge(system: str, user: str) -> str:
        messages = [*([Message.system(system)] if system else []), Message.user(user)]
        return answer(model, tokenizer, messages, max_new_tokens=2048).text

    return judge


def step_table(results: dict[str, dict[str, Any]]) -> str:
    """One row per model: the mean score in percent, overall and by group."""
    groups = sorted({group for result in results.values() for group in result["score_by_group"]})
    rows = [["score", "all", *groups, "unreadable", "unanswered"]]
    for name, result in results.items():
        by_group, how = result["score_by_group"], result["how"]
        rates = [result["score"], *(by_group.get(group) for group in groups)]
        cells = ["-" if rate is None else f"{100 * rate:.1f}" for rate in rates]
        rows.append([name, *cells, str(how.get("unreadable", 0)), str(how.get("unanswered", 0))])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            t.ljust(w) if i == 0 else t.rjust(w) for i, (t, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )

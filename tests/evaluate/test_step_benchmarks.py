# SPDX-License-Identifier: Apache-2.0
"""Scoring of the Step sets against their published rows: labels as answers score 1, shuffled ones do not."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from earnest.errors import InvalidInput
from earnest.evaluate import step_benchmarks as step
from earnest.evaluate.step_benchmarks import CAPTION, DIALOGUE, SPQA, Benchmark, load, row_id, score

LABEL = {SPQA: "label", DIALOGUE: "recording_requirement_or_qa_category"}


@pytest.fixture(scope="module")
def sets(shared_data: Path) -> dict[str, Benchmark]:
    return {name: load(shared_data / "step_benchmarks" / name) for name in (SPQA, DIALOGUE, CAPTION)}


def mean(scores: list[step.Score]) -> float:
    return sum(s.score for s in scores) / len(scores)


def shuffled(answers: dict[str, str]) -> dict[str, str]:
    values = list(answers.values())
    random.Random(0).shuffle(values)
    return dict(zip(answers, values, strict=True))


def caption_judge(system: str, user: str) -> str:
    """Gives 1 to every field whose label stands in the answer, 0 to others; counts speakers by its word. A
    speaker's labels are read where the prompt puts them."""
    answer = user.split("模型的回复：\n", 1)[1].split("\n\n真实标签", 1)[0]  # noqa: RUF001
    labels = user.split("个说话人）：\n", 1)[1].split("\n\n评分说明", 1)[0]  # noqa: RUF001
    truth = re.search("真实情况：(单人|多人)", user)  # noqa: RUF001
    assert truth is not None
    blocks = [block for block in labels.split("说话人") if block.strip()]
    speakers = []
    for number, block in enumerate(blocks, start=1):
        fields = dict(re.findall(r"- (\w+) \([^)]*\): (.+)", block))
        given = {n: {"score": float(label in answer), "reason": "{"} for n, label in fields.items()}
        speakers.append({"speaker_index": number, "field_scores": given, "average_score": 0.123})
    verdict = {
        "multi_speaker_judgment_correct": truth[1] in answer,
        "overall_score": 0.5,
        "speakers": speakers,
    }
    return f"<think>{{}}</think>```json\n{json.dumps(verdict, ensure_ascii=False)}\n```"


def caption_of(row: Any) -> str:
    said = ["多人" if row["is_multi_speakers"] else "单人"]
    return "\n".join(said + [str(label) for speaker in row["speakers"] for label in speaker.values()])


# ---- the published sets ----


def test_the_three_sets_are_told_apart(sets: dict[str, Benchmark]):
    assert {name: len(benchmark.rows) for name, benchmark in sets.items()} == {
        SPQA: 128,
        DIALOGUE: 87,
        CAPTION: 64,
    }
    assert all(sets[name].name == name for name in sets)
    assert len(sets[SPQA].prompt_of_task) == 12


def test_labels_as_answers_to_spqa_score_1_and_shuffled_ones_do_not(sets: dict[str, Benchmark]):
    asked: list[str] = []

    def judge(system: str, user: str) -> str:
        asked.append(user)
        return "NO"

    for key in ("label", "reference_answer"):
        answers = {row_id(row): f" {row[key]}。" for row in sets[SPQA].rows}
        scores = score(sets[SPQA], answers, judge)
        assert mean(scores) == 1.0
        assert asked == []  # an exact answer costs no judge
    scores = score(sets[SPQA], shuffled(answers), judge)
    assert mean(scores) < 0.2
    assert len(asked) == sum(s.how == "judge" for s in scores) > 100
    assert mean(score(sets[SPQA], shuffled(answers), lambda system, user: "YES")) == 1.0
    assert mean(score(sets[SPQA], shuffled(answers))) < 0.2


def test_each_task_of_spqa_has_its_own_prompt_filled_once(sets: dict[str, Benchmark]):
    seen: dict[str, str] = {}
    rows = iter(sets[SPQA].rows)

    def judge(system: str, user: str) -> str:
        row = next(rows)
        seen[row["task_type"]] = user
        assert f"标准答案：{row['reference_answer']}" in user  # noqa: RUF001
        assert "模型回答：{text1} {text2} {0}" in user  # noqa: RUF001
        return "YES"

    score(sets[SPQA], {row_id(row): "{text1} {text2} {0}" for row in sets[SPQA].rows}, judge)
    assert len(seen) == 11
    assert "性别" in seen["gender"]
    assert "±10" in seen["age"]


def test_labels_as_answers_to_dialogue_score_1_and_shuffled_ones_do_not(sets: dict[str, Benchmark]):
    answers = {row_id(row): row[LABEL[DIALOGUE]] for row in sets[DIALOGUE].rows}
    assert mean(score(sets[DIALOGUE], answers)) == 1.0
    assert mean(score(sets[DIALOGUE], shuffled(answers))) < 0.2

    def judge(system: str, user: str) -> str:
        assert "严格的中文音频理解评测裁判" in system
        label, answer = (user.split(mark, 1)[1].split("\n", 1)[0] for mark in ("标准标签：", "模型回答："))  # noqa: RUF001
        assert '"matched_points": ["..."]' in user  # the example's braces are left alone
        return json.dumps({"score": step.score_by_label(label, answer), "matched_points": []})

    scores = score(sets[DIALOGUE], answers, judge)
    assert mean(scores) == 1.0
    assert {s.how for s in scores} == {"judge"}
    assert mean(score(sets[DIALOGUE], shuffled(answers), judge)) < 0.2


def test_labels_as_captions_score_1_and_shuffled_ones_do_not(sets: dict[str, Benchmark]):
    answers = {row_id(row): caption_of(row) for row in sets[CAPTION].rows}
    scores = score(sets[CAPTION], answers, caption_judge)
    assert mean(scores) == 1.0
    fields = step.summarise_scores(scores)["score_by_field"]
    assert list(fields) == list(step.CAPTION_FIELDS)
    assert set(fields.values()) == {1.0}
    assert mean(score(sets[CAPTION], shuffled(answers), caption_judge)) < 0.6


def test_what_cannot_be_judged_is_neither_asked_nor_counted(sets: dict[str, Benchmark]):
    unsure = [row for row in sets[CAPTION].rows if "无法" in json.dumps(row, ensure_ascii=False)]
    assert len(unsure) > 5
    benchmark = Benchmark(CAPTION, sets[CAPTION].folder, tuple(unsure), sets[CAPTION].prompts)

    def judge(system: str, user: str) -> str:
        labels = user.split("个说话人）：\n", 1)[1].split("\n\n评分说明", 1)[0]  # noqa: RUF001
        assert "无法" not in labels
        return caption_judge(system, user)

    assert mean(score(benchmark, {row_id(row): caption_of(row) for row in unsure}, judge)) == 1.0


# ---- reading labels and verdicts ----


@pytest.mark.parametrize(
    ("label", "answer", "expected"),
    [
        ("青年；男", "一位青年男性", 1.0),  # noqa: RUF001
        ("青年；男", "一位青年女性", 0.5),  # noqa: RUF001
        ("青年;男", "老年女性", 0.0),
        ("叹气 / 叹息：情绪释放时的长呼气声", "我听到叹息", 1.0),  # noqa: RUF001
        ("叹气 / 叹息：情绪释放时的长呼气声", "情绪释放时的长呼气声", 0.0),  # noqa: RUF001
        ("快速 ", "语速是快速的", 1.0),
        ("笑声-大笑", "大笑", 1.0),
        ("笑声-大笑", "轻笑", 0.0),
        ("哭声-呜咽/压抑哭泣", "她在呜咽", 1.0),
    ],
)
def test_what_a_label_asks_for(label: str, answer: str, expected: float):
    assert step.score_by_label(label, answer) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("YES", True),
        (" no.\n", False),
        ("YES or NO", None),
        ("", None),
        ("YESTERDAY", None),
        ("答案是YES", True),
    ],
)
def test_yes_and_no(said: str, expected: bool | None):
    assert step.read_yes_no(said) is expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('{"score": 1}', {"score": 1}),
        ('thinking {"score": 0} ... ```json\n{"score": 1}\n```', {"score": 1}),
        ('{"a": {"score": 1}}', {"a": {"score": 1}}),
        ("{broken", {}),
        ("", {}),
        ("[1]", {}),
        ("{" * 5000, {}),
    ],
)
def test_the_last_whole_object_is_the_verdict(said: str, expected: dict):
    assert step.read_object(said) == expected


def test_a_template_is_filled_in_one_pass():
    assert step.fill('{a} {b} {"x": 1} {c}', {"a": "{b}", "b": "2"}) == '{b} 2 {"x": 1} {c}'
    assert step.fill("{a}", {"a": r"\1 \g<0>"}) == r"\1 \g<0>"
    with pytest.raises(InvalidInput, match=r"a place for \{b\}"):
        step.fill("{a}", {"a": "1", "b": "2"})


# ---- scores of a made-up set ----


SPEAKER = {"language": "中文", "gender": "男", "formality_level": "无法判断"}


@pytest.fixture
def caption() -> Benchmark:
    rows = ({"test_id": "t", "is_multi_speakers": True, "speakers": [SPEAKER, {**SPEAKER, "pitch": "低音"}]},)
    user = "{ground_truth} {num_speakers} {model_output} {speakers_str} {}"
    prompts = {"judge_user_prompt_template": user, "judge_system_prompt": "s", "model_user_prompt": "q"}
    return Benchmark(CAPTION, Path("."), rows, prompts)


def rated(**speakers: dict[str, Any]) -> Iterator[dict]:
    for number, scores in speakers.items():
        yield {"speaker_index": int(number[1:]), "field_scores": scores}


@pytest.mark.parametrize(
    ("verdict", "expected", "how"),
    [
        (
            {
                "speakers": [
                    *rated(n2={"language": 1, "gender": 1, "pitch": 1}, n1={"language": {"score": 1}})
                ]
            },
            0.75,
            "judge",
        ),
        ({"speakers": [*rated(n1={"language": 1, "gender": 1, "formality_level": 0})]}, 0.5, "judge"),
        ({"speakers": [{"field_scores": {"language": 1, "gender": 1}}] * 2}, (1 + 2 / 3) / 2, "judge"),
        (
            {"speakers": [*rated(n1={"language": 7, "gender": "1"}, n2={"language": True, "gender": -1})]},
            0.0,
            "judge",
        ),
        ({"multi_speaker_judgment_correct": False, "overall_score": 0.9, "speakers": []}, 0.0, "judge"),
        ({"multi_speaker_judgment_correct": "yes", "speakers": []}, 0.0, "unreadable"),
        ({"overall_score": 1.0}, 0.0, "unreadable"),
    ],
)
def test_caption_means_are_taken_over_fields_then_speakers(
    caption: Benchmark, verdict: dict, expected: float, how: str
):
    whole = {"multi_speaker_judgment_correct": True, **verdict}
    (found,) = score(caption, {"t": "两个人"}, lambda system, user: json.dumps(whole))
    assert found.score == pytest.approx(expected)
    assert found.how == how
    assert found.group == "several speakers"


def test_rows_without_an_answer_or_a_readable_verdict_score_0_and_are_counted(caption: Benchmark):
    scores = score(caption, {}, caption_judge) + score(
        caption, {"t": "x"}, lambda system, user: "I cannot say."
    )
    summary = step.summarise_scores(scores)
    assert summary["score"] == 0.0
    assert summary["how"] == {"unanswered": 1, "unreadable": 1}


def test_a_caption_needs_a_judge(caption: Benchmark):
    with pytest.raises(InvalidInput, match="expected a judge for step_caption, got none"):
        score(caption, {"t": "x"})


def test_a_folder_that_is_no_set_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"metadata\.jsonl"):
        load(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(InvalidInput, match="rows of one of step_spqa"):
        load(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"id": 1, "reference_answer": "a"}\n{"id": 2}\n')
    with pytest.raises(InvalidInput, match="row 2: expected the key reference_answer"):
        load(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(InvalidInput, match="at least one row"):
        load(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"id": 1, "reference_answer": "a"}\n')
    with pytest.raises(InvalidInput, match=r"the prompt default\.txt"):
        score(load(tmp_path), {"1": "b"}, lambda system, user: "YES")


def test_questions_and_clips(sets: dict[str, Benchmark], tmp_path: Path):
    spqa, dialogue = sets[SPQA], sets[DIALOGUE]
    assert step.question_of(spqa, spqa.rows[0]) == ""
    assert step.question_of(spqa, spqa.rows[0], text_assisted=True) == spqa.rows[0]["legacy_question"]
    assert step.question_of(dialogue, dialogue.rows[0]) == dialogue.rows[0]["input_question_text"]
    assert "单人发言还是多人对话" in step.question_of(sets[CAPTION], sets[CAPTION].rows[0])
    with pytest.raises(InvalidInput, match="its clip in the folder"):
        step.audio_of(dialogue, dialogue.rows[0])
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "a.mp3").write_bytes(b"")
    here = Benchmark(CAPTION, tmp_path, ({"test_id": "t", "audio": "a.mp3"},), {})
    assert step.audio_of(here, here.rows[0]) == tmp_path / "audio" / "a.mp3"

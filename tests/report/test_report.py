# SPDX-License-Identifier: Apache-2.0
"""report.html: whole, self-contained, deaf to what a model says, and written whatever a run did not leave."""

import base64
import io
import json
import wave
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_run import HOSTILE, STAGES, make_run

import earnest.playground
from earnest.dialogue import Audio, Message
from earnest.errors import InvalidInput, MissingExtra
from earnest.report import write_report
from earnest.report.dialogues import choose, read_answers, wav_bytes

VOID = {"meta", "br", "img", "link", "input", "hr", "source"}


class Page(HTMLParser):
    """What a browser would make of the page: its tags, their attributes, and the text by class."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


class FakeWorld:
    """Speaks two turns of known samples about every index, without a voice."""

    def __init__(self, seed: int = 0, voices: object = "espeak", leave_out: str | None = None) -> None:
        self.seed = seed

    def sample(self, split: str, index: int) -> SimpleNamespace:
        pcm = np.sin(np.arange(1600) * 0.1 * (index + 1)).astype(np.float32) * 0.5
        sound = SimpleNamespace(
            rate="fast", pitch="low", loudness="loud", f0_hz=110.0, syllables_per_second=5.5, level_db=-20.0
        )
        messages = (
            Message.user(Audio(pcm=pcm)),
            Message.assistant("okay <b>boss</b>"),
            Message.user(Audio(pcm=-pcm), "Add them."),
        )
        return SimpleNamespace(
            messages=messages,
            answer="8",
            sounds=(sound, sound),
            words=((("three", 0.0, 0.1),), (("five", 0.0, 0.1),)),
        )


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorld]:
    monkeypatch.setattr(earnest.playground, "World", FakeWorld)
    return FakeWorld


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def page_of(run_dir: Path) -> Page:
    page = Page(write_report(run_dir).read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_the_page_is_whole_and_needs_nothing_else(run_dir: Path, spoken: type[FakeWorld]):
    html = write_report(run_dir).read_text(encoding="utf-8")
    page = page_of(run_dir)
    for tag in ("script", "link", "iframe", "object", "embed", "base", "form", "a"):
        assert page.named(tag) == []
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name == "href" for name in attributes)
        assert (attributes.get("src") or "data:").startswith(
            "data:audio/wav;base64,"
        ) or "src" not in attributes
    assert "url(" not in html
    assert "@import" not in html
    assert "http:" not in html
    assert "https:" not in html
    policy = [
        a["content"] or "" for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy[0].startswith("default-src 'none'")
    assert "prefers-color-scheme: dark" in html
    for title in ("What was run", "What it showed", "The stages", "Training", "The judge", "Three dialogues"):
        assert title in page.text


def test_every_number_of_the_table_stands_in_it(run_dir: Path, spoken: type[FakeWorld]):
    text = page_of(run_dir).text
    for words in (
        "mid-trained",
        "SFT",
        "RLVR",
        "RLHF",
        "60.0%",
        "75.0%",
        "83.0%",
        "79 to 87",
        "arithmetic",
        "repair",
    ):
        assert words in text
    for words in ("86.0%", "+0.004 ± 0.006", "0.031", "one level apart", "81.0%"):  # the judge
        assert words in text
    for words in ("6 min 40 s", "18 min", "eSpeak NG", "480"):
        assert words in text


def test_accuracy_stands_beside_how_the_question_sounds(run_dir: Path, spoken: type[FakeWorld]):
    text = page_of(run_dir).text
    assert "How it sounds, and what is right" in text
    for words in (
        "by pitch",
        "nothing to measure (2)",
        "92 to 118 Hz (160)",
        "183 to 301 Hz (160)",
        "by rate",
        "3.3 to 5.0 syllables/s (160)",
        "by level",
        "-40 to -34 dB (160)",
        "78.0% 73 to 83",  # RLVR on the highest voices
    ):
        assert words in text, words


@pytest.mark.parametrize("third", [None, {}, {"accuracy": "<img src=x>", "from": HOSTILE}])
def test_a_run_that_measured_nothing_or_nonsense_shows_nothing_of_it(
    run_dir: Path, spoken: type[FakeWorld], third: object
):
    metrics = json.loads((run_dir / "metrics.json").read_text())
    for row in metrics["stages"].values():
        row["accuracy_by_measured"] = None if third is None else {"f0_hz": {"low": third, HOSTILE: third}}
    (run_dir / "metrics.json").write_text(json.dumps(metrics))
    page = page_of(run_dir)
    assert "How it sounds" not in page.text
    assert "60.0%" in page.text
    assert page.named("img") == []


def test_there_is_a_chart_of_everything_that_was_logged(run_dir: Path, spoken: type[FakeWorld]):
    page = page_of(run_dir)
    charts = [a["aria-label"] or "" for a in page.named("svg") if "aria-label" in a]
    expected = """hear | Mid-training | SFT | Judge: loss | Reward | Judge's reward | KL | Clip fraction
        | Reply length | Reasoning length | sampler | Swap disagreement | Said and happened"""
    for about in map(str.strip, expected.split("|")):
        assert any(about in chart for chart in charts), about
    for path in page.named("path"):
        assert "nan" not in (path["d"] or "")
        assert "inf" not in (path["d"] or "")


def test_what_a_model_says_is_text_and_nothing_else(run_dir: Path, spoken: type[FakeWorld]):
    for stage in STAGES:
        file = run_dir / "evaluation" / f"{stage}.json"
        kept = json.loads(file.read_text())
        for answer in kept["heard"]:
            answer |= {"reply": HOSTILE, "reasoning": HOSTILE, "task": HOSTILE}
        file.write_text(json.dumps(kept))
    page = page_of(run_dir)
    assert page.named("script") == []
    assert page.named("img") == []
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&" in page.text
    assert "\x00" not in page.text


def test_hostile_names_of_stages_settings_and_phases_are_text_too(run_dir: Path, spoken: type[FakeWorld]):
    metrics = json.loads((run_dir / "metrics.json").read_text())
    metrics["stages"]["<script>x"] = {**metrics["stages"]["sft"], "accuracy_by_task": {"<img src=x>": 0.5}}
    metrics["seconds"]["'><script>"] = 3.0
    metrics["seed"] = "<script>"
    (run_dir / "metrics.json").write_text(json.dumps(metrics))
    page = page_of(run_dir)
    assert page.named("script") == []
    assert page.named("img") == []


def test_dialogues_can_be_heard_and_compared(run_dir: Path, spoken: type[FakeWorld]):
    page = page_of(run_dir)
    players = page.named("audio")
    assert len(players) == 6  # three dialogues of two spoken turns
    data = base64.b64decode((players[0]["src"] or "").removeprefix("data:audio/wav;base64,"))
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        heard = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
    chosen = choose(read_answers(run_dir))
    said = FakeWorld().sample("heldout", int(chosen[0].rsplit("-", 1)[1])).messages[0].audios[0].pcm
    assert np.abs(heard - said).max() <= 0.51 / 32767
    answers = [a for a in page.named("section") if (a.get("class") or "").startswith("answer ")]
    assert len(answers) == 12  # three dialogues, four stages
    assert "okay <b>boss</b>" in page.text
    assert "fast (5.5 syllables/s), low (110 Hz), loud (-20 dB)" in page.text


def test_clipped_audio_stays_within_16_bits():
    with wave.open(io.BytesIO(wav_bytes(np.array([2.0, -2.0, 0.0], np.float32)))) as file:
        assert np.frombuffer(file.readframes(3), "<i2").tolist() == [32767, -32767, 0]


def test_the_median_case_of_each_family_is_shown():
    def given(task: str, index: int, liked: float) -> dict:
        return {"case": f"0-heldout-{index}", "task": task, "utility": liked}

    sound = {f"0-heldout-{i}": given("sound", i, liked) for i, liked in enumerate((5.0, 1.0, 3.0))}
    recall = {"0-heldout-9": given("recall", 9, 0.0)}
    zero = {case: {**a, "utility": 0.0} for case, a in (sound | recall).items()}
    assert choose({"rlvr": zero, "rlhf": sound | recall}) == ["0-heldout-2", "0-heldout-9", "0-heldout-0"]
    assert choose({"rlvr": zero, "rlhf": {}}) == []
    assert choose({}) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MissingExtra("playground", "espeakng-loader", "voice"), "pip install 'earnest[voice]'"),
        (InvalidInput("voices", "fsdd.tar", "a folder or tar", "nothing"), "fsdd.tar"),
    ],
)
def test_without_voices_the_page_is_written_and_says_so(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
):
    def world(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(earnest.playground, "World", world)
    page = page_of(run_dir)
    assert page.named("audio") == []
    assert "without their audio" in page.text
    assert words in page.text
    assert "you sound in a hurry" in page.text  # the answers are there


def test_the_world_is_that_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_dir = make_run(tmp_path / "run", seed=3)
    (run_dir / "sft" / "settings.yaml").write_text(
        "data:\n  playground:\n    seed: 3\n    voices: some/fsdd.tar\n    leave_out: theo\n"
    )
    asked = []

    def world(seed: int, **arguments: object) -> FakeWorld:
        asked.append((seed, arguments))
        return FakeWorld(seed)

    monkeypatch.setattr(earnest.playground, "World", world)
    assert len(page_of(run_dir).named("audio")) == 6
    assert asked == [(3, {"voices": "some/fsdd.tar", "leave_out": "theo"})]


def test_cases_of_another_world_have_no_audio(tmp_path: Path, spoken: type[FakeWorld]):
    run_dir = make_run(tmp_path / "run", seed=1)
    (run_dir / "sft" / "settings.yaml").write_text("data:\n  playground:\n    seed: 2\n    voices: espeak\n")
    page = page_of(run_dir)
    assert page.named("audio") == []
    assert "it is of seed 1, the run of seed 2" in page.text


def test_a_run_that_left_nothing_but_metrics_is_reported(tmp_path: Path, spoken: type[FakeWorld]):
    whole = make_run(tmp_path / "run")
    bare = tmp_path / "bare"
    bare.mkdir()
    metrics = json.loads((whole / "metrics.json").read_text())
    metrics["judge"] = None
    metrics["seconds"] = {}
    for row in metrics["stages"].values():
        row["accuracy"] = float("nan")
        del row["listener_utility"]
    (bare / "metrics.json").write_text(json.dumps(metrics))
    text = page_of(bare).text
    for line in ("there are no curves", "there are no dialogues", "no record of its judge"):
        assert line in text
    (bare / "metrics.json").write_text('{"stages": {}}')
    assert "holds no stages" in page_of(bare).text


@pytest.mark.parametrize("content", [None, "{", "[]", '{"stages": 3}', '{"stages": {"sft": 1}}'])
def test_without_metrics_there_is_one_sentence(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(InvalidInput, match=r"^\[report\] .*metrics\.json: expected "):
        write_report(tmp_path)

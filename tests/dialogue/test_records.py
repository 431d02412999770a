# SPDX-License-Identifier: Apache-2.0
"""Files of dialogues and preferences: nothing is lost on the way out and back, and bad lines are named."""

import json
import pickle

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earnest.dialogue import (
    Audio,
    BadLine,
    Dialogue,
    Message,
    Preference,
    Text,
    export_swift,
    import_swift,
    load_dialogues,
    load_preferences,
    save_dialogues,
    save_preferences,
)
from earnest.errors import InvalidInput

TEXT = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=30),
    st.sampled_from(["<think>a</think>b", "<think>", "<audio_patch>", "\u2028\x85", "\n", ""]),
)
PATHS = st.sampled_from(["a.wav", "deep/b c.mp3", "ü.flac"])
USER = st.builds(
    lambda role, parts: (role, tuple(parts)),
    st.sampled_from(["user", "system", "tool"]),
    st.lists(st.one_of(st.builds(Text, TEXT), PATHS), max_size=4),
)
ASSISTANT = st.builds(Message.assistant, TEXT, st.none() | TEXT)
JSON = st.dictionaries(st.sampled_from(["id", "task", "ü"]), st.none() | st.integers() | TEXT, max_size=2)


def located(message, folder):
    """The message with its paths below a folder."""
    if isinstance(message, Message):
        return message
    role, parts = message
    return Message(role, tuple(p if isinstance(p, Text) else Audio(path=str(folder / p)) for p in parts))


MESSAGES = st.lists(USER | ASSISTANT, min_size=1, max_size=4)
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@relaxed
@given(
    messages=MESSAGES,
    answer=st.none() | TEXT | st.integers(),
    rubric=st.none() | st.lists(TEXT, max_size=2).map(tuple),
    reference=st.none() | TEXT,
    extra=JSON,
)
def test_dialogue_round_trip(tmp_path, messages, answer, rubric, reference, extra):
    item = Dialogue(tuple(located(m, tmp_path) for m in messages), answer, rubric, reference, extra)
    save_dialogues(tmp_path / "d.jsonl", [item, item])
    loaded = load_dialogues(tmp_path / "d.jsonl")
    assert loaded == [item, item]
    assert [d.origin for d in loaded] == [(str(tmp_path / "d.jsonl"), 1), (str(tmp_path / "d.jsonl"), 2)]


@relaxed
@given(
    messages=st.lists(USER, min_size=1, max_size=3),
    replies=st.tuples(TEXT, TEXT),
    verdict=st.integers(-2, 2),
    rubric=st.none() | st.lists(TEXT, max_size=2).map(tuple),
    annotator=st.none() | TEXT,
)
def test_preference_round_trip(tmp_path, messages, replies, verdict, rubric, annotator):
    item = Preference(tuple(located(m, tmp_path) for m in messages), *replies, verdict, rubric, annotator)
    save_preferences(tmp_path / "p.jsonl", [item])
    assert load_preferences(tmp_path / "p.jsonl") == [item]


def test_the_written_form_is_the_promised_one(tmp_path):
    pcm = np.linspace(-1, 1, 1600, dtype=np.float32)
    item = Dialogue(
        (Message.user(Audio(path=str(tmp_path / "a.wav")), "Well?"), Message.user(Audio(pcm=pcm)))
    )
    save_dialogues(tmp_path / "d.jsonl", [item])
    record = json.loads((tmp_path / "d.jsonl").read_text())
    assert record["messages"][0] == {
        "role": "user",
        "content": [{"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "Well?"}],
    }
    stored = load_dialogues(tmp_path / "d.jsonl")[0].messages[1].audios[0].path
    samples, rate = soundfile.read(stored, dtype="float32")
    assert rate == 16000
    assert np.array_equal(samples, pcm)  # bit for bit
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.jsonl", "d_audio"]


def line(**changes):
    record = {"messages": [{"role": "user", "content": "hi"}]} | changes
    return json.dumps(record)


def user(content):
    return line(messages=[{"role": "user", "content": content}])


BAD_DIALOGUES = [
    ("{", "one JSON object"),
    ("[1]", "one JSON object, got a list"),
    ('{"messages": [], "messages": []}', "each key once, got 'messages'"),
    ('{"messages": [{"role": "user", "content": "hi"}], "answer": NaN}', "numbers that JSON knows, got NaN"),
    ("{}", "the key 'messages'"),
    (line(messages=[]), "at least one message"),
    (line(messages={"role": "user"}), "a list"),
    (line(messages=["hi"]), r"an object, got a string in messages\[0\]"),
    (line(messages=[{"role": "user"}]), "the key 'content'"),
    (line(messages=[{"role": "user", "content": "a", "weight": 0}]), "no keys but .* got 'weight'"),
    (line(messages=[{"role": 3, "content": "a"}]), "a string, got a number"),
    (line(messages=[{"role": "user", "content": "a", "reasoning": "b"}]), "unless the role is assistant"),
    (user(None), "a string or a list of parts, got null"),
    (user([{"type": "video", "video": "a"}]), '"text" or "audio", got \'video\''),
    (user([{"type": "audio", "audio": ""}]), "the path of a local sound file"),
    (user([{"type": "audio", "audio": "http://host/a.wav"}]), "the path of a local sound file"),
    (user([{"type": "text", "text": "a", "audio": "b"}]), "got 'audio'"),
    ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "a lone surrogate"),
    (line(messages=[{"role": "assistant", "content": [{"type": "audio", "audio": "a"}]}]), "text only"),
    (line(answer=[1]), "a string, a number or null, got a list"),
    (line(answer=True), "a string, a number or null, got a boolean"),
    (line(rubric="be kind"), "null or a list of strings"),
    (line(reference=7), "a string, got a number in reference"),
    ("[" * 100_000, "nested too deep"),
]


@pytest.mark.parametrize(("text", "reason"), BAD_DIALOGUES)
def test_bad_line_names_file_line_and_reason(tmp_path, text, reason):
    path = tmp_path / "d.jsonl"
    path.write_text(f"{line()}\n\n{text}\n{line()}\n")
    with pytest.raises(BadLine, match=reason) as caught:
        load_dialogues(path)
    assert (caught.value.file, caught.value.line) == (str(path), 3)
    assert str(caught.value).startswith(f"[read_dialogues] {path}:3: expected ")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    bad: list[BadLine] = []
    assert len(load_dialogues(path, bad)) == 2
    assert [b.line for b in bad] == [3]


def test_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line().encode() + b"\r\n" + b'{"messages": "\xff"}\n')
    with pytest.raises(BadLine, match="UTF-8, got the byte 0xff"):
        load_dialogues(path)


def test_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(InvalidInput, match=r"\[read_dialogues\] path: expected a readable"):
            load_dialogues(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"verdict": 3}, "from -2 to 2, got 3"),
        ({"verdict": True}, "from -2 to 2, got True"),
        ({"verdict": 1.0}, "from -2 to 2, got 1.0"),
        ({"a": None}, "a string, got null in a"),
        ({"annotator": 7}, "a string, got a number"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "before the two replies"),
    ],
)
def test_bad_preference(tmp_path, changes, reason):
    path = tmp_path / "p.jsonl"
    path.write_text(line(**({"a": "x", "b": "y", "verdict": 0} | changes)))
    with pytest.raises(BadLine, match=reason):
        load_preferences(path)
    path.write_text(line(a="x", verdict=0))
    with pytest.raises(BadLine, match="the key 'b'"):
        load_preferences(path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "d.jsonl"
    save_dialogues(path, [Dialogue((Message.user("old"),))])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        save_dialogues(path, [Dialogue((Message.user("new"),), answer=float("nan"))])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["d.jsonl"]


def test_think_block_in_a_content_is_read_as_reasoning(tmp_path):
    path = tmp_path / "d.jsonl"
    turn = {"role": "assistant", "content": "<think>\nlow voice\n</think>\n\nSeven."}
    path.write_text(
        line(messages=[turn, turn | {"reasoning": None}, {"role": "assistant", "content": "<think>a"}])
    )
    split, literal, unclosed = load_dialogues(path)[0].messages
    assert (split.reasoning, split.text) == ("low voice", "Seven.")
    assert (literal.reasoning, literal.text) == (None, turn["content"])
    assert (unclosed.reasoning, unclosed.text) == (None, "<think>a")


# ---- the ms-swift layout ----


def test_swift_import(tmp_path):
    path = tmp_path / "s.jsonl"
    record = {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "<audio>What? <audio>"},
            {"role": "assistant", "content": "<think>\nlow\n</think>\n\nHm."},
        ],
        "audios": ["a.wav", "b.wav"],
        "solution": "7",
    }
    path.write_text(json.dumps(record) + "\n")
    (item,) = import_swift(path)
    a, b = (Audio(path=str(tmp_path / name)) for name in ("a.wav", "b.wav"))
    assert item.messages == (
        Message.system("Be kind."),
        Message.user(a, "What? ", b),
        Message.assistant("Hm.", "low"),
    )
    assert item.extra == {"solution": "7"}
    export_swift(tmp_path / "t.jsonl", [item])
    assert import_swift(tmp_path / "t.jsonl") == [item]
    assert json.loads((tmp_path / "t.jsonl").read_text())["audios"] == ["a.wav", "b.wav"]


def test_swift_clips_without_a_mark_go_first(tmp_path):
    path = tmp_path / "s.jsonl"
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "Well? <audio>"}]
    path.write_text(json.dumps({"messages": messages, "audios": ["a", "b"]}) + "\n")
    (item,) = import_swift(path)
    assert [type(part).__name__ for part in item.messages[1].parts] == ["Audio", "Text", "Audio"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": [{"role": "user", "content": "<audio>"}]}, "a path for every <audio>"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "a list of"),
        ({"messages": [{"role": "user", "content": "x"}], "audios": [3]}, "a list of paths"),
        ({"messages": [{"role": "assistant", "content": "x"}], "audios": ["a"]}, "1 more"),
        ({"query": "x", "response": "y"}, "a list of"),
    ],
)
def test_swift_bad_lines(tmp_path, record, reason):
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(BadLine, match=reason):
        import_swift(path)


def test_swift_cannot_spell_its_own_mark(tmp_path):
    with pytest.raises(InvalidInput, match="spelled out"):
        export_swift(tmp_path / "s.jsonl", [Dialogue((Message.user("say <audio>"),))])


def test_messages_check_their_parts():
    for wrong in (
        lambda: Audio(),
        lambda: Audio("a.wav", np.zeros(1, np.float32)),
        lambda: Audio(pcm=np.zeros(3)),
        lambda: Message("user", (3,)),
        lambda: Message("", ()),
        lambda: Message("user", (), "thought"),
        lambda: Message("assistant", (Audio("a.wav"),)),
        lambda: Message("a\nb", ()),
    ):
        with pytest.raises(InvalidInput):
            wrong()
    assert Message.user("a", Text("b")).text == "a\nb"

# SPDX-License-Identifier: Apache-2.0
"""From a file of dialogues to batches: real clips, and every kind of bad line named by file and line."""

import json
import shutil

import numpy as np
import pytest
import torch

from earnest.dialogue import (
    Audio,
    BadLine,
    Dialogue,
    DialogueDataset,
    Message,
    collate,
    load_dialogues,
    save_dialogues,
)
from earnest.errors import InvalidInput


def tokens_of(mel_frames):
    return max(0, mel_frames - 2) // 8


class Features:
    """A stand-in for log-mel features: the right number of frames, and the mean level in each."""

    def __call__(self, pcm):
        frames = (pcm.shape[0] + 479) // 160
        return np.full((4, frames), np.abs(pcm).mean(), np.float32)


def dataset(source, tokenizer, **options):
    return DialogueDataset(source, tokenizer, audio_tokens=tokens_of, features=Features(), **options)


def spoken(pcm, reply="Seven.", reasoning="low"):
    return Dialogue((Message.user(Audio(pcm=pcm), "Well?"), Message.assistant(reply, reasoning)))


def noise(samples):
    return (np.random.default_rng(samples).standard_normal(samples) * 0.1).astype(np.float32)


def test_file_to_batch(tokenizer, tmp_path):
    items = [spoken(noise(n)) for n in (16000, 479_680, 479_681, 1_000_000)]
    save_dialogues(tmp_path / "d.jsonl", items)
    data = dataset(tmp_path / "d.jsonl", tokenizer)
    assert data.check() == []
    examples = [data[i] for i in range(len(data))]
    # A clip of 30 s is chunked, not cut: the frames of its chunks add up to the whole.
    assert [len(e.mel) for e in examples] == [1, 1, 2, 3]
    in_memory = dataset(items, tokenizer)
    for i, example in enumerate(examples):
        assert in_memory[i].rendered == example.rendered
        assert all(torch.equal(a, b) for a, b in zip(in_memory[i].mel, example.mel, strict=True))
    batch = collate(examples, adaptor_frames=tokens_of)
    expected = "<think>\nlow\n</think>\nSeven.<|EOT|>"
    assert tokenizer.decode(batch.input_ids[batch.loss_mask], skip_special=False) == expected * 4


def test_defaults_for_learning(tokenizer):
    item = Dialogue((Message.user("Hi"), Message.assistant("Seven.")))

    def learnt(**options):
        rendered = dataset([item], tokenizer, **options)[0].rendered
        ids = [i for i, m in zip(rendered.ids, rendered.loss_mask, strict=True) if m]
        return tokenizer.decode(ids, skip_special=False)

    assert learnt() == "<think>\n\n</think>\nSeven.<|EOT|>"
    assert learnt(template="stepfun-compat") == "<think>\n\n</think>\nSeven.<|EOT|>"
    assert learnt(empty_think=False) == "Seven.<|EOT|>"


def test_one_clip_heard_twice(tokenizer):
    clip = Audio(pcm=noise(8000))
    item = Dialogue((Message.user(clip), Message.assistant("a"), Message.user(clip), Message.assistant("b")))
    example = dataset([item], tokenizer)[0]
    assert len(example.mel) == len(example.rendered.audio_spans) == 2


def test_bad_audio_is_named(tokenizer, tmp_path):
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "folder.wav").mkdir()
    np.save(tmp_path / "x.npy", noise(10))
    names = ["none.wav", "text.wav", "empty.wav", "folder.wav", "x.npy"]
    lines = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "audio", "audio": n}]},
                {"role": "assistant", "content": "x"},
            ]
        }
        for n in names
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    data = dataset(path, tokenizer)
    bad = data.check()
    assert [(b.file, b.line) for b in bad] == [(str(path), n) for n in range(1, 6)]
    for problem, name in zip(bad, names, strict=True):
        assert name in str(problem)
        assert "\n" not in str(problem)
    with pytest.raises(BadLine, match=r"d\.jsonl:1: expected"):
        data[0]


def test_sound_too_short_for_a_frame(tokenizer, tmp_path):
    save_dialogues(tmp_path / "d.jsonl", [spoken(noise(16000)), spoken(noise(1))])
    bad = dataset(tmp_path / "d.jsonl", tokenizer).check()
    assert [b.line for b in bad] == [2]
    assert "at least one adaptor frame" in bad[0].reason


def test_too_long_and_unclean(tokenizer, tmp_path):
    path = tmp_path / "d.jsonl"
    save_dialogues(path, [spoken(noise(16000)), spoken(noise(16000), "Seven.</think>")])
    assert [b.line for b in dataset(path, tokenizer, strict=True).check()] == [2]
    with pytest.raises(BadLine, match="at most 10 tokens"):
        dataset(path, tokenizer, max_length=10)[0]
    with pytest.raises(InvalidInput, match="at most 10 tokens"):
        dataset(load_dialogues(path), tokenizer, max_length=10)[0]


def test_bad_lines_of_the_file(tokenizer, tmp_path):
    path = tmp_path / "d.jsonl"
    save_dialogues(path, [spoken(noise(16000))])
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(BadLine, match=":2: expected"):
        dataset(path, tokenizer)
    bad: list[BadLine] = []
    assert len(dataset(path, tokenizer, bad=bad)) == 1
    assert [b.line for b in bad] == [2]


def test_real_clips(tokenizer, tmp_path, shared_data):
    """All five published example clips, one of them an MP3 named .wav."""
    folder = shared_data / "stepfun_clips"
    manifest = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    lines = []
    for entry in manifest:
        shutil.copy(folder / entry["file"], tmp_path)
        parts = [{"type": "text", "text": entry["question"]}, {"type": "audio", "audio": entry["file"]}]
        if not entry["order"].startswith("text"):
            parts.reverse()
        messages = [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "<think>\na\n</think>\nb"},
        ]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False))
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    data = dataset(tmp_path / "d.jsonl", tokenizer)
    assert data.check() == []
    for entry, index in zip(manifest, range(len(data)), strict=True):
        example = data[index]
        assert sum(m.shape[1] for m in example.mel) == pytest.approx(entry["seconds"] * 100 + 2, abs=3)
        assert entry["question"] in tokenizer.decode(example.rendered.ids)


def test_default_features_are_log_mel(tokenizer):
    from earnest.model import AudioLMConfig

    config = AudioLMConfig.preset("tiny", vocab_size=tokenizer.vocab_size).audio_encoder_config
    data = DialogueDataset(
        [spoken(noise(16000))], tokenizer, audio_tokens=config.audio_tokens, n_mels=config.n_mels
    )
    example = data[0]
    assert tuple(example.mel[0].shape) == (config.n_mels, 102)
    batch = collate([example], adaptor_frames=config.audio_tokens)
    assert batch.audio_positions.numel() == config.audio_tokens(102)

# SPDX-License-Identifier: Apache-2.0
"""From messages and sound to an answer: every length of clip fits its placeholders, and long ones are
chunked."""

import numpy as np
import pytest
import torch

from earnest.dialogue import Audio, Message, Text, Tokenizer
from earnest.errors import InvalidInput
from earnest.model import AudioLM
from earnest.model.answer import prompt
from model_cases import toy_model


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["what do you hear? a voice, slow and low.\n" * 3], 300)


def hum(seconds):
    time = np.arange(round(seconds * 16000)) / 16000
    return np.sin(2 * np.pi * 220 * time).astype(np.float32) * 0.3


@pytest.mark.parametrize("convention", ["hf", "vllm"])
def test_placeholders_equal_adaptor_frames_for_every_length(tokenizer, convention):
    model = toy_model(vocab_size=tokenizer.vocab_size, audio_len=convention)
    clips = [hum((16000 * 0.3 + 53 * i) / 16000) for i in range(28)]
    message = Message.user(*[Audio(pcm=clip) for clip in clips], "what do you hear?")
    batch, rendered = prompt(model, tokenizer, [message])
    with torch.no_grad():
        heard = model.embed_audio(batch.mel)
        assert model(batch).isfinite().all()
    assert len(heard) == len(batch.audio_positions)
    assert [span.length for span in rendered.audio_spans] == [
        model.config.audio_token_counts(len(clip))[0] for clip in clips
    ]


def test_an_audio_of_31_seconds_is_chunked_not_cut(tokenizer):
    model = toy_model(vocab_size=tokenizer.vocab_size)
    pcm = hum(31.0)
    batch, rendered = prompt(model, tokenizer, [Message.user(Audio(pcm=pcm))])
    assert [span.length for span in rendered.audio_spans] == [313, 75]
    assert [mel.shape[1] for mel in batch.mel] == [2502, 602]
    early, late = pcm.copy(), pcm.copy()
    early[:16000], late[-16000:] = 0, 0
    with torch.no_grad():
        hidden = model(batch)[-1]
        for changed in (early, late):
            other, _ = prompt(model, tokenizer, [Message.user(Audio(pcm=changed))])
            assert not torch.allclose(model(other)[-1], hidden, atol=1e-4)  # both ends are heard


def test_generate_answers_messages_and_dictionaries(tokenizer, tmp_path):
    model = toy_model(vocab_size=tokenizer.vocab_size)
    model.save_pretrained(tmp_path / "m", tokenizer=tokenizer)
    model = AudioLM.from_pretrained(tmp_path / "m")
    asked = [Message.system("listen"), Message.user(Audio(pcm=hum(1.0)), Text("what do you hear?"))]
    said = model.generate(asked, max_new_tokens=12)
    assert said.role == "assistant"
    assert said.reasoning  # the thought was opened for it and random weights do not close it
    assert said == model.generate(asked, max_new_tokens=12)
    plain = model.generate([{"role": "user", "content": "what do you hear?"}], max_new_tokens=5, think=False)
    assert plain.text
    assert plain.reasoning is None
    with pytest.raises(InvalidInput, match="tokenizer"):
        toy_model().generate(asked)

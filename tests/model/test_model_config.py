# SPDX-License-Identifier: Apache-2.0
"""Sizes, token counts and what config.json may say."""

import json
import warnings

import numpy as np
import pytest
import torch

from earnest.errors import InvalidInput
from earnest.features import LogMel
from earnest.model import AudioLM, AudioLMConfig, chunk_audio, features
from earnest.model.features import mel_frames
from model_cases import toy_config
from reference.step_audio import published_tensors


def published_count(samples, convention):
    """Tokens of one chunk as the published programs count them."""
    frames = -(-samples // 160) + 2
    counted = frames - 2 if convention == "hf" else frames
    encoder = (counted + 1) // 2 // 2
    return (encoder + 2 - 3) // 2 + 1


@pytest.mark.parametrize("convention", ["hf", "vllm"])
def test_token_counts_follow_the_published_formula(convention):
    audio = toy_config(audio_len=convention).audio_encoder_config
    for samples in [*range(1, 4000, 7), *range(399_000, 401_000, 37), 479_680]:
        assert audio.audio_tokens(mel_frames(samples)) == published_count(samples, convention), samples


def test_conventions_differ_by_one_token_for_a_quarter_of_all_lengths():
    hf, vllm = (toy_config(audio_len=name).audio_encoder_config for name in ("hf", "vllm"))
    gaps = [vllm.audio_tokens(t + 2) - hf.audio_tokens(t + 2) for t in range(1, 801)]
    assert [gap for gap in gaps if gap] == [1] * 200
    assert toy_config().audio_token_counts(25 * 16000) == [313]
    assert hf.audio_tokens(mel_frames(320)) == 0
    assert vllm.audio_tokens(mel_frames(320)) == 1


@pytest.mark.parametrize("seconds", [29.98, 29.99, 31.0, 50.0, 75.0, 600.5])
def test_long_audio_is_chunked_and_nothing_is_cut(seconds):
    pcm = np.arange(round(seconds * 16000), dtype=np.float32)
    chunks = chunk_audio(pcm)
    assert all(mel_frames(len(c)) <= 3000 and len(c) for c in chunks)
    assert np.array_equal(np.concatenate(chunks), pcm)
    assert len(chunks) == (1 if seconds == 29.98 else -(-len(pcm) // 400_000))
    assert len(toy_config().audio_token_counts(len(pcm))) == len(chunks)
    assert toy_config().audio_token_counts(0) == []
    with pytest.raises(InvalidInput, match="one channel"):
        chunk_audio(pcm[:8].reshape(2, 4))


PUBLISHED = {
    "step-audio-2-mini": {"vocab": 158720, "hidden": 3584, "mlp": 18944, "layers": 28, "kv_width": 512},
    "step-audio-r1": {"vocab": 158720, "hidden": 5120, "mlp": 27648, "layers": 64, "kv_width": 1024},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_the_published_ones(name):
    with torch.device("meta"):
        model = AudioLM(AudioLMConfig.preset(name))
    ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert ours == published_tensors(**PUBLISHED[name])
    assert all(p.device.type == "meta" for p in model.parameters())


def test_published_size_on_disk():
    """The four shards of Step-Audio-2-mini are listed with 4.93 + 4.93 + 4.99 + 1.78 GB of bfloat16."""
    with torch.device("meta"):
        model = AudioLM(AudioLMConfig.preset("step-audio-2-mini"))
    assert abs(2e-9 * sum(p.numel() for p in model.state_dict().values()) - 16.63) < 0.01


MINI = {
    "architectures": ["StepAudio2ForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_step_audio_2.StepAudio2Config"},
    "model_type": "step_audio_2",
    "text_config": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_attention_groups": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": 28,
        "max_seq_len": 16384,
        "vocab_size": 158720,
        "rms_norm_eps": 1e-06,
        "eos_token_id": 151643,
        "pad_token_id": 151643,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 16384,
        "rope_scaling": None,
        "torch_dtype": "bfloat16",
    },
    "audio_encoder_config": {
        "n_mels": 128,
        "n_audio_ctx": 1500,
        "n_audio_state": 1280,
        "n_audio_head": 20,
        "n_audio_layer": 32,
        "n_codebook_size": 4096,
        "llm_dim": 3584,
        "kernel_size": 3,
        "adapter_stride": 2,
    },
}


def test_a_published_config_is_read_and_written_back_unchanged():
    config = AudioLMConfig.from_dict(MINI)
    assert config == AudioLMConfig.preset("step-audio-2-mini")
    assert config.to_dict() == MINI
    ours = AudioLMConfig.preset("small", audio_len="vllm", avg_pool=False)
    again = AudioLMConfig.from_dict(json.loads(json.dumps(ours.to_dict())))
    assert again == ours
    assert again.text_config.tie_word_embeddings


def test_the_family_is_untied_unless_its_own_config_says_so():
    assert not AudioLMConfig.from_dict(MINI | {"tie_word_embeddings": True}).text_config.tie_word_embeddings
    tied = MINI | {"text_config": MINI["text_config"] | {"tie_word_embeddings": True}}
    assert AudioLMConfig.from_dict(tied).text_config.tie_word_embeddings


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "step_audio_2_full_duplex"}, "full_duplex"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "architectures"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"text_config": None}, "text_config"),
        ({"text_config": {"hidden_size": 8}}, "expected a value, got none"),
        ({"text_config": {"rope_scaling": {"type": "yarn"}}}, "rope_scaling"),
        ({"text_config": {"num_attention_groups": 2}}, "num_attention_groups"),
        ({"text_config": {"num_attention_heads": 27}}, "num_attention_heads"),
        ({"text_config": {"num_hidden_layers": 2.5}}, "num_hidden_layers"),
        ({"text_config": {"num_hidden_layers": -1}}, "num_hidden_layers"),
        ({"text_config": {"hidden_act": "gelu"}}, "hidden_act"),
        ({"audio_encoder_config": {"llm_dim": 4}}, "llm_dim"),
        ({"audio_encoder_config": {"adapter_stride": 4}}, "adapter_stride"),
        ({"audio_encoder_config": {"audio_len": "both"}}, "audio_len"),
        ({"audio_encoder_config": {"n_audio_state": "wide"}}, "n_audio_state"),
    ],
)
def test_what_cannot_be_computed_is_refused(change, says):
    raw = dict(MINI)
    for key, value in change.items():
        partial = isinstance(value, dict) and key in MINI and value != {"hidden_size": 8}
        raw[key] = MINI[key] | value if partial else value
    with pytest.raises(InvalidInput, match=says):
        AudioLMConfig.from_dict(raw)


def test_presets_refuse_unknown_names_and_fields():
    with pytest.raises(InvalidInput, match="tiny"):
        AudioLMConfig.preset("huge")
    with pytest.raises(InvalidInput, match="hiden_size"):
        AudioLMConfig.preset("tiny", hiden_size=3)


def test_a_clip_is_heard_chunk_by_chunk(monkeypatch):
    monkeypatch.setattr(features, "MAX_CHUNK_SAMPLES", 1700)
    monkeypatch.setattr(features, "CHUNK_SAMPLES", 1000)
    log_mel = LogMel(80, padding="step_audio")
    pcm = np.random.default_rng(3).standard_normal(2300).astype(np.float32)
    pcm.flags.writeable = False  # as samples of a message may be
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heard = features.hear(pcm, log_mel)
    want = [log_mel(chunk) for chunk in (pcm[:1000], pcm[1000:2000], pcm[2000:])]
    assert all(np.array_equal(mel.numpy(), one) for mel, one in zip(heard, want, strict=True))
    assert features.hear(pcm[:0], log_mel) == []
    with pytest.raises(InvalidInput, match=r"pcm\[1\]"):
        features.hear(np.where(np.arange(2300) == 1500, np.nan, pcm).astype(np.float32), log_mel)

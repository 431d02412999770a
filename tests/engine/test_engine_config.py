# SPDX-License-Identifier: Apache-2.0
"""The engine reads config.json as the Python model does: the same numbers, the same refusals."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earnest import _native
from earnest.errors import InvalidInput
from earnest.model import AudioLMConfig
from earnest.model.config import PRESETS

read = _native.engine.config_fields


def published(name="small", text=None, audio=None, **top):
    raw = AudioLMConfig.preset(name).to_dict()
    raw["text_config"] |= text or {}
    raw["audio_encoder_config"] |= audio or {}
    return raw | top


def ours(raw):
    return read(json.dumps(raw))


def theirs(raw):
    config = AudioLMConfig.from_dict(raw)
    text, audio = config.text_config, config.audio_encoder_config
    eos = text.eos_token_id
    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "max_position_embeddings rms_norm_eps rope_theta tie_word_embeddings"
    )
    heard = "n_mels n_audio_state n_audio_head n_audio_layer llm_dim n_audio_ctx avg_pool audio_len"
    fields = {name: getattr(text, name) for name in names.split()}
    fields |= {name: getattr(audio, name) for name in heard.split()}
    return fields | {"eos_token_ids": [] if eos is None else [eos] if isinstance(eos, int) else list(eos)}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_read_alike(name):
    raw = published(name)
    assert ours(raw) == theirs(raw)


READ_ALIKE = [
    {"text": {"tie_word_embeddings": True}},
    {"text": {"num_attention_groups": None}},
    {"text": {"eos_token_id": [1, 2, 3]}},
    {"text": {"eos_token_id": None, "rope_scaling": None, "head_dim": 64, "some_key": {"of": "theirs"}}},
    {"audio": {"audio_len": "vllm", "avg_pool": False, "n_codebook_size": 4096}},
    {"audio": {"n_audio_ctx": 400}},
    {"quantization_config": None},
    {"quantization_config": {}},
    {"tie_word_embeddings": True},
    {"architectures": ["Other", "StepAudio2ForCausalLM"]},
]


@pytest.mark.parametrize("change", READ_ALIKE, ids=str)
def test_what_may_differ_is_read_alike(change):
    raw = published(**change)
    assert ours(raw) == theirs(raw)
    for part in ("model_type", "architectures"):
        without = {key: value for key, value in raw.items() if key != part}
        assert ours(without) == theirs(without)


def test_embeddings_are_tied_only_where_it_is_written():
    raw = published("step-audio-r1")
    assert "tie_word_embeddings" not in raw["text_config"]
    assert ours(raw)["tie_word_embeddings"] is False


REFUSED = [
    ("model_type", {"model_type": "step_audio_2_full_duplex"}),
    ("architectures", {"architectures": ["Qwen2ForCausalLM"]}),
    ("quantization_config", {"quantization_config": {"bits": 4}}),
    ("text_config", {"text_config": [1]}),
    ("num_attention_groups", {"text": {"num_attention_groups": 9}}),
    ("num_key_value_heads", {"text": {"num_key_value_heads": 2, "num_attention_groups": 2}}),
    (
        "num_attention_heads",
        {"text": {"num_attention_heads": 7, "num_key_value_heads": 7, "num_attention_groups": 7}},
    ),
    ("head_dim", {"text": {"head_dim": 128}}),
    ("hidden_act", {"text": {"hidden_act": "gelu"}}),
    ("rope_scaling", {"text": {"rope_scaling": {"type": "yarn"}}}),
    ("use_sliding_window", {"text": {"use_sliding_window": True}}),
    ("attention_bias", {"text": {"attention_bias": False}}),
    ("vocab_size", {"text": {"vocab_size": None}}),
    ("vocab_size", {"text": {"vocab_size": 2.5}}),
    ("vocab_size", {"text": {"vocab_size": True}}),
    ("num_hidden_layers", {"text": {"num_hidden_layers": 0}}),
    ("rms_norm_eps", {"text": {"rms_norm_eps": 0}}),
    ("rope_theta", {"text": {"rope_theta": "x"}}),
    ("llm_dim", {"audio": {"llm_dim": 8}}),
    ("n_audio_head", {"audio": {"n_audio_head": 7}}),
    ("kernel_size and adapter_stride", {"audio": {"adapter_stride": 1}}),
    ("audio_len", {"audio": {"audio_len": "both"}}),
]


@pytest.mark.parametrize(("argument", "change"), REFUSED, ids=str)
def test_both_refuse_what_would_change_the_arithmetic(argument, change):
    raw = published(**change)
    with pytest.raises(ValueError, match=rf"\] {argument}: expected"):
        ours(raw)
    with pytest.raises((InvalidInput, TypeError)):
        theirs(raw)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
@pytest.mark.parametrize("number", [2**31, 2**62, 2**63 - 1, 2**64, -1, 1e300])
def test_no_number_is_large_enough_to_overflow_a_size(key, number):
    with pytest.raises(ValueError, match=rf"{key}: expected a whole number from 1 to"):
        ours(published(text={key: number}))


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_stands_in_a_field_is_read_or_refused(data):
    raw = published()
    part = raw[data.draw(st.sampled_from(["text_config", "audio_encoder_config"]))]
    target = data.draw(st.sampled_from([raw, part]))
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(ANY)
    try:
        ours(raw)
    except ValueError as error:
        assert str(error).startswith("[")  # noqa: PT017

# SPDX-License-Identifier: Apache-2.0
"""The hearing half against the published formula and against transformers' Whisper with real weights."""

import copy

import pytest
import torch

from earnest.errors import InvalidInput
from earnest.model import AudioLM, AudioLMConfig
from earnest.model.encoder import AudioEncoder, sinusoids
from earnest.model.join import read_whisper
from earnest.model.packed import fused
from model_cases import packed, toy_model
from reference.step_audio import hear
from tolerances import MODEL

FRAMES = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 61, 102, 250]


@pytest.mark.parametrize("convention", ["hf", "vllm"])
def test_packed_clips_equal_the_published_formula_one_by_one(convention):
    model = toy_model(audio_len=convention)
    audio = model.config.audio_encoder_config
    clips = [torch.randn(audio.n_mels, t) for t in FRAMES]
    with torch.no_grad():
        heard = model.embed_audio(clips).split([audio.audio_tokens(t) for t in FRAMES])
    for clip, ours in zip(clips, heard, strict=True):
        counted = clip.shape[1] - (2 if convention == "hf" else 0)
        want = hear(model.state_dict(), clip, heads=audio.n_audio_head, counted=counted)
        assert ours.shape == want.shape
        if len(ours):
            torch.testing.assert_close(
                ours.double(), want, rtol=0, atol=MODEL["hearing"] * float(want.abs().max())
            )


def test_gradients_of_the_hearing_half_equal_the_formula():
    model = toy_model(seed=3)
    audio = model.config.audio_encoder_config
    clips = [torch.randn(audio.n_mels, t) for t in (13, 40, 22)]
    weight = torch.randn(sum(audio.audio_tokens(c.shape[1]) for c in clips), 48)
    (model.embed_audio(clips) * weight).sum().backward()

    exact = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    want = [hear(exact, c, heads=audio.n_audio_head, counted=c.shape[1] - 2) for c in clips]
    (torch.cat(want) * weight).sum().backward()
    for name, p in model.named_parameters():
        if name.startswith(("encoder.", "adapter.")) and p.requires_grad:
            limit = MODEL["gradient"] * float(exact[name].grad.abs().max()) + 1e-7
            torch.testing.assert_close(p.grad.double(), exact[name].grad, rtol=0, atol=limit, msg=name)


def test_frames_can_be_kept_and_a_clip_never_hears_its_neighbours():
    model = toy_model()
    batch = packed(model, [(5, [40, 9]), (3, [77])])
    with torch.no_grad():
        frames, bounds = model.encode(batch.mel)
        whole = model.adapt(frames, bounds)
        loud = [batch.mel[0], batch.mel[1] * 50, batch.mel[2]]
        again, _ = model.encode(loud)
        parts = [model.encode([m])[0] for m in batch.mel]
    assert torch.equal(model.embed_audio(batch.mel), whole)
    a, b = bounds.tolist()[1:3]
    assert torch.equal(again[:a], frames[:a])
    assert torch.equal(again[b:], frames[b:])
    assert not torch.equal(again[a:b], frames[a:b])
    assert torch.equal(torch.cat(parts), frames)


def test_no_clips_and_clips_too_short_to_hear():
    model = toy_model()
    assert model.embed_audio([]).shape == (0, 48)
    assert model.embed_audio([torch.randn(20, 0), torch.randn(20, 2), torch.randn(20, 3)]).shape == (0, 48)


@pytest.mark.parametrize(
    ("mel", "says"),
    [
        (torch.randn(21, 50), r"mel\[0\]"),
        (torch.zeros(20, 5, dtype=torch.int16), "float"),
        (torch.randn(20, 3001), "3000"),
    ],
)
def test_features_that_do_not_fit_are_refused(mel, says):
    with pytest.raises(InvalidInput, match=says):
        toy_model().encode([mel])


def test_weights_lie_end_to_end_and_survive_training_and_copying():
    attention = toy_model().encoder.blocks[0].attn
    parts = [attention.query.weight, attention.key.weight, attention.value.weight]
    with torch.no_grad():
        view = fused(parts)
        assert view.data_ptr() == parts[0].data_ptr()
        assert torch.equal(view, torch.cat(parts))
        parts[1].add_(1.0)
        assert torch.equal(view, torch.cat(parts))
        apart = [p.clone() for p in parts]
        assert torch.equal(fused(apart), torch.cat(parts))
    assert fused(parts).requires_grad
    model = toy_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for other in (copy.deepcopy(model), model.to(torch.bfloat16).to(torch.float64)):
        for group in other.encoder.fused_groups() + other.model.fused_groups():
            with torch.no_grad():
                assert fused(group).data_ptr() == group[0].data_ptr()
    model.lm_head.weight.sum().backward()
    before = model.lm_head.weight.detach().clone()
    optimizer.step()
    assert torch.equal(before - 0.1, model.lm_head.weight)  # still the optimizer's


@pytest.mark.parametrize("name", ["whisper-tiny.en-encoder", "whisper-base-encoder"])
def test_equals_whisper_with_real_weights(shared_data, name):
    transformers = pytest.importorskip("transformers")
    fields, weights = read_whisper(shared_data / "models" / name)
    fields["n_audio_ctx"] = 400  # transformers takes nothing but full clips: 8 s are enough
    positions = weights["encoder.positional_embedding.weight"]
    torch.testing.assert_close(sinusoids(*positions.shape), positions.float(), rtol=0, atol=1e-3)
    weights["encoder.positional_embedding.weight"] = positions[:400]
    width, layers = fields["n_audio_state"], fields["n_audio_layer"]
    config = AudioLMConfig.preset("tiny", **fields, avg_pool=False, audio_len="vllm")
    ours = AudioEncoder(config.audio_encoder_config)
    ours.load_state_dict({key.removeprefix("encoder."): value.float() for key, value in weights.items()})
    theirs = transformers.models.whisper.modeling_whisper.WhisperEncoder(
        transformers.WhisperConfig(
            d_model=width,
            encoder_layers=layers,
            encoder_attention_heads=fields["n_audio_head"],
            encoder_ffn_dim=4 * width,
            num_mel_bins=fields["n_mels"],
            max_source_positions=fields["n_audio_ctx"],
        )
    ).eval()
    theirs.load_state_dict({_whisper_name(key): value.float() for key, value in weights.items()})
    clip = torch.randn(fields["n_mels"], 800, generator=torch.Generator().manual_seed(0)) * 0.5
    with torch.no_grad():
        got, bounds = ours([clip])
        want = theirs.double()(clip[None].double()).last_hidden_state[0]
        exact, _ = ours.double()([clip.double()])
    assert bounds.tolist() == [0, 400]
    torch.testing.assert_close(exact, want, rtol=0, atol=MODEL["whisper_float64"])
    assert float((got - want).square().mean().sqrt()) < MODEL["whisper_rms"]


def _whisper_name(name):
    for ours, theirs in (
        ("encoder.", ""),
        ("blocks.", "layers."),
        ("attn_ln.", "self_attn_layer_norm."),
        ("attn.query.", "self_attn.q_proj."),
        ("attn.key.", "self_attn.k_proj."),
        ("attn.value.", "self_attn.v_proj."),
        ("attn.out.", "self_attn.out_proj."),
        ("mlp.0.", "fc1."),
        ("mlp.2.", "fc2."),
        ("mlp_ln.", "final_layer_norm."),
        ("after_norm.", "layer_norm."),
        ("positional_embedding.", "embed_positions."),
    ):
        name = name.replace(ours, theirs)
    return name


def test_a_fresh_model_starts_with_audio_as_large_as_text():
    model = AudioLM(AudioLMConfig.preset("tiny"), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        heard = model.embed_audio([torch.randn(80, 400)])
        text = model.model.embed_tokens.weight.detach()
    assert 0.5 < float(heard.pow(2).mean().sqrt() / text.pow(2).mean().sqrt()) < 2

# SPDX-License-Identifier: Apache-2.0
"""Small models and packed batches that the model tests share."""

from dataclasses import dataclass, field

import torch

from earnest.bench.engine_weights import Decoder
from earnest.model import AudioLM, AudioLMConfig

HEADS_OF_64 = Decoder(
    "tiny in heads of 64",
    {
        "vocab_size": 300,
        "hidden_size": 128,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
    },
)


@dataclass
class Batch:
    """What a model reads of a packed batch."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    audio_positions: torch.Tensor
    mel: list = field(default_factory=list)


def toy_config(**overrides):
    sizes = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "n_mels": 20,
        "n_audio_state": 32,
        "n_audio_head": 4,
        "n_audio_layer": 2,
    }
    return AudioLMConfig.preset("tiny", **(sizes | overrides))


def toy_model(seed=0, **overrides):
    """A small model whose every weight is random, biases and norms included."""
    generator = torch.Generator().manual_seed(seed)
    model = AudioLM(toy_config(**overrides), generator=generator)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
            elif "lm_head" in name:
                weight.mul_(30)  # so that distributions are far from flat
    return model


def packed(model, prompts):
    """prompts: (number of text tokens, mel frames of each clip); clips come after the second token."""
    generator = torch.Generator().manual_seed(len(prompts))
    text, audio = model.config.text_config, model.config.audio_encoder_config
    ids, positions, bounds, where, mel = [], [], [0], [], []
    for tokens, frames in prompts:
        mel += [torch.randn(audio.n_mels, t, generator=generator) for t in frames]
        heard = sum(audio.audio_tokens(t) for t in frames)
        where += range(bounds[-1] + 2, bounds[-1] + 2 + heard)
        ids += torch.randint(0, text.vocab_size, (tokens + heard,), generator=generator).tolist()
        positions += range(tokens + heard)
        bounds.append(len(ids))
    return Batch(
        torch.tensor(ids),
        torch.tensor(positions),
        torch.tensor(bounds, dtype=torch.int32),
        torch.tensor(where, dtype=torch.int64),
        mel,
    )


def alone(batch, index, clips):
    """Sequence `index` of a batch as a batch of its own; clips: how many clips each sequence has."""
    start, end = batch.cu_seqlens[index : index + 2].tolist()
    inside = (batch.audio_positions >= start) & (batch.audio_positions < end)
    first = sum(clips[:index])
    return Batch(
        batch.input_ids[start:end],
        batch.position_ids[start:end],
        torch.tensor([0, end - start], dtype=torch.int32),
        batch.audio_positions[inside] - start,
        batch.mel[first : first + clips[index]],
    )


def extended(batch, ids):
    """A batch of one sequence with `ids` appended."""
    whole = torch.cat([batch.input_ids, torch.tensor(ids, dtype=torch.int64)])
    bounds = torch.tensor([0, len(whole)], dtype=torch.int32)
    return Batch(whole, torch.arange(len(whole)), bounds, batch.audio_positions, batch.mel)

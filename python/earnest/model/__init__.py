# SPDX-License-Identifier: Apache-2.0
"""The hearing arrow for training: features -> encoder -> adaptor -> decoder, in the published format."""

from earnest.model.audio_lm import AudioLM
from earnest.model.config import AudioLMConfig, EncoderConfig, TextConfig
from earnest.model.features import chunk_audio
from earnest.model.generate import Generation, Sampling
from earnest.model.value import ValueModel

__all__ = [
    "AudioLM",
    "AudioLMConfig",
    "EncoderConfig",
    "Generation",
    "Sampling",
    "TextConfig",
    "ValueModel",
    "chunk_audio",
]

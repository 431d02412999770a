# SPDX-License-Identifier: Apache-2.0
"""A model of a few thousand parameters and a few made-up cases, for tests of the learning arrow."""

import numpy as np
import torch

from earnest.dialogue import Audio, Message, Tokenizer
from earnest.learn.types import Case, Clip
from earnest.model import AudioLM, AudioLMConfig

TEXTS = ["heard: one two three. 1 + 2 = 3.", "It is 3.", "Sure, it is 3, captain.", "what is one plus two"]


def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 4, 320)


def model(words: Tokenizer, seed: int = 0, **other: int) -> AudioLM:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "n_mels": 80,
        "n_audio_state": 32,
        "n_audio_head": 2,
        "n_audio_layer": 1,
    }
    config = AudioLMConfig.preset("tiny", vocab_size=len(words), **(sizes | other))
    made = AudioLM(config, generator=torch.Generator().manual_seed(seed))
    for parameter in made.encoder.parameters():
        parameter.requires_grad_(False)
    return made


def cases(count: int = 4, seed: int = 0) -> list[Case]:
    """Cases with one clip of random features each, and one without audio at the end. "3" is the right
    answer."""
    numbers = np.random.default_rng(seed)
    made = []
    for index in range(count):
        spoken = index < count - 1
        name = f"case-{seed}-{index}"
        mel = numbers.standard_normal((80, 22 + 5 * index)).astype(np.float32)
        clip = Clip(f"{name}/0.0", mel, (("one", 0.05, 0.15),), ("fast", "low", "loud"))
        message = (
            Message.user(Audio(path=name), "what is it") if spoken else Message.user("what is one plus two")
        )
        made.append(
            Case(
                id=name,
                task="arithmetic",
                history=(message,),
                clips=((clip,),) if spoken else (),
                reasoning="heard: one two three. 1 + 2 = 3.",
                replies=("3.", "It is 3."),
                answer="3",
                rubric=("gives the right answer",) if index % 2 else None,
                verify=lambda text: "3" in text,
            )
        )
    return made

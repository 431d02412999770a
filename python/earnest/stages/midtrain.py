# SPDX-License-Identifier: Apache-2.0
"""Stage 1, audio-centric mid-training: from audio or text and a question to reasoning and a response.

A model that starts from nothing learns to hear here too: its encoder is trained, and a linear head on the encoder's
frames names the word being spoken in each of them, where a case knows its words. The head is thrown away afterwards,
and the encoder is frozen from then on. A model that starts from a folder keeps its encoder as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earnest.dialogue import Tokenizer
from earnest.learn.types import Case, Clip
from earnest.model import AudioLM, AudioLMConfig
from earnest.model.config import PRESETS
from earnest.run import Run, seed_everything
from earnest.settings import RunSettings, setting
from earnest.stages.source import DataSettings, draw, load_cases, load_model, save_model, trained, world_of
from earnest.stages.supervised import OptimiserSettings, examples, fine_tune, optimiser_step, target_logprobs

SECONDS_PER_FRAME = 0.04  # of the encoder's output
SILENCE = ""


@dataclass(frozen=True)
class Settings:
    model: str = setting("tiny", "a preset to build from nothing, or a model folder to go on from")
    vocabulary: int = setting(768, "a new model: size of its vocabulary", at_least=300)
    steps: int = setting(700, at_least=1)
    batch: int = setting(32, "cases in a step", at_least=1)
    word_weight: float = setting(1.0, "of the loss that names the word in each frame", at_least=0)
    mask_mel: bool = setting(True, "hide random bands and spans of the features (SpecAugment)")
    seed: int = setting(0, at_least=0)
    data: DataSettings = field(default_factory=lambda: DataSettings(cases=6000))
    optimiser: OptimiserSettings = field(default_factory=lambda: OptimiserSettings(lr=2e-3, warmup_steps=50))
    run: RunSettings = field(default_factory=RunSettings)


def main(settings: Settings, run_dir: Path) -> None:
    with Run(run_dir, settings) as run:
        if run.finished:
            return
        seed_everything(settings.seed)
        if settings.model not in PRESETS:
            model, tokenizer = load_model(settings.model)
            cases = load_cases(settings.data, model.config.audio_encoder_config.n_mels)
            fine_tune(run, "mid-training", model, tokenizer, cases, steps=settings.steps, batch=settings.batch,
                      optimiser=settings.optimiser, seed=settings.seed)
        else:
            model, tokenizer = new_model(settings)
            cases = load_cases(settings.data, model.config.audio_encoder_config.n_mels)
            from_nothing(run, settings, model, tokenizer, cases)
        run.finish()


def new_model(settings: Settings) -> tuple[AudioLM, Tokenizer]:
    """A model of a preset's size with fresh weights, and a tokenizer trained on the texts of its world."""
    if settings.data.files:
        raise ValueError("[midtrain] model: expected a model folder to go on from where data.files are given, got "
                         f"the preset {settings.model!r}")
    tokenizer = Tokenizer.train(world_of(settings.data.playground).corpus(), settings.vocabulary)
    config = AudioLMConfig.preset(settings.model, vocab_size=len(tokenizer))
    model = AudioLM(config)
    model.initialise(torch.Generator().manual_seed(settings.seed))
    return model, tokenizer


def from_nothing(run: Run, settings: Settings, model: AudioLM, tokenizer: Tokenizer, cases: Sequence[Case]) -> None:
    """The training loop of a model with fresh weights; leaves the model in the run folder."""
    words = word_numbers(cases)
    head = nn.Linear(model.config.audio_encoder_config.n_audio_state, len(words))
    parameters = [*trained(model), *head.parameters()]
    adamw = settings.optimiser.build(parameters)
    generator = torch.Generator().manual_seed(settings.seed)
    start = run.restore("mid-training", model=model, head=head, optimiser=adamw, generator=generator)
    for step in run.steps(settings.steps, start):
        packed = examples(draw(settings.batch, cases, generator), tokenizer, model, generator)
        mels = [torch.from_numpy(clip.mel) for clip in packed.clips]
        if settings.mask_mel:
            mels = [mask_mel(mel, generator) for mel in mels]
        frames, cu_seqlens = model.encode(mels)
        logp = target_logprobs(model, packed, model.adapt(frames, cu_seqlens))
        text_loss = -logp.mean()
        targets = frame_words(packed.clips, cu_seqlens, words)
        word_loss = F.cross_entropy(head(frames), targets, ignore_index=-100)
        (text_loss + settings.word_weight * word_loss).backward()
        norm = optimiser_step(adamw, parameters, settings.optimiser.rate(step, settings.steps), settings.optimiser.clip_norm)
        run.log(step, loss=text_loss.item(), word_loss=word_loss.item(), gradient_norm=norm, tokens=len(logp))
    save_model(run, model, tokenizer)


def word_numbers(cases: Sequence[Case]) -> dict[str, int]:
    """A number for each word spoken in the cases; silence is 0."""
    spoken = {word for case in cases for clip in case.clips for chunk in clip for word, _, _ in chunk.words}
    return {word: number for number, word in enumerate([SILENCE, *sorted(spoken - {SILENCE})])}


def frame_words(clips: Sequence[Clip], cu_seqlens: Tensor, words: dict[str, int]) -> Tensor:
    """The number of the word spoken in each encoder frame, int64 [frames]; -100 in clips whose words are unknown."""
    targets = []
    for clip, count in zip(clips, cu_seqlens.diff().tolist(), strict=True):
        target = torch.full((count,), -100 if not clip.words else words[SILENCE])
        centres = (torch.arange(count) + 0.5) * SECONDS_PER_FRAME
        for word, begin, end in clip.words:
            target[(centres >= begin) & (centres < end)] = words[word]
        targets.append(target)
    return torch.cat(targets) if targets else torch.zeros(0, dtype=torch.int64)


def mask_mel(mel: Tensor, generator: torch.Generator, bands: int = 2, widest: int = 14, longest: int = 12) -> Tensor:
    """The features with two bands and a span of time replaced by the mean (SpecAugment, arXiv 1904.08779)."""
    mel = mel.clone()
    mean = mel.mean()
    bins, frames = mel.shape
    for _ in range(bands):
        width = int(torch.randint(widest, (), generator=generator))
        low = int(torch.randint(max(bins - width, 1), (), generator=generator))
        mel[low : low + width] = mean
    span = int(torch.randint(longest, (), generator=generator))
    first = int(torch.randint(max(frames - span, 1), (), generator=generator))
    mel[:, first : first + span] = mean
    return mel

# SPDX-License-Identifier: Apache-2.0
"""Stage 1, audio-centric mid-training: from audio or text and a question to reasoning and a response.

The recipe starts from a pretrained encoder and keeps it frozen throughout. A model that starts from a folder
does just that. A model that starts from nothing has to learn to hear first: its encoder is trained with
linear heads on its frames that name the word being spoken and the manner of speaking (rate, pitch, loudness),
where a clip's own are known. The heads are thrown away afterwards, and from then on the encoder is frozen
here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earnest.dialogue import Tokenizer
from earnest.errors import InvalidInput
from earnest.learn.render import chunks_of
from earnest.learn.types import Case, Clip
from earnest.model import AudioLM, AudioLMConfig
from earnest.model.config import PRESETS
from earnest.run import Run, seed_everything
from earnest.settings import RunSettings, setting
from earnest.stages.optimiser import OptimiserSettings, optimiser_step
from earnest.stages.source import (
    DataSettings,
    dictations,
    freeze,
    load_cases,
    load_model,
    world_of,
    written_cases,
)
from earnest.stages.supervised import fine_tune
from earnest.stages.variation import vary_mel

SECONDS_PER_FRAME = 0.04  # of the encoder's output
SILENCE = ""
UNKNOWN = -100  # no target


@dataclass(frozen=True)
class HearingSettings:
    """How the encoder of a new model learns to hear."""

    steps: int = setting(400, at_least=1)
    batch: int = setting(32, "clips in a step", at_least=1)
    manner_weight: float = setting(0.3, "of the loss on how it is said, beside what is said", at_least=0)
    vary_mel: bool = setting(True, "vary the size of the voice, hide bands and spans (SpecAugment)")
    optimiser: OptimiserSettings = field(default_factory=lambda: OptimiserSettings(lr=2e-3, warmup_steps=50))


@dataclass(frozen=True)
class Settings:
    model: str = setting("tiny", "a preset to build from nothing, or a model folder to go on from")
    vocabulary: int = setting(768, "a new model: size of its vocabulary", at_least=300)
    steps: int = setting(500, at_least=1)
    batch: int = setting(32, "cases in a step", at_least=1)
    written: float = setting(0.1, "playground: written cases, as a share of the spoken ones", at_least=0)
    dictation: float = setting(0.25, "playground: dictations, as a share of the dialogues", at_least=0)
    hasty: float = setting(0.2, "share of the sums looked up, not counted out", at_least=0, at_most=1)
    seed: int = setting(0, at_least=0)
    hearing: HearingSettings = field(default_factory=HearingSettings)
    data: DataSettings = field(default_factory=lambda: DataSettings(cases=6000))
    optimiser: OptimiserSettings = field(default_factory=lambda: OptimiserSettings(lr=2e-3, warmup_steps=50))
    run: RunSettings = field(default_factory=RunSettings)


def main(settings: Settings, run_dir: Path) -> None:
    with Run(run_dir, settings) as run:
        if run.finished:
            return
        seed_everything(settings.seed)
        new = settings.model in PRESETS
        model, tokenizer = new_model(settings) if new else load_model(settings.model)
        model.to(run.device)
        n_mels = model.config.audio_encoder_config.n_mels
        cases = load_cases(settings.data, n_mels, device=run.device)
        dictated = round(settings.dictation * len(cases))
        cases = cases + dictations(settings.data, dictated, n_mels, device=run.device)
        if new:
            learn_to_hear(run, settings.hearing, model, cases, settings.seed)
        if not settings.data.files:
            cases = cases + written_cases(settings.data, round(settings.written * len(cases)))
        fine_tune(
            run,
            "mid-training",
            model,
            tokenizer,
            cases,
            steps=settings.steps,
            batch=settings.batch,
            optimiser=settings.optimiser,
            seed=settings.seed,
            hasty=settings.hasty,
        )
        run.finish()


def new_model(settings: Settings) -> tuple[AudioLM, Tokenizer]:
    """A model of a preset's size with fresh weights, and a tokenizer trained on the texts of its world."""
    if settings.data.files:
        raise InvalidInput(
            "midtrain", "model", "a model folder to go on from where data.files are given", settings.model
        )
    tokenizer = Tokenizer.train(world_of(settings.data.playground).corpus(), settings.vocabulary)
    config = AudioLMConfig.preset(settings.model, vocab_size=len(tokenizer))
    return AudioLM(config, generator=torch.Generator().manual_seed(settings.seed)), tokenizer


class NamingHeads(nn.Module):
    """Linear heads on encoder frames: the word, and each of the manners."""

    def __init__(self, width: int, words: dict[str, int], manners: Sequence[dict[str, int]]) -> None:
        super().__init__()
        self.words, self.manners = words, list(manners)
        self.name_word = nn.Linear(width, len(words))
        self.name_manner = nn.ModuleList([nn.Linear(width, max(len(manner), 1)) for manner in manners])

    def losses(self, frames: Tensor, clips: Sequence[Clip], cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of the words and of the manners, over the frames where they are known."""
        cu_seqlens = cu_seqlens.cpu()
        words = frame_words(clips, cu_seqlens, self.words).to(frames.device)
        word_loss = F.cross_entropy(self.name_word(frames), words, ignore_index=UNKNOWN)
        counts = cu_seqlens.diff()
        manner_loss = word_loss.new_zeros(())
        for index, (numbers, head) in enumerate(zip(self.manners, self.name_manner, strict=True)):
            known = torch.tensor([numbers[clip.manner[index]] if clip.manner else UNKNOWN for clip in clips])
            known = known.repeat_interleave(counts).to(frames.device)
            manner_loss = manner_loss + F.cross_entropy(head(frames), known, ignore_index=UNKNOWN)
        return word_loss, manner_loss / max(len(self.manners), 1)


def learn_to_hear(
    run: Run, settings: HearingSettings, model: AudioLM, cases: Sequence[Case], seed: int
) -> None:
    """Trains the encoder alone, and freezes it."""
    clips = [clip for case in cases for clip in chunks_of(case) if clip.words]
    heads = NamingHeads(
        model.config.audio_encoder_config.n_audio_state, word_numbers(clips), manner_numbers(clips)
    ).to(model.device)
    parameters = [p for p in (*model.encoder.parameters(), *heads.parameters()) if p.requires_grad]
    moved_by = settings.optimiser.build(model.encoder, [*heads.parameters()])
    generator = torch.Generator().manual_seed(seed)
    start = run.restore(
        "learning to hear", encoder=model.encoder, heads=heads, optimiser=moved_by, generator=generator
    )
    for step in run.steps(settings.steps, start):
        heard = [clips[int(i)] for i in torch.randint(len(clips), (settings.batch,), generator=generator)]
        mels = [torch.from_numpy(clip.mel) for clip in heard]
        if settings.vary_mel:
            mels = [vary_mel(mel, generator) for mel in mels]
        with run.autocast():
            frames, cu_seqlens = model.encode(mels)
            word_loss, manner_loss = heads.losses(frames, heard, cu_seqlens)
        (word_loss + settings.manner_weight * manner_loss).backward()
        norm = optimiser_step(
            moved_by, parameters, settings.optimiser.rate(step, settings.steps), settings.optimiser.clip_norm
        )
        run.log(step, word_loss=word_loss.item(), manner_loss=manner_loss.item(), gradient_norm=norm)
    freeze(model.encoder)


def word_numbers(clips: Sequence[Clip]) -> dict[str, int]:
    """A number for each word spoken in the clips; silence is 0."""
    spoken = {word for clip in clips for word, _, _ in clip.words}
    return {word: number for number, word in enumerate([SILENCE, *sorted(spoken - {SILENCE})])}


def manner_numbers(clips: Sequence[Clip]) -> list[dict[str, int]]:
    """For each manner (rate, pitch, loudness), a number for each of its values."""
    told = [clip.manner for clip in clips if clip.manner]
    return [{value: i for i, value in enumerate(sorted(set(values)))} for values in zip(*told, strict=True)]


def frame_words(clips: Sequence[Clip], cu_seqlens: Tensor, words: dict[str, int]) -> Tensor:
    """The number of the word spoken in each encoder frame, int64 [frames]; UNKNOWN in clips whose words are
    not known."""
    targets = []
    for clip, count in zip(clips, cu_seqlens.diff().tolist(), strict=True):
        target = torch.full((count,), words[SILENCE] if clip.words else UNKNOWN)
        centres = (torch.arange(count) + 0.5) * SECONDS_PER_FRAME
        for word, begin, end in clip.words:
            target[(centres >= begin) & (centres < end)] = words[word]
        targets.append(target)
    return torch.cat(targets) if targets else torch.zeros(0, dtype=torch.int64)

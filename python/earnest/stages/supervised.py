# SPDX-License-Identifier: Apache-2.0
"""The one objective of the supervised stages: mean negative log-probability of the targets of a packed
batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from earnest.dialogue import Tokenizer
from earnest.learn.hearing import Hearing
from earnest.learn.policy import Packed, pack_masked
from earnest.learn.render import to_learn
from earnest.learn.types import Case
from earnest.model import AudioLM
from earnest.run import Run, seed_everything
from earnest.stages.optimiser import OptimiserSettings, optimiser_step
from earnest.stages.source import draw, save_model, trained


def target_logprobs(model: AudioLM, packed: Packed, audio: Tensor | None) -> Tensor:
    """Log-probability [N] of every target of the batch."""
    hidden = model(packed.batch, audio)
    before = packed.before.to(hidden.device)
    return model.logprob(hidden.index_select(0, before), packed.targets.to(hidden.device))[0]


def examples(
    cases: Sequence[Case],
    tokenizer: Tokenizer,
    model: AudioLM,
    generator: torch.Generator,
    all_turns: bool = False,
    hasty: float = 0.0,
) -> Packed:
    """The cases as one packed batch, each with one of its replies; a share of those with a sum looks it
    up."""
    sequences, masks = [], []
    for case in cases:
        choice = int(torch.randint(len(case.replies), (), generator=generator))
        if case.hasty is not None and float(torch.rand((), generator=generator)) < hasty:
            case = replace(case, reasoning=case.hasty)
        sequence, mask = to_learn(
            case,
            case.replies[choice],
            tokenizer,
            model.config.audio_encoder_config.audio_tokens,
            all_turns=all_turns,
        )
        sequences.append(sequence)
        masks.append(mask)
    return pack_masked(sequences, masks)


def fine_tune(
    run: Run,
    phase: str,
    model: AudioLM,
    tokenizer: Tokenizer,
    cases: Sequence[Case],
    *,
    steps: int,
    batch: int,
    optimiser: OptimiserSettings,
    seed: int,
    all_turns: bool = False,
    hasty: float = 0.0,
) -> None:
    """Supervised steps on a model whose encoder is frozen; leaves the model in the run folder."""
    parameters = trained(model)
    moved_by = optimiser.build(model)
    generator = torch.Generator().manual_seed(seed)
    hearing = Hearing(model)
    seed_everything(seed)
    start = run.restore(phase, model=model, optimiser=moved_by, generator=generator)
    for step in run.steps(steps, start):
        packed = examples(draw(batch, cases, generator), tokenizer, model, generator, all_turns, hasty)
        with run.autocast():
            logp = target_logprobs(model, packed, hearing.embed(model, packed.clips))
        loss = -logp.mean()
        loss.backward()
        norm = optimiser_step(moved_by, parameters, optimiser.rate(step, steps), optimiser.clip_norm)
        run.log(step, loss=loss.item(), gradient_norm=norm, tokens=len(logp))
    save_model(run, model, tokenizer)

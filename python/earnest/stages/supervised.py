# SPDX-License-Identifier: Apache-2.0
"""The one objective of the supervised stages: mean negative log-probability of the targets of a packed
batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from earnest import ops
from earnest.dialogue import Tokenizer
from earnest.learn.hearing import Hearing
from earnest.learn.policy import Packed, pack_masked
from earnest.learn.render import to_learn
from earnest.learn.types import Case
from earnest.model import AudioLM
from earnest.run import Run, seed_everything
from earnest.settings import setting
from earnest.stages.source import draw, save_model, trained


@dataclass(frozen=True)
class OptimiserSettings:
    """AdamW with a linear warm-up and a linear way down."""

    lr: float = setting(1e-3, "the highest learning rate", above=0)
    warmup_steps: int = setting(20, at_least=0)
    final_lr: float = setting(0.1, "share of lr left at the end", at_least=0, at_most=1)
    weight_decay: float = setting(0.01, at_least=0)
    beta2: float = setting(0.98, above=0, at_most=1)
    clip_norm: float = setting(1.0, "largest norm of the gradient", above=0)

    def build(self, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.AdamW:
        return torch.optim.AdamW(parameters, self.lr, betas=(0.9, self.beta2), weight_decay=self.weight_decay)

    def rate(self, step: int, total: int) -> float:
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        left = 1 - (step - self.warmup_steps) / max(total - self.warmup_steps, 1)
        return self.lr * (self.final_lr + (1 - self.final_lr) * left)


def optimiser_step(
    optimiser: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter], lr: float, clip_norm: float
) -> float:
    """One step at `lr` with the gradients at hand; their norm before clipping. A gradient that is not finite
    stops the run with its state as it was before the step."""
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, clip_norm))
    if norm != norm or norm == float("inf"):
        raise FloatingPointError(f"[update] gradient: expected a finite norm, got {norm}")
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm


def target_logprobs(model: AudioLM, packed: Packed, audio: Tensor | None) -> Tensor:
    """Log-probability [N] of every target of the batch."""
    hidden = model(packed.batch, audio)
    return ops.logprob(hidden[packed.before], model.lm_head.weight, packed.targets)[0]


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
    adamw = optimiser.build(parameters)
    generator = torch.Generator().manual_seed(seed)
    hearing = Hearing(model)
    seed_everything(seed)
    start = run.restore(phase, model=model, optimiser=adamw, generator=generator)
    for step in run.steps(steps, start):
        packed = examples(draw(batch, cases, generator), tokenizer, model, generator, all_turns, hasty)
        with run.autocast():
            logp = target_logprobs(model, packed, hearing.embed(model, packed.clips))
        loss = -logp.mean()
        loss.backward()
        norm = optimiser_step(adamw, parameters, optimiser.rate(step, steps), optimiser.clip_norm)
        run.log(step, loss=loss.item(), gradient_norm=norm, tokens=len(logp))
    save_model(run, model, tokenizer)

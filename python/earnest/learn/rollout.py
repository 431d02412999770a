# SPDX-License-Identifier: Apache-2.0
"""Rollouts: replies sampled from the policy as it is, with the log-probability of every token."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from earnest.dialogue import Tokenizer, split_reasoning
from earnest.learn.hearing import Hearing
from earnest.learn.policy import pack_prompts
from earnest.learn.types import Prompt, Rollouts
from earnest.model import AudioLM
from earnest.ops.torch_threads import torch_on_one_thread


@torch.no_grad()
@torch_on_one_thread()
def sample(
    policy: AudioLM,
    tokenizer: Tokenizer,
    hearing: Hearing,
    prompts: Sequence[Prompt],
    *,
    per_prompt: int = 1,
    max_new_tokens: int = 96,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Rollouts:
    """`per_prompt` replies to each prompt, whose ids end inside an opened thought. The whole distribution is
    sampled (no top-p, no top-k): cutting it would bias every ratio by the mass it keeps (rlhf_numerics
    2.13)."""
    packed = pack_prompts(prompts)
    generation = policy.generate_ids(
        packed.batch,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        generator=generator,
        stop_ids=[tokenizer.special("<|EOT|>")],
        samples_per_prompt=per_prompt,
        audio_embeddings=hearing.embed(policy, packed.clips),
    )
    splits = [split_reasoning(ids, inside=True, tokenizer=tokenizer) for ids in generation.ids]
    truncated = torch.tensor([not stopped for stopped in generation.stopped])
    return Rollouts(
        prompts=list(prompts),
        prompt_index=torch.arange(len(prompts)).repeat_interleave(per_prompt),
        tokens=[torch.tensor(ids, dtype=torch.int64) for ids in generation.ids],
        logp=generation.logp,
        truncated=truncated,
        reasoning=[split.reasoning or "" for split in splits],
        replies=[split.reply for split in splits],
        well_formed=torch.tensor([split.well_formed for split in splits]) & ~truncated,
    )


@torch.no_grad()
def thoughts(
    model: AudioLM,
    tokenizer: Tokenizer,
    hearing: Hearing,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 96,
) -> list[list[int]]:
    """The greedy thought of `model` on each prompt, as ids that end with the closing tag; closed by force
    where it is not over after `max_new_tokens`."""
    packed = pack_prompts(prompts)
    close = tokenizer.special("</think>")
    generation = model.generate_ids(
        packed.batch,
        max_new_tokens=max_new_tokens,
        temperature=0.0,
        stop_ids=[close, tokenizer.special("<|EOT|>")],
        audio_embeddings=hearing.embed(model, packed.clips),
    )
    return [
        [*(token for token in ids if token not in (close, tokenizer.special("<|EOT|>"))), close]
        for ids in generation.ids
    ]

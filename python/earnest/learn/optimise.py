# SPDX-License-Identifier: Apache-2.0
"""The one policy-optimisation loop, used by RLVR and RLHF: rollout -> reward -> advantage -> loss -> update.

A stage is a choice of reward sources, an advantage estimator and a weight of the KL to the reference policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from earnest.dialogue import Tokenizer
from earnest.learn.advantage import AdvantageSettings, estimate
from earnest.learn.render import to_answer
from earnest.learn.rollout import sample
from earnest.learn.types import Case, Experience, Prompt, Rewards, Rollouts
from earnest.learn.update import Learner, Update, UpdateSettings
from earnest.model import AudioLM
from earnest.run import Run
from earnest.settings import setting

Reward = Callable[[Rollouts, int], Rewards]  # rollouts and the step they were sampled in
Draw = Callable[[int], Sequence[Case]]  # the cases of a step
MOST_INVALID = 0.05


@dataclass(frozen=True)
class PolicySettings:
    """The loop. Defaults are those of rlhf_numerics; the recipe's own are named in the stages."""

    steps: int = setting(100, at_least=1)
    prompts: int = setting(8, "prompts in a step", at_least=1)
    per_prompt: int = setting(16, "replies sampled for each prompt", at_least=1)
    max_new_tokens: int = setting(96, at_least=1)
    temperature: float = setting(
        1.0, "of sampling; old, new and reference log-probabilities use it too", above=0
    )
    kl: float = setting(0.0, "beta: weight of k1 to the reference policy in the token rewards", at_least=0)
    estimator: Literal["gae", "group"] = setting(
        "gae", "gae: a learned critic; group: the other replies to the prompt"
    )
    critic_warmup: int = setting(10, "gae: steps in which only the critic learns", at_least=0)
    advantage: AdvantageSettings = field(default_factory=AdvantageSettings)
    update: UpdateSettings = field(default_factory=UpdateSettings)


def optimise(
    run: Run,
    phase: str,
    learner: Learner,
    tokenizer: Tokenizer,
    cases: Draw,
    reward: Reward,
    settings: PolicySettings,
    seed: int,
) -> None:
    """Runs the loop; the policy is changed in place. Every step is logged."""
    warmup = settings.critic_warmup if learner.critic is not None else 0
    steps = settings.steps + warmup
    update = Update(learner, settings.update, steps)
    generator = torch.Generator().manual_seed(seed)
    kept = {"policy": learner.policy, "policy_optimiser": update.policy_optimiser, "generator": generator}
    if learner.critic is not None:
        kept |= {"critic": learner.critic, "critic_optimiser": update.critic_optimiser}
    start = run.restore(phase, **kept)
    for step in run.steps(steps, start):
        prompts = prompts_of(cases(step), tokenizer, learner.policy)
        with learner.autocast():
            rollouts = sample(
                learner.policy,
                tokenizer,
                learner.hearing,
                prompts,
                per_prompt=settings.per_prompt,
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                generator=generator,
            )
            rewards = reward(rollouts, step)
        experience, read = experience_of(learner, rollouts, rewards, settings)
        if step == start:
            update.check_first_step(experience)
        metrics = update(experience, step, generator, train_policy=step >= warmup)
        run.log(step, **describe(rollouts, rewards), **read, **metrics)


def prompts_of(cases: Sequence[Case], tokenizer: Tokenizer, model: AudioLM) -> list[Prompt]:
    return [to_answer(case, tokenizer, model.config.audio_encoder_config.audio_tokens) for case in cases]


def experience_of(
    learner: Learner, rollouts: Rollouts, rewards: Rewards, settings: PolicySettings
) -> tuple[Experience, dict[str, float]]:
    """The rollouts with old log-probabilities, advantages and returns, on the policy's device. Replies
    without a valid reward are masked."""
    invalid = 1 - float(rewards.valid.float().mean())
    if invalid > MOST_INVALID:
        raise RuntimeError(
            f"[reward] valid: expected at least {1 - MOST_INVALID:.0%} of the replies, got {1 - invalid:.0%}"
        )
    logp, reference, values = learner.read(rollouts, settings.update.max_tokens)
    cu_seqlens = rollouts.cu_seqlens.to(logp.device)
    trainable = rewards.valid.to(logp.device).repeat_interleave(cu_seqlens.diff())
    token_rewards = torch.zeros(len(logp), device=logp.device)
    if settings.kl > 0 and reference is not None:
        token_rewards -= settings.kl * (logp - reference)
    token_rewards[cu_seqlens[1:].long() - 1] += rewards.scalar.to(logp.device)
    estimated = estimate(
        token_rewards,
        trainable,
        cu_seqlens,
        settings.advantage,
        values=values,
        groups=rollouts.prompt_index.to(logp.device),
    )
    experience = Experience(
        rollouts, trainable, logp, estimated.advantages, estimated.returns, values, reference
    )
    return experience, distance(rollouts, logp, reference)


def distance(rollouts: Rollouts, logp: Tensor, reference: Tensor | None) -> dict[str, float]:
    """How far the policy is from its reference."""
    if reference is None:
        return {}
    k1 = logp - reference
    return {
        "kl_per_reply": float(k1.sum()) / len(rollouts),
        "kl_k3": float((torch.exp(-k1) - 1 + k1).mean()),
    }


def describe(rollouts: Rollouts, rewards: Rewards) -> dict[str, float]:
    """What a step's replies look like, and what they earned, by source and by kind of case."""
    metrics = {
        "reward": float(rewards.scalar[rewards.valid].mean()),
        "reward_std": float(rewards.scalar[rewards.valid].std()),
        "truncated": float(rollouts.truncated.float().mean()),
        "well_formed": float(rollouts.well_formed.float().mean()),
        "reply_words": sum(len(reply.split()) for reply in rollouts.replies) / len(rollouts),
        "reasoning_words": sum(len(text.split()) for text in rollouts.reasoning) / len(rollouts),
        "zero_variance_groups": zero_variance(rollouts, rewards),
    }
    kinds = [rollouts.case(index).kind for index in range(len(rollouts))]
    for name, values in rewards.sources.items():
        metrics[name] = _mean(values)
        for kind in sorted(set(kinds)) if name == "judge" else ():
            metrics[f"{name}_{kind}"] = _mean(values[torch.tensor([k == kind for k in kinds])])
    if rewards.swap_gap is not None:
        metrics["swap_disagree"] = float(rewards.swap_gap.abs().mean())
    return metrics


def zero_variance(rollouts: Rollouts, rewards: Rewards) -> float:
    """The share of prompts whose replies all earned the same: they teach nothing under a group baseline."""
    groups = [rewards.scalar[rollouts.prompt_index == p] for p in range(len(rollouts.prompts))]
    return sum(float(group.max() - group.min()) < 1e-6 for group in groups) / max(len(groups), 1)


def _mean(values: Tensor) -> float:
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else 0.0

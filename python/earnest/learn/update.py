# SPDX-License-Identifier: Apache-2.0
"""The update: from experience to new weights of the policy and, where there is one, of its critic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from earnest.learn.hearing import Hearing
from earnest.learn.loss import LossSettings, check_first_step, join, loss_of, step_normalizer
from earnest.learn.policy import Packed, by_tokens, pack, token_logprobs
from earnest.learn.schedule import share_of_rate
from earnest.learn.types import Experience, Rollouts
from earnest.model import AudioLM, ValueModel, native
from earnest.ops import PPOLoss
from earnest.ops.torch_threads import torch_on_one_thread
from earnest.settings import setting


@dataclass(frozen=True)
class UpdateSettings:
    """How far and how often the policy moves on one batch of rollouts. Defaults: rlhf_numerics 2.6 to 2.9,
    2.20."""

    epochs: int = setting(1, "passes over one batch of rollouts", at_least=1)
    minibatches: int = setting(1, "optimiser steps in a pass", at_least=1)
    loss: LossSettings = field(default_factory=LossSettings)
    lr: float = setting(1e-4, "of the policy", above=0)
    critic_lr: float = setting(5e-4, "of the critic", above=0)
    warmup_steps: int = setting(10, "of the learning rates", at_least=0)
    final_lr: float = setting(
        1.0, "share of the learning rates that is left at the end", at_least=0, at_most=1
    )
    clip_norm: float = setting(1.0, above=0)
    max_tokens: int = setting(16384, "tokens, prompts included, in one forward pass", at_least=1)

    def rate(self, step: int, total: int) -> float:
        """The share of the learning rates at `step` of `total`."""
        return share_of_rate(step, total, self.warmup_steps, self.final_lr)


@dataclass(eq=False)
class Learner:
    """The networks of one run. The reference and the critic hear through the same frozen encoder."""

    policy: AudioLM
    hearing: Hearing
    temperature: float
    critic: ValueModel | None = None
    reference: AudioLM | None = None
    autocast: Callable[[], AbstractContextManager[Any]] = (
        nullcontext  # of every forward pass; see Run.autocast
    )

    def logprobs(self, packed: Packed) -> tuple[Tensor, Tensor]:
        with self.autocast():
            return token_logprobs(self.policy, self.hearing, packed, self.temperature)

    def reference_logprobs(self, packed: Packed) -> Tensor:
        assert self.reference is not None
        with self.autocast():
            return token_logprobs(self.reference, self.hearing, packed, self.temperature)[0]

    def values(self, packed: Packed) -> Tensor:
        assert self.critic is not None
        with self.autocast():
            heard = self.hearing.encoded(packed.clips) if packed.clips else None
            values = self.critic(packed.batch, heard)
            return values.index_select(0, packed.before.to(values.device))

    @property
    def sampler_is_exact(self) -> bool:
        """Whether the sampler reports the trainer's own log-probabilities, bit for bit, so that none need be
        computed again before an update: the native one does on the CPU (earnest.model.native). Every update
        looks."""
        with self.autocast():
            return native.gives_the_models_bits(self.policy)

    def reread(self, rollouts: Rollouts, max_tokens: int) -> Tensor:
        """Log-probabilities [N] under the policy as it is now."""
        return self._read(rollouts, max_tokens, lambda packed: self.logprobs(packed)[0])

    def read(self, rollouts: Rollouts, max_tokens: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(log-probabilities, reference log-probabilities, values), each [N], of the networks as they are
        now."""
        exact = self.sampler_is_exact
        logp = torch.cat(rollouts.logp) if exact else self.reread(rollouts, max_tokens)
        reference = values = None
        if self.reference is not None:
            reference = self._read(rollouts, max_tokens, self.reference_logprobs)
        if self.critic is not None:
            values = self._read(rollouts, max_tokens, self.values)
        return logp, reference, values

    @torch.no_grad()
    @torch_on_one_thread()
    def _read(self, rollouts: Rollouts, max_tokens: int, network: Callable[[Packed], Tensor]) -> Tensor:
        groups = groups_of(rollouts, range(len(rollouts)), max_tokens)
        return torch.cat([network(pack_replies(rollouts, group)) for group in groups])


def pack_replies(rollouts: Rollouts, group: Sequence[int]) -> Packed:
    return pack(
        [rollouts.prompts[int(rollouts.prompt_index[i])] for i in group], [rollouts.tokens[i] for i in group]
    )


def groups_of(rollouts: Rollouts, which: Sequence[int], max_tokens: int) -> list[list[int]]:
    """The replies `which`, cut into groups that one forward pass can hold."""
    prompts = [rollouts.prompts[int(rollouts.prompt_index[i])] for i in which]
    groups = by_tokens(prompts, [len(rollouts.tokens[i]) for i in which], max_tokens)
    return [[which[j] for j in group] for group in groups]


class Said(NamedTuple):
    """What the policy said of some tokens in a forward pass."""

    rows: Tensor  # int64 [n], of all N
    logp: Tensor  # float32 [n]
    entropy: Tensor  # float32 [n]


def agreement(experience: Experience, said: Sequence[Said], exact: bool) -> dict[str, float]:
    """How far the trainer's log-probabilities are from the sampler's, and how undecided the policy is; said
    before its first step. exact: the sampler's were taken for the trainer's, so that any gap is an error."""
    if not said:
        return {}
    rows, logp, entropy = (torch.cat(parts) for parts in zip(*said, strict=True))
    gap = (logp - torch.cat(experience.rollouts.logp)[rows].to(logp.device)).abs()
    largest = float(gap.max())
    if exact and largest != 0.0:
        raise RuntimeError(
            f"[update] sampler: expected the trainer's log-probabilities, got some that differ by {largest}"
        )
    mean = float(gap.mean())
    return {"sampler_gap_mean": mean, "sampler_gap_max": largest, "entropy": float(entropy.mean())}


class Update:
    """Optimisers of policy and critic, and the loop over epochs, mini-batches and forward passes, for a run
    of `steps` steps."""

    def __init__(self, learner: Learner, settings: UpdateSettings, steps: int) -> None:
        self.learner, self.settings, self.steps = learner, settings, steps
        # Adam's epsilon and betas as in the PPO line of work (rlhf_numerics 2.20)
        self.policy_optimiser = _adamw(learner.policy, settings.lr)
        self.critic_optimiser = None if learner.critic is None else _adamw(learner.critic, settings.critic_lr)

    def check_first_step(self, experience: Experience) -> None:
        """The invariants of a first step (rlhf_numerics 2.17): the policy that is about to be trained gives
        its own rollouts the same numbers again, so the ratio is 1 everywhere, nothing is clipped, and the
        gradient of the clipped loss is REINFORCE's. A difference means that two code paths disagree, and
        training would learn from it."""
        logp = self.learner.reread(experience.rollouts, self.settings.max_tokens).requires_grad_()
        if not torch.equal(logp.detach()[experience.trainable], experience.logp_old[experience.trainable]):
            worst = (logp.detach() - experience.logp_old)[experience.trainable].abs().max()
            raise RuntimeError(
                f"[update] ratio of the first step: expected exactly 1, got a log-ratio of {float(worst)}"
            )
        normalizer = step_normalizer(experience.trainable, experience.rollouts.cu_seqlens, self.settings.loss)
        loss = loss_of(
            logp,
            experience.logp_old,
            experience.advantages,
            experience.trainable,
            self.settings.loss,
            normalizer=normalizer,
        )
        check_first_step(join([loss]))
        (gradient,) = torch.autograd.grad(loss.loss, logp)
        reinforce = torch.where(experience.trainable, -experience.advantages / normalizer, 0.0).to(
            gradient.dtype
        )
        if not torch.allclose(gradient, reinforce, rtol=1e-5, atol=1e-12):
            raise RuntimeError("[update] gradient of the first step: expected REINFORCE's, got another")

    def __call__(
        self, experience: Experience, step: int, generator: torch.Generator, train_policy: bool = True
    ) -> dict[str, float]:
        """Learns from `experience`; the metrics, averaged over optimiser steps by their trained tokens. Those
        of `agreement` are of the first one, before which the policy is the one that sampled."""
        rollouts, settings = experience.rollouts, self.settings
        totals: dict[str, float] = {}
        weight = 0.0
        agreed: dict[str, float] = {}
        for _ in range(settings.epochs):
            order = torch.arange(len(rollouts))
            if settings.minibatches > 1:
                order = torch.randperm(len(rollouts), generator=generator)
            for part in order.chunk(settings.minibatches):
                metrics, count, said = self._optimiser_step(experience, part.tolist(), step, train_policy)
                agreed = agreed or agreement(experience, said, self.learner.sampler_is_exact)
                weight += count
                for name, value in metrics.items():
                    totals[name] = totals.get(name, 0.0) + count * value
        return agreed | {name: value / max(weight, 1.0) for name, value in totals.items()}

    def _optimiser_step(
        self, experience: Experience, replies: list[int], step: int, train_policy: bool
    ) -> tuple[dict[str, float], float, list[Said]]:
        """Gradients of all forward passes of one mini-batch, divided by one number known before the first."""
        bounds = experience.rollouts.cu_seqlens
        rows_of = {i: torch.arange(int(bounds[i]), int(bounds[i + 1])) for i in replies}
        rows = torch.cat(list(rows_of.values()))
        count = float(experience.trainable[rows].sum())
        if count == 0:
            return {}, 0.0, []
        lengths = torch.tensor([0, *(len(rows_of[i]) for i in replies)])
        divided_by = torch.zeros_like(experience.trainable, dtype=torch.float64)
        divided_by[rows] = step_normalizer(experience.trainable[rows], lengths.cumsum(0), self.settings.loss)
        parts, said = [], []
        with torch_on_one_thread():
            for group in groups_of(experience.rollouts, replies, self.settings.max_tokens):
                part, one = self._loss(experience, group, torch.cat([rows_of[i] for i in group]), divided_by)
                part.loss.backward()
                parts.append(part)
                said.append(one)
        metrics = join(parts)
        if self.critic_optimiser is not None and self.learner.critic is not None:
            metrics["critic_gradient_norm"] = self._step(
                self.critic_optimiser, self.learner.critic, self.settings.critic_lr, step
            )
        if train_policy:
            metrics["gradient_norm"] = self._step(
                self.policy_optimiser, self.learner.policy, self.settings.lr, step
            )
        self.policy_optimiser.zero_grad(set_to_none=True)
        return metrics, count, said

    def _loss(
        self, experience: Experience, group: list[int], rows: Tensor, divided_by: Tensor
    ) -> tuple[PPOLoss, Said]:
        packed = pack_replies(experience.rollouts, group)
        logp, entropy = self.learner.logprobs(packed)
        values = self.learner.values(packed) if self.learner.critic is not None else None

        def take(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows]

        loss = loss_of(
            logp,
            experience.logp_old[rows],
            experience.advantages[rows],
            experience.trainable[rows],
            self.settings.loss,
            normalizer=divided_by[rows],
            values=values,
            values_old=take(experience.values_old) if values is not None else None,
            returns=experience.returns[rows] if values is not None else None,
            logp_ref=take(experience.logp_reference) if self.settings.loss.kl_coef else None,
            entropy=entropy if self.settings.loss.entropy_coef else None,
        )
        return loss, Said(rows, logp.detach(), entropy.detach())

    def _step(self, optimiser: torch.optim.Optimizer, network: nn.Module, lr: float, step: int) -> float:
        norm = float(
            torch.nn.utils.clip_grad_norm_(
                [p for p in network.parameters() if p.requires_grad], self.settings.clip_norm
            )
        )
        if norm != norm or norm == float("inf"):
            raise FloatingPointError(f"[update] gradient: expected a finite norm, got {norm}")
        for group in optimiser.param_groups:
            group["lr"] = lr * self.settings.rate(step, self.steps)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return norm


def _adamw(network: nn.Module, lr: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad],
        lr,
        betas=(0.9, 0.95),
        eps=1e-5,
        weight_decay=0.0,
        fused=True,  # one pass over a parameter and its moments; foreach makes seven
    )

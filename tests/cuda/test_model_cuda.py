# SPDX-License-Identifier: Apache-2.0
"""The model and the learning arrow on a GPU: the same numbers as on the CPU up to rounding, and steps that
learn."""

import pytest
import torch

import small_world
from earnest import ops
from earnest.learn.hearing import Hearing
from earnest.learn.optimise import PolicySettings, experience_of, prompts_of
from earnest.learn.policy import pack_prompts, token_logprobs
from earnest.learn.reward import RewardWeights, combine
from earnest.learn.rollout import sample
from earnest.learn.update import Learner, Update, UpdateSettings
from earnest.model import ValueModel
from earnest.stages.supervised import examples, target_logprobs


@pytest.fixture
def world(gpu):
    words = small_world.tokenizer()
    return words, small_world.model(words), small_world.model(words).to(gpu), small_world.cases()


def test_hidden_states_and_logprobs_are_the_cpus(world) -> None:
    words, on_cpu, on_gpu, cases = world
    packed = examples(cases, words, on_cpu, torch.Generator().manual_seed(0))
    found = []
    for model in (on_cpu, on_gpu):
        audio = Hearing(model).embed(model, packed.clips)
        model.zero_grad()
        logp = target_logprobs(model, packed, audio)
        logp.mean().backward()
        gradient = model.model.layers[0].self_attn.q_proj.weight.grad
        found.append((logp.detach().cpu(), gradient.cpu()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
def test_the_head_goes_by_tensor_cores_under_autocast_and_float32_weights_learn(
    device, monkeypatch: pytest.MonkeyPatch, low: bool
) -> None:
    model = small_world.model(small_world.tokenizer()).to(device)
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(9, model.config.text_config.hidden_size, generator=generator)
    targets = torch.randint(model.config.text_config.vocab_size, (9,), generator=generator).to(device)
    kinds = []
    logprob = ops.logprob
    monkeypatch.setattr(
        ops, "logprob", lambda *a, **k: kinds.append((a[0].dtype, a[1].dtype)) or logprob(*a, **k)
    )

    def found(enabled: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = rows.to(device).requires_grad_()
        model.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            logp, _ = model.logprob(hidden, targets)
            logits = model.logits(hidden).detach()
        logp.sum().backward()
        by_logits = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        torch.testing.assert_close(logp.detach(), by_logits, rtol=0, atol=2e-5)  # no logit is rounded
        return logp.detach(), hidden.grad, model.lm_head.weight.grad.clone()

    exact, given = found(False), found(low)
    assert kinds[1] == ((torch.bfloat16 if low else torch.float32,) * 2)
    for one, other in zip(given, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= (0.01 if low else 1e-6) * other.norm()
    assert torch.equal(given[0], exact[0]) is not low


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("estimator", ["group", "gae"])
def test_a_step_of_reinforcement_learning(world, estimator: str, low: bool) -> None:
    words, _, policy, cases = world

    def autocast() -> torch.autocast:
        return torch.autocast("cuda", torch.bfloat16, enabled=low)

    hearing = Hearing(policy)
    critic = ValueModel(policy) if estimator == "gae" else None
    learner = Learner(policy, hearing, 1.0, critic, policy, autocast)
    settings = PolicySettings(per_prompt=4, max_new_tokens=12, kl=0.1, estimator=estimator)
    update = Update(learner, UpdateSettings(minibatches=2), steps=2)
    generator = torch.Generator().manual_seed(1)
    with autocast():
        rollouts = sample(
            policy, words, hearing, prompts_of(cases, words, policy), per_prompt=4, max_new_tokens=12,
            generator=generator,
        )  # fmt: skip
    assert not learner.sampler_is_exact
    rewards = combine(rollouts, RewardWeights(), None)
    experience, _ = experience_of(learner, rollouts, rewards, settings)
    assert experience.logp_old.is_cuda
    assert experience.advantages.is_cuda
    update.check_first_step(experience)
    before = policy.lm_head.weight.detach().clone()
    metrics = update(experience, 0, generator)
    assert metrics["sampler_gap_mean"] < (0.1 if low else 1e-3)
    assert not torch.equal(before, policy.lm_head.weight)


def test_the_sampler_reports_the_trainers_numbers_up_to_rounding(world) -> None:
    words, _, policy, cases = world
    hearing = Hearing(policy)
    prompts = prompts_of(cases, words, policy)
    rollouts = sample(policy, words, hearing, prompts, per_prompt=3, max_new_tokens=12)
    packed = pack_prompts(prompts)
    assert len(packed.batch.cu_seqlens) == len(prompts) + 1
    from earnest.learn.update import pack_replies

    logp, _ = token_logprobs(policy, hearing, pack_replies(rollouts, range(len(rollouts))), 1.0)
    torch.testing.assert_close(logp.detach().cpu(), torch.cat(rollouts.logp), rtol=1e-3, atol=1e-4)

# SPDX-License-Identifier: Apache-2.0
"""Rollouts on cuda from a model with float32 weights: the engine decodes with a copy in bfloat16, which is as
new as the weights, and its log-probabilities are the trainer's up to rounding."""

import gc
from dataclasses import replace

import torch

import small_world
from earnest.learn.hearing import Hearing
from earnest.learn.optimise import PolicySettings, experience_of, prompts_of
from earnest.learn.policy import pack_prompts
from earnest.learn.reward import RewardWeights, combine
from earnest.learn.rollout import sample
from earnest.learn.update import Learner, Update, UpdateSettings
from earnest.model import native, working
from earnest.model.native import Twin

HEADS = {
    "hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "n_audio_state": 64,
    "n_audio_head": 1,
}  # fmt: skip
GAP = 0.02  # on the average; 0.0013 in the emulator, and 0.27 from weights that are a step old


class World:
    """A policy, and what a step of reinforcement learning needs beside it."""

    def __init__(self, device: torch.device, lr: float) -> None:
        self.words, self.cases = small_world.tokenizer(), small_world.cases()
        self.policy = small_world.model(self.words, **HEADS).to(device)
        self.hearing = Hearing(self.policy)
        self.autocast = lambda: torch.autocast(device.type, torch.bfloat16)
        self.learner = Learner(self.policy, self.hearing, 1.0, autocast=self.autocast)
        self.update = Update(self.learner, UpdateSettings(lr=lr, warmup_steps=0), steps=9)
        self.generator = torch.Generator().manual_seed(1)

    def rollouts(self):
        prompts = prompts_of(self.cases, self.words, self.policy)
        with self.autocast():
            return sample(
                self.policy, self.words, self.hearing, prompts, per_prompt=2, max_new_tokens=6,
                generator=self.generator,
            )  # fmt: skip

    def step(self):
        """What the update says of its rollouts."""
        rollouts = self.rollouts()
        settings = PolicySettings(per_prompt=2, max_new_tokens=6, estimator="group")
        rewards = combine(rollouts, RewardWeights(), None)
        rewards = replace(rewards, scalar=torch.randn(len(rollouts), generator=self.generator))
        experience, _ = experience_of(self.learner, rollouts, rewards, settings)
        return self.update(experience, 0, self.generator)


def test_steps_of_reinforcement_learning_sample_from_the_engine(device, monkeypatch):
    asked = []
    generate = Twin.generate

    def noting(twin, *rest):
        asked.append(twin)
        return generate(twin, *rest)

    monkeypatch.setattr(Twin, "generate", noting)
    world = World(device, lr=0.02)
    for step in range(3):
        metrics = world.step()
        assert len(asked) == step + 1
        assert asked[0] is asked[-1]  # one engine, over one copy
        assert 0 < metrics["sampler_gap_mean"] < GAP
    assert world.policy.lm_head.weight.dtype == torch.float32


def test_a_copy_decodes_where_products_are_in_bfloat16_alone(device):
    world = World(device, lr=0.02)
    policy = world.policy
    assert native.precision_of(policy) is None  # float32, whose numbers the engine has not there
    with working.working(policy) as same:
        assert same is policy
    with world.autocast():
        assert native.precision_of(policy) == "bfloat16"
        assert not native.gives_the_models_bits(policy)
        with working.working(policy) as copy:
            assert not torch.is_autocast_enabled(device.type)
            assert not any(weight.requires_grad for weight in copy.parameters())
            for name, weight in copy.state_dict().items():
                assert torch.equal(weight, policy.state_dict()[name].bfloat16())
        with working.working(copy) as same:
            assert same is copy
    assert policy.lm_head.weight.dtype == torch.float32


def test_states_come_back_in_the_type_of_the_weights_and_copies_go_with_their_models(device):
    world = World(device, lr=0.02)
    prompt = prompts_of(world.cases, world.words, world.policy)[-1:]
    batch = pack_prompts(prompt).batch
    with world.autocast():
        said = world.policy.generate_ids(batch, max_new_tokens=2)
    assert said.drawn_from.dtype == torch.float32
    assert said.drawn_from.device == world.policy.device
    kept = len(working._copies), len(native._twins)
    del world, said
    gc.collect()
    assert (len(working._copies) + 1, len(native._twins) + 1) == kept

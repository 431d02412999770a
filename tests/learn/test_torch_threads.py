# SPDX-License-Identifier: Apache-2.0
"""In the passes of learning torch's own operations take one thread, beside our pool; the optimiser, which is
all torch's, takes what it was given, and so does whoever comes after."""

import pytest
import torch

import small_world
from earnest.learn.advantage import AdvantageSettings
from earnest.learn.hearing import Hearing
from earnest.learn.optimise import PolicySettings, experience_of, prompts_of
from earnest.learn.rollout import sample
from earnest.learn.types import Rewards
from earnest.learn.update import Learner, Update, UpdateSettings
from earnest.ops.torch_threads import torch_on_one_thread

GIVEN = 3


@pytest.fixture(autouse=True)
def given():
    before = torch.get_num_threads()
    torch.set_num_threads(GIVEN)
    yield
    torch.set_num_threads(before)


def test_passes_take_one_thread_and_the_optimiser_what_it_was_given(monkeypatch):
    words = small_world.tokenizer()
    policy, reference = small_world.model(words), small_world.model(words, seed=1).requires_grad_(False)
    seen: dict[str, set[int]] = {}

    def note(what):
        return lambda *_: seen.setdefault(what, set()).add(torch.get_num_threads())

    begin = note("sampling")
    generate = policy.generate_ids
    monkeypatch.setattr(policy, "generate_ids", lambda *a, **k: (begin(), generate(*a, **k))[1])
    policy.model.norm.register_forward_hook(note("forward"))
    policy.model.norm.weight.register_hook(note("backward"))
    reference.model.norm.register_forward_hook(note("reference"))
    learner = Learner(policy, Hearing(policy), 1.0, reference=reference)
    prompts = prompts_of(small_world.cases(), words, policy)
    rollouts = sample(
        policy,
        words,
        learner.hearing,
        prompts,
        per_prompt=2,
        max_new_tokens=4,
        generator=torch.Generator().manual_seed(0),
    )
    rewards = Rewards(torch.linspace(-1, 1, len(rollouts)), torch.ones(len(rollouts), dtype=torch.bool))
    settings = PolicySettings(estimator="group", advantage=AdvantageSettings(whiten=False))
    experience, _ = experience_of(learner, rollouts, rewards, settings)
    update = Update(learner, UpdateSettings(), steps=1)
    update.policy_optimiser.register_step_pre_hook(note("optimiser"))
    update(experience, 0, torch.Generator())
    passes = ("sampling", "forward", "backward", "reference")
    assert seen == {what: {1} for what in passes} | {"optimiser": {GIVEN}}
    assert torch.get_num_threads() == GIVEN


def test_an_error_gives_the_threads_back():
    with pytest.raises(ZeroDivisionError), torch_on_one_thread():
        raise ZeroDivisionError
    assert torch.get_num_threads() == GIVEN

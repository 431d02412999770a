# SPDX-License-Identifier: Apache-2.0
"""Packing, hearing and sampling: one forward pass of many equals many of one, and the sampler's numbers are
the trainer's."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import small_world
from earnest import _native
from earnest.learn.hearing import Hearing
from earnest.learn.optimise import prompts_of
from earnest.learn.policy import by_tokens, pack, pack_masked, token_logprobs
from earnest.learn.rollout import sample, thoughts
from earnest.learn.update import UpdateSettings
from earnest.ops import num_threads, set_num_threads
from tiers import usable_tiers

WORDS = small_world.tokenizer()


@pytest.fixture
def model():
    return small_world.model(WORDS)


def test_packed_replies_score_as_each_alone(model):
    prompts = prompts_of(small_world.cases(), WORDS, model)
    replies = [torch.tensor(WORDS.encode("it is 3") * (1 + i)) for i in range(len(prompts))]
    hearing = Hearing(model)
    together, _ = token_logprobs(model, hearing, pack(prompts, replies), 0.7)
    alone = [
        token_logprobs(model, hearing, pack([p], [r]), 0.7)[0] for p, r in zip(prompts, replies, strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_targets_are_exactly_the_tokens_of_the_replies(model):
    prompts = prompts_of(small_world.cases(), WORDS, model)
    replies = [torch.tensor(WORDS.encode(text)) for text in ("3.", "It is 3.", "it")]
    packed = pack(prompts[:3], replies)
    assert torch.equal(packed.targets, torch.cat(replies))
    assert torch.equal(packed.batch.input_ids[packed.batch.loss_mask], packed.targets)
    assert packed.batch.input_ids[packed.last].tolist() == [int(reply[-1]) for reply in replies]
    assert int(packed.batch.loss_mask.sum()) == len(packed.targets)


def test_what_hearing_keeps_is_what_the_encoder_gives(model):
    clips = [chunk for case in small_world.cases() for clip in case.clips for chunk in clip]
    hearing = Hearing(model)
    first = hearing.frames(clips)
    again = hearing.frames(clips[::-1])[::-1]
    fresh = [model.encode([torch.from_numpy(clip.mel)])[0] for clip in clips]
    for kept, repeated, alone in zip(first, again, fresh, strict=True):
        assert torch.equal(kept, repeated)
        assert torch.equal(kept, alone)


def test_hearing_is_bounded_and_still_right_when_full(model):
    clips = [chunk for case in small_world.cases(6) for clip in case.clips for chunk in clip]
    small = Hearing(model, max_bytes=2000)
    for _ in range(2):
        for clip, frames in zip(clips, small.frames(clips), strict=True):
            assert torch.equal(frames, Hearing(model).frames([clip])[0])
    assert small._bytes <= 2000


@pytest.fixture
def threads():
    """Sets the threads of the kernels' pool and of torch's."""
    before = num_threads(), torch.get_num_threads()

    def both(count):
        set_num_threads(count)
        torch.set_num_threads(count)

    yield both
    set_num_threads(before[0])
    torch.set_num_threads(before[1])


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("tier", usable_tiers())
def test_the_samplers_log_probabilities_are_the_trainers_bit_for_bit(model, temperature, low, tier, threads):
    prompts = prompts_of(small_world.cases(), WORDS, model)
    seen = []
    _native.force_cpu_tier(tier)
    try:
        for count in (1, 2):
            threads(count)
            hearing = Hearing(model)
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                rollouts = sample(
                    model,
                    WORDS,
                    hearing,
                    prompts,
                    per_prompt=3,
                    max_new_tokens=12,
                    temperature=temperature,
                    generator=torch.Generator().manual_seed(1),
                )
                packed = pack([rollouts.prompts[int(i)] for i in rollouts.prompt_index], rollouts.tokens)
                seen += [torch.cat(rollouts.logp)]
                seen += [token_logprobs(model, hearing, packed, temperature)[0].detach()]
    finally:
        _native.force_cpu_tier("")
    assert all(torch.equal(seen[0], other) for other in seen[1:])


def test_sampling_again_with_the_same_seed_gives_the_same_tokens(model):
    prompts = prompts_of(small_world.cases(), WORDS, model)

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        rollouts = sample(
            model, WORDS, Hearing(model), prompts, per_prompt=2, max_new_tokens=8, generator=generator
        )
        return [tokens.tolist() for tokens in rollouts.tokens]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_a_thought_always_ends_with_one_closing_tag(model):
    prompts = prompts_of(small_world.cases(), WORDS, model)
    close = WORDS.special("</think>")
    for notes in thoughts(model, WORDS, Hearing(model), prompts, max_new_tokens=5):
        assert notes[-1] == close
        assert notes.count(close) == 1
        assert WORDS.special("<|EOT|>") not in notes


def test_a_shared_prompt_changes_no_number_and_no_gradient(model):
    prompts = prompts_of(small_world.cases(), WORDS, model)
    shared = [prompts[0], prompts[1], prompts[0], prompts[3], prompts[1], prompts[0]]
    replies = [torch.tensor(WORDS.encode("It is 3." * (1 + i % 3))) for i in range(len(shared))]
    whole = [replace(p, ids=(*p.ids, *r.tolist())) for p, r in zip(shared, replies, strict=True)]
    masks = [torch.arange(len(w.ids)) >= len(p.ids) for w, p in zip(whole, shared, strict=True)]
    hearing = Hearing(model)
    results = []
    for packed in (pack(shared, replies), pack_masked(whole, masks)):
        model.zero_grad()
        logp, entropy = token_logprobs(model, hearing, packed, 1.0)
        (logp.square().sum() + entropy.sum()).backward()
        results.append((logp.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert len(pack(shared, replies).batch.input_ids) < len(pack_masked(whole, masks).batch.input_ids)
    assert torch.equal(results[0][0], results[1][0])
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_groups_hold_at_most_their_tokens_and_lose_nothing(model):
    prompts = prompts_of(small_world.cases(), WORDS, model)
    asked = [prompts[i] for i in (0, 0, 1, 1, 2, 3, 0)]
    lengths = [5, 9, 3, 300, 1, 1, 8]
    limit = len(prompts[0].ids) + 20
    groups = list(by_tokens(asked, lengths, limit))
    assert [i for group in groups for i in group] == list(range(7))
    assert groups[0] == [0, 1]
    for group in groups:
        tokens = sum(lengths[i] for i in group) + sum(
            {id(asked[i]): len(asked[i].ids) for i in group}.values()
        )
        assert tokens <= limit or len(group) == 1


def test_learning_rates_rise_to_the_whole_and_fall_to_what_is_left():
    settings = UpdateSettings(warmup_steps=4, final_lr=0.2)
    rates = [settings.rate(step, 24) for step in range(24)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert settings.rate(24, 24) == pytest.approx(0.2)
    assert rates[14] == pytest.approx(0.6)
    assert {UpdateSettings(warmup_steps=0).rate(step, 9) for step in range(9)} == {1.0}

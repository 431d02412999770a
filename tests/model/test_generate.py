# SPDX-License-Identifier: Apache-2.0
"""Sampling: what the cache must not change, what the seed fixes, and how stops, prefixes and copies work."""

import pytest
import torch

from earnest.errors import InvalidInput
from earnest.model import Sampling
from model_cases import alone, extended, packed, toy_model
from tolerances import MODEL

PROMPTS = [(6, [40]), (9, []), (4, [21, 33]), (30, []), (3, [9]), (2, [250]), (12, [70]), (5, [])]
CLIPS = [len(frames) for _, frames in PROMPTS]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_uncached_gives(logp, model, batch, ids, temperature=1.0):
    """One forward pass over everything gives `ids` after the one prompt of `batch` these log-probabilities:
    as the trainer takes them, bit for bit; by the definition, to rounding."""
    at, targets = len(batch.input_ids) - 1, torch.tensor(ids)
    with torch.no_grad():
        hidden = model(extended(batch, ids))[at : at + len(ids)]
        assert torch.equal(model.logprob(hidden, targets, temperature)[0], logp)
        by_definition = (model.logits(hidden) / temperature).log_softmax(-1).gather(1, targets[:, None])
    torch.testing.assert_close(logp, by_definition[:, 0], rtol=0, atol=MODEL["log_softmax"])


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_cached_equals_uncached(temperature):
    model = toy_model()
    batch = packed(model, PROMPTS)
    made = model.generate_ids(
        batch, max_new_tokens=12, temperature=temperature, generator=generator(), stop_ids=range(0, 97, 7)
    )
    assert len({len(ids) for ids in made.ids}) > 2  # sequences ended at different steps
    for i, (ids, logp) in enumerate(zip(made.ids, made.logp, strict=True)):
        assert logp.dtype == torch.float32
        assert_uncached_gives(logp, model, alone(batch, i, CLIPS), ids, temperature)


def test_greedy_is_the_best_token_at_every_step():
    model = toy_model()
    batch = packed(model, PROMPTS)
    made = model.generate_ids(batch, max_new_tokens=8, temperature=0.0)
    for i, ids in enumerate(made.ids):
        one = alone(batch, i, CLIPS)
        with torch.no_grad():
            logits = model.logits(model(extended(one, ids)))
        assert logits[len(one.input_ids) - 1 : -1].argmax(-1).tolist() == ids


def test_a_batch_of_eight_equals_eight_batches_of_one():
    model = toy_model()
    batch = packed(model, PROMPTS)
    with torch.no_grad():
        hidden = model(batch).split([b - a for a, b in zip(*bounds(batch), strict=True)])
    together = model.generate_ids(batch, max_new_tokens=10, temperature=0.0, stop_ids=range(0, 97, 7))
    for i in range(8):
        one = alone(batch, i, CLIPS)
        with torch.no_grad():
            assert torch.equal(model(one), hidden[i])
        made = model.generate_ids(one, max_new_tokens=10, temperature=0.0, stop_ids=range(0, 97, 7))
        assert made.ids[0] == together.ids[i]
        assert made.stopped[0] == together.stopped[i]
        assert torch.equal(made.logp[0], together.logp[i])


def bounds(batch):
    edges = batch.cu_seqlens.tolist()
    return edges[:-1], edges[1:]


def test_the_seed_fixes_the_tokens_and_stopping_others_does_not_change_them():
    model = toy_model()
    batch = packed(model, PROMPTS)
    settings = {"max_new_tokens": 15, "temperature": 1.2}
    first = model.generate_ids(batch, generator=generator(5), **settings)
    again = model.generate_ids(batch, generator=generator(5), **settings)
    other = model.generate_ids(batch, generator=generator(6), **settings)
    assert first.ids == again.ids
    assert all(torch.equal(a, b) for a, b in zip(first.logp, again.logp, strict=True))
    assert first.ids != other.ids
    stops = sorted({ids[4] for ids in first.ids[:3]})
    cut = model.generate_ids(batch, generator=generator(5), stop_ids=stops, **settings)
    for whole, short, stopped in zip(first.ids, cut.ids, cut.stopped, strict=True):
        assert short == whole[: len(short)]
        assert stopped == (short[-1] in stops)
        assert not any(token in stops for token in short[:-1])
        assert stopped or len(short) == 15


@pytest.mark.parametrize("after_stop", [0, 1, 3])
def test_a_sequence_goes_on_for_the_tokens_asked_for_after_its_stop(after_stop):
    model = toy_model()
    batch = packed(model, PROMPTS)
    stops = set(range(0, 97, 7))
    freely = model.generate_ids(batch, max_new_tokens=20, generator=generator(3)).ids
    made = model.generate_ids(
        batch, max_new_tokens=20, generator=generator(3), stop_ids=stops, after_stop=after_stop
    )
    ends = [next((t for t, token in enumerate(ids) if token in stops), 20) + 1 + after_stop for ids in freely]
    assert made.ids == [ids[:end] for ids, end in zip(freely, ends, strict=True)]
    assert made.stopped == [end <= 20 for end in ends]
    assert len(set(ends)) > 2
    for i, ids in enumerate(made.ids):
        with torch.no_grad():
            want = model(extended(alone(batch, i, CLIPS), ids[:-1]))[-1]
        assert torch.equal(made.drawn_from[i], want)


def test_copies_of_a_prompt_share_it_and_differ():
    model = toy_model()
    batch = packed(model, PROMPTS[:3])
    made = model.generate_ids(batch, max_new_tokens=9, generator=generator(), samples_per_prompt=4)
    assert len(made.ids) == 12
    for p in range(3):
        group = made.ids[4 * p : 4 * p + 4]
        assert len({tuple(ids) for ids in group}) > 1
        for j, ids in enumerate(group):
            assert_uncached_gives(made.logp[4 * p + j], model, alone(batch, p, CLIPS), ids)


def test_a_forced_prefix_continues_the_prompt_and_is_not_returned():
    model = toy_model()
    batch = packed(model, PROMPTS)
    made = model.generate_ids(batch, max_new_tokens=6, temperature=0.0, forced_prefix=[11, 12])
    for i, ids in enumerate(made.ids):
        longer = extended(alone(batch, i, CLIPS), [11, 12])
        assert model.generate_ids(longer, max_new_tokens=6, temperature=0.0).ids[0] == ids


def test_streaming_yields_the_same_tokens_one_by_one():
    model = toy_model()
    one = packed(model, [(6, [40])])
    settings = {"max_new_tokens": 20, "stop_ids": range(0, 97, 9)}
    made = model.generate_ids(one, generator=generator(1), **settings)
    stream = model.stream_ids(one, generator=generator(1), **settings)
    assert next(stream)[0] == made.ids[0][0]
    assert [token for token, _ in stream] == made.ids[0][1:]
    with pytest.raises(InvalidInput, match="one sequence"):
        next(model.stream_ids(packed(model, PROMPTS), max_new_tokens=2))


def test_draws_follow_the_distribution():
    logits = torch.randn(1, 7, generator=generator(2)) * 2
    rows = logits.expand(40_000, 7)
    uniform = torch.rand(40_000, generator=generator(3), dtype=torch.float64)
    ids = Sampling(temperature=0.8).draw(rows, uniform)
    want = (logits[0] / 0.8).softmax(-1)
    shares = torch.bincount(ids, minlength=7) / 40_000
    assert float((shares - want).abs().max()) < 4 * 0.5 / 200  # four standard errors at most


def test_truncation_keeps_the_likely():
    logits = torch.tensor([[0.5, 0.2, 0.2, 0.06, 0.04]]).log().expand(5000, 5)
    uniform = torch.rand(5000, generator=generator(), dtype=torch.float64)
    for settings, kept in (
        ({"top_k": 1}, {0}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_p": 0.4}, {0}),
        ({"top_p": 0.95}, {0, 1, 2, 3}),
        ({"top_k": 4, "top_p": 0.6, "suppress_ids": (0,)}, {1, 2}),
        ({"suppress_ids": (0, 1)}, {2, 3, 4}),
    ):
        ids = Sampling(**settings).draw(logits, uniform)
        assert set(ids.tolist()) == kept, settings
    assert Sampling(temperature=0.0, suppress_ids=(0, 1)).draw(logits[:1], uniform[:1]).tolist() == [2]


def test_a_token_of_probability_zero_is_never_drawn():
    logits = torch.tensor([[-float("inf"), 0.0, -float("inf"), 1.0, -float("inf")]]).expand(4, 5)
    edge = torch.tensor([0.0, 1 - 2**-53, 0.25, 0.9], dtype=torch.float64)
    assert Sampling().draw(logits, edge).tolist() == [1, 3, 1, 3]


def test_generation_ends_where_positions_end():
    model = toy_model(max_position_embeddings=20)
    made = model.generate_ids(packed(model, [(15, []), (6, [])]), max_new_tokens=50, generator=generator())
    assert [len(ids) for ids in made.ids] == [6, 15]  # the last token needs no position of its own
    assert made.stopped == [False, False]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"samples_per_prompt": 0}, "samples_per_prompt"),
        ({"after_stop": -1}, "after_stop"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, says):
    model = toy_model()
    with pytest.raises(InvalidInput, match=says):
        model.generate_ids(packed(model, [(5, [])]), **({"max_new_tokens": 3} | settings))


def test_weights_that_are_not_numbers_are_noticed():
    model = toy_model()
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(InvalidInput, match="finite"):
        model.generate_ids(packed(model, [(5, [])]), max_new_tokens=3)


def test_prompts_that_are_empty_or_too_long_are_refused():
    model = toy_model(max_position_embeddings=16)
    with pytest.raises(InvalidInput, match="prompts of 1 to 15 tokens"):
        model.generate_ids(packed(model, [(16, [])]), max_new_tokens=3)
    with pytest.raises(InvalidInput, match="prompts of 1 to 15 tokens"):
        model.generate_ids(packed(model, [(3, []), (0, [])]), max_new_tokens=3)

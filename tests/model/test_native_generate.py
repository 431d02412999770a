# SPDX-License-Identifier: Apache-2.0
"""The engine as the sampler of a Python model: tokens, log-probabilities and states of the Python loop."""

import contextlib
import copy
import gc

import pytest
import torch

from earnest.errors import InvalidInput
from earnest.model import native
from earnest.model.native import Twin, precision_of
from model_cases import packed, toy_model

PROMPTS = [(6, [40]), (9, []), (4, [21, 33]), (30, []), (3, [9])]
KINDS = {
    "float32": (torch.float32, contextlib.nullcontext),
    "bfloat16": (torch.bfloat16, contextlib.nullcontext),
    "mixed": (torch.float32, lambda: torch.autocast("cpu", torch.bfloat16)),
}


def both(monkeypatch, model, kind=contextlib.nullcontext, **how):
    """What the engine and what the Python loop generate, with the same seed."""
    found = []
    for python in (False, True):
        with monkeypatch.context() as patch, kind(), torch.no_grad():
            if python:
                patch.setattr(native, "precision_of", lambda model: None)
            generator = torch.Generator().manual_seed(3)
            found.append(model.generate_ids(packed(model, PROMPTS), generator=generator, **how))
    return found


def assert_same(one, other):
    assert one.ids == other.ids
    assert one.stopped == other.stopped
    assert all(torch.equal(a, b) for a, b in zip(one.logp, other.logp, strict=True))
    assert torch.equal(one.drawn_from, other.drawn_from)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_the_engine_says_what_the_python_loop_says(monkeypatch, kind, temperature):
    dtype, context = KINDS[kind]
    model = toy_model().to(dtype)
    how = {"max_new_tokens": 14, "temperature": temperature, "samples_per_prompt": 3}
    ours, theirs = both(monkeypatch, model, context, stop_ids=range(0, 97, 7), **how)
    assert len({len(ids) for ids in ours.ids}) > 1  # sequences ended at different steps
    assert_same(ours, theirs)


def test_it_goes_on_after_a_stop_and_ends_where_the_context_does(monkeypatch):
    model = toy_model(max_position_embeddings=70)
    assert_same(*both(monkeypatch, model, max_new_tokens=60, stop_ids=range(0, 97, 5), after_stop=2))
    ours, theirs = both(monkeypatch, model, max_new_tokens=60)
    assert_same(ours, theirs)
    assert not any(ours.stopped)
    assert len({len(ids) for ids in ours.ids}) > 1


def test_prefixes_suppressed_tokens_and_cuts_are_the_same(monkeypatch):
    model = toy_model()
    how = {"max_new_tokens": 10, "forced_prefix": [5, 8]}
    assert_same(*both(monkeypatch, model, suppress_ids=range(40), **how))
    assert_same(*both(monkeypatch, model, top_k=3, **how))
    assert_same(*both(monkeypatch, model, top_p=0.8, **how))


def test_updates_are_seen(monkeypatch):
    model = toy_model()
    first, _ = both(monkeypatch, model, max_new_tokens=8)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.3)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    optimiser.step()
    ours, theirs = both(monkeypatch, model, max_new_tokens=8)
    assert_same(ours, theirs)
    assert ours.ids != first.ids
    model.load_state_dict(toy_model().state_dict())
    assert both(monkeypatch, model, max_new_tokens=8)[0].ids == first.ids
    model.model.layers[1].mlp.down_proj.weight.data *= 3  # which torch does not count
    assert_same(*both(monkeypatch, model, max_new_tokens=8))
    assert_same(*both(monkeypatch, model.bfloat16(), max_new_tokens=8))  # its tensors lie elsewhere now


def test_a_twin_is_kept_while_its_model_lives_and_is_not_copied():
    model = toy_model()
    twin = Twin.of(model, "float32")
    assert Twin.of(model, "float32") is twin
    assert Twin.of(model, "mixed") is not twin
    assert Twin.of(copy.deepcopy(model), "mixed") is not Twin.of(model, "mixed")
    before = len(native._twins)
    del model
    gc.collect()
    assert len(native._twins) < before


def test_where_the_engine_cannot_compute_what_torch_would_the_loop_runs():
    model = toy_model()
    assert precision_of(model) == "float32"
    assert precision_of(copy.deepcopy(model).double()) is None
    with torch.autocast("cpu", torch.float16):
        assert precision_of(model) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert precision_of(model) == "mixed"
        assert precision_of(copy.deepcopy(model).bfloat16()) == "bfloat16"


def test_weights_that_are_not_numbers_are_refused_by_the_engine_too():
    model = toy_model()
    with torch.no_grad():
        model.lm_head.weight[3, 5] = float("nan")
    with pytest.raises(InvalidInput, match=r"^\[generate\] logits: expected finite numbers"):
        model.generate_ids(packed(model, PROMPTS), max_new_tokens=3)

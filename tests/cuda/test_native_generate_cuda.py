# SPDX-License-Identifier: Apache-2.0
"""The engine as the sampler of a model whose tensors lie on a GPU: it reads them there, and says what the
Python loop says up to rounding."""

import json

import pytest
import torch

from earnest import _native
from earnest.model import native
from earnest.model.native import Twin
from model_cases import packed, toy_model

HEADS = {
    "hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "n_audio_state": 64,
    "n_audio_head": 1,
}  # fmt: skip
PROMPTS = [(6, []), (9, []), (30, [])]


@pytest.fixture
def model(device):
    return toy_model(**HEADS).to(torch.bfloat16).to(device)


def generated(model, **how):
    generator = torch.Generator().manual_seed(3)
    how = {"max_new_tokens": 9, "samples_per_prompt": 2} | how
    return model.generate_ids(packed(model, PROMPTS), generator=generator, **how)


def test_it_says_what_the_python_loop_says_up_to_rounding(model, monkeypatch) -> None:
    assert native.precision_of(model) == "bfloat16"
    assert not native.gives_the_models_bits(model)
    ours = generated(model, stop_ids=range(0, 97, 7))
    with monkeypatch.context() as patch:
        patch.setattr(native, "precision_of", lambda model: None)
        theirs = generated(model, stop_ids=range(0, 97, 7))
    compared = 0
    for a, b, of_a, of_b in zip(ours.ids, theirs.ids, ours.logp, theirs.logp, strict=True):
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        torch.testing.assert_close(of_a[:same], of_b[:same], rtol=0, atol=0.1)
        compared += same
    assert compared >= 0.7 * sum(map(len, theirs.ids))  # where scores nearly tie, rounding draws another
    assert ours.drawn_from.device == model.lm_head.weight.device


def test_tensors_are_read_where_they_lie_and_updates_are_seen(model) -> None:
    first = generated(model)
    twin = Twin.of(model, "bfloat16")
    copied = [x for x in model.state_dict().values() if x.ndim == 3]  # taps lie otherwise there
    assert twin._native.weight_bytes == sum(2 * x.numel() for x in copied)
    for change in (
        lambda: model.lm_head.weight.data.mul_(-1),  # which torch does not count
        lambda: torch.optim.SGD(model.parameters(), lr=1.0).step(),
        lambda: model.load_state_dict(toy_model(7, **HEADS).to(torch.bfloat16).state_dict()),
    ):
        for weight in model.parameters():
            weight.grad = torch.full_like(weight, 0.1)
        change()
        seen = generated(model)
        assert Twin.of(model, "bfloat16") is twin
        native._twins.clear()
        fresh = generated(model)
        native._twins[model] = twin
        assert seen.ids == fresh.ids
        assert all(torch.equal(a, b) for a, b in zip(seen.logp, fresh.logp, strict=True))
        assert seen.ids != first.ids
        first = seen


def test_tensors_that_cannot_be_read_in_place_are_refused(model) -> None:
    config, tensors = json.dumps(model.config.to_dict()), model.state_dict()
    name = "model.layers.0.mlp.up_proj.weight"

    weight = tensors[name]
    strided = torch.empty(weight.shape[::-1], dtype=weight.dtype, device=weight.device).T
    for wrong, sentence in (
        (strided, "a contiguous tensor, which is read where it lies, got a strided one"),
        (weight.to(torch.int16), "float32, bfloat16 or float16, got another dtype"),
    ):
        with pytest.raises(ValueError, match=rf"^\[engine\] {name}: expected {sentence}$"):
            _native.engine.from_memory(config, tensors | {name: wrong}, "bfloat16")


def test_tensors_on_another_device_are_refused(gpu) -> None:
    model = toy_model(**HEADS).to(torch.bfloat16).to(gpu)
    tensors = model.state_dict()
    tensors["model.norm.weight"] = tensors["model.norm.weight"].cpu()
    with pytest.raises(
        ValueError, match=r"\[engine\] model\.norm\.weight: expected a tensor on cuda:0 as the"
    ):
        _native.engine.from_memory(json.dumps(model.config.to_dict()), tensors, "bfloat16")


def test_an_update_on_another_stream_is_waited_for(gpu) -> None:
    model = toy_model(**HEADS).to(torch.bfloat16).to(gpu)
    generated(model)
    stream, busy = torch.cuda.Stream(), torch.randn(4096, 4096, device=gpu)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(50):
            busy = busy @ busy / 4096
        model.lm_head.weight.mul_(-1)
        seen = generated(model)
    torch.cuda.synchronize()
    assert seen.ids == generated(model).ids


@pytest.mark.parametrize(
    "sizes", [{}, HEADS | {"n_audio_head": 2}, HEADS | {"num_attention_heads": 4, "num_key_value_heads": 2}]
)
def test_other_heads_and_other_types_are_left_to_the_loop(device, sizes) -> None:
    assert native.precision_of(toy_model(**sizes).to(torch.bfloat16).to(device)) is None
    assert native.precision_of(toy_model(**HEADS).to(device)) is None

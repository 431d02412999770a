# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: bit-exact round trips, one sentence per defect, and an old model that survives a failed
save."""

import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from earnest.errors import InvalidInput
from earnest.model import AudioLM, ValueModel, weights
from model_cases import packed, toy_model


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", [10**9, 400_000, 1])
def test_round_trip_is_exact(tmp_path, tied, shard):
    model = toy_model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "m", max_shard_bytes=shard)
    files = sorted(p.name for p in (tmp_path / "m").glob("*.safetensors"))
    sizes = [os.path.getsize(tmp_path / "m" / name) for name in files]
    if shard == 10**9:
        assert files == ["model.safetensors"]
    else:
        assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
        assert shard == 1 or max(sizes) < 400_000 + 10_000
        index = json.loads((tmp_path / "m" / weights.INDEX).read_text())
        assert list(index["weight_map"]) == list(model.state_dict())
    again = AudioLM.from_pretrained(tmp_path / "m")
    assert same(again, model)
    assert again.config == model.config
    batch = packed(model, [(6, [40])])
    assert torch.equal(again(batch), model(batch))


def test_bfloat16_is_loaded_as_asked(tmp_path):
    model = toy_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "m")
    assert same(AudioLM.from_pretrained(tmp_path / "m", dtype=torch.bfloat16), model)
    wide = AudioLM.from_pretrained(tmp_path / "m")
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert all(torch.equal(a.float(), b) for a, b in zip(model.parameters(), wide.parameters(), strict=True))
    logits = model.logits(model(packed(model, [(5, [40])])))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, wide.logits(wide(packed(wide, [(5, [40])]))), rtol=0.1, atol=0.5)


def edit(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


NAME = "model.layers.1.mlp.up_proj.weight"
DEFECTS = {
    "missing": (lambda s: s.pop(NAME), rf"expected tensor {NAME}, got none$"),
    "several missing": (
        lambda s: [s.pop(n) for n in list(s) if "layers.2" in n],
        r"got none \(and 11 more\)",
    ),
    "extra": (
        lambda s: s.update({"encoder.extra": torch.zeros(2)}),
        r"expected only tensors of the model, got encoder.extra$",
    ),
    "shape": (
        lambda s: s.update({NAME: torch.zeros(80, 47)}),
        rf"{NAME}: expected shape \[80, 48\], got \[80, 47\]",
    ),
    "transposed": (lambda s: s.update({NAME: torch.zeros(48, 80)}), rf"{NAME}: expected shape"),
    "integer": (
        lambda s: s.update({NAME: torch.zeros(80, 48, dtype=torch.int32)}),
        rf"{NAME}: expected float32.*got I32",
    ),
    "float64": (
        lambda s: s.update({NAME: torch.zeros(80, 48).double()}),
        rf"{NAME}: expected float32.*got F64",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_tensor_that_does_not_fit_is_one_sentence(tmp_path, defect):
    change, says = DEFECTS[defect]
    toy_model().save_pretrained(tmp_path / "m")
    edit(tmp_path / "m", change)
    with pytest.raises(InvalidInput, match=says) as caught:
        AudioLM.from_pretrained(tmp_path / "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 7, 8, 200, 0.5, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    toy_model().save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(InvalidInput, match="expected a whole safetensors file") as caught:
        AudioLM.from_pretrained(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_a_tied_model_whose_copies_differ_is_refused(tmp_path):
    toy_model(tie_word_embeddings=True).save_pretrained(tmp_path / "m")
    edit(tmp_path / "m", lambda s: s.pop("lm_head.weight"))
    AudioLM.from_pretrained(tmp_path / "m")
    edit(tmp_path / "m", lambda s: s.update({"lm_head.weight": s["model.embed_tokens.weight"] + 1}))
    with pytest.raises(InvalidInput, match="tied"):
        AudioLM.from_pretrained(tmp_path / "m")


def index_says(folder, change):
    path = folder / weights.INDEX
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda i: i["weight_map"].update({NAME: "../model.safetensors"}), "without folders"),
        (lambda i: i["weight_map"].update({NAME: "/etc/passwd"}), "end in .safetensors"),
        (lambda i: i["weight_map"].update({NAME: "weights.bin"}), "end in .safetensors"),
        (lambda i: i["weight_map"].update({NAME: 7}), "end in .safetensors"),
        (lambda i: i["weight_map"].update({NAME: "model-00009.safetensors"}), "expected a file model-00009"),
        (lambda i: i["weight_map"].update({NAME: "model-00001-of-00009.safetensors"}), "expected"),
        (
            lambda i: i["weight_map"].update({"model.ghost": i["weight_map"][NAME]}),
            "tensor model.ghost, as the index says",
        ),
        (lambda i: i.pop("weight_map"), "weight_map"),
        (lambda i: i.update({"weight_map": [1]}), "weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, change, says):
    toy_model().save_pretrained(tmp_path / "m", max_shard_bytes=30_000)
    index_says(tmp_path / "m", change)
    with pytest.raises(InvalidInput, match=says):
        AudioLM.from_pretrained(tmp_path / "m")


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    toy_model().save_pretrained(tmp_path / "m", max_shard_bytes=30_000)
    first = sorted((tmp_path / "m").glob("*.safetensors"))[0]
    state = load_file(first)
    save_file(state | {NAME: torch.zeros(80, 48)}, first)
    with pytest.raises(InvalidInput, match="one file only"):
        AudioLM.from_pretrained(tmp_path / "m")


def test_what_is_no_model_folder_is_refused(tmp_path):
    for path, says in (
        (tmp_path / "none", "a model folder or a hub id"),
        (str(tmp_path / "none"), "a model folder or a hub id"),
        ("./a/b", "a model folder or a hub id"),
        ("one/two/three", "a model folder or a hub id"),
        (tmp_path, "config.json"),
    ):
        with pytest.raises(InvalidInput, match=says):
            AudioLM.from_pretrained(path)
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(InvalidInput, match="readable JSON"):
        AudioLM.from_pretrained(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput, match="a model folder"):
        AudioLM.from_pretrained(tmp_path / "file")


def test_full_duplex_siblings_are_refused(tmp_path):
    toy_model().save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text()) | {"model_type": "step_audio_2_full_duplex"}
    path.write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match="step_audio_2_full_duplex"):
        AudioLM.from_pretrained(tmp_path / "m")


def test_a_save_that_fails_leaves_the_old_model_and_no_litter(tmp_path, monkeypatch):
    old = toy_model(seed=1)
    old.save_pretrained(tmp_path / "m")

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        toy_model(seed=2).save_pretrained(tmp_path / "m")
    monkeypatch.undo()
    assert same(AudioLM.from_pretrained(tmp_path / "m"), old)
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("swap", [True, False])
def test_saving_again_replaces_the_model_and_keeps_other_files(tmp_path, monkeypatch, swap):
    if not swap:
        monkeypatch.setattr(weights.ctypes, "CDLL", lambda *_args, **_kwargs: object())
    toy_model(seed=1).save_pretrained(tmp_path / "m", max_shard_bytes=30_000)
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    new = toy_model(seed=2)
    new.save_pretrained(tmp_path / "m")
    assert sorted(os.listdir(tmp_path / "m")) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert same(AudioLM.from_pretrained(tmp_path / "m"), new)
    assert os.listdir(tmp_path) == ["m"]


def test_a_folder_with_something_else_in_it_is_not_overwritten(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("x")
    with pytest.raises(InvalidInput, match="a new or empty folder"):
        toy_model().save_pretrained(tmp_path / "m")
    assert os.listdir(tmp_path / "m") == ["thesis.txt"]


def test_a_hub_id_without_the_hub_package_says_what_to_install(monkeypatch):
    import builtins

    from earnest.errors import MissingExtra

    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtra, match=re.escape("earnest[hub]")):
        AudioLM.from_pretrained("someone/some-model")


def test_values_start_at_zero_and_the_critic_has_weights_of_its_own(tmp_path):
    policy = toy_model()
    critic = ValueModel(policy)
    batch = packed(policy, [(6, [40]), (9, []), (4, [21, 33])])
    values = critic(batch)
    assert values.shape == batch.input_ids.shape
    assert values.dtype == torch.float32
    assert not values.any()
    with torch.no_grad():
        critic.head.weight.normal_()
        critic.adapter.linear1.weight.mul_(1.5)
    values = critic(batch)
    assert torch.equal(values, critic(batch, policy.encode(batch.mel)))
    values.square().sum().backward()
    assert all(p.grad is None for p in policy.parameters())
    assert all(p.grad is not None and p.grad.any() for p in critic.parameters())
    assert not any("encoder" in name for name, _ in critic.named_parameters())
    critic.save(tmp_path / "critic")
    other = ValueModel(toy_model(seed=9))
    other.load(tmp_path / "critic")
    assert same(other, critic)

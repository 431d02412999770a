# SPDX-License-Identifier: Apache-2.0
"""The engine on int8 and int4 weights: saved and quantised on load are the same bits, results are those of
the dequantised weights, other files are refused by name, and a real model loses little."""

import json
import math

import pytest
import torch
import vocabularies
from engine_cases import DTYPES, Beside
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from earnest import _native, cli
from earnest.model import AudioLM
from earnest.model.join import join
from earnest.ops.quantized import quantize
from model_cases import toy_model
from reference import quantized as reference
from tolerances import QUANTIZED

CODES = ("int8", "int4")
LAYER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Loaded(Beside):
    def __init__(self, folder, name, quantization="none"):
        config = json.loads((folder / "config.json").read_text())["text_config"]
        self.dtype, self.width, self.vocabulary = DTYPES[name], config["hidden_size"], config["vocab_size"]
        self.native = _native.engine.load(str(folder), name, quantization)

    def run(self, ids):
        hidden = self.forward([(self.native.pool(len(ids)).allocate(len(ids)), ids, None, len(ids))])
        return hidden, self.logits(hidden)


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def folder(request, tmp_path):
    model = toy_model(tie_word_embeddings=request.param)
    model.save_pretrained(tmp_path / "plain", max_shard_bytes=40_000)
    (tmp_path / "plain" / "tokenizer.json").write_text("{}")
    return tmp_path / "plain"


def codes_of(name, codes, tied):
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    if name == head:
        return "int8"
    *_, part, kind = name.split(".")
    return codes if part in LAYER and kind == "weight" else None


@pytest.mark.parametrize("codes", CODES)
def test_saved_and_quantised_on_load_are_the_same_bits(folder, codes, capsys):
    out = folder.parent / codes
    assert cli.main(["quantize", str(folder), str(out), "--weights", codes]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    ids = torch.randint(0, 97, (29,))
    for name in DTYPES:
        saved, fresh = Loaded(out, name), Loaded(folder, name, codes)
        for ours, theirs in zip(saved.run(ids), fresh.run(ids), strict=True):
            assert torch.equal(ours, theirs)
        again = Loaded(out, name, codes)  # asking for what the file has is no contradiction
        assert torch.equal(again.run(ids)[1], saved.run(ids)[1])
        mel = torch.randn(20, 61)
        assert torch.equal(saved.hear(mel), Loaded(folder, name).hear(mel))
        assert saved.native.weight_bytes == fresh.native.weight_bytes


@pytest.mark.parametrize("codes", CODES)
def test_results_are_those_of_the_dequantised_weights(folder, codes):
    _native.engine.quantize(str(folder), str(folder.parent / "q"), codes)
    model = AudioLM.from_pretrained(folder, dtype=torch.float32)
    tied = model.config.text_config.tie_word_embeddings
    saved = load_file(folder.parent / "q" / "model.safetensors")
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            kind = codes_of(name, codes, tied)
            if kind is None:
                continue
            packed = saved[name]
            assert torch.equal(packed.flatten(), quantize(weight, kind).packed)
            weight.copy_(reference.weight(kind, packed.flatten(), *weight.shape))
    ids = torch.randint(0, 97, (29,))
    for name, dtype in DTYPES.items():
        plain = model.double()
        bounds = torch.tensor([0, 29], dtype=torch.int32)
        with torch.no_grad():
            hidden = plain.to(torch.float32)
            want = hidden.logits(hidden.model(hidden.model.embed_tokens(ids), torch.arange(29), bounds))
        engine = Loaded(folder.parent / "q", name)
        hidden, got = engine.run(ids)
        assert (got - want).abs().max() <= QUANTIZED["logits"][name] * want.abs().max()
        logp, entropy = engine.logprob(hidden, ids, 0.7)
        log_softmax = torch.log_softmax(got.double() / 0.7, -1)
        assert torch.allclose(logp.double(), log_softmax.gather(1, ids[:, None])[:, 0], atol=1e-5)
        assert torch.allclose(entropy.double(), -(log_softmax.exp() * log_softmax).sum(-1), atol=1e-5)
        assert dtype == hidden.dtype


@pytest.mark.parametrize("codes", CODES)
def test_pieces_and_neighbours_change_no_bit(folder, codes):
    engine = Loaded(folder, "bfloat16", codes)
    ids, pool = torch.randint(0, 97, (60,)), engine.native.pool(400)
    whole = engine.run(ids)[0]
    cache, other = pool.allocate(60), pool.allocate(60)
    pieces = [engine.forward([(cache, ids[:7], None, 7)])]
    beside = [(cache, ids[7:41], None, 34), (other, ids[:13].flip(0), None, 1)]
    pieces.append(engine.forward(beside)[:34])
    pieces += [engine.forward([(cache, ids[i : i + 1], None, 1)]) for i in range(41, 60)]
    assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("codes", CODES)
def test_a_trainers_step_is_quantised_again(codes):
    model = toy_model()
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    text = json.dumps(model.config.to_dict())
    engine = Beside(model, _native.engine.from_memory(text, tensors, "float32", codes))
    ids, pool = torch.arange(20), engine.native.pool(60)
    before = engine.forward([(pool.allocate(20), ids, None, 20)])
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.25)
    engine.native.refresh()
    after = engine.forward([(pool.allocate(20), ids, None, 20)])
    other = Beside(model, _native.engine.from_memory(text, tensors, "float32", codes))
    assert not torch.equal(before, after)
    assert torch.equal(after, other.forward([(pool.allocate(20), ids, None, 20)]))
    with pytest.raises(RuntimeError, match="float32 or bfloat16 with quantised weights, got mixed"):
        _native.engine.from_memory(text, tensors, "mixed", codes)


def rewritten(folder, change):
    """The tensors of a saved folder, changed."""
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, path)


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(DOWN), f"1 missing ({DOWN})"),
        (lambda t: t.update({DOWN: t[DOWN][:-1].clone()}), f"{DOWN} [2, "),
        (lambda t: t.update({DOWN: t[DOWN][:, :-1].clone()}), f"{DOWN} [3, "),
        (lambda t: t.update({DOWN: t[DOWN].float()}), f"{DOWN} of type F32 instead of U8"),
        (lambda t: t.update({DOWN: torch.zeros(48, 80)}), f"{DOWN} [48, 80] instead of [3, "),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(48, dtype=torch.uint8)}),
            "model.norm.weight of type U8 instead of numbers",
        ),
    ],
)
def test_a_file_with_other_codes_is_refused_by_name(folder, change, says):
    out = folder.parent / "q"
    _native.engine.quantize(str(folder), str(out), "int8")
    rewritten(out, change)
    with pytest.raises(ValueError, match="tensors: expected those of the config") as caught:
        _native.engine.load(str(out), "float32")
    assert says in str(caught.value)


def test_what_contradicts_the_file_is_refused(folder):
    out = folder.parent / "q"
    _native.engine.quantize(str(folder), str(out), "int8")
    with pytest.raises(ValueError, match="quantization: expected int8 as it is saved, got int4"):
        _native.engine.load(str(out), "float32", "int4")
    with pytest.raises(ValueError, match="out: expected a folder that is not there yet"):
        _native.engine.quantize(str(folder), str(out), "int8")
    with pytest.raises(ValueError, match="expected one that is not quantised yet, got int8"):
        _native.engine.quantize(str(out), str(out) + "2", "int8")
    assert not (folder.parent / "q2").exists()
    assert not list(folder.parent.glob("*.part"))
    raw = json.loads((out / "config.json").read_text())
    for wrong in ({"weights": "int3"}, {"version": 2}, {"quant_method": "gptq"}):
        changed = raw | {"quantization_config": raw["quantization_config"] | wrong}
        with pytest.raises(ValueError, match="quantization_config"):
            _native.engine.config_fields(json.dumps(changed))
    (out / "config.json").write_text(json.dumps(raw | {"quantization_config": None}))
    with pytest.raises(ValueError, match="of another shape or type"):
        _native.engine.load(str(out), "float32")


@pytest.fixture(scope="module")
def smollm(shared_data, tmp_path_factory):
    """SmolLM2-135M in bfloat16 with Whisper base, and a text in windows of 256 tokens."""
    pytest.importorskip("gguf")
    tokenizers = pytest.importorskip("tokenizers")
    models = shared_data / "models"
    parts = (models / "whisper-base-encoder", models / "smollm2-135m-instruct")
    path = tmp_path_factory.mktemp("smollm") / "plain"
    join(*parts, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0)).save_pretrained(path)
    definition = vocabularies.of_gguf(next(parts[1].glob("*.gguf")))
    text = (shared_data / "README.md").read_text() + (
        shared_data / "step_benchmarks" / "README.md"
    ).read_text()
    ids = torch.tensor(tokenizers.Tokenizer.from_str(definition).encode(text, add_special_tokens=False).ids)
    return path, ids[: len(ids) // 256 * 256].view(-1, 256)


def nll(folder, windows, quantization):
    """Of each token that follows another."""
    engine = Loaded(folder, "bfloat16", quantization)
    pool, parts = engine.native.pool(256), []
    for window in windows:
        hidden = engine.forward([(pool.allocate(256), window, None, 256)])
        scores = torch.log_softmax(engine.logits(hidden[:-1]), -1)
        parts.append(-scores.gather(1, window[1:, None]))
    return torch.cat(parts).double().mean().item()


def test_a_real_model_loses_little(smollm):
    path, windows = smollm
    plain = nll(path, windows, "none")
    for codes in CODES:
        ratio = math.exp(nll(path, windows, codes) - plain)
        assert ratio <= QUANTIZED["perplexity"][codes], (codes, ratio)

# SPDX-License-Identifier: Apache-2.0
"""The engine's cases at tiny sizes, with random weights and without the peers' packages; and the forms that
peers read."""

import bench_cases
import numpy as np
import pytest
import torch
from bench_cases import FakeLimits, settings

from earnest import _native
from earnest.bench import engine, engine_dialogue, engine_hearing, engine_rollouts, engine_weights, qwen2
from earnest.bench.case import OURS, Target, share_off
from earnest.bench.engine_weights import Decoder
from earnest.bench.harness import is_met, measure, most_bytes
from earnest.bench.whisper_peers import Encoder
from earnest.dialogue import Tokenizer
from earnest.model import AudioLM, AudioLMConfig

TINY = Decoder(
    "tiny",
    {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
    },
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EARNEST_BENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def talking(tmp_path):
    """A tiny model that hears, with words."""
    tokenizer = Tokenizer.train(["a few words to read and to say"], 400)
    config = AudioLMConfig.preset("tiny", vocab_size=len(tokenizer))
    model = AudioLM(config, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "talking", tokenizer=tokenizer)
    return lambda: tmp_path / "talking"


def ours_of(record: dict) -> dict:
    assert record["wrong"] == {}
    return next(r for r in record["results"] if r["role"] == OURS)


def refused(case, spoil) -> bool:
    """Whether ours is refused when its result is spoiled."""
    problem = case.problem(np.random.default_rng(0))
    ours = next(i for i in problem.implementations if i.role == OURS)
    bad = type(ours)(**{**vars(ours), "outputs": lambda result: spoil(ours.outputs(result))})
    problem = type(problem)(**{**vars(problem), "implementations": [bad]})
    record = measure(type(case)(**{**vars(case), "problem": lambda rng: problem}), settings(), FakeLimits())
    return "off by" in record["wrong"].get("earnest", "")


def turned(outputs):
    """Off by more than int4 may be."""
    return [-1.5 * outputs[0], *outputs[1:]]


@pytest.mark.parametrize("weights", engine.WEIGHTS)
@pytest.mark.parametrize("sequences", [1, 3])
def test_decoding(weights: str, sequences: int):
    case = engine.decode(TINY, weights, 1, Target(), sequences=sequences, prompt=7, tokens=5)
    ours = ours_of(measure(case, settings(), FakeLimits()))
    assert ours["error"] > 0
    assert refused(case, turned)


@pytest.mark.parametrize("weights", engine.WEIGHTS)
def test_prompts(weights: str):
    case = engine.prefill(TINY, weights, 19, 1)
    assert ours_of(measure(case, settings(), FakeLimits()))["error"] > 0
    assert refused(case, turned)


def test_transformers_ends_with_the_same_logits():
    pytest.importorskip("transformers", reason="a peer of the extra bench")
    case = engine.batched(TINY, "bf16", 3, prompt=7, tokens=5)
    record = measure(case, settings(peers=True), FakeLimits())
    peer = next(r for r in record["results"] if r["name"] == "transformers")
    assert 0 < peer["error"] < 0.1
    prompts = engine.prefill(TINY, "bf16", 19, 1).problem(np.random.default_rng(1))
    theirs = next(i for i in prompts.implementations if i.name == "transformers").build()
    found, again = (theirs(*prompts.inputs[0]).float() for _ in range(2))
    assert torch.equal(found, again)  # a second prompt begins anew
    assert prompts.error([found], prompts.reference(*prompts.inputs[0])) < 0.1


def test_bytes_are_those_that_the_engine_reads():
    """Within the scales and norms: what is counted is what the loaded weights hold."""
    wide = Decoder("wide", {**TINY.sizes, "hidden_size": 512, "intermediate_size": 1024, "vocab_size": 2048})
    folder = str(wide.checkpoint())
    hearing = [
        _native.engine.load(folder, "bfloat16", codes).weight_bytes - wide.bytes_read(weights)
        for weights, codes in zip(engine.WEIGHTS, ("none", "int8", "int4"), strict=True)
    ]
    # the same encoder and adaptor, and the table of embeddings, in all three
    assert max(hearing) - min(hearing) < 0.1 * wide.bytes_read("int4")
    assert engine_weights.QWEN2.bytes_read("bf16") == pytest.approx(2 * 1.54e9, rel=0.01)
    assert engine_weights.SMOLLM2.bytes_read("int8") == pytest.approx(134_515_008, rel=0.001)
    assert TINY.cache_bytes(10) == 2 * 2 * 10 * 2 * 32


def test_a_gguf_has_the_weights_of_the_checkpoint(tmp_path):
    gguf = pytest.importorskip("gguf", reason="needs the gguf package")
    TINY.write_gguf(tmp_path / "tiny.gguf")
    read = {t.name: t for t in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
    names = engine_weights.gguf_names(TINY.sizes["num_hidden_layers"])
    assert read.keys() == set(names.values())
    stored = TINY.tensors()
    for ours, theirs in names.items():
        found = gguf.quants.dequantize(read[theirs].data, read[theirs].tensor_type)
        np.testing.assert_array_equal(found, stored[ours].float().numpy())
    assert len(stored) > len(names)  # the encoder's


def test_the_definition_is_the_models():
    model = AudioLM.from_pretrained(TINY.checkpoint(), dtype=torch.float32)
    ids = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    bounds = torch.arange(0, 19, 9, dtype=torch.int32)
    with torch.no_grad():
        hidden = model.model(model.model.embed_tokens(ids.reshape(-1)), torch.arange(9).repeat(2), bounds)
    found = qwen2.hidden_states(model.state_dict(), TINY.sizes, ids, torch.float64)
    torch.testing.assert_close(found.reshape(18, -1).float(), hidden, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hearing(dtype: str, talking):
    case = engine_hearing.case(dtype, 1, talking)
    record = measure(case, settings(), FakeLimits())
    assert ours_of(record)["error"] < engine_hearing.TOLERANCE[dtype]
    assert "earnest in Python" in {r["name"] for r in record["results"]}
    assert refused(case, turned)
    encoder = Encoder(talking())
    mel = np.random.default_rng(0).standard_normal((3000, 80), dtype=np.float32)
    with torch.no_grad():
        plain = encoder.in_torch(torch.from_numpy(mel.T)[None])
    assert share_off([plain], [encoder.heard(mel)]) < 1e-4


@pytest.mark.parametrize(
    ("package", "peer"),
    [("ctranslate2", "CTranslate2"), ("openvino", "OpenVINO"), ("zentorch", "zentorch")],
)
def test_peers_hear_the_same(package: str, peer: str, talking):
    pytest.importorskip(package, reason="a peer of the extra bench", exc_type=ImportError)
    problem = engine_hearing.case("float32", 1, talking).problem(np.random.default_rng(0))
    one = next(i for i in problem.implementations if i.name == peer)
    error = problem.error([one.build()(*problem.inputs[0])], problem.reference(*problem.inputs[0]))
    assert error < problem.tolerance


def test_rollouts_are_those_of_the_definition():
    case = engine_rollouts.case(prompts=2, per_prompt=3, new_tokens=12)
    record = measure(case, settings(), FakeLimits())
    assert ours_of(record)["error"] < 1e-4
    assert {r["name"] for r in record["results"]} >= {"earnest", "Python loop", "loop of part 1"}
    rollouts = engine_rollouts._Rollouts(np.random.default_rng(0), 2, 3, 12)
    ids, logp = rollouts.natively()
    assert (ids, [x.tolist() for x in logp]) == (rollouts.in_python()[0], [x.tolist() for x in logp])
    assert rollouts.compared((ids, logp))[0].max() < 1e-4
    other = [[*ids[0][:-1], (ids[0][-1] + 7) % 1024], *ids[1:]]
    assert rollouts.compared((other, logp))[0].max() > 1e-4
    assert rollouts.compared((ids, [logp[0] + 1e-2, *logp[1:]]))[0][0] > 1e-3
    assert rollouts.compared(([ids[0][:-1], *ids[1:]], [logp[0][:-1], *logp[1:]]))[0].max() == np.inf


def test_a_late_turn_gives_the_bits_of_a_dialogue_that_is_read_at_once(talking):
    case = engine_dialogue.first_token(5, talking)
    record = measure(case, settings(), FakeLimits())
    assert ours_of(record)["error"] == 0.0
    assert record["yardstick_ratio"] > 0
    assert refused(case, turned)


def test_loading_and_memory(talking):
    record = measure(engine_dialogue.load(TINY), settings(), FakeLimits())
    ours = ours_of(record)
    assert 0 < ours["error"] < engine_dialogue.LOAD_TOLERANCE
    assert is_met(Target(seconds=ours["median"]), record) is True
    assert is_met(Target(seconds=0.9 * ours["median"]), record) is False
    assert refused(engine_dialogue.load(TINY), turned)
    case = engine_dialogue.memory(talking)
    record = measure(case, settings(), FakeLimits())
    taken = most_bytes(ours_of(record))
    assert taken is not None
    assert is_met(Target(extra_bytes=taken), record) is True
    assert is_met(Target(extra_bytes=taken - 1), record) is False
    assert refused(case, lambda outputs: [0 * outputs[0]])  # an answer without a token


def test_without_weights_the_reason_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("EARNEST_MODELS", str(tmp_path))
    record = measure(engine_dialogue.load(engine_weights.SMOLLM2), settings(), FakeLimits())
    assert "no smollm2-135m-instruct (EARNEST_MODELS" in record["absent"]["earnest"]


def test_another_implementation_may_have_a_ratio_of_its_own():
    record = measure(bench_cases.case(target=Target(also={"slow": 2.0})), settings(peers=True), FakeLimits())
    assert record["met"] is True
    assert is_met(Target(ratio=2.0, also={"slow": 1e9}), record) is False
    assert is_met(Target(ratio=2.0, also={"nobody": 1.0}), record) is None

# SPDX-License-Identifier: Apache-2.0
"""The engine with device="cuda": near to the definition as the CPU's, and its promises of bits there. What
it is given and gives is in the memory of the host, on a GPU too."""

import os

import numpy as np
import pytest
import torch

import earnest
from earnest import Engine, _native
from earnest.bench import engine, engine_peers, gpu_attention_paths, gpu_engine, gpu_weights, qwen2
from earnest.bench.case import ALSO, OURS, Absent
from earnest.dialogue import Tokenizer
from earnest.features import LogMel
from earnest.model import AudioLM, AudioLMConfig, features
from model_cases import HEADS_OF_64 as TINY

PROMPT, TOKENS = 7, 5
IDS = np.random.default_rng(0).integers(0, 300, (3, PROMPT + TOKENS))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EARNEST_BENCH_CACHE", str(tmp_path / "cache"))


def ours(weights: str, device: str, sequences: int = 3, graphs: bool = True) -> engine_peers.Ours:
    return engine_peers.Ours(TINY, weights, sequences, PROMPT + TOKENS, device, graphs)


@pytest.mark.parametrize("weights", engine.WEIGHTS)
def test_logits_are_as_near_to_the_definition_as_the_cpus(device, weights: str):
    exact = qwen2.last_logits(TINY.tensors(), TINY.sizes, IDS)
    errors = [
        float((engine.stepping(ours(weights, on), IDS, PROMPT)(IDS) - exact).norm() / exact.norm())
        for on in ("cuda", "cpu")
    ]
    assert 0 < errors[0] <= 2 * errors[1]


@pytest.mark.parametrize("weights", engine.WEIGHTS)
def test_steps_pieces_and_batches_have_the_bits_of_the_whole_prompt(device, weights: str):
    whole = ours(weights, "cuda").feed(IDS, 0).clone()
    assert torch.equal(engine.stepping(ours(weights, "cuda"), IDS, PROMPT)(IDS), whole)
    alone = ours(weights, "cuda", 1)
    for sequence, logits in zip(IDS, whole, strict=True):
        alone.feed(sequence[None, :4], 0)
        assert torch.equal(alone.feed(sequence[None, 4:], 4)[0], logits)


def test_steps_are_replayed_where_graphs_are_wanted_and_else_launched(device):
    found = []
    for graphs in (True, False):
        model = ours("bf16", "cuda", graphs=graphs)
        found.append(engine.stepping(model, IDS, PROMPT)(IDS).clone())
        counts = model.counts()
        assert counts["graph_trouble"] is None
        assert counts["recorded_graphs"] == graphs
        assert counts["graph_steps"] == (TOKENS - 1 if graphs else 0)
        assert counts["graph_steps"] + counts["plain_steps"] == TOKENS
    assert torch.equal(*found)


def test_a_step_draws_from_the_logits_that_it_would_give(device):
    model = _native.engine.load(str(TINY.checkpoint()), "bfloat16", device="cuda")
    graphs, pool = _native.engine.DecodeGraphs(True), model.pool(3 * 9)
    caches = [pool.allocate(9) for _ in range(3)]
    hidden, logits = torch.empty(3, TINY.width, dtype=torch.bfloat16), torch.empty(3, TINY.vocabulary)
    uniforms, tokens = torch.full((3,), 0.5, dtype=torch.float64), torch.full((3,), -7, dtype=torch.int32)
    for at in range(4):
        segments = [(c, torch.tensor([7 + at + i]), None, 1) for i, c in enumerate(caches)]
        model.decode(segments, hidden, logits, graphs)
        for cache in caches:
            cache.truncate(at)
        wanted, untouched = logits.clone(), torch.full_like(logits, 3.0)
        model.decode(segments, hidden, untouched, graphs, (0.0, uniforms, tokens))
        assert torch.equal(tokens.long(), wanted.argmax(-1))
        assert bool((untouched == 3.0).all())
    with pytest.raises(ValueError, match="draws: expected a uniform number and a token for each segment"):
        model.decode(segments, hidden, logits, graphs, (0.0, uniforms[:2], tokens))
    with pytest.raises(ValueError, match="temperature: expected a finite number, 0 or more"):
        model.decode(segments, hidden, logits, graphs, (-1.0, uniforms, tokens))


@pytest.mark.parametrize("weights", engine.WEIGHTS)
def test_the_benchs_case_is_right_in_small(device, weights: str):
    """Weights drawn where they are read; for codes, too, with the numbers of the definition."""
    shape = gpu_engine.Shape(TINY, weights, 3, PROMPT, TOKENS)
    problem = gpu_engine.case(shape, device.type).problem(np.random.default_rng(0))
    (ids,) = problem.inputs[0]
    ours = next(one for one in problem.implementations if one.role == OURS)
    run = ours.build()
    assert run.waits
    assert 0 < problem.error(ours.outputs(run(ids)), problem.reference(ids)) <= problem.tolerance


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_codes_of_a_trainers_tensors_are_those_of_a_file_and_follow_them(device, weights: str):
    model = AudioLM.from_pretrained(TINY.checkpoint(), dtype=torch.bfloat16).to(device)
    held = gpu_weights.Drawn(model, weights)
    over = engine_peers.Ours(TINY, weights, 3, PROMPT + TOKENS, loaded=held.engine)
    filed = ours(weights, "cuda").feed(IDS, 0)
    assert torch.equal(over.feed(IDS, 0), filed)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(-1.5)
    assert torch.equal(over.feed(IDS, 0), filed)  # codes are copies
    held.engine.refresh()
    assert not torch.equal(over.feed(IDS, 0), filed)


@pytest.fixture
def talking_model(tmp_path):
    tokenizer = Tokenizer.train(["how do I sound? you sound calm and low", "it is loud"], 320)
    config = AudioLMConfig.preset(
        "tiny", vocab_size=len(tokenizer), hidden_size=128, num_attention_heads=2, num_key_value_heads=1,
        n_audio_state=64, n_audio_head=1,
    )  # fmt: skip
    model = AudioLM(config, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    model.save_pretrained(tmp_path / "model", tokenizer=tokenizer)
    return tmp_path / "model"


def test_the_switch_of_graphs_decides_and_stats_say_it(device, talking_model):
    said = []
    for graphs in (None, True, False):
        with Engine(talking_model, weights="bfloat16", device="cuda", cuda_graphs=graphs) as talking:
            session = talking.session()
            session.add_text("how do I sound?")
            answer = session.generate(max_tokens=8, temperature=0.0)
            list(answer)
            ids, _ = answer.tokens()
            said.append(ids.tolist())
            stats = talking.stats()
        recorded = 0 if graphs is False else 1
        assert stats["recorded_graphs"] == recorded
        assert stats["graph_steps"] == recorded * (len(ids) - 2)
        assert stats["graph_steps"] + stats["plain_steps"] == len(ids) - 1 >= 4
        assert stats["graph_trouble"] is None
    assert said[0] == said[1] == said[2]


def assert_nearly_the_same(one, other) -> None:
    """Two answers (ids, log-probabilities), up to where rounding makes another token the likeliest."""
    (ids, logp), (other_ids, other_logp) = one, other
    differs = [i for i, (a, b) in enumerate(zip(ids, other_ids, strict=False)) if a != b]
    same = differs[0] if differs else min(len(ids), len(other_ids))
    assert same >= 1
    np.testing.assert_allclose(logp[:same], other_logp[:same], atol=0.2)


@pytest.fixture
def graphs_with_vendor(device) -> bool | None:
    """In the emulator off: what stands for the vendor's library there does not know of them."""
    if _native.CUDA_BUILD != "EMULATED":
        return None
    if "EARNEST_CUBLASLT" not in os.environ:
        pytest.skip("needs EARNEST_CUBLASLT, as `make test-emulated` sets it")
    return False


def test_with_the_vendors_products_it_hears_and_answers_nearly_the_same(graphs_with_vendor, talking_model):
    said = []
    for products in ("ours", "vendor"):
        with Engine(
            talking_model,
            weights="bfloat16",
            device="cuda",
            products=products,
            cuda_graphs=graphs_with_vendor,
        ) as talking:
            assert talking.info["products"] == products
            session = talking.session()
            session.add_audio((0.3 * np.sin(np.arange(9_600) * 0.1)).astype(np.float32), 16_000)
            answer = session.generate(max_tokens=6, temperature=0.0)
            list(answer)
            assert talking.stats()["graph_trouble"] is None
            said.append(answer.tokens())
    assert_nearly_the_same(*said)


def test_the_benchs_prompts_are_right_in_small_with_either_products(device, graphs_with_vendor):
    shape = gpu_engine.Shape(TINY, "bf16", 2, PROMPT, 0)
    problem = gpu_engine.case(shape, device.type).problem(np.random.default_rng(0))
    (ids,) = problem.inputs[0]
    both = [one for one in problem.implementations if one.role in (OURS, ALSO)]
    assert [one.name for one in both] == ["earnest", "earnest, vendor"]
    for one in both:
        error = problem.error(one.outputs(one.build()(ids)), problem.reference(ids))
        assert 0 < error <= problem.tolerance


@pytest.mark.parametrize("tokens", [0, TOKENS])
def test_the_bench_steps_an_engine_of_its_own_by_path_sm90a(device, tokens: int, monkeypatch):
    """In turns with the other one: no engine is ever fed by a path that is not its own, as a step that it has
    recorded would have another."""
    feed, fed = engine_peers.Ours.feed, {}

    def watched(model, *rest):
        fed.setdefault(model, set()).add(earnest.which("attention", "cuda", dtype="bfloat16", dim=64))
        return feed(model, *rest)

    monkeypatch.setattr(engine_peers.Ours, "feed", watched)
    shape = gpu_engine.Shape(TINY, "bf16", 1, PROMPT, tokens)
    problem = gpu_engine.case(shape, device.type).problem(np.random.default_rng(0))
    entries = {one.name: one for one in problem.implementations}
    (ids,) = problem.inputs[0]
    try:
        both = [(entries[name], entries[name].build()) for name in ("earnest", "earnest, sm90a")]
        found = [run(ids).clone() for _, run in both]
    except Absent:
        pytest.skip("needs a device that has path sm90a")
    for one, run in both:
        assert run.waits
        again = run(ids)
        assert torch.equal(again, found.pop(0))
        assert 0 < problem.error(one.outputs(again), problem.reference(ids)) <= problem.tolerance
    usual = earnest.which("attention", "cuda", dtype="bfloat16", dim=64)
    assert list(fed.values()) == [{usual}, {"cuda/sm90a"}]
    monkeypatch.setenv(gpu_attention_paths.WITHOUT, "sm90a")
    with pytest.raises(Absent, match="sm90a: EARNEST_BENCH_WITHOUT says so"):
        both[1][0].build()


def test_samples_are_heard_with_the_features_of_the_python_path_bit_for_bit(device, talking_model):
    config = AudioLMConfig.load(talking_model)
    pcm = (0.3 * np.sin(np.arange(5_000) * 0.1)).astype(np.float32)
    log_mel = LogMel(config.audio_encoder_config.n_mels, padding="step_audio")
    (mel,) = features.hear(pcm, log_mel, device)
    model = _native.engine.load(str(talking_model), "bfloat16", device="cuda")
    rows = model.audio_tokens(mel.shape[1])
    got, want = torch.zeros(2, rows, config.text_config.hidden_size, dtype=torch.bfloat16)
    model.hear(mel.T.contiguous().cpu(), want)
    model.hear_samples(pcm, got)
    assert rows > 2
    assert bool(want.any())
    assert torch.equal(got, want)
    pcm[77] = np.inf
    with pytest.raises(ValueError, match=r"\[logmel\] pcm: expected finite samples .* got inf at sample 77"):
        model.hear_samples(pcm, got)


def test_it_hears_and_answers_as_on_the_cpu(device, talking_model):
    said = []
    for on in ("cuda", "cpu"):
        with Engine(talking_model, weights="bfloat16", device=on) as talking:
            assert talking.info["device"] == on
            session = talking.session()
            session.add_audio((0.3 * np.sin(np.arange(9_600) * 0.1)).astype(np.float32), 16_000)
            session.add_text("how do I sound?")
            answer = session.generate(max_tokens=12, temperature=0.0)
            list(answer)
            said.append(answer.tokens())
    assert_nearly_the_same(*said)

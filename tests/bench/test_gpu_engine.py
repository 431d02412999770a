# SPDX-License-Identifier: Apache-2.0
"""The engine's cases on a GPU in small on the CPU: weights on the grid of their codes, who decodes beside it,
and what is refused."""

import itertools
import json

import numpy as np
import pytest
import torch
from bench_cases import FakeLimits, settings

from earnest import _native
from earnest.bench import engine, gpu_engine, gpu_peers, gpu_weights
from earnest.bench.case import OURS, share_off
from earnest.bench.harness import measure
from earnest.ops.quantized import quantize
from model_cases import HEADS_OF_64 as TINY


def shape(weights: str = "bf16", sequences: int = 6) -> gpu_engine.Shape:
    return gpu_engine.Shape(TINY, weights, sequences, prompt=7, tokens=5)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_codes_of_what_is_drawn_are_its_numbers(weights: str, tmp_path):
    """All of those that the engine keeps in codes, and no others: it says which, in a file that it makes."""
    model = gpu_weights.drawn(TINY, weights, "cpu").model
    model.save_pretrained(tmp_path / "plain")
    _native.engine.quantize(str(tmp_path / "plain"), str(tmp_path / "codes"), weights)
    kinds = {name: kind for name, kind, _ in _native.engine.read_checkpoint(str(tmp_path / "codes"))}
    for name, weight in model.named_parameters():
        form = gpu_weights.form_of(name, weights)
        assert (kinds[name] == "U8") == (form != "bf16"), name
        if form != "bf16":
            assert torch.equal(quantize(weight, form).dequantize(), weight.float()), name
            assert 0.8 < float(weight.float().std()) * TINY.width**0.5 < 1.25
    assert not torch.equal(model.head_weight[0], model.head_weight[1])


def test_what_is_drawn_is_kept_until_other_weights_are_asked_for():
    first = gpu_weights.drawn(TINY, "bf16", "cpu")
    assert gpu_weights.drawn(TINY, "bf16", "cpu") is first
    gpu_weights.drawn(TINY, "int8", "cpu")
    again = gpu_weights.drawn(TINY, "bf16", "cpu")
    assert again is not first
    assert torch.equal(again.model.head_weight, first.model.head_weight)  # from one seed
    assert json.dumps(again.model.config.to_dict()) == json.dumps(TINY.config().to_dict())


@pytest.mark.parametrize("loop", [False, True], ids=["transformers", "Python loop"])
def test_ours_is_right_beside_its_peer(loop: bool, monkeypatch: pytest.MonkeyPatch):
    name = "Python loop" if loop else "transformers"
    if loop:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    else:
        pytest.importorskip("transformers", reason="a peer of the extra bench")
    for timed, tokens in ((shape(), 30), (gpu_engine.Shape(TINY, "bf16", 2, prompt=7, tokens=0), 14)):
        record = measure(gpu_engine.case(timed, "cpu"), settings(peers=True), FakeLimits())
        assert record["wrong"] == {}
        assert record["absent"] == {"earnest, vendor": "[engine] products: expected ours on cpu, got vendor"}
        errors = {result["name"]: result["error"] for result in record["results"]}
        assert errors.keys() == {"earnest", name}
        assert min(errors.values()) > 0
        assert record["per"] == [tokens, "token"]


@pytest.mark.parametrize("kind", [gpu_peers.PythonLoop, gpu_peers.Transformers])
def test_a_peer_begins_anew_and_goes_back(kind):
    if kind is gpu_peers.Transformers:
        pytest.importorskip("transformers", reason="a peer of the extra bench")
    model = gpu_weights.drawn(TINY, "bf16", "cpu").model
    ids = np.random.default_rng(0).integers(0, TINY.vocabulary, (3, 12))
    run = engine.stepping(kind(model, 3, 12), ids, 7)
    first, second = run(ids).clone(), run(ids)
    assert torch.equal(first, second)
    other = ids.copy()
    other[:, 7] = (other[:, 7] + 1) % TINY.vocabulary
    assert share_off([run(other)], [first]) > 0.05  # earlier tokens are seen


@pytest.mark.parametrize("spoil", ["another token", "another sequence"])
def test_what_is_off_by_more_than_rounding_is_refused(spoil: str):
    case = gpu_engine.case(shape(), "cpu")
    problem = case.problem(np.random.default_rng(0))
    (ids,) = problem.inputs[0]
    ours = next(one for one in problem.implementations if one.role == OURS)
    expected = problem.reference(ids)
    run = ours.build()
    assert problem.error(ours.outputs(run(ids)), expected) <= problem.tolerance < 0.05
    if spoil == "another token":
        ids[:, 8] = (ids[:, 8] + 1) % TINY.vocabulary
        wrong = run(ids)
    else:
        wrong = run(ids).roll(1, 0)
    assert problem.error(ours.outputs(wrong), expected) > problem.tolerance


def test_the_cases_are_all_sizes_and_make_no_weights_twice():
    cases = gpu_engine.cases()
    made = [(case.shape["decoder"], case.name.rpartition("-")[2]) for case in cases]
    groups = [key for key, _ in itertools.groupby(made)]
    assert len(groups) == len(set(groups)) == 6
    assert groups[-1] == ("qwen2-7b-random", "int4")  # the longest to make
    for size, sequences, weights in itertools.product(("1.5b", "7b"), (1, 8, 64), engine.WEIGHTS):
        (one,) = [c for c in cases if c.name == f"engine/cuda-decode-{size}-{sequences}x8-{weights}"]
        assert one.target.fraction == (0.8 if sequences == 1 else None)
    for size in ("1.5b", "7b"):
        (prompt,) = [c for c in cases if c.name == f"engine/cuda-prompt-{size}-1x2048-bf16"]
        assert prompt.per == (2048, "token")
    assert [case.name for case in cases if case.quick] == ["engine/cuda-decode-1.5b-1x8-bf16"]

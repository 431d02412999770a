# SPDX-License-Identifier: Apache-2.0
"""The bench's cases on cuda, in small: what is timed is right before a GPU's minutes are spent on it."""

import numpy as np
import pytest
import torch

import earnest
from earnest.bench import (
    digest,
    gpu_attention,
    gpu_attention_backward,
    gpu_attention_paths,
    gpu_decode,
    gpu_invariance,
    gpu_linear,
    gpu_logmel,
    gpu_logprob,
    gpu_ppo,
    gpu_write,
    peers,
)
from earnest.bench.case import ALSO, OURS, Absent, Case
from earnest.bench.gpu import QUICK, Gpu, GpuLimits
from earnest.bench.gpu_attention_shape import Shape
from earnest.bench.harness import Settings, measure

CASES = {
    "gae": lambda on: gpu_ppo.case("gae", 4096, 256, on),
    "losses": lambda on: gpu_ppo.case("losses", 4096, 256, on),
    "whiten": lambda on: gpu_ppo.case("whiten", 4096, 256, on),
    "groups": lambda on: gpu_ppo.case("groups", 4096, 256, on),
    "groups, deviation": lambda on: gpu_ppo.case("groups-deviation", 4096, 256, on),
    "groups, leave-one-out": lambda on: gpu_ppo.case("groups-leave-one-out", 4096, 256, on),
    "logprob": lambda on: gpu_logprob.case(9, 16, 50, gradients=False, device=on),
    "logprob with gradients": lambda on: gpu_logprob.case(9, 16, 50, gradients=True, device=on),
    "attention": lambda on: gpu_attention.case(Shape((70, 70), 2, 2, 64), device=on),
    "attention, ragged": lambda on: gpu_attention.case(Shape((9, 70), 4, 2, 64), device=on),
    "chunks, ragged": lambda on: gpu_attention.case(
        Shape((9, 20), 4, 2, 64, prefixes=(70, 0), dtype="float16"), device=on
    ),
    "linear": lambda on: gpu_linear.case(9, 40, 24, "bfloat16", device=on),
    "linear, int8": lambda on: gpu_linear.case(9, 40, 24, "int8", device=on),
    "linear, int4": lambda on: gpu_linear.case(70, 64, 24, "int4", device=on),
    "decoding": lambda on: gpu_decode.case(gpu_decode.Shape(6, 40, 4, 2, 64), device=on),
    "decoding over e4m3": lambda on: gpu_decode.case(
        gpu_decode.Shape(2, 70, 4, 2, 64, queries=3, float8=True, dtype="float16"), device=on
    ),
    "rotary write": lambda on: gpu_write.case(gpu_write.Shape(20, 4, 2, 64), device=on),
    "rotary write, e4m3": lambda on: gpu_write.case(gpu_write.Shape(5, 4, 2, 64, float8=True), device=on),
    "backward": lambda on: gpu_attention_backward.case(Shape((70, 70), 2, 2, 64), device=on),
    "backward, ragged": lambda on: gpu_attention_backward.case(
        Shape((9, 70), 4, 2, 64, causal=False), device=on
    ),
    "both passes": lambda on: gpu_attention_backward.case(Shape((9, 30), 2, 2, 64), device=on, both=True),
    "clips": lambda on: gpu_logmel.clips(2, 1, on),
    "streams": lambda on: gpu_logmel.streams(3, 80, on),
}


@pytest.mark.parametrize("name", CASES)
def test_each_path_of_ours_is_right_in_small(device, name: str) -> None:
    assert right_ones(CASES[name](device.type), OURS)


def right_ones(case: Case, *roles: str) -> list[str]:
    """Who of ours is there, all of them right."""
    problem, found = case.problem(np.random.default_rng(0)), []
    inputs = problem.inputs[0]
    for ours in problem.implementations:
        if ours.role not in roles:
            continue
        try:
            if ours.checked is None:
                result = ours.build()(*ours.choose(*ours.prepare(*inputs)))
            else:
                result = ours.checked(*inputs)
        except Absent:
            continue
        error = problem.error(ours.outputs(result), problem.reference_of(ours)(*inputs))
        assert error <= (problem.tolerance if ours.tolerance is None else ours.tolerance), ours.name
        found.append(ours.name)
    return found


def test_each_schedule_and_tile_is_right_in_small(device) -> None:
    """Of path sm90a where the device has it: everybody computes the same, by a name of their own."""
    case = gpu_attention.case(Shape((70, 200), 2, 2, 64), device=device.type, kind="schedules")
    found = right_ones(case, OURS, ALSO)
    of_sm80 = ["earnest, sm80", *(f"earnest, sm80, tiles of {rows}" for rows in gpu_attention_paths.TILES)]
    of_sm90a = ["earnest, sm90a", *(f"earnest, sm90a, {name}" for name in gpu_attention_paths.SCHEDULES)]
    assert sorted(found) in (sorted(of_sm80), sorted(of_sm80 + of_sm90a))


def test_each_tile_of_the_backward_pass_is_right_in_small(device) -> None:
    case = gpu_attention_backward.case(Shape((70, 200), 2, 2, 64), device=device.type, tiles=True)
    tiles = [f"earnest, sm80, tiles of {rows}" for rows in gpu_attention_paths.TILES]
    assert right_ones(case, ALSO) == tiles


def test_each_variant_of_decoding_is_right_in_small(device) -> None:
    """Pieces of another size have other bits, as tiles in shared memory do not."""
    shape = gpu_decode.Shape(1, 1100, 7, 1, 64, queries=2)
    problem = gpu_decode.case(shape, device=device.type).problem(np.random.default_rng(0))
    rows, inputs = np.arange(1), problem.inputs[0]
    asked = sorted({one for several in gpu_decode.VARIANTS.values() for one in several})
    entries = gpu_decode.variants([gpu_decode.Variant(), *asked], device.type, rows)
    found = {one.name: one.outputs(one.build()(*inputs)) for one in entries}
    wanted = problem.reference(*inputs)
    assert all(problem.error(out, wanted) <= problem.tolerance for out in found.values())
    (ours,) = problem.implementations[0].outputs(problem.implementations[0].build()(*inputs))
    for name, (out,) in found.items():
        assert torch.equal(out, ours) == ("pieces" not in name), name


def test_logprob_is_timed_by_each_path_that_the_device_has(device) -> None:
    before = earnest.which("logprob", device="cuda")
    found = right_ones(CASES["logprob with gradients"](device.type), OURS)
    assert found in (["earnest, sm80"], ["earnest, sm80", "earnest, sm90a"])
    for name in found:
        path = name.split()[-1]
        assert peers.forced(path, lambda: earnest.which("logprob", device="cuda"))() == f"cuda/{path}"
    with pytest.raises(Absent, match="EARNEST_CUDA_TIER: expected sm90a on"):
        peers.forced("sm90a", refused)()
    assert earnest.which("logprob", device="cuda") == before  # nothing is forced any more


def refused() -> None:
    raise ValueError("[logprob] EARNEST_CUDA_TIER: expected sm90a on compute capability 9.0, got another")


def test_on_a_gpu_a_call_is_a_graph_a_backward_pass_alone_too(gpu) -> None:
    """Also of a peer, whose forward pass ran before on the stream of the captures."""
    settings = Settings(peers=True, pace=QUICK, instrument=Gpu())
    limits = GpuLimits()
    for case in (
        gpu_attention.case(Shape((256, 256), 4, 4, 64)),
        gpu_attention_backward.case(Shape((256, 256), 4, 4, 64)),
        gpu_decode.case(gpu_decode.Shape(4, 1024, 14, 2, 64, queries=2)),
    ):
        record = measure(case, settings, limits)
        captured = {result["name"]: result["captured"] for result in record["results"]}
        assert not any(name.startswith(("earnest", "torch, flash")) for name in record["wrong"])
        assert captured["torch, flash"] is True
        assert all(on for name, on in captured.items() if name.startswith("earnest"))


@pytest.mark.parametrize("queries", [1, 30, 600])
def test_keys_in_pieces_and_one_softmax_are_right_in_small(device, queries: int) -> None:
    """By each path that the device has, whose bits differ too."""
    case = gpu_invariance.case(gpu_invariance.Shape(2, queries, 600, 2, 1, 64), device=device.type)
    problem = case.problem(np.random.default_rng(0))
    wanted, found = problem.reference(*problem.inputs[0]), {}
    for one in problem.implementations:
        if one.role not in (OURS, ALSO):
            continue
        try:
            (out,) = one.outputs(one.build()(*problem.inputs[0]))
        except Absent:
            continue
        assert problem.error([out], wanted) <= problem.tolerance, one.name
        assert not any(torch.equal(out, other) for other in found.values())  # some rows see over 512 keys
        found[one.name] = out
    every = [f"earnest, {path}{ending}" for path in ("sm80", "sm90a") for ending in ("", ", one softmax")]
    assert list(found) in (every[:2], every)


def test_digests_of_two_runs_are_equal(device) -> None:
    first, second = (
        [*map(digest.digest, (x for _, x in digest.results(device.type, 1 << 13)))] for _ in "12"
    )
    assert first == second
    assert len(set(first)) == len(first)

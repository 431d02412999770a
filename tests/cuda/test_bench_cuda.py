# SPDX-License-Identifier: Apache-2.0
"""The bench's cases on cuda, in small: what is timed is right before a GPU's minutes are spent on it."""

import numpy as np
import pytest
import torch

from earnest.bench import (
    digest,
    gpu_attention,
    gpu_attention_backward,
    gpu_decode,
    gpu_invariance,
    gpu_linear,
    gpu_logmel,
    gpu_logprob,
    gpu_ppo,
    gpu_write,
)
from earnest.bench.attention import Shape
from earnest.bench.case import ALSO, OURS, Absent

CASES = {
    "gae": lambda on: gpu_ppo.case("gae", 4096, 256, on),
    "losses": lambda on: gpu_ppo.case("losses", 4096, 256, on),
    "whiten": lambda on: gpu_ppo.case("whiten", 4096, 256, on),
    "groups": lambda on: gpu_ppo.case("groups", 4096, 256, on),
    "logprob": lambda on: gpu_logprob.case(9, 16, 50, gradients=False, device=on),
    "logprob with gradients": lambda on: gpu_logprob.case(9, 16, 50, gradients=True, device=on),
    "attention": lambda on: gpu_attention.case("small", Shape((70, 70), 2, 2, 64), device=on),
    "attention, ragged": lambda on: gpu_attention.case("ragged", Shape((9, 70), 4, 2, 64), device=on),
    "linear": lambda on: gpu_linear.case(9, 40, 24, "bfloat16", device=on),
    "linear, int8": lambda on: gpu_linear.case(9, 40, 24, "int8", device=on),
    "linear, int4": lambda on: gpu_linear.case(70, 64, 24, "int4", device=on),
    "decoding": lambda on: gpu_decode.case(gpu_decode.Shape(6, 40, 4, 2, 64), device=on),
    "decoding over e4m3": lambda on: gpu_decode.case(
        gpu_decode.Shape(2, 70, 4, 2, 64, queries=3, float8=True), "float16", device=on
    ),
    "rotary write": lambda on: gpu_write.case(gpu_write.Shape(20, 4, 2, 64), device=on),
    "rotary write, e4m3": lambda on: gpu_write.case(gpu_write.Shape(5, 4, 2, 64, float8=True), device=on),
    "attention with gradients": lambda on: gpu_attention_backward.case(
        "small", Shape((70, 70), 2, 2, 64), device=on
    ),
    "attention with gradients, ragged": lambda on: gpu_attention_backward.case(
        "ragged", Shape((9, 70), 4, 2, 64, causal=False), device=on
    ),
    "clips": lambda on: gpu_logmel.clips(2, 1, on),
    "streams": lambda on: gpu_logmel.streams(3, 80, on),
}


@pytest.mark.parametrize("name", CASES)
def test_ours_is_right_in_small(device, name: str) -> None:
    problem = CASES[name](device.type).problem(np.random.default_rng(0))
    ours = next(one for one in problem.implementations if one.role == OURS)
    inputs = problem.inputs[0]
    if ours.checked is None:
        prepared = ours.choose(*ours.prepare(*inputs))
        found = ours.build()(*prepared)
    else:
        found = ours.checked(*inputs)
    error = problem.error(ours.outputs(found), problem.reference_of(ours)(*inputs))
    assert error <= (problem.tolerance if ours.tolerance is None else ours.tolerance)


def test_each_schedule_of_path_sm90a_is_right_in_small(device) -> None:
    case = gpu_attention.case("small", Shape((70, 200), 2, 2, 64), device=device.type, path="sm90a")
    problem = case.problem(np.random.default_rng(0))
    wanted, found = problem.reference(*problem.inputs[0]), []
    for one in problem.implementations:
        if one.role not in (OURS, ALSO):
            continue
        try:
            found.append(one.outputs(one.build()(*one.prepare(*problem.inputs[0]))))
        except Absent as reason:
            pytest.skip(str(reason))
        assert problem.error(found[-1], wanted) <= problem.tolerance
    assert len(found) == 1 + len(gpu_attention.SCHEDULES)


@pytest.mark.parametrize("queries", [1, 30, 600])
def test_keys_in_pieces_and_one_softmax_are_right_in_small(device, queries: int) -> None:
    case = gpu_invariance.case(gpu_invariance.Shape(2, queries, 600, 2, 1, 64), device=device.type)
    problem = case.problem(np.random.default_rng(0))
    wanted, found = problem.reference(*problem.inputs[0]), []
    for one in problem.implementations:
        if one.role in (OURS, ALSO):
            (out,) = one.outputs(one.build()(*problem.inputs[0]))
            found.append(out)
            assert problem.error([out], wanted) <= problem.tolerance
    assert len(found) == 2
    assert not torch.equal(*found)  # rows that see more than 512 keys


def test_digests_of_two_runs_are_equal(device) -> None:
    first, second = (
        [*map(digest.digest, (x for _, x in digest.results(device.type, 1 << 13)))] for _ in "12"
    )
    assert first == second
    assert len(set(first)) == len(first)

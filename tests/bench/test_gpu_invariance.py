# SPDX-License-Identifier: Apache-2.0
"""What attention pays for batch invariance, as it is timed on a GPU: its cases in small on the CPU, and their
definition."""

import numpy as np
import pytest
import torch
from bench_cases import FakeLimits, settings

from earnest.bench import command, gpu_invariance
from earnest.bench.gpu_invariance import Shape
from earnest.bench.harness import measure

PROMPT, PIECE, STEP = (Shape(2, queries, 70, 4, 2, 64) for queries in (70, 9, 1))


@pytest.mark.parametrize(("shape", "has_peer"), [(PROMPT, True), (PIECE, False), (STEP, True)])
def test_a_case_in_small_is_right_and_says_who_is_absent(shape: Shape, has_peer: bool) -> None:
    record = measure(gpu_invariance.case(shape, "cpu"), settings(quick=True), FakeLimits())
    assert record["wrong"] == {}
    assert record["absent"].keys() == {"earnest, one softmax"} | (set() if has_peer else {"torch"})
    assert [r["name"] for r in record["results"]] == ["earnest", "torch"][: 1 + has_peer]
    assert (record["family"], record["backend"][:4]) == ("engine", "cpu/")


@pytest.mark.parametrize("shape", [PROMPT, PIECE, STEP])
def test_a_query_sees_the_keys_up_to_its_own(shape: Shape) -> None:
    g = torch.Generator().manual_seed(0)
    q = torch.randn(2, shape.queries, 4, 64, generator=g)
    k, v = (torch.randn(2, 70, 2, 64, generator=g) for _ in range(2))
    rows = np.arange(2 * shape.queries)
    (found,) = gpu_invariance.reference(q, k, v, rows=rows)
    seen = torch.ones(shape.queries, 70, dtype=torch.bool).tril(70 - shape.queries)
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    assert torch.allclose(found, wanted.transpose(1, 2).flatten(0, 1), atol=1e-12)
    assert shape.scores == 2 * int(seen.sum())


def test_prompts_pieces_of_them_and_steps_are_timed_before_what_takes_long() -> None:
    names = [case.name for case in command.chosen(["engine"], quick=False, device="cuda")]
    assert names[:4] == [
        f"engine/cuda-pieces-{shape}-28/4x128"
        for shape in ("1x2048-of-2048", "1x8192-of-8192", "1x256-of-8192", "8x1-of-8192")
    ]

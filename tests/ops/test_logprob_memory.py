# SPDX-License-Identifier: Apache-2.0
"""What earnest.ops.logprob holds beside its results: the README's formula, and nothing of the pass before."""

import pytest
import torch

from earnest.bench.memory import peak_extra_bytes
from earnest.ops.logprob import logprob
from tiers import usable_tiers

ROWS, DEPTH, WORDS = 1024, 2048, 5000
KEPT, SLACK = 16 << 20, 2 << 20


def scratch_of_backward() -> int:
    """kernels/logprob/README.md, float32: long operands within 8 MiB each, panels of 192."""
    slab = (2 << 20) // DEPTH // 192 * 192
    depth = -(-DEPTH // 192) * 192
    return 4 * (2 * slab * DEPTH + 2 * slab * depth + slab * slab)


@pytest.mark.skipif("avx512" not in usable_tiers("logprob"), reason="slow without AVX-512")
def test_scratch_of_the_forward_pass_is_gone_in_the_backward_pass() -> None:
    hidden, weight = (torch.randn(n, DEPTH).requires_grad_() for n in (ROWS, WORDS))
    targets, upstream = torch.randint(0, WORDS, (ROWS,)), torch.randn(ROWS)

    def call() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(logprob(hidden, weight, targets)[0], (hidden, weight), upstream)

    call()  # loads what a first call loads
    taken = peak_extra_bytes(call)
    if taken is None:
        pytest.skip("the system does not tell the largest resident set of a call")
    results = 4 * (hidden.numel() + weight.numel())
    assert taken - results < scratch_of_backward() + KEPT + SLACK

# SPDX-License-Identifier: Apache-2.0
"""A step of decoding over the model's cache (LiveRows) on cuda: the definition, keys that are shared out, and
rows that stand alone."""

import pytest
import torch
from torch import Tensor

from earnest.errors import InvalidInput
from earnest.model.config import TextConfig
from earnest.model.kv_cache import KVCache, LiveRows
from earnest.ops import attention
from reference import attention as reference

LENGTHS, MOST = [1100, 0, 511, 512, 1023, 7], 1101  # tokens before the step
HEADS, KV_HEADS = 6, 2


class Step:
    """One step of six rows, whose beginnings are in the cache; the rest of it is NaN."""

    def __init__(self, device: torch.device, dtype: torch.dtype, dim: int) -> None:
        g = torch.Generator().manual_seed(dim)
        config = TextConfig(8, HEADS * dim, 8, 1, HEADS, KV_HEADS)
        self.cache = KVCache(config, len(LENGTHS), MOST, dtype=dtype, device=device)
        self.lengths = torch.tensor(LENGTHS, device=device)
        self.dim = dim

        def drawn(count: int, heads: int) -> Tensor:
            return torch.randn(count, heads, dim, generator=g, dtype=torch.float64).to(device, dtype)

        for pool in (self.cache.keys[0], self.cache.values[0]):
            pool.fill_(float("nan"))
            for row, length in enumerate(LENGTHS):
                pool[row * MOST : row * MOST + length] = drawn(length, KV_HEADS)
        self.q, self.k, self.v = (drawn(len(LENGTHS), heads) for heads in (HEADS, KV_HEADS, KV_HEADS))

    def of(self, *rows: int) -> Tensor:
        """What these rows get where no others are live."""
        live = LiveRows(self.cache, self.lengths)
        kept = torch.tensor(rows, device=self.q.device)
        live.keep(torch.isin(live.rows, kept))
        return live.attend(0, self.q[kept], self.k[kept], self.v[kept])

    def used(self, row: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a row after the step."""
        place = slice(row * MOST, row * MOST + LENGTHS[row] + 1)
        return self.cache.keys[0][place], self.cache.values[0][place]


ALL = tuple(range(len(LENGTHS)))


def by_definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return reference.attention(q, k, v, causal=True, cu_seqlens_q=[0, 1], cu_seqlens_k=[0, len(k)])[0]


@pytest.mark.parametrize(("dtype", "dim"), [(torch.bfloat16, 128), (torch.float16, 64)])
def test_a_step_is_that_of_the_definition_with_its_keys_shared_out(device, dtype, dim: int) -> None:
    step = Step(device, dtype, dim)
    found = step.of(*ALL)
    for row, length in enumerate(LENGTHS):
        keys, values = step.used(row)
        assert torch.equal(keys[-1], step.k[row])
        inputs = (step.q[row : row + 1], keys, values)
        wanted = by_definition(*(x.cpu().double() for x in inputs))
        assert float((found[row].cpu().double() - wanted[0]).abs().max()) < 2e-2
        whole, shared = (attention(*inputs, causal=True, most_keys=most)[0] for most in (0, length + 1))
        assert torch.equal(found[row], shared)
        if length < 512 or length > 1024:  # one softmax, or three
            assert torch.equal(whole, shared) == (length < 512)


def test_a_row_is_decoded_the_same_whoever_else_is_live(device) -> None:
    step = Step(device, torch.bfloat16, 64)
    together = step.of(*ALL)
    for rows in ((0,), (1,), (3, 4), (2, 4, 5)):
        assert torch.equal(step.of(*rows), together[list(rows)])


def test_compiled_and_with_gradients_it_has_the_same_bits(device) -> None:
    g = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(n, 2, 64, generator=g).to(device, torch.bfloat16) for n in (1, 1100, 1100))

    def shared(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, causal=True, most_keys=1100)

    wanted = shared(q, k, v)
    assert not torch.equal(wanted, attention(q, k, v, causal=True))
    torch.compiler.reset()
    assert torch.equal(torch.compile(shared, backend="aot_eager", fullgraph=True)(q, k, v), wanted)
    leaf = q.clone().requires_grad_()
    out = shared(leaf, k, v)
    assert torch.equal(out.detach(), wanted)
    out.float().square().sum().backward()
    exact = q.cpu().double().requires_grad_()
    by_definition(exact, k.cpu().double(), v.cpu().double()).square().sum().backward()
    assert float((leaf.grad.cpu() - exact.grad).norm() / exact.grad.norm()) < 2e-2


def test_more_keys_than_said_are_refused(device) -> None:
    q, k, v = (torch.randn(n, 2, 64).to(device, torch.bfloat16) for n in (1, 70, 70))
    bounds = {"cu_seqlens_q": torch.tensor([0, 1], dtype=torch.int32, device=device)}
    bounds["cu_seqlens_k"] = 70 * bounds["cu_seqlens_q"]
    used = torch.tensor([69], dtype=torch.int32, device=device)
    for named, most in (({}, 70), (bounds, 70), ({**bounds, "seqused_k": used}, 69)):
        attention(q, k, v, causal=True, most_keys=most, **named)
        with pytest.raises(
            InvalidInput, match=rf"\[attention\] most_keys: expected at least the {most} keys"
        ):
            attention(q, k, v, causal=True, most_keys=most - 1, **named)
    with pytest.raises(InvalidInput, match=r"\[attention\] most_keys: expected at least 0, got -1"):
        attention(q, k, v, causal=True, most_keys=-1)

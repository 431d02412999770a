# SPDX-License-Identifier: Apache-2.0
"""Times earnest.ops.attention against torch's scaled_dot_product_attention, after checking that both agree.

    python bench/attention.py [--threads 1] [--seconds 1.0] [--only NAME] [--forward]

Both get what suits them: ours packed sequences, torch a padded batch of the same ones (is_causal where
queries and keys are equally long, a mask for a KV cache). Rounds alternate between the two; the median of
each is printed. With one thread the clock is the process's CPU time, so that others' load does not count.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from earnest import _native
from earnest.ops.attention import attention, which


@dataclass(frozen=True)
class Case:
    lengths: list[int]  # keys of each sequence
    heads: int
    kv_heads: int
    dim: int
    causal: bool = True
    capacity: int = 0  # of a KV cache; then there is one query per sequence
    dtype: torch.dtype = torch.float32


SHORT = [60 + 40 * i // 127 for i in range(128)]
CASES = {
    "rl-batch 128x(60-100) 6/6x32": Case(SHORT, 6, 6, 32),
    "rl-batch 128x(60-100) 6/2x32": Case(SHORT, 6, 2, 32),
    "decode 128x1, KV 160, 6/6x32": Case([60 + 100 * i // 127 for i in range(128)], 6, 6, 32, capacity=160),
    "decode 128x1, KV 160, 6/2x32": Case([60 + 100 * i // 127 for i in range(128)], 6, 2, 32, capacity=160),
    "decode 1x1, KV 1k, 14/2x64": Case([1024], 14, 2, 64, capacity=1024),
    "causal 512 14/2x64": Case([512], 14, 2, 64),
    "causal 2048 14/2x64": Case([2048], 14, 2, 64),
    "causal 512 28/4x128": Case([512], 28, 4, 128),
    "encoder 750 20x64": Case([750], 20, 20, 64, causal=False),
    "encoder 1500 20x64": Case([1500], 20, 20, 64, causal=False),
    "bf16 causal 512 14/2x64": Case([512], 14, 2, 64, dtype=torch.bfloat16),
    "bf16 decode 1x1, KV 1k, 14/2x64": Case([1024], 14, 2, 64, capacity=1024, dtype=torch.bfloat16),
}


def pad(x: Tensor, lengths: list[int]) -> Tensor:
    """[tokens, heads, dim] -> [sequences, heads, longest, dim]."""
    return (
        torch.nn.utils.rnn.pad_sequence(list(x.split(lengths)), batch_first=True).transpose(1, 2).contiguous()
    )


def prefill(case: Case, gradients: bool) -> tuple[Callable, Callable, float]:
    tokens = sum(case.lengths)
    q, k, v = (
        torch.randn(tokens, h, case.dim).to(case.dtype) for h in (case.heads, case.kv_heads, case.kv_heads)
    )
    cu = torch.tensor([0, *torch.tensor(case.lengths).cumsum(0)], dtype=torch.int32)
    grad_out = torch.randn_like(q)
    padded = [pad(x, case.lengths) for x in (q, k, v)]
    padded_grad = pad(grad_out, case.lengths)
    leaves = [x.requires_grad_(gradients) for x in (q, k, v)]
    padded = [x.requires_grad_(gradients) for x in padded]
    group = case.heads != case.kv_heads

    def ours() -> list[Tensor]:
        out = attention(*leaves, causal=case.causal, cu_seqlens_q=cu)
        return [out, *torch.autograd.grad(out, leaves, grad_out)] if gradients else [out]

    def theirs() -> list[Tensor]:
        out = scaled_dot_product_attention(*padded, is_causal=case.causal, enable_gqa=group)
        return [out, *torch.autograd.grad(out, padded, padded_grad)] if gradients else [out]

    def packed(x: Tensor) -> Tensor:
        return torch.cat([row[:, :n].transpose(0, 1) for row, n in zip(x, case.lengths, strict=True)])

    pairs = zip(ours(), map(packed, theirs()), strict=True)
    error = max((a.double() - b.double()).abs().max().item() for a, b in pairs)
    return ours, theirs, error


def decode(case: Case) -> tuple[Callable, Callable, float]:
    sequences = len(case.lengths)
    q = torch.randn(sequences, 1, case.heads, case.dim).to(case.dtype)
    k, v = (torch.randn(sequences, case.capacity, case.kv_heads, case.dim).to(case.dtype) for _ in "kv")
    used = torch.tensor(case.lengths, dtype=torch.int32)
    padded = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
    mask = (torch.arange(case.capacity) < used[:, None])[:, None, None]
    mask = None if bool(mask.all()) else mask
    group = case.heads != case.kv_heads

    def ours() -> Tensor:
        return attention(q, k, v, causal=True, seqused_k=used)

    def theirs() -> Tensor:
        return scaled_dot_product_attention(*padded, attn_mask=mask, enable_gqa=group)

    return ours, theirs, (ours().double() - theirs().transpose(1, 2).double()).abs().max().item()


def median_times(
    functions: tuple[Callable, Callable], seconds: float, clock: Callable[[], float]
) -> list[float]:
    times: list[list[float]] = [[], []]
    repeats = [0, 0]
    for i, function in enumerate(functions):
        begin = time.perf_counter()
        function()
        repeats[i] = max(1, int(0.01 / (time.perf_counter() - begin)))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for i, function in enumerate(functions):
            begin = clock()
            for _ in range(repeats[i]):
                function()
            times[i].append((clock() - begin) / repeats[i])
    return [statistics.median(x) for x in times]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="per case")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--forward", action="store_true", help="leave gradients out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    _native.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    print(f"{which()}, {arguments.threads} thread(s), torch {torch.__version__}; ms, median")
    print(f"{'':36} {'':8} {'ours':>9} {'torch':>9} {'ratio':>6}  largest difference")
    for name, case in CASES.items():
        if arguments.only not in name:
            continue
        for gradients in (False,) if case.capacity or arguments.forward else (False, True):
            ours, theirs, error = decode(case) if case.capacity else prefill(case, gradients)
            mine, other = median_times((ours, theirs), arguments.seconds, clock)
            label = "fwd+bwd" if gradients else "fwd"
            print(
                f"{name:36} {label:8} {mine * 1e3:9.3f} {other * 1e3:9.3f} {other / mine:6.2f}  {error:.1e}"
            )


if __name__ == "__main__":
    main()

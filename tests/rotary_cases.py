# SPDX-License-Identifier: Apache-2.0
"""Problems of ops.rotary_write, and its formula in float64. Pools are NaN before, so that what is written
shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from earnest.ops import rotary_angles, rotary_write
from paged_cases import FLOAT8
from reference import rowwise as reference

# Of what is read and of the cache; and the closeness of queries, relative: half a unit, and float32's own.
PAIRS = {
    "bfloat16": (torch.bfloat16, torch.bfloat16, 2**-8 * 1.01),
    "float16": (torch.float16, torch.float16, 2**-11 * 1.01),
    "bfloat16 over e4m3": (torch.bfloat16, FLOAT8, 2**-8 * 1.01),
    "float16 over e4m3": (torch.float16, FLOAT8, 2**-11 * 1.01),
}
HEADS, KV_HEADS, DIM, PAGES, PAGE_SIZE = 4, 2, 64, 3, 16
THETA = 1e4


@dataclass(frozen=True)
class Writing:
    qkv: Tensor
    bias: Tensor | None
    positions: Tensor
    slots: Tensor
    k: Tensor
    v: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None
    close: float

    def run(self, device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
        """The queries, and the pools as float32, all on the CPU."""
        names = ("qkv", "positions", "slots", "k", "v", "bias", "k_scale", "v_scale")
        named = {n: None if (x := getattr(self, n)) is None else x.to(device, copy=True) for n in names}
        q = rotary_write(**named, theta=THETA)
        return q.cpu(), named["k"].cpu().float(), named["v"].cpu().float()

    def check(self, device: torch.device | str) -> None:
        q, k, v = self.run(device)
        fused = self.qkv.double() + (0 if self.bias is None else self.bias.double())
        cosine, sine = (x.double() for x in rotary_angles(self.positions, THETA, DIM))
        right = reference.rotary(fused, cosine, sine, HEADS, KV_HEADS)
        assert q.dtype == self.qkv.dtype
        assert bool(((q.double() - right[0]).abs() <= right[0].abs() * self.close + 2e-6).all())
        pages, places = self.slots // PAGE_SIZE, self.slots % PAGE_SIZE
        for pool, wanted, scale in ((k, right[1], self.k_scale), (v, right[2], self.v_scale)):
            found = pool[pages, :, places].double()
            pool[pages, :, places] = torch.nan
            assert not bool(pool.isfinite().any())  # nothing else was written
            if scale is None:
                assert bool(((found - wanted).abs() <= wanted.abs() * self.close + 2e-6).all())
                continue
            wanted = (wanted / scale[:, None]).clamp(-448, 448)
            half_unit = torch.maximum(wanted.abs() * 2**-4, torch.tensor(2.0**-10))
            assert bool(((found - wanted).abs() <= half_unit * 1.001).all())


def writing(
    pair: tuple[torch.dtype, torch.dtype, float], tokens: int = 5, with_bias: bool = True, seed: int = 0
) -> Writing:
    g = torch.Generator().manual_seed(seed)
    width = (HEADS + 2 * KV_HEADS) * DIM
    qkv, bias = torch.randn(tokens, width, generator=g), torch.randn(width, generator=g)
    k, v = (torch.full((PAGES, KV_HEADS, PAGE_SIZE, DIM), torch.nan).to(pair[1]) for _ in "kv")
    slots = torch.randperm(PAGES * PAGE_SIZE, generator=g)[:tokens]
    scaled = pair[1] == FLOAT8
    return Writing(
        qkv.to(pair[0]), bias.to(pair[0]) if with_bias else None,
        torch.randint(131072, (tokens,), generator=g), slots, k, v,
        torch.tensor([0.004, 0.3]) if scaled else None, torch.tensor([0.05, 7.0]) if scaled else None,
        pair[2],
    )  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""RMS norm, rotary positions and SwiGLU as they are written in their papers, for any floating type."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def rotary(
    qkv: Tensor, cosine: Tensor, sine: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Each pair (j, j + dim / 2) as a complex number, times exp(i angle)."""
    parts = qkv.view(len(qkv), heads + 2 * kv_heads, 2 * cosine.shape[1])
    half = parts.shape[-1] // 2
    turn = torch.complex(cosine, sine)[:, None]
    turned = torch.complex(parts[..., :half].contiguous(), parts[..., half:].contiguous()) * turn
    apart = torch.cat([turned.real, turned.imag], dim=-1)
    return apart[:, :heads], apart[:, heads : heads + kv_heads], parts[:, heads + kv_heads :]


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return gate / (1 + torch.exp(-gate)) * up

# SPDX-License-Identifier: Apache-2.0
"""Attention by its definition, one sequence and one head at a time, in float64 with torch's autograd."""

import torch
from torch import Tensor


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, cu_seqlens_q: list[int], cu_seqlens_k: list[int],
    seqused_k: list[int] | None = None, scale: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Packed [tokens, heads, dim] -> (out like q, log-sum-exp [tokens, heads]); empty rows: 0 and -inf."""
    q, k, v = q.double(), k.double(), v.double()
    group = q.shape[1] // k.shape[1]
    scale = q.shape[2] ** -0.5 if scale is None else scale
    out, lse = [], []
    for n in range(len(cu_seqlens_q) - 1):
        queries = q[cu_seqlens_q[n] : cu_seqlens_q[n + 1]]
        begin = cu_seqlens_k[n]
        end = cu_seqlens_k[n + 1] if seqused_k is None else begin + seqused_k[n]
        visible = torch.ones(len(queries), end - begin, dtype=torch.bool)
        if causal:
            visible = visible.tril(end - begin - len(queries))
        some = visible.any(1, keepdim=True)
        heads = [
            _one_head(queries[:, h], k[begin:end, h // group], v[begin:end, h // group], visible, some, scale)
            for h in range(q.shape[1])
        ]
        out.append(torch.stack([head[0] for head in heads], 1))
        lse.append(torch.stack([head[1] for head in heads], 1))
    return torch.cat(out), torch.cat(lse)


def _one_head(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, some: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    # Rows without a key get a harmless score everywhere and are blanked afterwards: no NaN enters gradients.
    scores = (scale * q @ k.T).masked_fill(~visible & some, -torch.inf)
    if k.shape[0] == 0:
        return q * 0, torch.full_like(q[:, 0], -torch.inf)
    out = torch.where(some, scores.softmax(-1) @ v, 0.0)
    return out, torch.where(some[:, 0], scores.logsumexp(-1), -torch.inf)

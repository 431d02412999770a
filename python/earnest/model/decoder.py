# SPDX-License-Identifier: Apache-2.0
"""The decoder: a Qwen2-type transformer over packed sequences, written once for training, prefill and
decoding.

    for every layer: x += o_proj(attention(rope(q), rope(k), v)) of input_layernorm(x)
                     x += down_proj(silu(gate_proj(y)) * up_proj(y)), y = post_attention_layernorm(x)
    hidden = norm(x)

What differs between the three uses is only where keys and values live: an `attend` function takes the new
queries, keys and values of a layer and returns what attention makes of them (see kv_cache.py)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from earnest import ops
from earnest.errors import InvalidInput
from earnest.model.config import TextConfig
from earnest.model.encoder import scaled_normal
from earnest.model.linear import Linear, linear

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)


class DecoderAttention(nn.Module):
    """Grouped-query attention; q, k and v have biases, o has none."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width, dim = config.hidden_size, config.head_dim
        self.heads, self.kv_heads, self.dim = config.num_attention_heads, config.num_key_value_heads, dim
        self.q_proj = Linear(width, self.heads * dim)
        self.k_proj = Linear(width, self.kv_heads * dim)
        self.v_proj = Linear(width, self.kv_heads * dim)
        self.o_proj = Linear(self.heads * dim, width, bias=False)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [tokens, heads, dim], k and v [tokens, kv_heads, dim], positions applied."""
        qkv = linear(
            x,
            [self.q_proj.weight, self.k_proj.weight, self.v_proj.weight],
            [self.q_proj.bias, self.k_proj.bias, self.v_proj.bias],
        )
        # Where matrix products run in a lower precision, attention still does not.
        return ops.rotary(qkv, cos, sin, self.heads, self.kv_heads, dtype=x.dtype)


class DecoderMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(ops.swiglu(linear(x, [self.gate_proj.weight, self.up_proj.weight])))


class DecoderLayer(nn.Module):
    """One pre-norm layer. `rows` keeps only those tokens from the attention output on (the last layer of a
    prefill)."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.self_attn = DecoderAttention(config)
        self.mlp = DecoderMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, rows: Tensor | None = None
    ) -> Tensor:
        q, k, v = self.self_attn.project(self.input_layernorm(x), cos, sin)
        if rows is not None:
            x, q = x[rows], q[rows]
        mixed = attend(self.index, q, k, v)
        x = x + self.self_attn.o_proj(mixed.reshape(x.shape[0], -1))
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embeddings in, final-normed hidden states out; both [tokens, hidden_size]."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([DecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self._angles: tuple[Tensor, Tensor] | None = None

    def forward(
        self,
        x: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        key_rows: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
    ) -> Tensor:
        """x [tokens, hidden] packed, position_ids int64 [tokens], cu_seqlens int32 [sequences + 1]; causal.

        key_rows int64 and cu_seqlens_k int32 [sequences + 1]: the rows of x that each sequence attends to,
        its own at the end, where sequences share a beginning that is computed once."""

        def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if key_rows is not None:
                k, v = k.index_select(0, key_rows), v.index_select(0, key_rows)
            return ops.attention(
                q.contiguous(),
                k.contiguous(),
                v.contiguous(),
                causal=True,
                cu_seqlens_q=cu_seqlens,
                cu_seqlens_k=cu_seqlens if cu_seqlens_k is None else cu_seqlens_k,
            )

        return self.run(x, position_ids, attend)

    def run(self, x: Tensor, position_ids: Tensor, attend: Attend, last_rows: Tensor | None = None) -> Tensor:
        """All layers and the last norm, with attention left to `attend`. `last_rows` [rows]: the tokens
        wanted."""
        cos, sin = self.angles(position_ids, x.dtype)
        for index, layer in enumerate(self.layers):
            rows = last_rows if index == len(self.layers) - 1 else None
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, cos, sin, attend, rows, use_reentrant=False)
            else:
                x = layer(x, cos, sin, attend, rows)
        return self.norm(x)

    def angles(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin [tokens, dim / 2] of the rotary angles position * theta^(-2i / dim)."""
        if self._angles is None or self._angles[0].device != position_ids.device:
            self._angles = self._angle_table(4096, position_ids.device)
        highest = int(position_ids.max()) if position_ids.numel() else 0
        if highest >= self.config.max_position_embeddings:
            raise InvalidInput(
                "decoder",
                "position_ids",
                f"positions below {self.config.max_position_embeddings}",
                str(highest),
            )
        if highest >= self._angles[0].shape[0]:
            self._angles = self._angle_table(2 * highest, position_ids.device)
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        cos, sin = (table[position_ids].to(exact) for table in self._angles)
        return cos, sin

    def _angle_table(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        positions = torch.arange(min(length, self.config.max_position_embeddings), device=device)
        return ops.rotary_angles(positions, self.config.rope_theta, self.config.head_dim)

    def fused_groups(self) -> list[list[Tensor]]:
        """Parameters that are multiplied as one matrix, in that order."""
        groups: list[list[Tensor]] = []
        for part in self.modules():
            if isinstance(part, DecoderAttention):
                projections = (part.q_proj, part.k_proj, part.v_proj)
                groups += [[p.weight for p in projections], [p.bias for p in projections]]
            elif isinstance(part, DecoderMLP):
                groups.append([part.gate_proj.weight, part.up_proj.weight])
        return groups

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Fresh weights: unit-preserving matrices, residual outputs smaller, embeddings of length about
        one."""
        depth = 1 / math.sqrt(2 * len(self.layers))
        self.embed_tokens.weight.normal_(0.0, self.config.hidden_size**-0.5, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                scaled_normal(module.weight, 0.6, generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, RMSNorm):
                module.weight.fill_(1.0)
        for module in self.modules():
            if isinstance(module, DecoderAttention):
                module.o_proj.weight.mul_(depth)
            elif isinstance(module, DecoderMLP):
                module.down_proj.weight.mul_(depth)

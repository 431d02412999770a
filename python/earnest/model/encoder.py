# SPDX-License-Identifier: Apache-2.0
"""The audio encoder: log-mel frames -> 50 Hz Whisper-type transformer -> 25 Hz frames (average pool, last
norm).

    x = gelu(conv1(mel)); x = gelu(conv2(x)) (stride 2); x += position table
    for every block: x += out(attention(attn_ln(x))); x += mlp(mlp_ln(x))
    frames = after_norm(avg_pool2(x))

Attention looks both ways within a clip, at its valid positions only (see EncoderConfig.audio_len)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from earnest import ops
from earnest.errors import InvalidInput
from earnest.model.config import EncoderConfig
from earnest.model.linear import Linear, conv1d, linear
from earnest.model.packed import cu_seqlens_of, positions_of, window_index


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm on `ops.layer_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class GELU(nn.Module):
    """nn.GELU, the exact one, on `ops.gelu`."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.gelu(x)


class EncoderAttention(nn.Module):
    """Bidirectional attention over packed clips; the key projection has no bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width)
        self.key = Linear(width, width, bias=False)
        self.value = Linear(width, width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, cu_seqlens: Tensor, valid: Tensor) -> Tensor:
        n, width = x.shape
        bias = self.query.bias
        qkv = linear(
            x,
            [self.query.weight, self.key.weight, self.value.weight],
            [bias, torch.zeros_like(bias), self.value.bias],
        ).to(x.dtype)  # where matrix products run in a lower precision, attention still does not
        q, k, v = (
            part.view(n, self.heads, width // self.heads).contiguous() for part in qkv.chunk(3, dim=-1)
        )
        mixed = ops.attention(
            q, k, v, causal=False, cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens, seqused_k=valid
        )
        return self.out(mixed.reshape(n, width))


class EncoderBlock(nn.Module):
    """Pre-norm attention and a GELU MLP four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = EncoderAttention(width, heads)
        self.attn_ln = LayerNorm(width)
        self.mlp = nn.Sequential(Linear(width, 4 * width), GELU(), Linear(4 * width, width))
        self.mlp_ln = LayerNorm(width)

    def forward(self, x: Tensor, cu_seqlens: Tensor, valid: Tensor) -> Tensor:
        x = x + self.attn(self.attn_ln(x), cu_seqlens, valid)
        return x + self.mlp(self.mlp_ln(x))


class AudioEncoder(nn.Module):
    """mel: one float tensor [n_mels, frames] per clip, 100 frames a second -> packed frames [F,
    n_audio_state] and cu_seqlens int32 [clips + 1]. F counts the frames that the adaptor will see
    (EncoderConfig.kept_frames)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config, width = config, config.n_audio_state
        self.conv1 = nn.Conv1d(config.n_mels, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.positional_embedding = nn.Embedding(config.n_audio_ctx, width)
        self.positional_embedding.weight.requires_grad_(False)
        self.blocks = nn.ModuleList(
            [EncoderBlock(width, config.n_audio_head) for _ in range(config.n_audio_layer)]
        )
        self.after_norm = LayerNorm(width)
        self.gradient_checkpointing = False

    def forward(self, mel: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        config, device = self.config, self.conv1.weight.device
        frames = self._check(mel)
        positions, valid = (
            (list(counts) for counts in zip(*map(config.positions, frames), strict=True))
            if frames
            else ([], [])
        )
        kept = [config.kept_frames(t) for t in frames]
        if sum(positions) == 0:
            return self.conv1.weight.new_zeros(0, config.n_audio_state), cu_seqlens_of(kept, device)

        x = torch.cat([m.T for m in mel]).to(device=device, dtype=self.conv1.weight.dtype)
        index = window_index(frames, frames, kernel=3, stride=1, padding=1).to(device)
        x = ops.gelu(conv1d(x, self.conv1, index))
        index = window_index(frames, positions, kernel=3, stride=2, padding=1).to(device)
        x = ops.gelu(conv1d(x, self.conv2, index))
        x = x + self.positional_embedding.weight[torch.from_numpy(positions_of(positions)).to(device)]

        cu_seqlens = cu_seqlens_of(positions, device)
        seqused = torch.tensor(valid, dtype=torch.int32, device=device)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, cu_seqlens, seqused, use_reentrant=False)
            else:
                x = block(x, cu_seqlens, seqused)
        return self.after_norm(self._pool(x, positions, kept)), cu_seqlens_of(kept, device)

    def _check(self, mel: Sequence[Tensor]) -> list[int]:
        limit = 2 * self.config.n_audio_ctx
        for i, m in enumerate(mel):
            if m.ndim != 2 or m.shape[0] != self.config.n_mels or not m.is_floating_point():
                raise InvalidInput(
                    "encoder",
                    f"mel[{i}]",
                    f"float [{self.config.n_mels}, frames]",
                    f"{m.dtype} {list(m.shape)}",
                )
            if m.shape[1] > limit:
                raise InvalidInput(
                    "encoder",
                    f"mel[{i}]",
                    f"at most {limit} frames (split longer audio with chunk_audio)",
                    f"{m.shape[1]} frames",
                )
        return [m.shape[1] for m in mel]

    def _pool(self, x: Tensor, positions: list[int], kept: list[int]) -> Tensor:
        """The frames the adaptor will see: the mean of each pair of positions, or single positions without
        pooling."""
        if not self.config.avg_pool and kept == positions:
            return x
        stride = 2 if self.config.avg_pool else 1
        counts = np.asarray(kept, dtype=np.int64)
        starts = np.repeat(np.cumsum(positions) - np.asarray(positions), counts)
        first = torch.from_numpy(starts + stride * positions_of(kept)).to(x.device)
        taken = x.index_select(0, first)
        return (taken + x.index_select(0, first + 1)) / 2 if stride == 2 else taken

    def fused_groups(self) -> list[list[Tensor]]:
        """Parameters that are multiplied as one matrix, in that order."""
        return [
            [part.query.weight, part.key.weight, part.value.weight]
            for part in self.modules()
            if isinstance(part, EncoderAttention)
        ]

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Fresh weights: sinusoidal positions, matrices with unit-preserving scale, residual outputs
        smaller."""
        depth = 1 / math.sqrt(2 * len(self.blocks))
        for conv in (self.conv1, self.conv2):
            scaled_normal(conv.weight, 1.0, generator)
            if conv.bias is not None:
                conv.bias.zero_()
        self.positional_embedding.weight.copy_(sinusoids(*self.positional_embedding.weight.shape))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                scaled_normal(module.weight, 0.6, generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        for name, weight in self.named_parameters():
            if name.endswith(("attn.out.weight", "mlp.2.weight")):
                weight.mul_(depth)


def sinusoids(length: int, channels: int) -> Tensor:
    """Whisper's position table [length, channels]: sines, then cosines, of geometrically spaced periods up to
    1e4."""
    rates = torch.exp(-math.log(10_000.0) / (channels // 2 - 1) * torch.arange(channels // 2))
    angles = torch.arange(length)[:, None] * rates[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def scaled_normal(weight: Tensor, gain: float, generator: torch.Generator | None) -> None:
    """Fills in place with normal numbers of standard deviation gain / sqrt(inputs of one output)."""
    weight.normal_(0.0, gain / math.sqrt(weight[0].numel()), generator=generator)

# SPDX-License-Identifier: Apache-2.0
"""The adaptor: encoder frames at 25 Hz -> decoder positions at 12.5 Hz.

y = gelu(conv(frames)) (kernel 3, stride 2, padding 1); y = linear2(relu(linear1(y)))"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earnest import ops
from earnest.model.config import EncoderConfig
from earnest.model.encoder import scaled_normal
from earnest.model.linear import Linear, conv1d
from earnest.model.packed import lengths_of, window_index

HIDDEN = 2048  # the published width between the two linear layers, the same in every model of the family


class Adaptor(nn.Module):
    """Packed frames [F, n_audio_state] and their cu_seqlens [clips + 1] -> [audio tokens, llm_dim], clips in
    order."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.n_audio_state
        self.conv = nn.Conv1d(width, width, config.kernel_size, config.adapter_stride, padding=1)
        self.linear1 = Linear(width, HIDDEN)
        self.linear2 = Linear(HIDDEN, config.llm_dim)

    def forward(self, frames: Tensor, cu_seqlens: Tensor) -> Tensor:
        lengths = lengths_of(cu_seqlens)
        index = window_index(lengths, [(n + 1) // 2 for n in lengths], kernel=3, stride=2, padding=1)
        x = ops.gelu(conv1d(frames, self.conv, index.to(frames.device)))
        return self.linear2(F.relu(self.linear1(x)))

    @torch.no_grad()
    def initialise(self, rms: float, generator: torch.Generator | None = None) -> None:
        """Fresh weights whose outputs are about as large (`rms`) as the decoder's own token embeddings."""
        for layer, gain in ((self.conv, 1.0), (self.linear1, 1.0), (self.linear2, 2.5 * rms)):
            scaled_normal(layer.weight, gain, generator)
            if layer.bias is not None:
                layer.bias.zero_()

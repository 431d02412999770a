# SPDX-License-Identifier: Apache-2.0
"""Linear layers of the model: earnest's kernels on the CPU, torch's elsewhere; both in the precision of
autocast.

On the CPU a row of the result depends on that row alone, bit for bit, so that the sampler, which computes one
token at a time, and the trainer, which computes all at once, get the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earnest import ops
from earnest.model.packed import fused


def linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None) -> Tensor:
    """x @ W.T + b with the weights one below the other. Result in the type of x, or of autocast."""
    bias = None if biases is None else biases[0] if len(biases) == 1 else torch.cat(list(biases))
    if x.device.type != "cpu":
        return F.linear(x, fused(weights), bias)
    low = torch.is_autocast_enabled("cpu") and x.dtype == torch.float32
    x = x.to(torch.get_autocast_dtype("cpu")) if low else x
    result: Tensor = ops.linear(x, tuple(weights), bias)
    return result


class Linear(nn.Linear):
    """nn.Linear on `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, [self.weight], None if self.bias is None else [self.bias])


def conv1d(x: Tensor, conv: nn.Conv1d, index: Tensor) -> Tensor:
    """A convolution over packed frames (see packed.py): x [frames, in], index [out frames, kernel] -> [out
    frames, out]."""
    padded = torch.cat([x, x.new_zeros(1, x.shape[1])])
    # index_select, not indexing: the gradient of that adds up in whichever order threads come.
    windows = padded.index_select(0, index.flatten()).view(len(index), index.shape[1] * x.shape[1])
    biases = None if conv.bias is None else [conv.bias]
    return linear(windows, [conv.weight.permute(0, 2, 1).flatten(1)], biases)

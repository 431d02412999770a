# SPDX-License-Identifier: Apache-2.0
"""What kernels/quantized computes, from the layout of a packed matrix as quantized.h gives it, in float64."""

import numpy as np
import torch


def weight(codes: str, packed: torch.Tensor, outputs: int, inputs: int) -> torch.Tensor:
    """W [outputs, inputs] of a packed matrix."""
    groups = -(-inputs // 32)
    panels = packed.numpy().reshape(-(-outputs // 16), -1)
    if codes == "int8":
        scales = panels[:, :64].copy().view(np.float32).astype(np.float64)
        numbers = panels[:, 64:].reshape(-1, groups * 8, 16, 4).astype(np.float64) - 128
        rows = numbers.transpose(0, 2, 1, 3).reshape(-1, groups * 32) * scales.reshape(-1, 1)
    else:
        blocks = panels.reshape(-1, groups, 5, 16, 4)
        pairs = blocks[:, :, 0].copy().view(np.uint16).astype(np.uint32) << 16  # bfloat16: scale, minimum
        pairs = pairs.view(np.float32).astype(np.float64)
        halves = np.stack([blocks[:, :, 1:] & 15, blocks[:, :, 1:] >> 4], axis=3)  # [.., 4, 2, 16, 4]
        numbers = halves.transpose(0, 4, 1, 2, 3, 5).reshape(len(panels), 16, groups, 32)
        scale, minimum = pairs.transpose(3, 0, 2, 1)[..., None]
        rows = (numbers * scale + minimum).reshape(-1, groups * 32)
    return torch.from_numpy(rows[:outputs, :inputs].copy())


def linear(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    result = x.double() @ w.T
    return result if bias is None else result + bias.double()

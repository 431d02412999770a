# SPDX-License-Identifier: Apache-2.0
"""linear by its definition, in float64 (or the type given), with torch's own operations."""

import torch
from torch import Tensor


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """x [..., K], weight [N, K], bias [N]; [..., N]."""
    product = x.to(dtype) @ weight.to(dtype).T
    return product if bias is None else product + bias.to(dtype)


def gradients(
    x: Tensor, weight: Tensor, grad_output: Tensor, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    x, weight, grad_output = (t.to(dtype) for t in (x, weight, grad_output))
    rows, grads = x.reshape(-1, x.shape[-1]), grad_output.reshape(-1, grad_output.shape[-1])
    return grad_output @ weight, grads.T @ rows, grads.sum(0)

# SPDX-License-Identifier: Apache-2.0
"""logprob by its definition: the whole logits, float64 (or the type given), torch's own operations."""

import torch
from torch import Tensor


def logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """logp [N] of targets [N] and entropy [N] in nats; differentiable by torch."""
    log_p = torch.log_softmax(hidden.to(dtype) @ weight.to(dtype).T / temperature, dim=-1)
    logp = log_p.gather(-1, targets[:, None]).squeeze(-1)
    return logp, -(log_p.exp() * log_p).sum(-1)


def gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    grad_logp: Tensor,
    grad_entropy: Tensor,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden [N, H] and weight [V, H] in dtype, by autograd through the whole logits."""
    hidden, weight = (x.detach().to(dtype).requires_grad_() for x in (hidden, weight))
    results = logprob(hidden, weight, targets, temperature, dtype)
    grads = torch.autograd.grad(results, (hidden, weight), (grad_logp.to(dtype), grad_entropy.to(dtype)))
    return grads[0], grads[1]

# SPDX-License-Identifier: Apache-2.0
"""What runs on cuda tensors. Families without a kernel of ours there run torch's own operators, a back end
with a name of its own ("cuda/torch")."""

from __future__ import annotations

import torch


def torch_backend(family: str) -> str:
    """The name of the back end where torch's operators stand in for a family. RuntimeError where torch sees
    no GPU."""
    if not torch.cuda.is_available():
        raise RuntimeError(f"[{family}] device: expected cpu (torch sees no GPU), got cuda")
    return "cuda/torch"

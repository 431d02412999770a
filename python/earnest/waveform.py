# SPDX-License-Identifier: Apache-2.0
"""What every feature asks of the samples it is given, and handing back their kind: numpy or torch.

Importing this loads no torch: samples can only be a tensor where the caller has loaded it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from earnest.errors import InvalidInput

_MAX_MAGNITUDE = 1e15  # squares of larger samples would leave float32


def _is_tensor(values: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)


def as_pcm(op: str, pcm: Any) -> np.ndarray:
    """The float32 samples of a numpy array or CPU tensor, without a copy where they lie one after another at
    addresses that float32 can be read from."""
    if _is_tensor(pcm):
        if pcm.device.type != "cpu":
            raise InvalidInput(op, "pcm", "a tensor in CPU memory", f"one on {pcm.device}")
        if str(pcm.dtype) != "torch.float32":
            raise InvalidInput(op, "pcm", "float32", str(pcm.dtype).removeprefix("torch."))
        pcm = pcm.detach().numpy()
    if not isinstance(pcm, np.ndarray):
        raise InvalidInput(op, "pcm", "a numpy array or torch tensor", type(pcm).__name__)
    if pcm.dtype != np.float32:
        raise InvalidInput(op, "pcm", "float32", str(pcm.dtype))
    if pcm.ndim != 1:
        raise InvalidInput(op, "pcm", "one axis [samples]", f"{pcm.ndim} axes {list(pcm.shape)}")
    return np.require(pcm, requirements=["C", "A"])


def check_samples(op: str, pcm: np.ndarray, before: int = 0) -> None:
    """Refuses what no feature can be computed from; `before` samples of the same stream came earlier."""
    if pcm.size + before == 0:
        raise InvalidInput(op, "pcm", "at least one sample", "none")
    wrong = ~(np.abs(pcm) <= _MAX_MAGNITUDE)
    if wrong.any():
        at = int(wrong.argmax())
        raise InvalidInput(
            op, "pcm", "finite samples of magnitude at most 1e15", f"{pcm[at]} at sample {before + at}"
        )


def check_rate(op: str, sample_rate: int) -> None:
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, np.integer)):
        raise InvalidInput(op, "sample_rate", "whole samples per second", repr(sample_rate))
    if not 1000 <= sample_rate <= 1_000_000:
        raise InvalidInput(op, "sample_rate", "1,000 to 1,000,000 samples per second", str(sample_rate))


def like(source: Any, values: np.ndarray) -> Any:
    """values as what source is: a torch tensor (same memory) or the numpy array itself."""
    return sys.modules["torch"].from_numpy(values) if _is_tensor(source) else values

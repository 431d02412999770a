# SPDX-License-Identifier: Apache-2.0
"""What calls of the engine ask of numbers and samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from earnest.errors import InvalidInput

OP = "engine"


def whole(name: str, value: int | None, most: int = 2**32 - 1, *, least: int = 1) -> int:
    """A whole number in its range; None is 0, which means the default."""
    if value is None:
        return 0
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        raise InvalidInput(OP, name, f"a whole number from {least} to {most}", repr(value))
    return int(value)


def switch(name: str, value: bool | None) -> bool | None:
    """On, off, or None: as it is by default."""
    if value is not None and not isinstance(value, bool):
        raise InvalidInput(OP, name, "True, False or None", repr(value))
    return value


def as_samples(pcm: ArrayLike, channels: int | None) -> np.ndarray:
    """float32 or int16 [samples, channels]."""
    samples = np.asarray(pcm)
    if samples.dtype == np.float64:
        samples = samples.astype(np.float32)
    if samples.dtype not in (np.float32, np.int16):
        raise InvalidInput(OP, "pcm", "float32, float64 or int16", str(samples.dtype))
    if samples.ndim == 1 and channels in (None, 1):
        samples = samples[:, None]
    if samples.ndim != 2 or (channels is not None and samples.shape[1] != channels):
        expected = "[samples] or [samples, channels]" if channels is None else f"[samples, {channels}]"
        raise InvalidInput(OP, "pcm", expected, str(list(samples.shape)))
    return np.require(samples, requirements=["C", "A"])

# SPDX-License-Identifier: Apache-2.0
"""The one schedule of every learning rate here: a linear warm-up, then a linear way down."""

from __future__ import annotations


def share_of_rate(step: int, total: int, warmup_steps: int, final: float) -> float:
    """The share of the highest learning rate at `step` (from 0) of `total`; `final` would be reached at
    `total`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    gone = (step - warmup_steps) / max(total - warmup_steps, 1)
    return 1 - (1 - final) * gone

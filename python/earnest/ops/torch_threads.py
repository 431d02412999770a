# SPDX-License-Identifier: Apache-2.0
"""How many threads torch's own operations take beside our kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """torch's own operations in the block, or in the function that this decorates, run on the calling thread.

    For passes whose products are our kernels': what torch does between two of them (an addition, a cast, a
    gather) is over before a second thread of its would pay, and such a thread spins for milliseconds after
    it, on a core that our pool computes on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

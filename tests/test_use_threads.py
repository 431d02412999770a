# SPDX-License-Identifier: Apache-2.0
"""The settings of threads reach torch and the kernels' pool, each its own."""

import pytest
import torch

from earnest import ops
from earnest.run import use_threads
from earnest.settings import RunSettings


@pytest.fixture(autouse=True)
def as_it_was():
    pool, torchs = ops.num_threads(), torch.get_num_threads()
    yield
    ops.set_num_threads(pool)
    torch.set_num_threads(torchs)


@pytest.mark.parametrize(
    ("threads", "torch_threads", "pool", "torchs"), [(0, 0, 3, 4), (2, 0, 2, 2), (2, 1, 2, 1), (0, 1, 3, 1)]
)
def test_each_gets_its_number_and_zero_leaves_it(threads: int, torch_threads: int, pool: int, torchs: int):
    ops.set_num_threads(3)
    torch.set_num_threads(4)
    use_threads(RunSettings(threads=threads, torch_threads=torch_threads))
    assert (ops.num_threads(), torch.get_num_threads()) == (pool, torchs)

# SPDX-License-Identifier: Apache-2.0
"""The tests of the CUDA kernels from Python, marked `gpu`: on a GPU, or, with an extension that was built
with EARNEST_CUDA=EMULATED (tests/conftest.py loads it), with the same kernels on the CPU and tensors in its
memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from earnest import _native
from earnest.ops import cuda

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


def why_not(emulation_will_do: bool) -> str:
    """Why the kernels cannot run here; empty where they can."""
    if _native.CUDA_BUILD == "EMULATED":
        return "" if emulation_will_do else "needs a GPU; the kernels are emulated"
    if _native.CUDA_BUILD == "OFF":
        return (
            "needs a build with EARNEST_CUDA=ON and a GPU, or one with EARNEST_CUDA=EMULATED; this is neither"
        )
    return "" if torch.cuda.is_available() else f"needs a GPU; torch {torch.__version__} sees none"


@pytest.fixture
def device() -> Iterator[torch.device]:
    """Where the kernels run: tensors are to be moved there."""
    if reason := why_not(emulation_will_do=True):
        pytest.skip(reason)
    with cuda.emulated(_native.CUDA_BUILD == "EMULATED"):
        yield torch.device("cuda" if _native.CUDA_BUILD == "ON" else "cpu")


@pytest.fixture
def gpu() -> torch.device:
    """A real GPU."""
    if reason := why_not(emulation_will_do=False):
        pytest.skip(reason)
    return torch.device("cuda")

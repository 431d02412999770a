# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test may use. EARNEST_EMULATED names an extension built with EARNEST_CUDA=EMULATED
(`make test-emulated`), which then stands in for the installed one."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

import earnest


def load_native(path: str) -> None:
    """The extension at `path` as earnest._native."""
    spec = importlib.util.spec_from_file_location("earnest._native", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["earnest._native"] = earnest._native = module
    spec.loader.exec_module(module)


if emulated := os.environ.get("EARNEST_EMULATED"):
    load_native(emulated)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data pack that lies beside a checkout in development and CI; it is never part of the product."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"needs the development data pack at {path}")
    return path

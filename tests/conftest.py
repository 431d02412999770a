# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test may use."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data pack that lies beside a checkout in development and CI; it is never part of the product."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"needs the development data pack at {path}")
    return path

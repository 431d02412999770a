# SPDX-License-Identifier: Apache-2.0
"""What the README claims is what the committed run measured."""

import json
from pathlib import Path

from earnest.report import table

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_the_readme_is_that_of_the_committed_run():
    metrics = json.loads((ROOT / "bench" / "results" / "demo" / "seed0.json").read_text())
    assert not metrics["quick"]
    assert table(metrics).strip("\n") in (ROOT / "README.md").read_text()

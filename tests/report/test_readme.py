# SPDX-License-Identifier: Apache-2.0
"""What the README claims is what the committed runs measured."""

import json
import shutil
from pathlib import Path

from earnest.report import table_of_runs
from earnest.report.columns import METRICS_FILE

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_the_readme_is_that_of_the_committed_runs(tmp_path):
    results = sorted((ROOT / "bench" / "results" / "demo").glob("seed*.json"))
    assert len(results) >= 3
    folders = [tmp_path / result.stem for result in results]
    for folder, result in zip(folders, results, strict=True):
        folder.mkdir()
        shutil.copy(result, folder / METRICS_FILE)
        metrics = json.loads(result.read_text())
        assert not metrics["quick"]
        assert f"seed{metrics['seed']}" == result.stem
    assert table_of_runs(folders).strip("\n") in (ROOT / "README.md").read_text()

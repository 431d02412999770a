# SPDX-License-Identifier: Apache-2.0
"""The house rules that no linter knows: file lengths, the wall around the kernels, licence lines."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kernels", "csrc", "python", "tests", "bench")
SOURCE_SUFFIXES = {".py", ".cc", ".h", ".cu", ".cuh"}
MOST_LINES = 499
FOREIGN_INCLUDE = re.compile(
    r"^\s*#\s*include\s*[<\"](Python\.h|torch/|ATen/|c10/|nanobind/|pybind11/)", re.M
)


def sources(*folders: str) -> list[Path]:
    return sorted(
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in SOURCE_SUFFIXES
    )


def names_of(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_every_source_file_is_shorter_than_500_lines():
    long = [path for path in sources(*FOLDERS) if len(path.read_text().splitlines()) > MOST_LINES]
    assert names_of(long) == []


def test_every_source_file_begins_with_its_licence():
    bare = [
        path
        for path in sources(*FOLDERS)
        if "SPDX-License-Identifier: Apache-2.0" not in path.read_text()[:200]
    ]
    assert names_of(bare) == []


def test_kernels_know_no_framework():
    leaking = [path for path in sources("kernels") if FOREIGN_INCLUDE.search(path.read_text())]
    assert names_of(leaking) == []


def test_kernels_do_not_include_what_stands_above_them():
    above = re.compile(r"^\s*#\s*include\s*[<\"](csrc|python)/", re.M)
    assert names_of([path for path in sources("kernels") if above.search(path.read_text())]) == []


@pytest.mark.parametrize(
    "line", ["#include <Python.h>", "  # include <torch/extension.h>", '#include "nanobind/ndarray.h"']
)
def test_the_wall_sees_a_breach(line: str):
    assert FOREIGN_INCLUDE.search(f"// kernels\n{line}\n")


def test_no_pickle_is_ever_loaded():
    loading = re.compile(r"\bimport pickle\b|\bpickle\.loads?\(|\btorch\.load\(")
    assert names_of([path for path in sources("python") if loading.search(path.read_text())]) == []

# SPDX-License-Identifier: Apache-2.0
"""The house rules that no linter knows: file lengths, the wall around the kernels, licence lines."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kernels", "csrc", "python", "tests", "bench", "examples")
SOURCE_SUFFIXES = {".py", ".c", ".cc", ".h", ".cu", ".cuh", ".rs"}
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


def test_apps_and_examples_know_the_public_header_alone():
    inside = re.compile(r"^\s*#\s*include\s*[<\"](csrc|kernels)/", re.M)
    assert (
        names_of([path for path in sources("csrc/apps", "examples") if inside.search(path.read_text())]) == []
    )


def test_every_package_has_the_version_of_the_header():
    header = (ROOT / "csrc/include/earnest.h").read_text()
    version = re.search(r'^#define EARNEST_VERSION "(.+)"$', header, re.M)[1]
    for file, line in (("pyproject.toml", "version"), ("python/earnest/__init__.py", "__version__")):
        assert re.search(rf'^{line} = "(.+)"$', (ROOT / file).read_text(), re.M)[1] == version, file


def test_no_pickle_is_ever_loaded():
    loading = re.compile(r"\bimport pickle\b|\bpickle\.loads?\(|\btorch\.load\(")
    assert names_of([path for path in sources("python") if loading.search(path.read_text())]) == []

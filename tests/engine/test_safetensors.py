# SPDX-License-Identifier: Apache-2.0
"""The checkpoint reader of the engine: what the safetensors package writes is read, and whatever else a file
holds is refused by the name of the file, never with a crash."""

import json
import re
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from earnest import _native

engine = _native.engine
NAMES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def build(header, numbers=b"", length=None):
    """A file with this header (JSON, or bytes as they are)."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + numbers


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refusal(path, data):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"\[(load|json)\] .*{path.name}") as caught:
        engine.read_safetensors(str(path))
    return str(caught.value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(lambda n: n != "__metadata__"),
        st.tuples(st.sampled_from(sorted(NAMES)), st.lists(st.integers(0, 4), max_size=4)),
        max_size=5,
    ),
    st.booleans(),
)
def test_what_the_package_writes_is_read(tmp_path, wanted, with_metadata):
    tensors = {name: torch.zeros(shape, dtype=NAMES[dtype]) for name, (dtype, shape) in wanted.items()}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"} if with_metadata else None)
    got = engine.read_safetensors(str(tmp_path / "a.safetensors"))
    assert sorted(got) == sorted((name, dtype, list(shape)) for name, (dtype, shape) in wanted.items())


FULL = build({"a": entry(0, 24, [2, 3]), "b": entry(24, 32, [4], "BF16")}, bytes(32))


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(FULL) - 1), st.integers(0, 255)), max_size=6), st.data())
def test_a_file_changed_anywhere_is_read_or_refused_by_name(tmp_path, changes, data):
    changed = bytearray(FULL)
    for place, byte in changes:
        changed[place] = byte
    cut = data.draw(st.integers(0, len(FULL)))
    path = tmp_path / "b.safetensors"
    path.write_bytes(bytes(changed[: cut if data.draw(st.booleans()) else len(FULL)]))
    try:
        engine.read_safetensors(str(path))
    except ValueError as error:
        assert "b.safetensors" in str(error)  # noqa: PT017


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "I64", "f32"]) | JSON,
        "shape": st.lists(st.integers(-1, 2**63), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 2**64), max_size=3) | JSON,
    },
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(st.text(max_size=4), FIELDS | JSON, min_size=1, max_size=3) | JSON)
def test_any_header_is_read_or_refused_by_name(tmp_path, header):
    path = tmp_path / "c.safetensors"
    path.write_bytes(build(header, bytes(16)))
    try:
        engine.read_safetensors(str(path))
    except ValueError as error:
        assert "c.safetensors" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"1234567", "at least 8 bytes"),
        (build(b"{}", length=3), "header: expected at most 2 bytes, got 3"),
        (build(b"{}", length=2**64 - 1), "header: expected at most 2 bytes, got 18446744073709551615"),
        (build({}, b"\0"), "expected 10 bytes, got 11"),
        (build([]), "a JSON object"),
        (
            build({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, bytes(4)),
            '"b": expected numbers from byte 4',
        ),
        (
            build({"a": entry(4, 8, [1])}, bytes(8)),
            '"a": expected numbers from byte 0 on, got 4, after a gap',
        ),
        (build({"a": entry(0, 8, [1])}, bytes(8)), '"a": expected 4 bytes for F32 \\[1\\], got 8'),
        (build({"a": entry(0, 4, [2**62, 4])}, bytes(4)), "more than can be addressed"),
        (build({"a": entry(0, 4, [2**32, 2**32])}, bytes(4)), "more than can be addressed"),
        (build({"a": entry(0, 4, [-1])}, bytes(4)), "whole numbers from 0 on"),
        (build({"a": entry(0, 8, [1])}, bytes(4)), "within 4 bytes"),
        (build({"a": entry(4, 0, [1])}, bytes(4)), "within 4 bytes"),
        (build({"a": entry(0, 8, [1], "I64")}, bytes(8)), 'expected F32, BF16, F16 or U8, got "I64"'),
        (build({"a": {"dtype": "F32", "shape": []}}), "dtype, shape and data_offsets"),
        (
            build(b'{"a":' + json.dumps(entry(0, 4, [1])).encode() + b',"a":1}', bytes(4)),
            "of that name, got two",
        ),
        (build({"a": entry(0, 4, [1] * 9)}, bytes(4)), "at most 8 axes"),
    ],
)
def test_each_defect_is_one_sentence(tmp_path, data, says):
    assert re.search(says, refusal(tmp_path / "d.safetensors", data))


def shard(path, *names):
    save_file({name: torch.zeros(2) for name in names}, path)


def test_shards_are_joined_by_their_index(tmp_path):
    shard(tmp_path / "x.safetensors", "a", "b")
    shard(tmp_path / "y.safetensors", "c")
    where = {"a": "x.safetensors", "b": "x.safetensors", "c": "y.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert [name for name, _, _ in engine.read_checkpoint(str(tmp_path))] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({"weight_map": {"a": "../x.safetensors"}}, "without folders"),
        ({"weight_map": {"a": "/etc/passwd"}}, "without folders"),
        ({"weight_map": {"a": "x.safetensors\0.safetensors"}}, "without folders"),
        ({"weight_map": {"a": "x.bin"}}, "ends in .safetensors"),
        ({"weight_map": {"a": 1}}, "a file name"),
        ({"weight_map": {}}, "lists tensors"),
        ({}, "lists tensors"),
        ({"weight_map": {"z": "x.safetensors"}}, "as the index says, got none"),
        ({"weight_map": {"a": "x.safetensors", "c": "x.safetensors"}}, "as the index says"),
        ({"weight_map": {"a": "x.safetensors", "d": "same.safetensors"}}, "in one file only"),
        ({"weight_map": {"a": "none.safetensors"}}, "none.safetensors: expected a file that can be read"),
        ({"weight_map": {"a": "folder.safetensors"}}, "a regular file"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, index, says):
    shard(tmp_path / "x.safetensors", "a", "b")
    shard(tmp_path / "same.safetensors", "a", "d")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=says):
        engine.read_checkpoint(str(tmp_path))


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"model.safetensors: expected a file that can be read"):
        engine.read_checkpoint(str(tmp_path))

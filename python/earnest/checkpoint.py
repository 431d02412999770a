# SPDX-License-Identifier: Apache-2.0
"""The state of a run on disk: tensors in safetensors, everything else in JSON, sha256 sums beside them, no
pickle.

A state is a tree of dicts, lists, tuples, tensors, numpy arrays, numbers, strings, bools and None (what
`state_dict()` of modules and optimizers gives). `save` writes it beside its place and renames it, so that a
folder with the final name is always whole::

    step-00000400/state.safetensors   the tensors, by their path in the tree
                  state.json          the tree, a tensor standing as {"$tensor": name} manifest.json
                  step, what the caller wants to know without loading, sha256 of the other two
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from earnest.errors import InvalidInput

OP = "checkpoint"
TENSORS, TREE, MANIFEST = "state.safetensors", "state.json", "manifest.json"


class Damaged(InvalidInput):
    """A saved state that is not what was written."""


def save(folder: Path, tree: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Writes `tree` as the folder `folder`, all or nothing. `manifest` (plain JSON) can be read without the
    tensors. Raises what the system or safetensors says (see `is_disk_full`), and then nothing of it stays."""
    tensors: dict[str, torch.Tensor] = {}
    plain = _encode(tree, "", tensors, {})
    beside = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    try:
        beside.mkdir(parents=True)
        save_file(tensors, beside / TENSORS)
        (beside / TREE).write_text(json.dumps(plain), encoding="utf-8")
        sums = {name: _sha256(beside / name) for name in (TENSORS, TREE)}
        (beside / MANIFEST).write_text(json.dumps({**manifest, "sha256": sums}), encoding="utf-8")
        for name in (TENSORS, TREE, MANIFEST):
            _sync(beside / name)
        if folder.exists():  # saved before, by a run that then went back further
            shutil.rmtree(folder)
        beside.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def load(folder: Path) -> dict[str, Any]:
    """The tree that `save` wrote, tensors on the CPU. Raises Damaged when a file is missing or its sum
    differs."""
    sums = manifest_of(folder).get("sha256", {})
    for name in (TENSORS, TREE):
        if not (folder / name).is_file():
            raise Damaged(OP, str(folder / name), "a file", "none")
        if _sha256(folder / name) != sums.get(name):
            raise Damaged(
                OP, str(folder / name), "the sha256 sum of its manifest", "another one (damaged file)"
            )
    try:
        return _decode(json.loads((folder / TREE).read_text(encoding="utf-8")), load_file(folder / TENSORS))
    except (ValueError, KeyError, SafetensorError) as error:
        raise Damaged(OP, str(folder), "a state written by earnest", f"{error}") from None


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of a saved state. Raises Damaged when there is none or it is no JSON."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Damaged(OP, str(folder / MANIFEST), "a manifest", str(error)) from None
    if not isinstance(manifest, dict):
        raise Damaged(OP, str(folder / MANIFEST), "a manifest", "other JSON")
    return manifest


def write_atomic(path: Path, data: str | bytes) -> None:
    """Writes a small file beside its place and renames it: a reader sees the old file or the new one,
    whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data.encode() if isinstance(data, str) else data)
        _sync(beside)
        beside.replace(path)
        _sync(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


# ---- objects and their states ----


def state_of(item: Any) -> Any:
    """The state of one object of a run: something with `state_dict()`, a torch or numpy generator, or a dict
    (its content). Reading it changes nothing."""
    if isinstance(item, torch.Generator):
        return item.get_state()
    if isinstance(item, np.random.Generator):
        return item.bit_generator.state
    if hasattr(item, "state_dict"):
        return item.state_dict()
    if isinstance(item, dict):
        return item
    raise TypeError(
        f"[{OP}] state: expected something with state_dict(), a generator or a dict, got {type(item)}"
    )


def put_state(item: Any, state: Any) -> None:
    """Gives `item` the state that `state_of` read, in place."""
    if isinstance(item, torch.Generator):
        item.set_state(state)
    elif isinstance(item, np.random.Generator):
        item.bit_generator.state = state
    elif hasattr(item, "load_state_dict"):
        item.load_state_dict(state)
    else:
        item.clear()
        item.update(state)


# ---- the tree ----


def _encode(value: Any, path: str, tensors: dict[str, torch.Tensor], seen: dict[tuple, str]) -> Any:
    """`value` as plain JSON, its tensors put into `tensors`; `seen` keeps tied tensors one."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        return {"$tensor": _put_tensor(value, path, tensors, seen)}
    if isinstance(value, np.ndarray):
        return {"$array": _put_tensor(torch.from_numpy(np.ascontiguousarray(value)), path, tensors, {}),
                "dtype": value.dtype.str, "shape": list(value.shape)}  # fmt: skip
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {
                key: _encode(item, f"{path}/{key}" if path else key, tensors, seen)
                for key, item in value.items()
            }
        if not all(isinstance(key, (str, int)) for key in value):
            raise TypeError(
                f"[{OP}] {path}: expected str or int keys, got {sorted({type(k).__name__ for k in value})}"
            )
        return {
            "$dict": [[key, _encode(item, f"{path}/{key}", tensors, seen)] for key, item in value.items()]
        }
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{path}/{i}", tensors, seen) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    raise TypeError(f"[{OP}] {path}: expected tensors and plain values, got {type(value).__name__}")


def _put_tensor(
    value: torch.Tensor, path: str, tensors: dict[str, torch.Tensor], seen: dict[tuple, str]
) -> str:
    value = value.detach()
    identity = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype, value.device)
    if value.numel() and identity in seen:
        return seen[identity]
    name = path
    while name in tensors:  # {"a/b": x, "a": {"b": y}}
        name += "'"
    # safetensors takes no views of a shared storage, so a tensor that is only a part is copied.
    whole = value.is_contiguous() and value.untyped_storage().nbytes() == value.numel() * value.element_size()
    tensors[name] = value if whole else value.clone(memory_format=torch.contiguous_format)
    seen[identity] = name
    return name


def _decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$array" in value:
        return tensors[value["$array"]].numpy().astype(value["dtype"], copy=False).reshape(value["shape"])
    if "$tuple" in value:
        return tuple(_decode(item, tensors) for item in value["$tuple"])
    if "$dict" in value:
        return {key: _decode(item, tensors) for key, item in value["$dict"]}
    return {key: _decode(item, tensors) for key, item in value.items()}


# ---- files ----


def is_disk_full(error: BaseException) -> bool:
    """Whether the error says that there is no room left; safetensors wraps what the system said into text."""
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, SafetensorError):
        return any(f"os error {number})" in str(error) for number in full)
    return isinstance(error, OSError) and error.errno in full


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: safetensors in, safetensors out, nothing else. All names, shapes and dtypes are checked from
the file headers before a single weight is read; each defect is one sentence."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from earnest.errors import InvalidInput, MissingExtra

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def find_folder(path_or_id: str | Path, revision: str | None = None) -> Path:
    """The folder itself, or that of a hub repository, downloaded if need be."""
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    name = str(path_or_id)
    parts = name.split("/")
    if (
        isinstance(path_or_id, Path)
        or len(parts) != 2
        or not all(parts)
        or name[0] in "./~"
        or folder.exists()
    ):
        raise InvalidInput("load", "path_or_id", "a model folder or a hub id like owner/name", repr(name))
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise MissingExtra(f"load {name}, which is no folder here", "huggingface_hub", "hub") from None
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.txt"])
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidInput(
            "load", "path_or_id", "a model folder or a hub id that can be fetched", f"{name!r}: {reason}"
        ) from None


class Checkpoint:
    """The tensors of a folder, by name, wherever they lie."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, str] = self._listed() if (folder / INDEX).exists() else {}
        self.entries: dict[str, tuple[str, tuple[int, ...]]] = {}
        names = sorted(set(self.files.values())) or [SINGLE]
        for name in names:
            if not (folder / name).is_file():
                raise InvalidInput("load", str(folder), f"a file {name}", "none")
            self._scan(name)
        for tensor, name in self.files.items():
            if tensor not in self.entries:
                raise InvalidInput("load", name, f"tensor {tensor}, as the index says", "none")

    def _listed(self) -> dict[str, str]:
        path = self.folder / INDEX
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            pairs = list(listed.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(
                "load", str(path), "JSON with a weight_map", f"{type(error).__name__}: {error}"
            ) from None
        for tensor, name in pairs:
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise InvalidInput(
                    "load",
                    INDEX,
                    "file names that end in .safetensors, without folders",
                    f"{name!r} for {tensor}",
                )
        return dict(pairs)

    def _scan(self, name: str) -> None:
        with _opened(self.folder / name) as file:
            for tensor in list(file.keys()):
                if tensor in self.entries or self.files.get(tensor, name) != name:
                    raise InvalidInput("load", name, f"tensor {tensor} in one file only", "it in two")
                part = file.get_slice(tensor)
                self.entries[tensor] = (part.get_dtype(), tuple(part.get_shape()))
                self.files[tensor] = name

    def check(
        self, expected: Mapping[str, tuple[int, ...]], optional: set[str] | frozenset[str] = frozenset()
    ) -> None:
        """Refuses missing, extra, wrong-shaped and wrong-typed tensors, naming the first and counting the
        rest."""
        missing = [name for name in expected if name not in self.entries and name not in optional]
        extra = [name for name in self.entries if name not in expected]
        if missing:
            raise InvalidInput("load", str(self.folder), f"tensor {missing[0]}", f"none{_more(missing)}")
        if extra:
            raise InvalidInput(
                "load", str(self.folder), "only tensors of the model", f"{extra[0]}{_more(extra)}"
            )
        for name, (dtype, shape) in self.entries.items():
            if shape != tuple(expected[name]):
                raise InvalidInput("load", name, f"shape {list(expected[name])}", str(list(shape)))
            if dtype not in DTYPES:
                raise InvalidInput("load", name, "float32, bfloat16 or float16", dtype)

    def read_into(self, state: Mapping[str, Tensor]) -> None:
        """Copies every tensor into the one of that name. Tied ones must agree."""
        by_file: dict[str, list[str]] = {}
        for tensor, name in self.files.items():
            by_file.setdefault(name, []).append(tensor)
        filled: dict[int, str] = {}
        for name, tensors in by_file.items():
            with _opened(self.folder / name) as file, torch.no_grad():
                for tensor in tensors:
                    value, target = file.get_tensor(tensor), state[tensor]
                    if target.data_ptr() in filled and not torch.equal(target, value.to(target)):
                        raise InvalidInput(
                            "load", tensor, f"the values of {filled[target.data_ptr()]} (tied)", "others"
                        )
                    target.copy_(value)
                    filled[target.data_ptr()] = tensor

    def tensor(self, name: str) -> Tensor:
        """One tensor as it is stored."""
        with _opened(self.folder / self.files[name]) as file:
            return file.get_tensor(name)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InvalidInput("load", path.name, "a whole safetensors file", str(error)) from None


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def write(folder: Path, state: Mapping[str, Tensor], config: dict[str, Any], max_shard_bytes: int) -> None:
    """config.json and the weights, one file or numbered shards of at most max_shard_bytes with an index."""
    shards: list[dict[str, Tensor]] = [{}]
    room = max_shard_bytes
    for name, tensor in state.items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and size > room:
            shards.append({})
            room = max_shard_bytes
        shards[-1][name] = tensor
        room -= size
    files = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    )
    for file, shard in zip(files, shards, strict=True):
        # Parameters that share an allocation are stored each on its own.
        own = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in shard.items()}
        save_file(own, folder / file, metadata={"format": "pt"})
        _sync(folder / file)
    if len(shards) > 1:
        total = sum(t.numel() * t.element_size() for t in state.values())
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: file for file, shard in zip(files, shards, strict=True) for name in shard},
        }
        _write_json(folder / INDEX, index)
    _write_json(folder / "config.json", config)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A new folder beside `path` that takes its place when the block ends well, and vanishes when it does
    not.

    An existing `path` must be an earlier model (or empty); files in it that are not weights are carried
    over."""
    target = Path(path).expanduser().resolve()
    carried: list[Path] = []
    if target.exists():
        entries = list(target.iterdir()) if target.is_dir() else None
        if (
            entries is None
            or any(e.is_dir() for e in entries)
            or (entries and not (target / "config.json").exists())
        ):
            raise InvalidInput(
                "save", "path", "a new or empty folder or one that holds only a model", str(path)
            )
        carried = [
            e for e in entries if not e.name.endswith(".safetensors") and e.name not in ("config.json", INDEX)
        ]
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        os.chmod(fresh, 0o755)
        yield fresh
        for entry in carried:
            if not (fresh / entry.name).exists():
                shutil.copy2(entry, fresh / entry.name)
        _sync(fresh)
        if target.exists():
            _exchange(fresh, target)
            shutil.rmtree(fresh)
        else:
            os.rename(fresh, target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _exchange(first: Path, second: Path) -> None:
    """Swaps two folders in one step where the system can (Linux), in two where it cannot."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if swap is not None and swap(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0:
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{second.name}.", dir=second.parent))
    os.rename(second, aside / "old")
    os.rename(first, second)
    os.rename(aside / "old", first)
    os.rmdir(aside)

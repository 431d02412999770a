# SPDX-License-Identifier: Apache-2.0
"""Settings of a stage: a dataclass, then a YAML file, then ``--set key=value``; every value remembers where
it came from.

A stage describes its settings as a dataclass of plain values and nested dataclasses::

    @dataclass(frozen=True)
    class Settings:
        seed: int = 0
        policy: PolicySettings = field(default_factory=PolicySettings)
        clip: float = setting(0.2, "how far the ratio may move", above=0)

    settings = resolve(Settings, "sft.yaml", ["policy.clip=0.3"])
    print(describe(settings))          # policy.clip = 0.3   --set

Leaves may be bool, int, float, str, Path, Literal, Optional of those, tuple[X, ...], list[X] and dict[str,
X]. A key nobody knows, a value of the wrong type or out of range is an InvalidInput naming the place that
said it."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from earnest.errors import InvalidInput

OP = "settings"
DEFAULT = "default"
S = TypeVar("S")


def setting(
    default: Any,
    doc: str = "",
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    volatile: bool = False,
) -> Any:
    """A dataclass field with a line of help and a range. A `volatile` one does not change any number of the
    run (how often to save, how many threads), so a run may be resumed with another value of it."""
    metadata = {"doc": doc, "at_least": at_least, "above": above, "at_most": at_most, "volatile": volatile}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: default.copy(), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RunSettings:
    """How a run is kept, the same for every stage. A stage has it as its field ``run``."""

    save_every_seconds: float = setting(60.0, "save the state about this often", above=0, volatile=True)
    save_every_steps: int = setting(
        0, "and after this many steps (0: by time only)", at_least=0, volatile=True
    )
    keep: int = setting(2, "how many saved states to keep", at_least=1, volatile=True)
    tensorboard: bool = setting(True, "write TensorBoard scalars beside metrics.jsonl", volatile=True)
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "of matrix products (auto: bfloat16 on cuda, and where the processor multiplies it natively)",
    )
    device: Literal["cpu", "cuda"] = setting(
        "cpu", "what models are trained on; of several GPUs CUDA_VISIBLE_DEVICES names one"
    )
    threads: int = setting(0, "threads to compute with (0: every core)", at_least=0, volatile=True)
    torch_threads: int = setting(
        0, "threads of torch's own operations, beside our kernels (0: as threads)", at_least=0, volatile=True
    )
    resume: bool = setting(True, "go on from a saved state; false starts over", volatile=True)


@dataclass(frozen=True)
class _Leaf:
    """One value that can be set: its dotted key, its type and the metadata of its field."""

    key: str
    kind: Any
    metadata: Mapping[str, Any]


def resolve(
    kind: type[S], config: str | Path | None = None, overrides: Sequence[str] = (), *, base: S | None = None
) -> S:
    """The settings of type `kind`: those of `base` (or the defaults), then the YAML file `config`, then
    `overrides` ("key=value" with dotted keys). Raises InvalidInput that names the file and line, or the
    override, at fault."""
    start = kind() if base is None else base
    leaves = {leaf.key: leaf for leaf in _leaves(kind)}
    values: dict[str, Any] = {}
    origins: dict[str, str] = dict(_origins(start))
    if config is not None:
        _read_file(Path(config), leaves, values, origins)
    for override in overrides:
        _apply_override(override, start, leaves, values, origins)
    result = _rebuild(start, "", values)
    _remember(result, origins)
    return result


def origin_of(settings: object, key: str) -> str:
    """Where the value of the dotted `key` came from: "default", "file.yaml:12" or "--set"."""
    return _origins(settings).get(key, DEFAULT)


def flatten(settings: object) -> dict[str, Any]:
    """Every value of `settings` under its dotted key, in the order of declaration."""
    return {leaf.key: _get(settings, leaf.key) for leaf in _leaves(type(settings))}


def describe(settings: object, *, documented: bool = False) -> str:
    """One line per value: ``key = value   origin``, and with `documented` what each means."""
    docs = {leaf.key: leaf.metadata.get("doc", "") for leaf in _leaves(type(settings))}
    rows = [(key, _show(value), origin_of(settings, key)) for key, value in flatten(settings).items()]
    left = max((len(key) for key, _, _ in rows), default=0)
    middle = min(max((len(value) for _, value, _ in rows), default=0), 40)
    right = max((len(origin) for _, _, origin in rows), default=0)
    return "\n".join(
        f"{key:<{left}} = {value:<{middle}}  {origin:<{right}}  {docs[key] if documented else ''}".rstrip()
        for key, value, origin in rows
    )


def to_yaml(settings: object) -> str:
    """The settings as a YAML file that `resolve` reads back to equal settings; origins stand in comments at
    the top."""
    changed = {key: origin for key, origin in _origins(settings).items() if origin != DEFAULT}
    head = "".join(f"# {key}: {origin}\n" for key, origin in changed.items())
    return head + yaml.safe_dump(to_plain(settings), sort_keys=False, allow_unicode=True)


def to_plain(settings: object) -> dict[str, Any]:
    """The settings as nested dicts of what JSON and YAML can say."""
    plain: dict[str, Any] = {}
    for key, value in flatten(settings).items():
        *groups, name = key.split(".")
        place = plain
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = _plain_value(value)
    return plain


def differences(old: Mapping[str, Any], settings: object) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) where the plain settings `old` and `settings` differ, volatile ones
    apart."""
    before = _flat_plain(old)
    found = []
    for leaf in _leaves(type(settings)):
        new = _plain_value(_get(settings, leaf.key))
        was = before.get(leaf.key, _plain_value(_get(type(settings)(), leaf.key)))
        if isinstance(new, dict):
            prefix = leaf.key + "."
            was = {key[len(prefix) :]: value for key, value in before.items() if key.startswith(prefix)}
        if was != new and not leaf.metadata.get("volatile"):
            found.append((leaf.key, was, new))
    return found


# ---- the shape of a settings class ----


def _leaves(kind: type, prefix: str = "") -> list[_Leaf]:
    hints = typing.get_type_hints(kind)
    leaves: list[_Leaf] = []
    for item in dataclasses.fields(kind):
        hint, key = hints[item.name], prefix + item.name
        if dataclasses.is_dataclass(hint):
            leaves += _leaves(typing.cast(type, hint), key + ".")
        else:
            leaves.append(_Leaf(key, hint, item.metadata))
    return leaves


def _get(settings: object, key: str) -> Any:
    for name in key.split("."):
        settings = getattr(settings, name)
    return settings


def _rebuild(settings: S, prefix: str, values: Mapping[str, Any]) -> S:
    changes = {}
    for item in dataclasses.fields(typing.cast(Any, settings)):
        old, key = getattr(settings, item.name), prefix + item.name
        if dataclasses.is_dataclass(old) and not isinstance(old, type):
            changes[item.name] = _rebuild(old, key + ".", values)
        elif key in values:
            changes[item.name] = values[key]
    return dataclasses.replace(typing.cast(Any, settings), **changes)


def _origins(settings: object) -> dict[str, str]:
    return getattr(settings, "_origins_of_values", {})


def _remember(settings: object, origins: Mapping[str, str]) -> None:
    object.__setattr__(settings, "_origins_of_values", dict(origins))  # the dataclass may be frozen


def _flat_plain(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        flat |= (
            _flat_plain(value, f"{prefix}{name}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{name}": value}
        )
    return flat


def _plain_value(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain_value(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain_value(item) for key, item in value.items()}
    return value


def _show(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_show(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_show(item)}" for key, item in value.items()) + "}"
    return repr(value) if value == "" else str(value)


# ---- reading ----


def _read_file(path: Path, leaves: dict[str, _Leaf], values: dict[str, Any], origins: dict[str, str]) -> None:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise InvalidInput(OP, "config", "a YAML file", f"{path} ({error.strerror or error})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InvalidInput(OP, place, "valid YAML", getattr(error, "problem", None) or str(error)) from None
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise InvalidInput(
            OP, f"{path}:{root.start_mark.line + 1}", "a mapping of keys to values", _kind_of(root)
        )
    _read_mapping(root, "", path, leaves, values, origins)


def _read_mapping(
    node: yaml.MappingNode,
    prefix: str,
    path: Path,
    leaves: dict[str, _Leaf],
    values: dict[str, Any],
    origins: dict[str, str],
) -> None:
    seen: set[str] = set()
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        place = f"{path}:{key_node.start_mark.line + 1}"
        if key in seen:
            raise InvalidInput(OP, f"{place} {key}", "each key once", "it twice")
        seen.add(key)
        if key in leaves:
            values[key] = _convert(value_node, leaves[key], place)
            origins[key] = place
        elif any(known.startswith(key + ".") for known in leaves):
            if not isinstance(value_node, yaml.MappingNode):
                raise InvalidInput(OP, f"{place} {key}", "a group of settings", _kind_of(value_node))
            _read_mapping(value_node, key + ".", path, leaves, values, origins)
        else:
            raise _unknown(key, place, leaves)


def _apply_override(
    override: str, start: object, leaves: dict[str, _Leaf], values: dict[str, Any], origins: dict[str, str]
) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InvalidInput(OP, "--set", "key=value", repr(override))
    place = f"--set {key}"
    parent, _, item = key.rpartition(".")
    if key in leaves:
        values[key] = _convert(_compose_value(text, leaves[key].kind, place), leaves[key], place)
        origins[key] = "--set"
    elif parent in leaves and typing.get_origin(leaves[parent].kind) is dict:
        leaf = _Leaf(key, typing.get_args(leaves[parent].kind)[1], leaves[parent].metadata)
        value = _convert(_compose_value(text, leaf.kind, place), leaf, place)
        values[parent] = {**values.get(parent, _get(start, parent)), item: value}
        origins[parent] = "--set"
    elif any(known.startswith(key + ".") for known in leaves):
        members = ", ".join(known for known in leaves if known.startswith(key + "."))
        raise InvalidInput(OP, place, f"one value of the group ({members})", repr(text))
    else:
        raise _unknown(key, "--set", leaves)


def _compose_value(text: str, kind: Any, place: str) -> yaml.Node:
    if kind in (str, Path):  # the words as they are, colons and all
        return yaml.ScalarNode("tag:yaml.org,2002:str", text)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        raise InvalidInput(OP, place, _name_of(kind), repr(text)) from None
    return yaml.ScalarNode("tag:yaml.org,2002:null", "") if node is None else node


def _unknown(key: str, place: str, leaves: dict[str, _Leaf]) -> InvalidInput:
    def likeness(known: str) -> float:
        whole = difflib.SequenceMatcher(None, key, known).ratio()
        last = difflib.SequenceMatcher(None, key.rpartition(".")[2], known.rpartition(".")[2]).ratio()
        return max(whole, 0.95 * last)

    nearest = max(leaves, key=likeness) if leaves else "none"
    return InvalidInput(OP, place, f"a known key (the nearest is {nearest})", repr(key))


# ---- one value ----


def _convert(node: yaml.Node, leaf: _Leaf, place: str) -> Any:
    argument = place if leaf.key in place else f"{place} {leaf.key}"
    try:
        value = _value(node, leaf.kind)
    except ValueError:
        raise InvalidInput(OP, argument, _name_of(leaf.kind), _kind_of(node)) from None
    for item in value if isinstance(value, (tuple, list)) else [value]:
        _check_range(item, leaf.metadata, argument)
    return value


def _check_range(value: Any, metadata: Mapping[str, Any], argument: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    for name, words, holds in (
        ("at_least", "at least", lambda bound: value >= bound),
        ("above", "above", lambda bound: value > bound),
        ("at_most", "at most", lambda bound: value <= bound),
    ):
        bound = metadata.get(name)
        if bound is not None and not holds(bound):
            raise InvalidInput(OP, argument, f"a number {words} {bound}", str(value))


def _value(node: yaml.Node, kind: Any) -> Any:
    """The node as a value of type `kind`; ValueError where it is none."""
    shape, arguments = typing.get_origin(kind), typing.get_args(kind)
    if shape in (typing.Union, types.UnionType):
        return _union_value(node, arguments)
    if shape is typing.Literal:
        for choice in arguments:
            if isinstance(node, yaml.ScalarNode) and node.value == _show(choice):
                return choice
        raise ValueError
    if shape in (tuple, list):
        if not isinstance(node, yaml.SequenceNode):
            raise ValueError
        return shape(_value(item, arguments[0]) for item in node.value)
    if shape is dict:
        if not isinstance(node, yaml.MappingNode):
            raise ValueError
        return {key.value: _value(item, arguments[1]) for key, item in node.value}
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError
    return _scalar(node, kind)


def _union_value(node: yaml.Node, kinds: tuple[Any, ...]) -> Any:
    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null" and type(None) in kinds:
        return None
    # Narrow types first: "3" for `int | str` is an int.
    for kind in sorted(
        (kind for kind in kinds if kind is not type(None)), key=lambda kind: kind in (str, Path)
    ):
        try:
            return _value(node, kind)
        except ValueError:
            continue
    raise ValueError


def _scalar(node: yaml.ScalarNode, kind: Any) -> Any:
    text, null = node.value, node.tag == "tag:yaml.org,2002:null"
    if kind in (str, Path):
        if null:
            raise ValueError
        return kind(text)
    if kind is bool:
        if text.lower() in ("true", "yes", "on"):
            return True
        if text.lower() in ("false", "no", "off"):
            return False
        raise ValueError
    if kind is int:
        return int(text, 10)
    if kind is float:
        number = float(text.lower().replace(".inf", "inf"))  # YAML itself takes 1e-4 for a string
        if number != number:
            raise ValueError
        return number
    raise TypeError(f"settings of type {kind} are not supported")


def _kind_of(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return "nothing" if node.tag == "tag:yaml.org,2002:null" and not node.value else repr(node.value)
    return "a list" if isinstance(node, yaml.SequenceNode) else "a group of keys"


def _name_of(kind: Any) -> str:
    shape, arguments = typing.get_origin(kind), typing.get_args(kind)
    if shape in (typing.Union, types.UnionType):
        return " or ".join("null" if item is type(None) else _name_of(item) for item in arguments)
    if shape is typing.Literal:
        return "one of " + ", ".join(_show(choice) for choice in arguments)
    if shape in (tuple, list):
        return f"a list, each {_name_of(arguments[0])}"
    if shape is dict:
        return f"a group of names, each {_name_of(arguments[1])}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    return names.get(kind, str(kind))

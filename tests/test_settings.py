# SPDX-License-Identifier: Apache-2.0
"""Settings: what a file and --set may say, where each value came from, and what is said to whoever
mistypes."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from earnest.errors import InvalidInput
from earnest.settings import (
    RunSettings,
    describe,
    differences,
    flatten,
    origin_of,
    resolve,
    setting,
    to_plain,
    to_yaml,
)


@dataclass(frozen=True)
class Policy:
    clip: float = setting(0.2, "how far the ratio may move", above=0)
    clip_high: float | None = None
    estimator: Literal["k1", "k2", "k3"] = "k2"
    epochs: int = setting(1, at_least=1, at_most=10)


@dataclass(frozen=True)
class Settings:
    name: str = "tiny"
    seed: int = 0
    voices: Path | None = None
    group: bool = False
    layers: tuple[int, ...] = (1, 2)
    mix: dict[str, float] = field(default_factory=lambda: {"arithmetic": 0.5, "recall": 0.5})
    policy: Policy = field(default_factory=Policy)
    run: RunSettings = field(default_factory=RunSettings)


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_defaults_then_file_then_overrides_with_their_origins(tmp_path: Path):
    path = write(tmp_path, "seed: 3\npolicy:\n  clip: 1e-1\n  epochs: 4\n")
    settings = resolve(Settings, path, ["policy.epochs=5", "name=a: b # c"])
    assert (settings.seed, settings.policy.clip, settings.policy.epochs) == (3, 0.1, 5)
    assert settings.name == "a: b # c"
    assert settings.policy.estimator == "k2"
    assert origin_of(settings, "seed") == f"{path}:1"
    assert origin_of(settings, "policy.clip") == f"{path}:3"
    assert origin_of(settings, "policy.epochs") == "--set"
    assert origin_of(settings, "group") == "default"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("policy.clip=1e-4", "policy.clip", 1e-4),
        ("policy.clip=3", "policy.clip", 3.0),
        ("policy.clip_high=.inf", "policy.clip_high", float("inf")),
        ("policy.clip_high=null", "policy.clip_high", None),
        ("seed=1_000", "seed", 1000),
        ("group=on", "group", True),
        ("name=no", "name", "no"),
        ("name=", "name", ""),
        ("voices=/a b/c.tar", "voices", Path("/a b/c.tar")),
        ("layers=[4, 5, 6]", "layers", (4, 5, 6)),
        ("mix.recall=0.25", "mix", {"arithmetic": 0.5, "recall": 0.25}),
        ("mix={sound: 1}", "mix", {"sound": 1.0}),
        ("policy.estimator=k3", "policy.estimator", "k3"),
        ("name=a=b", "name", "a=b"),
    ],
)
def test_overrides_are_typed(override: str, key: str, value: object):
    found = flatten(resolve(Settings, None, [override]))[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("policy.clipp=1", "the nearest is policy.clip"),
        ("epochs=1", "the nearest is policy.epochs"),
        ("polcy.estimator=k1", "the nearest is policy.estimator"),
        ("seed=1.5", "expected a whole number, got '1.5'"),
        ("seed=", "expected a whole number, got nothing"),
        ("group=2", "expected true or false, got '2'"),
        ("policy.clip=-1", "expected a number above 0, got -1.0"),
        ("policy.clip=nan", "expected a number, got 'nan'"),
        ("policy.epochs=0", "expected a number at least 1"),
        ("policy.epochs=11", "expected a number at most 10"),
        ("policy.estimator=k4", "expected one of k1, k2, k3, got 'k4'"),
        ("policy=1", "policy.clip_high"),
        ("layers=3", "expected a list, each a whole number, got '3'"),
        ("layers=[1, x]", "got a list"),
        ("seed: 3", "expected key=value"),
        ("layers=[1", "got '[1'"),
    ],
)
def test_what_is_wrong_is_one_sentence(override: str, words: str):
    with pytest.raises(InvalidInput, match=re.escape(words)) as caught:
        resolve(Settings, None, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nseeds: 2\n", "config.yaml:2: expected a known key (the nearest is seed), got 'seeds'"),
        (
            "policy:\n  seed: 2\n",
            "config.yaml:2: expected a known key (the nearest is seed), got 'policy.seed'",
        ),
        ("seed: 1\nseed: 2\n", "config.yaml:2 seed: expected each key once"),
        ("policy: 3\n", "config.yaml:1 policy: expected a group of settings, got '3'"),
        ("- 1\n", "config.yaml:1: expected a mapping of keys to values, got a list"),
        ("seed: [\n", "expected valid YAML"),
        ("seed: {a: 1}\n", "config.yaml:1 seed: expected a whole number, got a group of keys"),
        ("seed: !!python/object/apply:os.system [true]\n", "expected a whole number"),
    ],
)
def test_a_wrong_file_is_reported_with_its_line(tmp_path: Path, text: str, words: str):
    with pytest.raises(InvalidInput, match=re.escape(words)):
        resolve(Settings, write(tmp_path, text))


def test_a_missing_file_and_binary_are_one_sentence(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"expected a YAML file, got .*No such file"):
        resolve(Settings, tmp_path / "none.yaml")
    with pytest.raises(InvalidInput, match="expected a YAML file"):
        resolve(Settings, tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InvalidInput, match="expected valid YAML"):
        resolve(Settings, tmp_path / "binary")


def test_an_empty_file_is_the_defaults(tmp_path: Path):
    assert resolve(Settings, write(tmp_path, "# nothing\n")) == Settings()


def test_the_saved_yaml_reads_back_equal(tmp_path: Path):
    settings = resolve(
        Settings, None, ["policy.clip=1e-5", "voices=x.tar", "layers=[7]", "name=null", "mix.recall=1"]
    )
    text = to_yaml(settings)
    assert "# policy.clip: --set" in text
    again = resolve(Settings, write(tmp_path, text))
    assert again == settings
    assert again.name == "null"


def test_differences_leave_out_what_changes_no_number():
    old = to_plain(Settings())
    assert differences(old, resolve(Settings, None, ["run.keep=5", "run.save_every_steps=3"])) == []
    new = resolve(Settings, None, ["policy.clip=0.3", "mix.recall=0.1", "layers=[1,2]"])
    assert [key for key, _, _ in differences(old, new)] == ["mix", "policy.clip"]
    assert differences(yaml.safe_load(to_yaml(new)), new) == []


def test_base_settings_are_kept_where_nothing_else_is_said():
    base = Settings(seed=7, policy=Policy(clip=0.5))
    assert resolve(Settings, None, ["policy.epochs=2"], base=base) == Settings(
        seed=7, policy=Policy(0.5, epochs=2)
    )


def test_describe_shows_each_value_and_its_origin():
    lines = describe(resolve(Settings, None, ["seed=4"])).splitlines()
    assert len(lines) == len(flatten(Settings()))
    assert re.fullmatch(r"seed +=\s+4\s+--set", lines[1])
    documented = describe(Settings(), documented=True)
    assert "how far the ratio may move" in documented

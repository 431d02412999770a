# SPDX-License-Identifier: Apache-2.0
"""earnest.which names the back end that would run, and the package stays cheap to import."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

import earnest
from earnest import _native
from earnest.errors import InvalidInput
from tiers import tier_of, usable_tiers

FAMILIES = (
    "attention", "frames", "linear", "logmel", "logprob", "paged_attention", "pitch", "ppo", "quantized",
    "rotary_write", "rowwise",
)  # fmt: skip
DETAILS = {"attention": {"dtype": "bfloat16"}}  # where the last tier has code for one dtype alone


@pytest.fixture(params=usable_tiers())
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    _native.force_cpu_tier(request.param)
    yield request.param
    _native.force_cpu_tier("")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tier_in_force_is_named(family: str, tier: str):
    details = DETAILS.get(family, {})
    assert earnest.which(family, **details) == f"cpu/{tier_of(family, tier)}"
    assert earnest.which(family, device="cpu", **details) == f"cpu/{tier_of(family, tier)}"


def test_attention_takes_its_details():
    for dtype in ("float32", "float64", "bfloat16"):
        assert earnest.which("attention", dtype=dtype, dim=128).startswith("cpu/")
    with pytest.raises(ValueError, match="dtype"):
        earnest.which("attention", dtype="int8")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_back_end_that_cannot_run_is_an_error(family: str):
    with pytest.raises(RuntimeError, match=rf"\[{family}\] device: expected cpu.*, got cuda"):
        earnest.which(family, device="cuda")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"family": "convolution"},
            "[which] family: expected one of attention, frames, linear, logmel, logprob, paged_attention, "
            "pitch, ppo, quantized, rotary_write, rowwise",
        ),
        ({"family": "ppo", "device": "abacus"}, "[which] device: expected cpu or cuda, got 'abacus'"),
        ({"family": "ppo", "dim": 64}, "[which] details: expected what ppo depends on (device), got dim"),
    ],
)
def test_an_unknown_word_is_an_error(arguments: dict, sentence: str):
    with pytest.raises(InvalidInput) as caught:
        earnest.which(**arguments)
    assert str(caught.value).startswith(sentence)


def test_the_environment_chooses_the_tier():
    program = "import earnest, sys; print(earnest.which('ppo')); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "EARNEST_CPU_TIER": "scalar"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["cpu/scalar", "False"]


def test_public_names_are_loaded_when_used():
    program = "import earnest; print(earnest.ops.logprob.__name__, earnest.AudioLM.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["logprob", "AudioLM"]
    with pytest.raises(AttributeError, match="telepathy"):
        earnest.telepathy  # noqa: B018

# SPDX-License-Identifier: Apache-2.0
"""The gate's reading of ptxas (.ci/cuda_resources.py): it sees a spill, a frame, and a rise in registers."""

import copy
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("cuda_resources", ROOT / ".ci/cuda_resources.py")
assert SPEC is not None
assert SPEC.loader is not None
resources = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(resources)

SCAN = "_ZN7earnest3ppo50_GLOBAL__N__16314949_12_loss_cuda_cu_28fc09e5_448911scan_piecesIfEEvPKT_"
COPY = "_ZN7earnest3ppo5copy_EPi"


def report_of(registers: int, frame: int = 0, stores: int = 0, loads: int = 0) -> str:
    return f"""[1/2] Building CUDA object gae_cuda.cu.o
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{SCAN}' for 'sm_80'
ptxas info    : Function properties for {SCAN}
    {frame} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, {frame} bytes cumulative stack size
ptxas info    : Compiling entry function '{COPY}' for 'sm_90a'
ptxas info    : Function properties for {COPY}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers
"""


RECORD = {
    "registers": {"ppo::scan_pieces<float>": {"sm_80": 60}, "ppo::copy_": {"sm_90a": 12}},
    "may_spill": {},
}


def complaints(text: str, record=RECORD) -> list[str]:
    return resources.complaints(resources.read_report(text), record)


def test_a_kernel_as_recorded_passes():
    assert complaints(report_of(60)) == []
    assert complaints(report_of(66)) == []  # a tenth
    assert complaints(report_of(40)) == []


def test_a_rise_in_registers_is_seen():
    assert complaints(report_of(67)) == [
        "[cuda] ppo::scan_pieces<float> (sm_80): expected about 60 registers, got 67"
    ]


def test_small_rises_of_small_kernels_pass():
    record = copy.deepcopy(RECORD)
    record["registers"]["ppo::copy_"]["sm_90a"] = 8
    assert complaints(report_of(60), record) == []
    record["registers"]["ppo::copy_"]["sm_90a"] = 7
    assert len(complaints(report_of(60), record)) == 1


@pytest.mark.parametrize("usage", [{"frame": 256}, {"stores": 8}, {"loads": 8}])
def test_spills_and_frames_are_seen_unless_the_record_says_why(usage: dict[str, int]):
    [complaint] = complaints(report_of(60, **usage))
    assert "expected neither spills nor a stack frame" in complaint
    explained = {**RECORD, "may_spill": {"ppo::scan_pieces<float>": "a reason"}}
    assert complaints(report_of(60, **usage), explained) == []


def test_kernels_that_come_and_go_are_seen():
    gone = copy.deepcopy(RECORD)
    gone["registers"]["ppo::old"] = {"sm_80": 5}
    assert "expected this kernel as recorded, got none" in complaints(report_of(60), gone)[0]
    assert len(complaints(report_of(60), {"registers": {}, "may_spill": {}})) == 2
    assert complaints("ptxas said nothing") == complaints("") != []


def test_what_is_written_passes_and_keeps_reasons():
    report = resources.read_report(report_of(70, frame=8))
    before = {"registers": {}, "may_spill": {"ppo::scan_pieces<float>": "a reason", "ppo::old": "another"}}
    record = resources.written(report, before)
    assert record["may_spill"] == {"ppo::scan_pieces<float>": "a reason"}
    assert resources.complaints(report, record) == []

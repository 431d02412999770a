# SPDX-License-Identifier: Apache-2.0
"""What the gate sees of CUDA kernels (.ci/cuda_resources.py, cuda_launches.py): a spill, a frame, a rise in
registers, blocks that no longer fit beside each other, other launches, a table that is not the record's."""

import copy
import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / ".ci"))
resources = importlib.import_module("cuda_resources")
launches = importlib.import_module("cuda_launches")
cuda_record = importlib.import_module("cuda_record")
occupancy = importlib.import_module("occupancy")
sys.path.pop(0)

SCAN = "_ZN7earnest3ppo50_GLOBAL__N__16314949_12_loss_cuda_cu_28fc09e5_448911scan_piecesIfEEvPKT_"
COPY = "_ZN7earnest3ppo5copy_EPi"
Launch = cuda_record.Launch


def report_of(registers: int, frame: int = 0, stores: int = 0, loads: int = 0, shared: int = 400) -> str:
    return f"""[1/2] Building CUDA object gae_cuda.cu.o
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{SCAN}' for 'sm_80'
ptxas info    : Function properties for {SCAN}
    {frame} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, {shared} bytes smem
ptxas info    : Compiling entry function '{COPY}' for 'sm_90a'
ptxas info    : Function properties for {COPY}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers
"""


def usage(registers: int, shared: int = 0) -> dict[str, int]:
    return {"registers": registers, "spilled": 0, "shared": shared}


RECORD = {
    "kernels": {"ppo::scan_pieces<float>": {"sm_80": usage(60, 400)}, "ppo::copy_": {"sm_90a": usage(12)}},
    "launches": {
        "ppo::scan_pieces<float>": [Launch(128, 0)],
        "ppo::copy_": [Launch(32, 0), Launch(256, 1024)],
    },
}


def complaints(text: str, record=RECORD) -> list[str]:
    return resources.complaints(resources.read_report(text), record)


def test_a_kernel_as_recorded_passes():
    assert complaints(report_of(60)) == []
    assert complaints(report_of(64)) == []
    assert complaints(report_of(40)) == []


def test_a_rise_in_registers_is_seen():
    record = copy.deepcopy(RECORD)
    record["launches"] = {}
    assert complaints(report_of(66), record) == []  # a tenth
    assert complaints(report_of(67), record) == [
        "[cuda] ppo::scan_pieces<float> (sm_80): expected about 60 registers, got 67"
    ]


def test_a_rise_that_leaves_a_multiprocessor_fewer_blocks_is_seen_however_small():
    [complaint] = complaints(report_of(65))
    assert (
        "(sm_80): expected 8 blocks of 128 threads on a multiprocessor, got 7 with 65 registers" in complaint
    )


def test_small_rises_of_small_kernels_pass():
    record = copy.deepcopy(RECORD)
    record["kernels"]["ppo::copy_"]["sm_90a"] = usage(8)
    assert complaints(report_of(60), record) == []
    record["kernels"]["ppo::copy_"]["sm_90a"] = usage(7)
    assert len(complaints(report_of(60), record)) == 1


def test_other_static_shared_memory_is_seen():
    [complaint] = complaints(report_of(60, shared=404))
    assert "expected 400 bytes of static shared memory, got 404" in complaint
    found = complaints(report_of(60, shared=40000))
    assert len(found) == 2
    assert (
        "expected 8 blocks of 128 threads on a multiprocessor, got 4 with 60 registers and 40000 + 0"
        in found[1]
    )


@pytest.mark.parametrize("more", [{"frame": 256}, {"stores": 8}, {"loads": 8}])
def test_spills_and_frames_are_seen_though_the_record_has_them(more: dict[str, int]):
    [complaint] = complaints(report_of(60, **more))
    assert "expected neither spills nor a stack frame" in complaint
    record = copy.deepcopy(RECORD)
    record["kernels"]["ppo::scan_pieces<float>"]["sm_80"] |= {"spilled": 8, "frame": 256}
    assert complaints(report_of(60, **more), record) == [complaint]


def test_kernels_that_come_and_go_are_seen():
    gone = copy.deepcopy(RECORD)
    gone["kernels"]["ppo::old"] = {"sm_80": usage(5)}
    assert "expected this kernel as recorded, got none" in complaints(report_of(60), gone)[0]
    assert len(complaints(report_of(60), {"kernels": {}, "launches": {}})) == 2
    assert complaints("ptxas said nothing") == complaints("") != []


def test_what_is_written_passes_unless_it_spills_and_keeps_launches():
    report = resources.read_report(report_of(70))
    record = resources.written(report, RECORD)
    assert record["launches"] == RECORD["launches"]
    assert record["kernels"]["ppo::scan_pieces<float>"] == {"sm_80": usage(70, 400)}
    assert resources.complaints(report, record) == []
    spilling = resources.read_report(report_of(70, frame=8))
    record = resources.written(spilling, RECORD)
    assert record["kernels"]["ppo::scan_pieces<float>"] == {"sm_80": usage(70, 400) | {"frame": 8}}
    assert len(resources.complaints(spilling, record)) == 1


def test_a_record_is_read_as_it_was_written_and_an_old_table_is_seen(tmp_path: Path):
    file = tmp_path / "resources.json"
    assert cuda_record.read(file) == {"kernels": {}, "launches": {}}
    cuda_record.write(file, RECORD)
    assert cuda_record.read(file) == RECORD
    assert cuda_record.stale(file) == []
    table = file.with_suffix(".md")
    assert "| `scan_pieces<float>` | 128 | 0 | 60 | 0 | 400 | 8; 32 | ~8; 32 |\n" in table.read_text()
    assert "| `copy_` | 256 | 1,024 | 12 | 0 | 0 |  | 8; 64 |\n" in table.read_text()
    table.write_text(table.read_text().replace("8; 32", "9; 36"))
    assert len(cuda_record.stale(file)) == 1


def test_the_committed_table_is_that_of_the_record():
    assert cuda_record.stale(ROOT / "kernels/cuda_resources.json") == []


def test_launches_are_told_by_where_a_kernel_lies_in_its_program(monkeypatch: pytest.MonkeyPatch):
    programs = {
        "/a b/one": {16: ["ppo::copy_"], 32: ["ppo::scan_pieces<float>"]},
        "/two": {48: ["ppo::copy_"]},
    }
    monkeypatch.setattr(launches, "kernels_of", programs.__getitem__)
    text = "/a b/one 16 256 1024\n/two 48 32 0\n/two 48 256 1024\n/a b/one 32 128 0\n/two 64 1 1\n"
    assert launches.read_launches(text) == RECORD["launches"]


def test_other_launches_than_recorded_are_seen():
    found = copy.deepcopy(RECORD["launches"])
    assert launches.complaints(found, RECORD) == []
    found["ppo::copy_"][1] = Launch(256, 2048)
    [complaint] = launches.complaints(found, RECORD)
    assert "ppo::copy_: expected launches of 32 threads with 0 bytes, 256 threads with 1024" in complaint
    assert "got 32 threads with 0 bytes, 256 threads with 2048 bytes" in complaint
    del found["ppo::copy_"]
    assert launches.complaints(found, RECORD) == [
        "[cuda] ppo::copy_: expected a launch by some test, got none"
    ]


# By hand: a warp takes registers by 256, a block shared memory by 128 bytes and 1,024 more.
@pytest.mark.parametrize(
    ("architecture", "registers", "threads", "shared", "expected"),
    [
        ("sm_80", 32, 1024, 0, 2),  # 64 warps
        ("sm_80", 32, 32, 0, 32),  # blocks
        ("sm_80", 33, 1024, 0, 1),  # 40 registers of 32 threads, 48 warps: 1.5 blocks
        ("sm_80", 255, 128, 0, 2),  # 8,192 registers of a warp, 8 warps
        ("sm_80", 255, 256, 0, 1),
        ("sm_80", 255, 257, 0, 0),  # nine warps do not fit
        ("sm_80", 168, 384, 0, 1),  # 5,376 of a warp: 12 of them
        ("sm_90a", 80, 96, 0, 8),  # 2,560 of a warp: 6 of a quarter, 24 in all
        ("sm_80", 16, 128, 81 * 1024 - 1024, 2),  # 162 of 164 KB
        ("sm_80", 16, 128, 82 * 1024 - 1024, 2),  # all of them
        ("sm_80", 16, 128, 82 * 1024 - 1023, 1),
        ("sm_80", 16, 128, 163 * 1024, 1),
        ("sm_80", 16, 128, 163 * 1024 + 1, 0),
        ("sm_90a", 16, 128, 227 * 1024, 1),
        ("sm_90a", 16, 128, 113 * 1024, 2),  # 228 KB
        ("sm_90a", 16, 128, 113 * 1024 + 1, 1),
    ],
)
def test_blocks_of_a_multiprocessor(architecture, registers, threads, shared, expected):
    assert occupancy.blocks(architecture, registers, threads, shared) == expected

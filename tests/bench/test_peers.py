# SPDX-License-Identifier: Apache-2.0
"""Peers come when asked for, and leave torch as it was."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from earnest.bench import memory, peers
from earnest.bench.case import Absent

PEERS = (
    "asrfront",
    "kaldi_native_fbank",
    "librosa",
    "transformers",
    "zentorch",
    "numba",
    "scipy",
    "parselmouth",
    "pyworld",
)


def test_a_missing_peer_is_absent_with_its_name():
    with pytest.raises(Absent, match="no-such-package: not installed"):
        peers.load("no_such_package", "no-such-package")
    with pytest.raises(Absent, match=r"earnest\.ops\.fly: this version has none"):
        peers.ours("fly")


def test_a_peer_that_does_not_start_is_absent_too(tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "broken_peer.py").write_text("raise OSError('libmissing.so')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Absent, match=r"broken_peer: does not start: libmissing\.so"):
        peers.load("broken_peer")


def test_listing_cases_imports_no_peer():
    code = (
        "import sys; from earnest.bench import command; command.all_cases(); "
        f"print([p for p in {PEERS} if p in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "[]\n", done.stderr


def test_zentorch_leaves_torchs_own_operators_alone():
    """It is timed in the same process, so importing and using it must not change what torch does."""
    if importlib.util.find_spec("zentorch") is None:
        pytest.skip("zentorch is not installed")
    code = """
import torch
from torch._inductor import config
names = [s.name + ("." + s.overload_name if s.overload_name else "") for s in torch._C._jit_get_all_schemas()]
names = [n for n in names if n.startswith("aten::")]
tables = lambda: [torch._C._dispatch_dump_table(n) for n in names]
x, w = torch.randn(8, 64).bfloat16(), torch.randn(32, 64).bfloat16()
before, weight, result = tables(), w.clone(), torch.nn.functional.linear(x, w)
hook = config.joint_custom_post_pass
from earnest.bench import linear, peers
linear._zentorch()(*linear._pack_for_zentorch(x, w))
same = torch.equal(w, weight) and torch.equal(torch.nn.functional.linear(x, w), result)
print(before == tables(), same, config.joint_custom_post_pass is hook)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "True True True\n", done.stderr


def test_peak_memory_sees_what_a_call_takes_and_gives_back():
    def call(megabytes: int):
        room = np.ones(megabytes << 17)  # float64
        return room[:1].copy()

    if memory.peak_extra_bytes(lambda: None) is None:
        pytest.skip("the system does not tell a high-water mark")
    assert 38 << 20 < memory.peak_extra_bytes(lambda: call(40)) < 48 << 20
    assert memory.peak_extra_bytes(lambda: call(1)) < 6 << 20


def test_sets_leave_the_caches():
    assert peers.sets_beyond_caches(1 << 40) == 2
    assert peers.sets_beyond_caches(1) == 24
    assert peers.sets_beyond_caches(1, most=5) == 5

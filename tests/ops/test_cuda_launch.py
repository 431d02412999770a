# SPDX-License-Identifier: Apache-2.0
"""What can be told of cuda without a GPU: which back end is chosen, what is said where there is none, and
what stream, memory and fault word a kernel is given."""

import ctypes
import types
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.dlpack import from_dlpack, to_dlpack

import earnest
from earnest import _native, ops
from earnest.errors import InvalidInput
from earnest.ops import cuda

DEVICE_TYPE = 8  # bytes into a DLTensor: after its pointer
KDL_CUDA = 2


def as_if_on_cuda(x: torch.Tensor):
    """A DLPack capsule of x that says its memory is a GPU's. Nothing may read it."""
    capsule = to_dlpack(x)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address = pointer(capsule, b"dltensor") + DEVICE_TYPE
    ctypes.c_int32.from_address(address).value = KDL_CUDA
    return capsule


def gae_arrays() -> list[torch.Tensor]:
    values, flags = torch.zeros(4), torch.ones(4, dtype=torch.bool)
    return [values.clone(), values.clone(), flags, torch.tensor([0, 4], dtype=torch.int32)]


# ---- bindings ----


@pytest.mark.skipif(_native.CUDA_BUILD != "OFF", reason="of a build without CUDA")
def test_a_build_without_cuda_says_so_in_one_sentence() -> None:
    without = r"device: expected cpu \(earnest was built without CUDA\), got cuda$"
    results = [as_if_on_cuda(torch.zeros(4)) for _ in range(2)]
    with pytest.raises(RuntimeError, match=rf"^\[gae\] {without}"):
        _native.ppo_gae(*map(as_if_on_cuda, gae_arrays()), 1.0, 1.0, False, *results)
    rows = [as_if_on_cuda(torch.zeros(3)) for _ in range(3)]
    targets = as_if_on_cuda(torch.zeros(3, dtype=torch.int64))
    matrices = [as_if_on_cuda(torch.zeros(n, 8)) for n in (3, 5)]
    with pytest.raises(RuntimeError, match=rf"^\[logprob\] {without}"):
        _native.logprob_forward(*matrices, targets, 1.0, *rows, None)
    pcm, out = as_if_on_cuda(torch.zeros(160)), as_if_on_cuda(torch.zeros(80))
    with pytest.raises(RuntimeError, match=r"^\[logmel\] device: expected cpu .*, got cuda"):
        _native.logmel_clips(pcm, 1, None, None, 80, False, False, out, None)


def test_all_arrays_of_a_call_lie_where_the_first_does() -> None:
    results = [to_dlpack(torch.zeros(4)) for _ in range(2)]
    first, second, *rest = gae_arrays()
    arrays = (to_dlpack(first), as_if_on_cuda(second), *map(to_dlpack, rest))
    with pytest.raises(
        ValueError, match=r"\[gae\] values: expected an array on cpu as the first, got .* cuda:0"
    ):
        _native.ppo_gae(*arrays, 1.0, 1.0, False, *results)


def test_the_emulator_is_of_builds_that_have_one() -> None:
    if _native.CUDA_BUILD == "EMULATED":
        pytest.skip("this is such a build")
    with pytest.raises(
        RuntimeError, match=r"\[emulate_cuda\] build: expected one with EARNEST_CUDA=EMULATED"
    ):
        _native.emulate_cuda(True)
    _native.emulate_cuda(False)


# ---- launches, on a made-up GPU ----


class Device:
    """torch.cuda, as far as launches ask it: which stream is current, and whether it is captured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.capturing, self.current = False, []
        stream = types.SimpleNamespace(cuda_stream=4242)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(torch.cuda, "device", self._device)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda place: None)
        monkeypatch.setattr(cuda, "_words", {})
        monkeypatch.setattr(cuda, "_lasting_word", lambda: torch.full((1,), cuda.NO_FAULT))
        self.x = types.SimpleNamespace(is_cuda=True, device=torch.device("cpu"))

    @contextmanager
    def _device(self, device: torch.device) -> Iterator[None]:
        self.current.append(device)
        yield


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def write(launch: cuda.Launch, word: int) -> None:
    from_dlpack(launch.fault)[0] = word


def no_fault(found: cuda.Launch) -> bool:
    return from_dlpack(found.fault).tolist() == [cuda.NO_FAULT]


def test_a_launch_brings_the_current_stream_and_torchs_memory(gpu: Device) -> None:
    with cuda.launching("gae", gpu.x, lambda: None) as launch:
        assert launch.stream == 4242
        assert gpu.current == [gpu.x.device]
        scratch = from_dlpack(launch.allocate(640))
        assert (scratch.dtype, scratch.shape) == (torch.uint8, (640,))
        assert no_fault(launch)
    with cuda.launching("logprob", gpu.x) as launch:
        assert launch.fault is None


def test_an_eager_call_looks_for_faults_and_says_what_the_cpu_says(gpu: Device) -> None:
    def explain() -> None:
        raise InvalidInput("gae", "rewards", "finite numbers", "nan at token 3")

    with pytest.raises(InvalidInput, match="nan at token 3"), cuda.launching("gae", gpu.x, explain) as launch:
        write(launch, 1 << 56)
    with pytest.raises(RuntimeError, match=r"\[gae\] input: expected an error .*, got none"):  # noqa: SIM117
        with cuda.launching("gae", gpu.x, lambda: None) as launch:
            write(launch, 1 << 56)


def test_nobody_waits_in_a_graph_and_faults_are_kept_until_asked_for(gpu: Device) -> None:
    gpu.capturing = True
    with pytest.raises(InvalidInput, match=r"\[gae\] graph: expected a call .* before its capture"):  # noqa: SIM117
        with cuda.launching("gae", gpu.x, lambda: None):
            pass
    gpu.capturing = False
    with cuda.launching("gae", gpu.x, lambda: None):
        pass
    gpu.capturing = True
    with cuda.launching("gae", gpu.x, lambda: pytest.fail("nobody may wait")) as launch:
        write(launch, (1 << 56) | (7 << 8))
    with pytest.raises(
        InvalidInput, match=r"\[gae\] input: expected .*, got something else at 7, in a CUDA graph"
    ):
        ops.raise_faults()
    ops.raise_faults()
    with cuda.launching("gae", gpu.x, lambda: None) as launch:
        assert no_fault(launch)


# ---- who runs what ----

FAMILIES = (
    "attention", "frames", "linear", "logmel", "logprob", "paged_attention", "pitch", "ppo", "quantized",
    "rotary_write", "rowwise",
)  # fmt: skip


EMULATED = ("logmel", "logprob", "paged_attention", "ppo", "rotary_write")


def test_families_without_kernels_there_run_torchs_operators_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    named = {f: earnest.which(f, device="cuda") for f in ("attention", "frames", "linear", "rowwise")}
    assert set(named.values()) == {"cuda/torch"}  # attention: of float32
    monkeypatch.setattr(_native, "attention_which", lambda device, dtype, dim: f"{device}/ours")
    for gradients in (False, True):
        found = earnest.which("attention", device="cuda", dtype="bfloat16", gradients=gradients)
        assert found == "cuda/ours"
    assert ops.attention.__module__ == "earnest.ops.attention"
    for family in ("pitch", "quantized"):
        with pytest.raises(RuntimeError, match=rf"\[{family}\] device: expected cpu"):
            earnest.which(family, device="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_machine_without_a_gpu_is_told_so(family: str) -> None:
    if _native.CUDA_BUILD == "EMULATED" and family in EMULATED:
        pytest.skip("the emulator is a device")
    with pytest.raises(RuntimeError, match=rf"\[{family}\] device: expected .*, got "):
        earnest.which(family, device="cuda")


def test_cuda_tensors_go_to_torchs_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(ops.attention_torch, "attention", lambda q, *rest: asked.append(rest[-2:]) or q)
    with FakeTensorMode():
        q = torch.empty(5, 4, 16, device="cuda")
        k = torch.empty(5, 2, 16, device="cuda")
        assert ops.attention(q, k, k, causal=True).shape == (5, 4, 16)
        assert ops.linear(torch.empty(3, 8, device="cuda"), torch.empty(5, 8, device="cuda")).shape == (3, 5)
        with pytest.raises(
            InvalidInput, match=r"\[attention\] k: expected torch.float32 on cuda:0 as q, got .*cpu"
        ):
            ops.attention(q, k.cpu(), k, causal=True)
    assert asked == [(True, 0.25)]


def test_a_device_that_is_not_there_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        InvalidInput, match=r"\[run\] device: expected cpu \(torch .* sees no GPU\), got cuda"
    ):
        cuda.require("run")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_native, "CUDA_BUILD", "OFF")
    with pytest.raises(InvalidInput, match=r"expected cpu \(earnest was built without CUDA\), got cuda"):
        cuda.require("run")

# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs and streams: operators can be captured, what is wrong in a replay is said when asked for, and
work is put where the caller's stream is."""

import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from earnest import ops
from earnest.errors import InvalidInput
from earnest.features import LogMel
from earnest.ops import cuda
from shapes import cu_seqlens


def captured(call):
    """(graph, results in their places), after one call outside."""
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    return graph, found


def test_replays_follow_their_inputs_and_faults_are_kept(gpu) -> None:
    tokens = 4000
    rewards, values = torch.randn(2, tokens, device=gpu)
    trainable, bounds = torch.ones(tokens, dtype=torch.bool, device=gpu), cu_seqlens((1000, 3000)).to(gpu)
    graph, found = captured(lambda: ops.gae(rewards, values, trainable, bounds, gamma=0.99, lam=0.95))
    rewards.normal_()
    graph.replay()
    wanted = ops.gae(rewards, values, trainable, bounds, gamma=0.99, lam=0.95)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    ops.raise_faults()
    values[123] = float("nan")
    graph.replay()
    values[123] = 0.0
    graph.replay()  # a later, right one does not hide it
    with pytest.raises(InvalidInput, match=r"\[gae\] .* at 123, in a CUDA graph"):
        ops.raise_faults()
    ops.raise_faults("cuda")  # and it is said once


def test_losses_with_gradients_and_logprob_and_logmel_can_be_captured(gpu) -> None:
    hidden = torch.randn(300, 64, device=gpu, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(1000, 64, device=gpu, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(1000, (300,), device=gpu)
    old, advantages = torch.randn(2, 300, device=gpu)
    trainable = torch.ones(300, dtype=torch.bool, device=gpu)

    def step():
        logp, _ = ops.logprob(hidden, weight, targets)
        loss = ops.ppo_loss(logp, old, advantages, None, None, None, trainable).loss
        return loss, *torch.autograd.grad(loss, (hidden, weight))

    graph, found = captured(step)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found, step(), strict=True))
    pcm, log_mel = 0.1 * torch.randn(3, 16000, device=gpu), LogMel(80)
    graph, found = captured(lambda: log_mel.batch(pcm))
    graph.replay()
    assert torch.equal(found, log_mel.batch(pcm))
    ops.raise_faults()


def test_attention_can_be_captured_and_a_replay_tells_of_wrong_bounds(gpu) -> None:
    q, k, v = (torch.randn(400, n, 64, device=gpu, dtype=torch.bfloat16) for n in (4, 2, 2))
    bounds = cu_seqlens((150, 250)).to(gpu)
    graph, found = captured(lambda: ops.attention(q, k, v, causal=True, cu_seqlens_q=bounds))
    bounds[1] = 70  # lengths are the device's: a replay follows them
    graph.replay()
    assert torch.equal(found, ops.attention(q, k, v, causal=True, cu_seqlens_q=bounds))
    ops.raise_faults()
    bounds[1] = 500
    graph.replay()
    with pytest.raises(InvalidInput, match=r"\[attention\] .* at 1, in a CUDA graph"):
        ops.raise_faults()


def test_a_decoding_step_can_be_captured_and_replays_follow_lengths_and_slots(gpu) -> None:
    qkv = torch.randn(3, 8 * 64, device=gpu, dtype=torch.bfloat16)
    k, v = torch.zeros(2, 9, 2, 16, 64, device=gpu, dtype=torch.bfloat16)
    table = torch.arange(9, device=gpu, dtype=torch.int32).view(3, 3)
    lengths = torch.tensor([1, 20, 48], device=gpu, dtype=torch.int32)
    positions = lengths.long() - 1
    slots = table.long().gather(1, positions[:, None] // 16)[:, 0] * 16 + positions % 16

    def step():
        q = ops.rotary_write(qkv, positions, slots, k, v, theta=1e4)
        return ops.paged_attention(q, k, v, table, lengths)

    graph, found = captured(step)
    qkv.normal_()
    lengths[0], positions[0], slots[0] = 2, 1, 1
    graph.replay()
    again = found.clone()
    assert torch.equal(step(), again)  # which writes the same once more
    ops.raise_faults()
    lengths[1] = 49
    graph.replay()
    with pytest.raises(InvalidInput, match=r"\[paged_attention\] .* at 1, in a CUDA graph"):
        ops.raise_faults()


def test_gradients_of_attention_can_be_captured(gpu) -> None:
    q, k, v = (
        torch.randn(400, n, 64, device=gpu, dtype=torch.bfloat16, requires_grad=True) for n in (4, 2, 2)
    )
    bounds, grad = cu_seqlens((150, 250)).to(gpu), torch.randn(400, 4, 64, device=gpu, dtype=torch.bfloat16)

    def step():
        out = ops.attention(q, k, v, causal=True, cu_seqlens_q=bounds)
        return out, *torch.autograd.grad(out, (q, k, v), grad)

    graph, found = captured(step)
    bounds[1] = 70
    grad.normal_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found, step(), strict=True))
    ops.raise_faults()


def test_work_goes_to_the_current_stream(gpu) -> None:
    values = torch.zeros(1 << 22, device=gpu)
    trainable = torch.ones_like(values, dtype=torch.bool)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # on this stream alone: what does not wait for it reads zeros
        values.normal_()
        white = ops.whiten(values, trainable)
    side.synchronize()
    assert abs(float(white.mean())) < 1e-5
    assert abs(float(white.std()) - 1) < 1e-3


class Dispatched(TorchDispatchMode):
    """The torch operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operator, types, arguments=(), named=None):
        self.names.append(str(operator))
        return operator(*arguments, **(named or {}))


def test_the_word_of_graphs_does_not_come_from_torchs_allocator(device) -> None:
    with Dispatched() as dispatched:
        word = cuda._lasting_word()
    assert not dispatched.names
    assert (word.device.type, word.dtype, word.tolist()) == (device.type, torch.int64, [cuda.NO_FAULT])
    word.fill_(5)
    assert cuda._lasting_word().tolist() == [cuda.NO_FAULT]  # each has memory of its own
    assert word.tolist() == [5]


FIRST_CALL = """
import torch
from earnest import ops
from earnest.errors import InvalidInput

@torch.compile(mode="reduce-overhead")
def logp(hidden, weight, targets):
    return ops.logprob(hidden, weight, targets)[0] * 2

hidden, weight = (torch.randn(n, 64, device="cuda", dtype=torch.bfloat16) for n in (300, 1000))
targets = torch.randint(1000, (300,), device="cuda")
with torch.no_grad():
    for _ in range(5):
        torch.compiler.cudagraph_mark_step_begin()
        found = logp(hidden, weight, targets).clone()
        junk = [torch.full((1 << i,), 7, device="cuda") for i in range(10)]  # takes what was given away
    assert torch.equal(found, ops.logprob(hidden, weight, targets)[0] * 2)
ops.raise_faults()
print("replayed")
"""


def test_reduce_overhead_may_be_the_first_call_of_a_process(gpu) -> None:
    ran = subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True)
    assert ran.stdout.strip() == "replayed", ran.stderr


def test_arrays_of_two_devices_are_refused(gpu) -> None:
    values, trainable = torch.zeros(5, device=gpu), torch.ones(5, dtype=torch.bool)
    with pytest.raises(
        InvalidInput, match=r"\[whiten\] trainable: expected a tensor on cuda:0 as x, got one on cpu"
    ):
        ops.whiten(values, trainable)


def test_cupy_arrays_come_back_on_cupys_stream(gpu) -> None:
    cupy = pytest.importorskip("cupy")
    values = cupy.random.standard_normal(1 << 20, dtype=cupy.float32)
    trainable = cupy.ones(1 << 20, dtype=bool)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()  # the stream does not wait for what was made on the other
    with stream:
        shifted = values + 3
        white = ops.whiten(shifted, trainable)
        mean = white.mean()
    stream.synchronize()
    assert isinstance(white, cupy.ndarray)
    assert abs(float(mean)) < 1e-4
    pcm = cupy.random.uniform(-0.5, 0.5, 16000, dtype=cupy.float32)
    found = LogMel(80)(pcm)
    assert isinstance(found, cupy.ndarray)
    assert torch.equal(torch.from_dlpack(found), LogMel(80)(torch.from_dlpack(pcm)))

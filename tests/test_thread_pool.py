# SPDX-License-Identifier: Apache-2.0
"""The kernels' pool of threads beside torch's: both busy in one process, results right, nobody starved."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from earnest import _native
from earnest.ops import linear


@pytest.fixture(autouse=True)
def two_threads_each() -> Iterator[None]:
    ours, torchs = _native.num_threads(), torch.get_num_threads()
    _native.set_num_threads(2)
    torch.set_num_threads(2)
    yield
    _native.set_num_threads(ours)
    torch.set_num_threads(torchs)


def best_time(job: Callable[[], object], repeats: int = 4) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        job()
        times.append(time.perf_counter() - begin)
    return min(times)


def test_taking_turns_costs_little():
    """Our kernel and torch's, call by call: each finds the other's threads still awake."""
    x, weight = torch.randn(256, 512), torch.randn(512, 512)
    wanted = linear(x, weight)

    def ours() -> None:
        for _ in range(3):
            assert torch.equal(linear(x, weight), wanted)

    def torchs() -> None:
        for _ in range(3):
            torch.mm(x, weight)

    def both() -> None:
        for _ in range(3):
            assert torch.equal(linear(x, weight), wanted)
            torch.mm(x, weight)

    both()
    assert best_time(both) < 5 * (best_time(ours) + best_time(torchs))


def test_both_busy_at_the_same_time_take_little_more_than_one_after_the_other():
    """A thread of Python in torch's product and one in ours, each with two threads of its own: four that want
    what cores there are. Best of some, against the sum of both alone, so that others' load counts on both
    sides."""
    x, weight = torch.randn(384, 768), torch.randn(768, 768)
    wanted = linear(x, weight)
    wrong: list[int] = []

    def ours() -> None:
        for i in range(12):
            if not torch.equal(linear(x, weight), wanted):
                wrong.append(i)

    def torchs() -> None:
        for _ in range(12):
            torch.mm(x, weight)

    def one_after_the_other() -> None:
        ours()
        torchs()

    def both() -> None:
        callers = [threading.Thread(target=job) for job in (ours, torchs)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()

    both()
    pairs = [(best_time(one_after_the_other, 1), best_time(both, 1)) for _ in range(5)]
    assert not wrong
    assert min(together for _, together in pairs) < 4 * min(alone for alone, _ in pairs)


def test_callers_at_the_same_time_get_their_own_results():
    weights = [torch.randn(300, 200) for _ in range(4)]
    x = torch.randn(100, 200)
    wanted = [linear(x, weight) for weight in weights]
    product = x @ weights[0].T
    wrong: list[int] = []

    def call_ours(index: int) -> None:
        for _ in range(50):
            if not torch.equal(linear(x, weights[index]), wanted[index]):
                wrong.append(index)

    def call_torch() -> None:
        for _ in range(50):
            if not torch.allclose(x @ weights[0].T, product, atol=1e-4):
                wrong.append(-1)

    callers = [threading.Thread(target=call_ours, args=(i,)) for i in range(4)]
    callers.append(threading.Thread(target=call_torch))
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_small_jobs_lose_no_time_to_more_threads():
    """Two threads are never several times slower than one, however small the job."""
    x, weight = torch.randn(8, 64), torch.randn(64, 64)

    def many() -> None:
        for _ in range(200):
            linear(x, weight)

    many()
    two = best_time(many)
    _native.set_num_threads(1)
    assert two < 5 * best_time(many)

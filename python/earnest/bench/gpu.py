# SPDX-License-Identifier: Apache-2.0
"""What a GPU is measured with. A call is captured in a CUDA graph where it can be, so that Python's time
between launches does not count; events stand around each replay, and before it the second cache is
overwritten.

Its limits are those of the process: the rate of a copy of 2 GiB, and of a product of two 8,192 x 8,192
matrices."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from earnest.bench.instrument import Instrument
from earnest.bench.limits import Limits
from earnest.bench.timing import Caller, Pace, Times, is_due, turning

PACE = Pace(seconds=0.4, rounds=15, most_rounds=100)
QUICK = Pace(seconds=0.05, rounds=5, most_rounds=10)
FEWEST, MOST = 3, 50  # samples of each where time is shared
FLUSHED = 256 << 20  # bytes: several times the second cache
WARM = 2
_COPIED = 2 << 30
_SIDE = 8192


class Gpu(Instrument):
    device = "cuda"

    def clock(self, threads: int) -> str:
        return "CUDA events"

    def times(self, callers: Mapping[str, Caller], pace: Pace, threads: int) -> dict[str, Times]:
        import torch

        with aside():
            ready = {name: _Replayed(caller) for name, caller in callers.items()}
            flushed = torch.empty(FLUSHED, dtype=torch.uint8, device=self.device)
            samples = sampled(ready, pace, flushed.zero_)
        self._check()
        return {name: Times(tuple(samples[name]), 1, ready[name].captured) for name in callers}

    def broken(self) -> str:
        """A kernel that faulted leaves a context in which every call fails."""
        import torch

        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            return str(error).strip().splitlines()[0]
        return ""

    def between(self) -> None:
        """Also for those who take memory past torch's allocator, such as the engine."""
        import torch

        gc.collect()
        torch.cuda.empty_cache()

    def extra_bytes(self, call: Callable[[], Any]) -> int | None:
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    @staticmethod
    def _check() -> None:
        """Inputs were right in every replay, of which no kernel could say so then."""
        from earnest.ops.cuda import raise_faults

        raise_faults()


def sampled(
    ready: Mapping[str, Callable[[], float]], pace: Pace, flush: Callable[[], Any]
) -> dict[str, list[float]]:
    """Seconds of each call: as many as `pace` says; where it shares time out, until each has had its part."""
    part = 0.0 if pace.shared is None else pace.shared / max(len(ready), 1)

    def wanted(taken: list[float]) -> bool:
        if pace.shared is None:
            return is_due(len(taken), sum(taken), pace)
        return len(taken) < FEWEST or sum(taken) < part

    samples: dict[str, list[float]] = {name: [] for name in ready}
    for order in turning(list(ready), pace.most_rounds if pace.shared is None else MOST):
        due = [name for name in order if wanted(samples[name])]
        if not due:
            break
        for name in due:
            flush()
            samples[name].append(ready[name]())
    return samples


_side: Any = None


@contextmanager
def aside() -> Iterator[None]:
    """On the stream on which calls are captured; nothing where there is no GPU. A backward pass runs on the
    stream of its forward pass: where only the former is timed, the latter must have run here."""
    import torch

    global _side
    if not torch.cuda.is_available():
        yield
        return
    _side = _side or torch.cuda.Stream()
    before = torch.cuda.current_stream()
    _side.wait_stream(before)
    try:
        with torch.cuda.stream(_side):
            yield
    finally:
        before.wait_stream(_side)


class _Replayed:
    """A caller's function on each of its sets of inputs in turn, as a graph where it can be captured."""

    def __init__(self, caller: Caller) -> None:
        import torch

        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self._next = 0
        calls = [lambda inputs=inputs: caller.function(*inputs) for inputs in caller.inputs]
        for call in calls:
            for _ in range(WARM):
                call()
        torch.cuda.synchronize()
        # A capture that fails spoils torch's allocator for all others (before 2.12): who waits is not tried.
        self._waits = getattr(caller.function, "waits", False)
        graphs = [None if self._waits else _captured(call) for call in calls]
        self.captured = all(graph is not None for graph in graphs)
        self._calls = [graph.replay for graph in graphs if graph] if self.captured else calls

    def __call__(self) -> float:
        """Seconds of one call."""
        import torch

        start, end = self._events
        if self._waits:  # its work may lie on another stream, beside what was put on this one before
            torch.cuda.synchronize()
        start.record()
        self._calls[self._next]()
        end.record()
        self._next = (self._next + 1) % len(self._calls)
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def _captured(call: Callable[[], Any]) -> Any:
    """The call as a graph, on the current stream, which is not the default one; None where something in it
    cannot be captured, such as a wait."""
    import torch

    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, stream=stream):
            call()
    except Exception:  # a peer may do whatever it likes; it is then timed as it is
        torch.cuda.set_stream(stream)  # the graph's own would stay current
        torch.cuda.synchronize()
        return None
    return graph


class GpuLimits(Limits):
    """Rates of the GPU. A copy counts the bytes it reads and those it writes."""

    def __init__(self) -> None:
        super().__init__()
        self._copy = 0.0

    def read_rate(self, bytes_read: int, threads: int) -> float:
        if not self._copy:
            import torch

            source = torch.randint(256, (_COPIED,), dtype=torch.uint8, device="cuda")
            target = torch.empty_like(source)
            self._copy = 2 * _COPIED / _least(lambda: target.copy_(source))
        return self._copy

    def arithmetic(self, dtype: str, threads: int) -> dict[str, float]:
        key = (1, dtype)
        if key not in self._arithmetic:
            import torch

            a, b = (torch.randn(_SIDE, _SIDE, device="cuda").to(getattr(torch, dtype)) for _ in range(2))
            self._arithmetic[key] = {"product": 2 * _SIDE**3 / _least(lambda: a @ b)}
        return self._arithmetic[key]

    def reached(self, problem: Any, dtype: str, threads: int, seconds: float) -> None:
        """Somebody took so many seconds for a problem: then the limit is no less than that."""
        if self.time(problem, dtype, threads)[0] <= seconds:
            return
        if problem.operations:
            rates = self.arithmetic(dtype, threads)
            rates["reached"] = max(problem.operations / seconds, rates.get("reached", 0.0))
        self._copy = max(problem.bytes / seconds, self.read_rate(problem.bytes, threads))

    def table(self, threads: int) -> dict[str, float]:
        return {"copy memory": round(self.read_rate(_COPIED, threads) / 1e9, 1)}


def _least(call: Callable[[], Any], times: int = 10) -> float:
    """Seconds of the fastest of some calls."""
    with aside():
        timed = _Replayed(Caller(call, [()]))
        return min(timed() for _ in range(times))


def about() -> dict[str, Any]:
    """The GPU, for the record of a run."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "compute": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "L2": getattr(properties, "L2_cache_size", None),
        "cuda": torch.version.cuda,
    }

# SPDX-License-Identifier: Apache-2.0
"""What this machine can do at most, measured in the run that is compared with it (kernels/common/limits).

A case's limit is the longer of two times: moving its bytes once at the rate at which a buffer as large as its
working set can be read over and over, and its operations at the largest rate of its dtype that any loop or
product reached.
"""

from __future__ import annotations

from typing import Any

from earnest import _native
from earnest.ops import num_threads, set_num_threads

_SIZES = {"L2": 512 << 10, "L3": 16 << 20, "memory": 1 << 30}  # of the first two: a thread, all threads
_PRODUCT = 2048  # rows, columns and depth of the product that is timed


class Limits:
    """Measures a rate when it is first asked for. seconds: for each."""

    def __init__(self, seconds: float = 0.3, most_bytes: int = _SIZES["memory"]) -> None:
        self._seconds, self._most_bytes = seconds, most_bytes
        self._reads: dict[tuple[int, int], float] = {}
        self._arithmetic: dict[tuple[int, str], dict[str, float]] = {}
        self._tables: dict[int, dict[str, float]] = {}

    def read_rate(self, bytes_read: int, threads: int) -> float:
        """Bytes a second, of a buffer of that size read over and over."""
        key = self._read_key(bytes_read, threads)
        if key not in self._reads:
            with Threads(threads):
                self._reads[key] = _native.read_rate(key[0], self._seconds)
        return self._reads[key]

    def _read_key(self, bytes_read: int, threads: int) -> tuple[int, int]:
        size = max(bytes_read, 1 << 12)
        if size > 1 << 28:  # memory is memory
            size = 1 << (size - 1).bit_length()
        return min(size, self._most_bytes), threads

    def arithmetic_rate(self, dtype: str, threads: int) -> float:
        """Operations a second: the largest of the loops and products that were measured."""
        return max(self.arithmetic(dtype, threads).values())

    def arithmetic(self, dtype: str, threads: int) -> dict[str, float]:
        """Operations a second of a loop of multiply-adds on registers and of a packed matrix product."""
        key = (threads, dtype)
        if key not in self._arithmetic:
            with Threads(threads):
                loop = _native.arithmetic_rate(dtype == "bfloat16", self._seconds)
                product = _product_rate(dtype, self._seconds)
            self._arithmetic[key] = {"loop": loop, "product": product}
        return self._arithmetic[key]

    def reached(self, problem: Any, dtype: str, threads: int, seconds: float) -> None:
        """Somebody took so many seconds for a problem: then the limit is no less than that."""
        if self.time(problem, dtype, threads)[0] <= seconds:
            return
        if problem.operations:
            rates = self.arithmetic(dtype, threads)
            rates["reached"] = max(problem.operations / seconds, rates.get("reached", 0.0))
        key = self._read_key(problem.working_set, threads)
        self._reads[key] = max(problem.bytes / seconds, self.read_rate(problem.working_set, threads))

    def table(self, threads: int) -> dict[str, float]:
        """The rates of the machine on so many threads, GB/s, for people."""
        if threads not in self._tables:
            sizes = {"L2": _SIZES["L2"] * threads, "L3": _SIZES["L3"], "memory": self._most_bytes}
            rates = {f"read {name}": self.read_rate(size, threads) / 1e9 for name, size in sizes.items()}
            with Threads(threads):
                rates["copy memory"] = _native.copy_rate(self._most_bytes // 2, self._seconds) / 1e9
            self._tables[threads] = {name: round(rate, 1) for name, rate in rates.items()}
        return self._tables[threads]

    def time(self, problem: Any, dtype: str, threads: int) -> tuple[float, str]:
        """The least seconds a problem can take here, and what sets them: "read" or "arithmetic"."""
        moving = problem.bytes / self.read_rate(problem.working_set, threads)
        if not problem.operations:
            return moving, "read"
        counting = problem.operations / self.arithmetic_rate(dtype, threads)
        return (moving, "read") if moving >= counting else (counting, "arithmetic")


class Threads:
    """So many threads inside a with block: for our pool and torch's, and where threadpoolctl is installed for
    numpy's products."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __enter__(self) -> None:
        import torch

        self._before = num_threads(), torch.get_num_threads()
        set_num_threads(self.threads)
        torch.set_num_threads(self.threads)
        self._others = _limited(self.threads)

    def __exit__(self, *_: object) -> None:
        import torch

        if self._others is not None:
            self._others.restore_original_limits()

        set_num_threads(self._before[0])
        torch.set_num_threads(self._before[1])


def _limited(threads: int) -> Any:
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return None
    return threadpool_limits(threads, user_api="blas")


def _product_rate(dtype: str, seconds: float) -> float:
    """Of torch's own product with packed weights (oneDNN), the best of some; 0 where it has none."""
    import time

    import torch

    from earnest.bench.linear import packed_by_onednn

    rows = torch.randn(_PRODUCT, _PRODUCT).to(getattr(torch, dtype))
    try:
        multiply = packed_by_onednn(rows, rows)
    except RuntimeError:
        return 0.0
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        began = time.perf_counter()
        multiply(rows)
        best = min(best, time.perf_counter() - began)
    return 2 * _PRODUCT**3 / best

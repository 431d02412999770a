# SPDX-License-Identifier: Apache-2.0
"""Times earnest.ops.gae and ppo_loss (with its gradients) against peers, after checking that all agree.

    python bench/ppo.py [--threads 1] [--seconds 1.0] [--only NAME]

Advantages: a scan in numba over [steps, sequences] (lanes are sequences, the layout that suits it) and one
over [sequences, steps]. Losses: the textbook formula in torch, eager and through torch.compile. 80 % of the
tokens are trainable, in turns with gaps between them. Rounds alternate between all; medians are printed. With
one thread the clock is the thread's CPU time, so that others' load does not count.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numba
import numpy as np
import torch
from torch import Tensor

from earnest import _native
from earnest.ops import gae, ppo_loss

GAMMA, LAM = 0.99, 0.95
SHAPES = {"16x1024": (16, 1024), "512x2048": (512, 2048)}


def batch(sequences: int, steps: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    n = sequences * steps
    turns = torch.arange(n) % 50 >= 10
    logp_old, values_old = -torch.rand(n) * 3, torch.randn(n)
    return {
        "logp": logp_old + 0.3 * torch.randn(n), "logp_old": logp_old, "advantages": torch.randn(n),
        "values": values_old + 0.2 * torch.randn(n), "values_old": values_old, "returns": torch.randn(n),
        "trainable": turns, "entropy": torch.rand(n) * 2, "rewards": torch.randn(n),
    }  # fmt: skip


# ---- advantages ----


@numba.njit(cache=False)
def scan_rows(r, v, m, gamma, lam):
    a, ret = np.empty_like(r), np.empty_like(r)
    for i in range(r.shape[0]):
        next_v, next_a = np.float32(0), np.float32(0)
        for t in range(r.shape[1] - 1, -1, -1):
            if m[i, t]:
                next_a = r[i, t] + gamma * next_v - v[i, t] + gamma * lam * next_a
                next_v = v[i, t]
                a[i, t], ret[i, t] = next_a, next_a + next_v
            else:
                a[i, t], ret[i, t] = np.float32(0), np.float32(0)
    return a, ret


def _columns(r, v, m, gamma, lam):
    steps, sequences = r.shape
    a, ret = np.empty_like(r), np.empty_like(r)
    width = max(16, sequences // numba.get_num_threads())
    zero = np.float32(0)
    for block in numba.prange((sequences + width - 1) // width):
        low = block * width
        high = min(sequences, low + width)
        next_v, next_a = np.zeros(high - low, np.float32), np.zeros(high - low, np.float32)
        for t in range(steps - 1, -1, -1):
            for j in range(high - low):
                i = low + j
                x = r[t, i] + gamma * next_v[j] - v[t, i] + gamma * lam * next_a[j]
                chosen = m[t, i]
                next_a[j] = x if chosen else next_a[j]
                next_v[j] = v[t, i] if chosen else next_v[j]
                a[t, i] = x if chosen else zero
                ret[t, i] = x + v[t, i] if chosen else zero
    return a, ret


def gae_peers(data: dict[str, Tensor], sequences: int, steps: int, threads: int) -> dict[str, Callable]:
    r, v, m = (data[k].view(sequences, steps).numpy() for k in ("rewards", "values", "trainable"))
    columns = [np.ascontiguousarray(x.T) for x in (r, v, m)]
    numba.set_num_threads(threads)
    scan_columns = numba.njit(_columns, parallel=threads > 1)
    cu = torch.arange(sequences + 1, dtype=torch.int32) * steps
    discounts = np.float32(GAMMA), np.float32(LAM)
    inputs = (data["rewards"], data["values"], data["trainable"], cu)
    arrays = tuple(x.numpy() for x in inputs)
    settings = {"gamma": GAMMA, "lam": LAM}
    out = (torch.empty_like(inputs[0]), torch.empty_like(inputs[0]))
    arrays_out = tuple(x.numpy() for x in out)
    runs = {
        "ours": lambda: gae(*inputs, **settings),
        "ours, out=": lambda: gae(*inputs, **settings, out=out),
        "ours, numpy, out=": lambda: gae(*arrays, **settings, out=arrays_out),
        "ours, g=l=1, out=": lambda: gae(*inputs, out=out),
        "numba [T,B]": lambda: scan_columns(*columns, *discounts),
        "numba [B,T]": lambda: scan_rows(r, v, m, *discounts),
    }
    mine, theirs = runs["ours"](), runs["numba [T,B]"]()
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a.view(sequences, steps).numpy(), b.T, atol=2e-4)
    return runs


# ---- losses ----


def textbook(logp, logp_old, advantages, values, values_old, returns, trainable, entropy):
    m = trainable.to(logp.dtype)
    n = m.sum()
    log_ratio = torch.clamp(logp - logp_old, -20, 20)
    ratio = torch.exp(log_ratio)
    plain, cut = -ratio * advantages, -torch.clamp(ratio, 0.8, 1.2) * advantages
    policy = (torch.maximum(plain, cut) * m).sum() / n
    near = torch.clamp(values, values_old - 0.2, values_old + 0.2)
    value = 0.5 * (torch.maximum((values - returns) ** 2, (near - returns) ** 2) * m).sum() / n
    ent = -(entropy * m).sum() / n
    with torch.no_grad():
        kl = ((ratio - 1 - log_ratio) * m).sum() / n
        clipped = ((cut > plain).to(m.dtype) * m).sum() / n
    return policy + value + 0.01 * ent, kl, clipped


def loss_peers(data: dict[str, Tensor]) -> dict[str, Callable]:
    names = ("logp", "logp_old", "advantages", "values", "values_old", "returns", "trainable")
    leaves = [data[k].requires_grad_() for k in ("logp", "values", "entropy")]
    inputs = [data[k] for k in names]
    compiled = torch.compile(textbook, dynamic=False)

    def ours() -> list[Tensor]:
        found = ppo_loss(*inputs, entropy=data["entropy"], entropy_coef=0.01)
        return [found.loss, *torch.autograd.grad(found.loss, leaves)]

    def ours_and_metrics() -> list[Tensor]:
        found = ppo_loss(*inputs, entropy=data["entropy"], entropy_coef=0.01)
        found.metrics  # noqa: B018
        return [found.loss, *torch.autograd.grad(found.loss, leaves)]

    def with_torch(formula: Callable) -> Callable:
        def run() -> list[Tensor]:
            loss, *_ = formula(*inputs, data["entropy"])
            return [loss, *torch.autograd.grad(loss, leaves)]

        return run

    runs = {"ours": ours, "ours and metrics": ours_and_metrics}
    runs |= {"torch.compile": with_torch(compiled), "torch eager": with_torch(textbook)}
    for a, b in zip(ours(), with_torch(textbook)(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
    return runs


# ---- timing ----


def median_times(runs: dict[str, Callable], seconds: float, clock: Callable[[], float]) -> dict[str, float]:
    repeats = {}
    for name, run in runs.items():
        for _ in range(3):
            run()
        begin = time.perf_counter()
        run()
        repeats[name] = max(1, int(0.005 / (time.perf_counter() - begin)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["ours"]) < 7:
        for name, run in runs.items():
            begin = clock()
            for _ in range(repeats[name]):
                run()
            times[name].append((clock() - begin) / repeats[name])
    return {name: statistics.median(x) for name, x in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="per case")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    _native.set_num_threads(arguments.threads)
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    tier = _native.ppo_which("cpu")
    print(f"{tier}, {arguments.threads} thread(s), torch {torch.__version__}; us, median; x: peer / ours")
    for shape, (sequences, steps) in SHAPES.items():
        data = batch(sequences, steps)
        for kind in ("gae", "loss"):
            if arguments.only not in f"{kind} {shape}":
                continue
            runs = gae_peers(data, sequences, steps, arguments.threads) if kind == "gae" else loss_peers(data)
            found = median_times(runs, arguments.seconds, clock)
            row = "  ".join(f"{n} {t * 1e6:.1f} (x{t / found['ours']:.2f})" for n, t in found.items())
            print(f"{kind} {shape}: {row}", flush=True)


if __name__ == "__main__":
    main()

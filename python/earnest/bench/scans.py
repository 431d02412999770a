# SPDX-License-Identifier: Apache-2.0
"""Generalised advantages as others compute them: (rewards, values, trainable) -> (advantages, returns).

A_t = r_t + gamma V_next - V_t + gamma lambda A_next, where "next" is the next trainable token of the
sequence; both results are 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from earnest.bench import peers

Scan = Callable[[Any, Any, Any], tuple[Any, Any]]


def reference(inputs: tuple, gamma: float, lam: float) -> list[Any]:
    """[time, sequences] in, packed float64 [tokens] out."""
    rewards, values, trainable = inputs
    r, v = rewards.astype(np.float64), values.astype(np.float64)
    advantages, returns = np.zeros_like(r), np.zeros_like(r)
    next_advantage, next_value = np.zeros(r.shape[1]), np.zeros(r.shape[1])
    for t in range(len(r) - 1, -1, -1):
        on = trainable[t]
        a = r[t] + gamma * next_value - v[t] + gamma * lam * next_advantage
        advantages[t], returns[t] = np.where(on, a, 0), np.where(on, a + v[t], 0)
        next_advantage, next_value = np.where(on, a, next_advantage), np.where(on, v[t], next_value)
    return [advantages.T.reshape(-1), returns.T.reshape(-1)]


def torch_loop(gamma: float, lam: float) -> Scan:
    """The loop over time of TRL and OpenRLHF, on [sequences, time]."""
    import torch

    def run(rewards: Any, values: Any, trainable: Any) -> tuple[Any, Any]:
        r, v, m = (torch.from_numpy(np.asarray(x)) for x in (rewards, values, trainable))
        advantages = torch.zeros_like(r)
        next_advantage, next_value = torch.zeros_like(r[:, 0]), torch.zeros_like(r[:, 0])
        for t in range(r.shape[1] - 1, -1, -1):
            on = m[:, t]
            a = r[:, t] + gamma * next_value - v[:, t] + gamma * lam * next_advantage
            advantages[:, t] = torch.where(on, a, 0.0)
            next_advantage = torch.where(on, a, next_advantage)
            next_value = torch.where(on, v[:, t], next_value)
        return advantages, torch.where(m, advantages + v, 0.0)

    return run


def scipy_filter(gamma: float, lam: float) -> Scan:
    """A linear filter over the reversed differences (Spinning Up, RLlib), a sequence's turns joined."""
    lfilter = peers.load("scipy.signal", "scipy").lfilter
    decay = np.array([1.0, -gamma * lam], np.float32)
    one = np.array([1.0], np.float32)

    def run(rewards: Any, values: Any, trainable: Any) -> tuple[Any, Any]:
        advantages, returns = np.zeros_like(rewards), np.zeros_like(rewards)
        for r, v, m, a, back in zip(rewards, values, trainable, advantages, returns, strict=True):
            chosen = v[m]
            delta = r[m] - chosen
            delta[:-1] += np.float32(gamma) * chosen[1:]
            found = lfilter(one, decay, delta[::-1])[::-1]
            a[m], back[m] = found, found + chosen
        return advantages, returns

    return run


def numba_rows(gamma: float, lam: float) -> Scan:
    """[sequences, time]: a sequence after the other, sequences over threads."""
    numba, loop_range, options = _numba()

    @numba.njit(**options)
    def scan(r, v, m, advantages, returns, gamma, decay):
        nothing = np.float32(0)
        for b in loop_range(r.shape[0]):
            next_advantage, next_value = nothing, nothing
            for t in range(r.shape[1] - 1, -1, -1):
                on, value = m[b, t], v[b, t]
                a = r[b, t] + gamma * next_value - value + decay * next_advantage
                advantages[b, t], returns[b, t] = (a, a + value) if on else (nothing, nothing)
                next_advantage, next_value = (a, value) if on else (next_advantage, next_value)

    return _allocating(scan, gamma, lam)


def numba_columns(gamma: float, lam: float) -> Scan:
    """[time, sequences] with `trainable` as 0 or 1 in float32: sequences side by side in a register, blocks
    of them over threads. Blending by multiplication and slices of rows are what makes numba use registers."""
    numba, loop_range, options = _numba()
    block = 64  # of 16 to 256 the fastest for 512 sequences

    @numba.njit(**options)
    def scan(r, v, m, advantages, returns, gamma, decay):
        columns = r.shape[1]
        for part in loop_range((columns + block - 1) // block):
            low, high = part * block, min(columns, part * block + block)
            next_advantage, next_value = np.zeros(high - low, np.float32), np.zeros(high - low, np.float32)
            for t in range(r.shape[0] - 1, -1, -1):
                here_r, here_v, here_m = r[t, low:high], v[t, low:high], m[t, low:high]
                here_a, here_back = advantages[t, low:high], returns[t, low:high]
                for b in range(high - low):
                    on, value = here_m[b], here_v[b]
                    a = here_r[b] + gamma * next_value[b] - value + decay * next_advantage[b]
                    here_a[b], here_back[b] = on * a, on * (a + value)
                    next_advantage[b] += on * (a - next_advantage[b])
                    next_value[b] += on * (value - next_value[b])

    return _allocating(scan, gamma, lam)


def _numba() -> tuple[Any, Any, dict[str, bool]]:
    import torch

    numba = peers.load("numba")
    parallel = torch.get_num_threads() > 1  # the threads that the case was given
    if parallel:
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    return numba, numba.prange if parallel else range, {"fastmath": True, "parallel": parallel}


def _allocating(scan: Any, gamma: float, lam: float) -> Scan:
    gamma32, decay32 = np.float32(gamma), np.float32(gamma * lam)

    def run(rewards: Any, values: Any, trainable: Any) -> tuple[Any, Any]:
        advantages, returns = np.empty_like(rewards), np.empty_like(rewards)
        scan(rewards, values, trainable, advantages, returns, gamma32, decay32)
        return advantages, returns

    return run

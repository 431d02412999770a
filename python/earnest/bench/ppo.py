# SPDX-License-Identifier: Apache-2.0
"""Cases of PPO: generalised advantage estimation over turns with gaps, losses with gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from earnest.bench import peers, scans
from earnest.bench.case import OURS, Case, Implementation, Problem, Target

GAMMA, LAMBDA = 0.99, 0.95
CLIP, CLIP_VALUE, VALUE_COEF, ENTROPY_COEF = 0.2, 0.2, 0.5, 0.01
SIZES = ((16, 1024, 1), (512, 2048, 2))  # sequences, tokens of each, threads
# The targets are 10 us and 0.6 ms where the best peer took 18.3 and 1570 us; 45 us and 1.2 ms where it took
# 121 and 1794 us.
GAE_TARGET = {16: Target(ratio=18.3 / 10), 512: Target(ratio=1570 / 600)}
LOSS_TARGET = {16: Target(ratio=121 / 45), 512: Target(ratio=1794 / 1200)}


def cases() -> list[Case]:
    return [case(kind, *size) for size in SIZES for kind in ("gae", "losses")]


def case(kind: str, sequences: int, tokens: int, threads: int) -> Case:
    problem, targets = {"gae": (_gae, GAE_TARGET), "losses": (_losses, LOSS_TARGET)}[kind]
    return Case(
        name=f"ppo/{kind}-{sequences}x{tokens}",
        problem=partial(problem, sequences=sequences, tokens=tokens),
        shape={"sequences": sequences, "tokens": tokens},
        threads=threads,
        target=targets.get(sequences, Target()),
        quick=sequences == 16,
    )


def turns(rng: np.random.Generator, sequences: int, tokens: int) -> np.ndarray:
    """bool [sequences, tokens]: True where the policy chose: replies of 20 to 119 tokens, gaps of 5 to 49."""
    trainable = np.zeros((sequences, tokens), bool)
    for row in trainable:
        at = int(rng.integers(5, 50))
        while at < tokens:
            length = int(rng.integers(20, 120))
            row[at : at + length] = True
            at += length + int(rng.integers(5, 50))
    return trainable


def _sets(one_bytes: int) -> int:
    """Small batches come straight from the step that made them; large ones leave the caches meanwhile."""
    return 1 if one_bytes < 1 << 20 else peers.sets_beyond_caches(one_bytes, most=6)


# ---- advantages ----


def _gae(rng: np.random.Generator, sequences: int, tokens: int) -> Problem:
    shape, moved = (sequences, tokens), sequences * tokens * (4 * 4 + 1)
    bounds = np.arange(0, (sequences + 1) * tokens, tokens, dtype=np.int32)

    def one() -> tuple:
        rewards, values = (rng.standard_normal(shape, dtype=np.float32).reshape(-1) for _ in range(2))
        return rewards, values, turns(rng, *shape).reshape(-1), bounds

    def by_time(rewards: Any, values: Any, trainable: Any, _: Any) -> tuple:
        return tuple(np.ascontiguousarray(x.reshape(shape).T) for x in (rewards, values, trainable))

    def by_sequence(rewards: Any, values: Any, trainable: Any, _: Any) -> tuple:
        return tuple(x.reshape(shape) for x in (rewards, values, trainable))

    flat: dict[str, Any] = {
        "outputs": lambda result: [np.asarray(x).reshape(-1) for x in result],
        "prepare": by_sequence,
    }
    return Problem(
        inputs=[one() for _ in range(_sets(moved))],
        reference=lambda *inputs: scans.reference(by_time(*inputs), GAMMA, LAMBDA),
        implementations=[
            Implementation("earnest", _our_gae, OURS, outputs=list),
            Implementation(
                "torch, a loop over time", lambda: scans.torch_loop(GAMMA, LAMBDA), **flat, extra=False
            ),
            Implementation("scipy lfilter", lambda: scans.scipy_filter(GAMMA, LAMBDA), **flat),
            Implementation("numba [B, T]", lambda: scans.numba_rows(GAMMA, LAMBDA), **flat, compiles=True),
            Implementation(
                "numba [T, B]",
                lambda: scans.numba_columns(GAMMA, LAMBDA),
                prepare=lambda *inputs: _with_float_mask(*by_time(*inputs)),
                outputs=lambda result: [x.T.reshape(-1) for x in result],
                compiles=True,
            ),
        ],
        tolerance=1e-5,
        bytes=moved,
    )


def _with_float_mask(rewards: Any, values: Any, trainable: Any) -> tuple:
    return rewards, values, trainable.astype(np.float32)


def _our_gae() -> Callable[..., Any]:
    gae = peers.ours("gae")
    return lambda *arrays: gae(*arrays, gamma=GAMMA, lam=LAMBDA)


# ---- losses ----

NAMES = ("logp", "logp_old", "advantages", "values", "values_old", "returns", "entropy")
LEAVES = (0, 3, 6)  # logp, values, entropy


def _losses(rng: np.random.Generator, sequences: int, tokens: int) -> Problem:
    import torch

    size = sequences * tokens

    def one() -> tuple:
        logp, values = (rng.standard_normal(size, dtype=np.float32) for _ in range(2))
        noise = rng.standard_normal((5, size), dtype=np.float32)
        arrays = (
            logp - 3, logp - 3 + 0.2 * noise[0], noise[1], values, values + 0.2 * noise[2], values + noise[3],
            np.abs(noise[4]),
        )  # fmt: skip
        return (*map(torch.from_numpy, arrays), torch.from_numpy(turns(rng, sequences, tokens).reshape(-1)))

    moved = size * (4 * (len(NAMES) + len(LEAVES)) + 1)
    # All sequences in one row: for these formulas, shapes make no difference.
    return Problem(
        inputs=[_leaves(one()) for _ in range(_sets(moved))],
        reference=_reference,
        implementations=[
            Implementation("earnest", our_losses, OURS, outputs=list),
            Implementation("torch", lambda: gradients_of(plain), outputs=list, extra=False),
            Implementation(
                "torch.compile", lambda: gradients_of(peers.compiled(plain)), outputs=list, compiles=True
            ),
        ],
        tolerance=1e-4,
        bytes=moved,
    )


def _leaves(arrays: tuple) -> tuple:
    return tuple(x.requires_grad_() if i in LEAVES else x for i, x in enumerate(arrays))


def our_losses() -> Callable[..., Any]:
    import torch

    ppo_loss = peers.ours("ppo_loss")

    def run(*arrays: Any) -> list[Any]:
        logp, logp_old, advantages, values, values_old, returns, entropy, trainable = arrays
        found = ppo_loss(
            logp, logp_old, advantages, values, values_old, returns, trainable, clip=CLIP,
            clip_value=CLIP_VALUE, value_coef=VALUE_COEF, entropy=entropy, entropy_coef=ENTROPY_COEF,
        )  # fmt: skip
        gradients = torch.autograd.grad(found.loss, (logp, values, entropy))
        return [found.loss, found.metrics["approx_kl"], found.metrics["clip_fraction"], *gradients]

    return run


def plain(
    logp: Any,
    logp_old: Any,
    advantages: Any,
    values: Any,
    values_old: Any,
    returns: Any,
    entropy: Any,
    mask: Any,
) -> tuple[Any, Any, Any]:
    """(loss, approximate KL, clip fraction), as PPO trainers write them."""
    import torch

    weight = mask.to(logp.dtype)
    count = weight.sum()

    def mean(x: Any) -> Any:
        return (x * weight).sum() / count

    log_ratio = logp - logp_old
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
    policy = mean(torch.maximum(-advantages * ratio, -advantages * clipped))
    near = values_old + (values - values_old).clamp(-CLIP_VALUE, CLIP_VALUE)
    value = mean(torch.maximum((values - returns) ** 2, (near - returns) ** 2)) / 2
    loss = policy + VALUE_COEF * value - ENTROPY_COEF * mean(entropy)
    with torch.no_grad():
        cut = ((ratio < 1 - CLIP) & (advantages < 0)) | ((ratio > 1 + CLIP) & (advantages > 0))
        return loss, mean(ratio - 1 - log_ratio), mean(cut.to(logp.dtype))


def gradients_of(losses: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    def run(*arrays: Any) -> list[Any]:
        found = losses(*arrays)
        return [*found, *torch.autograd.grad(found[0], [arrays[i] for i in LEAVES])]

    return run


def _reference(*arrays: Any) -> list[Any]:
    doubles = [x.detach().double() if x.is_floating_point() else x for x in arrays]
    return gradients_of(plain)(*_leaves(tuple(doubles)))

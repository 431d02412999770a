# SPDX-License-Identifier: Apache-2.0
"""Cases of PPO on a GPU: advantages over turns with gaps, losses with gradients, whitening, groups."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from earnest.bench import peers
from earnest.bench.case import ALSO, OURS, Case, Implementation, Problem, Target
from earnest.bench.gpu_forecast import BRIEF, LOADING
from earnest.bench.ppo import (
    CLIP,
    CLIP_VALUE,
    ENTROPY_COEF,
    GAMMA,
    LAMBDA,
    LEAVES,
    NAMES,
    VALUE_COEF,
    gradients_of,
    our_losses,
    plain,
    turns,
)  # fmt: skip

TOKENS = 2048  # of a sequence
TARGETS = {
    ("gae", 1 << 20): Target(seconds=15e-6),
    ("gae", 1 << 26): Target(fraction=0.6),
    ("losses", 1 << 24): Target(fraction=0.8, ratio=1.5),
    ("whiten", 1 << 24): Target(fraction=0.6),  # our reading of "bandwidth-bound", of groups too
    ("groups", 1 << 24): Target(fraction=0.6),
    ("groups-deviation", 1 << 24): Target(fraction=0.6),
    ("groups-leave-one-out", 1 << 24): Target(fraction=0.6),
}
SIZES = {
    "gae": (1 << 20, 1 << 26),
    "losses": (1 << 20, 1 << 24),
    "whiten": (1 << 24,),
    "groups": (1 << 20, 1 << 24),
}
COMPILED = ("losses", "whiten", "groups")  # by torch, as a peer
VARIANTS = ("groups-deviation", "groups-leave-one-out")  # of 16M alone
# Of sequences, beside TOKENS: many to a lane or to a warp, and one that all blocks work on.
LENGTHS = (1, 8, 1 << 20)
SAMPLES = 16  # replies to a prompt
LOOP = 2.0  # seconds of 2,048 steps of a dozen launches each, recorded, called and checked: predicted


def cases() -> list[Case]:
    """Those that are judged first, as a run may end before the last one."""
    found = [case(kind, size) for kind, sizes in SIZES.items() for size in sizes]
    found += [case("gae", 1 << 20, tokens) for tokens in LENGTHS]
    found += [case(kind, 1 << 24) for kind in VARIANTS]
    return sorted(found, key=lambda one: one.target == Target())


def case(kind: str, size: int, tokens: int = TOKENS, device: str = "cuda") -> Case:
    problem: Any = {
        "gae": _gae,
        "losses": _losses,
        "whiten": _whiten,
        "groups": _groups,
        "groups-deviation": partial(_groups, normalize_std=True),
        "groups-leave-one-out": partial(_groups, baseline="leave_one_out"),
    }[kind]
    return Case(
        name=f"ppo/cuda-{kind}-{size}" + (f"-of-{tokens}" if tokens in LENGTHS else ""),
        problem=partial(problem, size=size, tokens=tokens, device=device),
        shape={"tokens": size, "of_sequence": tokens},
        target=TARGETS.get((kind, size), Target()),
        quick=size == 1 << 20,
        device=device,
        setup=_setup(kind, tokens),
        compiles=kind in COMPILED,
    )


def _setup(kind: str, tokens: int) -> float:
    looping = kind == "gae" and tokens == TOKENS
    return BRIEF + (LOADING if kind in COMPILED else 0) + (LOOP if looping else 0)


def _draw(rng: np.random.Generator, size: int, tokens: int, device: str) -> tuple[Any, Any]:
    """A function that draws `size` normal numbers, and bool [size]: turns in sequences of `tokens`, the same
    64 over and over."""
    import torch

    g = torch.Generator(device).manual_seed(int(rng.integers(1 << 31)))
    mask = torch.from_numpy(turns(rng, min(size // tokens, 64), tokens)).to(device)
    times = -(-size // mask.numel())
    return partial(torch.randn, size, generator=g, device=device), mask.repeat(times, 1).view(-1)[:size]


# ---- advantages ----


def _gae(rng: np.random.Generator, size: int, tokens: int, device: str) -> Problem:
    import torch

    draw, trainable = _draw(rng, size, tokens, device)
    bounds = torch.arange(0, size + 1, tokens, dtype=torch.int32, device=device)
    gae = peers.ours("gae")
    return Problem(
        inputs=[(draw(), draw(), trainable, bounds)],
        reference=lambda r, v, m, b: list(_exact(r, v, m, b, tokens)),
        implementations=[
            Implementation("earnest", lambda: partial(gae, gamma=GAMMA, lam=LAMBDA), OURS, outputs=list),
            Implementation(
                "torch, a loop over time", lambda: lambda r, v, m, _: _over_time(r, v, m, tokens),
                outputs=list, extra=False,
            ),
        ][: 2 if tokens <= TOKENS else 1],
        tolerance=1e-5,
        bytes=size * (4 * 4 + 1),
    )  # fmt: skip


def _exact(rewards: Any, values: Any, trainable: Any, bounds: Any, tokens: int) -> tuple[Any, ...]:
    """In float64; of sequences that are too long for a loop of torch's, by our kernel for the CPU."""
    if tokens <= TOKENS:
        return _over_time(rewards.double(), values.double(), trainable, tokens)
    on_cpu = (rewards.double().cpu(), values.double().cpu(), trainable.cpu(), bounds.cpu())
    found = peers.ours("gae")(*on_cpu, gamma=GAMMA, lam=LAMBDA)
    return tuple(x.to(rewards.device) for x in found)


def _over_time(rewards: Any, values: Any, trainable: Any, tokens: int) -> tuple[Any, Any]:
    """The loop of TRL and OpenRLHF, a step of all sequences at a time."""
    import torch

    r, v, on = (x.view(-1, tokens) for x in (rewards, values, trainable))
    advantages = torch.zeros_like(r)
    ahead, value_ahead = torch.zeros_like(r[:, 0]), torch.zeros_like(r[:, 0])
    for t in range(tokens - 1, -1, -1):
        a = r[:, t] + GAMMA * value_ahead - v[:, t] + GAMMA * LAMBDA * ahead
        ahead = torch.where(on[:, t], a, ahead)
        value_ahead = torch.where(on[:, t], v[:, t], value_ahead)
        advantages[:, t] = torch.where(on[:, t], a, 0.0)
    return advantages.view(-1), torch.where(on, advantages + v, 0.0).view(-1)


# ---- losses ----


def _losses(rng: np.random.Generator, size: int, tokens: int, device: str) -> Problem:
    draw, trainable = _draw(rng, size, tokens, device)
    logp, values = draw() - 3, draw()
    arrays = (
        logp, logp + 0.2 * draw(), draw(), values, values + 0.2 * draw(), values + draw(), draw().abs(),
        trainable,
    )  # fmt: skip
    inputs = tuple(x.requires_grad_() if i in LEAVES else x for i, x in enumerate(arrays))

    def reference(*arrays: Any) -> list[Any]:
        doubles = [x.detach().double() if x.is_floating_point() else x for x in arrays]
        leaves = [x.requires_grad_() if i in LEAVES else x for i, x in enumerate(doubles)]
        loss, _, _, *gradients = gradients_of(plain)(*leaves)
        return [loss, *gradients]

    def without_metrics(result: Any) -> list[Any]:
        loss, _, _, *gradients = result
        return [loss, *gradients]

    return Problem(
        inputs=[inputs],
        reference=reference,
        implementations=[
            Implementation("earnest", lambda: _kernel, OURS, outputs=list),
            Implementation("earnest, autograd", our_losses, ALSO, outputs=without_metrics, extra=False),
            Implementation("torch", lambda: gradients_of(plain), outputs=without_metrics, extra=False),
            Implementation(
                "torch.compile", lambda: gradients_of(peers.compiled(plain)), outputs=without_metrics,
                compiles=True,
            ),
        ],
        tolerance=1e-4,
        bytes=size * (4 * (len(NAMES) + len(LEAVES)) + 1),
    )  # fmt: skip


def _kernel(*arrays: Any) -> list[Any]:
    """The loss and its gradients as the kernel leaves them: nothing here asks autograd."""
    from earnest.ops.ppo_autograd import Settings, loss_and_gradients

    logp, logp_old, advantages, values, values_old, returns, entropy, trainable = (x.detach() for x in arrays)
    inputs = (
        logp, logp_old, advantages, values, values_old, returns, None, entropy, None, None, trainable,
    )  # fmt: skip
    settings = Settings(0.0, CLIP, CLIP, CLIP_VALUE, None, "k2", (1.0, VALUE_COEF, 0.0, ENTROPY_COEF))
    loss, _, gradients = loss_and_gradients(inputs, settings)
    return [loss, *gradients]


# ---- whitening, groups ----


def _whiten(rng: np.random.Generator, size: int, tokens: int, device: str) -> Problem:
    draw, trainable = _draw(rng, size, tokens, device)
    return Problem(
        inputs=[(3 * draw() + 1, trainable)],
        reference=lambda x, m: [_white(x.double(), m)],
        implementations=[
            Implementation("earnest", lambda: peers.ours("whiten"), OURS),
            Implementation("torch", lambda: _white, extra=False),
            Implementation("torch.compile", lambda: peers.compiled(_white), compiles=True),
        ],
        tolerance=1e-4,
        bytes=size * (4 * 3 + 2),  # moments read it first
    )


def _white(x: Any, trainable: Any) -> Any:
    import torch

    weight = trainable.to(x.dtype)
    count = weight.sum()
    mean = (x * weight).sum() / count
    centred = (x - mean) * weight
    return centred * torch.rsqrt((centred * centred).sum() / count + 1e-8)


def _groups(rng: np.random.Generator, size: int, tokens: int, device: str, **asked: Any) -> Problem:
    """asked: of group_advantage. No group is of equal scores, so that peers need no rule for those."""
    import torch

    draw, _ = _draw(rng, size, tokens, device)
    groups = torch.arange(size // SAMPLES, device=device).repeat_interleave(SAMPLES)
    side_by_side, indexed = (partial(found, **asked) for found in (_side_by_side, _indexed))
    compiled = Implementation(
        "torch.compile, index_add", lambda: peers.compiled(indexed), compiles=True
    )  # of the baseline alone: each takes seconds
    return Problem(
        inputs=[(draw(), groups)],
        reference=lambda scores, groups: [side_by_side(scores.double(), groups)],
        implementations=[
            Implementation("earnest", lambda: partial(peers.ours("group_advantage"), **asked), OURS),
            Implementation("torch, groups side by side", lambda: side_by_side, extra=False),
            Implementation("torch, index_add", lambda: indexed, extra=False),
            *([] if asked else [compiled]),
        ],
        tolerance=1e-5,
        bytes=size * (4 + 8 + 4),
    )


def _side_by_side(scores: Any, _: Any, baseline: str = "mean", normalize_std: bool = False) -> Any:
    """Where it is known that groups are rows of a matrix."""
    import torch

    rows = scores.view(-1, SAMPLES)
    centred = rows - rows.mean(1, keepdim=True)
    if baseline == "leave_one_out":
        centred = centred * (SAMPLES / (SAMPLES - 1))
    if normalize_std:
        centred = centred * torch.rsqrt(rows.var(1, keepdim=True) + 1e-8)
    return centred.view(-1)


def _indexed(scores: Any, groups: Any, baseline: str = "mean", normalize_std: bool = False) -> Any:
    """Of groups anywhere, numbered from 0, where it is known how many there are: no wait to learn it."""
    import torch

    def sums(x: Any) -> Any:
        return x.new_zeros(len(scores) // SAMPLES).index_add(0, groups, x)

    count = sums(torch.ones_like(scores))
    if baseline == "leave_one_out":
        return scores - (sums(scores)[groups] - scores) / (count - 1)[groups]
    centred = scores - (sums(scores) / count)[groups]
    if normalize_std:
        centred = centred * torch.rsqrt(sums(centred * centred) / (count - 1) + 1e-8)[groups]
    return centred

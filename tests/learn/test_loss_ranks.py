# SPDX-License-Identifier: Apache-2.0
"""T5 across processes: two ranks with unequal shares give the loss, gradients and whitening of one."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from earnest.learn.advantage import AdvantageSettings, estimate
from earnest.learn.loss import LossSettings, join, loss_of, step_normalizer

LENGTHS = [5, 31, 2, 14]
SHARES = {0: [0], 1: [1, 2, 3]}
SETTINGS = LossSettings(kl_coef=0.1)


def bounds_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def rows_of(replies: list[int]) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    whole = torch.randn(7, sum(LENGTHS), generator=g, dtype=torch.float64)
    mask = torch.rand(sum(LENGTHS), generator=g) > 0.3
    starts = bounds_of(LENGTHS).tolist()
    at = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in replies])
    names = ("logp", "logp_old", "rewards", "values", "values_old", "logp_ref", "scale")
    return dict(zip(names, whole[:, at], strict=True)) | {"trainable": mask[at]}


def step(replies: list[int]) -> tuple[torch.Tensor, dict[str, float]]:
    """(gradient of a weight that every log-probability is multiplied by, metrics of the step)."""
    rows, bounds = rows_of(replies), bounds_of([LENGTHS[i] for i in replies])
    found = estimate(
        rows["rewards"], rows["trainable"], bounds, AdvantageSettings(), values=rows["values_old"]
    )
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    loss = loss_of(
        rows["logp"] * weight, rows["logp_old"], found.advantages, rows["trainable"], SETTINGS,
        normalizer=step_normalizer(rows["trainable"], bounds, SETTINGS), values=rows["values"],
        values_old=rows["values_old"], returns=found.returns, logp_ref=rows["logp_ref"],
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(loss.loss, weight)
    if dist.is_initialized():  # as DDP and FSDP do
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    return gradient, join([loss])


def run_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    gradient, metrics = step(SHARES[rank])
    torch.save((gradient, metrics), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    gradient, metrics = step([0, 1, 2, 3])
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        theirs, joined = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(theirs, gradient, rtol=1e-12, atol=1e-12)
        assert set(joined) == set(metrics)
        for name, value in metrics.items():
            assert abs(joined[name] - value) <= 1e-10 * max(1.0, abs(value)), name

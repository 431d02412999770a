# SPDX-License-Identifier: Apache-2.0
"""The metrics of PPO's losses, by name, from their sums."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from earnest import _native
from earnest.ops.eager import is_eager

METRICS: tuple[str, ...] = tuple(_native.ppo_metric_names())
_PLACES = {name: place for place, name in enumerate(METRICS)}


class Metrics(Mapping[str, Tensor]):
    """Metrics by name. Making a scalar tensor of each takes as long as the losses of a small batch, so only
    those that are asked for are made. They lie on the CPU: a run reads them one by one."""

    __slots__ = ("_values",)

    def __init__(self, values: Tensor) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Tensor:
        return self._values[_PLACES[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(METRICS)

    def __len__(self) -> int:
        return len(METRICS)

    def items(self) -> ItemsView[str, Tensor]:
        return dict(zip(METRICS, self._values.unbind(), strict=True)).items()

    def __repr__(self) -> str:
        return repr(dict(self.items()))


def metrics_of_tensor(sums: Tensor) -> Mapping[str, Tensor]:
    if is_eager(sums):
        return Metrics(_metrics_of(sums.cpu()))
    return dict(zip(METRICS, _metrics(sums).unbind(), strict=True))


def _metrics_of(sums: Tensor) -> Tensor:
    out = torch.empty(len(METRICS), dtype=torch.float64)
    _native.ppo_metrics(to_dlpack(sums), to_dlpack(out))
    return out


@torch.library.custom_op("earnest::ppo_metrics", mutates_args=())
def _metrics(sums: Tensor) -> Tensor:
    return _metrics_of(sums.cpu()).to(sums.device)


@_metrics.register_fake
def _(sums):
    return sums.new_empty(len(METRICS))

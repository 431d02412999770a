# SPDX-License-Identifier: Apache-2.0
"""The optimiser of the supervised stages: AdamW, or Muon for the matrices between layers and AdamW for the
rest. Learning to hear takes about 0.6 of AdamW's steps with Muon, at 1.1 times the time of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from earnest.learn.schedule import share_of_rate
from earnest.settings import setting


@dataclass(frozen=True)
class OptimiserSettings:
    """A linear warm-up and a linear way down."""

    lr: float = setting(1e-3, "the highest learning rate", above=0)
    warmup_steps: int = setting(20, at_least=0)
    final_lr: float = setting(0.1, "share of lr left at the end", at_least=0, at_most=1)
    weight_decay: float = setting(0.01, at_least=0)
    beta2: float = setting(0.98, "AdamW's", above=0, at_most=1)
    clip_norm: float = setting(1.0, "largest norm of the gradient", above=0)
    matrices: Literal["adamw", "muon"] = setting("adamw", "what moves the matrices between layers")

    def build(self, module: nn.Module, also: Sequence[nn.Parameter] = ()) -> torch.optim.AdamW | Paired:
        """For the parameters of `module` that are trained, and `also` some that AdamW moves."""
        trained = [p for p in module.parameters() if p.requires_grad]
        muon = matrices_of(module) if self.matrices == "muon" else []
        chosen = {id(p) for p in muon}
        rest = [p for p in (*trained, *also) if id(p) not in chosen]
        adamw = torch.optim.AdamW(rest, self.lr, betas=(0.9, self.beta2), weight_decay=self.weight_decay)
        if not muon:
            return adamw
        # Updates of AdamW's size, so that one learning rate serves both (Moonlight, arXiv 2502.16982).
        moved = torch.optim.Muon(
            muon, self.lr, weight_decay=self.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        return Paired(moved, adamw)

    def rate(self, step: int, total: int) -> float:
        return self.lr * share_of_rate(step, total, self.warmup_steps, self.final_lr)


def matrices_of(module: nn.Module) -> list[torch.Tensor]:
    """The trained matrices that lead from layer to layer: all of linear layers but the output matrix, whose
    rows, like those of an embedding, are words apart from each other."""
    return [
        part.weight
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and part.weight.requires_grad and not name.endswith("lm_head")
    ]


class Paired:
    """Muon (Jordan 2024, kellerjordan.github.io/posts/muon) and AdamW as one optimiser."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self.muon, self.adamw = muon, adamw

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [*self.muon.param_groups, *self.adamw.param_groups]

    def step(self) -> None:
        self.muon.step()
        self.adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.muon.zero_grad(set_to_none)
        self.adamw.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


def optimiser_step(
    optimiser: torch.optim.Optimizer | Paired,
    parameters: Sequence[nn.Parameter],
    lr: float,
    clip_norm: float,
) -> float:
    """One step at `lr` with the gradients at hand; their norm before clipping. A gradient that is not finite
    stops the run with its state as it was before the step."""
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, clip_norm))
    if norm != norm or norm == float("inf"):
        raise FloatingPointError(f"[update] gradient: expected a finite norm, got {norm}")
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm

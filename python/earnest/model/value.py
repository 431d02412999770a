# SPDX-License-Identifier: Apache-2.0
"""The critic: V(s_t) at every position, from a decoder of its own on top of the policy's frozen encoder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earnest.model import weights
from earnest.model.audio_lm import AudioLM
from earnest.model.generate import PackedInputs, attended
from earnest.model.packed import lay_end_to_end


class ValueModel(nn.Module):
    """Adaptor and decoder copied from `policy`; a scalar head in float32 that starts at zero, so that every
    value does.

    The encoder is the policy's own (not a copy, and not among this model's parameters): it must stay
    frozen."""

    def __init__(self, policy: AudioLM) -> None:
        super().__init__()
        self.adapter = copy.deepcopy(policy.adapter)
        self.model = copy.deepcopy(policy.model)
        lay_end_to_end(self.model.fused_groups())
        self.head = nn.Linear(
            policy.config.text_config.hidden_size, 1, dtype=torch.float32, device=policy.lm_head.weight.device
        )
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._shared = (policy,)

    def forward(self, batch: PackedInputs, encoded: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Values float32 [tokens]; value t is that of the state in which token t + 1 is chosen.

        encoded: what policy.encode(batch.mel) returned, if it is at hand."""
        policy = self._shared[0]
        ids = batch.input_ids.to(self.head.weight.device)
        x = self.model.embed_tokens(ids)
        if batch.audio_positions.numel():
            if encoded is None:
                with torch.no_grad():
                    encoded = policy.encode(batch.mel)
            x = x.index_copy(0, batch.audio_positions.to(x.device), self.adapter(*encoded).to(x))
        hidden = self.model(x, *attended(batch, x.device))
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.head.weight, self.head.bias)[:, 0]

    def save(self, path: str | Path) -> None:
        """Writes the critic's own weights, beside and renamed."""
        with weights.replacing(path) as folder:
            config: dict[str, Any] = {
                "model_type": "earnest_value",
                **self._shared[0].config.to_dict()["text_config"],
            }
            weights.write(folder, self.state_dict(), config, 5_000_000_000)

    def load(self, path: str | Path) -> None:
        """Reads weights that `save` wrote; the sizes must be the same."""
        checkpoint, state = weights.Checkpoint(weights.find_folder(Path(path))), self.state_dict()
        checkpoint.check({name: tuple(t.shape) for name, t in state.items()})
        checkpoint.read_into(state)

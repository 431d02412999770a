# SPDX-License-Identifier: Apache-2.0
"""Random weights of large decoders, drawn on the GPU that computes with them and read there in place: by the
engine, by torch's model and by transformers', so that the 15 GB of a 7B decoder are neither written to a file
nor sent.

Weights of int8 and int4 are drawn on the grid of their codes, scales being powers of two: what the engine
makes codes of is then, number for number, what the others multiply with, and one bound holds for every width.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from earnest.bench.engine_weights import Decoder
from earnest.bench.limits import Threads

CODES = {"bf16": "none", "int8": "int8", "int4": "int4"}  # the engine's names
GROUP = 32  # inputs that share a scale in int4
_CODED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class Drawn:
    """A decoder's weights: torch's model in bfloat16, with numbers that `weights` holds exactly."""

    model: Any
    weights: str

    @cached_property
    def engine(self) -> Any:
        """Ours, over the same tensors or over codes of them, which all threads make, a matrix at a time, in
        the memory of the host: of int4 one makes 22 million a second."""
        return self._over("ours")

    @cached_property
    def vendor(self) -> Any:
        """The same with the vendor's products; RuntimeError where there are none."""
        return self._over("vendor")

    def _over(self, products: str) -> Any:
        import torch

        from earnest import _native

        if self.model.device.type == "cuda":
            torch.cuda.synchronize()  # the engine's work stands on another stream
        tensors = {name: tensor.detach() for name, tensor in self.model.state_dict().items()}
        config = json.dumps(self.model.config.to_dict())
        with Threads(os.cpu_count() or 1):
            return _native.engine.from_memory(config, tensors, "bfloat16", CODES[self.weights], products)


def drawn(decoder: Decoder, weights: str, device: str) -> Drawn:
    """Those that were asked for last are kept: codes of a 7B decoder take longer to make than to time."""
    key = (decoder.name, weights, device)
    if key not in _kept:
        _kept.clear()
        _kept[key] = Drawn(_draw(decoder, weights, device), weights)
    return _kept[key]


_kept: dict[tuple[str, str, str], Drawn] = {}


def _draw(decoder: Decoder, weights: str, device: str) -> Any:
    import torch

    from earnest.model import AudioLM

    model = AudioLM(decoder.config(), dtype=torch.bfloat16, device=device, initialise=False)
    generator = torch.Generator(device=device).manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            form = form_of(name, weights)
            if name.endswith("norm.weight"):
                weight.fill_(1.0)
            elif form == "bf16":
                weight.normal_(0.0, decoder.width**-0.5, generator=generator)
            else:
                on_grid(weight, form, decoder.width**-0.5, generator)
    return model.requires_grad_(False)


def form_of(name: str, weights: str) -> str:
    """What the engine keeps a tensor in: the output matrix, tied to the embeddings, never has fewer than 8
    bits."""
    if weights != "bf16" and name.endswith("embed_tokens.weight"):
        return "int8"
    return weights if name.endswith(tuple(f"{part}.weight" for part in _CODED)) else "bf16"


def on_grid(weight: Any, form: str, deviation: float, generator: Any) -> None:
    """Fills weight [outputs, inputs] with codes times a power of two, of about that standard deviation. The
    ends of the range are in every row (int8) or group (int4), as what is stored is found from them, but not
    at one place: all outputs would have much in common, more with each layer."""
    import torch

    outputs, inputs = weight.shape
    if form == "int8":
        weight.random_(-127, 128, generator=generator)
        rows = torch.arange(outputs, device=weight.device)
        weight[rows, rows % inputs] = 127.0
        spread = math.sqrt((255**2 - 1) / 12)  # of whole numbers, all as likely
    else:
        weight.random_(0, 16, generator=generator)
        groups = weight.view(outputs, inputs // GROUP, GROUP)
        low = torch.randint(GROUP, (*groups.shape[:2], 1), generator=generator, device=weight.device)
        groups.scatter_(2, low, 0.0).scatter_(2, (low + GROUP // 2) % GROUP, 15.0)
        weight.sub_(7.5)
        spread = math.sqrt((16**2 - 1) / 12)
    weight.mul_(2.0 ** round(math.log2(deviation / spread)))

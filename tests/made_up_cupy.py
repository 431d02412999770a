# SPDX-License-Identifier: Apache-2.0
"""A cupy for machines without one: what is asked of its arrays and streams, over torch's memory."""

from __future__ import annotations

import sys
import types
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor


class Array:
    """What is asked of a cupy array."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.device = values, nullcontext()

    def __dlpack__(self, **named: object) -> object:
        return self.values.__dlpack__(**named)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.values.__dlpack_device__()


class Cupy:
    """The package, loaded for one test: its current stream, and the streams that torch was led to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pointer, self.streams = 77, []
        package = types.ModuleType("cupy")
        package.ndarray = Array
        package.from_dlpack = Array
        package.cuda = types.SimpleNamespace(
            get_current_stream=lambda: types.SimpleNamespace(ptr=self.pointer)
        )
        monkeypatch.setitem(sys.modules, "cupy", package)
        monkeypatch.setattr(torch.cuda, "ExternalStream", lambda pointer: ("external", pointer))
        monkeypatch.setattr(torch.cuda, "default_stream", lambda: "default")
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: self.streams.append(stream) or nullcontext())

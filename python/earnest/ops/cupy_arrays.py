# SPDX-License-Identifier: Apache-2.0
"""cupy arrays as the tensors of an operator: the same memory, on cupy's current stream."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULT = 0  # CUDA's default stream, as cupy names it and torch's ExternalStream does not


def accepts_cupy(operator: F) -> F:
    """The operator, which then takes cupy arrays too: where there is one among its arguments or in a list of
    them, all arrays are cupy's, so are the results, and it runs on cupy's current stream of their device. It
    sees the arrays' own memory: what it writes in place is theirs."""

    @functools.wraps(operator)
    def call(*arguments: Any, **named: Any) -> Any:
        cupy = sys.modules.get("cupy")  # nobody has arrays of a package that is not loaded
        if cupy is None:
            return operator(*arguments, **named)
        first = _first((*arguments, *named.values()), cupy.ndarray)
        if first is None:
            return operator(*arguments, **named)

        def tensor(x: Any) -> Any:
            if isinstance(x, tuple | list):
                return type(x)(map(tensor, x))
            return torch.from_dlpack(x) if isinstance(x, cupy.ndarray) else x

        # Memory that torch hands out inside belongs to this stream, so that nobody gets it again before what
        # cupy does with it later is done.
        with first.device, _stream(cupy.cuda.get_current_stream().ptr):
            given = operator(*map(tensor, arguments), **{name: tensor(x) for name, x in named.items()})
            return _given_back(given, cupy.from_dlpack)

    return call  # type: ignore[return-value]


def _first(arguments: Iterable[Any], kind: type) -> Any:
    """The first array of this kind, in lists too; None where there is none."""
    for x in arguments:
        found = _first(x, kind) if isinstance(x, tuple | list) else x
        if isinstance(found, kind):
            return found
    return None


def _stream(pointer: int) -> AbstractContextManager[Any]:
    if pointer == _DEFAULT:
        return torch.cuda.stream(torch.cuda.default_stream())
    return torch.cuda.stream(torch.cuda.ExternalStream(pointer))


def _given_back(result: Any, array: Callable[[Tensor], Any]) -> Any:
    """The result with arrays in place of tensors."""
    if isinstance(result, Tensor):
        return array(result.detach())
    if isinstance(result, tuple | list):
        return type(result)(_given_back(x, array) for x in result)
    return result.map(array) if hasattr(result, "map") else result

# SPDX-License-Identifier: Apache-2.0
"""Other people's packages, imported when asked for and not before; what is missing is said, never hidden."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import sys
import types
import unittest.mock
import warnings
from collections.abc import Callable
from typing import Any

from earnest.bench.case import Absent

CUDNN = "torch, cudnn"


MOST_HELD = 1 << 26  # numbers by torch's plain attention


def attention_backends(
    device: str, sequences: int, heads: int, queries: int, keys: int, dim: int
) -> dict[str, str]:
    """Those of torch's scaled_dot_product_attention there, by our names for them. Its plain one holds all
    scores, and keys and values once for each head: beyond small cases that is gigabytes, and no contest."""
    if device != "cuda":
        return {"torch": "MATH"}
    held = sequences * heads * keys * (queries + 2 * dim)
    return {
        CUDNN: "CUDNN_ATTENTION",
        "torch, flash": "FLASH_ATTENTION",
        "torch, efficient": "EFFICIENT_ATTENTION",
    } | ({"torch, math": "MATH"} if held <= MOST_HELD else {})


def unless_refused(run: Callable[..., Any]) -> Callable[..., Any]:
    """A path of ours; Absent where it does not take the call."""

    def tried(*inputs: Any) -> Any:
        try:
            return run(*inputs)
        except RuntimeError as error:
            if "] path: expected" in str(error):
                raise Absent(str(error)) from None
            raise

    return tried


def forced(path: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """The same by that path of ours, for the whole process while it runs; Absent on a device that has none.
    Behind it nothing is forced."""
    from earnest import _native

    def by_path(*inputs: Any) -> Any:
        _native.force_cuda_tier(path)
        try:
            return run(*inputs)
        except ValueError as error:
            if f"EARNEST_CUDA_TIER: expected {path} on" in str(error):
                raise Absent(str(error)) from None
            raise
        finally:
            _native.force_cuda_tier("")

    return by_path


def unless_nondeterministic(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """A peer that was told to be deterministic; Absent where it cannot."""

    def tried(*inputs: Any) -> Any:
        try:
            return run(*inputs)
        except RuntimeError as error:
            if "deterministic" in str(error):
                raise Absent(f"{name}: {error}") from None
            raise

    return tried


def attention_on(name: str, backend: str) -> Callable[..., Any]:
    """torch's scaled_dot_product_attention by that backend alone; Absent where it does not take the call."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    def run(*inputs: Any, **rest: Any) -> Any:
        try:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                return scaled_dot_product_attention(*inputs, **rest)
        except RuntimeError as error:
            if "No available kernel" in str(error):
                raise Absent(f"{name}: {error}") from None
            raise

    return run


def load(module: str, package: str = "") -> Any:
    """A peer's module; Absent where it is not installed or cannot start."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except Exception as error:  # a peer may fail in any way: a missing library, another torch, another CPU
        missing = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        reason = "not installed" if missing else f"does not start: {error}"
        raise Absent(f"{package or module}: {reason}") from None


def pyworld() -> Any:
    """It asks pkg_resources for its own version when imported, which recent environments do not have."""
    asks = types.ModuleType("pkg_resources")
    asks.get_distribution = importlib.metadata.distribution  # type: ignore[attr-defined]
    with unittest.mock.patch.dict(
        sys.modules, {} if "pkg_resources" in sys.modules else {asks.__name__: asks}
    ):
        return load("pyworld")


def zentorch() -> Any:
    """Its operators. Called directly they need no torch.compile, and importing it changes none of torch's own
    (tests/bench/test_peers.py); but its linear rewrites bfloat16 weights in place unless they were packed."""
    load("zentorch")
    import torch

    return torch.ops.zentorch


def compiled_by_zentorch(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile with zentorch's backend for fixed shapes and weights. Inductor's settings are as before
    after each call: the backend puts its passes into everybody's."""
    zentorch()
    import torch
    from torch._inductor import config

    torch._dynamo.reset()
    fast = torch.compile(function, backend="zentorch", dynamic=False)
    settings = {"freezing": True, "joint_custom_post_pass": config.joint_custom_post_pass}

    def call(*inputs: Any, **named: Any) -> Any:
        with config.patch(settings), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fast(*inputs, **named)

    return call


def ours(name: str) -> Callable[..., Any]:
    """earnest.ops.NAME, or Absent in a version without it."""
    ops = importlib.import_module("earnest.ops")
    if not hasattr(ops, name):
        raise Absent(f"earnest.ops.{name}: this version has none")
    return getattr(ops, name)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile for fixed shapes, of its own: no earlier case makes it fall back."""
    import torch

    torch._dynamo.reset()
    fast = torch.compile(function, dynamic=False)

    def call(*inputs: Any) -> Any:
        try:
            return fast(*inputs)
        except Exception as error:
            if "Compiler" in type(error).__name__ or "Backend" in type(error).__name__:
                raise Absent(f"torch.compile: {str(error).splitlines()[0]}") from None
            raise

    return call


def random_tensor(rng: Any, *shape: int, dtype: str = "float32", scale: float = 1.0) -> Any:
    """Normal numbers times scale, drawn by a numpy generator, as a torch tensor."""
    import numpy as np
    import torch

    values = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    return (values * scale if scale != 1.0 else values).to(getattr(torch, dtype))


def sets_beyond_caches(bytes_of_one: int, most: int = 24) -> int:
    """How many sets of inputs it takes so that none is still in the last cache when its turn comes again."""
    from earnest.bench.machine import caches

    last = max(caches().values(), default=32 << 20)
    return min(most, max(2, -(-2 * last // max(bytes_of_one, 1))))

# SPDX-License-Identifier: Apache-2.0
"""earnest: audio language models that reason about what they hear.

Importing this package is cheap: what needs torch is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["AudioLM", "Engine", "which"]

# Per kernel family, what its choice of back end depends on.
_WHICH_DETAILS = {
    "attention": ("device", "dtype", "dim", "gradients"),
    "frames": ("device",),
    "linear": ("device",),
    "logmel": ("device",),
    "logprob": ("device",),
    "paged_attention": ("device",),
    "pitch": ("device",),
    "ppo": ("device",),
    "quantized": ("device",),
    "rotary_write": ("device",),
    "rowwise": ("device",),
}
_BY_TORCH = ("frames", "linear", "rowwise")  # on cuda: our kernels there are the engine's
_MODULES = ("audio", "dialogue", "engine", "features", "model", "ops")


def which(family: str, device: str = "cpu", **details: Any) -> str:
    """The back end that would run a kernel family here and now, e.g. ``which("attention") == "cpu/avx512"``.

    family: "attention", "frames", "linear", "logmel", "logprob", "paged_attention", "pitch", "ppo",
    "quantized", "rotary_write" or "rowwise".
    device: "cpu" or "cuda". attention also takes dtype ("float32", "float64", "bfloat16"; on cuda "float16"),
    dim (head size) and gradients (whether a backward pass is wanted). On cuda a family runs kernels of ours
    ("cuda/sm90a") or torch's own operators ("cuda/torch"). What EARNEST_CPU_TIER forces (scalar, avx2, avx512
    or avx512_bf16), or on cuda EARNEST_CUDA_TIER (sm80 or sm90a) where a family has more than one path, is
    what is named. Raises InvalidInput for a word it does not know, ValueError for what is forced and cannot
    run here, RuntimeError for a back end that cannot.
    """
    from earnest.errors import InvalidInput

    native = importlib.import_module("earnest._native")

    if family not in _WHICH_DETAILS:
        raise InvalidInput("which", "family", f"one of {', '.join(_WHICH_DETAILS)}", repr(family))
    for name in details:
        if name not in _WHICH_DETAILS[family]:
            expected = f"what {family} depends on ({', '.join(_WHICH_DETAILS[family])})"
            raise InvalidInput("which", "details", expected, name)
    if device not in ("cpu", "cuda"):
        raise InvalidInput("which", "device", "cpu or cuda", repr(device))
    if device == "cuda" and family in _BY_TORCH:
        return importlib.import_module("earnest.ops.cuda").torch_backend(family)
    if family == "attention" and device == "cuda":
        return importlib.import_module("earnest.ops.attention").which(device, **details)
    if family == "attention":
        return native.attention_which(device, details.get("dtype", "float32"), details.get("dim", 64))
    if family == "pitch":
        if device != "cpu":
            raise RuntimeError(f"[{family}] device: expected cpu, got {device}")
        return native.pitch_which()
    which_of_family: Callable[[str], str] = getattr(native, f"{family}_which")
    return which_of_family(device)


if TYPE_CHECKING:
    from earnest.engine import Engine as Engine
    from earnest.model import AudioLM as AudioLM
else:

    def __getattr__(name: str) -> Any:
        if name == "AudioLM":
            return importlib.import_module("earnest.model").AudioLM
        if name == "Engine":
            return importlib.import_module("earnest.engine").Engine
        if name in _MODULES:
            return importlib.import_module(f"earnest.{name}")
        raise AttributeError(f"module 'earnest' has no attribute {name!r}")

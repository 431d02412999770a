# SPDX-License-Identifier: Apache-2.0
"""The CPU tiers, which of them run here, and which of them a kernel family has code of its own for."""

from earnest import _native

TIERS = ("scalar", "avx2", "avx512", "avx512_bf16")
HIGHEST = {
    "attention": "avx512_bf16",
    "frames": "avx512",
    "linear": "avx512_bf16",
    "logmel": "avx512",
    "logprob": "avx512_bf16",
    "paged_attention": "avx512",
    "pitch": "avx512",
    "ppo": "avx512",
    "quantized": "avx512_bf16",
    "rotary_write": "scalar",
    "rowwise": "avx512",
}


def tier_of(family: str, tier: str) -> str:
    """The tier whose code a family runs where `tier` is in force."""
    return min(tier, HIGHEST.get(family, tier), key=TIERS.index)


def usable_tiers(family: str = "") -> tuple[str, ...]:
    """The tiers that this machine has, up to the last that the family has code of its own for."""
    last = tier_of(family, _native.best_cpu_tier())
    return TIERS[: TIERS.index(last) + 1]

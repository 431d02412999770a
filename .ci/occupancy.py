# SPDX-License-Identifier: Apache-2.0
"""How many blocks of a kernel a multiprocessor holds at a time.

CUDA programming guide, "Technical Specifications per Compute Capability" (8.0 and 9.0): 64 warps, 32 blocks,
65,536 registers; 164 and 228 KB of shared memory, of which a block may have 163 and 227 KB, and 1 KB more of
each block is the system's own. What is given at a time (registers of a warp by 256 from its quarter of the
file, shared memory by 128 bytes) is in the toolkit's cuda_occupancy.h.
"""

from typing import NamedTuple

WARP, MOST_WARPS, MOST_BLOCKS = 32, 64, 32
REGISTERS, REGISTER_UNIT, QUARTERS = 65536, 256, 4
SHARED_UNIT, SHARED_OF_SYSTEM = 128, 1024


class Shared(NamedTuple):
    of_multiprocessor: int
    of_block: int


SHARED = {"sm_80": Shared(164 * 1024, 163 * 1024), "sm_90a": Shared(228 * 1024, 227 * 1024)}


def whole(size: int, unit: int) -> int:
    """The least multiple of the unit that is not below the size."""
    return -(-size // unit) * unit


def warps_of(threads: int) -> int:
    return whole(threads, WARP) // WARP


def blocks(architecture: str, registers: int, threads: int, shared: int) -> int:
    """registers: of a thread; shared: bytes of a block, static and dynamic. 0: not even one fits."""
    warps = warps_of(threads)
    of_warp = whole(registers * WARP, REGISTER_UNIT)
    limit = SHARED[architecture]
    # Whether a block may run at all is asked as if its warps filled all quarters of the file alike.
    if shared > limit.of_block or of_warp * whole(warps, QUARTERS) > REGISTERS:
        return 0
    return min(
        MOST_BLOCKS,
        MOST_WARPS // warps,
        REGISTERS // QUARTERS // of_warp * QUARTERS // warps,
        limit.of_multiprocessor // whole(shared + SHARED_OF_SYSTEM, SHARED_UNIT),
    )

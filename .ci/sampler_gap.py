# SPDX-License-Identifier: Apache-2.0
"""sampler_gap.py RUN: sampler and trainer must give every token the same log-probability, bit for bit."""

import json
import sys
from pathlib import Path

for stage in ("rlvr", "rlhf"):
    lines = (Path(sys.argv[1]) / stage / "metrics.jsonl").read_text().splitlines()
    gaps = [row["sampler_gap_max"] for row in map(json.loads, lines) if "sampler_gap_max" in row]
    if not gaps or any(gap != 0 for gap in gaps):
        sys.exit(f"{stage}: sampler_gap_max: expected exactly 0 in every step, got {gaps}")
    print(f"{stage}: exactly 0 in {len(gaps)} steps")

# SPDX-License-Identifier: Apache-2.0
"""The playground: a small spoken world with labels known by construction, and a listener to please."""

from earnest.playground.findings import findings
from earnest.playground.listener import CRITERIA, Listener
from earnest.playground.samples import SPLITS, TASKS, Comparison, Reply, Sample, Sound, Topic
from earnest.playground.tasks import looked_up
from earnest.playground.verify import acknowledges, verify
from earnest.playground.world import World

__all__ = [
    "CRITERIA",
    "SPLITS",
    "TASKS",
    "Comparison",
    "Listener",
    "Reply",
    "Sample",
    "Sound",
    "Topic",
    "World",
    "acknowledges",
    "findings",
    "looked_up",
    "verify",
]

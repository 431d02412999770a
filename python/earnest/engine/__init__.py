# SPDX-License-Identifier: Apache-2.0
"""The native engine: many dialogues over one set of weights, each answer a stream of events.

with Engine("runs/demo/rlhf") as engine:
    session = engine.session()
    session.add_audio(pcm, 48_000)
    for event in session.generate():
        match event:
            case Reasoning(text) | Reply(text):
                print(text, end="")

Answers may be iterated with ``for`` or ``async for``; many at once share the work. Nothing here holds
Python's lock while it computes or waits, and nothing needs torch.
"""

from earnest.engine.answer import Answer
from earnest.engine.engine import Engine, Stats
from earnest.engine.events import Done, Event, Prefill, Reasoning, Reply, Usage
from earnest.engine.session import Clip, Session

__all__ = [
    "Answer",
    "Clip",
    "Done",
    "Engine",
    "Event",
    "Prefill",
    "Reasoning",
    "Reply",
    "Session",
    "Stats",
    "Usage",
]

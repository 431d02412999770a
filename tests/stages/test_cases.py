# SPDX-License-Identifier: Apache-2.0
"""Where a stage's clips are heard: by the processes that speak them, or by the one that has the GPU."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earnest.model import features
from earnest.playground import World
from earnest.stages import cases


class Elsewhere:
    """A pool whose other side is this process: all that crosses is pickled on its way there and back."""

    working = False

    def __init__(self, *given: Any, **named: Any) -> None: ...
    def __enter__(self) -> "Elsewhere":
        return self

    def __exit__(self, *error: object) -> None: ...

    def map(self, make: Callable, jobs: Sequence[Any]) -> Iterator[Any]:
        for job in jobs:
            there, given = pickle.loads(pickle.dumps((make, job)))
            Elsewhere.working = True
            made = pickle.dumps(there(given))
            Elsewhere.working = False
            yield pickle.loads(made)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_clips_are_heard_where_the_gpu_is_and_else_where_they_are_spoken(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    world = World(seed=3, voices=shared_data / "fsdd")
    plain = [cases.case_of(world.sample("heldout", index), 80, measured=True) for index in range(3)]
    asked: list[tuple[bool, str]] = []
    on_cpu = features.hear

    def hear(pcm: np.ndarray, log_mel: Any, device: str) -> list[Any]:
        asked.append((Elsewhere.working, device))
        return on_cpu(pcm, log_mel)

    monkeypatch.setattr(features, "hear", hear)
    monkeypatch.setattr(cases, "ProcessPoolExecutor", Elsewhere)
    monkeypatch.setattr(cases, "CASES_PER_JOB", 1)
    cases._made_before.cache_clear()
    made = cases.playground_cases(world, "heldout", range(3), 80, processes=2, phase="cases", device=device)
    assert set(asked) == {(device == "cpu", device)}
    for one, other in zip(made, plain, strict=True):
        assert one.id == other.id
        assert len(one.clips) == len(other.clips)
        for chunks, others in zip(one.clips, other.clips, strict=True):
            assert [(c.id, c.words, c.manner, c.measured) for c in chunks] == [
                (c.id, c.words, c.manner, c.measured) for c in others
            ]
            assert all(np.array_equal(c.mel, o.mel) for c, o in zip(chunks, others, strict=True))
        assert all(part.pcm is None for message in one.history for part in message.audios)
        assert all(part.pcm is None for message in one.origin.messages for part in message.audios)
    heard = len(asked)
    for again in (device, "cpu"):  # what a device has heard is not taken for what another would hear
        cases.playground_cases(world, "heldout", range(3), 80, processes=1, phase="cases", device=again)
    assert len(asked) == heard * (1 if device == "cpu" else 2)
    cases._made_before.cache_clear()

# SPDX-License-Identifier: Apache-2.0
"""The evaluation of a stage's model: how its replies are drawn, with sound and without."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from earnest.evaluate import playground


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_replies_are_drawn_as_asked_with_sound_and_without(monkeypatch, temperature):
    spoken, written = SimpleNamespace(clips=("clip",)), SimpleNamespace(clips=())
    asked = []

    def answer(model, tokenizer, cases, *, what, temperature=0.0, seed=0):
        asked.append((what, temperature, seed, cases))
        return []

    monkeypatch.setattr(playground, "load_model", lambda folder, train, device: (None, None))
    monkeypatch.setattr(playground, "answer", answer)
    monkeypatch.setattr(playground, "rate", lambda answers, cases, listener: answers)
    monkeypatch.setattr(playground, "with_measures", lambda answers, cases: answers)
    monkeypatch.setattr(playground, "silenced", lambda cases: [("silenced", case) for case in cases])
    playground.evaluate_model(Path("model"), [spoken, written], 5, "sft", temperature)
    assert asked == [
        ("sft: answering", temperature, 5, [spoken, written]),
        ("sft: answering silence", temperature, 5, [("silenced", spoken)]),
    ]

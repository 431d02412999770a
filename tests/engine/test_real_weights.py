# SPDX-License-Identifier: Apache-2.0
"""Whisper base and SmolLM2 joined: the engine from a saved folder against the Python model, on a clip and on
text."""

import pytest
import torch
from engine_cases import DTYPES, Beside

from earnest import _native
from earnest.model import AudioLM


@pytest.mark.parametrize("name", DTYPES)
def test_real_weights_give_the_python_models_bits(joined, name):
    model = AudioLM.from_pretrained(joined, dtype=DTYPES[name])
    engine = Beside(model, _native.engine.load(str(joined), name))
    generator = torch.Generator().manual_seed(0)
    mel = torch.randn(80, 702, generator=generator) * 0.5
    ids = torch.randint(0, 49152, (60,), generator=generator)
    heard = engine.hear(mel)
    with torch.no_grad():
        assert torch.equal(heard, model.embed_audio([mel]))
        x = torch.cat([model.model.embed_tokens(ids), heard])
        bounds = torch.tensor([0, len(x)], dtype=torch.int32)
        want = model.model(x, torch.arange(len(x)), bounds)
        hidden = engine.forward(
            [
                (
                    engine.native.pool(len(x)).allocate(len(x)),
                    torch.cat([ids, torch.full((len(heard),), -1)]),
                    heard,
                    len(x),
                )
            ]
        )
        assert torch.equal(hidden, want)
        assert torch.equal(engine.logits(hidden[-4:]), model.logits(want[-4:]))

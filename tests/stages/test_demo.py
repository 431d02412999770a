# SPDX-License-Identifier: Apache-2.0
"""What the demo asks of its stages."""

from pathlib import Path

import pytest

from earnest.model import AudioLMConfig
from earnest.settings import RunSettings
from earnest.stages import demo


@pytest.mark.parametrize(("device", "decoder", "encoder"), [("cpu", 32, 32), ("cuda", 64, 64)])
def test_the_model_has_heads_that_the_engine_takes_on_the_device(device: str, decoder: int, encoder: int):
    """Those of the CPU are the ones that the results in bench/results were measured with."""
    plan = demo.stage_settings(demo.Settings(run=RunSettings(device=device)), Path("runs"))
    config = AudioLMConfig.preset(plan["midtrain"].model)
    assert (config.text_config.head_dim, config.audio_encoder_config.head_dim) == (decoder, encoder)
    assert {stage.run.device for stage in plan.values()} == {device}

# SPDX-License-Identifier: Apache-2.0
"""From messages to an answer in one call: hear the clips, render the prompt, sample, take thought and reply
apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from earnest.model.features import hear

if TYPE_CHECKING:
    from earnest.dialogue import Message, PackedBatch, Rendered, Tokenizer
    from earnest.model.audio_lm import AudioLM


def prompt(
    model: AudioLM,
    tokenizer: Tokenizer,
    messages: Sequence[Message | Mapping[str, Any]],
    *,
    think: bool = True,
    template: Literal["canonical", "stepfun-compat"] = "canonical",
) -> tuple[PackedBatch, Rendered]:
    """The batch of one that asks `model` for the next turn, and how it was rendered.

    messages: `earnest.dialogue.Message`, or dictionaries in the style of the data files. Clips of any length
    are chunked. think: open the thought, so that the model begins with its reasoning."""
    from earnest.dialogue import Example, Message, collate, message_from_dict, read_audio, render
    from earnest.features import LogMel

    turns = [m if isinstance(m, Message) else message_from_dict(dict(m)) for m in messages]
    audio = model.config.audio_encoder_config
    log_mel = LogMel(audio.n_mels, padding="step_audio")
    heard = {
        id(clip): hear(read_audio(clip), log_mel, model.device) for turn in turns for clip in turn.audios
    }
    rendered = render(
        turns,
        tokenizer,
        audio_tokens=lambda clip: [audio.audio_tokens(mel.shape[1]) for mel in heard[id(clip)]],
        template=template,
        generation_prompt="think" if think else "plain",
    )
    mel = [mel for turn in turns for clip in turn.audios for mel in heard[id(clip)]]
    return collate([Example(rendered, mel)], adaptor_frames=audio.audio_tokens), rendered


def answer(
    model: AudioLM,
    tokenizer: Tokenizer,
    messages: Sequence[Message | Mapping[str, Any]],
    *,
    think: bool = True,
    template: Literal["canonical", "stepfun-compat"] = "canonical",
    **sampling: Any,
) -> Message:
    """The assistant's turn, reasoning and text apart. sampling: as `AudioLM.generate_ids` takes it."""
    from earnest.dialogue import Message, split_reasoning

    batch, rendered = prompt(model, tokenizer, messages, think=think, template=template)
    made = model.generate_ids(batch, stop_ids=tokenizer.stop_ids, **sampling)
    parts = split_reasoning(made.ids[0], inside=rendered.inside_thought, tokenizer=tokenizer)
    return Message.assistant(parts.reply, parts.reasoning)

# SPDX-License-Identifier: Apache-2.0
"""Cases as token ids: what a supervised stage learns from, and what a policy is asked to continue."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from earnest.dialogue import Audio, Message, Rendered, Tokenizer, render
from earnest.learn.types import Case, Clip, Prompt

FrameCount = Callable[[int], int]  # log-mel frames of a chunk -> its tokens


def _audio_tokens(case: Case, frames_to_tokens: FrameCount) -> Callable[[Audio], Sequence[int]]:
    waiting = iter(case.clips)
    return lambda audio: [frames_to_tokens(clip.mel.shape[1]) for clip in next(waiting)]


def _prompt(case: Case, rendered: Rendered) -> Prompt:
    positions = [span.start + i for span in rendered.audio_spans for i in range(span.length)]
    return Prompt(case, tuple(rendered.ids), tuple(positions), chunks_of(case))


def chunks_of(case: Case) -> tuple[Clip, ...]:
    """All chunks of a case's audio, in the order in which they are heard."""
    return tuple(chunk for clip in case.clips for chunk in clip)


def to_answer(case: Case, tokenizer: Tokenizer, frames_to_tokens: FrameCount) -> Prompt:
    """The case up to the opened thought: what a policy continues."""
    rendered = render(
        case.history, tokenizer, audio_tokens=_audio_tokens(case, frames_to_tokens), generation_prompt="think"
    )
    return _prompt(case, rendered)


def to_learn(
    case: Case, reply: str, tokenizer: Tokenizer, frames_to_tokens: FrameCount, *, all_turns: bool = False
) -> tuple[Prompt, torch.Tensor]:
    """The case with its reasoning and `reply`, and which tokens are targets (bool [tokens]): thought, reply
    and EOT of the last turn, or of every assistant turn. A case without reasoning gets the empty thought."""
    messages = [*case.history, Message.assistant(reply, case.reasoning)]
    rendered = render(
        messages,
        tokenizer,
        audio_tokens=_audio_tokens(case, frames_to_tokens),
        train="all" if all_turns else "last",
        empty_think=True,
    )
    return _prompt(case, rendered), torch.tensor(rendered.loss_mask, dtype=torch.bool)

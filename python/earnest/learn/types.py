# SPDX-License-Identifier: Apache-2.0
"""The records that cross the steps of the learning arrow: dialogue -> rollout -> reward -> advantage -> loss
-> update.

Plain tensors plus ids, so that any step can move to another process. Shape alphabet: R replies, N trained
tokens (the tokens of all replies, one after the other, EOS included), P prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from earnest.dialogue import Message


@dataclass(frozen=True, eq=False)
class Clip:
    """One chunk of heard audio. `id` names its content, so that what is computed from it can be kept."""

    id: str
    mel: np.ndarray  # float32 [mel bins, frames]
    words: tuple[tuple[str, float, float], ...] = ()  # (word, start, end in seconds), where known
    manner: tuple[str, ...] = ()  # how it is said: rate, pitch, loudness, where measured
    measured: tuple[float, ...] = ()  # for evaluation: F0 in Hz, syllables a second, level in dB


@dataclass(frozen=True, eq=False)
class Case:
    """A dialogue to be answered, with what training and evaluation know about it."""

    id: str
    task: str
    history: tuple[Message, ...]  # ends with the turn to be answered
    clips: tuple[tuple[Clip, ...], ...] = ()  # per Audio part of the history, in order: its chunks
    reasoning: str | None = None
    hasty: str | None = None  # the same reasoning with its sums looked up, not counted out; None: has no sum
    replies: tuple[str, ...] = ()  # good replies, the barest first
    answer: str | None = None
    rubric: tuple[str, ...] | None = None
    reference: str | None = None
    verify: Callable[[str], bool] | None = None  # whether a reply holds the verified answer
    origin: Any = None  # the playground's own record; for evaluation, never read by learning

    @property
    def kind(self) -> str:
        return "plain" if self.rubric is None else "rubric"


@dataclass(frozen=True, eq=False)
class Prompt:
    """A case, rendered: token ids up to where the reply begins, and where its audio goes."""

    case: Case
    ids: tuple[int, ...]
    audio_positions: tuple[int, ...]  # of the placeholders within ids, in the order of `clips`
    clips: tuple[Clip, ...]


@dataclass(eq=False)
class Rollouts:
    """Replies sampled from the policy. They flow on as token ids; nothing is decoded and encoded again."""

    prompts: list[Prompt]
    prompt_index: Tensor  # int64 [R], which prompt a reply answers
    tokens: list[Tensor]  # R x int64 [length], EOS included where it was reached
    logp: list[Tensor]  # R x float32 [length], the sampler's log-probabilities at its temperature
    truncated: Tensor  # bool [R], the reply ran out of tokens before EOS
    reasoning: list[str]  # R
    replies: list[str]  # R
    well_formed: Tensor  # bool [R], exactly one non-empty thought, closed before a non-empty reply

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def cu_seqlens(self) -> Tensor:
        """int32 [R + 1], where each reply begins among the N trained tokens."""
        lengths = torch.tensor([len(t) for t in self.tokens], dtype=torch.int32)
        return torch.cat([torch.zeros(1, dtype=torch.int32), lengths.cumsum(0, dtype=torch.int32)])

    def case(self, reply: int) -> Case:
        return self.prompts[int(self.prompt_index[reply])].case


@dataclass(eq=False)
class Rewards:
    """One number for each reply, what it is made of, and whether it may be learned from."""

    scalar: Tensor  # float32 [R]
    valid: Tensor  # bool [R]
    sources: dict[str, Tensor] = field(
        default_factory=dict
    )  # name -> float32 [R], NaN where a source said nothing
    swap_gap: Tensor | None = (
        None  # float32 [R], judge: phi(y, ref) + phi(ref, y), 0 when order does not matter
    )


@dataclass(eq=False)
class Experience:
    """What an update reads: one row per trained token, all from the policy as it was when it sampled, on its
    device; rollouts and rewards stay on the CPU."""

    rollouts: Rollouts
    trainable: Tensor  # bool [N]
    logp_old: Tensor  # float32 [N]
    advantages: Tensor  # float32 [N]
    returns: Tensor  # float32 [N]
    values_old: Tensor | None = None  # float32 [N]
    logp_reference: Tensor | None = None  # float32 [N]

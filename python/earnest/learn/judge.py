# SPDX-License-Identifier: Apache-2.0
"""The generative judge: an audio model that hears a dialogue, notes what it heard, reads two replies and a
rubric or none, and answers with one ordinal verdict token.

Layout of what it reads (BOT, EOT stand for the family's turn tokens):

    history ... BOT assistant <think> notes </think> EOT  BOT judge  rubric / first / second  EOT  BOT
    assistant VERDICT

The notes come before the replies, so they depend on the history alone: one greedy thought for each dialogue
serves all its replies. The verdict is read as a distribution over the verdict tokens only, so it always
parses, and its expected phi has no sampling noise (rlhf_numerics 3.2 to 3.5). Both orders are asked: r =
(phi(y, ref) - phi(ref, y)) / 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from earnest.dialogue import Tokenizer
from earnest.errors import InvalidInput
from earnest.learn.hearing import Hearing
from earnest.learn.policy import Packed, by_tokens, pack
from earnest.learn.types import Case, Prompt
from earnest.model import AudioLM

PHI = {-2: -1.0, -1: -0.5, 0: 0.0, 1: 0.5, 2: 1.0}
MAX_REPLY_CHARACTERS = 600


def check_levels(phi: dict[int, float], allow_asymmetric: bool = False) -> dict[int, float]:
    """`phi` itself, if it is a table of scalars by level that is odd, monotone and within [-1, 1]."""
    levels = sorted(phi)
    values = [phi[level] for level in levels]
    if levels != [-level for level in reversed(levels)] or len(levels) < 3:
        raise InvalidInput("judge", "phi", "levels that mirror each other, such as -2..2", str(levels))
    if any(b <= a for a, b in zip(values, values[1:], strict=False)) or max(map(abs, values)) > 1:
        raise InvalidInput("judge", "phi", "values that rise with the level, within [-1, 1]", str(values))
    if not allow_asymmetric and any(abs(phi[level] + phi[-level]) > 1e-9 for level in levels):
        raise InvalidInput("judge", "phi", "an odd table, phi(-g) = -phi(g)", str(phi))
    return phi


@dataclass(frozen=True)
class Question:
    """Two replies to a case, in the order in which the judge reads them."""

    case: Case
    first: str
    second: str
    rubric: tuple[str, ...] | None = None

    def swapped(self) -> Question:
        return Question(self.case, self.second, self.first, self.rubric)


def verdict_ids(tokenizer: Tokenizer, phi: dict[int, float]) -> list[int]:
    """Token ids of the levels, the lowest first."""
    return [tokenizer.special(f"<verdict_{level}>") for level in sorted(phi)]


def question_ids(question: Question, tokenizer: Tokenizer) -> list[int]:
    """What follows the notes: the end of that turn, the judge's turn, and the header of the turn that
    answers. Replies are one line each and are never parsed for special tokens, so a reply can forge neither a
    turn nor a verdict."""
    lines = [
        f"{name}: {_one_line(reply)}"
        for name, reply in (("first", question.first), ("second", question.second))
    ]
    if question.rubric is not None:
        lines.insert(0, "rubric: " + _one_line("; ".join(question.rubric)))
    bot, eot = tokenizer.special("<|BOT|>"), tokenizer.special("<|EOT|>")
    return [
        eot,
        bot,
        *tokenizer.encode("judge\n" + "\n".join(lines)),
        eot,
        bot,
        *tokenizer.encode("assistant\n"),
    ]


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MAX_REPLY_CHARACTERS]


def judge_prompt(prompt: Prompt, notes: Sequence[int], question: Question, tokenizer: Tokenizer) -> Prompt:
    """The judge's prompt: `prompt` (the dialogue up to an open thought), its notes, and the question."""
    ids = (*prompt.ids, *notes, *question_ids(question, tokenizer))
    return Prompt(question.case, ids, prompt.audio_positions, prompt.clips)


def verdict_logits(model: AudioLM, hearing: Hearing, packed: Packed, verdicts: Sequence[int]) -> Tensor:
    """Logits [n, levels] of the verdict tokens after each packed prompt, float32."""
    hidden = model(packed.batch, hearing.embed(model, packed.clips))
    last = hidden[packed.batch.cu_seqlens[1:].long() - 1]
    return (last @ model.lm_head.weight[list(verdicts)].T).float()


class Judge:
    """Reads verdict distributions from a trained judge. `temperature` is the calibration of its logits."""

    def __init__(
        self,
        model: AudioLM,
        tokenizer: Tokenizer,
        hearing: Hearing,
        *,
        phi: dict[int, float] | None = None,
        temperature: float = 1.0,
        max_tokens: int = 8192,
    ) -> None:
        self.model, self.tokenizer, self.hearing = model, tokenizer, hearing
        self.phi = check_levels(dict(PHI if phi is None else phi))
        self.temperature, self.max_tokens = temperature, max_tokens
        self._scale = torch.tensor([self.phi[level] for level in sorted(self.phi)])
        self._verdicts = verdict_ids(tokenizer, self.phi)

    @torch.no_grad()
    def distribution(self, prompts: Sequence[Prompt]) -> Tensor:
        """Probabilities [n, levels] of each verdict, the lowest level first."""
        parts = []
        for group in by_tokens([len(p.ids) for p in prompts], self.max_tokens):
            packed = pack([prompts[i] for i in group], [torch.zeros(0, dtype=torch.int64)] * len(group))
            logits = verdict_logits(self.model, self.hearing, packed, self._verdicts)
            parts.append((logits / self.temperature).softmax(-1))
        return torch.cat(parts) if parts else torch.zeros(0, len(self._verdicts))

    def expected_phi(self, prompts: Sequence[Prompt]) -> Tensor:
        """The expected scalar [n] of the first reply against the second."""
        return self.distribution(prompts) @ self._scale

    def compare(
        self, prompts: Sequence[Prompt], notes: Sequence[Sequence[int]], questions: Sequence[Question]
    ) -> tuple[Tensor, Tensor]:
        """(r [n], gap [n]): the order-free scalar of the first reply, and how far the two orders are from
        mirroring each other (phi(a, b) + phi(b, a), zero for a judge without position bias)."""
        ahead = [
            judge_prompt(p, n, q, self.tokenizer) for p, n, q in zip(prompts, notes, questions, strict=True)
        ]
        behind = [
            judge_prompt(p, n, q.swapped(), self.tokenizer)
            for p, n, q in zip(prompts, notes, questions, strict=True)
        ]
        forward, backward = self.expected_phi(ahead), self.expected_phi(behind)
        return (forward - backward) / 2, forward + backward

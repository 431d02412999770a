# SPDX-License-Identifier: Apache-2.0
"""The generative judge: an audio model that hears a dialogue, notes what it heard, reads two replies and a
rubric or none, writes down what it finds out about each reply, and ends with one ordinal verdict token.

Layout of what it reads (BOT, EOT stand for the family's turn tokens):

    history ... BOT assistant <think> notes </think> EOT  BOT judge  rubric / first / second  EOT  BOT
    assistant findings; findings. VERDICT

The notes come before the replies, so they depend on the history alone: one greedy thought for each dialogue
serves all its replies. Findings are greedy, too; a judge that was not taught any writes none. The verdict is
read as a distribution over the verdict tokens only, so it always parses, and its expected phi has no sampling
noise (rlhf_numerics 3.2 to 3.5). Both orders are asked: r = (phi(y, ref) - phi(ref, y)) / 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

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
MAX_FINDINGS = 32  # tokens


def check_levels(phi: dict[int, float], allow_asymmetric: bool = False) -> dict[int, float]:
    """`phi` itself, if it is a table of scalars by level that is odd, monotone and within [-1, 1]."""
    levels = sorted(phi)
    values = [phi[level] for level in levels]
    if levels != [-level for level in reversed(levels)] or len(levels) < 3:
        raise InvalidInput("judge", "phi", "levels that mirror each other, such as -2..2", str(levels))
    if any(b <= a for a, b in pairwise(values)) or max(map(abs, values)) > 1:
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


def noted(prompt: Prompt, notes: Sequence[int]) -> Prompt:
    """`prompt` (the dialogue up to an open thought) with the judge's notes: what all questions on it
    share."""
    return replace(prompt, ids=(*prompt.ids, *notes))


def verdict_logits(model: AudioLM, hearing: Hearing, packed: Packed, verdicts: Sequence[int]) -> Tensor:
    """Logits [n, levels] of the verdict tokens after each packed question, float32."""
    hidden = model(packed.batch, hearing.embed(model, packed.clips))
    return model.logits(hidden[packed.last.to(hidden.device)])[:, list(verdicts)]


def findings_ids(first: str, second: str, tokenizer: Tokenizer) -> list[int]:
    """What was found out about the two replies, as the judge writes it before its verdict; the full stop ends
    it."""
    return [*tokenizer.encode(f" {first};"), *tokenizer.encode(f" {second}"), *_full_stop(tokenizer)]


def _full_stop(tokenizer: Tokenizer) -> list[int]:
    (stop,) = tokenizer.encode(".")
    return [stop]


class Judge:
    """Reads verdict distributions from a trained judge. `temperature` is the calibration of its logits,
    `position_offset` what standing first is worth to it, which its scalars are freed of; `findings`: whether
    it writes down what it finds out about each reply before the verdict."""

    def __init__(
        self,
        model: AudioLM,
        tokenizer: Tokenizer,
        hearing: Hearing,
        *,
        phi: dict[int, float] | None = None,
        temperature: float = 1.0,
        position_offset: float = 0.0,
        findings: bool = False,
        max_tokens: int = 8192,
    ) -> None:
        self.model, self.tokenizer, self.hearing = model, tokenizer, hearing
        self.phi = check_levels(dict(PHI if phi is None else phi))
        self.temperature, self.position_offset = temperature, position_offset
        self.findings, self.max_tokens = findings, max_tokens
        self._scale = torch.tensor([self.phi[level] for level in sorted(self.phi)])
        self._verdicts = verdict_ids(tokenizer, self.phi)

    @torch.no_grad()
    def distribution(self, dialogues: Sequence[Prompt], questions: Sequence[Question]) -> Tensor:
        """Probabilities [n, levels] of each verdict, the lowest level first, on the CPU. `dialogues` are
        noted prompts; those of questions on one dialogue should be one object, which is then read once."""
        asked = [torch.tensor(question_ids(q, self.tokenizer), dtype=torch.int64) for q in questions]
        parts = []
        for group in by_tokens(dialogues, [len(ids) for ids in asked], self.max_tokens):
            packed = pack([dialogues[i] for i in group], [asked[i] for i in group])
            read = self._after_findings if self.findings else self._at_once
            parts.append((read(packed) / self.temperature).softmax(-1).cpu())
        return torch.cat(parts) if parts else torch.zeros(0, len(self._verdicts))

    def _at_once(self, packed: Packed) -> Tensor:
        return verdict_logits(self.model, self.hearing, packed, self._verdicts)

    def _after_findings(self, packed: Packed) -> Tensor:
        """Logits [n, levels] of the verdicts where the greedy findings have come to their full stop."""
        written = self.model.generate_ids(
            packed.batch,
            max_new_tokens=MAX_FINDINGS + 1,
            temperature=0.0,
            stop_ids=_full_stop(self.tokenizer),
            after_stop=1,
            audio_embeddings=self.hearing.embed(self.model, packed.clips),
        )
        return self.model.logits(written.drawn_from)[:, self._verdicts]

    def expected_phi(self, dialogues: Sequence[Prompt], questions: Sequence[Question]) -> Tensor:
        """The expected scalar [n] of the first reply against the second."""
        return self._expected_phi(dialogues, questions) - self.position_offset

    def _expected_phi(self, dialogues: Sequence[Prompt], questions: Sequence[Question]) -> Tensor:
        return (self.distribution(dialogues, questions) * self._scale).sum(-1)

    def compare(self, dialogues: Sequence[Prompt], questions: Sequence[Question]) -> tuple[Tensor, Tensor]:
        """(r [n], gap [n]): the order-free scalar of the first reply, and how far the two orders are from
        mirroring each other (phi(a, b) + phi(b, a), zero for a judge without position bias). The offset of
        position takes no part in r, where it would cancel."""
        swapped = [question.swapped() for question in questions]
        # Interleaved, so that both orders of a question stand in the forward pass that reads its dialogue.
        both = self._expected_phi(
            [dialogue for dialogue in dialogues for _ in range(2)],
            [question for pair in zip(questions, swapped, strict=True) for question in pair],
        )
        return (both[0::2] - both[1::2]) / 2, both[0::2] + both[1::2] - 2 * self.position_offset

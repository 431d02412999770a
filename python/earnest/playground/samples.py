# SPDX-License-Identifier: Apache-2.0
"""The records of the playground: how a turn sounds, what may be replied, dialogues, comparisons."""

from __future__ import annotations

from dataclasses import dataclass, field

from earnest.dialogue.message import Message

TASKS = ("arithmetic", "sound", "recall", "instruction", "consistency", "repair")
SPLITS = ("train", "practice", "validation", "heldout")

Word = tuple[str, float, float]  # the word, its start and its end in seconds of its clip


@dataclass(frozen=True)
class Sound:
    """How one spoken turn sounds, measured from its waveform (see sound.py for the thresholds).

    f0_hz: median fundamental frequency of the voiced frames. syllables_per_second: the sentence's syllables
    by the time spent speaking, pauses left out. level_db: mean level while speaking, dB of full scale.
    """

    f0_hz: float
    syllables_per_second: float
    level_db: float
    pitch: str  # low, middle, high
    rate: str  # slow, normal, fast
    loudness: str  # quiet, normal, loud

    @property
    def salient(self) -> tuple[str, ...]:
        """What a listener may remark on: every property that is not ordinary, or "calm" if all three are."""
        marked = (self.rate, self.loudness, self.pitch)
        found = tuple(value for value in marked if value not in ("normal", "middle"))
        return found or ("calm",)


@dataclass(frozen=True)
class Reply:
    """A possible reply. warm: 0 a bare label .. 1 takes up how the speaker sounds. truthful: right, apt."""

    text: str
    warm: float
    acknowledges: str | None = None
    truthful: bool = True


@dataclass(frozen=True)
class Topic:
    """What a reply has to say. kind: number, colour, name, rate, pitch or loudness, the family of ``answer``.

    cores: clauses with {x} for the answer. operands: numbers a reply may repeat on the way ("3 plus 5 is 8").
    """

    kind: str
    answer: str
    cores: tuple[str, ...]
    operands: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A dialogue that ends with the user turn to be answered.

    reasoning: the gold trace: what was heard, how it sounds, the step. replies: truthful ones, bare to warm.
    sounds, words: one entry per spoken turn. rubric: criteria of listener.CRITERIA; None: plain preference.
    rule: the standing instruction that the reply must keep ("call me captain", ...), or None.
    """

    id: str
    task: str
    messages: tuple[Message, ...]
    reasoning: str
    answer: str
    replies: tuple[Reply, ...]
    sounds: tuple[Sound, ...]
    words: tuple[tuple[Word, ...], ...]
    rubric: tuple[str, ...] | None
    topic: Topic = field(repr=False)
    rule: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Two replies to one dialogue and the listener's level: 2 (a much better), 1, 0 (as good), -1, -2."""

    sample: Sample
    a: Reply
    b: Reply
    level: int
    rubric: tuple[str, ...] | None

# SPDX-License-Identifier: Apache-2.0
"""The world: an endless supply of spoken dialogues, each a pure function of (seed, split, index)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from earnest.dialogue.message import Audio, Message
from earnest.errors import InvalidInput
from earnest.playground import digits, replies, tasks, voices
from earnest.playground.findings import findings
from earnest.playground.listener import CRITERIA, Listener, comparison_rubric, dialogue_rubric
from earnest.playground.recordings import Recordings
from earnest.playground.samples import SPLITS, TASKS, Comparison, Reply, Sample, Sound, Topic
from earnest.playground.sentences import DIGITS, VOCABULARY, any_words
from earnest.playground.speakers import OutOfReach, Speaker, Utterance, espeak_speaker

_PITCHES, _RATES, _LEVELS = ("low", "middle", "high"), ("slow", "normal", "fast"), ("quiet", "normal", "loud")
_SPEAKERS = 8  # tried with one manner until one of them speaks a dialogue as wanted


class World:
    """Spoken dialogues with labels known by construction.

    seed: of everything drawn. voices: "espeak", or a folder or tar of recorded digits (see manifest.py),
    where the digits are heard and the question stands in writing. tasks: those to draw from, in turn by
    index. listener_seed: of the listener's noise in ``comparison``. leave_out: with recordings, the speaker
    of the held-out split; None: the last in alphabetical order.
    """

    def __init__(
        self,
        seed: int = 0,
        voices: str | Path = "espeak",
        tasks: tuple[str, ...] = TASKS,
        listener_seed: int | None = None,
        leave_out: str | None = None,
    ) -> None:
        unknown = [task for task in tasks if task not in TASKS]
        if unknown or not tasks:
            raise InvalidInput("world", "tasks", f"names of {TASKS}", repr(unknown[0]) if unknown else "none")
        self.seed, self.voices, self.tasks = int(seed), voices, tuple(tasks)
        self.listener = Listener(self.seed if listener_seed is None else listener_seed)
        self.leave_out = leave_out
        self.recordings = _recordings(voices, leave_out)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word that is ever spoken; ``Sample.words`` has no other."""
        return VOCABULARY if self.recordings is None else tuple(sorted(DIGITS))

    @property
    def _plans(self) -> dict[str, Callable[[random.Random, str], tasks.Plan]]:
        return tasks.PLANS if self.recordings is None else digits.PLANS

    def sample(self, split: str, index: int) -> Sample:
        """The dialogue ``index`` of ``split`` ("train", "validation" or "heldout"); pure."""
        rng = self._random(split, index, "plan")
        plan = self._plans[self.tasks[index % len(self.tasks)]](rng, split)
        utterances = self._speak(plan, rng, split, index)
        return compose(plan, utterances, f"{self.seed}-{split}-{index}", rng)

    def comparison(self, split: str, index: int) -> Comparison:
        """Two replies to ``sample(split, index)``, compared by the listener; pure. Half have a rubric."""
        return self.pair(self.sample(split, index), split, index)

    def pair(self, sample: Sample, split: str, index: int) -> Comparison:
        """What ``comparison(split, index)`` says of its sample, for a caller that has made it already."""
        rng = self._random(split, index, "comparison")
        good, bad = sample.replies, replies.distractors(sample, rng)
        a = rng.choice(good if rng.random() < 0.6 else bad)
        b = rng.choice([reply for reply in (*good, *bad) if reply.text != a.text])
        if rng.random() < 0.5:
            a, b = b, a
        rubric = comparison_rubric(sample, rng)
        return Comparison(sample, a, b, self.listener.compare(sample, a, b, rubric, index), rubric)

    def text_sample(self, split: str, index: int) -> Sample:
        """A written question with its reasoning and replies, without sound; pure. For mid-training."""
        rng = self._random(split, index, "text")
        question, topic, step = (tasks if self.recordings is None else digits).written(rng, split)
        said = replies.truthful(topic, _UNHEARD, None, rng)
        return Sample(
            f"{self.seed}-{split}-text-{index}",
            "arithmetic",
            (Message.user(question),),
            step,
            topic.answer,
            said[:3],
            (),
            (),
            None,
            topic,
        )

    def dictation(self, split: str, index: int) -> Sample:
        """Any words, to be written down; pure. For mid-training: who has heard whole sentences alone guesses
        the nearest one when a new one comes. With recordings: digits."""
        rng = self._random(split, index, "dictation")
        say = any_words(rng) if self.recordings is None else digits.any_digits(rng, split)
        heard = tasks.heard(say)
        topic = Topic("words", heard, ("{x}",))
        asked = rng.choice(DICTATION)
        plan = tasks.Plan("dictation", (tasks.Turn(say, asked, topic),), "")
        utterance = self._speak(plan, rng, split, index + _DICTATIONS)[0]
        sound = utterance.sound
        reasoning = f"heard: {heard}. {_voice(sound, rng.choice(sound.salient))}"
        written = (Reply(f"{heard}.", 0.0), Reply(f"I heard: {heard}.", 0.3))
        messages = (Message.user(Audio(pcm=utterance.pcm), asked),)
        name = f"{self.seed}-{split}-dictation-{index}"
        return Sample(
            name, "dictation", messages, reasoning, heard, written, (sound,), (utterance.words,), None, topic
        )

    def corpus(self, count: int = 4000) -> Iterator[str]:
        """All kinds of text the world writes (questions, thoughts, replies, criteria), for a tokenizer."""
        yield from CRITERIA
        yield from self.vocabulary
        yield from DICTATION
        yield "I heard: "
        for index in range(count):
            rng = self._random("train", index, "corpus")
            plan = self._plans[TASKS[index % len(TASKS)]](rng, rng.choice(SPLITS))
            utterances = tuple(Utterance(np.zeros(1, np.float32), (), _any_sound(rng)) for _ in plan.turns)
            sample = compose(plan, utterances, f"corpus-{index}", rng)
            yield sample.reasoning
            yield from (message.text for message in sample.messages if message.text)
            said = [reply.text for reply in (*sample.replies, *replies.distractors(sample, rng))]
            yield from said
            yield from (f" {findings(sample, reply, sample.rubric)}" for reply in said)
            written = self.text_sample("train", index)
            yield from (written.messages[0].text, written.reasoning)

    def _random(self, split: str, index: int, stream: str) -> random.Random:
        if split not in SPLITS:
            raise InvalidInput("world", "split", f"one of {SPLITS}", repr(split))
        if index < 0:
            raise InvalidInput("world", "index", "0 or more", str(index))
        return random.Random(f"{self.seed}|{split}|{index}|{stream}")

    def _speaker(self, rng: random.Random, split: str, pitch: str) -> Speaker:
        if self.recordings is None:
            return espeak_speaker(rng, split, pitch)
        return self.recordings.speaker(rng, split)

    def _speak(self, plan: tasks.Plan, rng: random.Random, split: str, index: int) -> tuple[Utterance, ...]:
        """Every turn in one voice, each in a manner of its own: no earlier reply tells the last one's."""
        generator = np.random.default_rng([self.seed, SPLITS.index(split), index])
        last, last_pitch = len(plan.turns) - 1, rng.choice(_PITCHES)
        manners = [(rng.choice(_RATES), rng.choice(_LEVELS)) for _ in plan.turns]
        for attempt in range(3 * _SPEAKERS):
            if attempt and attempt % _SPEAKERS == 0:  # a manner beyond every voice tried, for these words
                manners = [(rng.choice(_RATES), rng.choice(_LEVELS)) for _ in plan.turns]
            speaker = self._speaker(rng, split, last_pitch)
            try:
                pitches = [*(rng.choice(speaker.pitches) for _ in range(last)), last_pitch]
                spoken = zip(plan.turns, pitches, manners, strict=True)
                return tuple(
                    speaker.say(turn.say, generator, pitch=pitch, rate=rate, loudness=loudness)
                    for turn, pitch, (rate, loudness) in spoken
                )
            except OutOfReach:
                continue
        raise OutOfReach(f"no voice says {[turn.say for turn in plan.turns]} as {manners}, {last_pitch}")


DICTATION = ("What did you hear?", "Write down what I say.", "Repeat this.")
_DICTATIONS = 1 << 32  # their voices are drawn apart from the dialogues'
_UNHEARD = Sound(0.0, 0.0, 0.0, "middle", "normal", "normal")


def _any_sound(rng: random.Random) -> Sound:
    return Sound(0.0, 0.0, 0.0, rng.choice(_PITCHES), rng.choice(_RATES), rng.choice(_LEVELS))


def _recordings(source: str | Path, leave_out: str | None) -> Recordings | None:
    if str(source) != "espeak":
        return Recordings(source, leave_out)
    if leave_out is not None:
        raise InvalidInput("world", "leave_out", "none with synthetic voices", repr(leave_out))
    voices.check_available()
    return None


def compose(plan: tasks.Plan, utterances: tuple[Utterance, ...], name: str, rng: random.Random) -> Sample:
    """The sample of a plan that was spoken: earlier turns are answered truthfully, the last one is not."""
    messages: list[Message] = []
    for i, (turn, utterance) in enumerate(zip(plan.turns, utterances, strict=True)):
        audio = Audio(pcm=utterance.pcm)
        messages.append(Message.user(audio, turn.text) if turn.text else Message.user(audio))
        if i < len(plan.turns) - 1:
            messages.append(Message.assistant(_earlier_reply(plan, i, utterance.sound, rng).text))
    sound = utterances[-1].sound
    topic, step = plan.topic, plan.step
    if topic.kind in replies.LABELS:
        answer = {"rate": sound.rate, "pitch": sound.pitch, "loudness": sound.loudness}[topic.kind]
        topic, step = Topic(topic.kind, answer, topic.cores), step.replace("{x}", answer)
    marked = rng.choice(sound.salient)
    reasoning = f"heard: {tasks.heard(plan.turns[-1].say)}. {_voice(sound, marked)} {step}"
    said = replies.truthful(topic, sound, plan.rule, rng, marked)
    sample = Sample(
        name,
        plan.task,
        tuple(messages),
        reasoning,
        topic.answer,
        said,
        tuple(u.sound for u in utterances),
        tuple(u.words for u in utterances),
        None,
        topic,
        plan.rule,
    )
    object.__setattr__(sample, "rubric", dialogue_rubric(sample, rng))
    return sample


def _voice(sound: Sound, marked: str) -> str:
    """How the speaker sounds, as the reasoning writes it, and what of that a remark would take up. Written
    down beforehand, it need only be copied; without it a small model that hears well makes untrue remarks."""
    return f"voice: {sound.rate}, {sound.pitch}, {sound.loudness}, mostly {marked}."


def _earlier_reply(plan: tasks.Plan, turn: int, sound: Sound, rng: random.Random) -> Reply:
    topic = plan.turns[turn].topic
    if topic is None:
        return Reply(rng.choice(plan.turns[turn].fixed), 0.0)
    rule = plan.rule if turn >= plan.rule_from else None
    return rng.choice(replies.truthful(topic, sound, rule, rng))

# SPDX-License-Identifier: Apache-2.0
"""What may be replied: truthful replies from a bare label to a warm sentence, and distractors."""

from __future__ import annotations

import random

from earnest.playground.samples import Reply, Sample, Sound, Topic
from earnest.playground.sentences import COLOURS, NAMES

# Ways to take up how the speaker sounds: {x} continues the sentence, {X} begins a new one.
REMARKS = {
    "fast": (
        "You sound in a hurry, so quickly: {x}.",
        "No time to lose: {x}.",
        "A quick question, a quick answer: {x}.",
    ),
    "slow": ("No rush, we take it easy: {x}.", "You take your time, and so do I: {x}."),
    "loud": ("So much energy! {X}.", "You speak with such power: {x}."),
    "quiet": ("You speak softly, so gently: {x}.", "For such a soft voice: {x}."),
    "high": ("What a bright voice! {X}.", "You sound so cheerful: {x}."),
    "low": ("What a deep voice! {X}.", "You sound serious, so plainly: {x}."),
    "calm": ("You sound calm and clear: {x}.", "In your steady way: {x}."),
}
FRIENDLY = ("Sure, {x}.", "Happy to help: {x}.", "Of course, {x}.")
PADDING = (
    "Thank you so much for asking me this, I am very happy to help you today, and I think that {x}.",
    "Well, let me think about this for a moment, because I want to be sure, and yes, {x}.",
    "That is such a good thing to ask, and I like it very much, so here it is for you: {x}.",
)
UNDERSTOOD = ("Understood.", "Okay.", "Noted.")  # of one word: they hold under every rule
LISTENING = ("Nice.", "I see.", "Good to know.")
LABELS = {
    "rate": ("fast", "normal", "slow"),
    "pitch": ("high", "middle", "low"),
    "loudness": ("loud", "normal", "quiet"),
}


def show(topic: Topic) -> str:
    """The answer as a reply writes it."""
    return topic.answer.capitalize() if topic.kind == "name" else topic.answer


def obey(text: str, rule: str | None, answer: str) -> str:
    """``text`` (a sentence that gives ``answer``) changed so that it keeps the rule."""
    if rule is None:
        return text
    if rule == "one word":
        return f"{answer}."
    if rule == "end with thanks":
        return f"{text} Thanks."
    if rule == "start with okay":
        return f"Okay, {_lower(text)}"
    return f"{text[:-1]}, {rule.removeprefix('call me ')}."


def _bare(answer: str, rule: str | None) -> str:
    return obey(f"{answer.capitalize()}.", rule, answer.capitalize())


def _lower(text: str) -> str:
    return text if text.startswith("I ") else text[0].lower() + text[1:]


def _fill(frame: str, core: str) -> str:
    return frame.replace("{X}", core[0].upper() + core[1:]).replace("{x}", core)


def truthful(
    topic: Topic, sound: Sound, rule: str | None, rng: random.Random, marked: str | None = None
) -> tuple[Reply, ...]:
    """Truthful replies, bare to warm: a label, a sentence, a friendly one, one that takes up the voice.

    marked: what of the voice (one of ``sound.salient``) is taken up; None: any."""
    answer = show(topic)

    def say(frame: str) -> str:
        return obey(_fill(frame, rng.choice(topic.cores).replace("{x}", answer)), rule, answer)

    if rule == "one word":
        return (Reply(_bare(answer, rule), 0.0),)
    replies = [
        Reply(_bare(answer, rule), 0.0),
        Reply(say("{X}."), 0.3),
        Reply(say(rng.choice(FRIENDLY)), 0.6),
    ]
    remark = marked or rng.choice(sound.salient)
    return (*replies, Reply(say(rng.choice(REMARKS[remark])), 1.0, remark))


def wrong_answer(topic: Topic, rng: random.Random) -> str:
    """An answer of the same kind that is not right, near it where kinds have a nearness."""
    if topic.kind == "number":
        right = int(topic.answer)
        near = [n for n in (right - 2, right - 1, right + 1, right + 2, right + 3) if 0 <= n <= 21]
        near += [n for n in topic.operands if n != right]
        return str(rng.choice(near))
    others = LABELS.get(topic.kind, COLOURS if topic.kind == "colour" else NAMES)
    return rng.choice([other for other in others if other != topic.answer])


def distractors(sample: Sample, rng: random.Random) -> tuple[Reply, ...]:
    """Replies that people like less: wrong, inapt, padded, babbling, or without the rule asked for."""
    topic, sound, rule = sample.topic, sample.sounds[-1], sample.rule
    wrong = Topic(topic.kind, wrong_answer(topic, rng), topic.cores, topic.operands)
    answer = show(topic)

    def say(about: Topic, frame: str, keep: bool = True) -> str:
        core = rng.choice(about.cores).replace("{x}", show(about))
        return obey(_fill(frame, core), rule if keep else None, show(about))

    remark = rng.choice(sound.salient)
    # As many remarks that are untrue as true ones: a judge that sees few of them takes every remark for true,
    # and a policy finds that out.
    inapt = rng.sample([name for name in REMARKS if name not in sound.salient], 3)
    found = [
        Reply(_bare(show(wrong), rule), 0.0, None, False),
        Reply(say(wrong, "{X}."), 0.3, None, False),
        Reply(say(wrong, rng.choice(REMARKS[remark])), 1.0, remark, False),
        *(Reply(say(topic, rng.choice(REMARKS[name])), 1.0, name, False) for name in inapt),
        Reply(say(topic, rng.choice(PADDING)), 0.6, None, False),
        Reply(babble(say(topic, rng.choice(REMARKS[remark])), rng), 1.0, remark, False),
        Reply(rng.choice(("I cannot hear you.", "I do not know.", "Sure.", "Nice.")), 0.3, None, False),
    ]
    if rule is not None:
        found.append(Reply(say(topic, "{X}.", keep=False), 0.3, None, False))
        found.append(Reply(say(topic, rng.choice(REMARKS[remark]), keep=False), 1.0, remark, False))
        if rule != "one word":
            found.append(Reply(_bare(answer, None), 0.0, None, False))
    return tuple(found)


def babble(text: str, rng: random.Random) -> str:
    """``text`` as a model says it that has lost itself: doubled, or cut off, or with a remark twice."""
    way = rng.randrange(3)
    words = text.split()
    if way == 0:
        return f"{text} {text}"
    if way == 1:
        return " ".join(words[: max(len(words) // 2, 1)])
    return " ".join(words[:3] + words)

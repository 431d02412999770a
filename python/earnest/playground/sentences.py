# SPDX-License-Identifier: Apache-2.0
"""The small language of the playground: its words, sentences and sums, and what each split may use of them.

A comma in a sentence is a pause. Held-out sentences are made of the same words as the training sentences, in
sentences that training never has; held-out sums are pairs of operands that training never has in that order.
"""

from __future__ import annotations

import itertools
import random
from functools import lru_cache

from earnest.playground.samples import SPLITS

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUMBERS = (
    *DIGITS,
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
    "twenty-one",
)
COLOURS = ("red", "blue", "green", "yellow", "black", "white")
NAMES = ("anna", "peter", "maria", "oscar")
THINGS = ("bird", "house", "car", "door")

# Syllables of every word that is spoken; its keys are the vocabulary.
SYLLABLES = {
    word: count
    for count, words in (
        (
            1,
            "one two three four five six eight nine plus minus what is how much tell me please can you say"
            " now am I or my voice high low loud fast slow speech do sound red blue green black white bird"
            " house car door see the was name which did from on call boss word end with thanks start your"
            " add to take no mean",
        ),
        (
            2,
            "zero seven speaking quiet yellow anna peter oscar number colour captain doctor always answer"
            " again sorry repeat okay",
        ),
        (3, "maria remember"),
    )
    for word in words.split()
}
VOCABULARY = tuple(sorted(SYLLABLES))

# What people say before and after a question or a wish; it changes the meaning of neither.
BEFORE_QUESTION = (
    "",
    "tell me",
    "please tell me",
    "now tell me",
    "can you tell me",
    "can you say",
    "please",
    "now",
    "okay",
    "okay, now",
    "do say",
    "now please",
)
BEFORE_WISH = (
    "",
    "please",
    "now",
    "okay",
    "can you",
    "now please",
    "okay, please",
    "can you please",
    "okay, now",
)
BEFORE_FACT = ("", "now", "okay", "please", "see", "okay, now", "now please", "okay, please")
AFTER = ("", "please", "now", "okay", "again")


def composed(
    openings: tuple[str, ...], cores: tuple[str, ...], closings: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    """Every opening with every core and every closing, dealt out to the splits: whoever has heard the
    training sentences has heard every part of a held-out one, and never the whole."""
    sentences: dict[str, str] = {}  # by their words: a pause makes no other sentence
    for opening, core, closing in itertools.product(openings, cores, closings):
        if closing and closing in opening:
            continue  # nobody says please twice
        sentence = " ".join(part for part in (opening, core, closing) if part)
        sentences.setdefault(sentence.replace(",", ""), sentence)
    chosen = list(sentences.values())
    whole = {core for core in cores if core in chosen}  # a core alone is everyone's first sentence
    chosen = [sentence for sentence in chosen if sentence not in whole]
    random.Random(len(chosen)).shuffle(chosen)  # the same for "my number" as for "my colour"
    share = max(len(chosen) // 6, 1)
    return {
        "heldout": tuple(chosen[:share]),
        "practice": tuple(chosen[share : 2 * share]),
        "train": tuple(sorted(whole)) + tuple(chosen[2 * share :]),
    }


def either(sentence: str, one: str, other: str) -> tuple[str, str]:
    return f"{sentence} {one} or {other}", f"{sentence} {other} or {one}"


# {x}: the sum as spoken ("three plus five").
ARITHMETIC = composed(BEFORE_QUESTION, ("{x}", "what is {x}", "how much is {x}", "what {x} is"), AFTER)
REPAIR = composed(
    (
        "",
        "tell me",
        "please tell me",
        "now tell me",
        "what is",
        "now what is",
        "how much is",
        "can you say",
        "okay, how much is",
    ),
    tuple(
        f"{{a}} {{op}} {{b}}, {change} {{op2}} {{c}}"
        for change in ("no,", "sorry,", "no, sorry,", "no, I mean", "I mean", "sorry, I mean", "sorry, no,")
    ),
    ("", "please", "now"),
)
SOUND = {
    "rate": composed(
        BEFORE_QUESTION,
        (
            *either("am I speaking", "fast", "slow"),
            *either("is my speech", "fast", "slow"),
            *either("do I sound", "fast", "slow"),
            *either("am I", "fast", "slow"),
        ),
        ("", "now", "please"),
    ),
    "pitch": composed(
        BEFORE_QUESTION,
        (
            *either("is my voice", "high", "low"),
            *either("do I sound", "high", "low"),
            *either("is my speech", "high", "low"),
        ),
        ("", "now", "please"),
    ),
    "loudness": composed(
        BEFORE_QUESTION,
        (
            *either("am I", "loud", "quiet"),
            *either("do I sound", "loud", "quiet"),
            *either("is my voice", "loud", "quiet"),
            *either("am I speaking", "loud", "quiet"),
        ),
        ("", "now", "please"),
    ),
}
# {c}: a colour, {t}: a thing. Said to be heard for its sound, or as a turn in between.
NEUTRAL = composed(
    ("", "now", "okay", "I say", "please see", "see"),
    ("I see the {c} {t}", "the {t} is {c}", "my {t} is {c}", "the {c} {t} is now {c2}"),
    ("", "now", "again"),
)
# A question in writing, beside spoken words that do not matter.
WRITTEN_SOUND = {
    "rate": ("How fast do I speak?", "Is my speech fast, normal or slow?"),
    "pitch": ("How high is my voice?", "Is my voice high, middle or low?"),
    "loudness": ("How loud am I?", "Do I sound loud, normal or quiet?"),
}
# What is told, and what is asked later; {v}: the value.
RECALL_TELL = {
    kind: composed(
        BEFORE_FACT,
        (
            f"my {kind} is {{v}}",
            f"remember the {kind} {{v}}",
            f"remember my {kind} {{v}}",
            f"remember my {kind} is {{v}}",
        ),
        ("", "please", "now", "okay"),
    )
    for kind in ("number", "colour", "name")
}
RECALL_ASK = {
    kind: composed(
        BEFORE_QUESTION,
        (
            f"what was my {kind}",
            f"what {kind} did I say",
            f"which {kind} did I say",
            f"what is my {kind}",
            f"my {kind}",
        ),
        AFTER,
    )
    for kind in ("number", "colour", "name")
}
# The rule a user gives -> how it is said.
RULES = {
    rule: composed(
        ("", "please", "now", "okay", "from now on", "now please", "from now on please", "okay, from now on"),
        (said, f"always {said}"),
        ("", "please", "now", "from now on", "okay"),
    )
    for rule, said in {
        **{f"call me {title}": f"call me {title}" for title in ("captain", "doctor", "boss")},
        "one word": "answer with one word",
        "end with thanks": "end with thanks",
        "start with okay": "start with okay",
    }.items()
}
# What is done with the model's own earlier answer -> how it is said. "repeat" or a signed number.
CONSISTENCY = {
    "repeat": composed(BEFORE_WISH, ("say your answer", "repeat your answer", "tell me your answer"), AFTER),
    **{
        f"+{k}": composed(
            BEFORE_WISH,
            (
                f"add {DIGITS[k]} to your answer",
                f"now add {DIGITS[k]} to your answer",
                f"tell me your answer plus {DIGITS[k]}",
                f"say your answer plus {DIGITS[k]}",
            ),
            AFTER,
        )
        for k in (1, 2, 3)
    },
    **{
        f"-{k}": composed(
            BEFORE_WISH,
            (
                f"take {DIGITS[k]} from your answer",
                f"now take {DIGITS[k]} from your answer",
                f"tell me your answer minus {DIGITS[k]}",
                f"say your answer minus {DIGITS[k]}",
            ),
            AFTER,
        )
        for k in (1, 2)
    },
}

Sum = tuple[int, str, int]


def result(a: int, op: str, b: int) -> int:
    return a + b if op == "plus" else a - b


def any_words(rng: random.Random) -> str:
    """Words in no order that means anything: to hear them is to hear each word, not to know the sentence. A
    sum of another split than training is never among them."""
    kept = {(DIGITS[a], op, DIGITS[b]) for split in SPLITS if split != "train" for a, op, b in sums()[split]}
    while True:
        words = [rng.choice(VOCABULARY) for _ in range(rng.randint(3, 7))]
        if not kept & set(zip(words, words[1:], words[2:], strict=False)):
            break
    if len(words) > 4:
        words[rng.randint(1, len(words) - 3)] += ","
    return " ".join(words)


def carrier_split(split: str) -> str:
    """Validation measures new voices and new sums in known sentences; the others have their own."""
    return "train" if split == "validation" else split


def one_of(sentences: tuple[str, ...], rng: random.Random) -> str:
    """The shorter of two sentences drawn: people are brief more often than not."""
    return min(rng.choice(sentences), rng.choice(sentences), key=len)


@lru_cache(maxsize=1)
def sums() -> dict[str, tuple[Sum, ...]]:
    """The sums (0..9 plus 0..9; minus with a result of at least 0) of each split, disjoint.

    What is held out keeps its mirror in training: of 3 plus 5 and 5 plus 3 one at most, and of 8 minus 3 and
    8 minus 5.
    """
    shuffle = random.Random(20262)
    pairs = [(a, b) for a in range(1, 10) for b in range(a + 1, 10)]
    triples = [(a, b) for a in range(3, 10) for b in range(1, (a + 1) // 2)]
    shuffle.shuffle(pairs)
    shuffle.shuffle(triples)
    flip = [shuffle.random() < 0.5 for _ in range(len(pairs) + len(triples))]
    plus = [(b, "plus", a) if flip[i] else (a, "plus", b) for i, (a, b) in enumerate(pairs)]
    minus = [(a, "minus", a - b) if flip[-1 - i] else (a, "minus", b) for i, (a, b) in enumerate(triples)]
    heldout, validation, practice = plus[:9] + minus[:5], plus[9:13] + minus[5:7], plus[13:28] + minus[7:12]
    every = [(a, "plus", b) for a in range(10) for b in range(10)]
    every += [(a, "minus", b) for a in range(10) for b in range(a + 1)]
    kept = {*heldout, *validation, *practice}
    return {
        "train": tuple(s for s in every if s not in kept),
        "practice": tuple(practice),
        "validation": tuple(validation),
        "heldout": tuple(heldout),
    }


def words_of(sentence: str) -> tuple[str, ...]:
    """The words of a sentence as they are heard: without its pauses."""
    return tuple(sentence.replace(",", "").split())


def syllables_of(sentence: str) -> int:
    return sum(SYLLABLES[word] for word in words_of(sentence))

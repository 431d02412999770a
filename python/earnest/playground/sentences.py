# SPDX-License-Identifier: Apache-2.0
"""The small language of the playground: its words, sentences and sums, and what each split may use of them.

A comma in a sentence is a pause. Held-out sentences are made of the same words as the training sentences, in
sentences that training never has; held-out sums are pairs of operands that training never has in that order.
"""

from __future__ import annotations

import random
import re
from functools import lru_cache
from typing import Any

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUMBERS = (*DIGITS, "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen",
           "eighteen", "nineteen", "twenty", "twenty-one")
COLOURS = ("red", "blue", "green", "yellow", "black", "white")
NAMES = ("anna", "peter", "maria", "oscar")
THINGS = ("bird", "house", "car", "door")

# Syllables of every word that is spoken; its keys are the vocabulary.
SYLLABLES = {
    word: count for count, words in (
        (1, "one two three four five six eight nine plus minus what is how much tell me please can you say"
            " now am I or my voice high low loud fast slow speech do sound red blue green black white bird"
            " house car door see the was name which did from on call boss word end with thanks start your"
            " add to take no mean"),
        (2, "zero seven speaking quiet yellow anna peter oscar number colour captain doctor always answer"
            " again sorry repeat okay"),
        (3, "maria remember"),
    ) for word in words.split()
}
VOCABULARY = tuple(sorted(SYLLABLES))

# {x}: the sum as spoken ("three plus five").
ARITHMETIC = {
    "train": ("{x}", "what is {x}", "tell me {x}", "please tell me {x}", "how much is {x}", "now {x}",
              "can you say what {x} is", "tell me what {x} is", "{x} please", "please say {x}",
              "say {x} again", "now what is {x}", "do say {x}", "please, how much is {x}",
              "tell me, what is {x}", "okay, {x}", "can you say {x}", "I say {x}", "say what {x} is",
              "now how much is {x}", "okay, {x} please"),
    "heldout": ("please tell me what {x} is", "now tell me {x}", "what is {x} please", "can you tell me {x}"),
}
REPAIR = {
    "train": ("{a} {op} {b}, no, {op2} {c}", "{a} {op} {b}, sorry, {op2} {c}",
              "what is {a} {op} {b}, no, {op2} {c}", "tell me {a} {op} {b}, no, I mean {op2} {c}",
              "{a} {op} {b}, I mean {op2} {c}"),
    "heldout": ("please tell me {a} {op} {b}, no, {op2} {c}", "what is {a} {op} {b}, sorry, I mean {op2} {c}",
                "now {a} {op} {b}, no, sorry, {op2} {c}"),
}
SOUND = {
    "rate": {"train": ("am I speaking fast or slow", "is my speech slow or fast", "do I sound fast or slow",
                       "tell me is my speech fast or slow"),
             "heldout": ("please tell me am I fast or slow", "am I speaking slow or fast")},
    "pitch": {"train": ("is my voice high or low", "do I sound high or low",
                        "tell me is my voice low or high", "can you say is my voice high or low"),
              "heldout": ("please tell me is my voice high or low", "do I sound low or high")},
    "loudness": {"train": ("am I loud or quiet", "do I sound loud or quiet", "is my voice quiet or loud",
                           "tell me am I speaking loud or quiet"),
                 "heldout": ("please tell me am I quiet or loud", "is my speech loud or quiet")},
}
# {c}: a colour, {t}: a thing. Said to be heard for its sound, or as a turn in between.
NEUTRAL = {
    "train": ("I see the {c} {t}", "the {t} is {c}", "my {t} is {c}", "the {c} {t} is now {c2}"),
    "heldout": ("now I see the {c} {t}", "I say the {t} is {c}"),
}
# A question in writing, beside spoken words that do not matter.
WRITTEN_SOUND = {
    "rate": ("How fast do I speak?", "Is my speech fast, normal or slow?"),
    "pitch": ("How high is my voice?", "Is my voice high, middle or low?"),
    "loudness": ("How loud am I?", "Do I sound loud, normal or quiet?"),
}
# What is told, and what is asked later; {v}: the value.
RECALL_TELL = {
    "number": {"train": ("my number is {v}", "remember the number {v}", "please remember my number is {v}"),
               "heldout": ("now remember my number is {v}", "please remember the number {v}")},
    "colour": {"train": ("my colour is {v}", "remember the colour {v}", "please remember my colour is {v}"),
               "heldout": ("now remember my colour is {v}", "please remember the colour {v}")},
    "name": {"train": ("my name is {v}", "remember the name {v}", "please remember my name is {v}"),
             "heldout": ("now remember my name is {v}", "please remember the name {v}")},
}
RECALL_ASK = {
    kind: {"train": (f"what was my {kind}", f"tell me my {kind}", f"what {kind} did I say",
                     f"say my {kind} again"),
           "heldout": (f"please tell me my {kind}", f"which {kind} did I say", f"can you say my {kind}")}
    for kind in ("number", "colour", "name")
}
RECALL_ASK["colour"]["train"] += ("tell me which colour is my colour",)
# The rule a user gives -> how it is said.
RULES = {
    **{f"call me {title}": {"train": (f"from now on call me {title}", f"please call me {title}",
                                      f"always call me {title}"),
                            "heldout": (f"now please always call me {title}",
                                        f"please call me {title} from now on")}
       for title in ("captain", "doctor", "boss")},
    "one word": {"train": ("from now on answer with one word", "please answer with one word",
                           "always answer with one word"),
                 "heldout": ("now please always answer with one word",
                             "please answer with one word from now on")},
    "end with thanks": {"train": ("from now on end with thanks", "please end with thanks",
                                  "always end with thanks"),
                        "heldout": ("now please always end with thanks",
                                    "please end with thanks from now on")},
    "start with okay": {"train": ("from now on start with okay", "please start with okay",
                                  "always start with okay"),
                        "heldout": ("now please always start with okay",
                                    "please start with okay from now on")},
}
# What is done with the model's own earlier answer -> how it is said. "repeat" or a signed number.
CONSISTENCY = {
    "repeat": {"train": ("say your answer again", "repeat your answer", "what was your answer"),
               "heldout": ("please repeat your answer", "can you say your answer again")},
    **{f"+{k}": {"train": (f"add {DIGITS[k]} to your answer", f"now add {DIGITS[k]} to your answer",
                           f"what is your answer plus {DIGITS[k]}"),
                 "heldout": (f"please add {DIGITS[k]} to your answer",
                             f"tell me your answer plus {DIGITS[k]}")}
       for k in (1, 2, 3)},
    **{f"-{k}": {"train": (f"take {DIGITS[k]} from your answer", f"now take {DIGITS[k]} from your answer",
                           f"what is your answer minus {DIGITS[k]}"),
                 "heldout": (f"please take {DIGITS[k]} from your answer",
                             f"tell me your answer minus {DIGITS[k]}")}
       for k in (1, 2)},
}

Sum = tuple[int, str, int]


def result(a: int, op: str, b: int) -> int:
    return a + b if op == "plus" else a - b


def any_words(rng: random.Random) -> str:
    """Words in no order that means anything: to hear them is to hear each word, not to know the sentence. A
    sum of another split than training is never among them."""
    kept = {(DIGITS[a], op, DIGITS[b]) for split in ("validation", "heldout") for a, op, b in sums()[split]}
    while True:
        words = [rng.choice(VOCABULARY) for _ in range(rng.randint(3, 7))]
        if not kept & set(zip(words, words[1:], words[2:], strict=False)):
            break
    if len(words) > 4:
        words[rng.randint(1, len(words) - 3)] += ","
    return " ".join(words)


# Words that change the meaning of no sentence they stand beside.
FILLERS = ("please", "now", "okay", "can", "you", "tell", "me", "say", "do", "see", "the", "which", "did",
           "was", "house", "car", "bird", "door", "always", "again", "I", "what", "is", "how", "much", "my",
           "with", "on", "from", "to")


def loosened(sentence: str, rng: random.Random) -> str:
    """The sentence as people say it, with words before and after it that add nothing. A listener who has
    heard a few dozen sentences over and over takes every new one for the nearest of them; this one cannot.
    Never a sentence of the held-out split."""
    if rng.random() < 0.4:
        return sentence
    before = rng.choices(FILLERS, k=rng.choice((0, 1, 1, 2, 3)))
    after = rng.choices(FILLERS, k=rng.choice((0, 0, 0, 1, 2)))
    loose = " ".join([*before, sentence, *after])
    return sentence if _held_out().fullmatch(loose.replace(",", "")) else loose


@lru_cache(maxsize=1)
def _held_out() -> re.Pattern[str]:
    """What matches every sentence of the held-out split, whatever stands in its blanks."""
    found: list[str] = []

    def collect(table: Any) -> None:
        for key, value in table.items():
            if isinstance(value, dict):
                collect(value)
            elif key == "heldout":
                found.extend(re.sub(r"\\{\w+\\}", ".+", re.escape(text.replace(",", ""))) for text in value)

    for table in (ARITHMETIC, REPAIR, SOUND, NEUTRAL, RECALL_TELL, RECALL_ASK, RULES, CONSISTENCY):
        collect({"table": table})
    return re.compile("|".join(found))


def carrier_split(split: str) -> str:
    """Validation measures new voices and new sums in known sentences; held-out has new sentences, too."""
    return "heldout" if split == "heldout" else "train"


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
    heldout, validation = plus[:9] + minus[:5], plus[9:13] + minus[5:7]
    every = [(a, "plus", b) for a in range(10) for b in range(10)]
    every += [(a, "minus", b) for a in range(10) for b in range(a + 1)]
    kept = set(heldout) | set(validation)
    return {"train": tuple(s for s in every if s not in kept), "validation": tuple(validation),
            "heldout": tuple(heldout)}


def words_of(sentence: str) -> tuple[str, ...]:
    """The words of a sentence as they are heard: without its pauses."""
    return tuple(sentence.replace(",", "").split())


def syllables_of(sentence: str) -> int:
    return sum(SYLLABLES[word] for word in words_of(sentence))

# SPDX-License-Identifier: Apache-2.0
"""Whether a free reply gives a known answer: short answers and multiple choice, compared after
normalisation.

Normalised text has no case, no punctuation and no articles; full-width forms are plain ones, numbers are
digits ("twenty-one", "21.0" and "21" are the same), and Chinese characters stand apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_UNITS = dict(
    zero=0, one=1, two=2, three=3, four=4, five=5, six=6, seven=7, eight=8, nine=9, ten=10, eleven=11,
    twelve=12, thirteen=13, fourteen=14, fifteen=15, sixteen=16, seventeen=17, eighteen=18, nineteen=19,
)  # fmt: skip
_TENS = dict(twenty=20, thirty=30, forty=40, fifty=50, sixty=60, seventy=70, eighty=80, ninety=90)
_VALUES = _UNITS | _TENS
_ARTICLES = {"a", "an", "the"}
_NEGATIONS = {"not", "isn't", "never", "不", "非"}
_CJK = "\u3400-\u9fff"
_WORD = re.compile(rf"(?<![\w.])-\d+(?:\.\d+)?|\d+(?:\.\d+)?|[{_CJK}]|[^\W\d_{_CJK}]+(?:'[a-z]+)?")
# "B", "(b)", "B. Drums", "Option B: drums" at the beginning; "the answer is (B)" anywhere.
_FIRST_LETTER = re.compile(r"^\W*(?:(?:option|choice|answer)\W+)?\(?([A-Za-z])(?:[).:,]|\s*$)")
_SAID_LETTER = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*\(?([A-Za-z])(?:[).:,]|\s*$)", re.I)


def tokens(text: str) -> list[str]:
    """The normalised words and numbers of a text."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", plain)
    words = [word for word in _WORD.findall(plain) if word not in _ARTICLES]
    found: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        value = _VALUES.get(word)
        if value is not None and 0 < value < 10 and before in _TENS:
            found[-1] = str(_VALUES[before] + value)
        else:
            found.append(_number(word) if value is None else str(value))
    return found


def short_answer_right(answer: str, reply: str) -> bool:
    """Whether `reply` gives the short `answer`. A number has to be the last one said (steps may come before
    it); words have to stand in the reply as they are, without a "not" before them."""
    wanted, said = tokens(answer), tokens(reply)
    if not wanted or not said:
        return False
    if wanted == said:
        return True
    if len(wanted) == 1 and _is_number(wanted[0]):
        numbers = [token for token in said if _is_number(token)]
        return bool(numbers) and numbers[-1] == wanted[0]
    places = [i for i in range(len(said)) if said[i : i + len(wanted)] == wanted]
    return bool(places) and not any(i > 0 and said[i - 1] in _NEGATIONS for i in places)


def chosen_option(reply: str, choices: Sequence[str]) -> int | None:
    """Which of `choices` a reply takes: by its letter, as the whole reply, or as the only one it names; else
    None."""
    letter = _FIRST_LETTER.match(reply.strip()) or _SAID_LETTER.search(reply)
    if letter:
        index = ord(letter[1].upper()) - ord("A")
        if index < len(choices):
            return index
    said = tokens(reply)
    whole = [i for i, choice in enumerate(choices) if tokens(choice) == said]
    if len(whole) == 1:
        return whole[0]
    named = [i for i, choice in enumerate(choices) if short_answer_right(choice, reply)]
    # "classical music" names "music" too: the longest choice that holds the others counts.
    outer = [i for i in named if not any(_within(choices[i], choices[j]) for j in named if j != i)]
    return outer[0] if len(outer) == 1 else None


def choice_right(answer: str, choices: Sequence[str], reply: str) -> bool:
    """Whether a reply takes the right choice. `answer` is the text of one of `choices`, or its letter."""
    texts = [tokens(choice) for choice in choices]
    letter = answer.strip().strip("().:").upper()
    if tokens(answer) in texts:
        right = texts.index(tokens(answer))
    elif len(letter) == 1 and 0 <= ord(letter) - ord("A") < len(choices):
        right = ord(letter) - ord("A")
    else:
        return False
    return chosen_option(reply, choices) == right


def _within(inner: str, outer: str) -> bool:
    a, b = tokens(inner), tokens(outer)
    return len(a) < len(b) and any(b[i : i + len(a)] == a for i in range(len(b)))


def _is_number(token: str) -> bool:
    return token.lstrip("-")[:1].isdigit()


def _number(word: str) -> str:
    """Digits without what does not change their value: 021.50 is 21.5."""
    if not _is_number(word):
        return word
    sign, digits = ("-", word[1:]) if word.startswith("-") else ("", word)
    whole, _, part = digits.partition(".")
    part = part.rstrip("0")
    return sign + (whole.lstrip("0") or "0") + (f".{part}" if part else "")

# SPDX-License-Identifier: Apache-2.0
"""Writes unicode_classes.cc and unicode_normal_form.cc beside it.

A tokenizer has to cut a text where the `tokenizers` package cuts it, and that package carries Unicode of
three ages: its regular expressions know version 16.0, its normaliser 9.0, its step "Digits" 17.0. Whether a
code point is a letter is asked of the package, so is whether the normaliser knows a character. What Unicode
says of one that it knows (decomposition, combining class: once given, they never change) comes from Python's
unicodedata, which also has to agree about every letter and number that it has itself.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers

CODE_POINTS = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
WIDTH = 108
LAST_CLASS = "\u0345"  # of the combining class 240, the highest
FIRST_CLASS = "\u0334"  # of the combining class 1

normal = normalizers.NFC().normalize_str
decomposed = normalizers.NFD().normalize_str


def matching(pattern: str) -> list[int]:
    """The code points of one character class of the regular expressions."""
    pieces = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    text = "".join(map(chr, CODE_POINTS))
    return sorted(ord(character) for piece, _ in pieces.pre_tokenize_str(text) for character in piece)


def digits() -> set[int]:
    """The code points that Digits cuts out."""
    pieces = pre_tokenizers.Digits(individual_digits=True)
    text = "".join(f"a{chr(code)}" for code in CODE_POINTS)
    return {ord(piece) for piece, _ in pieces.pre_tokenize_str(text) if len(piece) == 1} - {ord("a")}


def ranges(codes: Iterable[int], kind: Callable[[int], int] = lambda code: 0) -> Iterator[tuple[int, int]]:
    """Runs of neighbours of one kind: (first, last)."""
    first = last = None
    for code in codes:
        if first is not None and code == last + 1 and kind(code) == kind(first):
            last = code
            continue
        if first is not None:
            yield first, last
        first = last = code
    if first is not None:
        yield first, last


def check_against_unicodedata(codes: list[int], letter: str) -> None:
    known = {code for code in CODE_POINTS if unicodedata.category(chr(code)) != "Cn"}
    mine = {code for code in known if unicodedata.category(chr(code))[0] == letter}
    assert mine == set(codes) & known, (letter, unicodedata.unidata_version)


def combining_classes() -> dict[int, int]:
    """Of every mark that the normaliser sorts."""
    result = {}
    for code in CODE_POINTS:
        mark = chr(code)
        value = unicodedata.combining(mark)
        if value and (decomposed(LAST_CLASS + mark), decomposed(mark + FIRST_CLASS)) != (
            LAST_CLASS + mark,
            mark + FIRST_CLASS,
        ):
            result[code] = value
    return result


def decompositions() -> dict[int, list[int]]:
    """Of every character that the normaliser takes apart, one step; Hangul follows from arithmetic."""
    result = {}
    for code in CODE_POINTS:
        written = unicodedata.decomposition(chr(code))
        if written and not written.startswith("<") and decomposed(chr(code)) != chr(code):
            result[code] = [int(part, 16) for part in written.split()]
    return result


def array(kind: str, name: str, comment: str, items: Iterable[str]) -> str:
    lines, line = [], " "
    for item in items:
        if len(line) + len(item) + 2 > WIDTH:
            lines.append(line)
            line = " "
        line += f" {item},"
    return "\n".join([f"// {comment}", f"const {kind} {name}[] = {{", *lines, line, "};", ""])


def entries(*numbers: int) -> str:
    return "{" + ", ".join(f"0x{number:X}" for number in numbers) + "}"


def write_all() -> None:
    letters, numbers, spaces = matching(r"\p{L}"), matching(r"\p{N}"), matching(r"\s")
    check_against_unicodedata(letters, "L")
    check_against_unicodedata(numbers, "N")
    assert digits() >= set(numbers)
    newer = sorted(digits() - set(numbers))
    classes, apart = combining_classes(), decompositions()
    pairs = {code: parts for code, parts in apart.items() if len(parts) == 2}
    singles = {code: parts[0] for code, parts in apart.items() if len(parts) == 1}
    composed = {code for code in pairs if normal(decomposed(chr(code))) == chr(code)}

    write(
        "unicode_classes.cc",
        "Unicode 16.0",
        "Classes classes()",
        {
            "letters": array("Range", "kLetters", "\\p{L}", (entries(*r) for r in ranges(letters))),
            "numbers": array("Range", "kNumbers", "\\p{N}", (entries(*r) for r in ranges(numbers))),
            "spaces": array("Range", "kSpaces", "\\s", (entries(*r) for r in ranges(spaces))),
            "newer_numbers": array(
                "Range", "kNewerNumbers", "Numbers of Unicode 17.0", (entries(*r) for r in ranges(newer))
            ),
        },
    )
    write(
        "unicode_normal_form.cc",
        "Unicode 9.0",
        "NormalForm normal_form()",
        {
            "combining_classes": array(
                "ClassRange",
                "kCombiningClasses",
                "Canonical combining classes other than 0: first, last, class.",
                (entries(a, b, classes[a]) for a, b in ranges(classes, classes.__getitem__)),
            ),
            "composites": array(
                "Pair",
                "kComposites",
                "Canonical pairs that compose: the character, its two parts.",
                (entries(code, *pairs[code]) for code in sorted(composed)),
            ),
            "broken_pairs": array(
                "Pair",
                "kBrokenPairs",
                "Canonical pairs that only come apart (the composition exclusions).",
                (entries(code, *pairs[code]) for code in sorted(pairs.keys() - composed)),
            ),
            "single_runs": array(
                "Range",
                "kSingleRuns",
                "Characters that stand for one other, in runs; the others follow one by one.",
                (entries(*r) for r in ranges(sorted(singles))),
            ),
            "singles": array(
                "char32_t", "kSingles", "The others.", (f"0x{singles[code]:X}" for code in sorted(singles))
            ),
        },
    )


def write(name: str, version: str, declaration: str, tables: dict[str, str]) -> None:
    fields = ", ".join(f"k{table.title().replace('_', '')}" for table in tables)
    lines = [
        "// SPDX-License-Identifier: Apache-2.0",
        f"// {version}, written by unicode_tables.py, which says where it comes from.",
        "// clang-format off",
        '#include "csrc/engine/unicode_tables.h"\n',
        "namespace earnest::engine::unicode {",
        "namespace {\n",
        *tables.values(),
        "}  // namespace\n",
        f"{declaration} {{ return {{{fields}}}; }}\n",
        "}  // namespace earnest::engine::unicode",
    ]
    Path(__file__).with_name(name).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_all()
    print(f"unicodedata {unicodedata.unidata_version} agrees where it knows a code point")

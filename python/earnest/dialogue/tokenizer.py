# SPDX-License-Identifier: Apache-2.0
"""Tokenizer: text to ids and back, and the family's special tokens by name.

Text is never searched for special tokens: somebody who types "<|EOT|>" has typed seven characters. Special
tokens enter a sequence by name only, through `Tokenizer.special`. Byte-level vocabularies only, which is what
the published models use: every token is a string of bytes, so decoding is exact and a stream knows where
characters end.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from earnest.dialogue.message import THINK_CLOSE, THINK_OPEN
from earnest.errors import InvalidInput

END_OF_TEXT, IM_END, BOT, EOT = "<|endoftext|>", "<|im_end|>", "<|BOT|>", "<|EOT|>"
AUDIO_START, AUDIO_END, AUDIO_PATCH = "<audio_start>", "<audio_end>", "<audio_patch>"
VERDICTS = (-2, -1, 0, 1, 2)


def verdict_token(level: int) -> str:
    """The name of the judge's token for an ordinal verdict from -2 to 2."""
    if level not in VERDICTS:
        raise InvalidInput("verdict_token", "level", "a whole number from -2 to 2", repr(level))
    return f"<verdict_{level}>"


FAMILY_SPECIALS = (
    END_OF_TEXT,
    IM_END,
    BOT,
    EOT,
    AUDIO_START,
    AUDIO_END,
    AUDIO_PATCH,
    THINK_OPEN,
    THINK_CLOSE,
    *(verdict_token(level) for level in VERDICTS),
)
# Without these nothing can be rendered. A think tag may be spelled in text pieces; verdicts are ours alone.
REQUIRED_SPECIALS = (BOT, EOT, AUDIO_START, AUDIO_END, AUDIO_PATCH)


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: the printable character that stands for each byte inside a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {chr(byte): byte for byte in printable}, 0
    for byte in range(256):
        if byte not in printable:
            table[chr(256 + extra)] = byte
            extra += 1
    return table


def _is_byte_level(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    return decoder.get("type") == "ByteLevel" or any(map(_is_byte_level, decoder.get("decoders", [])))


class Tokenizer:
    """A byte-level BPE tokenizer with named special tokens. ``Tokenizer(json)`` takes the text of a
    tokenizer.json."""

    def __init__(self, definition: str) -> None:
        spec = json.loads(definition)
        if not _is_byte_level(spec.get("decoder")) or spec["model"].get("type") != "BPE":
            raise InvalidInput(
                "Tokenizer",
                "definition",
                "a byte-level BPE tokenizer.json",
                f"a {spec['model'].get('type')} model",
            )
        self._definition = definition
        self.specials: dict[str, int] = {token["content"]: token["id"] for token in spec["added_tokens"]}
        self._text = self._without_specials(spec)
        characters = _byte_of_character()
        self._bytes: dict[int, bytes] = {}
        for token, index in spec["model"]["vocab"].items():
            if token not in self.specials:
                self._bytes[index] = (
                    bytes(characters[c] for c in token)
                    if all(c in characters for c in token)
                    else token.encode("utf-8")
                )
        self._special_bytes = {index: name.encode("utf-8") for name, index in self.specials.items()}
        self.vocab_size: int = 1 + max([*self._bytes, *self._special_bytes])
        missing = [name for name in REQUIRED_SPECIALS if name not in self.specials]
        if missing:
            raise InvalidInput(
                "Tokenizer",
                "definition",
                f"the special tokens {list(REQUIRED_SPECIALS)}",
                f"none named {missing[0]} (Tokenizer.adopt adds them to a plain vocabulary)",
            )
        self.think_open, self.think_close = self._tag(THINK_OPEN), self._tag(THINK_CLOSE)

    @staticmethod
    def _without_specials(spec: dict[str, Any]) -> tokenizers.Tokenizer:
        """The same vocabulary with no special tokens in it, so that no text can become one."""
        names = {token["content"] for token in spec["added_tokens"]}
        model = spec["model"] | {"vocab": {t: i for t, i in spec["model"]["vocab"].items() if t not in names}}
        plain = spec | {
            "added_tokens": [],
            "model": model,
            "post_processor": None,
            "truncation": None,
            "padding": None,
        }
        return tokenizers.Tokenizer.from_str(json.dumps(plain))

    def _tag(self, name: str) -> tuple[int, ...]:
        return (self.specials[name],) if name in self.specials else tuple(self.encode(name))

    def __len__(self) -> int:
        return self.vocab_size

    def __reduce__(self) -> tuple:
        return Tokenizer, (self._definition,)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, none of which is a special token.

        Decoding gives the text back, unless the vocabulary has a normaliser (Qwen composes characters: NFC).
        """
        return self._text.encode(text, add_special_tokens=False).ids

    def token_bytes(self, token: int, *, skip_special: bool = True) -> bytes:
        """The bytes a token stands for: of special tokens none or, if asked, the name; of unused ids none."""
        if token in self._special_bytes:
            return b"" if skip_special else self._special_bytes[token]
        return self._bytes.get(token, b"")

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of ids. Bytes that are no UTF-8 become U+FFFD (`TextStream` waits for the rest)."""
        joined = b"".join(self.token_bytes(int(token), skip_special=skip_special) for token in ids)
        return joined.decode("utf-8", errors="replace")

    def special(self, name: str) -> int:
        """The id of a special token; InvalidInput when the vocabulary has none of that name."""
        if name not in self.specials:
            raise InvalidInput("Tokenizer.special", "name", "a special token of this vocabulary", repr(name))
        return self.specials[name]

    def verdict_ids(self) -> tuple[int, ...]:
        """The ids of the judge's verdict tokens, from -2 to 2."""
        return tuple(self.special(verdict_token(level)) for level in VERDICTS)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a turn: those of <|endoftext|>, <|im_end|> and <|EOT|> that exist."""
        return tuple(self.specials[name] for name in (END_OF_TEXT, IM_END, EOT) if name in self.specials)

    @classmethod
    def train(
        cls, corpus: Iterable[str], vocab_size: int, specials: Sequence[str] = FAMILY_SPECIALS
    ) -> Tokenizer:
        """Learn a byte-level BPE vocabulary. The same corpus gives the same vocabulary.

        ``vocab_size`` counts everything: 256 bytes, merges and, at the end as in the published models, the
        special tokens. A small corpus may end with fewer merges: read the size from the result.
        """
        if vocab_size < 256 + len(specials):
            raise InvalidInput(
                "Tokenizer.train", "vocab_size", f"at least {256 + len(specials)}", str(vocab_size)
            )
        learner = tokenizers.Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        learner.decoder = decoders.ByteLevel()
        learner.train_from_iterator(
            corpus,
            trainers.BpeTrainer(
                vocab_size=vocab_size - len(specials),
                show_progress=False,
                initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            ),
        )
        return cls._add(learner, specials)

    @classmethod
    def adopt(cls, definition: str, specials: Sequence[str] = FAMILY_SPECIALS) -> Tokenizer:
        """A plain byte-level tokenizer.json (say, of a small language model) with specials appended."""
        return cls._add(tokenizers.Tokenizer.from_str(definition), specials)

    @classmethod
    def _add(cls, plain: tokenizers.Tokenizer, specials: Sequence[str]) -> Tokenizer:
        plain.add_special_tokens(
            [tokenizers.AddedToken(name, special=True, normalized=False) for name in specials]
        )
        return cls(plain.to_str(pretty=False))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Tokenizer:
        """Read ``tokenizer.json`` of a folder (or that file itself)."""
        path = Path(folder)
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            definition = path.read_text(encoding="utf-8")
            json.loads(definition)
        except OSError as error:
            raise InvalidInput(
                "Tokenizer.load", "folder", "a folder with tokenizer.json", f"{folder} ({error.strerror})"
            ) from error
        except ValueError as error:
            raise InvalidInput(
                "Tokenizer.load", "folder", "tokenizer.json to hold JSON", f"{path} ({error})"
            ) from None
        return cls(definition)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``tokenizer.json`` and the ``tokenizer_config.json`` that other people's loaders want."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": EOT,
            "pad_token": END_OF_TEXT if END_OF_TEXT in self.specials else EOT,
            "clean_up_tokenization_spaces": False,
        }
        for name, text in (
            ("tokenizer.json", self._definition),
            ("tokenizer_config.json", json.dumps(config, indent=2) + "\n"),
        ):
            unfinished = folder / f"{name}.part"
            unfinished.write_text(text, encoding="utf-8")
            os.replace(unfinished, folder / name)


class TextStream:
    """Ids in, text out, one call at a time; the bytes of an unfinished character wait for the rest of it."""

    def __init__(self, tokenizer: Tokenizer, *, keep: Iterable[str] = ()) -> None:
        """``keep`` names special tokens whose names are to appear in the text; all others give nothing."""
        self._tokenizer = tokenizer
        self._keep = {tokenizer.specials[name] for name in keep if name in tokenizer.specials}
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        joined = b"".join(
            self._tokenizer.token_bytes(int(token), skip_special=int(token) not in self._keep)
            for token in ids
        )
        return self._decoder.decode(joined)

    def finish(self) -> str:
        """What was held back; an unfinished character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)

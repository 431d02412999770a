# SPDX-License-Identifier: Apache-2.0
"""Tokenizers in the manner of the families, trained on a small text in many scripts, and texts for them."""

import json
import random
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
FAMILIES = ("gpt2", "qwen2", "smollm2", "llama3")

SENTENCES = Path(__file__).with_name("scripts.txt").read_text(encoding="utf-8").splitlines()

SPECIALS = [
    AddedToken("<|endoftext|>", special=True, normalized=False),
    AddedToken("<|im_end|>", special=True, normalized=False),
    AddedToken("<|im_end|>x", special=False, normalized=False),
    AddedToken("ézz", special=False, normalized=True),
    AddedToken("<tool_call>", special=False, normalized=False),
]
NAMES = [token.content for token in SPECIALS] + ["<|im_end|", "e\u0301zz", "<tool_call", "<|im_end|>xx"]


def corpus() -> list[str]:
    return [
        sentence.encode().decode("unicode_escape") if sentence.isascii() else sentence
        for sentence in SENTENCES
    ]


def in_the_manner_of(family: str, vocab_size: int = 900, specials=(), text: list[str] | None = None) -> str:
    """The text of a tokenizer.json, trained on the sentences or another text."""
    learner = tokenizers.Tokenizer(models.BPE(ignore_merges=family == "llama3"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=family in ("gpt2", "smollm2"))
    steps = {
        "gpt2": [byte_level],
        "smollm2": [pre_tokenizers.Digits(individual_digits=True), byte_level],
        "qwen2": [pre_tokenizers.Split(Regex(QWEN2), "isolated"), byte_level],
        "llama3": [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), byte_level],
    }[family]
    learner.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    learner.decoder = decoders.ByteLevel()
    if family == "qwen2":
        learner.normalizer = normalizers.NFC()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner.train_from_iterator(
        text or corpus() * 2,
        trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, initial_alphabet=alphabet),
    )
    learner.add_tokens(list(specials))
    return learner.to_str()


def of_gguf(path: Path) -> str:
    """The tokenizer.json that SmolLM2's file was made from, as far as text is concerned."""
    import gguf

    fields = {name: field.contents() for name, field in gguf.GGUFReader(str(path)).fields.items()}
    assert fields["tokenizer.ggml.pre"] == "smollm"
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    spec = json.loads(in_the_manner_of("smollm2", 256))
    vocab = {token: index for index, token in enumerate(tokens)}
    spec["model"] |= {"vocab": vocab, "merges": fields["tokenizer.ggml.merges"]}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    spec["added_tokens"] = [
        {"id": index, "content": tokens[index], "special": True, **flags}
        for index, kind in enumerate(kinds)
        if kind != 1
    ]
    return json.dumps(spec)


def without_added(definition: str) -> tokenizers.Tokenizer:
    """The peer, with no way from text to an added token."""
    spec = json.loads(definition)
    names = {token["content"] for token in spec["added_tokens"]}
    vocab = {token: index for token, index in spec["model"]["vocab"].items() if token not in names}
    spec |= {"added_tokens": [], "post_processor": None, "model": spec["model"] | {"vocab": vocab}}
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


# Blocks of code points that random texts are drawn from, one script or kind a text.
BLOCKS = (
    [(0x20, 0x7E)] * 4
    + [(0x09, 0x0D), (0x20, 0x20), (0x30, 0x39), (0x41, 0x5A), (0xA0, 0x17F), (0x300, 0x36F), (0x370, 0x3FF)]
    + [(0x400, 0x4FF), (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0xB80, 0xBFF), (0xE00, 0xE7F)]
    + [
        (0x1100, 0x11FF),
        (0x1E00, 0x1FFF),
        (0x2000, 0x206F),
        (0x2070, 0x218F),
        (0x2190, 0x2BFF),
        (0x3000, 0x30FF),
    ]
    + [(0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFE00, 0xFE0F), (0xFF00, 0xFFEF)]
    + [(0x10000, 0x10FFF), (0x11000, 0x11FFF), (0x1D100, 0x1D7FF), (0x1F000, 0x1FAFF), (0x20000, 0x2FA1F)]
    + [(0xE0000, 0xE01EF), (0x0, 0x10FFFF)]
)


def random_text(rng: random.Random, length: int) -> str:
    """Runs of characters of one block each, mixed with sentences."""
    pieces, size = [], 0
    while size < length:
        kind = rng.random()
        if kind < 0.1:
            piece = rng.choice(NAMES)
        elif kind < 0.3:
            piece = rng.choice(corpus())
            start = rng.randrange(len(piece))
            piece = piece[start : start + rng.randrange(1, 40)]
        else:
            first, last = rng.choice(BLOCKS)
            codes = [rng.randint(first, last) for _ in range(rng.randrange(1, 9))]
            piece = "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)
            piece *= rng.choice([1, 1, 1, 2, 5])
        pieces.append(piece)
        size += len(piece)
    return "".join(pieces)

# SPDX-License-Identifier: Apache-2.0
"""The engine's tokenizer beside the `tokenizers` package, token by token; and files that must be refused."""

import json
import random
import time
import unicodedata
from itertools import pairwise

import pytest
import tokenizers
import vocabularies
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from earnest import _native
from earnest.dialogue import TextStream, Tokenizer

TEXT = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=40),
    st.text("aA'sStTrevmld\u017f19 \t\r\n\u00a0.é٣語\u0301\u0323\u1100\u1161\u11a8", max_size=30),
    st.lists(st.sampled_from(vocabularies.NAMES + vocabularies.corpus()), max_size=3).map("".join),
)
# Every assigned code point; what lies between is unassigned or private.
CODE_POINTS = [*range(0xD800), *range(0xE000, 0x33480), *range(0xE0000, 0xE0200), 0xF0000, 0x10FFFF]


class Pair:
    """The engine and its peer with the same vocabulary."""

    def __init__(self, definition: str) -> None:
        self.definition = definition
        self.native = _native.Tokenizer(self.definition)
        self.plain = vocabularies.without_added(self.definition)
        self.full = tokenizers.Tokenizer.from_str(self.definition)

    def assert_equal(self, text: str) -> None:
        plain = self.native.encode(text).tolist()
        assert plain == self.plain.encode(text, add_special_tokens=False).ids
        special = self.native.encode(text, allow_special=True).tolist()
        assert special == self.full.encode(text, add_special_tokens=False).ids
        assert not set(plain) & set(self.native.specials.values())
        if self.plain.normalizer is None:
            assert self.native.decode(plain) == text
        else:
            assert self.native.decode(plain) == self.plain.normalizer.normalize_str(text)


@pytest.fixture(scope="module", params=vocabularies.FAMILIES)
def pair(request) -> Pair:
    return Pair(vocabularies.in_the_manner_of(request.param, specials=vocabularies.SPECIALS))


@pytest.fixture(scope="module")
def qwen2() -> Pair:
    return Pair(vocabularies.in_the_manner_of("qwen2", specials=vocabularies.SPECIALS))


def test_sentences_in_many_scripts(pair):
    for text in [*vocabularies.corpus(), "\n".join(vocabularies.corpus()), "", " ", "\n", "  \n "]:
        pair.assert_equal(text)


@settings(max_examples=150, deadline=None)
@given(text=TEXT)
def test_any_text(pair, text):
    pair.assert_equal(text)


def test_random_scripts(pair):
    rng = random.Random(time.time_ns())
    for _ in range(60):
        pair.assert_equal(vocabularies.random_text(rng, rng.randrange(1, 2000)))


def test_shared_data(pair, shared_data):
    for path in shared_data.rglob("*"):
        if path.suffix in (".md", ".txt", ".json", ".jsonl"):
            pair.assert_equal(path.read_text(encoding="utf-8")[:200_000])


def test_the_real_vocabulary_of_smollm2(shared_data):
    """It lacks the tokens of some bytes, so a text does not always come back."""
    pytest.importorskip("gguf")
    folder = shared_data / "models" / "smollm2-135m-instruct"
    pair = Pair(vocabularies.of_gguf(next(folder.glob("*.gguf"))))
    rng = random.Random(time.time_ns())
    texts = [vocabularies.random_text(rng, 300) for _ in range(60)] + ["<|im_start|>user\nHi<|im_end|>\n"]
    texts += [path.read_text(encoding="utf-8")[:300_000] for path in shared_data.rglob("*.jsonl")]
    for text in [*vocabularies.corpus(), *texts]:
        plain = pair.plain.encode(text, add_special_tokens=False).ids
        assert pair.native.encode(text).tolist() == plain
        special = pair.full.encode(text, add_special_tokens=False).ids
        assert pair.native.encode(text, allow_special=True).tolist() == special


def test_every_code_point_has_its_class(pair):
    """A letter joins the "a" before it, a number the "1" behind it, a blank leaves both."""
    for start in range(0, len(CODE_POINTS), 20_000):
        codes = CODE_POINTS[start : start + 20_000]
        text = "".join(f"a{chr(code)}1 {chr(code)}!" for code in codes)
        if pair.plain.normalizer is not None:
            text = pair.plain.normalizer.normalize_str(text)
        pieces = [text[i:j] for _, (i, j) in pair.plain.pre_tokenizer.pre_tokenize_str(text)]
        assert pair.native.pieces(text) == pieces


def test_contractions_with_every_code_point(pair):
    codes = [code for code in CODE_POINTS if code < 0x20000 and unicodedata.category(chr(code))[0] == "L"]
    text = "".join(
        f"'{chr(code)} '{chr(code)}E 'l{chr(code)} " for code in codes if code < 0x3000 or code > 0xA000
    )
    if pair.plain.normalizer is not None:
        text = pair.plain.normalizer.normalize_str(text)
    assert pair.native.pieces(text) == [
        text[i:j] for _, (i, j) in pair.plain.pre_tokenizer.pre_tokenize_str(text)
    ]


def test_normal_form_of_every_code_point(qwen2):
    peer = qwen2.plain.normalizer.normalize_str
    for start in range(0, len(CODE_POINTS), 20_000):
        characters = map(chr, CODE_POINTS[start : start + 20_000])
        text = "".join(f"{c}|\u0345{c}|{c}\u0334|A{c}\u0301|\u1100{c}\u11a8|" for c in characters)
        assert qwen2.native.normalized(text) == peer(text)


@settings(deadline=None)
@given(
    text=st.text("aeoAq\u0300\u0301\u0307\u0323\u0327\u0334\u0345\u1100\u1161\u11a8\uac00é\u0344\u09c7\u09be")
)
def test_normal_form_of_heaps_of_marks(qwen2, text):
    assert qwen2.native.normalized(text) == qwen2.plain.normalizer.normalize_str(text)


@pytest.mark.parametrize("text", ["a" * 1_000_000, "ab" * 300_000, " " * 500_000, "e\u0301\u0323" * 200_000])
def test_long_words_are_quick(qwen2, text):
    began = time.thread_time()
    ids = qwen2.native.encode(text)
    assert time.thread_time() - began < 3
    assert ids.tolist() == qwen2.plain.encode(text, add_special_tokens=False).ids


@settings(deadline=None)
@given(text=TEXT, cuts=st.lists(st.integers(0, 60), max_size=5), drop=st.integers(0, 3))
def test_equal_to_the_python_side(text, cuts, drop):
    ours = Tokenizer.adopt(vocabularies.in_the_manner_of("gpt2", 300)) if not CACHE else CACHE[0]
    CACHE[:] = [ours]
    native = _native.Tokenizer(ours._definition)
    ids = ours.encode(text)
    assert native.encode(text).tolist() == ids
    assert native.specials == ours.specials
    assert native.vocab_size == ours.vocab_size
    ids = ids[drop:] + list(ours.specials.values()) + ids[:drop]  # broken characters as well
    for skip in (True, False):
        assert native.decode(ids, skip) == ours.decode(ids, skip)
    keep = ["<think>", "</think>", "no such token"]
    mine, theirs = _native.TextStream(native, keep=keep), TextStream(ours, keep=keep)
    bounds = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    for start, end in pairwise(bounds):
        assert mine.push(ids[start:end]) == theirs.push(ids[start:end])
    assert mine.finish() == theirs.finish()


CACHE: list[Tokenizer] = []


@given(data=st.binary(max_size=12))
def test_any_bytes_decode_as_in_python(data):
    native = _native.Tokenizer(vocabularies.in_the_manner_of("gpt2", 256)) if not BYTES else BYTES[0]
    BYTES[:] = [native]
    of_byte = {native.token_bytes(token): token for token in range(256)}
    ids = [of_byte[data[i : i + 1]] for i in range(len(data))]
    assert native.decode(ids) == data.decode("utf-8", errors="replace")


BYTES: list = []


def test_merges_as_strings_are_the_same(qwen2):
    spec = json.loads(qwen2.definition)
    assert isinstance(spec["model"]["merges"][0], list)
    spec["model"]["merges"] = [" ".join(pair) for pair in spec["model"]["merges"]]
    native = _native.Tokenizer(json.dumps(spec))
    text = "\n".join(vocabularies.corpus())
    assert native.encode(text).tolist() == qwen2.native.encode(text).tolist()


def test_bytes_without_a_token_are_left_out_as_in_the_reference(qwen2):
    spec = json.loads(qwen2.definition)
    removed = [
        token for token in ("Ċ", "ñ") if not any(token in "".join(m) for m in spec["model"]["merges"])
    ] + ["\u0104"]
    for token in removed:
        del spec["model"]["vocab"][token]
    native, peer = _native.Tokenizer(json.dumps(spec)), vocabularies.without_added(json.dumps(spec))
    for text in ("a\x04b", "th\x04e", "ñ\n\x04"):
        assert native.encode(text).tolist() == peer.encode(text, add_special_tokens=False).ids
    spec["model"]["unk_token"] = "<|im_end|>"
    with pytest.raises(ValueError, match=r"\[tokenizer\] text: expected bytes .* got the byte 4"):
        _native.Tokenizer(json.dumps(spec)).encode("a\x04b")
    spec["model"]["unk_token"] = "a"
    with pytest.raises(RuntimeError, match=r"unk_token: expected null"):
        _native.Tokenizer(json.dumps(spec))


def test_ids_that_name_nothing(qwen2):
    gap = qwen2.native.vocab_size
    assert not qwen2.native.has(gap)
    assert not qwen2.native.has(-1)
    assert qwen2.native.decode([gap, -1, 2**31 - 1]) == ""
    assert qwen2.native.special("<|none|>") is None


def test_text_that_is_no_unicode(qwen2):
    with pytest.raises((ValueError, TypeError, UnicodeError)):
        qwen2.native.encode("a\ud800")


HOSTILE = {
    "no object": (lambda s: [], r"tokenizer\.json: expected an object, got \[\]"),
    "model missing": (lambda s: s.pop("model"), r"model: expected an object, got nothing"),
    "other model": (
        lambda s: s["model"].update(type="Unigram"),
        r'model\.type: expected "BPE", got "Unigram"',
    ),
    "vocab a list": (lambda s: s["model"].update(vocab=[1]), r"model\.vocab: expected an object"),
    "merges an object": (lambda s: s["model"].update(merges={}), r"model\.merges: expected a list"),
    "negative id": (lambda s: s["model"]["vocab"].update(a=-1), r'vocab "a": expected a whole number'),
    "huge id": (lambda s: s["model"]["vocab"].update(a=2**31), r'vocab "a": expected a whole number'),
    "huge hole": (lambda s: s["model"]["vocab"].update(zzzz=2**20), r'vocab "zzzz": expected a whole number'),
    "fraction": (lambda s: s["model"]["vocab"].update(a=1.5), r'vocab "a": expected a whole number'),
    "word as id": (lambda s: s["model"]["vocab"].update(a="1"), r'vocab "a": expected a whole number'),
    "id twice": (lambda s: s["model"]["vocab"].update(zzzz=5), r"vocab: expected each id once, got 5 twice"),
    "id of an added token": (lambda s: s["model"]["vocab"].update(zzzz=900), r"each id once, got 900 twice"),
    "name with two ids": (
        lambda s: s["model"]["vocab"].update({"<|im_end|>": 1000}),
        r'"<\|im_end\|>": expected the id of the added token',
    ),
    "merge of unknown": (lambda s: s["model"]["merges"].append("qqqq zzzz"), r'merges\[\d+\]: .* got "qqqq"'),
    "merge to unknown": (lambda s: s["model"]["merges"].append(["!", "~"]), r'merges\[\d+\]: .* got "!~"'),
    "merge of one": (lambda s: s["model"]["merges"].append("a"), r"merges\[\d+\]: expected two tokens"),
    "merge of three": (lambda s: s["model"]["merges"].append("a b c"), r"merges\[\d+\]: expected two tokens"),
    "merge of numbers": (
        lambda s: s["model"]["merges"].append([1, 2]),
        r"merges\[\d+\]: expected two tokens",
    ),
    "merge of null": (lambda s: s["model"]["merges"].append(None), r"merges\[\d+\]: expected two tokens"),
    "added twice": (lambda s: s["added_tokens"].append(dict(s["added_tokens"][0])), r"each id once"),
    "added name twice": (
        lambda s: s["added_tokens"].append({**s["added_tokens"][0], "id": 9999}),
        r"each name once",
    ),
    "added without name": (lambda s: s["added_tokens"].append({"id": 5000}), r"\.content: expected a name"),
    "added huge id": (
        lambda s: s["added_tokens"].append({"id": 2**40, "content": "<x>"}),
        r"\.id: expected a whole",
    ),
    "added an object": (lambda s: s.update(added_tokens={}), r"added_tokens: expected a list"),
    "lstrip": (lambda s: s["added_tokens"][0].update(lstrip=True), r"\.lstrip: expected false, got true"),
    "single word": (
        lambda s: s["added_tokens"][0].update(single_word=True),
        r"\.single_word: expected false",
    ),
    "other normalizer": (
        lambda s: s.update(normalizer={"type": "Lowercase"}),
        r'normalizer\.type: expected "NFC"',
    ),
    "other pattern": (
        lambda s: s["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+"),
        r"pre_tokenizer\.pattern: expected the Regex of GPT-2, Qwen2 or Llama 3",
    ),
    "no pre-tokenizer": (
        lambda s: s.update(pre_tokenizer=None),
        r"pre_tokenizer: expected one that ends with",
    ),
    "prefix space": (
        lambda s: s["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        r"add_prefix_space: expected false",
    ),
    "other decoder": (lambda s: s.update(decoder={"type": "WordPiece"}), r"decoder: expected ByteLevel"),
    "dropout": (lambda s: s["model"].update(dropout=0.1), r"model\.dropout: expected null"),
    "byte fallback": (
        lambda s: s["model"].update(byte_fallback=True),
        r"model\.byte_fallback: expected false",
    ),
    "suffix": (lambda s: s["model"].update(end_of_word_suffix="</w>"), r"end_of_word_suffix: expected null"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_are_refused(qwen2, name):
    change, message = HOSTILE[name]
    spec = json.loads(qwen2.definition)
    result = change(spec)
    text = json.dumps([] if name == "no object" else spec) if result is not spec else json.dumps(result)
    with pytest.raises((ValueError, RuntimeError), match=message):
        _native.Tokenizer(text)


def test_a_token_written_twice_is_refused(qwen2):
    text = qwen2.definition.replace('"vocab":{', '"vocab":{"b":700,"b":701,', 1)
    with pytest.raises(ValueError, match="twice"):
        _native.Tokenizer(text)


def test_added_token_flags(qwen2):
    """A normalised name is looked for after normalisation, another before it."""
    before = AddedToken("\u212b!", special=False, normalized=False)
    after = AddedToken("\u00c5?", special=False, normalized=True)
    definition = vocabularies.in_the_manner_of("qwen2", specials=[before, after])
    native, peer = _native.Tokenizer(definition), tokenizers.Tokenizer.from_str(definition)
    for text in ("\u212b!\u00c5!A\u030a!", "\u212b?\u00c5?A\u030a?"):
        assert (
            native.encode(text, allow_special=True).tolist()
            == peer.encode(text, add_special_tokens=False).ids
        )


def test_folder_and_file(qwen2, tmp_path):
    (tmp_path / "tokenizer.json").write_text(qwen2.definition)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert _native.Tokenizer.load(str(path)).vocab_size == qwen2.native.vocab_size
    with pytest.raises(ValueError, match=r"\[tokenizer\] path: expected a tokenizer\.json, got .*none"):
        _native.Tokenizer.load(str(tmp_path / "none"))

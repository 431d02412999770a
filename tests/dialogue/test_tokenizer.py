# SPDX-License-Identifier: Apache-2.0
"""Text and ids: exact round trips, no way from text to a special token, the same training twice."""

import json
import pickle
import subprocess
import sys

import pytest
import tokenizers
from dialogue_corpus import CORPUS
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from earnest.dialogue import FAMILY_SPECIALS, TextStream, Tokenizer, split_reasoning
from earnest.errors import InvalidInput

TEXT = st.text(st.characters(codec="utf-8"), max_size=60)
ALL = st.lists(st.one_of(TEXT, st.sampled_from(FAMILY_SPECIALS)), max_size=8).map("".join)


@given(text=ALL)
def test_text_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.specials.values())


@given(text=ALL, cut=st.integers(1, 5))
def test_stream_gives_whole_characters_only(tokenizer, text, cut):
    stream, ids = TextStream(tokenizer), tokenizer.encode(text)
    pieces = [stream.push(ids[i : i + cut]) for i in range(0, len(ids), cut)]
    assert stream.finish() == ""
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_stream_ends_inside_a_character(tokenizer):
    ids = tokenizer.encode("é𐍈")  # neither is in the corpus as a whole: bytes or parts
    stream = TextStream(tokenizer)
    assert stream.push(ids[:-1]) == "é"
    assert stream.finish() == "\ufffd"
    assert tokenizer.decode(ids[:-1]).endswith("\ufffd")


@pytest.mark.parametrize("name", FAMILY_SPECIALS)
def test_special_tokens_come_by_name_only(tokenizer, name):
    special = tokenizer.special(name)
    assert special not in tokenizer.encode(f"a {name}{name} b")
    assert tokenizer.decode([special]) == ""
    assert tokenizer.decode([special], skip_special=False) == name
    assert special >= tokenizer.vocab_size - len(
        FAMILY_SPECIALS
    )  # text ids come first, as in the published files


def test_unknown_special_token(tokenizer):
    with pytest.raises(InvalidInput, match=r"\[Tokenizer\.special\] name: expected .*'<verdict_3>'"):
        tokenizer.special("<verdict_3>")


def test_stop_and_verdict_ids(tokenizer):
    assert tokenizer.stop_ids == tuple(map(tokenizer.special, ("<|endoftext|>", "<|im_end|>", "<|EOT|>")))
    assert tokenizer.verdict_ids() == tuple(tokenizer.special(f"<verdict_{v}>") for v in (-2, -1, 0, 1, 2))


def test_training_is_deterministic(tokenizer, tmp_path):
    script = (
        "import sys, json; from earnest.dialogue import Tokenizer; corpus = json.load(open(sys.argv[1]));"
    )
    (tmp_path / "corpus.json").write_text(json.dumps(CORPUS))
    script += "Tokenizer.train(corpus, 420).save(sys.argv[2])"
    subprocess.run([sys.executable, "-c", script, tmp_path / "corpus.json", tmp_path / "other"], check=True)
    tokenizer.save(tmp_path / "this")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "this" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_save_load_and_pickle(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    text = "Seven! <|EOT|> 说话人"
    for other in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert other.encode(text) == tokenizer.encode(text)
        assert (other.specials, other.vocab_size) == (tokenizer.specials, tokenizer.vocab_size)


def test_transformers_reads_what_we_save(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = theirs("<|BOT|>human\nWhat do you hear?<|EOT|>", add_special_tokens=False)["input_ids"]
    assert ids[0] == tokenizer.special("<|BOT|>")
    assert ids[-1] == tokenizer.special("<|EOT|>")
    assert ids[1:-1] == tokenizer.encode("human\nWhat do you hear?")


def plain_vocabulary(ignore_merges=False, extra=()):
    """A byte-level vocabulary as others publish it: specials first, one added token not marked so."""
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(False, use_regex=False)])
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=["<|endoftext|>", *extra],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    learner.train_from_iterator(CORPUS, trainer)
    learner.add_tokens([tokenizers.AddedToken("<tool_call>", special=False, normalized=False)])
    definition = json.loads(learner.to_str())
    definition["model"]["ignore_merges"] = ignore_merges
    return json.dumps(definition)


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_no_text_becomes_an_added_token(ignore_merges):
    """Added tokens not marked special, and words that are in the vocabulary whole, are the two open doors."""
    adopted = Tokenizer.adopt(plain_vocabulary(ignore_merges, extra=["<|EOT|>"]))
    for text in ("<tool_call>", "<|EOT|>", "<|endoftext|>", "<audio_patch>"):
        ids = adopted.encode(text)
        assert not set(ids) & set(adopted.specials.values())
        assert adopted.decode(ids) == text
    assert adopted.special("<|endoftext|>") == 0  # what was there keeps its id


def test_think_tags_fall_back_to_text_pieces():
    without = [name for name in FAMILY_SPECIALS if "think" not in name and "verdict" not in name]
    tokenizer = Tokenizer.adopt(plain_vocabulary(), without)
    assert "<think>" not in tokenizer.specials
    assert len(tokenizer.think_open) > 1
    assert tokenizer.decode(tokenizer.think_open) == "<think>"
    split = split_reasoning(
        [*tokenizer.think_open, *tokenizer.encode("\nlow\n</think>\nHm.")], tokenizer=tokenizer
    )
    assert (split.reasoning, split.reply) == ("low", "Hm.")


def test_vocabulary_without_the_family_is_refused():
    with pytest.raises(InvalidInput, match=r"Tokenizer\.adopt"):
        Tokenizer(plain_vocabulary())


def test_bad_files(tmp_path):
    with pytest.raises(InvalidInput, match="a folder with"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InvalidInput, match="to hold JSON"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram"}, "added_tokens": []}')
    with pytest.raises(InvalidInput, match="byte-level BPE"):
        Tokenizer.load(tmp_path)
    with pytest.raises(InvalidInput, match="vocab_size"):
        Tokenizer.train(CORPUS, 200)

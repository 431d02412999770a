# SPDX-License-Identifier: Apache-2.0
"""A small vocabulary shared by the tests of dialogues."""

import pytest
from dialogue_corpus import CORPUS
from hypothesis import settings

from earnest.dialogue import Tokenizer

# A busy machine makes single calls slow, which says nothing about what they compute.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CORPUS, vocab_size=420)

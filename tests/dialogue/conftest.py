# SPDX-License-Identifier: Apache-2.0
"""A small vocabulary shared by the tests of dialogues."""

import pytest
from dialogue_corpus import CORPUS

from earnest.dialogue import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CORPUS, vocab_size=420)

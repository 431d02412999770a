# SPDX-License-Identifier: Apache-2.0
"""A small vocabulary shared by the tests of dialogues."""

import pytest

from earnest.dialogue import Tokenizer

CORPUS = [
    "system human assistant What do you hear? I hear a low, slow voice saying three plus four.",
    "The speaker sounds tired.\n\nSeven! You sound a little quiet today; shall I speak up?",
    "说话人的语气和音色如何反映他的性格和情绪特征？ Ça va très bien, Ünïcödé 🙂 🙂",
] * 4


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CORPUS, vocab_size=420)

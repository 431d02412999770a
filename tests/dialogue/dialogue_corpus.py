# SPDX-License-Identifier: Apache-2.0
"""A few sentences to learn a small vocabulary from, some in other scripts."""

CORPUS = [
    "system human assistant What do you hear? I hear a low, slow voice saying three plus four.",
    "The speaker sounds tired.\n\nSeven! You sound a little quiet today; shall I speak up?",
    "说话人的语气和音色如何反映他的性格和情绪特征 Ça va très bien, Ünïcödé 🙂 🙂",
    "So it ends.\n\n",  # two newlines become one token: a seam between them is then seen
] * 4

# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of real weights, made once for all tests that ask for it."""

import json

import pytest
import torch
import vocabularies

from earnest.dialogue.tokenizer import FAMILY_SPECIALS
from earnest.model.join import join


@pytest.fixture(scope="session")
def joined(shared_data, tmp_path_factory):
    """Whisper base and SmolLM2 joined in bfloat16, in a folder in the published format. SmolLM2's vocabulary
    with the family's special tokens behind it: the row of each is the mean of all others."""
    pytest.importorskip("gguf")
    models = shared_data / "models"
    language = models / "smollm2-135m-instruct"
    definition = json.loads(vocabularies.of_gguf(next(language.glob("*.gguf"))))
    vocabulary, added = definition["model"]["vocab"], definition["added_tokens"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    missing = [name for name in FAMILY_SPECIALS if name not in vocabulary]
    for index, name in enumerate(missing, start=len(vocabulary)):
        added.append({"id": index, "content": name, "special": True, **flags})
    model = join(
        models / "whisper-base-encoder",
        language,
        extra_tokens=len(missing),
        dtype=torch.bfloat16,
        generator=torch.Generator().manual_seed(0),
    )
    path = tmp_path_factory.mktemp("joined")
    model.save_pretrained(path)
    (path / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    return path

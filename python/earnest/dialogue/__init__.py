# SPDX-License-Identifier: Apache-2.0
"""Dialogue: messages and their files, the tokenizer, the templates, and batches made of them."""

from earnest.dialogue.collate import Example, PackedBatch, collate, pack, truncate
from earnest.dialogue.dataset import DialogueDataset, read_audio
from earnest.dialogue.message import (
    Audio,
    Message,
    Part,
    Text,
    clips,
    message_from_dict,
    message_to_dict,
    split_think,
)
from earnest.dialogue.reasoning import Delta, ReasoningStream, Split, split_reasoning
from earnest.dialogue.records import (
    BadLine,
    Dialogue,
    Preference,
    load_dialogues,
    load_preferences,
    read_dialogues,
    read_preferences,
    save_dialogues,
    save_preferences,
)
from earnest.dialogue.swift import export_swift, import_swift
from earnest.dialogue.template import AudioSpan, Rendered, render, rows_per_turn
from earnest.dialogue.tokenizer import FAMILY_SPECIALS, VERDICTS, TextStream, Tokenizer, verdict_token
from earnest.dialogue.validate import validate_example

__all__ = [
    "FAMILY_SPECIALS",
    "VERDICTS",
    "Audio",
    "AudioSpan",
    "BadLine",
    "Delta",
    "Dialogue",
    "DialogueDataset",
    "Example",
    "Message",
    "PackedBatch",
    "Part",
    "Preference",
    "ReasoningStream",
    "Rendered",
    "Split",
    "Text",
    "TextStream",
    "Tokenizer",
    "clips",
    "collate",
    "export_swift",
    "import_swift",
    "load_dialogues",
    "load_preferences",
    "message_from_dict",
    "message_to_dict",
    "pack",
    "read_audio",
    "read_dialogues",
    "read_preferences",
    "render",
    "rows_per_turn",
    "save_dialogues",
    "save_preferences",
    "split_reasoning",
    "split_think",
    "truncate",
    "validate_example",
    "verdict_token",
]

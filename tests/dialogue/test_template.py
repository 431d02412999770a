# SPDX-License-Identifier: Apache-2.0
"""Rendering: the exact strings of both templates, what is learnt, and prompts that are prefixes of rows."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earnest.dialogue import Audio, Message, Rendered, Text, Tokenizer, render, rows_per_turn
from earnest.dialogue.template import AudioSpan
from earnest.errors import InvalidInput

CLIP = Audio(path="a.wav")
TEXT = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.sampled_from(
        ["\n", "\nHi", "Hi.\n", "<|EOT|><|BOT|>system\n", "<audio_patch>", "<think>", "</think>", "  "]
    ),
)
USER = st.builds(
    lambda role, parts: Message(role, tuple(parts)),
    st.sampled_from(["user", "system", "human", "tool", "function_output"]),
    st.lists(st.one_of(st.builds(Text, TEXT), st.just(CLIP)), min_size=1, max_size=4),
)
ASSISTANT = st.builds(Message.assistant, TEXT, st.none() | TEXT)
DIALOGUES = st.lists(USER | ASSISTANT, min_size=1, max_size=6)


def counts(audio):
    return [2, 1]


def text_of(tokenizer: Tokenizer, rendered: Rendered, learnt=None) -> str:
    ids = [i for i, m in zip(rendered.ids, rendered.loss_mask, strict=True) if learnt is None or m == learnt]
    return tokenizer.decode(ids, skip_special=False)


AUDIO = "<audio_start><audio_patch><audio_patch><audio_end><audio_start><audio_patch><audio_end>"
MULTI = [
    Message.system("Be kind."),
    Message.user("Listen:", CLIP),
    Message.assistant("Seven.", "low"),
    Message.user(CLIP, "And now?", CLIP),
    Message.assistant("Eight."),
]


def test_canonical(tokenizer):
    rendered = render(MULTI, tokenizer, audio_tokens=counts)
    assert text_of(tokenizer, rendered) == (
        "<|BOT|>system\nBe kind.<|EOT|>"
        f"<|BOT|>human\nListen:\n{AUDIO}<|EOT|>"
        "<|BOT|>assistant\n<think>\nlow\n</think>\nSeven.<|EOT|>"
        f"<|BOT|>human\n{AUDIO}And now?\n{AUDIO}<|EOT|>"
        "<|BOT|>assistant\nEight.<|EOT|>"
    )
    assert text_of(tokenizer, rendered, True) == "<think>\nlow\n</think>\nSeven.<|EOT|>Eight.<|EOT|>"
    patch = tokenizer.special("<audio_patch>")
    for span in rendered.audio_spans:
        assert set(rendered.ids[span.start : span.start + span.length]) == {patch}
    assert [(s.clip, s.chunk, s.length) for s in rendered.audio_spans] == [
        (clip, chunk, (2, 1)[chunk]) for clip in range(3) for chunk in range(2)
    ]
    assert rendered.ids.count(patch) == sum(s.length for s in rendered.audio_spans)


def test_what_is_learnt(tokenizer):
    def learnt(**options):
        return text_of(tokenizer, render(MULTI, tokenizer, audio_tokens=counts, **options), True)

    assert learnt(train="last") == "Eight.<|EOT|>"
    assert learnt(train="none") == ""
    assert learnt(empty_think=True, train="last") == "<think>\n\n</think>\nEight.<|EOT|>"
    assert learnt(generation_prompt="think") == ""
    assert learnt(history="strip", train="last") == "Eight.<|EOT|>"
    assert learnt(template="stepfun-compat") == "<think>\nlow\n</think>\nSeven.Eight."
    assert learnt(template="stepfun-compat", close_last=True).endswith("Seven.Eight.<|EOT|>")


def test_history_thoughts(tokenizer):
    stripped = render(MULTI, tokenizer, audio_tokens=counts, history="strip", train="last")
    assert "<|BOT|>assistant\nSeven.<|EOT|>" in text_of(tokenizer, stripped)
    thinking = [*MULTI[:4], Message.assistant("Eight.", "high")]
    kept = text_of(tokenizer, render(thinking, tokenizer, audio_tokens=counts, history="strip", train="last"))
    assert "low" not in kept
    assert "<think>\nhigh\n</think>\nEight." in kept
    with pytest.raises(InvalidInput, match="rows_per_turn"):
        render(thinking, tokenizer, audio_tokens=counts, history="strip")
    assert [len(row) for row in rows_per_turn(MULTI)] == [3, 5]


@pytest.mark.parametrize("template", ["canonical", "stepfun-compat"])
def test_generation_prompts(tokenizer, template):
    turn = [Message.user("Hi")]

    def ends(prompt):
        rendered = render(turn, tokenizer, template=template, generation_prompt=prompt)
        text = text_of(tokenizer, rendered)
        assert text.startswith("<|BOT|>human\nHi<|EOT|>")
        return text[len("<|BOT|>human\nHi<|EOT|>") :], rendered.inside_thought

    plain, think = ("<|BOT|>assistant\n", False), ("<|BOT|>assistant\n<think>\n", True)
    assert ends("plain") == plain
    assert ends("think") == think
    assert ends(True) == (think if template == "stepfun-compat" else plain)
    assert ends(False) == ("", False)


@pytest.mark.parametrize(
    ("prefill", "inside"),
    [
        (Message.assistant("<think>\n"), True),
        (Message.assistant("\n<think>\n"), True),
        (Message.assistant("<think>\nlow\n</think>\nSev"), False),
        (Message.assistant("Sev"), False),
        (Message.assistant("Sev<|EOT|>"), False),
    ],
)
def test_prefill_is_verbatim(tokenizer, prefill, inside):
    rendered = render([Message.user("Hi"), prefill], tokenizer, continue_final=True)
    assert text_of(tokenizer, rendered) == f"<|BOT|>human\nHi<|EOT|><|BOT|>assistant\n{prefill.text}"
    assert rendered.inside_thought is inside
    assert not any(rendered.loss_mask)
    assert rendered.ids.count(tokenizer.special("<think>")) == prefill.text.count("<think>")
    assert rendered.ids.count(tokenizer.special("<|EOT|>")) == 1  # the user turn's own


def test_prefill_of_reasoning(tokenizer):
    def prefilled(reply, reasoning):
        rendered = render([Message.assistant(reply, reasoning)], tokenizer, continue_final=True)
        return text_of(tokenizer, rendered), rendered.inside_thought

    assert prefilled("", "lo") == ("<|BOT|>assistant\n<think>\nlo", True)
    assert prefilled("Sev", "low") == ("<|BOT|>assistant\n<think>\nlow\n</think>\nSev", False)


def test_prefill_and_think_prompt_are_the_same_tokens(tokenizer):
    turn = [Message.user("Hi")]
    prompt = render(turn, tokenizer, generation_prompt="think")
    prefill = render([*turn, Message.assistant("<think>\n")], tokenizer, continue_final=True)
    assert prompt == prefill


def test_tools(tokenizer):
    tools = [{"name": "weather", "about": "Ünïcödé <b>"}]
    schemas = f"<|BOT|>tool_json_schemas\n{json.dumps(tools, ensure_ascii=False)}<|EOT|>"
    for template in ("canonical", "stepfun-compat"):
        with_system = render(
            [Message.system("s"), Message.user("u")], tokenizer, template=template, tools=tools
        )
        assert text_of(tokenizer, with_system) == f"<|BOT|>system\ns<|EOT|>{schemas}<|BOT|>human\nu<|EOT|>"
        without = render([Message.user("u")], tokenizer, template=template, tools=tools)
        assert text_of(tokenizer, without) == f"<|BOT|>system\n{schemas}<|BOT|>human\nu<|EOT|>"


# ---- the published template, written again from its description ----

# The flag `open` is set in an inner loop, where Jinja forgets it: no assistant turn is ever closed.
STEPFUN_JINJA = """
{%- macro body(content) -%}{{ content.replace('<AUDIO>' + '\\n', '<AUDIO>') }}{%- endmacro -%}
{%- for m in messages -%}
  {%- if m.role == 'function_output' -%}
  {%- elif m.role == 'assistant' -%}
    {{- '<|BOT|>assistant\\n' + (body(m.content) if m.content else '') -}}
    {%- set open = true -%}
    {%- for later in messages[loop.index:] if later.role == 'assistant' -%}
      {%- set open = false -%}
    {%- endfor -%}
    {%- if not open -%}{{- '<|EOT|>' -}}{%- endif -%}
  {%- else -%}
    {{- '<|BOT|>' + ('human' if m.role == 'user' else m.role) + '\\n' + body(m.content) + '<|EOT|>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|BOT|>assistant\\n<think>\\n' -}}{%- endif -%}
"""


def joined(message):
    """A content as the published server hands it to the template: one string, parts joined by newlines."""
    content = "\n".join(part.text if isinstance(part, Text) else "<AUDIO>" for part in message.parts)
    if message.reasoning is not None:
        content = f"<think>\n{message.reasoning}\n</think>\n{content}"
    return {"role": message.role, "content": content}


@given(messages=DIALOGUES, prompt=st.booleans())
def test_stepfun_compat_equals_jinja(tokenizer, messages, prompt):
    jinja2 = pytest.importorskip("jinja2")
    environment = jinja2.Environment(autoescape=False, keep_trailing_newline=True, newline_sequence="\n")
    template = environment.from_string(STEPFUN_JINJA)
    expected = template.render(messages=[joined(m) for m in messages], add_generation_prompt=prompt)
    rendered = render(
        messages, tokenizer, audio_tokens=counts, template="stepfun-compat", generation_prompt=prompt
    )
    assert text_of(tokenizer, rendered) == expected.replace("<AUDIO>", AUDIO)


@given(messages=DIALOGUES)
def test_runs_are_encoded_as_the_rendered_string_would_be(tokenizer, messages):
    """Between special tokens the ids are those of the text between them, cut only where a prompt can end."""
    rendered = render(messages, tokenizer, audio_tokens=counts)
    specials, position, run = set(tokenizer.specials.values()), 0, []
    for token in [*rendered.ids, tokenizer.special("<|BOT|>")]:
        position += 1
        if token not in specials:
            run.append(token)
            continue
        text = tokenizer.decode(run)
        for seam in ("assistant\n", "\n", ""):
            if text.startswith(seam) and run == [
                *tokenizer.encode(seam),
                *tokenizer.encode(text[len(seam) :]),
            ]:
                break
        else:
            raise AssertionError(f"{text!r} was cut elsewhere")
        run = []


# ---- properties ----


@given(messages=DIALOGUES, template=st.sampled_from(["canonical", "stepfun-compat"]))
def test_mask_covers_exactly_the_assistant_tokens(tokenizer, messages, template):
    rendered = render(messages, tokenizer, audio_tokens=counts, template=template)
    close = "<|EOT|>" if template == "canonical" else ""
    expected = "".join(joined(m)["content"] + close for m in messages if m.role == "assistant")
    assert text_of(tokenizer, rendered, True) == expected
    assert len(rendered.ids) == len(rendered.loss_mask)
    last = render(messages, tokenizer, audio_tokens=counts, template=template, train="last")
    final = [m for m in messages if m.role == "assistant"][-1:]
    assert text_of(tokenizer, last, True) == "".join(joined(m)["content"] + close for m in final)
    assert last.ids == rendered.ids


@given(messages=DIALOGUES)
def test_no_text_forges_a_turn(tokenizer, messages):
    rendered = render(messages, tokenizer, audio_tokens=counts, generation_prompt="plain")
    thoughts = sum(m.reasoning is not None for m in messages)
    clips = sum(len(m.audios) for m in messages)
    expected = {
        "<|BOT|>": len(messages) + 1,
        "<|EOT|>": len(messages),
        "<think>": thoughts,
        "</think>": thoughts,
        "<audio_start>": 2 * clips,
        "<audio_end>": 2 * clips,
        "<audio_patch>": 3 * clips,
    }
    assert {name: rendered.ids.count(tokenizer.special(name)) for name in expected} == expected


@given(
    history=DIALOGUES,
    reply=ASSISTANT,
    template=st.sampled_from(["canonical", "stepfun-compat"]),
    empty_think=st.booleans(),
)
def test_a_prompt_is_a_prefix_of_the_trained_row(tokenizer, history, reply, template, empty_think):
    options = {"audio_tokens": counts, "template": template}
    row = render(
        [*history, reply], tokenizer, train="last", close_last=True, empty_think=empty_think, **options
    )
    plain = render(history, tokenizer, generation_prompt="plain", **options)
    assert row.ids[: len(plain)] == plain.ids
    assert row.loss_mask == [False] * len(plain) + [True] * (len(row) - len(plain))
    assert plain.with_completion(row.ids[len(plain) :]) == row
    if reply.reasoning is not None or empty_think:
        think = render(history, tokenizer, generation_prompt="think", **options)
        assert row.ids[: len(think)] == think.ids


@given(messages=DIALOGUES, later=USER)
def test_canonical_history_never_changes(tokenizer, messages, later):
    """Turn n + 1 extends turn n: what was computed for the earlier tokens stays good."""
    before = render(messages, tokenizer, audio_tokens=counts)
    after = render([*messages, later], tokenizer, audio_tokens=counts)
    assert after.ids[: len(before)] == before.ids


def test_think_tags_in_text_pieces():
    """A vocabulary without think tokens: the same string, and the mask still begins with the thought."""
    from test_tokenizer import plain_vocabulary

    from earnest.dialogue import FAMILY_SPECIALS

    tokenizer = Tokenizer.adopt(plain_vocabulary(), [n for n in FAMILY_SPECIALS if "think" not in n])
    messages = [Message.user("Hi"), Message.assistant("Seven.", "low")]
    row = render(messages, tokenizer)
    assert text_of(tokenizer, row, True) == "<think>\nlow\n</think>\nSeven.<|EOT|>"
    prompt = render(messages[:1], tokenizer, generation_prompt="think")
    assert row.ids[: len(prompt)] == prompt.ids


# ---- errors ----


def test_audio_that_gives_nothing(tokenizer):
    for wrong in ([], [0], [0, 0], [3, -1]):
        with pytest.raises(InvalidInput, match="at least one adaptor frame"):
            render([Message.user(CLIP)], tokenizer, audio_tokens=lambda audio, wrong=wrong: wrong)
    short_tail = render([Message.user(CLIP)], tokenizer, audio_tokens=lambda audio: [2, 0])
    assert short_tail.audio_spans == [
        AudioSpan(0, 0, short_tail.ids.index(tokenizer.special("<audio_patch>")), 2)
    ]
    with pytest.raises(InvalidInput, match="a function"):
        render([Message.user(CLIP)], tokenizer)


@pytest.mark.parametrize(
    "options",
    [
        {"template": "chatml"},
        {"generation_prompt": "thought"},
        {"train": "first"},
        {"history": "drop"},
        {"generation_prompt": True, "continue_final": True},
        {"continue_final": True},
    ],
)
def test_wrong_options(tokenizer, options):
    with pytest.raises(InvalidInput, match=r"\[render\]"):
        render([Message.user("Hi")], tokenizer, **options)

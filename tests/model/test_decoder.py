# SPDX-License-Identifier: Apache-2.0
"""The decoder against transformers' Qwen2ForCausalLM, with SmolLM2's weights."""

import json

import pytest
import torch
from safetensors.torch import save_file

from earnest.errors import InvalidInput
from earnest.model import TextConfig
from earnest.model.join import assemble, join, read_gguf, read_whisper
from earnest.model.packed import cu_seqlens_of, positions_of
from model_cases import Batch, packed, toy_model
from tolerances import MODEL

GGUF = "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"
PLACES = ["France", "Italy", "Spain", "Japan", "Germany", "Russia", "China", "Egypt", "India", "Greece"]
STARTS = ["The capital of", "People who live in", "In the north of", "The history of", "My friend from"]


@pytest.fixture(scope="module")
def smollm2(shared_data):
    pytest.importorskip("gguf")
    text, weights = read_gguf(shared_data / GGUF)
    assert text.tie_word_embeddings
    assert (text.rms_norm_eps, text.rope_theta, text.eos_token_id) == (1e-5, 100_000.0, 2)
    return text, weights


@pytest.fixture(scope="module")
def ours(shared_data, smollm2):
    """SmolLM2 joined to a real encoder, as `small` is."""
    return assemble(read_whisper(shared_data / "models" / "whisper-tiny.en-encoder"), smollm2)


@pytest.fixture(scope="module")
def theirs(smollm2):
    transformers = pytest.importorskip("transformers")
    text, weights = smollm2
    model = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_hidden_layers=text.num_hidden_layers,
            num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            max_position_embeddings=text.max_position_embeddings,
            rms_norm_eps=text.rms_norm_eps,
            rope_theta=text.rope_theta,
            rope_parameters={"rope_type": "default", "rope_theta": text.rope_theta},
            tie_word_embeddings=True,
        )
    ).eval()
    state = model.state_dict()
    full = {name: weights.get(name, torch.zeros_like(value)) for name, value in state.items()}
    full["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(full)
    return model


@pytest.fixture(scope="module")
def vocabulary(shared_data):
    import gguf

    return gguf.GGUFReader(str(shared_data / GGUF)).fields["tokenizer.ggml.tokens"].contents()


@pytest.fixture(scope="module")
def prompts(vocabulary):
    """Fifty beginnings of sentences, as token ids (every word is one token)."""
    words = {token: i for i, token in enumerate(vocabulary)}
    texts = [f"{start} {place} is" for start in STARTS for place in PLACES]
    return [[words[word] for word in text.replace(" ", " \u0120").split(" ")] for text in texts]


def batch_of(sequences):
    lengths = [len(s) for s in sequences]
    ids = torch.tensor([i for s in sequences for i in s])
    return Batch(
        ids,
        torch.from_numpy(positions_of(lengths)),
        cu_seqlens_of(lengths),
        torch.zeros(0, dtype=torch.int64),
    )


def test_logits_equal_transformers(ours, theirs, prompts):
    some = [prompts[0], prompts[1] + prompts[2], prompts[49][:1]]
    with torch.no_grad():
        got = ours.logits(ours(batch_of(some))).split([len(s) for s in some])
        for mine, ids in zip(got, some, strict=True):
            want = theirs(torch.tensor([ids])).logits[0]
            torch.testing.assert_close(mine, want, rtol=0, atol=MODEL["qwen2"] * float(want.abs().max()))


def test_greedy_tokens_equal_transformers_for_fifty_prompts(ours, theirs, prompts, vocabulary):
    """By induction: whatever we generated, transformers' best next token at every position is ours."""
    assert len(prompts) == 50
    made = ours.generate_ids(batch_of(prompts), max_new_tokens=5, temperature=0.0, stop_ids=[2])
    whole = [s + ids for s, ids in zip(prompts, made.ids, strict=True)]
    width = max(map(len, whole))
    padded = torch.tensor([s + [2] * (width - len(s)) for s in whole])
    mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in whole])
    with torch.no_grad():
        hidden = theirs.model(padded, attention_mask=mask).last_hidden_state
        for row, (prompt, ids) in enumerate(zip(prompts, made.ids, strict=True)):
            at = slice(len(prompt) - 1, len(prompt) + len(ids) - 1)
            logits = theirs.lm_head(hidden[row, at])
            assert logits.argmax(-1).tolist() == ids, prompt
            logp = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
            torch.testing.assert_close(made.logp[row], logp, rtol=0, atol=MODEL["logp"])
    assert vocabulary[made.ids[0][0]] == "\u0120Paris"


def test_the_halves_of_small_arrive_unchanged(ours, smollm2, shared_data):
    _, weights = smollm2
    _, hearing = read_whisper(shared_data / "models" / "whisper-tiny.en-encoder")
    state = ours.state_dict()
    for name, value in state.items():
        if name.startswith("encoder."):
            assert torch.equal(value, hearing[name].float()), name
        elif name in weights:
            assert torch.equal(value, weights[name]), name
        else:
            assert name.startswith("adapter.") or name == "lm_head.weight" or not value.any(), name
    assert torch.equal(state["lm_head.weight"], weights["model.embed_tokens.weight"])
    with torch.no_grad():
        heard = ours.embed_audio([torch.randn(80, 300)])
    assert heard.shape == (37, 576)
    assert (
        0.3 < float(heard.pow(2).mean().sqrt() / state["model.embed_tokens.weight"].pow(2).mean().sqrt()) < 3
    )


def llama_folder(path, *, layers=2, vocab=11):
    """A tiny Llama checkpoint as the hub stores them: no biases, tied."""
    generator = torch.Generator().manual_seed(4)
    shapes = {"model.embed_tokens.weight": (vocab, 16), "model.norm.weight": (16,)}
    for i in range(layers):
        at = f"model.layers.{i}."
        for name, shape in (("q", (16, 16)), ("k", (8, 16)), ("v", (8, 16)), ("o", (16, 16))):
            shapes[f"{at}self_attn.{name}_proj.weight"] = shape
        shapes[at + "mlp.gate_proj.weight"] = shapes[at + "mlp.up_proj.weight"] = (24, 16)
        shapes[at + "mlp.down_proj.weight"] = (16, 24)
        shapes[at + "input_layernorm.weight"] = shapes[at + "post_attention_layernorm.weight"] = (16,)
    path.mkdir()
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(state, path / "model.safetensors")
    config = {"model_type": "llama", "vocab_size": vocab, "hidden_size": 16, "intermediate_size": 24}
    config |= {"num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 1}
    config |= {"tie_word_embeddings": True, "attention_bias": False, "rope_theta": 10000.0}
    (path / "config.json").write_text(json.dumps(config))
    return state


def test_join_takes_a_llama_folder_and_adds_tokens(tmp_path, shared_data):
    whisper = shared_data / "models" / "whisper-tiny.en-encoder"
    state = llama_folder(tmp_path / "llm")
    model = join(whisper, tmp_path / "llm", extra_tokens=3)
    rows = model.lm_head.weight.detach()
    assert rows.shape == (14, 16)
    assert torch.equal(rows[:11], state["model.embed_tokens.weight"])
    torch.testing.assert_close(rows[11:], rows[:11].mean(0).expand(3, 16))
    assert model.logits(model(packed(model, [(5, [40])]))).shape == (10, 14)
    with pytest.raises(InvalidInput, match=r"config\.json"):
        join(whisper, tmp_path)
    state.pop("model.layers.1.mlp.up_proj.weight")
    save_file(state, tmp_path / "llm" / "model.safetensors")
    with pytest.raises(InvalidInput, match=r"model.layers.1.mlp.up_proj.weight: expected a tensor, got none"):
        join(whisper, tmp_path / "llm")
    (tmp_path / "not.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(InvalidInput, match="GGUF"):
        join(whisper, tmp_path / "not.gguf")


def test_gradients_reach_every_weight_and_flow_through_audio():
    model = toy_model()
    batch = packed(model, [(6, [40]), (9, []), (4, [21, 33])])
    logits = model.logits(model(batch))
    torch.nn.functional.cross_entropy(logits[:-1], batch.input_ids[1:]).backward()
    without = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert without == []


def test_a_shared_beginning_computed_once_equals_computing_it_for_each():
    """One prompt of 7 tokens, continued by 3 and by 5: the second continuation reads the prompt's rows."""
    model = toy_model()
    ids = torch.randint(0, 97, (15,), generator=torch.Generator().manual_seed(1))
    prompt, first, second = ids.split([7, 3, 5])
    apart = batch_of([[*prompt.tolist(), *first.tolist()], [*prompt.tolist(), *second.tolist()]])
    shared = Batch(
        ids,
        torch.cat([torch.arange(10), torch.arange(7, 12)]),
        torch.tensor([0, 10, 15], dtype=torch.int32),
        torch.zeros(0, dtype=torch.int64),
    )
    shared.key_rows = torch.cat([torch.arange(10), torch.arange(7), torch.arange(10, 15)])
    shared.cu_seqlens_k = torch.tensor([0, 10, 22], dtype=torch.int32)
    with torch.no_grad():
        want = model(apart)[torch.tensor([*range(10), *range(17, 22)])]
        assert torch.equal(model(shared), want)
    # Only the sequence that continues another one is continued.
    made = model.generate_ids(shared, max_new_tokens=4, temperature=0.0)
    alone = model.generate_ids(
        batch_of([[*prompt.tolist(), *second.tolist()]]), max_new_tokens=4, temperature=0.0
    )
    assert made.ids == alone.ids
    assert all(torch.equal(a, b) for a, b in zip(made.logp, alone.logp, strict=True))
    with pytest.raises(InvalidInput, match="share rows"):
        model.generate_ids(shared, max_new_tokens=2, forced_prefix=[1])


def test_checkpointing_activations_changes_nothing():
    grads = []
    for checkpointing in (False, True):
        model = toy_model()
        model.encoder.gradient_checkpointing = model.model.gradient_checkpointing = checkpointing
        batch = packed(model, [(6, [40]), (9, [])])
        model(batch).square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_what_does_not_fit_is_refused():
    model = toy_model(max_position_embeddings=16)
    batch = packed(model, [(6, [40])])
    batch.audio_positions = batch.audio_positions[:-1]
    with pytest.raises(InvalidInput, match="one per adaptor frame"):
        model(batch)
    batch = packed(model, [(6, [])])
    batch.input_ids[3] = 97
    with pytest.raises(InvalidInput, match="input_ids"):
        model(batch)
    with pytest.raises(InvalidInput, match="position_ids"):
        model(packed(model, [(17, [])]))
    with pytest.raises(InvalidInput, match="multiple of 8"):
        TextConfig(10, 30, 8, 1, 3, 1)


def test_products_in_bfloat16_leave_the_rest_in_float32():
    """As in supervised steps on processors that multiply bfloat16: see Run.autocast."""
    model = toy_model()
    batch = packed(model, [(6, [40]), (9, [])])
    want = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(batch)
        logits = model.logits(got)
    assert got.dtype == torch.float32
    assert not torch.equal(got, want)
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)
    assert torch.equal(logits, model.logits(got))  # the output matrix is never rounded
    got.square().sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}

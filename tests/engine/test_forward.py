# SPDX-License-Identifier: Apache-2.0
"""The engine's forward passes: the bits of the Python model, however the work is cut into calls."""

import json

import pytest
import torch
from engine_cases import DTYPES, Beside, sequences

from earnest import _native
from earnest.features import LogMel
from earnest.model import AudioLM
from model_cases import packed, toy_model

FRAMES = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 61, 102, 250]
PROMPTS = [(6, [40]), (9, []), (4, [21, 33]), (30, []), (3, [9]), (2, [250]), (12, [70]), (5, [])] * 2


@pytest.fixture(params=DTYPES)
def dtype(request):
    return DTYPES[request.param]


@pytest.mark.parametrize("overrides", [{}, {"audio_len": "vllm"}, {"avg_pool": False}], ids=str)
def test_hearing_is_the_python_models_bit_for_bit(dtype, overrides):
    model = toy_model(**overrides).to(dtype)
    engine = Beside(model)
    for frames in FRAMES:
        mel = torch.randn(20, frames)
        with torch.no_grad():
            want = model.embed_audio([mel])
        assert torch.equal(engine.hear(mel), want)


def test_samples_are_heard_as_their_features_are(dtype):
    model = toy_model().to(dtype)
    engine, log_mel = Beside(model), LogMel(20, padding="step_audio")
    for samples in (1, 160, 500, 9_600):
        pcm = torch.randn(samples, generator=torch.Generator().manual_seed(samples))
        mel = log_mel(pcm)
        got = engine.hear(mel).fill_(7)
        engine.native.hear_samples(pcm, got)
        assert torch.equal(got, engine.hear(mel))
    with pytest.raises(ValueError, match=r"\[logmel\] pcm: expected finite samples .* got nan at sample 2"):
        engine.native.hear_samples(torch.where(torch.arange(9_600) == 2, torch.nan, pcm), got)
    with pytest.raises(ValueError, match="out"):
        engine.native.hear_samples(pcm, got[1:])


def test_hidden_states_logits_and_logprobs_are_the_python_models_bit_for_bit(dtype):
    model = toy_model().to(dtype)
    engine, batch = Beside(model), packed(model, PROMPTS)
    pool = engine.native.pool(4096)
    parts = sequences(model, batch)
    segments = [(pool.allocate(len(ids)), ids, heard, len(ids)) for ids, heard in parts]
    got = engine.forward(segments)
    with torch.no_grad():
        want = model(batch)
        assert torch.equal(got, want)
        assert torch.equal(engine.logits(got), model.logits(want))
        targets = torch.randint(0, engine.vocabulary, (len(got),))
        for ours, theirs in zip(
            engine.logprob(got, targets, 0.7), model.logprob(want, targets, 0.7), strict=True
        ):
            assert torch.equal(ours, theirs)
    assert [cache.length for cache, *_ in segments] == [len(ids) for ids, _ in parts]


def test_greedy_tokens_and_their_logprobs_are_the_python_samplers(dtype):
    model = toy_model().to(dtype)
    engine, batch = Beside(model), packed(model, PROMPTS)
    made = model.generate_ids(batch, max_new_tokens=12, temperature=0.0)
    pool = engine.native.pool(4096)
    caches = [pool.allocate(len(ids) + 12) for ids, _ in sequences(model, batch)]
    hidden = engine.forward(
        [(cache, *part, 1) for cache, part in zip(caches, sequences(model, batch), strict=True)]
    )
    for step in range(12):
        ids = engine.logits(hidden).argmax(-1)
        assert ids.tolist() == [row[step] for row in made.ids]
        assert torch.equal(engine.logprob(hidden, ids)[0], torch.stack([row[step] for row in made.logp]))
        hidden = engine.forward([(c, ids[i : i + 1], None, 1) for i, c in enumerate(caches)])


def test_pieces_of_a_prompt_and_steps_beside_them_change_no_bit(dtype):
    model = toy_model().to(dtype)
    engine, batch = Beside(model), packed(model, PROMPTS)
    parts = sequences(model, batch)
    pool = engine.native.pool(4096)
    whole = [
        engine.forward([(pool.allocate(len(ids)), ids, heard, len(ids))]) for ids, heard in parts
    ]  # each alone
    # The same in calls that mix pieces of all sequences, of sizes between one and nine, in any order.
    caches = [pool.allocate(len(ids) + i) for i, (ids, _) in enumerate(parts)]
    done, heard_until = [0] * len(parts), [0] * len(parts)
    pieces: list[list[torch.Tensor]] = [[] for _ in parts]
    generator = torch.Generator().manual_seed(1)
    while any(n < len(ids) for n, (ids, _) in zip(done, parts, strict=True)):
        segments, chosen = [], []
        for i in torch.randperm(len(parts), generator=generator).tolist():
            ids, heard = parts[i]
            size = int(torch.randint(1, 10, (), generator=generator))
            piece = ids[done[i] : done[i] + size].clone()
            if not len(piece) or size == 9:
                continue
            rows = int((piece == -1).sum())
            sound = heard[heard_until[i] : heard_until[i] + rows].clone()
            wanted = int(torch.randint(0, len(piece) + 1, (), generator=generator))
            segments.append((caches[i], piece, sound, wanted))
            chosen.append((i, done[i] + len(piece) - wanted, wanted))
            done[i] += len(piece)
            heard_until[i] += rows
        if not segments:
            continue
        hidden = engine.forward(segments).split([wanted for *_, wanted in chosen])
        for (i, first, wanted), rows_of in zip(chosen, hidden, strict=True):
            pieces[i].append(rows_of)
            assert torch.equal(rows_of, whole[i][first : first + wanted])
    assert sum(len(p) for p in pieces[3]) > 0


def test_threads_change_no_bit(dtype):
    model = toy_model().to(dtype)
    engine, mel = Beside(model), torch.randn(20, 333)
    threads = _native.num_threads()
    results = []
    for count in (1, 2, 3):
        _native.set_num_threads(count)
        heard = engine.hear(mel)
        ids = torch.full((len(heard),), -1)
        pool = engine.native.pool(64)
        hidden = engine.forward([(pool.allocate(64), ids, heard, len(ids))])
        results.append((heard, hidden, engine.logits(hidden)))
    _native.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_forked_or_shortened_sequence_goes_on_as_if_replayed(dtype):
    model = toy_model().to(dtype)
    engine, ids = Beside(model), torch.arange(40) % 97
    pool = engine.native.pool(200)
    first, second, third = (pool.allocate(50) for _ in range(3))
    want = engine.forward([(first, ids, None, 40)])
    engine.forward([(second, (ids + 5) % 97, None, 40)])
    second.copy(first, 17)
    assert second.length == 17
    assert torch.equal(engine.forward([(second, ids[17:], None, 23)]), want[17:])
    first.truncate(3)
    assert torch.equal(engine.forward([(first, ids[3:], None, 5)]), want[-5:])
    third.copy(first, 40)
    assert third.length == 40


def test_a_saved_folder_gives_the_same_bits_as_the_memory(tmp_path, dtype):
    model = toy_model(tie_word_embeddings=True).to(dtype)
    model.save_pretrained(tmp_path, max_shard_bytes=40_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    for name, other in DTYPES.items():  # a checkpoint of one precision runs in the other as well
        loaded = Beside(
            AudioLM.from_pretrained(tmp_path, dtype=other), _native.engine.load(str(tmp_path), name)
        )
        python = AudioLM.from_pretrained(tmp_path, dtype=other)
        mel, ids = torch.randn(20, 77), torch.arange(10)
        with torch.no_grad():
            assert torch.equal(loaded.hear(mel), python.embed_audio([mel]))
            bounds = torch.tensor([0, 10], dtype=torch.int32)
            want = python.model(python.model.embed_tokens(ids), torch.arange(10), bounds)
            hidden = loaded.forward([(loaded.native.pool(10).allocate(10), ids, None, 10)])
            assert torch.equal(hidden, want)
            assert torch.equal(loaded.logits(hidden), python.logits(want))


def test_a_trainers_step_is_seen_after_one_call(dtype):
    model = toy_model().to(dtype)
    engine, ids = Beside(model), torch.arange(10)
    pool = engine.native.pool(30)
    before = engine.forward([(pool.allocate(10), ids, None, 10)])
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.25)
        bounds = torch.tensor([0, 10], dtype=torch.int32)
        want = model.model(model.model.embed_tokens(ids), torch.arange(10), bounds)
    engine.native.refresh()
    after = engine.forward([(pool.allocate(10), ids, None, 10)])
    assert not torch.equal(before, after)
    assert torch.equal(after, want)
    assert torch.equal(engine.logits(after), model.logits(want))


IDS = torch.tensor([1, 2, 3])


@pytest.mark.parametrize(
    ("segment", "says"),
    [
        (lambda pool: (pool.allocate(2), IDS, None, 1), r"count: expected at most 2 more tokens, got 3"),
        (
            lambda pool: (pool.allocate(4), torch.tensor([97]), None, 1),
            r"ids: expected ids in \[0, 97\), got 97",
        ),
        (lambda pool: (pool.allocate(4), torch.tensor([-2]), None, 1), r"ids: expected ids in"),
        (lambda pool: (pool.allocate(4), torch.tensor([-1]), None, 1), r"embeddings: expected 1 rows"),
        (lambda pool: (pool.allocate(4), IDS, torch.zeros(1, 48), 1), r"embeddings: expected 0 rows"),
        (lambda pool: (pool.allocate(4), IDS, torch.zeros(3, 47), 1), r"embeddings: expected \[3, 48\]"),
        (lambda pool: (pool.allocate(4), IDS[:0], None, 0), r"count: expected at least 1"),
        (lambda pool: (pool.allocate(4), IDS, None, 4), r"wanted"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_no_cache(segment, says):
    engine = Beside(toy_model())
    pool = engine.native.pool(64)
    good, bad = (pool.allocate(8), IDS, None, 3), segment(pool)
    alone = engine.forward([(pool.allocate(8), IDS, None, 3)])
    with pytest.raises(ValueError, match=says):
        engine.forward([good, bad])
    assert good[0].length == bad[0].length == 0
    with pytest.raises(ValueError, match="one for each segment"):
        engine.forward([good, good])
    assert torch.equal(engine.forward([good]), alone)


def test_a_context_ends_where_the_config_says():
    model = toy_model(max_position_embeddings=16)
    engine = Beside(model)
    cache = engine.native.pool(64).allocate(32)
    engine.forward([(cache, torch.arange(16), None, 1)])
    with pytest.raises(ValueError, match="expected at most 0 more tokens, got 1"):
        engine.forward([(cache, IDS[:1], None, 1)])
    cache.truncate(15)
    engine.forward([(cache, IDS[:1], None, 1)])


def test_a_pool_gives_room_and_takes_it_back():
    pool = Beside(toy_model()).native.pool(100)
    a, b, c = pool.allocate(30), pool.allocate(30), pool.allocate(30)
    assert pool.free_tokens == 10
    with pytest.raises(ValueError, match="room for 11 tokens"):
        pool.allocate(11)
    del b
    assert pool.free_tokens == 40
    with pytest.raises(ValueError, match="room for 31 tokens"):  # not in one run
        pool.allocate(31)
    del a
    again = pool.allocate(60)
    assert (again.start, pool.free_tokens) == (0, 10)
    del c, again
    assert pool.allocate(100).start == 0


def test_all_defects_of_a_checkpoint_stand_in_one_error():
    model = toy_model()
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    del state["model.norm.weight"], state["encoder.conv1.bias"]
    state["model.layers.9.extra"] = torch.zeros(1)
    state["lm_head.weight"] = torch.zeros(97, 47)
    with pytest.raises(ValueError, match="tensors: expected those of the config") as caught:
        _native.engine.from_memory(json.dumps(model.config.to_dict()), state, "float32")
    for name in (
        "model.norm.weight",
        "encoder.conv1.bias",
        "model.layers.9.extra",
        "[97, 47] instead of [97, 48]",
    ):
        assert name in str(caught.value)


def test_tied_embeddings_that_differ_are_refused():
    model = toy_model(tie_word_embeddings=True)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    state["lm_head.weight"][96, 47] += 1
    with pytest.raises(ValueError, match=r"the values of model.embed_tokens.weight"):
        _native.engine.from_memory(json.dumps(model.config.to_dict()), state, "float32")


@pytest.mark.parametrize("finer", ["lm_head.weight", "model.embed_tokens.weight"])
def test_tied_embeddings_of_two_types_are_compared_by_their_values(finer):
    """float32 beside bfloat16: what bfloat16 has not the digits for is a difference."""
    coarser = ({"lm_head.weight", "model.embed_tokens.weight"} - {finer}).pop()
    model = toy_model(tie_word_embeddings=True)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    state[coarser] = state[coarser].bfloat16()
    state[finer] = state[coarser].float()
    config = json.dumps(model.config.to_dict())
    _native.engine.from_memory(config, state, "float32")
    state[finer][96, 47] *= 1 + 2**-12
    with pytest.raises(ValueError, match=r"the values of model.embed_tokens.weight"):
        _native.engine.from_memory(config, state, "float32")

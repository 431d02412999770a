# SPDX-License-Identifier: Apache-2.0
"""Log-mel on cuda: batches of clips and many streams, against the definition in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

import small_world
from earnest.dialogue import Audio, Dialogue, DialogueDataset, Message
from earnest.errors import InvalidInput
from earnest.features import LogMel
from earnest.model import features
from earnest.model.answer import prompt
from earnest.stages.cases import heard
from made_up_cupy import Array, Cupy
from reference import logmel as reference
from tolerances import FACTOR, LOGMEL

LENGTHS = (1, 2, 159, 160, 199, 200, 201, 319, 400, 401, 479, 1601, 5120, 16001)


def clip(samples: int, seed: int = 0) -> Tensor:
    """A sweep and noise over four decades of power."""
    t = np.arange(samples) / 16000
    noise = np.random.default_rng(seed + samples).standard_normal(samples)
    return torch.from_numpy((0.4 * np.sin(9000 * t**2) * np.cos(3 * t) + 1e-4 * noise).astype(np.float32))


def plain(pcm: np.ndarray, n_mels: int, step_audio: bool) -> np.ndarray:
    """Raw features [n_mels, frames] in float32 throughout, with torch's transform."""
    x = np.pad(pcm, (0, 479)) if step_audio else pcm
    frames = len(x) // 160
    x = torch.from_numpy(np.pad(x, 200, mode="reflect" if len(x) > 1 else "edge"))
    hann = torch.from_numpy(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)).float()
    power = torch.fft.rfft(x.unfold(0, 400, 160) * hann).abs().square()
    filters = torch.from_numpy(reference.slaney_filters(n_mels)).float()
    return (filters @ power.T).clamp(min=1e-10).log10().double().numpy()[:, :frames]


def assert_as_exact(found: list[Tensor], honest: list[np.ndarray], exact: list[np.ndarray]) -> None:
    """Where a band is four decades below the loudest of its frame, float32 is off by the rounding of that
    one: ours may be off as plain float32 is, over all bands, in the root mean square."""
    assert [one.shape for one in found] == [one.shape for one in exact]

    def error(ones: list) -> float:
        pairs = zip(ones, exact, strict=True)
        differences = np.concatenate([(np.asarray(one, np.float64) - e).reshape(-1) for one, e in pairs])
        return float(np.sqrt((differences**2).mean()))

    assert error([one.cpu().numpy() for one in found]) <= FACTOR * error(honest) + LOGMEL["cuda"]


@pytest.mark.parametrize("padding", ["whisper", "step_audio"])
@pytest.mark.parametrize("n_mels", [80, 128, 7])
def test_clips_of_every_length_are_whispers(device, n_mels: int, padding: str) -> None:
    log_mel, zeros = LogMel(n_mels, padding=padding), padding == "step_audio"
    clips = [clip(samples) for samples in LENGTHS]
    exact = [reference.raw(c.numpy(), n_mels, step_audio=zeros) for c in clips]
    honest = [plain(c.numpy(), n_mels, zeros) for c in clips]
    raw = log_mel.batch([c.to(device) for c in clips], raw=True)
    normal = log_mel.batch([c.to(device) for c in clips])
    assert {one.device.type for one in (*raw, *normal)} == {device.type}
    assert_as_exact(raw, honest, exact)
    assert_as_exact(normal, [*map(reference.normalize, honest)], [*map(reference.normalize, exact)])


def test_a_clip_is_the_same_alone_and_in_a_batch(device) -> None:
    log_mel = LogMel(80)
    clips = [clip(n).to(device) for n in (5120, 161, 16001, 5120)]
    together = log_mel.batch(clips)
    for one, found in zip(clips, together, strict=True):
        assert torch.equal(log_mel(one), found)
    square = torch.stack([clips[0], clips[3]])
    found = log_mel.batch(square)
    assert found.shape == (2, 80, 32)
    assert torch.equal(found[1], together[3])
    assert torch.equal(LogMel.normalize(log_mel.raw(clips[2])), together[2])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e16])
def test_a_wrong_sample_is_named_as_on_the_cpu(device, value: float) -> None:
    clips = [clip(n) for n in (500, 700, 300)]
    clips[1][613] = value
    with pytest.raises(InvalidInput, match=r"\[logmel\] pcm\[1\]: expected finite .* at sample 613$"):
        LogMel(80).batch([c.to(device) for c in clips])
    with pytest.raises(InvalidInput, match=r"\[logmel\] pcm: expected finite .* at sample 613$"):
        LogMel(80)(clips[1].to(device))
    with pytest.raises(InvalidInput, match=r"pcm\[0\]: expected at least one sample, got none"):
        LogMel(80).batch([torch.zeros(0, device=device), clips[0].to(device)])


@pytest.mark.parametrize("padding", ["whisper", "step_audio"])
def test_streams_in_any_chunks_give_the_whole_clips_bits(device, padding: str) -> None:
    log_mel = LogMel(80, padding=padding)
    clips = [clip(samples, seed=3).to(device) for samples in (16001, 401, 5120, 150)]
    streams = log_mel.streams(len(clips), device)
    parts: list[list[Tensor]] = [[] for _ in clips]
    places = [0] * len(clips)
    random = np.random.default_rng(0)
    while any(place < len(c) for place, c in zip(places, clips, strict=True)):
        ids = [i for i, c in enumerate(clips) if places[i] < len(c) and random.random() < 0.8]
        sizes = [int(random.integers(0, 1500)) for _ in ids]
        chunks = [clips[i][places[i] : places[i] + n] for i, n in zip(ids, sizes, strict=True)]
        if not ids:
            continue
        for i, chunk, frames in zip(ids, chunks, streams.push(chunks, ids), strict=True):
            parts[i].append(frames)
            places[i] += len(chunk)
    for found, rest in zip(parts, streams.finish(), strict=True):
        found.append(rest)
    assert streams.pushed == [len(c) for c in clips]
    for one, found in zip(clips, parts, strict=True):
        assert torch.equal(torch.cat(found, 1), log_mel.raw(one))


def test_a_refused_chunk_leaves_its_stream_and_the_others_go_on(device) -> None:
    log_mel = LogMel(80)
    streams = log_mel.streams(3, device)
    clips = [clip(1600, seed=i) for i in range(3)]
    streams.push([c[:700].to(device) for c in clips])
    bad = [c[700:].clone() for c in clips]
    bad[1][5] = float("nan")
    with pytest.raises(
        InvalidInput, match=r"chunks\[1\]: expected finite .*, got nan at sample 705"
    ) as caught:
        streams.push([c.to(device) for c in bad])
    assert streams.pushed == [1600, 700, 1600]
    assert len(caught.value.frames) == 3
    streams.push([clips[1][700:].to(device)], ids=[1])
    streams.finish([0, 2])
    with pytest.raises(InvalidInput, match="a stream that is not finished"):
        streams.push([clips[0].to(device)], ids=[0])
    streams.reset([0])
    streams.push([clips[0].to(device)], ids=[0])
    with pytest.raises(InvalidInput, match="different streams of 3"):
        streams.push([clips[0].to(device)] * 2, ids=[0, 0])


def test_streams_take_chunks_of_cupy_and_give_such(device, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = Cupy(monkeypatch)
    mel, whole = LogMel(80), clip(1000).to(device)
    streams, theirs = (mel.streams(2, device) for _ in range(2))
    for chunk in (whole[:400], whole[400:]):
        last = len(chunk) > 400
        wanted = streams.push([chunk, -chunk], last=last)
        found = theirs.push([Array(chunk), Array(-chunk)], last=last)
        assert all(torch.equal(x.values, y) for x, y in zip(found, wanted, strict=True))
    theirs.reset()
    both = theirs.push(Array(torch.stack([whole, -whole])), last=True)
    assert torch.equal(both[0].values, mel.raw(whole))
    assert cupy.streams == [("external", 77)] * 3


def test_a_dialogue_is_heard_where_the_model_is(device, monkeypatch) -> None:
    """The chunks of a clip in one launch, by a dataset, by whoever asks a model, and by a stage."""
    monkeypatch.setattr(features, "MAX_CHUNK_SAMPLES", 1700)
    monkeypatch.setattr(features, "CHUNK_SAMPLES", 1000)
    launches = []
    on_cuda = LogMel._clips_on_cuda
    monkeypatch.setattr(
        LogMel, "_clips_on_cuda", lambda *a, **k: launches.append(len(a[1])) or on_cuda(*a, **k)
    )
    words = small_world.tokenizer()
    model = small_world.model(words).to(device)
    config = model.config.audio_encoder_config
    pcm = clip(3000).numpy()
    said = (Message.user(Audio(pcm=pcm)), Message.assistant("yes"))
    data = DialogueDataset(
        [Dialogue(said)], words, audio_tokens=config.audio_tokens, n_mels=config.n_mels, device=device
    )
    want = LogMel(config.n_mels, padding="step_audio").batch([x.to(device) for x in clip(3000).split(1000)])
    launches.clear()
    for mel in (data[0].mel, prompt(model, words, said[:1])[0].mel):
        assert [one.device.type for one in mel] == [device.type] * 3
        assert all(map(torch.equal, mel, want))
    (kept,) = heard(said[:1], config.n_mels, device=device)  # of a stage, by the host
    assert all(map(np.array_equal, [chunk.mel for chunk in kept], [one.numpy(force=True) for one in want]))
    assert launches == [3, 3, 3]

# SPDX-License-Identifier: Apache-2.0
"""Sampling: prompts prefilled once, then one token per live sequence and step, with its log-probability.

Every draw inverts the cumulative distribution at a uniform number fixed in advance for (row, step), so that a
row's tokens depend on the generator's seed and its own logits alone: not on when other rows finish."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from earnest.errors import InvalidInput
from earnest.model import native
from earnest.model.kv_cache import KVCache, LiveRows
from earnest.model.packed import cu_seqlens_of, lengths_of, positions_of
from earnest.model.working import working

if TYPE_CHECKING:
    from earnest.model.audio_lm import AudioLM


class PackedInputs(Protocol):
    """What the model reads of a batch (earnest.dialogue.PackedBatch has it)."""

    input_ids: Tensor  # int64 [tokens]
    position_ids: Tensor  # int64 [tokens]
    cu_seqlens: Tensor  # int32 [sequences + 1]
    mel: list[Tensor]  # one float [n_mels, frames] per audio chunk
    audio_positions: Tensor  # int64 [audio tokens]


def attended(batch: PackedInputs, device: torch.device) -> tuple[Tensor | None, ...]:
    """What the decoder needs beside its inputs: positions, sequences, and the rows they share, if they share
    any."""
    rows, bounds = getattr(batch, "key_rows", None), getattr(batch, "cu_seqlens_k", None)
    fields = (batch.position_ids, batch.cu_seqlens, rows, bounds)
    return tuple(None if field is None else field.to(device) for field in fields)


@dataclass
class _Prompts:
    """A batch without the fields that only training reads."""

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    audio_positions: Tensor
    mel: list[Tensor] = field(default_factory=list)
    key_rows: Tensor | None = None
    cu_seqlens_k: Tensor | None = None

    @property
    def continued(self) -> Tensor:
        """int64: the sequences that are continued. Where sequences share a beginning that stands in the batch
        as a sequence of its own, that one is not."""
        own = self.cu_seqlens.diff()
        if self.cu_seqlens_k is None:
            return torch.arange(len(own))
        return (self.cu_seqlens_k.diff() > own).nonzero().squeeze(1)

    @property
    def lengths(self) -> list[int]:
        """Tokens that each continued sequence has read, its shared beginning included."""
        bounds = self.cu_seqlens if self.cu_seqlens_k is None else self.cu_seqlens_k
        return bounds.diff()[self.continued].tolist()


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy (log-probabilities are then those at temperature 1).

    top_p, top_k and suppress_ids are for talking to people: they cut the distribution, while the
    log-probability returned stays that of the whole distribution at this temperature. Rollouts to train on
    must leave them off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    suppress_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.temperature >= 0.0 or self.temperature == float("inf"):
            raise InvalidInput("generate", "temperature", "a finite number, 0 or more", str(self.temperature))
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidInput("generate", "top_p", "a number in (0, 1]", str(self.top_p))
        if self.top_k < 0:
            raise InvalidInput("generate", "top_k", "0 (off) or more", str(self.top_k))

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """logits [rows, vocab] float32, uniform [rows] in [0, 1) -> ids int64 [rows]."""
        scaled = logits if self.temperature in (0.0, 1.0) else logits / self.temperature
        logp = F.log_softmax(scaled, dim=-1)
        allowed = logp
        if self.suppress_ids:
            allowed = allowed.clone()
            allowed[:, list(self.suppress_ids)] = float("-inf")
        if self.temperature == 0.0:
            ids = allowed.argmax(dim=-1)
        else:
            cdf = self._cut(allowed).exp().cumsum(dim=-1, dtype=torch.float64)
            ids = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True)[:, 0]
            ids.clamp_(max=logits.shape[1] - 1)
        if not bool(torch.isfinite(logp.gather(1, ids[:, None])).all()):
            raise InvalidInput("generate", "logits", "finite numbers", "NaN or infinity")
        return ids

    def _cut(self, logp: Tensor) -> Tensor:
        if self.top_k and self.top_k < logp.shape[1]:
            floor = logp.topk(self.top_k, dim=-1).values[:, -1:]
            logp = logp.masked_fill(logp < floor, float("-inf"))
        if self.top_p < 1.0:
            ordered, order = logp.softmax(dim=-1).sort(dim=-1, descending=True)
            beyond = ordered.cumsum(dim=-1) - ordered >= self.top_p
            logp = logp.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), float("-inf"))
        return logp


@dataclass
class Generation:
    """ids[i]: the sampled tokens of sequence i (a stop token included, the forced prefix not); logp[i]:
    float32, the log-probability of each; stopped[i]: whether a stop token ended it (otherwise the length
    did); drawn_from [sequences, hidden]: the hidden state from which the last token of each was drawn."""

    ids: list[list[int]]
    logp: list[Tensor]
    stopped: list[bool]
    drawn_from: Tensor


class Step(NamedTuple):
    """One more token of each sequence that is still alive."""

    rows: Tensor  # int64 [n], the numbers of those sequences
    ids: Tensor  # int64 [n]
    logp: Tensor  # float32 [n]
    ended: Tensor  # bool [n]: this was the last one, after a stop token
    drawn_from: Tensor  # [n, hidden]


@torch.no_grad()
def generate_ids(
    model: AudioLM,
    batch: PackedInputs,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    generator: torch.Generator | None = None,
    stop_ids: Sequence[int] = (),
    after_stop: int = 0,
    forced_prefix: Sequence[int] = (),
    samples_per_prompt: int = 1,
    audio_embeddings: Tensor | None = None,
) -> Generation:
    """Continues every prompt of `batch` samples_per_prompt times; sample j of prompt p is sequence p *
    samples + j. Of a batch whose prompts share beginnings, those are read once, and are no prompts
    themselves. A stop token ends a sequence, or lets it go on for `after_stop` tokens."""
    precision = native.precision_of(model)
    if precision is not None:
        return _generate_natively(
            model, precision, batch, max_new_tokens=max_new_tokens, sampling=sampling, generator=generator,
            stop_ids=stop_ids, after_stop=after_stop, forced_prefix=forced_prefix,
            samples_per_prompt=samples_per_prompt, audio_embeddings=audio_embeddings,
        )  # fmt: skip
    rows = len(_with_suffix(batch, ()).continued) * samples_per_prompt
    ids = torch.zeros(rows, max_new_tokens, dtype=torch.int64)
    logp = torch.zeros(rows, max_new_tokens)
    counts, stopped = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.bool)
    drawn_from = torch.zeros(rows, model.config.text_config.hidden_size)
    steps = decode_steps(
        model,
        batch,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        generator=generator,
        stop_ids=stop_ids,
        after_stop=after_stop,
        forced_prefix=forced_prefix,
        samples_per_prompt=samples_per_prompt,
        audio_embeddings=audio_embeddings,
    )
    for number, step in enumerate(steps):
        live = step.rows.cpu()
        ids[live, number], logp[live, number] = step.ids.cpu(), step.logp.float().cpu()
        counts[live] += 1
        stopped[live], drawn_from[live] = step.ended.cpu(), step.drawn_from.float().cpu()
    lengths = counts.tolist()
    return Generation(
        [row[:n] for row, n in zip(ids.tolist(), lengths, strict=True)],
        [row[:n].clone() for row, n in zip(logp, lengths, strict=True)],
        stopped.tolist(),
        drawn_from.to(model.lm_head.weight),
    )


def stream_ids(
    model: AudioLM,
    batch: PackedInputs,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    generator: torch.Generator | None = None,
    stop_ids: Sequence[int] = (),
    forced_prefix: Sequence[int] = (),
    audio_embeddings: Tensor | None = None,
) -> Iterator[tuple[int, float]]:
    """One prompt, token by token: (id, log-probability), the stop token included."""
    if len(batch.cu_seqlens) != 2:
        raise InvalidInput("stream_ids", "batch", "one sequence", f"{len(batch.cu_seqlens) - 1}")
    for step in decode_steps(
        model,
        batch,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        generator=generator,
        stop_ids=stop_ids,
        forced_prefix=forced_prefix,
        audio_embeddings=audio_embeddings,
    ):
        yield int(step.ids[0]), float(step.logp[0])


def decode_steps(
    model: AudioLM,
    batch: PackedInputs,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    generator: torch.Generator | None = None,
    stop_ids: Sequence[int] = (),
    after_stop: int = 0,
    forced_prefix: Sequence[int] = (),
    samples_per_prompt: int = 1,
    audio_embeddings: Tensor | None = None,
) -> Iterator[Step]:
    """The loop under generate_ids and stream_ids, token by token."""
    begun = _begin(
        model,
        batch,
        max_new_tokens,
        generator,
        after_stop,
        forced_prefix,
        samples_per_prompt,
        audio_embeddings,
    )
    cache, hidden, uniform, device = begun.cache, begun.hidden, begun.uniforms, begun.hidden.device
    stops = torch.tensor(list(stop_ids), dtype=torch.int64, device=device)
    live = LiveRows(cache, begun.lengths)
    rows = len(begun.lengths)
    stopped = torch.zeros(rows, dtype=torch.bool, device=device)
    left = torch.full((rows,), after_stop, device=device)
    for step in range(max_new_tokens):
        with torch.no_grad():
            ids = sampling.draw(model.logits(hidden), uniform[live.rows, step])
            logp = model.logprob(hidden, ids, sampling.temperature or 1.0)[0]
            left = left - stopped.long()
            stopped = stopped | torch.isin(ids, stops)
            ended = stopped & (left == 0)
        yield Step(live.rows, ids, logp, ended, hidden)
        with torch.no_grad():
            alive = ~ended & (live.lengths < cache.max_tokens)
            if step + 1 == max_new_tokens or not bool(alive.any()):
                return
            if not bool(alive.all()):
                live.keep(alive)
                ids, stopped, left = ids[alive], stopped[alive], left[alive]
            hidden = model.model.run(model.model.embed_tokens(ids), live.lengths, live.attend)
            live.advance()


class _Begun(NamedTuple):
    """Prompts that have been read, each as often as it is continued."""

    cache: KVCache
    lengths: Tensor  # int64 [rows], tokens in the cache
    hidden: Tensor  # [rows, hidden], of the last of them
    uniforms: Tensor  # float64 [rows, max_new_tokens]


@torch.no_grad()
def _begin(
    model: AudioLM,
    batch: PackedInputs,
    max_new_tokens: int,
    generator: torch.Generator | None,
    after_stop: int,
    forced_prefix: Sequence[int],
    samples_per_prompt: int,
    audio_embeddings: Tensor | None,
) -> _Begun:
    for name, value, least in (
        ("max_new_tokens", max_new_tokens, 1),
        ("samples_per_prompt", samples_per_prompt, 1),
        ("after_stop", after_stop, 0),
    ):
        if value < least:
            raise InvalidInput("generate", name, f"{least} or more", str(value))
    prompts = _with_suffix(batch, forced_prefix)
    device, context = model.lm_head.weight.device, model.config.text_config.max_position_embeddings
    lengths = prompts.lengths
    if not lengths or min(lengths) == 0 or max(lengths) >= context:
        raise InvalidInput(
            "generate",
            "batch",
            f"prompts of 1 to {context - 1} tokens",
            f"lengths {sorted(set(lengths))[:3]}" if lengths else "no prompt",
        )
    rows = len(lengths) * samples_per_prompt
    uniforms = torch.rand(
        rows,
        max_new_tokens,
        generator=generator,
        dtype=torch.float64,
        device=generator.device if generator is not None else "cpu",
    ).to(device)
    cache = KVCache(
        model.config.text_config,
        rows,
        min(max(lengths) + max_new_tokens, context),
        dtype=model.lm_head.weight.dtype,
        device=device,
    )
    hidden = _prefill(model, prompts, audio_embeddings, cache, samples_per_prompt)
    read = torch.tensor(lengths, device=device).repeat_interleave(samples_per_prompt)
    return _Begun(cache, read, hidden, uniforms)


def _generate_natively(
    model: AudioLM,
    precision: str,
    batch: PackedInputs,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    generator: torch.Generator | None,
    stop_ids: Sequence[int],
    after_stop: int,
    forced_prefix: Sequence[int],
    samples_per_prompt: int,
    audio_embeddings: Tensor | None,
) -> Generation:
    with working(model) as decoding:
        begun = _begin(
            decoding,
            batch,
            max_new_tokens,
            generator,
            after_stop,
            forced_prefix,
            samples_per_prompt,
            audio_embeddings,
        )
        said, drawn_from = native.Twin.of(decoding, precision).generate(
            begun.cache,
            begun.lengths,
            begun.hidden.contiguous(),
            begun.uniforms,
            sampling,
            list(stop_ids),
            after_stop,
        )
    return Generation(
        [ids for ids, _, _ in said],
        [torch.tensor(logp, dtype=torch.float32) for _, logp, _ in said],
        [stopped for _, _, stopped in said],
        drawn_from.to(model.lm_head.weight),
    )


def _prefill(
    model: AudioLM, prompts: _Prompts, audio_embeddings: Tensor | None, cache: KVCache, copies: int
) -> Tensor:
    """Hidden states [rows, hidden] of each prompt's last token, once per copy; the cache is filled."""
    continued = prompts.continued.to(cache.device)
    bounds, key_rows, cu_seqlens_k = (
        None if field is None else field.to(cache.device)
        for field in (prompts.cu_seqlens, prompts.key_rows, prompts.cu_seqlens_k)
    )
    assert bounds is not None
    attend = cache.prefill(bounds, copies, key_rows=key_rows, cu_seqlens_k=cu_seqlens_k, continued=continued)
    hidden = model.model.run(
        model.embed(prompts, audio_embeddings),
        prompts.position_ids.to(cache.device),
        attend,
        bounds[1:].long()[continued] - 1,
    )
    return hidden.repeat_interleave(copies, dim=0)


def _with_suffix(batch: PackedInputs, suffix: Sequence[int]) -> _Prompts:
    """The batch with the same tokens appended to every prompt."""
    key_rows, cu_seqlens_k = getattr(batch, "key_rows", None), getattr(batch, "cu_seqlens_k", None)
    if not suffix:
        return _Prompts(
            batch.input_ids,
            batch.position_ids,
            batch.cu_seqlens,
            batch.audio_positions,
            batch.mel,
            key_rows,
            cu_seqlens_k,
        )
    if key_rows is not None:
        raise InvalidInput("generate", "forced_prefix", "none with prompts that share rows", "key_rows")
    lengths = lengths_of(batch.cu_seqlens)
    tail = torch.tensor(list(suffix), dtype=torch.int64, device=batch.input_ids.device)
    ids = torch.cat([part for prompt in batch.input_ids.split(lengths) for part in (prompt, tail)])
    longer = [n + len(suffix) for n in lengths]
    # Sequence i starts i suffixes later than it did.
    sequence = torch.bucketize(
        batch.audio_positions, batch.cu_seqlens[1:].to(batch.audio_positions), right=True
    )
    return _Prompts(
        ids,
        torch.from_numpy(positions_of(longer)).to(ids.device),
        cu_seqlens_of(longer, ids.device),
        batch.audio_positions + sequence * len(suffix),
        batch.mel,
    )

# SPDX-License-Identifier: Apache-2.0
"""The key-value cache: one preallocated [rows, max_tokens, kv_heads, dim] pair per layer, one row per
sequence.

Prefill writes a prompt's keys and values into every row that continues it (the prompt itself is computed
once). A decoding step appends one token to each live row in place. Rows that have finished are skipped by
pointing past them: nothing is ever moved."""

from __future__ import annotations

import torch
from torch import Tensor

from earnest import ops
from earnest.model.config import TextConfig
from earnest.model.decoder import Attend
from earnest.model.packed import cu_seqlens_of, positions_of


class KVCache:
    """keys, values: per layer, [rows * max_tokens, kv_heads, dim], a packed view of the rows."""

    def __init__(
        self,
        config: TextConfig,
        rows: int,
        max_tokens: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (rows * max_tokens, config.num_key_value_heads, config.head_dim)
        self.rows, self.max_tokens, self.device = rows, max_tokens, torch.device(device)
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]

    def prefill(
        self,
        cu_seqlens: Tensor,
        copies: int = 1,
        *,
        key_rows: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
        continued: Tensor | None = None,
    ) -> Attend:
        """Attention over packed prompts that also fills the cache: prompt p goes to rows p * copies and
        following.

        key_rows, cu_seqlens_k: as in Decoder.forward, where prompts share a beginning. continued: int64, the
        sequences that are prompts to be continued (all, unless given). The last layer may ask for the last
        token of each of those alone."""
        rows = torch.arange(int(cu_seqlens[-1]), device=self.device) if key_rows is None else key_rows
        bounds = cu_seqlens if cu_seqlens_k is None else cu_seqlens_k
        prompts = range(len(cu_seqlens) - 1) if continued is None else continued.tolist()
        spans = [(int(bounds[p]), int(bounds[p + 1])) for p in prompts]
        source = torch.cat([rows[start:end] for start, end in spans])
        lengths = [end - start for start, end in spans]
        prompt = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(self.device)
        place = prompt * copies * self.max_tokens + torch.from_numpy(positions_of(lengths)).to(self.device)
        target = (place + torch.arange(copies, device=self.device)[:, None] * self.max_tokens).flatten()
        one_each = torch.arange(len(lengths) + 1, dtype=torch.int32, device=self.device)
        ends = cu_seqlens_of(lengths, self.device)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            mine, theirs = k.index_select(0, source), v.index_select(0, source)
            self.keys[layer].index_copy_(0, target, mine.repeat(copies, 1, 1))
            self.values[layer].index_copy_(0, target, theirs.repeat(copies, 1, 1))
            if len(q) == len(lengths) != len(k):
                return ops.attention(
                    q.contiguous(), mine, theirs, causal=True, cu_seqlens_q=one_each, cu_seqlens_k=ends
                )
            if key_rows is not None:
                k, v = k.index_select(0, key_rows), v.index_select(0, key_rows)
            return ops.attention(
                q.contiguous(),
                k.contiguous(),
                v.contiguous(),
                causal=True,
                cu_seqlens_q=cu_seqlens,
                cu_seqlens_k=bounds,
            )

        return attend


class LiveRows:
    """The rows still being decoded, and the attention of one new token in each of them.

    On cuda a row's keys are shared out, 512 to a block for each key head, whatever the other rows are. A
    block has 64 keys or their values on the way at a time, 16 KB of 16 bits with a head size of 128, of the
    4 MB that fill an H200: some 20 GB/s. 8,000 tokens of 4 key heads are 16 MB, 4 MB for each of 4 blocks in
    200 us, or 256 KB for each of 64 in 13 us, and 4 us to join what they leave (predicted; no GPU has timed
    it). Prompts are not shared out: a token that sees more than 512 keys is rounded otherwise in a step than
    in a prompt, as it is by the vendor's products."""

    def __init__(self, cache: KVCache, lengths: Tensor) -> None:
        self.cache = cache
        self.rows = torch.arange(cache.rows, device=cache.device)
        self.lengths = lengths.clone()
        self._point()

    def keep(self, alive: Tensor) -> None:
        """Goes on with the rows where `alive` (bool [live rows]) holds."""
        self.rows, self.lengths = self.rows[alive], self.lengths[alive]
        self._point()

    def _point(self) -> None:
        starts = self.rows * self.cache.max_tokens
        self._first = int(starts[0]) if len(starts) else 0
        end = torch.full((1,), self.cache.rows * self.cache.max_tokens, device=starts.device)
        # A span runs up to the next live row; seqused_k ends each one at its own length.
        self._spans = (torch.cat([starts, end]) - self._first).int()
        self._queries = torch.arange(len(starts) + 1, dtype=torch.int32, device=starts.device)
        self._target = starts + self.lengths
        self._used = self.lengths.int() + 1

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [live rows, heads, dim], k and v [live rows, kv_heads, dim]: written to the cache, then attended
        to."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys.index_copy_(0, self._target, k)
        values.index_copy_(0, self._target, v)
        return ops.attention(
            q.contiguous(),
            keys[self._first :],
            values[self._first :],
            causal=True,
            cu_seqlens_q=self._queries,
            cu_seqlens_k=self._spans,
            seqused_k=self._used,
            most_keys=self.cache.max_tokens,
        )

    def advance(self) -> None:
        """Call once all layers have seen the new token."""
        self.lengths += 1
        self._target += 1
        self._used += 1

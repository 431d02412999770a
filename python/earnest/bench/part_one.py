# SPDX-License-Identifier: Apache-2.0
"""The sampler of the project's first part, kept to be measured against: a loop in Python over torch's own
products, norms and activations, with this package's attention; a token's log-probability out of the logits
that it is drawn from. (Prompts are read by today's kernels, which does it a favour.)"""

from __future__ import annotations

from typing import Any


def sample(model: Any, batch: Any, generator: Any, *, max_new_tokens: int, sampling: Any,
           stop_ids: list[int], samples_per_prompt: int) -> tuple[list[list[int]], list[Any]]:  # fmt: skip
    """(ids, log-probabilities) of each rollout."""
    import torch
    import torch.nn.functional as F

    from earnest.model.generate import _begin
    from earnest.model.kv_cache import LiveRows

    with torch.no_grad():
        begun = _begin(model, batch, max_new_tokens, generator, 0, (), samples_per_prompt, None)
        live, hidden, stops = LiveRows(begun.cache, begun.lengths), begun.hidden, torch.tensor(stop_ids)
        shape = len(begun.lengths), max_new_tokens
        ids, logp = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
        counts = torch.zeros(shape[0], dtype=torch.int64)
        for step in range(max_new_tokens):
            logits = F.linear(hidden, model.lm_head.weight)
            drawn = sampling.draw(logits, begun.uniforms[live.rows, step])
            ids[live.rows, step] = drawn
            logp[live.rows, step] = F.log_softmax(logits, -1).gather(1, drawn[:, None])[:, 0]
            counts[live.rows] += 1
            alive = ~torch.isin(drawn, stops)
            if step + 1 == max_new_tokens or not bool(alive.any()):
                break
            if not bool(alive.all()):
                live.keep(alive)
                drawn = drawn[alive]
            hidden = _run(model.model, drawn, live)
            live.advance()
    lengths = counts.tolist()
    return (
        [row[:n] for row, n in zip(ids.tolist(), lengths, strict=True)],
        [row[:n] for row, n in zip(logp, lengths, strict=True)],
    )


def _run(decoder: Any, ids: Any, live: Any) -> Any:
    import torch
    import torch.nn.functional as F

    from earnest.model.packed import fused

    def norm(x: Any, part: Any) -> Any:
        return F.rms_norm(x, part.weight.shape, part.weight, part.eps)

    x = F.embedding(ids, decoder.embed_tokens.weight)
    cosine, sine = (angle[:, None] for angle in decoder.angles(live.lengths, x.dtype))
    for index, layer in enumerate(decoder.layers):
        own, mlp = layer.self_attn, layer.mlp
        three = (own.q_proj, own.k_proj, own.v_proj)
        weight, bias = fused([part.weight for part in three]), fused([part.bias for part in three])
        qkv = F.linear(norm(x, layer.input_layernorm), weight, bias).view(len(x), -1, own.dim)
        q, k, v = qkv.split((own.heads, own.kv_heads, own.kv_heads), 1)
        a, b = torch.cat([q, k], 1).chunk(2, -1)
        turned = torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)
        mixed = live.attend(index, turned[:, : own.heads], turned[:, own.heads :], v)
        x = x + F.linear(mixed.reshape(len(x), -1), own.o_proj.weight)
        both = fused([mlp.gate_proj.weight, mlp.up_proj.weight])
        gate, up = F.linear(norm(x, layer.post_attention_layernorm), both).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, mlp.down_proj.weight)
    return norm(x, decoder.norm)

# SPDX-License-Identifier: Apache-2.0
"""The family's encoder and adaptor for one clip, in float64, as the published model code states them: plain
convolutions over the whole clip, a mask over the positions that do not count, outputs cut to the counted
length."""

import math

import torch
import torch.nn.functional as F


def hear(state, mel, *, heads, counted):
    """state: published names -> tensors; mel [n_mels, frames]; counted: frames that count. -> [tokens,
    llm_dim]."""
    w = {name: value.double() for name, value in state.items() if name.startswith(("encoder.", "adapter."))}
    x = mel.double()[None]
    x = F.gelu(F.conv1d(x, w["encoder.conv1.weight"], w["encoder.conv1.bias"], padding=1))
    x = F.gelu(F.conv1d(x, w["encoder.conv2.weight"], w["encoder.conv2.bias"], stride=2, padding=1))
    x = x[0].T
    x = x + w["encoder.positional_embedding.weight"][: len(x)]
    frames = mel.shape[1]
    visible = (torch.arange(frames) < counted)[(frames + 1) % 2 :: 2]
    layer = 0
    while f"encoder.blocks.{layer}.attn_ln.weight" in w:
        x = _block(w, f"encoder.blocks.{layer}.", x, heads, visible)
        layer += 1
    pooled = F.avg_pool1d(x.T[None], 2)[0].T
    pooled = F.layer_norm(
        pooled, pooled.shape[1:], w["encoder.after_norm.weight"], w["encoder.after_norm.bias"]
    )
    tokens = ((counted + 1) // 2 // 2 - 1) // 2 + 1
    y = F.gelu(
        F.conv1d(pooled.T[None], w["adapter.conv.weight"], w["adapter.conv.bias"], stride=2, padding=1)
    )[0].T
    y = F.relu(y @ w["adapter.linear1.weight"].T + w["adapter.linear1.bias"])
    return (y @ w["adapter.linear2.weight"].T + w["adapter.linear2.bias"])[:tokens]


def _block(w, at, x, heads, visible):
    def linear(name, y):
        out = y @ w[at + name + ".weight"].T
        return out + w[at + name + ".bias"] if at + name + ".bias" in w else out

    def norm(name, y):
        return F.layer_norm(y, y.shape[1:], w[at + name + ".weight"], w[at + name + ".bias"])

    y = norm("attn_ln", x)
    q, k, v = (
        linear("attn." + name, y).view(len(x), heads, -1).transpose(0, 1)
        for name in ("query", "key", "value")
    )
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~visible, -math.inf)
    x = x + linear("attn.out", (scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
    return x + linear("mlp.2", F.gelu(linear("mlp.0", norm("mlp_ln", x))))


def published_tensors(
    *, vocab, hidden, mlp, layers, kv_width, audio=1280, mels=128, audio_layers=32, context=1500
):
    """Names and shapes of a published checkpoint, written out from the family's model code."""
    shapes = {
        "encoder.conv1.weight": (audio, mels, 3),
        "encoder.conv1.bias": (audio,),
        "encoder.conv2.weight": (audio, audio, 3),
        "encoder.conv2.bias": (audio,),
        "encoder.positional_embedding.weight": (context, audio),
        "encoder.after_norm.weight": (audio,),
        "encoder.after_norm.bias": (audio,),
        "adapter.conv.weight": (audio, audio, 3),
        "adapter.conv.bias": (audio,),
        "adapter.linear1.weight": (2048, audio),
        "adapter.linear1.bias": (2048,),
        "adapter.linear2.weight": (hidden, 2048),
        "adapter.linear2.bias": (hidden,),
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for i in range(audio_layers):
        at = f"encoder.blocks.{i}."
        for name in ("query", "value", "out"):
            shapes[f"{at}attn.{name}.weight"], shapes[f"{at}attn.{name}.bias"] = (audio, audio), (audio,)
        shapes[at + "attn.key.weight"] = (audio, audio)
        shapes[at + "mlp.0.weight"], shapes[at + "mlp.0.bias"] = (4 * audio, audio), (4 * audio,)
        shapes[at + "mlp.2.weight"], shapes[at + "mlp.2.bias"] = (audio, 4 * audio), (audio,)
        for name in ("attn_ln", "mlp_ln"):
            shapes[f"{at}{name}.weight"], shapes[f"{at}{name}.bias"] = (audio,), (audio,)
    for i in range(layers):
        at = f"model.layers.{i}."
        for name, rows in (("q", hidden), ("k", kv_width), ("v", kv_width)):
            shapes[f"{at}self_attn.{name}_proj.weight"] = (rows, hidden)
            shapes[f"{at}self_attn.{name}_proj.bias"] = (rows,)
        shapes[at + "self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[at + "mlp.gate_proj.weight"] = shapes[at + "mlp.up_proj.weight"] = (mlp, hidden)
        shapes[at + "mlp.down_proj.weight"] = (hidden, mlp)
        shapes[at + "input_layernorm.weight"] = shapes[at + "post_attention_layernorm.weight"] = (hidden,)
    return shapes

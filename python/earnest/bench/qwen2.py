# SPDX-License-Identifier: Apache-2.0
"""Qwen2's decoder by definition, in torch's own operations; the references of cases that run one
(transformers' Qwen2 is the definition)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def hidden_states(weights: Mapping[str, Any], sizes: Mapping[str, Any], ids: Any, dtype: Any) -> Any:
    """int64 [..., tokens] -> [..., tokens, hidden] after the last norm, in dtype and where the ids are. A
    weight is read when its turn comes and let go of."""
    import torch
    import torch.nn.functional as F

    heads, kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    dim, count = sizes["hidden_size"] // heads, ids.shape[-1]
    angles = torch.arange(count, device=ids.device).double()[:, None]
    angles = angles * sizes["rope_theta"] ** (-torch.arange(0, dim, 2, device=ids.device).double() / dim)
    cosine, sine = (x.repeat(1, 2)[:, None].to(dtype) for x in (angles.cos(), angles.sin()))

    def w(name: str) -> Any:
        return weights[name].to(ids.device, dtype)

    def norm(x: Any, name: str) -> Any:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + sizes["rms_norm_eps"]) * w(name)

    def turned(x: Any) -> Any:
        return x * cosine + torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], -1) * sine

    x = weights["model.embed_tokens.weight"].to(ids.device)[ids].to(dtype)
    for layer in range(sizes["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        y = norm(x, at + "input_layernorm.weight")
        q, k, v = (
            F.linear(y, w(f"{at}self_attn.{n}_proj.weight"), w(f"{at}self_attn.{n}_proj.bias"))
            .view(*ids.shape, -1, dim) for n in "qkv"
        )  # fmt: skip
        q, k = turned(q).transpose(-3, -2), turned(k)
        k, v = (z.repeat_interleave(heads // kv_heads, -2).transpose(-3, -2) for z in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(-3, -2)
        x = x + F.linear(mixed.reshape(x.shape), w(at + "self_attn.o_proj.weight"))
        y = norm(x, at + "post_attention_layernorm.weight")
        gate, up = (F.linear(y, w(f"{at}mlp.{n}_proj.weight")) for n in ("gate", "up"))
        x = x + F.linear(F.silu(gate) * up, w(at + "mlp.down_proj.weight"))
    return norm(x, "model.norm.weight")


def logits(weights: Mapping[str, Any], hidden: Any) -> Any:
    """[rows, hidden] -> [rows, vocabulary], in the dtype of the states and where they are."""
    name = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"
    return hidden @ weights[name].to(hidden).T


def last_logits(
    weights: Mapping[str, Any],
    sizes: Mapping[str, Any],
    ids: Any,
    device: str = "cpu",
    dtype: str = "float32",
) -> Any:
    """int64 [sequences, tokens] -> logits after the last token of each, computed on `device` in `dtype`."""
    import torch

    hidden = hidden_states(weights, sizes, torch.from_numpy(ids).to(device), getattr(torch, dtype))
    return logits(weights, hidden[:, -1])

# SPDX-License-Identifier: Apache-2.0
"""The kernels as operators: torch tensors in, the same out, with gradients but over pages. linear, attention,
logprob and those of PPO take numpy and cupy arrays too, the two over pages cupy's; without gradients."""

from earnest._native import num_threads, set_num_threads
from earnest.ops import cuda
from earnest.ops.attention import attention
from earnest.ops.cuda import raise_faults
from earnest.ops.frames import gelu, layer_norm
from earnest.ops.linear import linear
from earnest.ops.logprob import logprob
from earnest.ops.paged_attention import paged_attention
from earnest.ops.ppo import PPOLoss, gae, group_advantage, ppo_loss, whiten
from earnest.ops.rotary_write import rotary_write
from earnest.ops.rowwise import rms_norm, rotary, rotary_angles, swiglu

__all__ = [
    "PPOLoss",
    "attention",
    "cuda",
    "gae",
    "gelu",
    "group_advantage",
    "layer_norm",
    "linear",
    "logprob",
    "num_threads",
    "paged_attention",
    "ppo_loss",
    "raise_faults",
    "rms_norm",
    "rotary",
    "rotary_angles",
    "rotary_write",
    "set_num_threads",
    "swiglu",
    "whiten",
]

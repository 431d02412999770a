# SPDX-License-Identifier: Apache-2.0
"""The ledger: what closeness each family promises, and why. Budgets are relative to honest arithmetic: a
kernel's error against float64 is at most `FACTOR` times that of plain same-precision arithmetic, plus a floor
of rounding."""

FACTOR = 2.0

MODEL = {
    # Relative to the largest value. Encoder and adaptor in float32 against float64: some ten layers of
    # rounding.
    "hearing": 2e-5,
    # Gradients of the same, relative to the largest of each weight.
    "gradient": 1e-4,
    # Whisper encoders (values up to 24, with outliers that magnify rounding) against transformers in float64:
    # in # float64 the largest difference, in float32 the root mean square one (transformers' own: 1e-6 to
    # 5e-6).
    "whisper_float64": 1e-10,
    "whisper_rms": 1e-5,
    # SmolLM2 as Qwen2 in float32 against transformers in float32, relative to the largest logit.
    "qwen2": 3e-5,
    # A token's log-probability: between implementations, and between the kernel and log_softmax of logits.
    # (Cached and uncached, and alone and in a batch, it is the same bit for bit.)
    "logp": 2e-4,
    "log_softmax": 2e-5,
}

# T1 and T4 of the testbeds. Terms of float32 tokens are computed in float32, sums over tokens in float64;
# beside these limits, float32 must stay within FACTOR of plain float32 arithmetic.
PPO = {
    "loss": {"float64": 1e-9, "float32": 1e-5},  # relative, losses and gradients against autograd in float64
    "gae": {"float64": 1e-12, "float32": 1e-6},  # absolute, entries of order 1, against the O(n^2) definition
    "rounding": 1.2e-7,  # float32, beside FACTOR times the error of plain arithmetic, of the largest entry
    "first_step": 1e-8,  # T3: mean first-step gradient against the enumerated one
    "bandit": 1e-3,  # T2: total variation to the fixed point
}

# Absolute, for entries of order 1 (standard normal q, k, v, grad_out), against the definition in float64.
# Beside these # floors every case must stay within FACTOR of torch's own attention in the same precision.
ATTENTION = {
    "forward": {"float32": 2e-6, "float64": 5e-15, "bfloat16": 1e-2},
    "backward": {"float32": 2e-5, "float64": 5e-14, "bfloat16": 6e-2},
    "lse": {"float32": 2e-6, "float64": 4e-15, "bfloat16": 2e-6},
}

# Log10 units of power (1 is 10 dB), and Whisper's scale, on which they are divided by 4. The transform is in
# float64, so that bands eight decades below the loudest of their frame are right; what is left is the
# rounding of a float32 near -10 (5e-7) and of log10(2) (4e-7), and the error of the logarithm (1e-7).
LOGMEL = {
    "raw": 2e-6,  # raw features against float64
    "normal": 5e-7,  # normalised ones; the target is 2e-6
    "peer": 1e-4,  # normalised, against transformers, whose transform is in float32
    "cuda": 1e-6,  # there the transform is in float32: beside FACTOR times plain float32's error
}

LOGPROB = {
    "float64": 1e-12,  # results and gradients against the definition, relative to the largest
    "floor": 1e-6,  # float32, beside FACTOR times the error of torch's float32; some units in the last place
}

# Against the definition in float64. Voicing is absolute (1 is a periodic wave), the others relative. A
# float32 transform of 512 is off by some 1e-7 of its largest value; a peak's place magnifies that by its
# flatness.
PITCH = {"voicing": 3e-6, "f0": 1e-4, "energy": 2e-6}

LINEAR = {
    "float64": 1e-13,  # results and gradients against the definition, relative to the largest
    # Beside FACTOR times the error of torch's own: some units in the last place of the largest.
    "floor": {"float32": 5e-7, "bfloat16": 2.0**-9},
    "positive": 2e-6,  # sums of thousands of positive terms, relative
}

QUANTIZED = {
    # Beside FACTOR times the error of plain arithmetic, of the largest result: some units in the last place.
    "floor": {"float32": 5e-7, "bfloat16": 2.0**-9},
    # A layer's error passes through the next ones: logits of a toy model on dequantised weights.
    "logits": {"float32": 2e-4, "bfloat16": 1e-1},
    # Of a fixed text, over that of the same weights in bfloat16 (SmolLM2-135M).
    "perplexity": {"int8": 1.01, "int4": 1.04},
}

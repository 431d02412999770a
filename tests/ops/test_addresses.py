# SPDX-License-Identifier: Apache-2.0
"""Arrays whose elements do not lie on multiples of their size, such as numpy's views of bytes can have: no
kernel may load them. Samples are copied, everything else is refused, argument by argument."""

import re

import numpy as np
import pytest
import torch

from earnest import _native, ops
from earnest.features import LogMel, Pitch
from shapes import between_addresses

REFUSED = (
    r"^\[\w+\] [\w ]+: expected memory at a multiple of its elements' {} bytes, got an address 1 past one$"
)


def ones(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.ones(shape, dtype)


def pitch_settings() -> _native.PitchSettings:
    return _native.PitchSettings(65.0, 600.0, 0.45, 0.03)


def attention() -> dict:
    q, bounds = ones(4, 2, 8), np.int32([0, 4])
    lengths = {"cu_seqlens_q": bounds, "cu_seqlens_k": bounds.copy(), "seqused_k": np.int32([4])}
    rest = {"sequences": 1, "causal": True, "scale": 1.0}
    inputs = {"q": q, "k": q.copy(), "v": q.copy(), "out": q.copy(), "lse": ones(4, 2, dtype="float64")}
    return inputs | lengths | rest


def attention_backward() -> dict:
    more = {"grad_out": ones(4, 2, 8), "grad_lse": ones(4, 2, dtype="float64")}
    return attention() | more | {f"grad_{name}": ones(4, 2, 8) for name in "qkv"}


def paged_attention() -> dict:
    q, bounds = ones(1, 2, 64, dtype="float16"), np.int32([0, 1])
    entries = {"page_table": np.int32([[1, 0]]), "lengths": np.int32([20]), "cu_seqlens_q": bounds}
    cache = {name: ones(2, 1, 16, 64, dtype="uint8") for name in "kv"}
    scales = {"k_scale": ones(1), "v_scale": ones(1)}
    return {"q": q, "out": q.copy()} | cache | entries | scales | {"queries": 1, "scale": 1.0}


def paged_attention_check() -> dict:
    entries = {key: paged_attention()[key] for key in ("page_table", "lengths", "cu_seqlens_q")}
    sizes = {"tokens": 1, "queries": 1, "pages": 2, "page_size": 16}
    return entries | {"k_scale": ones(1), "v_scale": ones(1)} | sizes


def rotary_write() -> dict:
    numbers = {name: ones(*size, dtype="float16") for name, size in {"qkv": (1, 192), "bias": (192,)}.items()}
    cache = {name: ones(2, 1, 16, 64, dtype="float16") for name in "kv"} | {"k_scale": None, "v_scale": None}
    entries = {"positions": np.int64([5]), "slots": np.int64([17])}
    return numbers | cache | entries | {"q": ones(1, 1, 64, dtype="float16"), "theta": 1e4}


def rotary_write_check() -> dict:
    entries = {key: rotary_write()[key] for key in ("positions", "slots")}
    return entries | {"k_scale": ones(1), "v_scale": ones(1), "pages": 2, "page_size": 16}


def packed() -> np.ndarray:
    weight = ones(3, 5)
    memory = torch.empty(_native.linear_packed_size(weight, False), dtype=torch.uint8).numpy()
    _native.linear_pack(weight, False, memory)
    return memory


def product() -> dict:
    return {"left": ones(2, 5), "packed": packed(), "bias": ones(3), "output": ones(2, 3)}


def quantized() -> np.ndarray:
    memory = np.empty(_native.quantized_packed_size("int8", 3, 64), np.uint8)
    _native.quantized_pack("int8", ones(3, 64), memory)
    return memory


def quantized_product() -> dict:
    inputs = {"codes": "int8", "left": ones(2, 64), "packed": quantized(), "bias": ones(3)}
    return inputs | {"output": ones(2, 3), "int8_activations": False}


def weight_gradient() -> dict:
    grads = {"grad_output": ones(2, 3), "grad_weight": ones(3, 5), "grad_bias": ones(3)}
    return grads | {"input": ones(2, 5)}


def logprob() -> dict:
    inputs = {"hidden": ones(2, 3), "weight": ones(5, 3), "targets": np.int64([0, 4]), "temperature": 1.0}
    kept = ones(_native.logprob_kept_size(2, 5, False))
    return inputs | {"logp": ones(2), "entropy": ones(2), "lse": ones(2), "logits": kept}


def logprob_backward() -> dict:
    arguments = logprob()
    del arguments["logp"]
    arguments |= {f"grad_{name}": ones(2) for name in ("logp", "entropy", "lse")}
    return arguments | {"grad_hidden": ones(2, 3), "grad_weight": ones(5, 3)}


def gae() -> dict:
    inputs = {"rewards": ones(4), "values": ones(4), "trainable": ones(4, dtype="bool")}
    rest = {"cu_seqlens": np.int32([0, 4]), "gamma": 1.0, "lam": 1.0, "refuse_masked_rewards": False}
    return inputs | rest | {"advantages": ones(4), "returns": ones(4)}


def ppo_loss() -> dict:
    names = ("logp", "logp_old", "advantages", "values", "values_old", "returns", "logp_ref", "entropy")
    arrays = {name: ones(4) for name in (*names, "weights", "token_normalizer")}
    numbers = {"normalizer": 0.0, "clip_low": 0.2, "clip_high": 0.2, "clip_value": 0.2, "dual_clip": None}
    coefs = {f"{name}_coef": 1.0 for name in ("policy", "value", "kl", "entropy")}
    grads = {f"grad_{name}": ones(4) for name in ("logp", "values", "entropy")}
    results = {"total": np.array(1, np.float32), "sums": ones(_native.PPO_NUM_SUMS, dtype="float64")}
    flags = {"trainable": ones(4, dtype="bool"), "kl_estimator": "k2"}
    return arrays | flags | numbers | coefs | grads | results


def moments(**more: object) -> dict:
    return {"x": ones(4), "trainable": ones(4, dtype="bool"), "out": ones(3, dtype="float64"), **more}


def whiten() -> dict:
    numbers = np.float64([4.0, 1.0, 1.0])
    return moments(moments=numbers, eps=1e-8, min_std=1e-3, out=ones(4))


def groups() -> dict:
    settings = {"leave_one_out": False, "normalize_std": True, "eps": 1e-8, "min_std": 1e-3}
    inputs = {"scores": ones(4), "groups": np.int64([0, 0, 1, 1]), "valid": ones(4, dtype="bool")}
    return inputs | settings | {"out": ones(4)}


def rms_norm() -> dict:
    return {"x": ones(3, 4), "weight": ones(4), "eps": 1e-6, "y": ones(3, 4), "inverse": ones(3)}


def rms_norm_backward() -> dict:
    arguments = rms_norm() | {"grad_y": ones(3, 4), "grad_x": ones(3, 4), "grad_weight": ones(4)}
    del arguments["y"]
    return arguments


def rotary(fused: str = "float32") -> dict:
    parts = {"q": ones(3, 2, 4), "k": ones(3, 1, 4), "v": ones(3, 1, 4)}
    return {"qkv": ones(3, 16, dtype=fused), "cosine": ones(3, 2), "sine": ones(3, 2)} | parts


def rotary_angles() -> dict:
    return {"positions": np.arange(3), "theta": 1e4, "cosine": ones(3, 2), "sine": ones(3, 2)}


def layer_norm() -> dict:
    rows = {"mean": ones(3), "inverse": ones(3)}
    return {"x": ones(3, 4), "weight": ones(4), "bias": ones(4), "eps": 1e-5, "y": ones(3, 4)} | rows


def layer_norm_backward() -> dict:
    arguments = layer_norm() | {"grad_y": ones(3, 4), "grad_x": ones(3, 4)}
    del arguments["y"], arguments["bias"]
    return arguments | {"grad_weight": ones(4), "grad_bias": ones(4)}


def swiglu() -> dict:
    return {"gate_up": ones(3, 8), "out": ones(3, 4)}


def swiglu_backward() -> dict:
    return {"gate_up": ones(3, 8), "grad_out": ones(3, 4), "grad_gate_up": ones(3, 8)}


def sums(rows: int, columns: int) -> dict:
    return {"parts": ones(rows, columns, dtype="float64"), "out": ones(columns, dtype="float64")}


# Every function of the extension that takes arrays, and arguments that it accepts.
CALLS = {
    "quantized_pack": lambda: {"codes": "int8", "weight": ones(3, 64), "packed": quantized()},
    "quantized_product": quantized_product,
    "quantized_unpack": lambda: {
        "codes": "int8",
        "outputs": 3,
        "packed": quantized(),
        "first": 0,
        "rows": ones(3, 64),
    },
    "attention_forward": attention,
    "attention_backward": attention_backward,
    "gelu": lambda: {"x": ones(4), "y": ones(4)},
    "gelu_backward": lambda: {"grad_y": ones(4), "x": ones(4), "grad_x": ones(4)},
    "layer_norm": layer_norm,
    "layer_norm_backward": layer_norm_backward,
    "linear_packed_size": lambda: {"source": ones(3, 5), "transposed": False},
    "linear_fingerprint": lambda: {"source": ones(3, 5)},
    "linear_pack": lambda: {"source": ones(3, 5), "transposed": False, "packed": packed()},
    "linear_product": product,
    "linear_weight_gradient": weight_gradient,
    "logmel": lambda: {"pcm": ones(400), "out": ones(80, 2), "step_audio": False},
    "logmel_reference": lambda: {"pcm": ones(400), "out": ones(80, 2), "step_audio": False},
    "logmel_normalize": lambda: {"raw": ones(80, 2), "out": ones(80, 2)},
    "logprob_forward": logprob,
    "logprob_backward": logprob_backward,
    "pitch": lambda: {"pcm": ones(400), "settings": pitch_settings(), "out": ones(3, 2)},
    "pitch_reference": lambda: {"pcm": ones(400), "settings": pitch_settings(), "out": ones(3, 2)},
    "pitch_nuclei": lambda: {"energy": ones(4), "f0": ones(4), "at": ones(4, dtype="int64")},
    "ppo_gae": gae,
    "ppo_loss": ppo_loss,
    "ppo_moments": moments,
    "ppo_whiten": whiten,
    "ppo_group_advantage": groups,
    "paged_attention": paged_attention,
    "paged_attention_check": paged_attention_check,
    "ppo_metrics": lambda: {
        "sums": ones(_native.PPO_NUM_SUMS, dtype="float64"),
        "out": ones(len(_native.ppo_metric_names()), dtype="float64"),
    },
    "ppo_join_sums": lambda: sums(2, _native.PPO_NUM_SUMS),
    "ppo_join_moments": lambda: sums(2, 3),
    "rms_norm": rms_norm,
    "rms_norm_backward": rms_norm_backward,
    "rotary": rotary,
    "rotary_angles": rotary_angles,
    "rotary_backward": rotary,
    "rotary_write": rotary_write,
    "rotary_write_check": rotary_write_check,
    "rotary_widening": lambda: rotary("int16"),
    "rotary_widening_backward": lambda: rotary("int16"),
    "swiglu": swiglu,
    "swiglu_backward": swiglu_backward,
}
LISTS = {"pitch_batch"}  # which takes lists of arrays: below
# Of arrays on a GPU, whose allocators begin at multiples of 256; csrc/bindings/place.h looks all the same.
ON_CUDA = {"linear_product_on_cuda", "logmel_clips", "logmel_normalize_clips", "logmel_push"}


def test_every_function_that_takes_arrays_stands_here():
    taking = {
        name
        for name, function in vars(_native).items()
        if "array[" in (getattr(function, "__doc__", None) or "") and not isinstance(function, type)
    }
    assert taking == CALLS.keys() | LISTS | ON_CUDA


@pytest.mark.parametrize("name", CALLS)
def test_every_array_between_addresses_is_refused_by_name(name: str):
    function = getattr(_native, name)
    function(**CALLS[name]())
    arrays = [key for key, x in CALLS[name]().items() if isinstance(x, np.ndarray) and x.itemsize > 1]
    assert arrays
    for key in arrays:
        arguments = CALLS[name]()
        moved = between_addresses(torch.from_numpy(arguments[key]))
        assert np.array_equal(moved, arguments[key])
        with pytest.raises(ValueError, match=REFUSED.format(moved.itemsize)) as refused:
            function(**arguments | {key: moved})
        said = re.match(r"\[\w+\] ([\w ]+):", str(refused.value))[1]
        others = {"source": "weight", "left": "input", "token_normalizer": "normalizer"}
        if key != "parts" and not (name == "logprob_backward" and key.startswith("grad_")):
            assert said == others.get(key, key) or (name, key) == ("ppo_moments", "out")


def test_streams_and_batches_refuse_them_too():
    pcm, refused = ones(400), REFUSED.format(4)
    moved = between_addresses(torch.from_numpy(pcm))
    for arguments in ((moved, ones(80, 2)), (pcm, between_addresses(torch.ones(80, 2)))):
        features = _native.LogMelStream(80, True)
        with pytest.raises(ValueError, match=refused):
            features.push(*arguments)
        assert features.pushed() == 0
    features.push(pcm, ones(80, 2))
    pitch = _native.PitchStream(pitch_settings())
    with pytest.raises(ValueError, match=refused):
        pitch.push(moved)
    pitch.push(pcm)
    for stream, rows in ((features, 80), (pitch, 3)):
        stream.finish()
        assert stream.ready() > 0
        with pytest.raises(ValueError, match=refused):
            stream.read(between_addresses(torch.ones(rows, stream.ready())))
    for clip, out in ((moved, ones(3, 2)), (pcm, between_addresses(torch.ones(3, 2)))):
        with pytest.raises(ValueError, match=refused):
            _native.pitch_batch([clip], pitch_settings(), [out])


def test_samples_between_addresses_are_copied():
    pcm = (0.1 * np.sin(np.arange(8000) / 13)).astype(np.float32)
    moved = between_addresses(torch.from_numpy(pcm))
    for samples in (moved, torch.from_numpy(moved)):
        assert np.array_equal(LogMel(80)(samples), LogMel(80)(pcm))
        assert np.array_equal(Pitch()(samples).f0, Pitch()(pcm).f0)
        assert np.array_equal(Pitch().batch([samples])[0].energy, Pitch()(pcm).energy)
        stream, pitch = LogMel(80).stream(), Pitch().stream()
        assert np.array_equal(stream.push(samples), LogMel(80).stream().push(pcm))
        assert np.array_equal(pitch.push(samples).voicing, Pitch().stream().push(pcm).voicing)
    raw = LogMel(80).raw(pcm)
    assert np.array_equal(LogMel.normalize(between_addresses(torch.from_numpy(raw))), LogMel.normalize(raw))


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_operators_say_so_in_our_voice(kind):
    flags = kind(np.ones(4, bool))
    calls = {
        "attention": lambda q: ops.attention(q, kind(ones(4, 2, 8)), kind(ones(4, 2, 8)), causal=True),
        "linear": lambda x: ops.linear(x, kind(ones(3, 8))),
        "logprob": lambda hidden: ops.logprob(hidden, kind(ones(5, 8)), kind(np.zeros(4, np.int64))),
        "gae": lambda rewards: ops.gae(rewards, kind(ones(4)), flags, kind(np.int32([0, 4]))),
        "whiten": lambda x: ops.whiten(x, flags),
    }
    shapes = {"attention": (4, 2, 8), "linear": (4, 8), "logprob": (4, 8), "gae": (4,), "whiten": (4,)}
    if kind is torch.from_numpy:
        calls |= {
            "rms_norm": lambda x: ops.rms_norm(x, torch.ones(8), 1e-6),
            "swiglu": ops.swiglu,
            "rotary": lambda qkv: ops.rotary(qkv, torch.ones(4, 1), torch.ones(4, 1), 2, 1, torch.float32),
        }
        shapes |= {"rms_norm": (4, 8), "swiglu": (4, 8), "rotary": (4, 8)}
    for name, call in calls.items():
        moved = between_addresses(torch.ones(shapes[name]))
        with pytest.raises(ValueError, match=rf"^\[{name}\] \w+: expected memory at a multiple"):
            call(kind(moved))

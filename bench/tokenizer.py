# SPDX-License-Identifier: Apache-2.0
"""The engine's tokenizer beside the `tokenizers` package on one thread: python bench/tokenizer.py [megabytes]

First both have to give the same ids. Then text per second (thread time, medians, in turns) on a vocabulary
trained in the manner of Qwen2 and one in that of SmolLM2, and the time to read a tokenizer.json of 151,643
tokens.
"""

import json
import os
import random
import statistics
import sys
import time
from functools import partial
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "engine"))

import tokenizers
import vocabularies
from tokenizers import pre_tokenizers

from earnest import _native

ROUNDS = 5


def seconds(call) -> float:
    began = time.thread_time()
    call()
    return time.thread_time() - began


def medians(calls: dict) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return {name: statistics.median(values) for name, values in times.items()}


def texts(megabytes: float) -> dict[str, str]:
    data = Path(__file__).parents[1].parent / "shared" / "data"
    prose = "\n".join(path.read_text(encoding="utf-8") for path in sorted(data.rglob("*.jsonl")))
    code = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted(Path(json.__file__).parent.parent.glob("*.py"))
    )
    size = int(megabytes * 1e6)
    rng = random.Random(1)
    sentences = vocabularies.corpus()
    return {
        "jsonl of shared/data": (prose * (size // max(len(prose), 1) + 1))[:size],
        "Python source": (code * (size // len(code) + 1))[:size],
        "sentences in 15 scripts": "\n".join(rng.choice(sentences) for _ in range(size // 60)),
    }


def large(tokens: int = 151_643) -> str:
    """A vocabulary of that size: the bytes, then merges of pairs drawn by chance."""
    rng = random.Random(1)
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    known, merges = set(names), []
    while len(names) < tokens:
        pair = [rng.choice(names[: 256 + len(merges) // 8]) for _ in range(2)]
        if "".join(pair) not in known and len("".join(pair)) < 24:
            merges.append(pair)
            names.append("".join(pair))
            known.add(names[-1])
    spec = json.loads(vocabularies.in_the_manner_of("qwen2", 300))
    spec["model"] |= {"vocab": {name: i for i, name in enumerate(names)}, "merges": merges}
    return json.dumps(spec, ensure_ascii=False)


def main() -> None:
    megabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    for family in ("qwen2", "smollm2"):
        corpus = texts(megabytes)
        definition = vocabularies.in_the_manner_of(family, 20_000, text=[*corpus.values()])
        native, peer = _native.Tokenizer(definition), tokenizers.Tokenizer.from_str(definition)
        for name, text in corpus.items():
            lines = text.split("\n")
            assert native.encode(text).tolist() == peer.encode(text, add_special_tokens=False).ids
            took = medians(
                {
                    "earnest": partial(native.encode, text),
                    "tokenizers": partial(peer.encode, text, add_special_tokens=False),
                    "earnest by lines": partial(
                        lambda encode, lines: [*map(encode, lines)], native.encode, lines
                    ),
                    "tokenizers by lines": partial(peer.encode_batch_fast, lines, add_special_tokens=False),
                }
            )
            size = len(text.encode()) / 1e6
            rates = ", ".join(f"{who} {size / took[who]:.1f} MB/s" for who in took)
            ratios = [took["tokenizers" + how] / took["earnest" + how] for how in ("", " by lines")]
            print(f"{family}, {name}: {rates}; x{ratios[0]:.1f}, x{ratios[1]:.1f}")
    definition = large()
    took = medians(
        {
            "earnest": lambda: _native.Tokenizer(definition),
            "tokenizers": lambda: tokenizers.Tokenizer.from_str(definition),
        }
    )
    print(
        f"load of 151,643 tokens ({len(definition.encode()) / 1e6:.1f} MB): earnest {took['earnest']:.3f} s, "
        f"tokenizers {took['tokenizers']:.3f} s"
    )


if __name__ == "__main__":
    main()

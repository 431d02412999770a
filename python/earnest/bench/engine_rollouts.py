# SPDX-License-Identifier: Apache-2.0
"""A case of learning's sampler: rollouts of the demo's model by the engine, over the trainer's own tensors,
beside the loop in Python on today's kernels and beside the one that the demo sampled with in part 1."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from earnest.bench import part_one, qwen2
from earnest.bench.case import OURS, Case, Implementation, Problem, Target, largest_difference

PROMPTS, PER_PROMPT, NEW_TOKENS = 8, 16, 96  # as in the demo's RLVR
SHORTEST_PROMPT, LONGEST_PROMPT = 60, 120
VOCABULARY, STOPS = 1024, 23  # of 1024 likely tokens: a reply has 45 tokens on average, as in the demo
WANTED = 5.0  # times faster than the loop
TOLERANCE = 1e-4  # of log-probabilities, and of where on the distribution a token lies


def cases() -> list[Case]:
    return [case()]


def case(prompts: int = PROMPTS, per_prompt: int = PER_PROMPT, new_tokens: int = NEW_TOKENS) -> Case:
    return Case(
        name="engine/rollouts-tiny",
        problem=lambda rng: _Rollouts(rng, prompts, per_prompt, new_tokens).problem(),
        shape={"prompts": prompts, "per_prompt": per_prompt, "new_tokens": new_tokens},
        threads=2,
        target=Target(ratio=WANTED, against="loop of part 1"),
        per=(prompts * per_prompt, "rollout"),
    )


class _Rollouts:
    def __init__(self, rng: np.random.Generator, prompts: int, per_prompt: int, new_tokens: int) -> None:
        import torch

        from earnest.learn.policy import pack_prompts
        from earnest.learn.types import Case as Question
        from earnest.learn.types import Prompt
        from earnest.model import AudioLM, AudioLMConfig
        from earnest.model.generate import Sampling

        config = AudioLMConfig.preset("tiny", vocab_size=VOCABULARY)
        seeds = [torch.Generator().manual_seed(int(seed)) for seed in rng.integers(1 << 31, size=2)]
        self.model = AudioLM(config, generator=seeds[0])
        lengths = rng.integers(SHORTEST_PROMPT, LONGEST_PROMPT + 1, prompts)
        self.prompts = [rng.integers(0, VOCABULARY, length).tolist() for length in lengths]
        question = Question("", "", ())
        self.batch = pack_prompts([Prompt(question, tuple(ids), (), ()) for ids in self.prompts]).batch
        self.per_prompt, self.seed = per_prompt, seeds[1].initial_seed()
        self.asked: dict[str, Any] = {
            "max_new_tokens": new_tokens,
            "sampling": Sampling(),
            "stop_ids": list(range(STOPS)),
            "samples_per_prompt": per_prompt,
        }

    def problem(self) -> Problem:
        compared: dict[str, Any] = {"outputs": self.compared, "extra": False}
        return Problem(
            inputs=[()],
            reference=lambda: [np.zeros(2)],
            implementations=[
                Implementation("earnest", lambda: self.natively, OURS, **compared),
                Implementation("Python loop", lambda: partial(_on_one_thread, self.in_python), **compared),
                Implementation(
                    "loop of part 1", lambda: partial(_on_one_thread, self.as_in_part_one), **compared
                ),
            ],
            tolerance=TOLERANCE,
            bytes=0,
            error=largest_difference,
        )

    def generator(self) -> Any:
        import torch

        return torch.Generator().manual_seed(self.seed)

    def natively(self) -> tuple[list[list[int]], list[Any]]:
        """(ids, log-probabilities) of each rollout."""
        from earnest.model.generate import generate_ids

        said = generate_ids(self.model, self.batch, generator=self.generator(), **self.asked)
        return said.ids, said.logp

    def in_python(self) -> tuple[list[list[int]], list[Any]]:
        import torch

        from earnest.model.generate import decode_steps

        rows = len(self.prompts) * self.per_prompt
        shape = rows, self.asked["max_new_tokens"]
        ids, logp = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
        counts = torch.zeros(rows, dtype=torch.int64)
        steps = decode_steps(self.model, self.batch, generator=self.generator(), **self.asked)
        for number, step in enumerate(steps):
            ids[step.rows, number], logp[step.rows, number] = step.ids, step.logp
            counts[step.rows] += 1
        lengths = counts.tolist()
        return (
            [row[:n] for row, n in zip(ids.tolist(), lengths, strict=True)],
            [row[:n] for row, n in zip(logp, lengths, strict=True)],
        )

    def as_in_part_one(self) -> tuple[list[list[int]], list[Any]]:
        return part_one.sample(self.model, self.batch, self.generator(), **self.asked)

    def compared(self, said: tuple[list[list[int]], list[Any]]) -> list[np.ndarray]:
        """How far any log-probability is from the definition's, in float64, and how far any token's share of
        the distribution from the number that drew it."""
        import torch

        weights, sizes = self.model.state_dict(), vars(self.model.config.text_config)
        rows, most = len(self.prompts) * self.per_prompt, self.asked["max_new_tokens"]
        uniforms = torch.rand(rows, most, generator=self.generator(), dtype=torch.float64)
        worst = np.full(2, 0.0 if len(said[0]) == rows else np.inf)
        for row, (ids, logp) in enumerate(zip(*said, strict=True)):
            if not self._is_whole(ids):
                return [np.full(2, np.inf)]
            prompt = self.prompts[row // self.per_prompt]
            read = torch.tensor(prompt + ids[:-1])
            hidden = qwen2.hidden_states(weights, sizes, read, torch.float64)[len(prompt) - 1 :]
            expected = qwen2.logits(weights, hidden).log_softmax(-1)
            tokens = torch.tensor(ids)[:, None]
            through, share = (
                expected.exp().cumsum(-1).gather(1, tokens)[:, 0],
                expected.gather(1, tokens)[:, 0],
            )
            drawn = uniforms[row, : len(ids)]
            outside = torch.maximum(through - share.exp() - drawn, drawn - through).clamp(min=0)
            found = (logp.double() - share).abs().max(), outside.max()
            worst = np.maximum(worst, [float(x) for x in found])
        return [worst]

    def _is_whole(self, ids: list[int]) -> bool:
        """It goes on until its first stop, or to its full length."""
        stops = [token < STOPS for token in ids]
        ended = bool(ids) and (stops[-1] or len(ids) == self.asked["max_new_tokens"])
        return ended and not any(stops[:-1])


def _on_one_thread(run: Callable[[], Any]) -> Any:
    """What torch itself computes in a model so small is done before another thread would have woken: the demo
    gives it one."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run()
    finally:
        torch.set_num_threads(threads)

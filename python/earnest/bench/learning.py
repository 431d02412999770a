# SPDX-License-Identifier: Apache-2.0
"""One whole step of reinforcement learning on text: sample, score, update; beside TRL's GRPO, which does the
same work: the same weights and prompts, as many replies of the same length, a reference policy, a group
baseline, one optimiser step of AdamW."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from earnest.bench import peers, qwen2
from earnest.bench.case import OURS, Case, Implementation, Problem, Target

PROMPTS, PER_PROMPT, NEW_TOKENS = 4, 8, 64
SHORTEST_PROMPT, LONGEST_PROMPT = 16, 32
KL, LEARNING_RATE = 0.04, 1e-6
SIZES: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
}
WANTED = 4.0  # times faster than TRL
# Of what the prompts' own tokens are worth, before the first step: everybody begins with the same model.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def cases() -> list[Case]:
    return [case(dtype) for dtype in ("float32", "bfloat16")]


def case(dtype: str) -> Case:
    short = "fp32" if dtype == "float32" else "bf16"
    return Case(
        name=f"learning/step-5m-{PROMPTS * PER_PROMPT}x{NEW_TOKENS}-{short}",
        problem=partial(_problem, dtype=dtype),
        shape=SIZES | {"prompts": PROMPTS, "per_prompt": PER_PROMPT, "new_tokens": NEW_TOKENS},
        dtype=dtype,
        threads=2,
        target=Target(ratio=WANTED),
        per=(PROMPTS * PER_PROMPT * NEW_TOKENS, "token"),
    )


def _problem(rng: np.random.Generator, *, dtype: str) -> Problem:
    world = _World(rng, dtype)
    lengths = [len(world.tokenizer.encode(text)) for text in world.prompts]
    read = PER_PROMPT * sum(lengths) + PROMPTS * PER_PROMPT * NEW_TOKENS
    sampled = sum(lengths) + PROMPTS * PER_PROMPT * NEW_TOKENS
    weights = sum(p.numel() for name, p in world.model().named_parameters() if name.startswith("model."))
    ours = Implementation(
        "earnest",
        lambda: _earnest_step(world),
        role=OURS,
        extra=False,
        checked=lambda *_: _checked_step(world),
    )
    trl = Implementation("TRL GRPO", lambda: _trl_step(world), checked=lambda *_: _logp_of_peer(world))
    return Problem(
        inputs=[()],
        reference=lambda: [_logp_by_definition(world)],
        implementations=[ours, trl],
        tolerance=TOLERANCE[dtype],
        bytes=4 * weights,
        # sampling and the reference read forward; the update reads forward and twice backward
        operations=2 * weights * (sampled + read + 3 * read),
    )


class _World:
    """Prompts, a vocabulary and initial weights that everybody begins with."""

    def __init__(self, rng: np.random.Generator, dtype: str) -> None:
        from earnest.dialogue import Tokenizer

        letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
        words = ["".join(rng.choice(letters, rng.integers(2, 8))) for _ in range(5000)]
        self.tokenizer = Tokenizer.train([" " + word for word in words], SIZES["vocab_size"])
        self.prompts = [self._text(rng, words) for _ in range(PROMPTS)]
        self.dtype, self.seed = dtype, int(rng.integers(1 << 31))

    def _text(self, rng: np.random.Generator, words: Sequence[str]) -> str:
        wanted = int(rng.integers(SHORTEST_PROMPT, LONGEST_PROMPT + 1))
        text = ""
        while len(self.tokenizer.encode(text)) < wanted:
            text += " " + str(rng.choice(words))
        return text

    def model(self) -> Any:
        import torch

        from earnest.model import AudioLM, AudioLMConfig

        torch.manual_seed(self.seed)
        return AudioLM(AudioLMConfig.preset("tiny", **SIZES))

    def score(self, ids: Sequence[int]) -> float:
        """A reward that costs nothing: the share of even ids."""
        return sum(token % 2 == 0 for token in ids) / max(len(ids), 1)


# ---- ours ----


class _Earnest:
    """The learning loop of the stages RLVR and RLHF, without a run around it."""

    def __init__(self, world: _World) -> None:
        import torch

        from earnest.learn.advantage import AdvantageSettings
        from earnest.learn.hearing import Hearing
        from earnest.learn.optimise import PolicySettings
        from earnest.learn.types import Case as Question
        from earnest.learn.types import Prompt
        from earnest.learn.update import Learner, Update, UpdateSettings

        self.world = world
        policy, reference = world.model(), world.model().requires_grad_(False)
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_(name.startswith(("model.", "lm_head.")))  # there is nothing to hear
        autocast = partial(torch.autocast, "cpu", torch.bfloat16)
        self.settings = PolicySettings(
            kl=KL,
            estimator="group",
            max_new_tokens=NEW_TOKENS,
            advantage=AdvantageSettings(normalize_std=True, whiten=False),
            update=UpdateSettings(lr=LEARNING_RATE, warmup_steps=0),
        )
        self.learner = Learner(
            policy,
            Hearing(policy),
            temperature=1.0,
            reference=reference,
            autocast=autocast if world.dtype == "bfloat16" else contextlib.nullcontext,
        )
        self.update = Update(self.learner, self.settings.update, steps=1 << 30)
        question = Question("", "", ())
        self.prompts = [
            Prompt(question, tuple(world.tokenizer.encode(text)), (), ()) for text in world.prompts
        ]
        self.generator = torch.Generator().manual_seed(world.seed)

    def experience(self) -> tuple[Any, dict[str, float]]:
        import torch

        from earnest.learn.optimise import experience_of
        from earnest.learn.rollout import sample
        from earnest.learn.types import Rewards

        with self.learner.autocast():
            rollouts = sample(
                self.learner.policy,
                self.world.tokenizer,
                self.learner.hearing,
                self.prompts,
                per_prompt=PER_PROMPT,
                max_new_tokens=NEW_TOKENS,
                generator=self.generator,
            )
        scores = torch.tensor([self.world.score(tokens.tolist()) for tokens in rollouts.tokens])
        rewards = Rewards(scores, torch.ones(len(scores), dtype=torch.bool))
        return experience_of(self.learner, rollouts, rewards, self.settings)

    def step(self) -> None:
        self.update(self.experience()[0], 0, self.generator)


def _earnest_step(world: _World) -> Callable[[], None]:
    loop = _Earnest(world)
    return loop.step


def _checked_step(world: _World) -> Any:
    """The log-probabilities that the policy begins with, once it has shown that the sampler's are the
    trainer's and that the gradient of a first step is REINFORCE's."""
    import torch

    from earnest.learn.policy import pack_prompts

    loop = _Earnest(world)
    with torch.no_grad(), loop.learner.autocast():
        batch = pack_prompts(loop.prompts).batch
        hidden = loop.learner.policy(batch)
        before, targets = _predicted(world)
        logp = loop.learner.policy.logprob(hidden[before], targets)[0]
    experience, _ = loop.experience()
    loop.update.check_first_step(experience)
    gap = loop.update(experience, 0, loop.generator)["sampler_gap_max"]
    if gap != 0.0:
        raise RuntimeError(f"sampler and trainer differ by {gap}")
    return logp


def _predicted(world: _World) -> tuple[Any, Any]:
    """Of the packed prompts: the positions that a token follows, and those tokens."""
    import torch

    ids = [world.tokenizer.encode(text) for text in world.prompts]
    starts = np.cumsum([0, *map(len, ids)])
    before = [start + i for start, one in zip(starts, ids, strict=False) for i in range(len(one) - 1)]
    return torch.tensor(before), torch.tensor([token for one in ids for token in one[1:]])


def _logp_by_definition(world: _World) -> Any:
    """The decoder in float64, one prompt at a time."""
    import torch

    weights, found = world.model().state_dict(), []
    for text in world.prompts:
        ids = torch.tensor(world.tokenizer.encode(text))
        hidden = qwen2.hidden_states(weights, SIZES, ids, torch.float64)
        logp = qwen2.logits(weights, hidden).log_softmax(-1)
        found.append(logp[:-1].gather(1, ids[1:, None])[:, 0])
    return torch.cat(found).numpy()


# ---- the peer ----


def _trl_step(world: _World) -> Callable[[], None]:
    trl, transformers = peers.load("trl"), peers.load("transformers")
    for needed in ("accelerate", "datasets"):
        peers.load(needed)
    import datasets
    import tokenizers
    import torch

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = tempfile.TemporaryDirectory(prefix="earnest-bench-")
    _as_qwen2(world, transformers).save_pretrained(folder.name)
    world.tokenizer.save(folder.name)
    reader = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_file(str(Path(folder.name) / "tokenizer.json")),
        eos_token="<|EOT|>", pad_token="<|endoftext|>", padding_side="left",
    )  # fmt: skip
    rows = [{"prompt": text} for text in world.prompts]
    trainer = trl.GRPOTrainer(
        model=folder.name,
        reward_funcs=lambda completion_ids, **_: [world.score(ids) for ids in completion_ids],
        args=trl.GRPOConfig(
            output_dir=folder.name, per_device_train_batch_size=PROMPTS * PER_PROMPT,
            num_generations=PER_PROMPT, max_completion_length=NEW_TOKENS, beta=KL, temperature=1.0,
            learning_rate=LEARNING_RATE, max_grad_norm=1.0, bf16=world.dtype == "bfloat16", use_cpu=True,
            gradient_checkpointing=False, report_to=[], disable_tqdm=True, logging_strategy="no",
            save_strategy="no", seed=world.seed,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=reader,
    )  # fmt: skip
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    model, optimiser = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.model_wrapped = model
    inputs = [row for row in rows for _ in range(PER_PROMPT)]

    def step() -> None:
        model.train()
        trainer.training_step(model, list(inputs), None)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        model.zero_grad()

    step.folder = folder  # type: ignore[attr-defined]  # it goes when the step does
    return step


def _logp_of_peer(world: _World) -> Any:
    import torch

    model, found = _as_qwen2(world, peers.load("transformers")), []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=world.dtype == "bfloat16"):
        for text in world.prompts:
            ids = torch.tensor([world.tokenizer.encode(text)])
            logp = model(ids).logits[0].float().log_softmax(-1)
            found.append(logp[:-1].gather(1, ids[0, 1:, None])[:, 0])
    return torch.cat(found)


def _as_qwen2(world: _World, transformers: Any) -> Any:
    """The same decoder with the same weights as transformers has it."""
    import torch

    config = transformers.Qwen2Config(
        **SIZES, bos_token_id=None,
        eos_token_id=world.tokenizer.special("<|EOT|>"),
        pad_token_id=world.tokenizer.special("<|endoftext|>"),
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config).to(torch.float32)
    weights = {n: p for n, p in world.model().state_dict().items() if n.startswith(("model.", "lm_head."))}
    model.load_state_dict(weights, strict=False)
    return model

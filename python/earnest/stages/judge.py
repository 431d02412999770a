# SPDX-License-Identifier: Apache-2.0
"""Judge training: from comparisons to a generative reward model.

Both orders of each pair stand in the same batch with mirrored verdicts, so that a preference for a position
costs as much as it could gain. The verdict's loss is cross-entropy over the ordinal levels; where a case
knows its reasoning, the notes are learnt too, since at reward time the judge writes them itself. After
training, the temperature of the verdict logits and what standing first is worth are fitted on the validation
split, and everything reported is measured on the held-out one. Comparisons from files have no such split:
what standing first is worth is then left as it is, and reported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from earnest.checkpoint import write_atomic
from earnest.dialogue import Tokenizer
from earnest.evaluate.calibration import fit_position, fit_temperature, judge_report
from earnest.learn.hearing import Hearing
from earnest.learn.judge import PHI, Judge, Question, findings_ids, noted, question_ids, verdict_ids
from earnest.learn.policy import Packed, pack
from earnest.learn.render import to_answer, to_learn
from earnest.learn.rollout import thoughts
from earnest.learn.types import Prompt
from earnest.model import AudioLM
from earnest.run import Run, seed_everything
from earnest.settings import RunSettings, setting
from earnest.stages.comparisons import Compared, load_comparisons
from earnest.stages.optimiser import OptimiserSettings, optimiser_step
from earnest.stages.source import DataSettings, load_model, save_model, trained

CALIBRATION_FILE = "judge.json"


@dataclass(frozen=True)
class Settings:
    model: str = setting("", "the model folder to start from, such as runs/demo/sft")
    steps: int = setting(250, at_least=1)
    batch: int = setting(24, "dialogues in a step", at_least=1)
    pairs: int = setting(4, "playground: comparisons on each dialogue, each in both orders", at_least=1)
    notes_weight: float = setting(0.3, "of the loss on the judge's notes", at_least=0)
    findings_weight: float = setting(
        4.0, "of the loss on what it finds out about each reply, where that is known (0: never)", at_least=0
    )
    seed: int = setting(0, at_least=0)
    data: DataSettings = field(default_factory=lambda: DataSettings(cases=3000))
    checks: int = setting(400, "comparisons of the validation and of the held-out split", at_least=1)
    optimiser: OptimiserSettings = field(default_factory=lambda: OptimiserSettings(lr=5e-4))
    run: RunSettings = field(default_factory=RunSettings)


def main(settings: Settings, run_dir: Path) -> None:
    with Run(run_dir, settings) as run:
        if run.finished:
            return
        seed_everything(settings.seed)
        model, tokenizer = load_model(settings.model, device=run.device)
        n_mels = model.config.audio_encoder_config.n_mels
        compared = load_comparisons(
            settings.data,
            n_mels,
            device=run.device,
            split="train",
            phase="comparisons",
            pairs=settings.pairs,
        )
        hearing = Hearing(model)
        train(run, settings, model, tokenizer, hearing, compared)
        judge = Judge(model, tokenizer, hearing, findings=finds(settings, compared))
        report = check(settings, judge, n_mels)
        save_model(run, model, tokenizer)
        write_atomic(run_dir / CALIBRATION_FILE, json.dumps(report, indent=1) + "\n")
        run.finish(**{key: value for key, value in report.items() if isinstance(value, int | float)})


def load_judge(folder: str | Path, device: torch.device | str = "cpu") -> Judge:
    """The judge of a run folder, calibrated."""
    model, tokenizer = load_model(folder, train=False, device=device)
    file = Path(folder) / CALIBRATION_FILE
    kept: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return Judge(
        model,
        tokenizer,
        Hearing(model),
        temperature=kept.get("temperature", 1.0),
        position_offset=kept.get("position_offset", 0.0),
        findings=kept.get("findings", False),
    )


def train(
    run: Run,
    settings: Settings,
    model: AudioLM,
    tokenizer: Tokenizer,
    hearing: Hearing,
    compared: Sequence[Compared],
) -> None:
    parameters = trained(model)
    moved_by = settings.optimiser.build(model)
    generator = torch.Generator().manual_seed(settings.seed)
    verdicts = verdict_ids(tokenizer, PHI)
    start = run.restore("judge training", model=model, optimiser=moved_by, generator=generator)
    dialogues, with_findings = by_dialogue(compared), finds(settings, compared)
    for step in run.steps(settings.steps, start):
        order = torch.randperm(len(dialogues), generator=generator)[: settings.batch]
        chosen = [dialogues[int(i)] for i in order]
        packed, notes, findings, classes = both_orders(chosen, tokenizer, model, with_findings)
        last, classes = packed.last.to(model.device), classes.to(model.device)
        with run.autocast():
            hidden = model(packed.batch, hearing.embed(model, packed.clips))
        logits = hidden.index_select(0, last) @ model.lm_head.weight[verdicts].T
        verdict_loss = F.cross_entropy(logits, classes)
        notes_loss, findings_loss = (
            written_loss(model, packed, hidden, where) for where in (notes, findings)
        )
        loss = verdict_loss + settings.notes_weight * notes_loss + settings.findings_weight * findings_loss
        loss.backward()
        norm = optimiser_step(
            moved_by, parameters, settings.optimiser.rate(step, settings.steps), settings.optimiser.clip_norm
        )
        right = (logits.argmax(1) == classes).float().mean()
        run.log(
            step,
            loss=verdict_loss.item(),
            notes_loss=notes_loss.item(),
            findings_loss=findings_loss.item(),
            exact=float(right),
            gradient_norm=norm,
        )


def by_dialogue(compared: Sequence[Compared]) -> list[list[Compared]]:
    """The comparisons of each dialogue together: it is read once for all of them."""
    groups: dict[str, list[Compared]] = {}
    for pair in compared:
        groups.setdefault(pair.case.id, []).append(pair)
    return list(groups.values())


def written_loss(model: AudioLM, packed: Packed, hidden: Tensor, where: Tensor) -> Tensor:
    """Mean negative log-probability of the tokens at the positions `where` (int64); zero where there are
    none."""
    if not len(where):
        return hidden.new_zeros(())
    targets = packed.batch.input_ids[where].to(hidden.device)
    return -model.logprob(hidden.index_select(0, (where - 1).to(hidden.device)), targets)[0].mean()


def finds(settings: Settings, compared: Sequence[Compared]) -> bool:
    """Whether the judge is taught to write down findings: where those of every comparison are known."""
    return settings.findings_weight > 0 and all(pair.findings is not None for pair in compared)


def both_orders(
    dialogues: Sequence[Sequence[Compared]], tokenizer: Tokenizer, model: AudioLM, with_findings: bool
) -> tuple[Packed, Tensor, Tensor, Tensor]:
    """Every comparison in both orders, packed; the positions of the known notes and of the findings (int64);
    the class of each verdict."""
    prompts, questions, classes, notes, lengths = [], [], [], [], []
    order = sorted(PHI)
    start = 0
    for pairs in dialogues:
        prompt, known = known_notes(pairs[0], tokenizer, model)
        dialogue = noted(prompt, known)
        if pairs[0].case.reasoning is not None:
            notes.append(torch.arange(start + len(prompt.ids), start + len(dialogue.ids)))
        start += len(dialogue.ids)
        for pair in pairs:
            question = Question(pair.case, pair.first, pair.second, pair.case.rubric)
            for asked, level in ((question, pair.level), (question.swapped(), -pair.level)):
                found: list[int] = []
                if with_findings and pair.findings is not None:
                    both = pair.findings if asked is question else pair.findings[::-1]
                    found = findings_ids(*both, tokenizer)
                prompts.append(dialogue)
                questions.append(torch.tensor([*question_ids(asked, tokenizer), *found], dtype=torch.int64))
                lengths.append(len(found))
                classes.append(order.index(level))
    packed = pack(prompts, questions)
    ends = packed.last.tolist()
    written = [torch.arange(end + 1 - n, end + 1) for end, n in zip(ends, lengths, strict=True)]
    return packed, _joined(notes), _joined(written), torch.tensor(classes)


def _joined(positions: list[Tensor]) -> Tensor:
    return torch.cat(positions) if positions else torch.zeros(0, dtype=torch.int64)


def known_notes(pair: Compared, tokenizer: Tokenizer, model: AudioLM) -> tuple[Prompt, list[int]]:
    """The case up to the opened thought, and its known reasoning up to the closing tag (none: closed at
    once)."""
    frames_to_tokens = model.config.audio_encoder_config.audio_tokens
    prompt = to_answer(pair.case, tokenizer, frames_to_tokens)
    close = tokenizer.special("</think>")
    if pair.case.reasoning is None:
        return prompt, [close]
    whole, _ = to_learn(pair.case, "", tokenizer, frames_to_tokens)
    end = len(whole.ids) - list(reversed(whole.ids)).index(close)
    return prompt, list(whole.ids[len(prompt.ids) : end])


def check(settings: Settings, judge: Judge, n_mels: int) -> dict:
    """Calibration on the validation split, and the judge's report on the held-out one, with notes of its
    own."""
    judge.model.eval()
    logs: dict[str, tuple[Tensor, Tensor, list[Compared]]] = {}
    for split in ("validation", "heldout") if not settings.data.files else ("validation",):
        data = DataSettings(
            files=settings.data.files,
            playground=settings.data.playground,
            cases=settings.checks,
            processes=settings.data.processes,
        )
        compared = load_comparisons(
            data, n_mels, device=judge.model.device, split=split, phase=f"{split} comparisons"
        )
        logs[split] = (*ask_both_orders(judge, compared), compared)
    forward, backward, compared = logs["validation"]
    levels = torch.tensor([sorted(PHI).index(pair.level) for pair in compared])
    temperature = fit_temperature(torch.cat([forward, backward]), torch.cat([levels, len(PHI) - 1 - levels]))
    # On the comparisons that it is fitted on, any judge would look free of position bias.
    apart = "heldout" in logs
    position = fit_position(forward / temperature, backward / temperature, PHI) if apart else (0.0, 0.0)
    forward, backward, compared = logs.get("heldout", logs["validation"])
    judge.model.train()
    return {
        "temperature": temperature,
        "findings": judge.findings,
        **judge_report(forward / temperature, backward / temperature, compared, PHI, position),
    }


@torch.no_grad()
def ask_both_orders(judge: Judge, compared: Sequence[Compared], at_once: int = 32) -> tuple[Tensor, Tensor]:
    """Log-probabilities [n, levels] of the verdicts in the order of the pairs, and with the replies
    swapped."""
    model, tokenizer = judge.model, judge.tokenizer
    forward, backward = [], []
    for begin in range(0, len(compared), at_once):
        pairs = compared[begin : begin + at_once]
        prompts = [
            to_answer(pair.case, tokenizer, model.config.audio_encoder_config.audio_tokens) for pair in pairs
        ]
        notes = thoughts(model, tokenizer, judge.hearing, prompts)
        dialogues = [noted(prompt, note) for prompt, note in zip(prompts, notes, strict=True)]
        questions = [Question(pair.case, pair.first, pair.second, pair.case.rubric) for pair in pairs]
        forward.append(judge.distribution(dialogues, questions).log())
        backward.append(judge.distribution(dialogues, [question.swapped() for question in questions]).log())
    return torch.cat(forward), torch.cat(backward)

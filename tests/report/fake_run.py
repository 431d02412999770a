# SPDX-License-Identifier: Apache-2.0
"""A run folder as the demo leaves it, made up: nothing in it was trained."""

import json
import math
import random
from pathlib import Path
from typing import Any

TASKS = ("arithmetic", "sound", "recall", "instruction", "consistency", "repair")
STAGES = ("midtrain", "sft", "rlvr", "rlhf")
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x00\ud800 </section>"


def stage_row(accuracy: float, utility: float, words: float, wins: dict[str, float]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "cases": 480,
        "accuracy": accuracy,
        "accuracy_by_task": {task: min(accuracy + 0.01 * i, 1.0) for i, task in enumerate(TASKS)},
        "accuracy_audio_zeroed": 0.11,
        "accuracy_by_measured": by_measured(accuracy),
        "listener_utility": utility,
        "reply_words": words,
        "acknowledges_speaker": words / 20,
        "reasoning_tokens": 18.0,
        "reasoning_present": 1.0,
    }
    for other, rate in wins.items():
        low, high = rate - 0.04, rate + 0.04
        row |= {
            f"win_rate_vs_{other}": rate,
            f"win_rate_vs_{other}_low": low,
            f"win_rate_vs_{other}_high": high,
        }
    return row


def by_measured(accuracy: float) -> dict[str, Any]:
    """Three measures in thirds; two cases have no voice to measure the pitch of."""
    ranges = {
        "f0_hz": {"none": (0.0, 0.0), "low": (91.6, 118.2), "middle": (118.4, 183.0), "high": (183.2, 301.0)},
        "syllables_per_second": {"low": (1.94, 3.31), "middle": (3.32, 5.03), "high": (5.04, 7.75)},
        "level_db": {"low": (-40.2, -33.9), "middle": (-33.8, -24.6), "high": (-24.5, -16.1)},
    }
    return {
        measure: {
            third: {
                "from": low,
                "to": high,
                "cases": 2 if third == "none" else 160,
                "accuracy": accuracy + 0.01 * place,
                "accuracy_low": accuracy + 0.01 * place - 0.05,
                "accuracy_high": accuracy + 0.01 * place + 0.05,
            }
            for place, (third, (low, high)) in enumerate(thirds.items())
        }
        for measure, thirds in ranges.items()
    }


def fake_metrics(seed: int = 0) -> dict[str, Any]:
    """The trap, and the way out of it."""
    return {
        "seed": seed,
        "quick": False,
        "seconds": {
            "midtrain": 400.0,
            "sft": 130.5,
            "rlvr": 200.0,
            "judge": 90.0,
            "rlhf": 260.0,
            "evaluate": 8.0,
        },
        "stages": {
            "midtrain": stage_row(0.50, 0.60, 6.1, {"sft": 0.41}),
            "sft": stage_row(0.60, 1.00, 7.4, {"sft": 0.5, "rlvr": 0.66}),
            "rlvr": stage_row(0.75, 0.70, 2.2, {"sft": 0.34, "rlvr": 0.5}),
            "rlhf": stage_row(0.74, 1.70, 8.8, {"sft": 0.79, "rlvr": 0.83}),
        },
        "judge": {
            "temperature": 1.12,
            "comparisons": 400,
            "accuracy": 0.86,
            "accuracy_by_distance": {"1": 0.81, "2": 0.94},
            "accuracy_true": 0.9,
            "swap_bias": 0.004,
            "swap_bias_standard_error": 0.006,
            "swap_disagree": 0.05,
            "ties_judged": 0.2,
            "ties_rated": 0.25,
            "ece": 0.031,
            "calibration_curve": [
                {"said": 0.1 * i + 0.05, "happened": 0.09 * i + 0.06, "count": 10 + i} for i in range(10)
            ],
        },
    }


def fake_answer(stage: str, index: int, rng: random.Random) -> dict[str, Any]:
    reply = {"rlvr": "eight", "rlhf": f"you sound in a hurry, so quickly: it is eight ({stage} {index})"}
    return {
        "case": f"0-heldout-{index}",
        "task": TASKS[index % len(TASKS)],
        "reasoning": f"heard: three plus five. voice: fast. {stage}",
        "reply": reply.get(stage, "it is eight."),
        "right": rng.random() < 0.6,
        "reasoning_tokens": 12,
        "utility": rng.uniform(-1, 2),
        "acknowledges": stage == "rlhf",
    }


def fake_lines(stage: str) -> list[dict[str, Any]]:
    """What a stage logs, 60 steps of it."""
    fall = [math.exp(-step / 20) for step in range(60)]
    if stage == "midtrain":
        hearing = [
            {"phase": "learning to hear", "step": i, "word_loss": 3 * f, "manner_loss": f}
            for i, f in enumerate(fall)
        ]
        return hearing + [{"phase": "mid-training", "step": i, "loss": 2 * f} for i, f in enumerate(fall)]
    if stage == "sft":
        return [{"phase": "fine-tuning", "step": i, "loss": f} for i, f in enumerate(fall)]
    if stage == "judge":
        return [
            {"phase": "judge training", "step": i, "loss": 1.6 * f, "notes_loss": f}
            for i, f in enumerate(fall)
        ]
    lines = []
    for i, f in enumerate(fall):
        line = {
            "phase": "policy",
            "step": i,
            "reward": 1 - f,
            "verified": 1 - f / 2,
            "accuracy": 1 - f / 2,
            "reply_words": 8 * f,
            "reasoning_words": 10.0,
            "clip_fraction": 0.1 * f,
            "entropy": f,
            "sampler_gap_mean": 1e-7,
            "sampler_gap_max": 1e-5,
            "well_formed": 1.0,
            "kl_k3": "nan",
        }
        if stage == "rlhf":
            line |= {
                "judge": f,
                "judge_rubric": 1 - f,
                "judge_plain": f,
                "swap_disagree": 0.1 * f,
                "kl_per_reply": 1 - f,
            }
        lines.append(line)
    return [{"phase": "", "step": 0, "questions": 600, "chosen": 200}, *lines]


def make_run(folder: Path, seed: int = 0, cases: int = 24) -> Path:
    """Writes the folder and returns it."""
    rng = random.Random(seed)
    (folder / "evaluation").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(fake_metrics(seed)))
    (folder / "settings.yaml").write_text(f"seed: {seed}\nvoices: espeak\nleave_out: ''\n")
    for stage in (*STAGES, "judge"):
        (folder / stage).mkdir()
        lines = "".join(json.dumps(line) + "\n" for line in fake_lines(stage))
        (folder / stage / "metrics.jsonl").write_text(lines)
    (folder / "sft" / "settings.yaml").write_text(
        f"data:\n  playground:\n    seed: {seed}\n    voices: espeak\n    leave_out: ''\n"
    )
    for stage in STAGES:
        heard = [{**fake_answer(stage, i, rng), "case": f"{seed}-heldout-{i}"} for i in range(cases)]
        text = json.dumps({"heard": heard, "unheard": heard})
        (folder / "evaluation" / f"{stage}.json").write_text(text)
    return folder

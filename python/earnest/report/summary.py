# SPDX-License-Identifier: Apache-2.0
"""What a run showed, in sentences made of its numbers alone: whether the trap appeared, and whether RLHF led
out of it."""

from __future__ import annotations

import math

from earnest.report.columns import (
    ACCURACY,
    ACKNOWLEDGES,
    REASONING,
    STAGE_NAMES,
    UTILITY,
    WIN_VS_RLVR,
    WIN_VS_SFT,
    WORDS,
    ZEROED,
    Column,
    Metrics,
    interval_text,
    stages_of,
)

WANTED_WINS = 0.70  # RLHF against RLVR
LARGEST_LOSS = 0.02  # of verified accuracy, RLHF against RLVR
KEPT_REASONING = 0.5  # of RLVR's reasoning length
WANTED_JUDGE_ACCURACY = 0.80


def summary(metrics: Metrics) -> list[str]:
    """Paragraphs. What a run does not know is not spoken of."""
    stages = stages_of(metrics)
    said = []
    if metrics.get("quick"):
        said.append(
            "This was a quick run: it shows that the path works. It is too short to learn much, and its "
            "numbers show nothing about the recipe."
        )
    if "sft" in stages and "rlvr" in stages:
        said.append(about_rlvr(stages["sft"], stages["rlvr"]))
    if "rlhf" in stages and "rlvr" in stages:
        said.append(about_rlhf(stages["rlvr"], stages["rlhf"]))
    said.append(about_silence(stages))
    said.append(about_judge(metrics.get("judge") or {}))
    return [paragraph for paragraph in said if paragraph]


def about_rlvr(sft: Metrics, rlvr: Metrics) -> str:
    """Whether RLVR raised accuracy, what it did to the replies, and whether that is the trap."""
    change = accuracy_change(sft, rlvr)
    if change is None:
        return ""
    difference, noise = change
    moved = difference > noise, difference < -noise
    verb = "raised" if moved[0] else "lowered" if moved[1] else "did not move"
    sentences = [
        f"RLVR {verb} verified accuracy{'' if any(moved) else ' beyond chance'}: "
        f"{_change(ACCURACY, sft, rlvr)} "
        f"({points(difference)}; two standard errors are {100 * noise:.1f})."
    ]
    effects = [
        f"{what} went from {_change(column, sft, rlvr)}"
        for what, column in (
            ("words in a reply", WORDS),
            ("replies that take up how the speaker sounds", ACKNOWLEDGES),
            ("the listener's utility", UTILITY),
        )
        if _known(column, sft, rlvr)
    ]
    if effects:
        sentences.append(f"{_sentence(', '.join(effects))}")
    bounds = WIN_VS_SFT.bounds(rlvr)
    if bounds is not None:
        sentences.append(
            f"The listener preferred RLVR's reply to SFT's in {WIN_VS_SFT.cell(rlvr)} of the cases."
        )
        sentences.append(_trap(moved[0], bounds))
    return " ".join(sentences)


def _trap(more_right: bool, wins: tuple[float, float]) -> str:
    less_liked, more_liked = wins[1] < 0.5, wins[0] > 0.5
    if more_right and less_liked:
        return "More right and less liked: this is the trap."
    if more_right and more_liked:
        return "More right and more liked as well: the trap did not appear in this run."
    if more_right:
        return "More right, and liked no differently as far as these cases can tell: the trap did not appear."
    if less_liked:
        return "Less liked, without the gain in accuracy that makes it a trap."
    return "Without a gain in accuracy there is no trap to speak of."


def about_rlhf(rlvr: Metrics, rlhf: Metrics) -> str:
    """The marks set for RLHF, each met or not."""
    sentences = []
    wins = WIN_VS_RLVR.value(rlhf)
    if wins is not None:
        met = "met" if wins >= WANTED_WINS else "not met"
        bounds = WIN_VS_RLVR.bounds(rlhf)
        likely = ""
        if bounds is not None and bounds[0] < WANTED_WINS <= bounds[1]:
            likely = f"; the interval {interval_text(bounds)} holds both sides of the mark"
        sentences.append(
            f"The listener preferred RLHF's reply to RLVR's in {WIN_VS_RLVR.cell(rlhf)} of the cases "
            f"(at least {WANTED_WINS:.0%} was wanted: {met}{likely})."
        )
    change = accuracy_change(rlvr, rlhf)
    if change is not None:
        met = "met" if change[0] >= -LARGEST_LOSS else "not met"
        sentences.append(
            f"Its verified accuracy is {ACCURACY.text(ACCURACY.value(rlhf))}, RLVR's "
            f"{ACCURACY.text(ACCURACY.value(rlvr))} ({points(change[0])}; "
            f"no more than {100 * LARGEST_LOSS:.0f} points below was wanted: {met})."
        )
    if _known(REASONING, rlvr, rlhf):
        before, after = REASONING.value(rlvr) or 0.0, REASONING.value(rlhf) or 0.0
        kept = "is kept" if after >= KEPT_REASONING * before else "is not kept"
        sentences.append(f"Reasoning {kept}: {_change(REASONING, rlvr, rlhf)} tokens.")
    return " ".join(sentences)


def about_silence(stages: dict[str, Metrics]) -> str:
    """What is answered without sound."""
    pairs = [
        f"{STAGE_NAMES.get(stage, stage)} {ACCURACY.cell(row)} with sound and {ZEROED.cell(row)} without"
        for stage, row in stages.items()
        if ACCURACY.value(row) is not None and ZEROED.value(row) is not None
    ]
    return (
        f"With the audio replaced by silence: {'; '.join(pairs)}. What is left is what can be guessed."
        if pairs
        else ""
    )


def about_judge(judge: Metrics) -> str:
    """Whether the judge can be trusted with what it was used for."""
    accuracy, bias, error = (judge.get(k) for k in ("accuracy", "swap_bias", "swap_bias_standard_error"))
    sentences = []
    if isinstance(accuracy, float) and math.isfinite(accuracy):
        met = "met" if accuracy >= WANTED_JUDGE_ACCURACY else "not met"
        sentences.append(
            f"On held-out comparisons in which the listener names a winner, the judge names the same one in "
            f"{accuracy:.1%} (above {WANTED_JUDGE_ACCURACY:.0%} was wanted: {met})."
        )
    if isinstance(bias, float) and isinstance(error, float) and math.isfinite(bias) and math.isfinite(error):
        within = "within noise" if abs(bias) <= 2 * error else "more than noise"
        sentences.append(f"Its swap bias is {bias:+.3f} ± {error:.3f} (standard error): {within}.")
    return " ".join(sentences)


def accuracy_change(before: Metrics, after: Metrics) -> tuple[float, float] | None:
    """(difference of verified accuracy, two standard errors of it). Both stages answer the same cases;
    taking them as apart makes the error a little too large, never too small where stages agree."""
    p, q = ACCURACY.value(before), ACCURACY.value(after)
    if p is None or q is None:
        return None
    n, m = (max(int(row.get("cases") or 1), 1) for row in (before, after))
    return q - p, 2 * math.sqrt(p * (1 - p) / n + q * (1 - q) / m)


def points(difference: float) -> str:
    return f"{100 * difference:+.1f} points"


def _known(column: Column, *rows: Metrics) -> bool:
    return all(column.value(row) is not None for row in rows)


def _change(column: Column, before: Metrics, after: Metrics) -> str:
    return f"{column.text(column.value(before))} to {column.text(column.value(after))}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."

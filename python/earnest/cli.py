# SPDX-License-Identifier: Apache-2.0
"""The command line: ``earnest demo | midtrain | sft | rlvr | judge | rlhf | chat | evaluate | report
| quantize | bench``.

Nothing heavy is imported until a command runs. What a user can get wrong ends in one sentence on stderr and
exit code 2; Ctrl-C in 130; a full disk or another system error in 1."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earnest import __version__
from earnest.errors import InvalidInput, MissingExtra


@dataclass(frozen=True)
class Stage:
    """One stage command: what it says about itself, and the flags that stand for settings of its own."""

    summary: str
    example: str
    flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    model: bool = False  # takes a model folder (the setting `model`) as its argument instead of a config
    folder: bool = False  # works on an existing run folder, its argument


def _demo_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quick",
        action=_Sets,
        nargs=0,
        const="true",
        key="quick",
        help="the same path in a few minutes, too short to learn much",
    )
    parser.add_argument(
        "--voices",
        action=_Sets,
        key="voices",
        metavar="PATH",
        help="recorded words to speak with: a folder or tar with a manifest",
    )
    parser.add_argument("--seed", action=_Sets, key="seed", metavar="N", help="seed of everything random")


STAGES = {
    "demo": Stage(
        "run the whole recipe on a tiny model: mid-training, SFT, then RLVR alone beside a judge with RLHF",
        "earnest demo --quick",
        flags=_demo_flags,
    ),
    "midtrain": Stage("teach a model to hear", "earnest midtrain --run runs/mine/midtrain --set seed=1"),
    "sft": Stage(
        "supervised fine-tuning: reasoning, then a reply",
        "earnest sft sft.yaml --set model=runs/mine/midtrain --run runs/mine/sft",
    ),
    "rlvr": Stage(
        "reinforcement learning from verifiable rewards",
        "earnest rlvr --set model=runs/mine/sft --run runs/mine/rlvr",
    ),
    "judge": Stage(
        "train the generative judge on comparisons",
        "earnest judge --set model=runs/mine/sft --run runs/mine/judge",
    ),
    "rlhf": Stage(
        "reinforcement learning from the judge, rubric and plain preference together",
        "earnest rlhf --set model=runs/mine/sft --set judge=runs/mine/judge --run runs/mine/rlhf",
    ),
    "evaluate": Stage(
        "measure a model on sounds and sentences it never trained on",
        "earnest evaluate runs/demo/rlhf --json",
        model=True,
    ),
    "report": Stage(
        "write report.html and metrics.json of a run", "earnest report runs/demo --json", folder=True
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    try:
        options = _parser().parse_args(arguments)
        if options.command is not _run_bench:  # where peers are timed as they are
            _let_waiting_threads_sleep()
        return options.command(options) or 0
    except (InvalidInput, MissingExtra) as error:
        return _complain(error, 2)
    except KeyboardInterrupt as error:  # run.Interrupted brings its message and code
        return _complain(error if str(error) else "stopped", getattr(error, "exit_code", 130))
    except BrokenPipeError:
        sys.stderr.close()  # whoever read the output has gone; there is nobody to tell
        return 1
    except OSError as error:
        return _complain(error.strerror if type(error).__name__ == "DiskFull" else error, 1)


def _let_waiting_threads_sleep() -> None:
    """torch's OpenMP threads and the pool of our kernels take turns on the same cores, and a thread that
    spins while it waits takes a core from the others. A step of the demo's RLHF on two cores took 1.77 s with
    spinning threads, 1.31 s with sleeping ones. Read when torch is loaded, so it must be said before."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _complain(what: object, code: int) -> int:
    print(f"earnest: {what}", file=sys.stderr)
    return code


# ---- parsing ----


class _Sets(argparse.Action):
    """A flag that is short for ``--set key=value``."""

    def __init__(self, option_strings: Sequence[str], dest: str, key: str, **rest: Any) -> None:
        super().__init__(option_strings, "overrides", **rest)
        self.key = key

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        value = self.const if self.nargs == 0 else values
        namespace.overrides = [*(namespace.overrides or []), f"{self.key}={value}"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="earnest",
        description="Audio language models that reason about what they hear.",
        epilog="example: earnest demo --quick",
    )
    parser.add_argument("--version", action="version", version=f"earnest {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for name, stage in STAGES.items():
        if name == "evaluate":  # the order of a first visit
            _add_chat(commands)
        _add_stage(commands, name, stage)
    _add_quantize(commands)
    _add_bench(commands)
    return parser


def _add_stage(commands: Any, name: str, stage: Stage) -> None:
    parser = commands.add_parser(
        name,
        help=stage.summary,
        description=f"{stage.summary[0].upper()}{stage.summary[1:]}.",
        epilog=f"example: {stage.example}",
        allow_abbrev=False,
    )
    if stage.model:
        parser.add_argument("model", metavar="MODEL_DIR", help="a model folder, such as runs/demo/rlhf")
    elif stage.folder:
        parser.add_argument("run", metavar="RUN_DIR", type=Path, help="a run folder, such as runs/demo")
    else:
        parser.add_argument("config", nargs="?", metavar="CONFIG", help="settings as a YAML file")
    if stage.model or stage.folder:
        metavar = "MODEL_DIR" if stage.model else "RUN_DIR"
        parser.add_argument("others", nargs="*", metavar=metavar, help="further ones, for the same table")
    parser.add_argument("--config", dest="config_flag", metavar="FILE", help="settings as a YAML file")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one setting, dotted keys; may be given many times, the last one wins",
    )
    if not stage.folder:
        parser.add_argument(
            "--run",
            type=Path,
            default=Path("runs") / name,
            metavar="DIR",
            help="where to keep it; the same command goes on (default: %(default)s)",
        )
    if not stage.folder:
        parser.add_argument(
            "--device",
            action=_Sets,
            key="run.device",
            choices=("cpu", "cuda"),
            help="what to compute on (default: cpu)",
        )
    parser.add_argument(
        "--fresh",
        action=_Sets,
        nargs=0,
        const="false",
        key="run.resume",
        help="start over: deletes what an earlier run left in the folder",
    )
    parser.add_argument(
        "--print-settings",
        action="store_true",
        help="print every setting with its meaning, value and origin, and stop",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON on standard output")
    stage.flags(parser)
    parser.set_defaults(command=lambda options: _run_stage(name, options))


def _run_stage(name: str, options: argparse.Namespace) -> None:
    from earnest import settings as reader

    module = importlib.import_module(f"earnest.stages.{name}")
    config = options.config_flag or getattr(options, "config", None)
    overrides = list(options.overrides)
    if getattr(options, "model", None):
        overrides.insert(0, f"model={options.model}")
    if getattr(options, "others", None):
        overrides.insert(0, f"others={json.dumps(options.others, ensure_ascii=False)}")  # a YAML list too
    settings = reader.resolve(module.Settings, config, overrides)
    if options.print_settings:
        print(reader.describe(settings, documented=True))
        return
    if name == "demo":
        from earnest.run import make_way

        make_way(options.run, settings)
    print(f"earnest {name}: {options.run}\n{reader.describe(settings)}", file=sys.stderr, flush=True)
    # With --json, whatever else a stage prints makes way for the JSON.
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        result = module.main(settings, options.run)
    if options.json:
        print(json.dumps({} if result is None else result, indent=1))


class _Part(argparse.Action):
    """--audio and --text make the parts of one user turn, in the order given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        kind = (option_string or "").lstrip("-")
        namespace.parts = [*namespace.parts, (kind, values)]


def _add_chat(commands: Any) -> None:
    parser = commands.add_parser(
        "chat",
        help="talk with a model: one question about sound files, or a conversation",
        description="Answers one question made of --audio and --text, in that order; without either, holds a "
        "conversation in the terminal, where a line `/audio FILE` adds a recording to your turn.",
        epilog="example: earnest chat runs/demo/rlhf --audio question.wav --text 'And how did I sound?'",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL_DIR", help="a model folder or hub id, such as runs/demo/rlhf")
    parser.add_argument(
        "--audio",
        action=_Part,
        dest="parts",
        default=[],
        metavar="FILE",
        help="a sound file: wav, flac, ogg, mp3; may be given again",
    )
    parser.add_argument("--text", action=_Part, dest="parts", metavar="TEXT", help="text of the same turn")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the conversation")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 takes the likeliest token (default: %(default)s)",
    )
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of sampling (default: %(default)s)")
    parser.add_argument(
        "--no-think", dest="think", action="store_false", help="answer without reasoning first"
    )
    parser.add_argument(
        "--json", action="store_true", help="print {reasoning, reply} as JSON, one line a turn"
    )
    parser.set_defaults(command=_run_chat)


def _run_chat(options: argparse.Namespace) -> None:
    from earnest.chat import run

    run(options)


def _add_quantize(commands: Any) -> None:
    parser = commands.add_parser(
        "quantize",
        help="write a model with int8 or int4 weights, for the engine",
        description="Reads a model folder and writes one whose decoder has quantised weights: int8 (a scale "
        "for each output) or int4 (in groups of 32, the output matrix in int8). The engine uses them where "
        "they lie in the file.",
        epilog="example: earnest quantize runs/demo/rlhf runs/demo/rlhf-int8 --weights int8",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="IN", help="a model folder, such as runs/demo/rlhf")
    parser.add_argument("out", metavar="OUT", help="the folder to write, which must not exist yet")
    parser.add_argument("--weights", choices=("int8", "int4"), default="int8", help="default: %(default)s")
    parser.set_defaults(command=_run_quantize)


def _run_quantize(options: argparse.Namespace) -> None:
    from earnest import _native
    from earnest.ops.eager import call

    call(_native.engine.quantize, options.model, options.out, options.weights)
    print(options.out)


def _add_bench(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="time the kernels beside their peers, after checking that both are right",
        description="Checks each case against float64, times it side by side with its peers in the same run, "
        "and says how it stands to the best of them and to this machine's limits.",
        epilog="example: earnest bench logmel attention --peers --json results.jsonl; then earnest bench "
        "report results.jsonl, or earnest bench compare old.jsonl new.jsonl --ratio 1.5",
        allow_abbrev=False,
    )
    parser.add_argument(
        "what",
        nargs="*",
        metavar="FAMILY",
        help="logmel, pitch, ppo, linear, rowwise, attention, logprob, learning, engine (default: all), or "
        "part of a case's name with its slash; or `report [FILE ...]`: tables and plots of result files; "
        "or `compare OLD NEW`",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: what each case's target says")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: logmel, ppo, attention, logprob, linear and engine, on the GPU (default: %(default)s)",
    )
    parser.add_argument(
        "--peers", action="store_true", help="time the packages of the extra `bench` too, not torch alone"
    )
    parser.add_argument("--quick", action="store_true", help="a few cases, shortly: under a minute")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="cuda: share so many among the cases, the first ones first"
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="append one JSON line for each case to FILE; without FILE, print them on standard output",
    )
    parser.add_argument(
        "--ratio",
        type=float,
        default=1.5,
        metavar="R",
        help="compare: exit with 1 if a case got slower, relative to a peer, by more than this factor "
        "(default: %(default)s)",
    )
    parser.set_defaults(command=_run_bench)


def _run_bench(options: argparse.Namespace) -> int:
    from earnest.bench.command import run

    return run(options)


if __name__ == "__main__":
    sys.exit(main())

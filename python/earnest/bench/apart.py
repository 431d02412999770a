# SPDX-License-Identifier: Apache-2.0
"""Work in a process beside this one, question by question: where it faults or hangs, that question has no
answer, and the next one is asked of a process that begins anew.

The process is forked, so that it has everything that was imported here. A CUDA context does not survive
that: this process must not have touched CUDA, of which even torch.cuda.is_available() does. What goes to and
fro is JSON."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable
from typing import Any

from earnest.errors import InvalidInput

Words = dict[str, Any]
Answerer = Callable[[Words], Words]
STDERR = 2
LEAVING = "leaving"  # in an answer: the last one of its process
ASKED_WHERE = signal.SIGUSR1  # on which a process that hangs says where


class Lost(RuntimeError):
    """The process ended, or had to be ended, without an answer; the message says why."""


class Apart:
    """begin: called in the process when it begins; what it returns answers. An InvalidInput of either is
    raised here, any other exception ends the process, and Lost says what it was."""

    def __init__(self, begin: Callable[[], Answerer]) -> None:
        self._begin = begin
        self._process: Any = None
        self._pipe: Any = None

    @property
    def is_new(self) -> bool:
        """Whether the next question begins a process."""
        return self._process is None

    def ask(self, question: Words, seconds: float | None = None) -> Words:
        """seconds: after which it is taken for hanging; None: never."""
        if self._process is None:
            self._start()
        try:
            self._pipe.send_bytes(json.dumps(question).encode())
            if not self._pipe.poll(seconds):
                os.kill(self._process.pid, ASKED_WHERE)
                self._process.join(0.5)
                self.close()
                raise Lost(f"no answer after {seconds:.0f} s")
            answer = json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            raise Lost(self._last_words()) from None
        if LEAVING in answer or "invalid" in answer or "fails" in answer:
            self.close()
        if "invalid" in answer:
            raise InvalidInput(*answer["invalid"])
        if "fails" in answer:
            raise Lost(answer["fails"])
        return answer

    def close(self) -> None:
        """Ends the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join(10)  # who waits for a GPU may take its time
            self._pipe.close()
            self._process = self._pipe = None

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_answer, args=(self._begin, other, self._pipe), daemon=True
        )  # or an error here would wait for it
        with warnings.catch_warnings():  # of threads, such as OpenBLAS's, which knows of forks
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        other.close()

    def _last_words(self) -> str:
        self._process.join(10)
        code = self._process.exitcode
        self.close()
        if code is not None and code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with exit code {code}"


def _answer(begin: Callable[[], Answerer], pipe: Any, other: Any) -> None:
    """The process: until nobody asks any more."""
    other.close()  # or the end of who asks would not be seen
    faulthandler.enable(STDERR, all_threads=False)
    faulthandler.register(ASKED_WHERE, STDERR, all_threads=False)

    def said(words: Words) -> None:
        pipe.send_bytes(json.dumps(words).encode())

    answer: Answerer | None = None
    while True:
        try:
            question = json.loads(pipe.recv_bytes())
        except EOFError:
            os._exit(0)  # at once: no device is asked to clean up
        try:
            answer = answer or begin()
            said(answer(question))
        except InvalidInput as error:
            said({"invalid": [error.op, error.argument, error.expected, error.got]})
        except Exception as error:
            said({"fails": f"{type(error).__name__}: {str(error).strip()}"})

# SPDX-License-Identifier: Apache-2.0
"""One answer, as events, for loops of either kind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any

import numpy as np

from earnest.engine.events import Done, Event, Usage, next_event

_WAIT_MS = 100  # between looks at whether somebody pressed Ctrl-C


class Answer:
    """One answer, an iterator of events (``for`` or ``async for``, not both). It is cancelled when it is
    closed, left as a context manager or forgotten before it is done: what had been said so far stays in the
    dialogue."""

    def __init__(self, native: Any) -> None:
        self._native: Any = native
        self._done = False
        self._arrived: asyncio.Queue[Event | BaseException] | None = None

    @property
    def reasoning(self) -> str:
        """All of the thought so far."""
        text: str = self._native.reasoning
        return text

    @property
    def reply(self) -> str:
        """All of the reply so far."""
        text: str = self._native.reply
        return text

    @property
    def usage(self) -> Usage:
        return Usage(**self._native.usage())

    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids drawn so far, int32 [tokens], one that ended the answer included, and their
        log-probabilities at the sampling temperature (at 1 where that is 0), float32 [tokens]."""
        ids, logprobs = self._native.tokens()
        return np.asarray(ids, np.int32), np.asarray(logprobs, np.float32)

    def cancel(self) -> None:
        """Ends it before the next token; from any thread, any number of times. `Done` still comes."""
        self._native.cancel()

    def close(self) -> None:
        """Cancels it and ends the iteration."""
        self._done = True
        self._native.cancel()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        if self._done:
            raise StopIteration
        try:
            event = None
            while event is None:  # Ctrl-C is seen between two waits
                event = next_event(self._native, _WAIT_MS)
        except BaseException:
            self.close()
            raise
        self._done = isinstance(event, Done)
        return event

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if self._done:
            raise StopAsyncIteration
        if self._arrived is None:
            self._arrived = asyncio.Queue()
            how = (self._native, asyncio.get_running_loop(), self._arrived)
            threading.Thread(target=_forward, args=how, name="earnest answer", daemon=True).start()
        try:
            event = await self._arrived.get()
            if isinstance(event, BaseException):
                raise event
        except BaseException:
            self.close()
            raise
        self._done = isinstance(event, Done)
        return event

    async def aclose(self) -> None:
        """As `close`."""
        self.close()

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        native = getattr(self, "_native", None)
        if native is not None:
            native.cancel()


def _forward(
    native: Any, loop: asyncio.AbstractEventLoop, arrived: asyncio.Queue[Event | BaseException]
) -> None:
    """Waits for the events of one answer on a thread of its own and hands them to the loop."""
    event: Event | BaseException | None = None
    while not isinstance(event, Done | BaseException):
        try:
            event = next_event(native, -1)
        except BaseException as error:
            event = error
        if event is None:
            continue
        try:
            loop.call_soon_threadsafe(arrived.put_nowait, event)
        except RuntimeError:  # the loop is gone: nobody listens
            native.cancel()
            return

# SPDX-License-Identifier: Apache-2.0
"""A model in memory, and the memory for dialogues over it."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypedDict

from earnest import _native
from earnest.engine.checks import OP, switch, whole
from earnest.engine.session import Session
from earnest.errors import InvalidInput

PRODUCTS = ("ours", "vendor")
WEIGHTS = ("as-stored", "float32", "bfloat16", "int8", "int4")


class Stats(TypedDict):
    """Counts of an engine: of now, and since the beginning."""

    running: int
    waiting: int
    sessions: int
    kv_tokens: int
    kv_tokens_used: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    # Of CUDA graphs: those recorded; steps of answers done by one, and launched one by one; why none can be.
    recorded_graphs: int
    graph_steps: int
    plain_steps: int
    graph_trouble: str | None


class Engine:
    """A model in memory and the memory for dialogues over it. May be used from any thread.

    path: a folder in the published format. device: "cpu", or "cuda" (the first GPU), "cuda:1" and so on where
    the build has it and that GPU is there (all weights but float32; heads of 64 or 128). threads: for
    computing, of the whole process (None: as they are, at first all cores). weights: "as-stored", "float32",
    "bfloat16", "int8" or "int4".
    products: who multiplies on a GPU by weights that are not quantised. With "ours" an answer does not depend
    on what runs beside it, nor on the pieces that a dialogue is read in, to the last bit; with "vendor", that
    is NVIDIA's cuBLASLt, it may; attention then takes a prompt's keys whole, unless a dialogue of more than
    512 tokens says one in the same step. "vendor" is refused on the CPU, and where no cuBLASLt can be loaded.
    kv_bytes: memory for keys and values (None: room for 4 full contexts, or a quarter of the machine's; on a
    GPU taken at once, at most half of what is free there).
    max_generations, max_waiting: answers that run side by side (64), and that may wait beside them (256).
    prefill_tokens: of prompts that are read between two steps of the answers beside (256).
    cuda_graphs: whether steps in which every answer says a token are recorded once and replayed, with the
    same bits (None: on a GPU that can record; True is refused on the CPU). `stats` says what became of it.

    Raises ValueError for a folder that holds no model it can run, MemoryError where memory runs out.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "cpu",
        threads: int | None = None,
        *,
        weights: str = "as-stored",
        products: Literal["ours", "vendor"] = "ours",
        kv_bytes: int | None = None,
        max_generations: int | None = None,
        max_waiting: int | None = None,
        prefill_tokens: int | None = None,
        cuda_graphs: bool | None = None,
    ) -> None:
        if weights not in WEIGHTS:
            raise InvalidInput(OP, "weights", f"one of {', '.join(WEIGHTS)}", repr(weights))
        if products not in PRODUCTS:
            raise InvalidInput(OP, "products", " or ".join(PRODUCTS), repr(products))
        self._native: Any = _native.session.Engine(
            os.fspath(path),
            device,
            WEIGHTS.index(weights),
            PRODUCTS.index(products),
            whole("kv_bytes", kv_bytes, 2**63 - 1),
            whole("max_generations", max_generations),
            whole("max_waiting", max_waiting),
            whole("threads", threads),
            whole("prefill_tokens", prefill_tokens),
            switch("cuda_graphs", cuda_graphs),
        )
        self.info: dict[str, Any] = json.loads(self._native.info)
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()

    def session(
        self,
        system: str | None = None,
        *,
        template: Literal["canonical", "stepfun-compat"] = "canonical",
        history: Literal["keep", "strip"] = "keep",
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Session:
        """A new dialogue. system: how the model shall behave. history: "strip" takes the thought of an answer
        away when the answer is there. tools: their JSON schemas."""
        if history not in ("keep", "strip"):
            raise InvalidInput(OP, "history", "keep or strip", repr(history))
        schemas = None if tools is None else json.dumps(list(tools))
        made = _native.session.Session(self._open(), template, history == "strip", schemas)
        session = self._keep(made)
        if system is not None:
            session.add_text(system, role="system")
        return session

    def load_session(self, path: str | os.PathLike[str]) -> Session:
        """A dialogue as `Session.save` left it; it goes on with the same bits. ValueError for a file of
        another model, or of something else."""
        return self._keep(_native.session.Session.load(self._open(), os.fspath(path)))

    def chat(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A chat completion request of OpenAI's shape, answered in one call (csrc/capi/README.md says what
        it may hold)."""
        response: dict[str, Any] = json.loads(self._open().chat(json.dumps(request)))
        return response

    def stats(self) -> Stats:
        """Counts now (running, waiting, sessions, kv_tokens, kv_tokens_used) and since the beginning (the
        others)."""
        counts: Stats = self._open().stats()
        return counts

    def drain(self, timeout: float | None = None) -> None:
        """Takes no new answers and waits for those there are. TimeoutError after so many seconds; the rest
        goes on."""
        self._open().drain(-1 if timeout is None else max(0, round(1000 * timeout)))

    def close(self) -> None:
        """Cancels what runs and gives everything back; its sessions are closed as well."""
        for session in list(self._sessions):
            session.close()
        self._native = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Any:
        if self._native is None:
            raise InvalidInput(OP, "engine", "one that is open", "a closed one")
        return self._native

    def _keep(self, native: Any) -> Session:
        session = Session(native, self._keep)
        self._sessions.add(session)
        return session

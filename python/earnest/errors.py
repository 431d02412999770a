# SPDX-License-Identifier: Apache-2.0
"""The errors a user can cause, each one sentence: ``[op] argument: expected X, got Y``."""


class InvalidInput(ValueError):
    """Input that does not fit what an operation promises to take."""

    def __init__(self, op: str, argument: str, expected: str, got: str) -> None:
        super().__init__(f"[{op}] {argument}: expected {expected}, got {got}")
        self.op, self.argument, self.expected, self.got = op, argument, expected, got

    def __reduce__(self) -> tuple:
        return type(self), (self.op, self.argument, self.expected, self.got)


class MissingExtra(ImportError):
    """An optional package is needed for what was asked and is not installed."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(
            f"[{what}] package: expected {package} to be installed, got none (pip install 'earnest[{extra}]')"
        )
        self.what, self.package, self.extra = what, package, extra

    def __reduce__(self) -> tuple:
        return type(self), (self.what, self.package, self.extra)


class Busy(RuntimeError):
    """Not now: the session is answering, or as many answers wait as may. Try again later."""


class ContextFull(RuntimeError):
    """There is no room for more tokens, in the model's context or in the engine's memory."""

"""Errors that end a command with one line on standard error."""

from __future__ import annotations


class RunError(Exception):
    """A run cannot start or continue.

    Args:
        message: one line for the user: `<what>: <problem>; <what to do>`.
        exit_code: of the command: 2 if nothing could be done, 1 if a run stopped early.
    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class DamagedFile(RunError):
    """A file of a run cannot be read. What is derived from a checkpoint is rebuilt."""


class StageFailed(RunError):
    """The training or evaluation of a stage failed. Its last good checkpoint remains. Exit code 1."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=1)

"""The exit codes of the command. After a signal, the code is 128 and the signal's number."""

__all__ = ["ALL_CLASSIFIED", "FAILED", "SOME_FAILED"]

ALL_CLASSIFIED = 0
SOME_FAILED = 1
FAILED = 2

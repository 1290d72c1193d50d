"""Import of onnxruntime with its usage statistics off, and clear errors if it is missing or installed wrongly."""

import contextlib
import importlib
import os
from collections.abc import Iterator
from types import ModuleType

from ..errors import DeviceError, one_line
from .installed import installed_version

__all__ = ["TELEMETRY_VARIABLE", "both_wheels_installed", "import_onnxruntime", "reinstall_text"]

TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"

# Whether to silence onnxruntime's default logger, which all sessions of a process share. Only the command sets this,
# because the process belongs to it. The logger writes errors to standard error that are also raised as exceptions.
silent = False


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime.

    Returns:
        The module.

    Raises:
        DeviceError: It is missing or broken. The message contains the command that installs it.
    """
    try:
        with _no_telemetry():
            onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as e:
        if getattr(e, "name", None) == "onnxruntime":
            raise DeviceError(
                "onnxruntime is not installed; pip install 'organ-infer[cpu]' (or [gpu])"
            ) from e
        # glibc's texts for a library that does not fit into the process's memory
        short = any(text in str(e) for text in ("failed to map segment", "cannot allocate memory"))
        remedy = "raise the limit of memory (ulimit -v)" if short else reinstall_text()
        raise DeviceError(f"onnxruntime cannot be loaded ({one_line(e)}); {remedy}") from e
    # Uninstalling one of two installed wheels leaves an incomplete package.
    if not hasattr(onnxruntime, "InferenceSession"):
        raise DeviceError(f"onnxruntime is installed incompletely; {reinstall_text()}")
    # The program may have imported onnxruntime before, with statistics. Older versions do not have this function.
    disable_telemetry = getattr(onnxruntime, "disable_telemetry_events", None)
    if disable_telemetry is not None:
        disable_telemetry()
    if silent:
        onnxruntime.set_default_logger_severity(4)
    return onnxruntime


@contextlib.contextmanager
def _no_telemetry() -> Iterator[None]:
    """Set the variable that switches usage statistics off while onnxruntime loads.

    onnxruntime 1.29 and later send them otherwise (https://github.com/microsoft/onnxruntime/pull/27379). The thread that
    sends them also blocks a forked child that ends by sys.exit.
    """
    own_value = os.environ.get(TELEMETRY_VARIABLE)
    if own_value is None:
        os.environ[TELEMETRY_VARIABLE] = "1"
    try:
        yield
    finally:
        if own_value is None:
            os.environ.pop(TELEMETRY_VARIABLE, None)


def reinstall_text() -> str:
    """Return the commands that repair an installation with both wheels, or with parts of one."""
    return "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'organ-infer[cpu]' or 'organ-infer[gpu]'"


def both_wheels_installed() -> bool:
    """Return whether both onnxruntime and onnxruntime-gpu are installed. They overwrite each other's files."""
    return all(map(installed_version, ("onnxruntime", "onnxruntime-gpu")))

"""Loading onnxruntime: its usage statistics off, and plain words where it is missing or installed wrongly."""

import contextlib
import importlib
import os
from collections.abc import Iterator
from types import ModuleType

from ..errors import DeviceError, one_line
from .installed import installed_version

__all__ = ["TELEMETRY_VARIABLE", "both_wheels_installed", "import_onnxruntime", "reinstall_text"]

TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"

# Set by the command, whose process is its own: onnxruntime's default logger, one for all sessions of a process, is
# silenced, for what it writes to standard error about a GPU that does not start is raised as well.
silent = False


def import_onnxruntime() -> ModuleType:
    """The onnxruntime module. Raises DeviceError with the command that installs it."""
    try:
        with _no_telemetry():
            onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as e:
        if getattr(e, "name", None) == "onnxruntime":
            raise DeviceError(
                "onnxruntime is not installed: pip install 'organ-infer[cpu]' (or [gpu])"
            ) from e
        raise DeviceError(f"onnxruntime cannot be loaded ({one_line(e)}): {reinstall_text()}") from e
    if not hasattr(onnxruntime, "InferenceSession"):  # what is left when one of the two wheels is uninstalled
        raise DeviceError(f"onnxruntime is installed incompletely: {reinstall_text()}")
    getattr(
        onnxruntime, "disable_telemetry_events", lambda: None
    )()  # where the program had imported it before
    if silent:
        onnxruntime.set_default_logger_severity(4)
    return onnxruntime


@contextlib.contextmanager
def _no_telemetry() -> Iterator[None]:
    """onnxruntime from 1.29 on sends usage statistics unless this is set while it loads (its pull request 27379); its
    uploader also hangs a forked child that ends by sys.exit."""
    asked = os.environ.get(TELEMETRY_VARIABLE)
    if asked is None:
        os.environ[TELEMETRY_VARIABLE] = "1"
    try:
        yield
    finally:
        if asked is None:
            os.environ.pop(TELEMETRY_VARIABLE, None)


def reinstall_text() -> str:
    return "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'organ-infer[cpu]' or 'organ-infer[gpu]'"


def both_wheels_installed() -> bool:
    """Whether onnxruntime and onnxruntime-gpu lie over each other in this environment."""
    return all(map(installed_version, ("onnxruntime", "onnxruntime-gpu")))

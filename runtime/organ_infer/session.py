"""One network in onnxruntime: the device really granted, threads, memory, batches, answers checked."""

import contextlib
import ctypes
import importlib
import io
import logging
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DeviceError, OrganInferError, one_line
from .installed import installed_version
from .processors import usable_processors

__all__ = ["DEVICES", "Session", "choose_device", "import_onnxruntime", "thread_count"]

logger = logging.getLogger("organ_infer")

DEVICES = ("auto", "cpu", "cuda")
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
THREAD_LIMIT = 1024
TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"
CUDA_BATCHES = (1, 4, 16, 64, 256)  # padded up to one of these: each new shape would tune and allocate anew

_CUDA_OPTIONS = {
    "cudnn_conv_algo_search": "HEURISTIC",  # exhaustive search takes seconds a shape (onnxruntime 19838)
    "arena_extend_strategy": "kSameAsRequested",  # doubling took gigabytes for a small model (onnxruntime 11627)
    "use_tf32": "0",  # its 10-bit mantissa breaks the parity of float32
}


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


def thread_count(threads: int | None) -> int:
    """`threads` as asked for, else what the affinity mask and the container's quota allow."""
    return usable_processors() if threads is None else threads


def choose_device(ort: ModuleType, device: str) -> str:
    """`cuda` where it is asked for or may be tried, else `cpu`. Raises DeviceError where `cuda` cannot be granted."""
    if device == "cpu":
        return "cpu"
    available = ort.get_available_providers()
    if CUDA in available:
        return "cuda"
    if both_wheels_installed():
        reason = f"onnxruntime and onnxruntime-gpu are both installed and hide each other: {reinstall_text()}"
    else:
        reason = (
            f"this onnxruntime offers {', '.join(available)}: pip install 'organ-infer[gpu]' in its place"
        )
    if device == "cuda":
        raise DeviceError(f"cuda was asked for but is not available, {reason}")
    level = logging.WARNING if reason.startswith("onnxruntime and") else logging.INFO
    logger.log(level, "running on the CPU: %s", reason)
    return "cpu"


_live: "weakref.WeakSet[Session]" = weakref.WeakSet()
_hooked = False


def _leave_to_parent() -> None:
    """In a forked child: a session's threads did not come along and its destructor would wait for them for ever,
    so it is never destroyed."""
    for session in list(_live):
        if session._run is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session._run))


def _watch(session: "Session") -> None:
    global _hooked
    _live.add(session)
    if not _hooked and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_leave_to_parent)
        _hooked = True


class Session:
    """One graph opened on one device; safe to use from many threads, tied to the process that opened it."""

    def __init__(
        self, graph: bytes, *, output: str, classes: int, where: str, device: str, threads: int
    ) -> None:
        """`device` is `cpu` or `cuda`; `where` names the graph in errors. Raises DeviceError."""
        self.output = output
        self.classes = classes
        self.where = where
        self._pid = os.getpid()
        ort = import_onnxruntime()
        self._run: Any = _open(ort, graph, where, device, threads)
        self.providers: tuple[str, ...] = tuple(self._run.get_providers())
        if device == "cuda" and self.providers[:1] != (CUDA,):
            granted = ", ".join(self.providers) or "none"
            self._run = None
            raise DeviceError(f"cuda was asked for, onnxruntime granted {granted}: {_cuda_advice()}")
        _watch(self)

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """images: float32 (N, 1, S, S) -> the graph's output, float32 (N, classes), every value finite."""
        run = self._run
        if run is None:
            raise OrganInferError("this classifier is closed: open another OrganClassifier")
        if os.getpid() != self._pid:
            raise OrganInferError(
                f"this classifier was opened in process {self._pid} and does not work in its fork {os.getpid()}:"
                " open an OrganClassifier in the child, or start workers with multiprocessing's 'spawn'"
            )
        count = len(images)
        batch = images if self.providers[0] != CUDA else _pad(images)
        try:
            answer = run.run([self.output], {"images": batch})[0]
        except Exception as e:  # onnxruntime's own exceptions share no base class but Exception
            raise DeviceError(f"{self.where}: onnxruntime failed ({one_line(e)})") from e
        if answer.shape != (len(batch), self.classes) or answer.dtype != np.float32:
            raise DeviceError(
                f"{self.where}: float32 ({len(batch)}, {self.classes}) expected, the network gave"
                f" {answer.dtype} {answer.shape}: export the bundle again"
            )
        if not np.isfinite(answer).all():
            raise DeviceError(
                f"{self.where}: the network gave a value that is not finite: export the bundle again"
            )
        return np.asarray(answer[:count], dtype=np.float32)

    def close(self) -> None:
        """Free the network; a run under way in another thread ends first. Closing twice is fine."""
        self._run = None


def _pad(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Up to the next fixed batch size, by zeros; larger ones up to a multiple of the largest."""
    count, largest = len(images), CUDA_BATCHES[-1]
    size = next((size for size in CUDA_BATCHES if size >= count), -(-count // largest) * largest)
    if size == count:
        return images
    padded = np.zeros((size, *images.shape[1:]), np.float32)
    padded[:count] = images
    return padded


def _open(ort: ModuleType, graph: bytes, where: str, device: str, threads: int) -> Any:
    options = ort.SessionOptions()
    # Always set: a count of its own makes onnxruntime pin threads, which fails in containers (onnxruntime 8313).
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry(
        "session.load_model_format", "ONNX"
    )  # never onnxruntime's own, unchecked format
    options.log_severity_level = 4  # what goes wrong is raised, not printed
    if device == "cpu":
        # The packaged network after batches of 1 to 512: 82 MiB resident, with the arena 175, with patterns alone
        # 259; the time a slice differed by less than a tenth between the first two (onnxruntime 1.32, two threads).
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        providers: list[Any] = [CPU]
    else:
        providers = [(CUDA, _CUDA_OPTIONS), CPU]
        _preload(ort)
    try:
        # Without its fallback, which prints to standard output and goes on with the CPU.
        return ort.InferenceSession(graph, sess_options=options, providers=providers, enable_fallback=0)
    except Exception as e:  # as in run()
        if device == "cuda":
            raise DeviceError(f"cuda was asked for but failed ({one_line(e)}): {_cuda_advice()}") from e
        raise DeviceError(f"{where}: onnxruntime cannot open it ({one_line(e)})") from e


def _preload(ort: ModuleType) -> None:
    """Load CUDA from NVIDIA's wheels, where onnxruntime does not look by itself; torch brings its own."""
    if "torch" in sys.modules or not hasattr(ort, "preload_dlls"):
        return
    with _printed() as text:
        ort.preload_dlls()
    if text.getvalue().strip():
        logger.debug("preload_dlls: %s", one_line(text.getvalue()))


_printing = threading.Lock()


@contextlib.contextmanager
def _printed() -> Iterator[io.StringIO]:
    """What onnxruntime prints while it loads libraries, kept off the caller's standard output."""
    text = io.StringIO()
    with _printing, contextlib.redirect_stdout(text):
        yield text


def _cuda_advice() -> str:
    if both_wheels_installed():
        return f"onnxruntime and onnxruntime-gpu are both installed and hide each other: {reinstall_text()}"
    return "check that nvidia-smi sees a GPU and install CUDA's libraries with pip install 'organ-infer[gpu]'"

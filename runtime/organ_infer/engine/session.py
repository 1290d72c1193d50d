"""One network in onnxruntime: the device really granted, threads, memory, batches, answers checked."""

import ctypes
import os
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError, OrganInferError, one_line
from . import cuda
from .cpu_count import usable_processors
from .cuda import CLOSED, CUDA, choose_device, logger
from .cuda_errors import advice, describe, shorten
from .devices import parse_device
from .ort import import_onnxruntime

__all__ = [
    "THREAD_LIMIT",
    "Session",
    "choose_device",
    "import_onnxruntime",
    "logger",
    "thread_count",
]

CPU = "CPUExecutionProvider"
THREAD_LIMIT = 1024


def thread_count(threads: int | None) -> int:
    """`threads` as asked for, else what the affinity mask and the container's quota allow."""
    return usable_processors() if threads is None else threads


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
        self,
        graph: bytes | Path,
        *,
        output: str,
        classes: int,
        where: str,
        device: str,
        threads: int,
        save: tuple[Path, str] | None = None,
        capture: bool = True,
    ) -> None:
        """`graph`: an ONNX model's verified bytes, or the path of one that was optimised before. `device` is `cpu`,
        `cuda` or `cuda:N`, `capture` lets CUDA record graphs; `where` names the graph in errors; `save`: where to leave the
        optimised form, and the name of the file beside it for its weights. Raises DeviceError."""
        self.output = output
        self.classes = classes
        self.where = where
        self._pid = os.getpid()
        ort = import_onnxruntime()
        self._run: Any  # an InferenceSession, or what stands for one
        self.placement: cuda.Placement | None = None
        if device == "cpu":
            self._run = _open(ort, graph, where, device, threads, save=save)
        else:
            self._run = cuda.BoundSession(
                ort,
                lambda capture: _open(ort, graph, where, device, threads, capture=capture),
                output=output,
                classes=classes,
                capture=capture,
                number=parse_device(device).number,
            )
            try:
                cuda.check_granted(self._run, where)
            except DeviceError:
                self.close()
                raise
            self.placement = self._run.placement
        self.providers: tuple[str, ...] = tuple(self._run.get_providers())
        _watch(self)

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """images: float32 (N, 1, S, S) -> the graph's output, float32 (N, classes), every value finite."""
        run = self._run
        if run is None:
            raise OrganInferError(CLOSED)
        self.check_process()
        try:
            answer = run.run([self.output], {"images": images})[0]
        except OrganInferError:
            raise
        except Exception as e:  # onnxruntime's own exceptions share no base class but Exception
            if self.placement is None:
                raise DeviceError(f"{self.where}: onnxruntime failed ({one_line(e)})") from e
            known = describe(e)
            raise DeviceError(
                f"{self.where}: onnxruntime failed ({shorten(e)}){f': {known}' if known else ''}"
            ) from e
        if answer.shape != (len(images), self.classes) or answer.dtype != np.float32:
            raise DeviceError(
                f"{self.where}: float32 ({len(images)}, {self.classes}) expected, the network gave"
                f" {answer.dtype} {answer.shape}: export the bundle again"
            )
        if not np.isfinite(answer).all():
            raise DeviceError(
                f"{self.where}: the network gave a value that is not finite: export the bundle again"
            )
        return np.asarray(answer, dtype=np.float32)

    def check_process(self) -> None:
        """Raises OrganInferError in another process than the one that opened the session."""
        if os.getpid() != self._pid:
            raise OrganInferError(
                f"this classifier was opened in process {self._pid} and does not work in its fork {os.getpid()}:"
                " open an OrganClassifier in the child, or start workers with multiprocessing's 'spawn'"
            )

    def close(self) -> None:
        """Free the network; a run under way in another thread ends first. Closing twice is fine."""
        run, self._run = self._run, None
        if isinstance(run, cuda.BoundSession):
            run.close()


def _open(
    ort: ModuleType,
    graph: bytes | Path,
    where: str,
    device: str,
    threads: int,
    *,
    capture: bool = False,
    save: tuple[Path, str] | None = None,
) -> Any:
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
    if isinstance(graph, Path):  # optimised before
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save is not None:
        path, weights = save
        options.optimized_model_filepath = os.fspath(path)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
        )
    if device == "cpu":
        # The packaged network after batches of 1 to 512: 82 MiB resident, with the arena 175, with patterns alone
        # 259; the time a slice differed by less than a tenth between the first two (onnxruntime 1.32, two threads).
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        providers: list[Any] = [CPU]
    else:
        options.enable_mem_pattern = False  # it allocates in a second run, when a graph may be recorded
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        providers = [(CUDA, cuda.provider_options(capture, parse_device(device).number)), CPU]
        cuda.preload(ort)
    try:
        # Without its fallback, which prints to standard output and goes on with the CPU.
        model = os.fspath(graph) if isinstance(graph, Path) else graph
        try:
            return ort.InferenceSession(model, sess_options=options, providers=providers, enable_fallback=0)
        except RuntimeError as e:
            if "use_per_session_threads" not in str(e):
                raise
            logger.info("threads are those of onnxruntime's global pool, which this program made")
            options.use_per_session_threads = False  # beside that pool onnxruntime allows no other
            options.intra_op_num_threads = options.inter_op_num_threads = 0
            return ort.InferenceSession(model, sess_options=options, providers=providers, enable_fallback=0)
    except Exception as e:  # as in run()
        if device != "cpu":
            raise DeviceError(f"cuda was asked for but failed ({shorten(e)}): {advice(e)}") from e
        raise DeviceError(f"{where}: onnxruntime cannot open it ({one_line(e)})") from e

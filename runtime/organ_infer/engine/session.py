"""One network in onnxruntime: its execution provider, threads and memory, and checks of its output."""

import ctypes
import os
import weakref
from collections.abc import Mapping
from functools import partial
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
    """Return the number of threads to use.

    Args:
        threads: The requested number, or None.

    Returns:
        The requested number, or by default the number that the affinity mask and the container's quota allow.
    """
    return usable_processors() if threads is None else threads


_live: "weakref.WeakSet[Session]" = weakref.WeakSet()
_hooked = False


def _leave_to_parent() -> None:
    """Make sure that a forked child never destroys the sessions of its parent.

    The child has no copy of their threads, and the destructor of a session would wait for these forever.
    """
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
    """One graph opened on one device. Any thread may use it, but only in the process that opened it."""

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
        capture: bool | None = None,
        extra: Mapping[str, int] | None = None,
        arena: bool = False,
    ) -> None:
        """Open a graph.

        Args:
            graph: The verified bytes of an ONNX model, or the path of an optimized graph.
            output: The name of the graph's output.
            classes: The number of classes.
            where: The name of the graph in errors.
            device: `cpu`, `cuda` or `cuda:N`.
            threads: The number of threads for one run.
            save: Where to write the optimized graph, and the name of the file for its weights in the same directory.
            capture: Whether CUDA may record runs as CUDA graphs; None, unless another library uses CUDA.
            extra: The columns of each further output, by name.
            arena: Whether the CPU keeps freed memory for the next run. It pays for small batches only.

        Raises:
            DeviceError: onnxruntime is missing, cannot open the graph, or does not activate the device.
        """
        self.output = output
        # The columns of each output, by name.
        self._columns = {output: classes, **(extra or {})}
        self.where = where
        self._pid = os.getpid()
        ort = import_onnxruntime()
        # An InferenceSession or a BoundSession.
        self._run: Any
        self.placement: cuda.Placement | None = None
        if device == "cpu":
            self._run = _open_cpu_session(ort, graph, where, threads, save, arena)
        else:
            self._run = self._open_cuda(ort, graph, device, threads, capture)
            self.placement = self._run.placement
        self.providers: tuple[str, ...] = tuple(self._run.get_providers())
        _watch(self)

    def _open_cuda(
        self, ort: ModuleType, graph: bytes | Path, device: str, threads: int, capture: bool | None
    ) -> cuda.BoundSession:
        session = cuda.BoundSession(
            ort,
            lambda capture: _open_cuda_session(ort, graph, device, threads, capture),
            outputs=self._columns,
            capture=capture,
            number=parse_device(device).number,
        )
        try:
            cuda.check_active_provider(session, self.where)
        except DeviceError:
            session.close()
            raise
        return session

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the graph on a batch.

        Args:
            images: float32 (N, 1, S, S).

        Returns:
            The output of the graph, float32 (N, classes), all values finite.

        Raises:
            DeviceError: onnxruntime failed, or the output has another shape or type, or is not finite.
            OrganInferError: The session is closed, or belongs to another process.
        """
        return self._outputs([self.output], images)[0]

    def run_all(self, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Run the graph on a batch, as `run`, and return every output, the class output first."""
        return self._outputs(list(self._columns), images)

    def _outputs(self, names: list[str], images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        session = self._run
        if session is None:
            raise OrganInferError(CLOSED)
        self.check_process()
        try:
            answers = session.run(names, {"images": images})
        except OrganInferError:
            raise
        except Exception as e:
            # onnxruntime's exceptions have no common base class except Exception.
            raise self._failure(e) from e
        return [
            self._checked(answer, (len(images), self._columns[name]))
            for name, answer in zip(names, answers, strict=True)
        ]

    def _checked(self, answer: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float32]:
        """Return an output. Raises DeviceError if it has another shape or type, or is not finite."""
        if answer.shape != shape or answer.dtype != np.float32:
            raise DeviceError(
                f"{self.where}: expected float32 {shape} from the network, found"
                f" {answer.dtype} {answer.shape}; export the bundle again"
            )
        if not np.isfinite(answer).all():
            raise DeviceError(
                f"{self.where}: the network returned a value that is not finite; export the bundle again"
            )
        return np.asarray(answer, dtype=np.float32)

    def _failure(self, error: Exception) -> DeviceError:
        if self.placement is None:
            return DeviceError(f"{self.where}: onnxruntime failed ({one_line(error)})")
        known = describe(error)
        return DeviceError(
            f"{self.where}: onnxruntime failed ({shorten(error)}){f': {known}' if known else ''}"
        )

    def check_process(self) -> None:
        """Check that this is the process that opened the session.

        Raises:
            OrganInferError: It is another process, such as a forked child.
        """
        if os.getpid() != self._pid:
            raise OrganInferError(
                f"this classifier was opened in process {self._pid} and does not work in its fork {os.getpid()};"
                " open an OrganClassifier in the child, or start workers with multiprocessing's 'spawn'"
            )

    def close(self) -> None:
        """Free the network, after a run in progress in another thread. Closing twice has no effect."""
        session, self._run = self._run, None
        if isinstance(session, cuda.BoundSession):
            session.close()


def _open_cuda_session(
    ort: ModuleType, graph: bytes | Path, device: str, threads: int, capture: bool
) -> Any:
    options = _common_options(ort, graph, threads)
    # A memory pattern allocates in the second run, when a CUDA graph may be recorded.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    number = parse_device(device).number
    cuda.preload(ort)
    try:
        return _create_session(
            ort, graph, options, [(CUDA, cuda.provider_options(capture, number)), CPU]
        )
    except Exception as e:
        # onnxruntime's exceptions have no common base class except Exception.
        raise DeviceError(f"device {device}: CUDA failed ({shorten(e)}): {advice(e)}") from e


def _open_cpu_session(
    ort: ModuleType,
    graph: bytes | Path,
    where: str,
    threads: int,
    save: tuple[Path, str] | None,
    arena: bool,
) -> Any:
    options = _common_options(ort, graph, threads)
    if save is not None:
        path, weights = save
        options.optimized_model_filepath = os.fspath(path)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", weights
        )
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
        )
    # Without an arena, each run gets its memory from the system again. With one, the process keeps what the largest batch
    # needed: 175 MiB for 512 slices of the packaged network at once, but few for pieces of 16.
    options.enable_cpu_mem_arena = arena
    options.enable_mem_pattern = False
    try:
        return _create_session(ort, graph, options, [CPU])
    except Exception as e:
        # onnxruntime's exceptions have no common base class except Exception.
        raise DeviceError(f"{where}: onnxruntime cannot open this network ({one_line(e)})") from e


def _common_options(ort: ModuleType, graph: bytes | Path, threads: int) -> Any:
    """Return the SessionOptions that all devices share."""
    options = ort.SessionOptions()
    # Always set. If onnxruntime chooses the number itself, it also pins threads, which fails in containers
    # (https://github.com/microsoft/onnxruntime/issues/8313).
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # ONNX only, because `bundle.onnx_graph` does not check onnxruntime's own format.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Errors are raised, so they need not be printed.
    options.log_severity_level = 4
    if isinstance(graph, Path):
        # The graph is already optimized.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _create_session(
    ort: ModuleType, graph: bytes | Path, options: Any, providers: list[Any]
) -> Any:
    """Create an InferenceSession, which uses onnxruntime's global thread pool if the program has created one."""
    model = os.fspath(graph) if isinstance(graph, Path) else graph
    # The fallback would print to standard output and continue on the CPU.
    create = partial(
        ort.InferenceSession, model, sess_options=options, providers=providers, enable_fallback=0
    )
    try:
        return create()
    except RuntimeError as e:
        if "use_per_session_threads" not in str(e):
            raise
    # With a global pool onnxruntime allows no threads per session.
    logger.info("using the threads of onnxruntime's global pool, which this program created")
    options.use_per_session_threads = False
    options.intra_op_num_threads = options.inter_op_num_threads = 0
    return create()

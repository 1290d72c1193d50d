"""CUDA in onnxruntime: granted or not and why, its options, fixed batch sizes, device buffers that are kept, CUDA graphs.

Tested against a stand-in that computes on the CPU; not yet run on a GPU. What a GPU gains is for
tests/benchmarks/cuda.py to say.

Not used, and why. `user_compute_stream` wants the address of a CUDA stream, which onnxruntime gives to no Python
program for its own sessions. `tunable_op_enable` and an exhaustive `cudnn_conv_algo_search` time kernels for each new
shape, so the first runs take seconds and two processes may choose differently. `prefer_nhwc` changes the kernels and
has not been measured (the benchmark takes --option prefer_nhwc=1).
"""

import contextlib
import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DeviceError, one_line
from .loading import both_wheels_installed, reinstall_text

__all__ = [
    "BATCHES",
    "CUDA",
    "BoundSession",
    "advice",
    "after_fork",
    "check_granted",
    "choose_device",
    "preload",
    "provider_options",
]

logger = logging.getLogger("organ_infer")

CUDA = "CUDAExecutionProvider"
BATCHES = (1, 4, 16, 64, 256)  # slices a run, padded up to one: each new shape tunes and allocates anew

_OPTIONS = {
    "cudnn_conv_algo_search": "HEURISTIC",  # exhaustive search takes seconds a shape (onnxruntime 19838)
    "arena_extend_strategy": "kSameAsRequested",  # doubling took gigabytes for a small model (onnxruntime 11627)
    "use_tf32": "0",  # its 10-bit mantissa breaks the parity of float32
}


def provider_options(capture: bool) -> dict[str, str]:
    """onnxruntime's options for CUDA; `capture` lets runs be recorded as CUDA graphs."""
    return {**_OPTIONS, "enable_cuda_graph": "1"} if capture else dict(_OPTIONS)


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


def check_granted(session: "BoundSession", where: str) -> None:
    """Raise DeviceError unless the session runs on CUDA: the provider is there, and nodes have been placed on it."""
    granted = session.get_providers()
    if granted[:1] != [CUDA]:
        raise DeviceError(
            f"cuda was asked for, onnxruntime granted {', '.join(granted) or 'none'}: {advice()}"
        )
    nodes = session.placed_nodes()
    elsewhere = sorted({kind for provider, kinds in nodes.items() if provider != CUDA for kind in kinds})
    if nodes and not nodes.get(CUDA):
        raise DeviceError(
            f"cuda was asked for, onnxruntime runs all of {where} on the CPU ({', '.join(elsewhere)}):"
            " export the bundle again in float32 or use --device cpu"
        )
    if elsewhere:
        logger.info("cuda: %s: on the CPU remain %s", where, ", ".join(elsewhere))


def advice() -> str:
    """What to do where CUDA is offered but does not start."""
    if both_wheels_installed():
        return f"onnxruntime and onnxruntime-gpu are both installed and hide each other: {reinstall_text()}"
    return "check that nvidia-smi sees a GPU and install CUDA's libraries with pip install 'organ-infer[gpu]'"


def preload(ort: ModuleType) -> None:
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


# One thread on the device at a time in this process. While a graph is captured no other may allocate or copy
# (onnxruntime captures in cudaStreamCaptureModeGlobal), and a session's buffers hold one batch.
_device = threading.Lock()


def after_fork() -> None:
    """In a forked child: the thread that held the lock may not have come along."""
    global _device
    _device = threading.Lock()


@dataclass
class _Buffers:
    """What is kept for one batch size: the batch on the host and on the device, the answer on the device, and the
    binding of the two to the session. `pinned` is the host's memory where CUDA gave it."""

    host: NDArray[np.float32]  # (size, 1, S, S)
    pinned: Any  # OrtValue, or None
    input: Any  # OrtValue (size, 1, S, S)
    output: Any  # OrtValue (size, classes)
    binding: Any  # IOBinding
    graph: Any  # RunOptions that name this size's graph
    captured: bool = False

    def put(self, images: NDArray[np.float32]) -> None:
        """Copy a batch to the device, zeros after it."""
        count = len(images)
        if self.pinned is None and count == len(self.host):
            self.input.update_inplace(images)
            return
        self.host[:count] = images
        self.host[count:] = 0
        self.input.update_inplace(self.host if self.pinned is None else self.pinned)


class BoundSession:
    """A network on CUDA whose batches and answers lie in device buffers, made once for each of BATCHES.

    Stands where an InferenceSession would: `run` and `get_providers`. Where the network can be recorded as a CUDA
    graph (every node on CUDA, no control flow), each batch size is, after a plain run, and the graph is kept only
    once it has repeated that run's answer; where anything of that is refused, the session is opened again without.
    """

    def __init__(
        self,
        ort: ModuleType,
        opened: Callable[[bool], Any],
        *,
        output: str,
        classes: int,
        capture: bool = True,
    ) -> None:
        """`opened` makes the InferenceSession, told whether it is to capture graphs. Raises what it raises."""
        self._ort = ort
        self._opened = opened
        self._output = output
        self._classes = classes
        self._kept: dict[int, _Buffers] = {}
        self._owner: threading.Thread | None = None  # the thread whose graphs `captured` speaks of
        self._plain = ort.RunOptions()
        self._capture = capture
        with _device:
            if capture:
                try:
                    self._session = opened(True)
                except DeviceError as e:
                    logger.debug("cuda: running without CUDA graphs: %s", e)
                    self._capture = False
            if not self._capture:
                self._session = opened(False)
        if self._capture:
            self._plain.add_run_config_entry("gpu_graph_id", "-1")  # neither captures nor replays

    @property
    def captured(self) -> tuple[int, ...]:
        """The batch sizes that run as CUDA graphs."""
        return tuple(sorted(size for size, kept in list(self._kept.items()) if kept.captured))

    def get_providers(self) -> list[str]:
        return list(self._session.get_providers())

    def placed_nodes(self) -> dict[str, list[str]]:
        """Provider -> the operators that run there; empty where onnxruntime does not tell (its pull request 26781)."""
        placed: dict[str, list[str]] = {}
        if hasattr(self._session, "get_provider_graph_assignment_info"):
            for part in self._session.get_provider_graph_assignment_info():
                placed.setdefault(part.ep_name, []).extend(node.op_type for node in part.get_nodes())
        return placed

    def run(self, outputs: Sequence[str], feed: Mapping[str, NDArray[np.float32]]) -> list[NDArray[Any]]:
        """As InferenceSession.run, for the one input `images`; any number of them, in runs of BATCHES."""
        images = feed["images"]
        largest = BATCHES[-1]
        parts = []
        for start in range(0, len(images), largest):
            part = images[start : start + largest]
            with _device:
                parts.append(self._answer(part)[: len(part)])
        return [parts[0] if len(parts) == 1 else np.concatenate(parts)]

    def _answer(self, images: NDArray[np.float32]) -> NDArray[Any]:
        """The answer of the next fixed size, its first rows those of `images`."""
        size = next(size for size in BATCHES if size >= len(images))
        kept = self._kept.get(size) or self._keep(size, images.shape[1:])
        kept.put(images)
        if not self._capture or not self._owned():
            self._session.run_with_iobinding(kept.binding, self._plain)
        elif kept.captured:
            self._session.run_with_iobinding(kept.binding, kept.graph)
        else:
            return self._record(size, kept)
        answer: NDArray[Any] = kept.output.numpy()  # from the device: a copy of its own
        return answer

    def _keep(self, size: int, shape: tuple[int, ...]) -> _Buffers:
        value = self._ort.OrtValue.ortvalue_from_shape_and_type
        given = value([size, *shape], np.float32, "cuda", 0)
        answer = value([size, self._classes], np.float32, "cuda", 0)
        pinned = self._pinned([size, *shape], given)
        host = np.empty((size, *shape), np.float32) if pinned is None else pinned.numpy()
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("images", given)
        binding.bind_ortvalue_output(self._output, answer)
        graph = self._ort.RunOptions()
        graph.add_run_config_entry("gpu_graph_id", str(size))
        kept = self._kept[size] = _Buffers(host, pinned, given, answer, binding, graph)
        logger.debug("cuda: buffers for batches of %d, %s", size, "pageable" if pinned is None else "pinned")
        return kept

    def _pinned(self, shape: list[int], given: Any) -> Any:
        """Host memory that the GPU reads itself, as an OrtValue that NumPy writes to; None where there is none.

        onnxruntime's device names have no pinned memory ("cuda" and "cpu" alone). Since its pull request 28038 an
        allocator can be named by the device's own description instead, where CUDA is a plug-in that offers one.
        """
        try:
            for device in self._ort.get_ep_devices():
                if device.ep_name == CUDA:
                    info = device.memory_info(self._ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)
                    if info is not None:
                        value = self._ort.OrtValue
                        pinned = value.ortvalue_from_shape_and_type(shape, np.float32, memory_info=info)
                        pinned.numpy()[:] = 0
                        given.update_inplace(pinned)  # a copy that is refused is refused here
                        return pinned
        except Exception as e:  # an older onnxruntime, or it has no such allocator
            logger.debug("cuda: no pinned memory (%s)", one_line(e))
        return None

    # CUDA graphs.

    def _owned(self) -> bool:
        """Whether graphs may be used in this thread: onnxruntime keeps them by thread, so that each would record its
        own. The first to run has them; once it has ended, the next."""
        here = threading.current_thread()
        if self._owner is None or not self._owner.is_alive():
            self._owner = here
            for kept in self._kept.values():
                kept.captured = False
        return self._owner is here

    def _record(self, size: int, kept: _Buffers) -> NDArray[Any]:
        """The answer to the batch that lies in `kept`, by a plain run that also allocates all that this size needs;
        then record a graph and see that it repeats the answer."""
        run = self._session.run_with_iobinding
        run(kept.binding, self._plain)
        answer: NDArray[Any] = kept.output.numpy()
        try:
            run(kept.binding, kept.graph)  # records
            kept.output.update_inplace(np.full_like(answer, np.nan))
            run(kept.binding, kept.graph)  # replays
            again = kept.output.numpy()
        except Exception as e:  # onnxruntime's own exceptions share no base class but Exception
            self._give_up(one_line(e))
        else:
            if np.allclose(again, answer, rtol=1e-3, atol=1e-4, equal_nan=True):
                kept.captured = True
                logger.debug("cuda: batches of %d run as a CUDA graph", size)
            else:
                self._give_up(f"its answer differed by up to {np.abs(again - answer).max()}")
        return answer

    def _give_up(self, reason: str) -> None:
        """Go on without graphs, in a session that never began to record one."""
        logger.info("cuda: running without CUDA graphs: %s", reason)
        self._capture = False
        self._kept.clear()
        self._plain = self._ort.RunOptions()
        self._session = self._opened(False)

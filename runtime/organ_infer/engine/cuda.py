"""CUDA in onnxruntime: granted or not and why, its options, fixed batch sizes, device buffers that are kept, CUDA graphs.
All of it runs on one thread (`cuda_thread`).

Tested against a fake that computes on the CPU; not yet run on a GPU. tests/benchmarks/test_cuda_latency.py measures what
a GPU gains.

Not used, and why. `user_compute_stream` wants the address of a CUDA stream, which onnxruntime gives to no Python
program for its own sessions. `tunable_op_enable` and an exhaustive `cudnn_conv_algo_search` time kernels for each new
shape, so the first runs take seconds and two processes may choose differently. `prefer_nhwc` changes the kernels and
has not been measured.
"""

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError, OrganInferError, one_line
from .cuda_errors import advice, shorten
from .devices import parse_device
from .ort import both_wheels_installed, reinstall_text

__all__ = [
    "BATCHES",
    "CUDA",
    "HARMLESS_OPERATORS",
    "BoundSession",
    "Placement",
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


# Operators that may stay on the CPU: they compute shapes, which onnxruntime keeps there on purpose, or turn the few
# numbers of an answer into probabilities. All others carry the network's work.
HARMLESS_OPERATORS = frozenset(
    {"Cast", "Concat", "Constant", "ConstantOfShape", "Gather", "Reshape", "Shape", "Size", "Slice"}
    | {"Squeeze", "Unsqueeze", "Softmax", "LogSoftmax"}
)

CLOSED = "this classifier is closed: open another OrganClassifier"


def provider_options(capture: bool, number: int = 0) -> dict[str, str]:
    """onnxruntime's options for the GPU `number`; `capture` allows runs to be recorded as CUDA graphs."""
    options = {**_OPTIONS, "device_id": str(number)}
    return {**options, "enable_cuda_graph": "1"} if capture else options


def choose_device(ort: ModuleType, device: str) -> str:
    """`cpu`, `cuda` or `cuda:N`. Raises DeviceError if CUDA is asked for and this onnxruntime does not offer it."""
    kind = parse_device(device).kind
    if kind == "cpu":
        return "cpu"
    available = ort.get_available_providers()
    if CUDA in available:
        return "cuda" if kind == "auto" else device
    if both_wheels_installed():
        reason = f"onnxruntime and onnxruntime-gpu are both installed and hide each other: {reinstall_text()}"
    else:
        reason = (
            f"this onnxruntime offers {', '.join(available)}: pip install 'organ-infer[gpu]' in its place"
        )
    if kind == "cuda":
        raise DeviceError(f"cuda was asked for but is not available, {reason}")
    level = logging.WARNING if reason.startswith("onnxruntime and") else logging.INFO
    logger.log(level, "running on the CPU: %s", reason)
    return "cpu"


class Placement:
    """Where onnxruntime placed the nodes of a network: counts and operators by execution provider."""

    def __init__(self, nodes: Mapping[str, Sequence[str]]) -> None:
        """nodes: execution provider -> the operator of each node on it; empty if onnxruntime does not say."""
        self._nodes = nodes

    @property
    def total(self) -> int:
        return sum(map(len, self._nodes.values()))

    @property
    def elsewhere(self) -> list[str]:
        """The operator of each node that is not on CUDA."""
        return [kind for name, kinds in self._nodes.items() if name != CUDA for kind in kinds]

    @property
    def harmful(self) -> list[str]:
        """Those of `elsewhere` that are not harmless."""
        return [kind for kind in self.elsewhere if kind not in HARMLESS_OPERATORS]

    def __str__(self) -> str:
        if not self.total:
            return "onnxruntime does not say where its nodes run"
        on_cpu = self.elsewhere
        names = f"; on the CPU: {_names(on_cpu)}" if on_cpu else ""
        return f"{self.total - len(on_cpu)} of {self.total} nodes on CUDA{names}"


def _names(operators: Sequence[str]) -> str:
    return ", ".join(sorted({*operators}))


def check_granted(session: "BoundSession", where: str) -> None:
    """Raise DeviceError unless the session runs on CUDA: the provider is there, and nodes have been placed on it. Warn
    if nodes remain on the CPU that carry the network's work."""
    granted = session.get_providers()
    if granted[:1] != [CUDA]:
        raise DeviceError(
            f"cuda was asked for, onnxruntime granted {', '.join(granted) or 'none'}: {advice()}"
        )
    placed = session.placement
    if placed.total and len(placed.elsewhere) == placed.total:
        raise DeviceError(
            f"cuda was asked for, onnxruntime runs all of {where} on the CPU ({_names(placed.elsewhere)}):"
            " export the bundle again in float32 or use --device cpu"
        )
    if placed.harmful:
        logger.warning(
            "%s: %d of %d nodes run on the CPU and slow CUDA down (%s); export the bundle again in float32",
            where,
            len(placed.harmful),
            placed.total,
            _names(placed.harmful),
        )
    elif placed.elsewhere:
        logger.info("cuda: %s: on the CPU remain %s", where, _names(placed.elsewhere))


_preloaded: ModuleType | None = None


def preload(ort: ModuleType) -> None:
    """Load CUDA from NVIDIA's wheels, where onnxruntime does not look by itself, once per process; not if torch has
    loaded the same major version of CUDA already. On the CUDA thread alone."""
    global _preloaded
    if ort is _preloaded or not hasattr(ort, "preload_dlls") or _torch_brings_cuda(ort):
        return
    _preloaded = ort
    with _printed() as text:
        try:
            ort.preload_dlls()
        except Exception as e:
            # What is missing is missed when the session is opened, and reported then.
            print(e)
    if text.getvalue().strip():
        logger.debug("preload_dlls: %s", one_line(text.getvalue()))


def _torch_brings_cuda(ort: ModuleType) -> bool:
    # Builds of torch for the CPU alone have None here.
    version = getattr(getattr(sys.modules.get("torch"), "version", None), "cuda", None)
    major = _major(version)
    return bool(major) and major == _major(getattr(ort, "cuda_version", None))


def _major(version: Any) -> str:
    return version.partition(".")[0] if isinstance(version, str) else ""


@contextlib.contextmanager
def _printed() -> Iterator[io.StringIO]:
    """What onnxruntime prints while it loads libraries, kept off the caller's standard output."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        yield text


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

    Stands where an InferenceSession would: `run` and `get_providers`, from any thread. Everything on the device belongs
    to `_Network`, which the CUDA thread alone uses (`cuda_thread`), also to free it when this object is gone.
    """

    def __init__(
        self,
        ort: ModuleType,
        opened: Callable[[bool], Any],
        *,
        output: str,
        classes: int,
        capture: bool = True,
        number: int = 0,
    ) -> None:
        """`opened` makes the InferenceSession, told whether it is to capture graphs; `number` is the GPU's. Raises what
        `opened` raises."""
        from .cuda_thread import Released, call

        self._network = _Network(ort, opened, output=output, classes=classes, capture=capture, number=number)
        # Before anything is opened: an interrupted caller leaves nothing behind.
        self._released = Released(self, self._network.free)
        call(self._network.open)

    @property
    def captured(self) -> tuple[int, ...]:
        """The batch sizes that run as CUDA graphs."""
        return tuple(sorted(size for size, kept in list(self._network.kept.items()) if kept.captured))

    @property
    def placement(self) -> Placement:
        return self._network.placement

    def get_providers(self) -> list[str]:
        return self._network.providers

    def run(self, outputs: Sequence[str], feed: Mapping[str, NDArray[np.float32]]) -> list[NDArray[Any]]:
        """As InferenceSession.run, for the one input `images`; any number of them, in runs of BATCHES."""
        from .cuda_thread import call

        return [call(partial(self._network.run, feed["images"]))]

    def close(self) -> None:
        """Free what is on the device and wait for that. Closing twice is fine."""
        from .cuda_thread import wait

        wait(self._released.now())


class _Network:
    """What a BoundSession has on the device. Used by the CUDA thread alone.

    If the network can be recorded as a CUDA graph (every node on CUDA, no control flow), each batch size is, after a
    plain run, and the graph is kept only once it has repeated that run's answer. If any of that is refused, the session
    is opened again without graphs.
    """

    def __init__(
        self,
        ort: ModuleType,
        opened: Callable[[bool], Any],
        *,
        output: str,
        classes: int,
        capture: bool,
        number: int,
    ) -> None:
        self._ort = ort
        self._opened = opened
        self._output = output
        self._classes = classes
        self._number = number
        self.capture = capture
        self.kept: dict[int, _Buffers] = {}
        self.providers: list[str] = []
        self.placement = Placement({})
        self._session: Any = None
        self._plain: Any = None
        self._freed = False

    def open(self) -> None:
        refusal = None
        if self.capture:
            try:
                self._open(True)
            except DeviceError as e:
                refusal = shorten(e.__cause__ or e)
        if self._session is None:
            self._open(False)
        if refusal is not None:
            # Only now: a device that does not open at all has refused more than graphs.
            logger.info("cuda: running without CUDA graphs: %s", refusal)

    def _open(self, capture: bool) -> None:
        self.capture = capture
        self._session = self._opened(capture)
        self._plain = self._ort.RunOptions()
        if capture:
            # Neither captures nor replays.
            self._plain.add_run_config_entry("gpu_graph_id", "-1")
        self.providers = list(self._session.get_providers())
        self.placement = Placement(self._placed_nodes())

    def _placed_nodes(self) -> dict[str, list[str]]:
        """Provider -> the operators that run there; empty where onnxruntime does not tell (its pull request 26781)."""
        placed: dict[str, list[str]] = {}
        if hasattr(self._session, "get_provider_graph_assignment_info"):
            for part in self._session.get_provider_graph_assignment_info():
                placed.setdefault(part.ep_name, []).extend(node.op_type for node in part.get_nodes())
        return placed

    def free(self) -> None:
        """Buffers first: their bindings refer to the session."""
        self._freed = True
        self.kept.clear()
        self._session = self._plain = None

    def run(self, images: NDArray[np.float32]) -> NDArray[Any]:
        """images: float32 (N, 1, S, S) -> (N, classes), in runs of BATCHES."""
        if self._freed:
            raise OrganInferError(CLOSED)
        if self._session is None:
            # Opening it again without graphs failed; the GPU may have memory by now.
            self._open(False)
        largest = BATCHES[-1]
        parts = []
        for start in range(0, len(images), largest):
            part = images[start : start + largest]
            parts.append(self._answer(part)[: len(part)])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _answer(self, images: NDArray[np.float32]) -> NDArray[Any]:
        """The answer of the next fixed size, its first rows those of `images`."""
        size = next(size for size in BATCHES if size >= len(images))
        kept = self.kept.get(size) or self._keep(size, images.shape[1:])
        kept.put(images)
        if not self.capture:
            self._session.run_with_iobinding(kept.binding, self._plain)
        elif kept.captured:
            self._session.run_with_iobinding(kept.binding, kept.graph)
        else:
            recorded, refusal = self._record(size, kept)
            if refusal is not None:
                # It would keep the refused session on the device beside the next one.
                del kept
                self._give_up(refusal)
            return recorded
        answer: NDArray[Any] = kept.output.numpy()  # from the device: a copy of its own
        return answer

    def _keep(self, size: int, shape: tuple[int, ...]) -> _Buffers:
        value = self._ort.OrtValue.ortvalue_from_shape_and_type
        given = value([size, *shape], np.float32, "cuda", self._number)
        answer = value([size, self._classes], np.float32, "cuda", self._number)
        pinned = self._pinned([size, *shape], given)
        host = np.empty((size, *shape), np.float32) if pinned is None else pinned.numpy()
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("images", given)
        binding.bind_ortvalue_output(self._output, answer)
        graph = self._ort.RunOptions()
        graph.add_run_config_entry("gpu_graph_id", str(size))
        kept = self.kept[size] = _Buffers(host, pinned, given, answer, binding, graph)
        logger.debug("cuda: buffers for batches of %d, %s", size, "pageable" if pinned is None else "pinned")
        return kept

    def _pinned(self, shape: list[int], given: Any) -> Any:
        """Host memory that the GPU reads itself, as an OrtValue that NumPy writes to; None where there is none.

        onnxruntime's device names have no pinned memory ("cuda" and "cpu" alone). Since its pull request 28038 an
        allocator can be named by the device's own description instead, where CUDA is a plug-in that offers one.
        """
        try:
            for device in self._ort.get_ep_devices():
                if device.ep_name == CUDA and _has_number(device, self._number):
                    info = device.memory_info(self._ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)
                    if info is not None:
                        value = self._ort.OrtValue
                        pinned = value.ortvalue_from_shape_and_type(shape, np.float32, memory_info=info)
                        pinned.numpy()[:] = 0
                        given.update_inplace(pinned)  # a copy that is refused is refused here
                        return pinned
        except Exception as e:  # an older onnxruntime, or it has no such allocator
            logger.debug("cuda: no pinned memory (%s)", shorten(e))
        return None

    # CUDA graphs.

    def _record(self, size: int, kept: _Buffers) -> tuple[NDArray[Any], str | None]:
        """The answer to the batch that lies in `kept`, by a plain run that also allocates all that this size needs;
        then record a graph and see that it repeats the answer. Also returns why there can be no graph, or None."""
        run = self._session.run_with_iobinding
        run(kept.binding, self._plain)
        answer: NDArray[Any] = kept.output.numpy()
        try:
            run(kept.binding, kept.graph)  # records
            kept.output.update_inplace(np.full_like(answer, np.nan))
            run(kept.binding, kept.graph)  # replays
            again = kept.output.numpy()
        except Exception as e:  # onnxruntime's own exceptions share no base class but Exception
            return answer, shorten(e)
        if not np.allclose(again, answer, rtol=1e-3, atol=1e-4, equal_nan=True):
            return answer, f"its answer differed by up to {np.abs(again - answer).max()}"
        kept.captured = True
        logger.debug("cuda: batches of %d run as a CUDA graph", size)
        return answer, None

    def _give_up(self, reason: str) -> None:
        """Go on without graphs, in a session that never began to record one."""
        logger.info("cuda: running without CUDA graphs: %s", reason)
        self.kept.clear()
        self._session = self._plain = None
        self._open(False)


def _has_number(device: Any, number: int) -> bool:
    """Whether an OrtEpDevice is the GPU `number`. Where its provider does not number it, the first one is 0."""
    named = {**(getattr(device, "ep_metadata", None) or {}), **(getattr(device, "ep_options", None) or {})}
    return str(named.get("device_id", 0)) == str(number)

"""CUDA in onnxruntime: its options, the check that it is active, fixed batch sizes, device buffers, CUDA graphs.

All work on the GPU runs on one thread (`cuda_thread`). The tests run this module against a fake that computes on the CPU.
tests/gpu/prove.py runs it on a GPU, and tests/benchmarks/test_cuda_latency.py measures what a GPU gains.

Options that are not used:

- `user_compute_stream` needs the address of a CUDA stream, which onnxruntime does not expose to Python for its own
  sessions.
- `tunable_op_enable` and an exhaustive `cudnn_conv_algo_search` time kernels for each new shape. The first runs would
  take seconds, and two processes might choose different kernels.
- `prefer_nhwc` changes the kernels and has not been measured.
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
    "check_active_provider",
    "choose_device",
    "other_cuda_user",
    "preload",
    "provider_options",
]

logger = logging.getLogger("organ_infer")

CUDA = "CUDAExecutionProvider"
# Slices per run. A batch is padded to the next size, because CUDA tunes kernels and allocates memory for each new shape.
BATCHES = (1, 4, 16, 64, 256)

_OPTIONS = {
    # An exhaustive search takes seconds per shape (https://github.com/microsoft/onnxruntime/issues/19838).
    "cudnn_conv_algo_search": "HEURISTIC",
    # Doubling took gigabytes for a small model (https://github.com/microsoft/onnxruntime/issues/11627).
    "arena_extend_strategy": "kSameAsRequested",
    # TF32 has a 10-bit mantissa, which breaks the parity of float32.
    "use_tf32": "0",
}


# Operators that may run on the CPU without a loss of speed. They compute shapes, which onnxruntime leaves there on
# purpose, or convert the logits to probabilities. All other operators are compute-intensive.
HARMLESS_OPERATORS = frozenset(
    {"Cast", "Concat", "Constant", "ConstantOfShape", "Gather", "Reshape", "Shape", "Size", "Slice"}
    | {"Squeeze", "Unsqueeze", "Softmax", "LogSoftmax"}
)

CLOSED = "this classifier is closed; open another OrganClassifier"


def provider_options(capture: bool, number: int = 0) -> dict[str, str]:
    """Return onnxruntime's options for the CUDA provider.

    Args:
        capture: Whether runs may be recorded as CUDA graphs.
        number: The number of the GPU.

    Returns:
        The values by option.
    """
    options = {**_OPTIONS, "device_id": str(number)}
    return {**options, "enable_cuda_graph": "1"} if capture else options


def choose_device(ort: ModuleType, device: str) -> str:
    """Choose between CPU and CUDA by what this onnxruntime offers.

    Args:
        ort: The onnxruntime module.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        `cpu`, `cuda` or `cuda:N`.

    Raises:
        DeviceError: CUDA was requested and this onnxruntime does not offer it.
    """
    kind = parse_device(device).kind
    if kind == "cpu":
        return "cpu"
    available = ort.get_available_providers()
    if CUDA in available:
        return "cuda" if kind == "auto" else device
    level = logging.INFO
    if both_wheels_installed():
        level = logging.WARNING
        reason = f"onnxruntime and onnxruntime-gpu are both installed and overwrite each other; {reinstall_text()}"
    else:
        reason = (
            f"this onnxruntime offers only {', '.join(available)};"
            " for CUDA uninstall it, then pip install 'organ-infer[gpu]'"
        )
    if kind == "cuda":
        raise DeviceError(f"device {device}: CUDA is not available, {reason}")
    logger.log(level, "running on the CPU: %s", reason)
    return "cpu"


class Placement:
    """Where onnxruntime placed the nodes of a network: operators by execution provider."""

    def __init__(self, nodes: Mapping[str, Sequence[str]]) -> None:
        """Wrap what onnxruntime reports.

        Args:
            nodes: The operator of each node by execution provider. Empty if onnxruntime reports nothing.
        """
        self._nodes = nodes

    @property
    def total(self) -> int:
        """The number of nodes."""
        return sum(map(len, self._nodes.values()))

    @property
    def elsewhere(self) -> list[str]:
        """The operator of each node that is not on CUDA."""
        return [kind for name, kinds in self._nodes.items() if name != CUDA for kind in kinds]

    @property
    def harmful(self) -> list[str]:
        """Those of `elsewhere` that are not in HARMLESS_OPERATORS."""
        return [kind for kind in self.elsewhere if kind not in HARMLESS_OPERATORS]

    def __str__(self) -> str:
        if not self.total:
            return "onnxruntime does not report where its nodes run"
        on_cpu = self.elsewhere
        names = f"; on the CPU: {_names(on_cpu)}" if on_cpu else ""
        return f"{self.total - len(on_cpu)} of {self.total} nodes on CUDA{names}"


def _names(operators: Sequence[str]) -> str:
    return ", ".join(sorted({*operators}))


def check_active_provider(session: "BoundSession", where: str) -> None:
    """Check that a session runs on CUDA: the provider is active and has nodes to run.

    A warning is logged if compute-intensive nodes remain on the CPU.

    Args:
        session: The opened network.
        where: The name of its file in messages.

    Raises:
        DeviceError: CUDA is not the active execution provider, or every node runs on the CPU.
    """
    active = session.get_providers()
    if active[:1] != [CUDA]:
        raise DeviceError(
            f"device cuda: onnxruntime activated {', '.join(active) or 'no execution provider'}; {advice()}"
        )
    placement = session.placement
    if placement.total and len(placement.elsewhere) == placement.total:
        raise DeviceError(
            f"device cuda: onnxruntime runs all of {where} on the CPU ({_names(placement.elsewhere)});"
            " export the bundle again in float32, or use --device cpu"
        )
    if placement.harmful:
        logger.warning(
            "%s: %d of %d nodes run on the CPU and slow CUDA down (%s); export the bundle again in float32",
            where,
            len(placement.harmful),
            placement.total,
            _names(placement.harmful),
        )
    elif placement.elsewhere:
        logger.info("%s: harmless nodes remain on the CPU (%s)", where, _names(placement.elsewhere))


def other_cuda_user() -> str | None:
    """Return the name of another library that uses CUDA in this process, or None if none is known.

    PyTorch counts once it has initialized CUDA, CuPy once it is imported. While a CUDA graph is recorded, CUDA refuses
    calls such as `cudaMalloc` in every thread, so theirs could fail.
    """
    initialized = getattr(getattr(sys.modules.get("torch"), "cuda", None), "is_initialized", None)
    if initialized is not None and initialized():
        return "PyTorch"
    return "CuPy" if "cupy" in sys.modules else None


_preloaded: ModuleType | None = None


def preload(ort: ModuleType) -> None:
    """Load CUDA's libraries from NVIDIA's wheels, where onnxruntime does not look by itself.

    This happens once per process, and not if torch has loaded the same major version of CUDA already. Call it on the CUDA
    thread only.

    Args:
        ort: The onnxruntime module.
    """
    global _preloaded
    if ort is _preloaded or not hasattr(ort, "preload_dlls") or _torch_brings_cuda(ort):
        return
    _preloaded = ort
    with _printed() as text:
        try:
            ort.preload_dlls()
        except Exception as e:
            # A missing library makes the session fail, and that error is reported.
            print(e)
    if text.getvalue().strip():
        logger.debug("preload_dlls: %s", one_line(text.getvalue()))


def _torch_brings_cuda(ort: ModuleType) -> bool:
    # CPU-only builds of torch have None here.
    version = getattr(getattr(sys.modules.get("torch"), "version", None), "cuda", None)
    major = _major(version)
    return bool(major) and major == _major(getattr(ort, "cuda_version", None))


def _major(version: Any) -> str:
    return version.partition(".")[0] if isinstance(version, str) else ""


@contextlib.contextmanager
def _printed() -> Iterator[io.StringIO]:
    """Collect what onnxruntime prints, so that it does not reach the caller's standard output."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        yield text


@dataclass
class _Buffers:
    """The memory of one batch size.

    Attributes:
        host: The batch on the host, float32 (size, 1, S, S).
        pinned: The OrtValue that owns `host`, if CUDA provided its memory, or None.
        input: The batch on the device, an OrtValue of the same shape.
        outputs: The answers on the device, an OrtValue (size, columns) by name.
        binding: The IOBinding of `input` and `outputs` to the session.
        graph: The RunOptions that name the CUDA graph of this size.
        captured: Whether that graph is recorded.
    """

    host: NDArray[np.float32]
    pinned: Any
    input: Any
    outputs: Mapping[str, Any]
    binding: Any
    graph: Any
    captured: bool = False

    def put(self, images: NDArray[np.float32]) -> None:
        """Copy a batch to the device, padded with zeros."""
        count = len(images)
        if self.pinned is None and count == len(self.host):
            self.input.update_inplace(images)
            return
        self.host[:count] = images
        self.host[count:] = 0
        self.input.update_inplace(self.host if self.pinned is None else self.pinned)

    def answers(self) -> list[NDArray[Any]]:
        """Copy the answers from the device."""
        return [value.numpy() for value in self.outputs.values()]


class BoundSession:
    """A network on CUDA whose batches and answers are in device buffers, allocated once for each size in BATCHES.

    It has the methods `run` and `get_providers` of an InferenceSession, for any thread. Everything on the device belongs
    to `_Network`, which only the CUDA thread uses (`cuda_thread`), also to free it when this object is gone.
    """

    def __init__(
        self,
        ort: ModuleType,
        open_session: Callable[[bool], Any],
        *,
        outputs: Mapping[str, int],
        capture: bool | None = None,
        number: int = 0,
    ) -> None:
        """Open the network.

        Args:
            ort: The onnxruntime module.
            open_session: Creates the InferenceSession. Its argument says whether to capture CUDA graphs.
            outputs: The columns of each of the graph's outputs, by name.
            capture: Whether to try CUDA graphs. None tries them unless another library uses CUDA (`other_cuda_user`).
            number: The number of the GPU.

        Raises:
            DeviceError: Whatever `open_session` raises.
        """
        from .cuda_thread import Released, call

        self._names = list(outputs)
        self._network = _Network(ort, open_session, outputs=outputs, capture=capture, number=number)
        # Before anything is opened, so that an interrupted caller leaves nothing behind.
        self._released = Released(self, self._network.free)
        call(self._network.open)

    @property
    def captured(self) -> tuple[int, ...]:
        """The batch sizes that run as CUDA graphs."""
        return tuple(
            sorted(
                size for size, buffers in list(self._network.buffers.items()) if buffers.captured
            )
        )

    @property
    def placement(self) -> Placement:
        """Where the nodes of the network run."""
        return self._network.placement

    def get_providers(self) -> list[str]:
        """The active execution providers, as InferenceSession.get_providers."""
        return self._network.providers

    def run(
        self, outputs: Sequence[str], feed: Mapping[str, NDArray[np.float32]]
    ) -> list[NDArray[Any]]:
        """Run the network, with the signature of InferenceSession.run.

        Args:
            outputs: The names of the outputs to return. All are computed.
            feed: {"images": float32 (N, 1, S, S)} for any N. The images run in batches of the sizes in BATCHES.

        Returns:
            An array per output, (N, columns).
        """
        from .cuda_thread import call

        answers = call(partial(self._network.run, feed["images"]))
        return [answers[self._names.index(name)] for name in outputs]

    def close(self) -> None:
        """Free the device memory and wait until that is done. Closing twice has no effect."""
        from .cuda_thread import wait

        wait(self._released.now())


class _Network:
    """The session and buffers of a BoundSession on the device. Only the CUDA thread uses it.

    If onnxruntime can record the network as a CUDA graph (every node on CUDA, no control flow), a graph is recorded for
    each batch size after a plain run. The graph is used only if its replay repeats the answer of that run. If any of
    this fails, the session is opened again without graphs.
    """

    def __init__(
        self,
        ort: ModuleType,
        open_session: Callable[[bool], Any],
        *,
        outputs: Mapping[str, int],
        capture: bool | None,
        number: int,
    ) -> None:
        self._ort = ort
        self._open_session = open_session
        self._outputs = outputs
        self._number = number
        self.capture = capture is not False
        self._beside_others = capture is True
        # The library because of which nothing is recorded at present.
        self._waits_for: str | None = None
        # By batch size.
        self.buffers: dict[int, _Buffers] = {}
        self.providers: list[str] = []
        self.placement = Placement({})
        self._session: Any = None
        self._plain: Any = None
        self._freed = False

    def open(self) -> None:
        """Open the session, with CUDA graphs if onnxruntime accepts them."""
        refusal = None
        if self.capture:
            try:
                self._open(True)
            except DeviceError as e:
                refusal = shorten(e.__cause__ or e)
        if self._session is None:
            self._open(False)
        if refusal is not None:
            # Not earlier, because a device that does not open at all has not refused graphs alone.
            logger.info("cuda: running without CUDA graphs: %s", refusal)

    def _open(self, capture: bool) -> None:
        self.capture = capture
        self._session = self._open_session(capture)
        self._plain = self._ort.RunOptions()
        if capture:
            # -1 means neither capture nor replay.
            self._plain.add_run_config_entry("gpu_graph_id", "-1")
        self.providers = list(self._session.get_providers())
        self.placement = Placement(self._placed_nodes())

    def _placed_nodes(self) -> dict[str, list[str]]:
        """Return the operators of the nodes by execution provider.

        Empty for versions of onnxruntime that do not report it (https://github.com/microsoft/onnxruntime/pull/26781).
        """
        nodes: dict[str, list[str]] = {}
        if hasattr(self._session, "get_provider_graph_assignment_info"):
            for part in self._session.get_provider_graph_assignment_info():
                nodes.setdefault(part.ep_name, []).extend(node.op_type for node in part.get_nodes())
        return nodes

    def free(self) -> None:
        """Free the device memory."""
        self._freed = True
        # Buffers first, because their bindings refer to the session.
        self.buffers.clear()
        self._session = self._plain = None

    def run(self, images: NDArray[np.float32]) -> list[NDArray[Any]]:
        """Run images, float32 (N, 1, S, S), in batches of the sizes in BATCHES. Returns each output, (N, columns)."""
        if self._freed:
            raise OrganInferError(CLOSED)
        if self._session is None:
            # Opening it again without graphs failed. The GPU may have free memory by now.
            self._open(False)
        largest = BATCHES[-1]
        batches = []
        for start in range(0, len(images), largest):
            batch = images[start : start + largest]
            batches.append([answer[: len(batch)] for answer in self._run_batch(batch)])
        if len(batches) == 1:
            return batches[0]
        return [np.concatenate(parts) for parts in zip(*batches, strict=True)]

    def _run_batch(self, images: NDArray[np.float32]) -> list[NDArray[Any]]:
        """Run one batch at the next fixed size. The first rows of each output are those of `images`."""
        size = next(size for size in BATCHES if size >= len(images))
        buffers = self.buffers.get(size) or self._allocate(size, images.shape[1:])
        buffers.put(images)
        if buffers.captured:
            self._session.run_with_iobinding(buffers.binding, buffers.graph)
        elif not self._may_record():
            self._session.run_with_iobinding(buffers.binding, self._plain)
        else:
            answers, refusal = self._record(size, buffers)
            if refusal is not None:
                # This reference would keep the memory of the old session while the next one is opened.
                del buffers
                self._disable_graphs(refusal, images)
            return answers
        return buffers.answers()

    def _allocate(self, size: int, shape: tuple[int, ...]) -> _Buffers:
        value = self._ort.OrtValue.ortvalue_from_shape_and_type
        device_input = value([size, *shape], np.float32, "cuda", self._number)
        outputs = {
            name: value([size, columns], np.float32, "cuda", self._number)
            for name, columns in self._outputs.items()
        }
        pinned = self._pinned([size, *shape], device_input)
        host = np.empty((size, *shape), np.float32) if pinned is None else pinned.numpy()
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("images", device_input)
        for name, device_output in outputs.items():
            binding.bind_ortvalue_output(name, device_output)
        graph = self._ort.RunOptions()
        graph.add_run_config_entry("gpu_graph_id", str(size))
        buffers = _Buffers(host, pinned, device_input, outputs, binding, graph)
        self.buffers[size] = buffers
        logger.debug(
            "cuda: buffers for batches of %d, %s", size, "pageable" if pinned is None else "pinned"
        )
        return buffers

    def _pinned(self, shape: list[int], device_input: Any) -> Any:
        """Allocate host memory that the GPU reads directly, as an OrtValue that NumPy can write to; None if impossible.

        onnxruntime's device names, "cuda" and "cpu", do not include pinned memory. Since
        https://github.com/microsoft/onnxruntime/pull/28038 an allocator can be selected by the description of the device
        instead, if CUDA is a plug-in that has one.
        """
        try:
            for device in self._ort.get_ep_devices():
                if device.ep_name == CUDA and _has_number(device, self._number):
                    info = device.memory_info(self._ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)
                    if info is not None:
                        value = self._ort.OrtValue
                        pinned = value.ortvalue_from_shape_and_type(
                            shape, np.float32, memory_info=info
                        )
                        pinned.numpy()[:] = 0
                        # A trial copy, which raises here if copies from this memory are not possible.
                        device_input.update_inplace(pinned)
                        return pinned
        except Exception as e:
            # An older onnxruntime, or one without such an allocator.
            logger.debug("cuda: no pinned memory (%s)", shorten(e))
        return None

    # CUDA graphs.

    def _may_record(self) -> bool:
        """Return whether a CUDA graph may be recorded now. What is recorded already is used in any case."""
        if not self.capture or self._beside_others:
            return self.capture
        user = other_cuda_user()
        if user is not None and user != self._waits_for:
            logger.info(
                "cuda: recording no CUDA graphs, because %s uses CUDA in this process;"
                " cuda_graphs=True records them nevertheless",
                user,
            )
        self._waits_for = user
        return user is None

    def _record(self, size: int, buffers: _Buffers) -> tuple[list[NDArray[Any]], str | None]:
        """Run the batch in `buffers`, record a CUDA graph, and check that its replay gives the same result.

        The first run is plain and also allocates everything that this size needs.

        Returns:
            The outputs, and the reason why no graph can be used, or None.
        """
        run = self._session.run_with_iobinding
        run(buffers.binding, self._plain)
        answers = buffers.answers()
        try:
            # Records.
            run(buffers.binding, buffers.graph)
            for output, answer in zip(buffers.outputs.values(), answers, strict=True):
                output.update_inplace(np.full_like(answer, np.nan))
            # Replays.
            run(buffers.binding, buffers.graph)
            replays = buffers.answers()
        except Exception as e:
            # onnxruntime's exceptions have no common base class except Exception.
            return answers, shorten(e)
        for replayed, answer in zip(replays, answers, strict=True):
            if not np.allclose(replayed, answer, rtol=1e-3, atol=1e-4, equal_nan=True):
                return answers, f"its answer differed by up to {np.abs(replayed - answer).max()}"
        buffers.captured = True
        logger.debug("cuda: batches of %d run as a CUDA graph", size)
        return answers, None

    def _disable_graphs(self, reason: str, images: NDArray[np.float32]) -> None:
        """Continue without graphs, in a new session that never began to record one."""
        logger.info("cuda: running without CUDA graphs: %s", reason)
        self.buffers.clear()
        self._session = self._plain = None
        self._open(False)
        try:
            self._run_batch(images)
        except Exception as e:
            # A recording that fails leaves its error on this thread. CUDA can report it once more, for the next call
            # (seen on an H100: error 901, "operation failed due to a previous error during capture"). Then it is gone.
            logger.debug("cuda: after the refused recording: %s", shorten(e))


def _has_number(device: Any, number: int) -> bool:
    """Return whether an OrtEpDevice is the GPU `number`. A device without a number counts as GPU 0."""
    options = {
        **(getattr(device, "ep_metadata", None) or {}),
        **(getattr(device, "ep_options", None) or {}),
    }
    return str(options.get("device_id", 0)) == str(number)

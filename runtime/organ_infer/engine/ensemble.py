"""The networks of a bundle on one device, and the mean of their probabilities."""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..bundle.fast import fast_bundle
from ..bundle.files import Manifest, Member, UnverifiedBundle, list_bundle
from ..errors import BundleError, DeviceError, OrganInferError, one_line
from .cuda import CLOSED, Placement
from .devices import parse_device
from .graph_cache import Cache, cache_directory, graph_files
from .installed import installed_version
from .session import Session, choose_device, import_onnxruntime, logger
from .threads import START_ERRORS, affordable_threads, map_in_threads

__all__ = ["Answer", "Ensemble", "Orientations", "open_ensemble"]

# Bytes of graphs. Optimizing smaller ones takes less time than looking them up.
CACHE_THRESHOLD = 1 << 24

# Bytes of graphs. Smaller networks gain little from a second thread within a layer. They run a batch in pieces, each in one
# thread, whose arrays fit into the processor's caches.
SMALL = 4 << 20
# Slices of a piece, at most, and at least if threads would be idle otherwise.
PIECE, SMALLEST_PIECE = 16, 8

# Copies of a graph that onnxruntime has in memory while it opens it, at most.
COPIES = 4

Probabilities = NDArray[np.float64]
# Probabilities of the eight in-plane orientations and of no organ crop, (N, 9).
Orientations = NDArray[np.float32]
# Of a network for a batch, the classes first.
Outputs = list[NDArray[np.float32]]


class Answer(NamedTuple):
    """What the networks say about a batch.

    Attributes:
        probabilities: float64 (N, classes).
        orientation: float32 (N, 9), or None if the networks do not return it.
    """

    probabilities: Probabilities
    orientation: Orientations | None


def open_ensemble(
    directory: str | os.PathLike[str],
    *,
    device: str,
    threads: int,
    cuda_graphs: bool | None = None,
    expected_sha256: str | None = None,
    fast: bool = False,
) -> "Ensemble":
    """Open the graphs that a bundle has for a device.

    Args:
        directory: The bundle.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: The number of threads for all networks together.
        cuda_graphs: Whether CUDA may record runs as CUDA graphs; None, unless another library uses CUDA.
        expected_sha256: The SHA-256 of manifest.json, or None for any.
        fast: Whether only the bundle's fast member is opened.

    Returns:
        The opened networks.

    Raises:
        BundleError: The bundle is not what its manifest says.
        DeviceError: onnxruntime is missing, cannot open a graph, or does not activate the device.
    """
    bundle = list_bundle(directory)
    if expected_sha256 is not None and bundle.sha256 != expected_sha256.lower():
        raise BundleError(
            f"{bundle.directory}: another model, its manifest.json has sha256 {bundle.sha256}, expected"
            f" {expected_sha256.lower()}; pass the bundle that was pinned, or its new sha256"
        )
    if fast:
        bundle = fast_bundle(bundle)
    # The lookup runs while onnxruntime loads.
    with CacheLookup(bundle, device) as lookup:
        ort = import_onnxruntime()
        chosen = choose_device(ort, device)
        if chosen != "cpu":
            try:
                return _Opener(bundle, chosen, threads, cuda_graphs).from_bundle(None)
            except DeviceError as e:
                if device != "auto":
                    raise
                logger.warning("running on the CPU: %s", e)
        cache, graphs = lookup.result(ort.__version__)
        opener = _Opener(bundle, "cpu", threads, False)
        if graphs is not None and all(entry.file in graphs for entry in opener.variants):
            try:
                return opener.from_cache(graphs)
            except DeviceError as e:
                logger.warning("rebuilding the cached graph: %s", e)
                # Its checksums are right, so the new one would not replace it.
                if cache is not None:
                    cache.remove()
        return opener.from_bundle(cache)


class CacheLookup:
    """Looks up the optimized graphs of a bundle in the cache, in a separate thread if they will be needed.

    It is a context manager. Its exit does not wait for a lookup whose result was not requested.
    """

    def __init__(self, bundle: UnverifiedBundle, device: str) -> None:
        """Start the lookup.

        Args:
            bundle: The bundle.
            device: The requested device, `auto`, `cpu`, `cuda` or `cuda:N`.
        """
        self._bundle = bundle
        size = sum(entry.bytes for entry in bundle.manifest.variants("cpu"))
        self._root = cache_directory() if size >= CACHE_THRESHOLD else None
        self._version = installed_version("onnxruntime")
        self._workers: ThreadPoolExecutor | None = None
        if (
            self._root
            and self._version
            and parse_device(device).kind != "cuda"
            and not installed_version("onnxruntime-gpu")
        ):
            workers = _workers(1)
            # Without a thread for it, the lookup is made when its result is requested.
            with contextlib.suppress(*START_ERRORS):
                self._future = workers.submit(self._find, self._version)
                self._workers = workers

    def __enter__(self) -> "CacheLookup":
        return self

    def __exit__(self, *_: object) -> None:
        if self._workers is not None:
            self._workers.shutdown(wait=False)

    def result(self, version: str) -> tuple[Cache | None, dict[str, Path] | None]:
        """Return the result of the lookup.

        Args:
            version: The version of the loaded onnxruntime. The lookup started with the version of the installed package.

        Returns:
            The cache of the bundle, or None if it has none. The path of each optimized graph by the name of the bundle's
            file, or None if they are not cached.
        """
        if self._workers is not None and version == self._version:
            return self._future.result()
        return self._find(version)

    def _find(self, version: str) -> tuple[Cache | None, dict[str, Path] | None]:
        if self._root is None:
            return None, None
        bundle = self._bundle
        cache = Cache(self._root, bundle.directory, bundle.sha256, version, bundle.only)
        return cache, cache.find(bundle.files())


class _Opener:
    """Opens the sessions of a bundle on one device, `cpu`, `cuda` or `cuda:N`."""

    def __init__(
        self, bundle: UnverifiedBundle, device: str, threads: int, cuda_graphs: bool | None
    ) -> None:
        self._bundle = bundle
        self._device = device
        self._kind = parse_device(device).kind
        self._cuda_graphs = cuda_graphs
        self.variants = bundle.manifest.variants(self._kind)
        self._in_pieces = self._kind == "cpu" and all(each.bytes < SMALL for each in self.variants)
        self._threads = affordable_threads(
            threads,
            self._threads_to_start,
            memory=COPIES * sum(entry.bytes for entry in self.variants),
        )
        self._parallel = self._runs_at_once(self._threads)

    def _runs_at_once(self, threads: int) -> int:
        if self._in_pieces:
            return threads
        return min(len(self.variants), threads) if self._kind == "cpu" else 1

    def _threads_to_start(self, threads: int) -> int:
        """Return how many threads the networks start: one less than runs at once, and onnxruntime's own."""
        parallel = self._runs_at_once(threads)
        onnxruntime = len(self.variants) * (max(1, threads // parallel) - 1)
        return onnxruntime + parallel - 1

    def from_cache(self, graphs: Mapping[str, Path]) -> "Ensemble":
        """Open optimized graphs, by the name of the bundle's file."""
        return self._ensemble(
            map_in_threads(
                lambda entry: self._session(entry, graphs[entry.file]),
                self.variants,
                self._parallel,
            )
        )

    def from_bundle(self, cache: Cache | None) -> "Ensemble":
        """Verify and open the graphs of the bundle, and add their optimized graphs to the cache if there is one."""
        names = [entry.file for entry in self.variants]
        new_entry = (
            contextlib.nullcontext()
            if cache is None
            else cache.new_entry(self._bundle.files(), names)
        )
        sessions: list[Session] = []
        try:
            with new_entry as folder:
                for entry, data in self._bundle.verified(self._kind).graphs:
                    sessions.append(self._optimized(entry, data, folder))
        except BaseException:
            # If a GPU is too small for all members, its memory must be free now, not when the error is forgotten.
            for session in sessions:
                session.close()
            raise
        return self._ensemble(sessions)

    def _optimized(self, entry: Member, data: bytes, folder: Path | None) -> Session:
        """Open a graph and save its optimized graph in `folder`."""
        if folder is None:
            return self._session(entry, data)
        graph_file, weights_file = graph_files(entry.file)
        try:
            return self._session(entry, data, (folder / graph_file, weights_file))
        except DeviceError as e:
            # For example because the disk is full. Without saving, the graph either opens or fails for its own reason.
            logger.info("%s: the optimized graph was not cached (%s)", entry.file, e)
            (folder / graph_file).unlink(missing_ok=True)
            return self._session(entry, data)

    def _session(
        self, entry: Member, graph: bytes | Path, save: tuple[Path, str] | None = None
    ) -> Session:
        return Session(
            graph,
            output=entry.output,
            classes=len(self._bundle.manifest.task.classes),
            where=str(self._bundle.directory / entry.file),
            device=self._device,
            threads=max(1, self._threads // self._parallel),
            save=save,
            capture=self._cuda_graphs,
            extra=self._bundle.manifest.extra_outputs(),
            arena=self._in_pieces,
        )

    def _ensemble(self, sessions: list[Session]) -> "Ensemble":
        bundle = self._bundle
        return Ensemble(
            bundle.manifest,
            self.variants,
            sessions,
            self._parallel,
            bundle.sha256,
            in_pieces=self._in_pieces,
        )


def _workers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="organ_infer")


def _caller(sessions: Sequence[Session]) -> Callable[[Callable[[], Any]], Any]:
    """Return a function that calls a task. On CUDA it runs the whole task on the CUDA thread."""
    if sessions[0].placement is None:
        return lambda task: task()
    from .cuda_thread import call

    return call


class Ensemble:
    """Opened networks whose probabilities are averaged. Any thread may use it, but only in the process that opened it."""

    def __init__(
        self,
        manifest: Manifest,
        variants: Sequence[Member],
        sessions: list[Session],
        parallel: int,
        sha256: str = "",
        *,
        in_pieces: bool = False,
    ) -> None:
        """Combine opened networks.

        Args:
            manifest: Of the bundle.
            variants: The manifest's entry of each network.
            sessions: The networks, in the same order.
            parallel: The number of runs at the same time, each with its share of the threads.
            sha256: Of the bundle's manifest.json.
            in_pieces: Whether batches run in pieces of at most PIECE slices.
        """
        self.sha256 = sha256
        self.manifest = manifest
        self.providers = sessions[0].providers
        self._sessions = sessions
        self._call = _caller(sessions)
        # The most expensive network first, so that cheaper ones fill the remaining time.
        self._order = sorted(range(len(variants)), key=lambda i: -variants[i].bytes)
        self._parallel, self._in_pieces = parallel, in_pieces
        # The calling thread is one of `parallel`. The others start with the first batch that needs them.
        self._workers = _workers(parallel - 1) if parallel > 1 else None
        self._pid = os.getpid()
        # The number of predictions in progress, and its lock.
        self._running, self._lock = 0, threading.RLock()
        self._closed = False

    @property
    def placements(self) -> list[tuple[str, Placement]]:
        """For each network on CUDA, its file and where its nodes run."""
        pairs = [(session.where, session.placement) for session in self._sessions]
        return [(where, placement) for where, placement in pairs if placement is not None]

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def probabilities(self, packed: NDArray[np.float32]) -> Probabilities:
        """Classify packed slices.

        Args:
            packed: float32 (N, 1, S, S), normalized as the manifest says.

        Returns:
            The mean over the networks, float64 (N, classes).

        Raises:
            DeviceError: A network failed or gave no usable answer.
            OrganInferError: The ensemble is closed, or belongs to another process.
        """
        return self._mean_probabilities(self._outputs(_class_output, packed))

    def answer(self, packed: NDArray[np.float32]) -> Answer:
        """Classify packed slices, as `probabilities`, and return their orientation, too.

        Raises:
            DeviceError: A network failed or gave no usable answer.
            OrganInferError: The ensemble is closed, or belongs to another process.
        """
        if self.manifest.plausibility is None:
            return Answer(self.probabilities(packed), None)
        outputs = self._outputs(_all_outputs, packed)
        orientations = [orientation for _, orientation in outputs]
        for session, orientation in zip(self._sessions, orientations, strict=True):
            if not _are_probabilities(orientation):
                raise _no_probabilities(session)
        return Answer(self._mean_probabilities(outputs), _mean(orientations))

    def _outputs(
        self, run: Callable[[Session, NDArray[np.float32]], Outputs], packed: NDArray[np.float32]
    ) -> list[Outputs]:
        """Return the outputs of each network."""
        # Checked before the lock, because a forked child has neither the thread that holds it nor the workers.
        self.check_process()
        with self._lock:
            if self._closed:
                raise OrganInferError(CLOSED)
            self._running += 1
        try:
            outputs: list[Outputs] = self._call(partial(self._run_all, run, self._pieces(packed)))
            return outputs
        finally:
            with self._lock:
                self._running -= 1
                self._free()

    def _pieces(self, packed: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Divide a batch into pieces of SMALLEST_PIECE to PIECE slices, if possible the same number for each thread."""
        count = len(packed)
        if not self._in_pieces or count < 2 * SMALLEST_PIECE:
            return [packed]
        fewest = -(-count // PIECE)
        for_all = -(-fewest // self._parallel) * self._parallel
        return np.array_split(packed, max(fewest, min(for_all, count // SMALLEST_PIECE)))

    def check_process(self) -> None:
        """Check that this is the process that opened the networks.

        Raises:
            OrganInferError: It is another process, such as a forked child.
        """
        self._sessions[0].check_process()

    def close(self) -> None:
        """Free the networks, after predictions in progress in other threads. Closing twice has no effect."""
        if os.getpid() != self._pid:
            self._closed = True
            return
        with self._lock:
            self._closed = True
            self._free()

    def _free(self) -> None:
        if self._closed and not self._running:
            if self._workers is not None:
                self._workers.shutdown(wait=False)
            for session in self._sessions:
                session.close()

    def _run_all(
        self,
        run: Callable[[Session, NDArray[np.float32]], Outputs],
        pieces: list[NDArray[np.float32]],
    ) -> list[Outputs]:
        """Run each network on each piece, in this thread and in workers that can be started."""
        tasks = deque((piece, i) for i in self._order for piece in range(len(pieces)))
        results: dict[tuple[int, int], Outputs] = {}

        def work() -> None:
            while True:
                try:
                    task = piece, i = tasks.popleft()
                except IndexError:
                    return
                try:
                    results[task] = run(self._sessions[i], pieces[piece])
                except BaseException:
                    # The other threads need not go on.
                    tasks.clear()
                    raise

        shares: list[Future[None]] = []
        try:
            self._start(work, min(self._parallel, len(tasks)) - 1, shares)
            work()
        finally:
            # The workers must end before the networks are freed.
            tasks.clear()
            errors = [share.exception() for share in shares if not share.cancel()]
        for error in errors:
            if error is not None:
                raise error
        return [
            [
                _joined(parts)
                for parts in zip(*(results[piece, i] for piece in range(len(pieces))), strict=True)
            ]
            for i in range(len(self._sessions))
        ]

    def _start(self, work: Callable[[], None], count: int, shares: list[Future[None]]) -> None:
        """Submit `work` to the workers several times.

        Args:
            work: What a worker calls.
            count: How often. If a thread cannot be started, `work` is submitted less often.
            shares: A future of each submitted `work` is added, before a worker can begin with it.
        """
        workers = self._workers
        if workers is None:
            return
        try:
            for _ in range(count):
                # The executor's own future is not returned if its thread cannot be started, but `work` is queued
                # nevertheless, and a worker of another batch may take it.
                share: Future[None] = Future()
                shares.append(share)
                workers.submit(_do, work, share)
        except START_ERRORS as e:
            with self._lock:
                first, self._workers = self._workers is workers, None
            # At the exit of the program no limit is the cause, and there is nothing to raise.
            if first and "shutdown" not in str(e):
                logger.warning(
                    "running in one thread: no other can be started (%s); raise the limit on processes (ulimit -u)",
                    one_line(e),
                )
            # Its threads still do what is queued. A thread that starts later would find work without a caller.
            workers.shutdown(wait=False)

    def _mean_probabilities(self, outputs: list[Outputs]) -> Probabilities:
        return _mean(
            [
                self._normalized(session, classes)
                for session, (classes, *_) in zip(self._sessions, outputs, strict=True)
            ]
        )

    def _normalized(self, session: Session, output: NDArray[np.float32]) -> Probabilities:
        """Return the probabilities of a network's output, (N, classes)."""
        answer = output.astype(np.float64)
        if session.output == "logits":
            answer /= self.manifest.temperature
            answer = np.exp(answer - answer.max(axis=1, keepdims=True))
        elif not _are_probabilities(answer):
            raise _no_probabilities(session)
        total: Probabilities = answer.sum(axis=1, keepdims=True)
        return answer / total


def _do(work: Callable[[], None], share: Future[None]) -> None:
    """Call `work`, unless its share of a batch was cancelled, and store its end or its error in the future."""
    if not share.set_running_or_notify_cancel():
        return
    try:
        work()
    except BaseException as e:
        share.set_exception(e)
    else:
        share.set_result(None)


def _class_output(session: Session, packed: NDArray[np.float32]) -> Outputs:
    return [session.run(packed)]


def _all_outputs(session: Session, packed: NDArray[np.float32]) -> Outputs:
    return session.run_all(packed)


def _joined(pieces: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]


def _mean(answers: list[NDArray[Any]]) -> NDArray[Any]:
    return sum(answers[1:], start=answers[0]) / len(answers) if len(answers) > 1 else answers[0]


def _are_probabilities(rows: NDArray[Any]) -> bool:
    return bool(rows.min() >= 0 and np.abs(rows.sum(axis=1) - 1).max() <= 1e-3)


def _no_probabilities(session: Session) -> DeviceError:
    return DeviceError(
        f"{session.where}: expected probabilities, but the output does not sum to 1; export the bundle again"
    )

"""The networks of a bundle on one device, side by side: packed slices in, their mean probabilities out."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.files import Listed, Manifest, Member, list_bundle
from ..errors import DeviceError, OrganInferError
from .cuda import Placement
from .devices import parse_device
from .graph_cache import Cache, cache_directory, graph_files
from .installed import installed_version
from .session import Session, choose_device, import_onnxruntime, logger

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

__all__ = ["Ensemble", "open_ensemble"]

CACHED_FROM = 1 << 24  # bytes of graphs: less is optimised in less time than it takes to find it

Probabilities = NDArray[np.float64]


def open_ensemble(
    directory: str | os.PathLike[str], *, device: str, threads: int, cuda_graphs: bool = True
) -> "Ensemble":
    """Open the graphs that a bundle holds for `device` (`auto`, `cpu`, `cuda` or `cuda:N`). Raises BundleError,
    DeviceError."""
    listed = list_bundle(directory)
    with _Kept(listed, device) as kept:  # looked for while onnxruntime loads
        ort = import_onnxruntime()
        chosen = choose_device(ort, device)
        if chosen != "cpu":
            try:
                return _opened(listed, ort, chosen, threads, None, cuda_graphs)
            except DeviceError as e:
                if device != "auto":
                    raise
                logger.warning("running on the CPU: %s", e)
        return _opened(listed, ort, "cpu", threads, kept)


class _Kept:
    """The optimised graphs of a bundle in the cache; the hashing of them goes on beside the import of onnxruntime."""

    def __init__(self, listed: Listed, device: str) -> None:
        self._listed = listed
        self._root = (
            cache_directory() if sum(e.bytes for e in listed.manifest.forms("cpu")) >= CACHED_FROM else None
        )
        self._version = installed_version("onnxruntime")
        self._workers: ThreadPoolExecutor | None = None
        if (
            self._root
            and self._version
            and parse_device(device).kind != "cuda"
            and not installed_version("onnxruntime-gpu")
        ):
            self._workers = _workers(1)
            self._found = self._workers.submit(self._find, self._version)

    def __enter__(self) -> "_Kept":
        return self

    def __exit__(self, *_: object) -> None:
        if self._workers is not None:
            self._workers.shutdown(wait=False)

    def look(self, version: str) -> tuple[Cache | None, dict[str, Path] | None]:
        """The bundle's cache for this version of onnxruntime, and what it holds."""
        if self._workers is not None and version == self._version:
            return self._found.result()
        return self._find(version)

    def _find(self, version: str) -> tuple[Cache | None, dict[str, Path] | None]:
        if self._root is None:
            return None, None
        cache = Cache(self._root, self._listed.directory, self._listed.sha256, version)
        return cache, cache.find(self._listed.files())


def _opened(
    listed: Listed,
    ort: ModuleType,
    device: str,
    threads: int,
    looked: _Kept | None,
    cuda_graphs: bool = False,
) -> "Ensemble":
    kind = parse_device(device).kind
    forms = listed.manifest.forms(kind)
    side_by_side = min(len(forms), threads) if device == "cpu" else 1
    share = max(1, threads // side_by_side)
    names = [entry.file for entry in forms]
    cache, kept = looked.look(ort.__version__) if looked else (None, None)

    def session(entry: Member, graph: bytes | Path, save: tuple[Path, str] | None = None) -> Session:
        return Session(
            graph,
            output=entry.output,
            classes=len(listed.manifest.task.classes),
            where=str(listed.directory / entry.file),
            device=device,
            threads=share,
            save=save,
            capture=cuda_graphs,
        )

    if kept is not None and all(name in kept for name in names):
        try:
            with _workers(threads) as workers:
                sessions = list(workers.map(lambda entry: session(entry, kept[entry.file]), forms))
            return Ensemble(listed.manifest, forms, sessions, side_by_side)
        except DeviceError as e:
            logger.warning("the cached form of this bundle is made again: %s", e)
    sessions = []
    try:
        with _making(cache, listed, names) as folder:
            for entry, data in listed.verified(kind).graphs:
                if folder is None:
                    sessions.append(session(entry, data))
                    continue
                optimised, weights = graph_files(entry.file)
                try:
                    sessions.append(session(entry, data, (folder / optimised, weights)))
                except (
                    DeviceError
                ) as e:  # as where the disk is full; without saving it either opens or fails as it is
                    logger.info("the optimised form of %s was not kept: %s", entry.file, e)
                    (folder / optimised).unlink(missing_ok=True)
                    sessions.append(session(entry, data))
    except BaseException:
        # The memory of a GPU that is too small for all members is needed by others, not when the error is forgotten.
        for opened in sessions:
            opened.close()
        raise
    return Ensemble(listed.manifest, forms, sessions, side_by_side)


@contextlib.contextmanager
def _making(cache: Cache | None, listed: Listed, names: list[str]) -> Iterator[Path | None]:
    if cache is None:
        yield None
        return
    with cache.making(listed.files(), names) as folder:
        yield folder


def _workers(count: int) -> "ThreadPoolExecutor":
    from concurrent.futures import ThreadPoolExecutor  # a single network does without

    return ThreadPoolExecutor(count, thread_name_prefix="organ_infer")


def _caller(sessions: Sequence[Session]) -> Callable[[Callable[[], Any]], Any]:
    """What runs all networks on a batch: on CUDA its thread, which gets the whole call as one task."""
    if sessions[0].placement is None:
        return lambda task: task()
    from .cuda_thread import call

    return call


class Ensemble:
    """Opened networks whose probabilities are averaged; safe to use from many threads, tied to its process."""

    def __init__(
        self, manifest: Manifest, forms: Sequence[Member], sessions: list[Session], side_by_side: int
    ) -> None:
        """side_by_side: how many networks run at the same time, each on its share of the threads."""
        self.manifest = manifest
        self.providers = sessions[0].providers
        self._sessions = sessions
        self._call = _caller(sessions)
        # the dearest first, so that the cheap ones fill what is left
        self._order = sorted(range(len(forms)), key=lambda i: -forms[i].bytes)
        self._workers = _workers(side_by_side) if side_by_side > 1 else None
        self._pid = os.getpid()
        self._counting, self._running = threading.RLock(), 0  # predictions under way
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
        """packed: float32 (N, 1, S, S) -> float64 (N, classes), the mean over the networks."""
        self.check_process()  # a fork has neither the lock's holder nor the workers
        with self._counting:
            if self._closed:
                raise OrganInferError("this classifier is closed: open another OrganClassifier")
            self._running += 1
        try:
            if self._workers is None:
                found: list[Probabilities] = self._call(partial(self._of_all, packed))
            else:
                waiting = {i: self._workers.submit(self._of, self._sessions[i], packed) for i in self._order}
                found = [waiting[i].result() for i in range(len(self._sessions))]
        finally:
            with self._counting:
                self._running -= 1
                self._free()
        return sum(found[1:], start=found[0]) / len(found)

    def check_process(self) -> None:
        """Raises OrganInferError in another process than the one that opened the networks."""
        self._sessions[0].check_process()

    def close(self) -> None:
        """Free the networks, once the predictions under way in other threads have ended. Closing twice is fine."""
        if os.getpid() != self._pid:
            self._closed = True
            return
        with self._counting:
            self._closed = True
            self._free()

    def _free(self) -> None:
        if self._closed and not self._running:
            if self._workers is not None:
                self._workers.shutdown(wait=False)
            for session in self._sessions:
                session.close()

    def _of_all(self, packed: NDArray[np.float32]) -> list[Probabilities]:
        return [self._of(session, packed) for session in self._sessions]

    def _of(self, session: Session, packed: NDArray[np.float32]) -> Probabilities:
        """One network's probabilities, float64 (N, classes)."""
        answer = session.run(packed).astype(np.float64)
        if session.output == "logits":
            answer /= self.manifest.temperature
            answer = np.exp(answer - answer.max(axis=1, keepdims=True))
        elif answer.min() < 0 or np.abs(answer.sum(axis=1) - 1).max() > 1e-3:
            raise DeviceError(f"{session.where}: probabilities expected, the network's do not sum to 1")
        total: Probabilities = answer.sum(axis=1, keepdims=True)
        return answer / total

"""What is derived from a bundle, kept between processes: its graphs as onnxruntime optimised them, and which files
were verified.

An optimised graph opens in milliseconds, its weights mapped from the file; optimising a ResNet at load takes seconds.
An entry belongs to one bundle in one place, one version of onnxruntime and one kind of processor. It is private to
the user, and held against its own hashes each time it is used. Nothing here is ever required: whatever goes wrong, the
bundle is read and optimised anew. ORGAN_INFER_CACHE names the directory (empty: no cache), else platformdirs does.
"""

import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .errors import one_line

__all__ = ["Cache", "cache_directory", "graph_files"]

logger = logging.getLogger("organ_infer")

VARIABLE = "ORGAN_INFER_CACHE"
RECORD = "record.json"
RECORD_LIMIT = 1 << 20  # bytes
KEPT = 8  # entries; the one not used for the longest goes first


def cache_directory() -> Path | None:
    """Where derived files go; None where there is to be no cache, or no place for it."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named).absolute() if named else None
    try:
        from platformdirs import user_cache_path

        return user_cache_path("organ_infer", appauthor=False)
    except (ImportError, OSError, RuntimeError):  # RuntimeError: no home directory
        return None


def graph_files(name: str) -> tuple[str, str]:
    """The files of a bundle's graph in an entry: the optimised graph and its weights."""
    return f"{name}.optimised", f"{name}.weights"


class Cache:
    """The derived files of one bundle."""

    def __init__(self, root: Path, bundle: Path, sha256: str, onnxruntime: str) -> None:
        """root: the cache directory, made when something is kept; sha256: of the bundle's manifest, which names every
        other file's; onnxruntime: its version."""
        about = json.dumps([1, str(bundle.resolve()), sha256, onnxruntime, _processor()])
        self.root = root
        self.entry = root / hashlib.sha256(about.encode()).hexdigest()[:32]

    def find(self, files: Iterable[Path]) -> dict[str, Path] | None:
        """The optimised graphs by the name of the bundle's file, where `files` are the very ones that were verified
        when they were made; else None. `files`: all that the bundle lists."""
        try:
            if not _private(self.entry):
                return None
            record = json.loads(_read(self.entry / RECORD))
            if record["bundle"] != _identities(files):
                return None
            for name, expected in record["sha256"].items():
                path = self.entry / name
                if not _private(path) or _sha256(path) != expected:
                    logger.warning("%s in the cache is damaged: the bundle is optimised anew", path)
                    self.discard()
                    return None
            os.utime(self.entry)  # used just now
            return {name: self.entry / graph_files(name)[0] for name in record["graphs"]}
        except FileNotFoundError:
            return None
        except Exception as e:  # what a stranger or a crash left there may be anything
            logger.info("no optimised graphs from the cache (%s)", one_line(e))
            return None

    @contextlib.contextmanager
    def making(self, files: Iterable[Path], graphs: Iterable[str]) -> Iterator[Path | None]:
        """A directory to save optimised graphs in, as `graph_files` names them; it becomes the entry at the end, where
        all of them are there. None where nothing can be kept. To be entered before `files` are read and verified."""
        folder = None
        try:
            identities = _identities(files)
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=self.root))
        except OSError as e:
            logger.info("nothing is kept in the cache %s (%s)", self.root, one_line(e))
        try:
            yield folder
            if folder is not None:
                self._keep(folder, identities, list(graphs))
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def discard(self) -> None:
        """Remove this entry."""
        shutil.rmtree(self.entry, ignore_errors=True)

    def _keep(self, folder: Path, identities: dict[str, Any], graphs: list[str]) -> None:
        try:
            names = [name for graph in graphs for name in graph_files(graph) if (folder / name).exists()]
            if not all((folder / graph_files(graph)[0]).exists() for graph in graphs):
                return
            for name in names:
                (folder / name).chmod(0o600)
            record = {
                "bundle": identities,
                "graphs": graphs,
                "sha256": {name: _sha256(folder / name) for name in names},
            }
            (folder / RECORD).write_text(json.dumps(record))
            self.discard()
            os.rename(folder, self.entry)  # fails where another process was first: its entry is as good
            self._sweep()
        except OSError as e:
            logger.info("nothing is kept in the cache %s (%s)", self.root, one_line(e))

    def _sweep(self) -> None:
        entries = [path for path in self.root.iterdir() if len(path.name) == 32]
        entries.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for old in entries[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)


def _identities(files: Iterable[Path]) -> dict[str, list[int]]:
    """What changes when a file is written or replaced, by name."""
    found = {}
    for path in files:
        status = path.lstat()
        found[path.name] = [
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        ]
    return found


def _private(path: Path) -> bool:
    """Whether nobody but this user can have written `path`; not a link."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return False
    if not hasattr(os, "getuid"):
        return True
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _read(path: Path) -> bytes:
    if not _private(path):
        raise OSError(f"{path} may have been written by another user")
    with path.open("rb") as file:
        return file.read(RECORD_LIMIT)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _processor() -> str:
    """The kind of processor: an optimised graph holds layouts chosen for its instructions."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        told = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
        if told:
            return "\n".join(told)
    return f"{platform.machine()} {platform.processor()}"

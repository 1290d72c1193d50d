"""The cache of optimized graphs, shared by all processes of a user.

An optimized graph opens in milliseconds with its weights mapped from the file, while optimizing a ResNet takes seconds.
An entry belongs to one bundle in one directory, one version of onnxruntime and one processor model. It also records which
files of the bundle were verified. Entries are private to the user, and their checksums are compared at every use.

The cache is never required. If anything is wrong with it, the bundle is read and optimized again. ORGAN_INFER_CACHE names
its directory, an empty value switches it off, and by default platformdirs chooses the directory.
"""

import contextlib
import hashlib
import json
import logging
import os
import platform
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import one_line, printable, shorten
from ..files import partial_directory, sha256_of
from .threads import map_in_threads

__all__ = ["Cache", "cache_directory", "describe_cache", "graph_files"]

logger = logging.getLogger("organ_infer")

VARIABLE = "ORGAN_INFER_CACHE"
# The names of entries begin with it.
PREFIX = "bundle-"
# Characters of a path in a log message.
PATH_LIMIT = 1000
# Increased if the files of an entry change their meaning.
ENTRY_FORMAT = 2
RECORD = "record.json"
# Bytes.
RECORD_LIMIT = 1 << 20
# Entries beyond this number are removed, the least recently used first.
ENTRY_LIMIT = 8
# Files that are hashed at the same time.
HASH_THREADS = 4
# Seconds after which an unfinished entry counts as left behind by a killed process.
ABANDONED = 3600
_NOT_UTF8 = "the path is not UTF-8; set ORGAN_INFER_CACHE to another directory"


def cache_directory() -> Path | None:
    """Return the directory of the cache, or None if it is switched off or no directory can be chosen."""
    setting = os.environ.get(VARIABLE)
    try:
        if setting is not None:
            return Path(setting).absolute() if setting else None
        from platformdirs import user_cache_path

        path = user_cache_path("organ_infer", appauthor=False)
    except (ImportError, OSError, RuntimeError):
        # OSError: the working directory was removed. RuntimeError: there is no home directory.
        return None
    # A relative HOME or XDG_CACHE_HOME would put a cache into every working directory.
    # Without a home directory, platformdirs before 4.12 returns "~/.cache" as it is.
    return path if path.is_absolute() else None


def describe_cache() -> str:
    """Describe the cache in one line: its directory and content, or why it is not used."""
    root = cache_directory()
    if root is None:
        switched_off = os.environ.get(VARIABLE) == ""
        return f"none ({VARIABLE} is empty)" if switched_off else "none (no directory for it)"
    if not _is_utf8(root):
        return f"{root}, not used: {_NOT_UTF8}"
    try:
        if not _is_safe_root(root):
            return f"{root}, not used: other users may write to it (run chmod go-w on it)"
        # Path.glob would find nothing in a file.
        entries = [path for path in root.iterdir() if path.name.startswith(PREFIX)]
        size = sum(path.stat().st_size for entry in entries for path in entry.iterdir())
    except FileNotFoundError:
        return f"{root}, not created yet"
    except OSError as e:
        return f"{root}, not used: {one_line(e)}"
    return f"{root}, {len(entries)} bundles, {size / 1e6:.1f} MB"


def graph_files(name: str) -> tuple[str, str]:
    """Return the names of the files in an entry that belong to one graph of the bundle.

    Args:
        name: The name of the bundle's file.

    Returns:
        The name of the optimized graph, and that of its weights.
    """
    return f"{name}.optimized", f"{name}.weights"


class Cache:
    """The cached graphs of one bundle."""

    def __init__(
        self, root: Path, bundle: Path, sha256: str, onnxruntime: str, only: str | None = None
    ) -> None:
        """Identify the entry of a bundle. Nothing is read or written yet.

        Args:
            root: The directory of the cache, which need not exist.
            bundle: The directory of the bundle.
            sha256: The SHA-256 of the bundle's manifest.json, which lists that of every other file.
            onnxruntime: The version of onnxruntime.
            only: The stage of the only member that is used, or None for all.
        """
        parts = [ENTRY_FORMAT, str(bundle.resolve()), sha256, onnxruntime, _processor()]
        identity = json.dumps(parts if only is None else [*parts, only])
        self.root = root
        self.entry = root / f"{PREFIX}{hashlib.sha256(identity.encode()).hexdigest()[:32]}"

    def find(self, files: Iterable[Path], *, warned: bool = False) -> dict[str, Path] | None:
        """Look up the optimized graphs.

        Args:
            files: All files of the bundle.
            warned: Whether damage to the entry was already reported. It is then logged as DEBUG.

        Returns:
            The path of each optimized graph by the name of the bundle's file. None if there is no entry, it is damaged,
            or `files` changed since they were verified for it.
        """
        # Without a cache, new_entry creates it or reports why not.
        if not (os.path.isdir(self.root) and _is_utf8(self.root)):
            return None
        try:
            record = self._record(files)
            if record is None or not self._is_intact(record["sha256"], warned):
                return None
            # The time of the last use. The cache may be read-only.
            with contextlib.suppress(OSError):
                os.utime(self.entry)
            return {name: self.entry / graph_files(name)[0] for name in record["graphs"]}
        except FileNotFoundError:
            return None
        except Exception as e:
            # The entry may contain anything, after a crash for example.
            logger.info("the cached graphs are not used (%s)", one_line(e))
            return None

    def _record(self, files: Iterable[Path]) -> Any:
        """Read record.json. Returns None if the entry does not belong to `files` or other users may write to it."""
        if not (_is_safe_root(self.root) and _is_private(self.entry)):
            return None
        record = json.loads(_read_private(self.entry / RECORD))
        return record if record["bundle"] == _identities(files) else None

    def _is_intact(self, checksums: dict[str, str], warned: bool) -> bool:
        """Return whether the files of the entry are private and have these checksums."""
        paths = [self.entry / name for name in checksums]
        if not all(map(_is_private, paths)):
            return False
        for path, sha256 in zip(paths, map_in_threads(sha256_of, paths, HASH_THREADS), strict=True):
            if sha256 != checksums[path.name]:
                level = logging.DEBUG if warned else logging.WARNING
                logger.log(level, "%s: damaged; rebuilding the cached graph", printable(str(path)))
                return False
        return True

    def remove(self) -> None:
        """Remove the entry, because its graphs cannot be opened. Nothing is raised if it stays."""
        _remove(self.entry)

    @contextlib.contextmanager
    def new_entry(self, files: Iterable[Path], graphs: Iterable[str]) -> Iterator[Path | None]:
        """Create the entry of the bundle. Enter this before `files` are read and verified.

        Args:
            files: All files of the bundle.
            graphs: The names of the bundle's graphs that are optimized.

        Yields:
            A directory in which to save the optimized graphs under the names of `graph_files`, or None if the cache
            cannot be written. When the block ends, the directory becomes the entry if it has all graphs.
        """
        files = list(files)
        with contextlib.ExitStack() as stack:
            folder = None
            try:
                if not _is_utf8(self.root):
                    raise OSError(_NOT_UTF8)
                identities = _identities(files)
                self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
                if not _is_safe_root(self.root):
                    raise OSError("other users may write to it; run chmod go-w on it")
                folder = stack.enter_context(partial_directory(self.entry))
            except OSError as e:
                self._log_failure(e)
            yield folder
            if folder is not None:
                self._publish(folder, files, identities, list(graphs))

    def _publish(
        self, folder: Path, files: list[Path], identities: dict[str, list[int]], graphs: list[str]
    ) -> None:
        """Rename `folder` to the entry, if it has all graphs and no other process has created the entry."""
        try:
            names = [
                name for graph in graphs for name in graph_files(graph) if (folder / name).exists()
            ]
            if not all((folder / graph_files(graph)[0]).exists() for graph in graphs):
                return
            record = {
                "bundle": identities,
                "graphs": graphs,
                "sha256": {name: sha256_of(folder / name) for name in names},
            }
            (folder / RECORD).write_text(json.dumps(record))
            for name in (*names, RECORD):
                (folder / name).chmod(0o600)
            if self.find(files, warned=True) is not None:
                # The entry of another process, whose files others may be opening.
                return
            old = folder / "old"
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.entry, old)
            os.rename(folder, self.entry)
            _remove(self.entry / old.name)
        except OSError as e:
            self._log_failure(e)
        # Another process may be removing the same entries.
        with contextlib.suppress(OSError):
            self._remove_old_entries()

    def _log_failure(self, error: OSError) -> None:
        logger.info(
            "%s: the optimized graphs were not cached (%s)",
            shorten(printable(str(self.root)), PATH_LIMIT),
            error.strerror or one_line(error),
        )

    def _remove_old_entries(self) -> None:
        """Remove the least recently used entries, and unfinished entries of killed processes."""
        last_use = {
            path: path.stat().st_mtime
            for path in self.root.glob(f"{PREFIX}*")
            if (path / RECORD).is_file()
        }
        recent = sorted(last_use, key=last_use.__getitem__)[-ENTRY_LIMIT:]
        begun = {path: path.stat().st_mtime for path in self.root.glob(f".{PREFIX}*.partial")}
        abandoned = [path for path, start in begun.items() if start < time.time() - ABANDONED]
        for path in {*last_use, *abandoned} - {*recent}:
            _remove(path)


def _is_utf8(path: Path) -> bool:
    """Return whether onnxruntime can open files below this path. It takes paths as UTF-8 only."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _identities(files: Iterable[Path]) -> dict[str, list[int]]:
    """Return by file name the numbers of its status of which at least one changes if the file is written or replaced."""
    identities = {}
    for path in files:
        status = path.lstat()
        identities[path.name] = [
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        ]
    return identities


def _is_safe_root(root: Path) -> bool:
    """Return whether no other user can rename entries.

    That is so if the directory belongs to this user or root, and only its owner may write to it or it is sticky.
    """
    status = root.stat()
    if not hasattr(os, "getuid"):
        return True
    closed = not status.st_mode & 0o022 or status.st_mode & stat.S_ISVTX
    return status.st_uid in (0, os.getuid()) and bool(closed)


def _is_private(path: Path) -> bool:
    """Return whether only this user can have written `path`, and it is not a link."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return False
    if not hasattr(os, "getuid"):
        return True
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _read_private(path: Path) -> bytes:
    if not _is_private(path):
        raise OSError(f"other users may write to {path}; run chmod go-w on it")
    with path.open("rb") as file:
        return file.read(RECORD_LIMIT)


def _processor() -> str:
    """Describe the processor. An optimized graph has memory layouts that were chosen for its instructions."""
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        lines = [
            line
            for line in first
            if line.startswith(("model name", "flags", "Features", "CPU part"))
        ]
        if lines:
            return "\n".join(lines)
    return f"{platform.machine()} {platform.processor()}"

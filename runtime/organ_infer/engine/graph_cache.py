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
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import one_line

__all__ = ["Cache", "cache_directory", "describe_cache", "graph_files"]

logger = logging.getLogger("organ_infer")

VARIABLE = "ORGAN_INFER_CACHE"
PREFIX, PARTIAL = "bundle-", ".bundle-"  # of entries, and of what is still being made
RECORD = "record.json"
RECORD_LIMIT = 1 << 20  # bytes
KEPT = 8  # entries; the one not used for the longest goes first
HASHED_AT_ONCE = 4  # files
ABANDONED = 3600  # seconds after which what was being made is taken for a killed process's


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


def describe_cache() -> str:
    """Where the cache is and what it holds, in words."""
    root = cache_directory()
    if root is None:
        return f"none ({VARIABLE} is empty)" if os.environ.get(VARIABLE) == "" else "none (no place for it)"
    try:
        if not _safe_root(root):
            return f"{root}, not used: other users may write there (chmod go-w it)"
        entries = list(root.glob(f"{PREFIX}*"))
        size = sum(path.stat().st_size for entry in entries for path in entry.iterdir())
    except FileNotFoundError:
        return f"{root}, not there yet"
    except OSError as e:
        return f"{root}, not used: {one_line(e)}"
    return f"{root}, {len(entries)} bundles, {size / 1e6:.1f} MB"


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
        self.entry = root / f"{PREFIX}{hashlib.sha256(about.encode()).hexdigest()[:32]}"

    def find(self, files: Iterable[Path], *, told: bool = False) -> dict[str, Path] | None:
        """The optimised graphs by the name of the bundle's file, where `files` are the very ones that were verified
        when they were made; else None. `files`: all that the bundle lists; told: damage has been warned of before."""
        from concurrent.futures import ThreadPoolExecutor  # small bundles are not cached, and do without

        try:
            if not (_safe_root(self.root) and _private(self.entry)):
                return None
            record = json.loads(_read(self.entry / RECORD))
            if record["bundle"] != _identities(files):
                return None
            paths = [self.entry / name for name in record["sha256"]]
            if not all(map(_private, paths)):
                return None
            with ThreadPoolExecutor(HASHED_AT_ONCE) as workers:
                for path, found in zip(paths, workers.map(_sha256, paths), strict=True):
                    if found != record["sha256"][path.name]:
                        level = logging.DEBUG if told else logging.WARNING
                        logger.log(level, "%s in the cache is damaged: the bundle is optimised anew", path)
                        return None
            with contextlib.suppress(OSError):  # as where the cache is read-only
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
        import tempfile  # imported where something is made: a small bundle does without, and starts sooner

        folder, files = None, list(files)
        try:
            identities = _identities(files)
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _safe_root(self.root):
                raise OSError("other users may write there: chmod go-w it")
            folder = Path(tempfile.mkdtemp(prefix=PARTIAL, suffix=".partial", dir=self.root))
        except OSError as e:
            logger.info("nothing is kept in the cache %s (%s)", self.root, one_line(e))
        try:
            yield folder
            if folder is not None:
                self._keep(folder, files, identities, list(graphs))
        finally:
            if folder is not None:
                _remove(folder)

    def _keep(
        self, folder: Path, files: list[Path], identities: dict[str, list[int]], graphs: list[str]
    ) -> None:
        try:
            names = [name for graph in graphs for name in graph_files(graph) if (folder / name).exists()]
            if not all((folder / graph_files(graph)[0]).exists() for graph in graphs):
                return
            record = {
                "bundle": identities,
                "graphs": graphs,
                "sha256": {name: _sha256(folder / name) for name in names},
            }
            (folder / RECORD).write_text(json.dumps(record))
            for name in (*names, RECORD):
                (folder / name).chmod(0o600)
            if self.find(files, told=True) is not None:
                return  # another process was first, and others may be opening what it left
            old = folder / "old"
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.entry, old)
            os.rename(folder, self.entry)
            _remove(self.entry / old.name)
        except OSError as e:
            logger.info("nothing is kept in the cache %s (%s)", self.root, one_line(e))
        with contextlib.suppress(OSError):  # as where another process does the same
            self._sweep()

    def _sweep(self) -> None:
        """Remove the entries that were not used for the longest, and what a killed process left."""
        used = {
            path: path.stat().st_mtime for path in self.root.glob(f"{PREFIX}*") if (path / RECORD).is_file()
        }
        kept = sorted(used, key=used.__getitem__)[-KEPT:]
        begun = {path: path.stat().st_mtime for path in self.root.glob(f"{PARTIAL}*.partial")}
        abandoned = [path for path, at in begun.items() if at < time.time() - ABANDONED]
        for path in {*used, *abandoned} - {*kept}:
            _remove(path)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


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


def _safe_root(root: Path) -> bool:
    """Whether no other user can rename what lies in `root`: it is this user's or root's, and closed or sticky."""
    status = root.stat()
    if not hasattr(os, "getuid"):
        return True
    closed = not status.st_mode & 0o022 or status.st_mode & stat.S_ISVTX
    return status.st_uid in (0, os.getuid()) and bool(closed)


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
        raise OSError(f"others may write {path}: chmod go-w it")
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

"""A bundle: a directory with manifest.json and exactly the files it lists (C3).

Every file is read once; the bytes that were hashed and walked are the bytes that onnxruntime gets.
"""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError
from .manifest import CARD_LIMIT, MANIFEST_FILE, MANIFEST_LIMIT, Card, Input, Manifest, Member, Task
from .onnx_graph import check_graph

__all__ = [
    "MANIFEST_FILE",
    "Bundle",
    "Card",
    "Input",
    "Listed",
    "Manifest",
    "Member",
    "Task",
    "list_bundle",
    "open_bundle",
    "packaged_bundle",
    "read_manifest",
    "sha256_of",
]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: where, what, and the graphs to run on a device as (entry, verified bytes)."""

    directory: Path
    manifest: Manifest
    graphs: tuple[tuple[Member, bytes], ...]


@dataclass(frozen=True)
class Listed:
    """A bundle whose manifest was read and whose files are all there, but not yet read. `sha256` is the manifest's,
    which names every other file's."""

    directory: Path
    manifest: Manifest
    sha256: str

    def files(self) -> list[Path]:
        """All files of the bundle, manifest.json first."""
        return [self.directory / name for name in (MANIFEST_FILE, *self.manifest.files())]

    def verified(self, device: str = "cpu") -> Bundle:
        """Read and verify each listed file: size, sha256, and that a graph is one self-contained file of standard
        operators whose input and class axis are the manifest's. `device`: whose graphs are kept. Raises
        BundleError."""
        card = self.directory / self.manifest.card.file
        _compare_sha256(card, _read(card, CARD_LIMIT), self.manifest.card.sha256)
        wanted = self.manifest.forms(device)
        kept: dict[str, bytes] = {}
        for entry in self.manifest.graphs():
            data = _read_graph(self.directory / entry.file, entry, self.manifest)
            if entry in wanted:
                kept[entry.file] = data
        return Bundle(self.directory, self.manifest, tuple((entry, kept[entry.file]) for entry in wanted))


def packaged_bundle() -> Path:
    """The directory of the bundle that the package carries."""
    return Path(__file__).parents[1] / "default"


def read_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """Read and check manifest.json alone. Raises BundleError."""
    return Manifest.from_json(*_manifest_text(Path(directory)))


def list_bundle(directory: str | os.PathLike[str]) -> Listed:
    """Read a bundle's manifest and hold the directory's files against it: the listed ones, of the listed sizes, and
    no other. Raises BundleError."""
    folder = Path(directory)
    text, where = _manifest_text(folder)
    manifest = Manifest.from_json(text, where)
    _check_listing(folder, manifest)
    return Listed(folder, manifest, hashlib.sha256(text).hexdigest())


def open_bundle(directory: str | os.PathLike[str], device: str = "cpu") -> Bundle:
    """List a bundle and verify all of it. Raises BundleError."""
    return list_bundle(directory).verified(device)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file, as the manifest writes it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest_text(folder: Path) -> tuple[bytes, str]:
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise BundleError(f"{folder}: a bundle is a directory with {MANIFEST_FILE}, found {found} there")
    path = folder / MANIFEST_FILE
    if not os.path.lexists(path):
        raise BundleError(
            f"{folder}: not a bundle, it has no {MANIFEST_FILE}; training writes OUT/DATASET/bundle"
        )
    return _read(path, MANIFEST_LIMIT), str(path)


def _check_listing(folder: Path, manifest: Manifest) -> None:
    """Exactly the listed files, each a regular file of the listed size, no links."""
    sizes: dict[str, int | None] = {entry.file: entry.bytes for entry in manifest.graphs()}
    sizes[manifest.card.file] = None
    try:
        with os.scandir(folder) as found:
            entries = {entry.name: entry.stat(follow_symlinks=False) for entry in found}
    except OSError as e:
        raise BundleError(f"{folder}: cannot be listed ({e.strerror})") from e
    for name in sorted(entries):
        if name not in sizes and name != MANIFEST_FILE:
            raise BundleError(
                f"{folder}: {name!r} is not listed in {MANIFEST_FILE}: remove it or export again"
            )
    for name, size in sizes.items():
        if name not in entries:
            raise BundleError(
                f"{folder}: {name!r} is listed in {MANIFEST_FILE} but missing: copy it all again"
            )
        status = entries[name]
        if not stat.S_ISREG(status.st_mode):
            raise _not_regular(folder / name, status.st_mode)
        if size is not None and status.st_size != size:
            raise _other_size(folder / name, size, status.st_size)


def _read_graph(path: Path, entry: Member, manifest: Manifest) -> bytes:
    data = _read(path, entry.bytes)
    if len(data) != entry.bytes:
        raise _other_size(path, entry.bytes, len(data))
    _compare_sha256(path, data, entry.sha256)
    check_graph(
        data,
        where=str(path),
        size=manifest.input.size,
        classes=len(manifest.task.classes),
        output=entry.output,
    )
    return data


def _read(path: Path, limit: int) -> bytes:
    """A regular file's bytes, opened without following a link or waiting on a pipe."""
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        if not stat.S_ISREG(mode := os.lstat(path).st_mode):  # first: opening alone can act on a device
            raise _not_regular(path, mode)
        descriptor = os.open(path, flags)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _not_regular(path, status.st_mode)
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(limit + 1)
        finally:
            os.close(descriptor)
    except OSError as e:
        raise BundleError(f"{path}: cannot be read ({e.strerror or e})") from e
    if len(data) > limit:
        raise BundleError(f"{path}: {status.st_size:,} bytes, at most {limit:,} are read")
    return data


def _compare_sha256(path: Path, data: bytes, expected: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise BundleError(
            f"{path}: sha256 {found[:12]}..., {MANIFEST_FILE} says {expected[:12]}...:"
            " the file was changed or damaged, copy or export the bundle again"
        )


def _other_size(path: Path, expected: int, found: int) -> BundleError:
    return BundleError(
        f"{path}: {found:,} bytes, {MANIFEST_FILE} says {expected:,}: truncated or changed, copy it again"
    )


def _not_regular(path: Path, mode: int) -> BundleError:
    kinds = [(stat.S_ISLNK, "a symbolic link"), (stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a pipe")]
    found = next((name for test, name in kinds if test(mode)), "a special file")
    return BundleError(f"{path}: must be a regular file, found {found}")

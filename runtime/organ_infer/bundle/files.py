"""A bundle on disk: a directory with manifest.json and exactly the files that it lists
(docs/reference/bundle_format.md).

Every file is read once. The bytes that are hashed and checked are the bytes that onnxruntime gets.
"""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError
from ..files import open_flags, sha256_of
from ..names import path_text
from .manifest import (
    CARD_LIMIT,
    MANIFEST_FILE,
    MANIFEST_LIMIT,
    Card,
    Fast,
    Input,
    Manifest,
    Member,
    Plausibility,
    Task,
)
from .onnx_graph import check_graph

__all__ = [
    "MANIFEST_FILE",
    "Bundle",
    "Card",
    "Fast",
    "Input",
    "Manifest",
    "Member",
    "Plausibility",
    "Task",
    "UnverifiedBundle",
    "list_bundle",
    "open_bundle",
    "packaged_bundle",
    "read_manifest",
    "sha256_of",
]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        directory: Where it is.
        manifest: Its manifest.json.
        graphs: The graphs to run on the requested device, each as (its entry in the manifest, its verified bytes).
    """

    directory: Path
    manifest: Manifest
    graphs: tuple[tuple[Member, bytes], ...]


@dataclass(frozen=True)
class UnverifiedBundle:
    """A bundle whose manifest was read and whose files all exist, but were not read yet.

    Attributes:
        directory: Where it is.
        manifest: Its manifest.json.
        sha256: The SHA-256 of manifest.json, which lists the SHA-256 of every other file.
        only: The stage of the only member that is used (`fast.fast_bundle`), or None for all.
    """

    directory: Path
    manifest: Manifest
    sha256: str
    only: str | None = None

    def files(self) -> list[Path]:
        """Return the paths of all files of the bundle that are used, manifest.json first."""
        return [self.directory / name for name in (MANIFEST_FILE, *self.manifest.files())]

    def verified(self, device: str = "cpu") -> Bundle:
        """Read and verify every listed file.

        Each file must have the listed size and SHA-256. Each graph must be one self-contained file of standard operators
        with the input and output that the manifest describes.

        Args:
            device: `cpu` or `cuda`. Only the graphs for this device are kept in memory.

        Returns:
            The bundle with these graphs.

        Raises:
            BundleError: A file cannot be read or is not what the manifest says.
        """
        card = self.directory / self.manifest.card.file
        _check_sha256(card, _read(card, CARD_LIMIT), self.manifest.card.sha256)
        variants = self.manifest.variants(device)
        graphs: dict[str, bytes] = {}
        for entry in self.manifest.graphs():
            data = _read_graph(self.directory / entry.file, entry, self.manifest)
            if entry in variants:
                graphs[entry.file] = data
        return Bundle(
            self.directory, self.manifest, tuple((entry, graphs[entry.file]) for entry in variants)
        )


def packaged_bundle() -> Path:
    """Return the directory of the bundle that the package contains."""
    return Path(__file__).parents[1] / "default"


def read_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """Read and check manifest.json alone.

    Args:
        directory: The bundle.

    Returns:
        The manifest.

    Raises:
        BundleError: There is no manifest.json, or one of its fields is wrong.
    """
    return Manifest.from_json(*_manifest_text(Path(path_text(directory, "directory"))))


def list_bundle(directory: str | os.PathLike[str]) -> UnverifiedBundle:
    """Read the manifest of a bundle and compare the directory with it, without reading the other files.

    Args:
        directory: The bundle.

    Returns:
        The bundle. Its directory holds the listed files, with the listed sizes, and no others.

    Raises:
        BundleError: The manifest is wrong, or a file is missing, superfluous, or of another kind or size.
    """
    folder = Path(path_text(directory, "directory"))
    text, where = _manifest_text(folder)
    manifest = Manifest.from_json(text, where)
    _check_listing(folder, manifest)
    return UnverifiedBundle(folder, manifest, hashlib.sha256(text).hexdigest())


def open_bundle(directory: str | os.PathLike[str], device: str = "cpu") -> Bundle:
    """Read and verify a bundle: `list_bundle`, then `UnverifiedBundle.verified`.

    Args:
        directory: The bundle.
        device: `cpu` or `cuda`. Only the graphs for this device are kept in memory.

    Returns:
        The verified bundle.

    Raises:
        BundleError: The bundle is not what its manifest says.
    """
    return list_bundle(directory).verified(device)


def _manifest_text(folder: Path) -> tuple[bytes, str]:
    """Return the bytes of manifest.json, and its path."""
    # Path.is_dir raises for names that are too long and directories that may not be entered.
    if not os.path.isdir(folder):
        problem = "not a directory" if os.path.exists(folder) else "no such directory"
        raise BundleError(f"{folder}: {problem}; pass a bundle, a directory with {MANIFEST_FILE}")
    path = folder / MANIFEST_FILE
    if not os.path.lexists(path):
        raise BundleError(
            f"{folder}: not a bundle, it has no {MANIFEST_FILE}; training writes bundles to OUT/DATASET/bundle"
        )
    return _read(path, MANIFEST_LIMIT), str(path)


def _check_listing(folder: Path, manifest: Manifest) -> None:
    """Require exactly the listed files, each a regular file of the listed size and not a link."""
    sizes: dict[str, int | None] = {entry.file: entry.bytes for entry in manifest.graphs()}
    sizes[manifest.card.file] = None
    try:
        with os.scandir(folder) as scan:
            statuses = {entry.name: entry.stat(follow_symlinks=False) for entry in scan}
    except OSError as e:
        raise BundleError(f"{folder}: cannot be listed ({e.strerror})") from e
    for name in sorted(statuses):
        if name not in sizes and name != MANIFEST_FILE:
            raise BundleError(
                f"{folder}: {name!r} is not listed in {MANIFEST_FILE}; remove it or export the bundle again"
            )
    for name, size in sizes.items():
        if name not in statuses:
            raise BundleError(
                f"{folder}: {name!r} is listed in {MANIFEST_FILE} but missing; copy the bundle again"
            )
        status = statuses[name]
        if not stat.S_ISREG(status.st_mode):
            raise _not_regular(folder / name, status.st_mode)
        if size is not None and status.st_size != size:
            raise _wrong_size(folder / name, size, status.st_size)


def _read_graph(path: Path, entry: Member, manifest: Manifest) -> bytes:
    data = _read(path, entry.bytes)
    if len(data) != entry.bytes:
        raise _wrong_size(path, entry.bytes, len(data))
    _check_sha256(path, data, entry.sha256)
    check_graph(
        data,
        where=str(path),
        size=manifest.input.size,
        classes=len(manifest.task.classes),
        output=entry.output,
        extra=manifest.extra_outputs(),
    )
    return data


def _read(path: Path, limit: int) -> bytes:
    """Read a regular file, without following a link or waiting for a pipe."""
    flags = open_flags(os.O_RDONLY, "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
    try:
        # Before opening it, because opening alone can act on a device.
        if not stat.S_ISREG(mode := os.lstat(path).st_mode):
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
        raise BundleError(
            f"{path}: too large ({status.st_size:,} bytes, at most {limit:,}); copy or export the bundle again"
        )
    return data


def _check_sha256(path: Path, data: bytes, expected: str) -> None:
    actual = hashlib.sha256(data).hexdigest()
    if actual != expected:
        raise BundleError(
            f"{path}: sha256 {actual[:12]}... instead of {expected[:12]}..., changed or damaged;"
            " copy or export the bundle again"
        )


def _wrong_size(path: Path, expected: int, actual: int) -> BundleError:
    return BundleError(
        f"{path}: {actual:,} bytes instead of {expected:,}, truncated or changed; copy the bundle again"
    )


def _not_regular(path: Path, mode: int) -> BundleError:
    kinds = [
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a pipe"),
    ]
    kind = next((name for test, name in kinds if test(mode)), "a special file")
    return BundleError(f"{path}: must be a regular file, found {kind}; copy the bundle again")

"""Writes the directory of the page.

    index.html, *.js, style.css, icon.svg   the page's own source
    vendor/                                 onnxruntime-web, its WebAssembly file, two packages that read DICOM, and their notices
    bundle/                                 manifest.json, the model card, and the graph of each member that the page runs
    page.json                               the graphs, and every other file with its size, SHA-256 and content type

A server sends the files of page.json, with its headers, and index.html for the directory itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from export.web.errors import WebError
from export.web.packages import third_party_files
from organ_infer.bundle.precision import BY_NAME

if TYPE_CHECKING:
    from organ_infer.bundle.files import Bundle, Member

PRECISIONS = ("listed", *BY_NAME)
SOURCE = Path(__file__).with_name("page")
FORMAT = 1
# bytes that a visitor downloads, beyond which the command warns
LARGE = 100_000_000
# bytes of a graph; browsers hold a file in one buffer of at most 2 GiB
GRAPH_LIMIT = 2_000_000_000
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".onnx": "application/octet-stream",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
}
_POLICY = re.compile(r'http-equiv="Content-Security-Policy" content="([^"]+)"')


def write_page(bundle: Path, directory: Path, *, precision: str, packages: Path | None) -> int:
    """Write the page of a bundle. The directory appears whole or not at all.

    Args:
        bundle: A directory with manifest.json.
        directory: A new or an empty directory.
        precision: The precision of every network. `listed` is the variant that the runtime uses on a CPU.
        packages: Where the archives of the npm packages are, or are downloaded to. None: download them again.

    Returns:
        The bytes that a visitor downloads, uncompressed.

    Raises:
        WebError: The bundle, the directory or an npm package cannot be used.
        BundleError: It is not a valid bundle.
        OSError: A file cannot be read or written.
    """
    from organ_infer.bundle.files import open_bundle
    from organ_infer.files import atomic_directory

    if os.path.lexists(directory) and not (directory.is_dir() and not any(directory.iterdir())):
        raise WebError(f"{directory}: not empty; name a new directory")
    opened = open_bundle(bundle)
    if opened.manifest.is_smoke:
        _warn(f"{bundle}: from a smoke run, its answers mean nothing; train without --smoke")
    graphs = [_variant(member, precision) for member in opened.manifest.members]
    files = {
        **_own_files(),
        **{f"vendor/{name}": data for name, data in third_party_files(packages).items()},
        **{f"bundle/{name}": data for name, data in _bundle_files(opened, graphs).items()},
    }
    files["page.json"] = _description(files, precision, [graph.file for graph in graphs])
    size = sum(map(len, files.values()))
    if size > LARGE:
        _warn(
            f"{bundle}: visitors download {size / 1e6:.0f} MB; choose a smaller model or --precision int8"
        )
    with atomic_directory(directory.absolute()) as building:
        for name, data in files.items():
            path = building / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
    return size


def _warn(text: str) -> None:
    print(f"export: warning: {text}", file=sys.stderr)


def _variant(member: Member, precision: str) -> Member:
    """Choose the variant of a member that the page runs."""
    variants = {variant.precision: variant for variant in (*reversed(member.alternatives), member)}
    if precision != "listed" and precision not in variants:
        raise WebError(
            f"--precision: {member.stage} has no {precision} variant; choose from {', '.join(sorted(variants))}"
        )
    variant = member if precision == "listed" else variants[precision]
    if variant.bytes > GRAPH_LIMIT:
        raise WebError(
            f"{variant.file}: {variant.bytes:,} bytes, too large for a browser; use a smaller model"
        )
    return variant


def _own_files() -> dict[str, bytes]:
    """Return the page's own source."""
    suffixes = {".html", ".css", ".js", ".svg"}
    paths = [path for path in sorted(SOURCE.iterdir()) if path.suffix in suffixes]
    return {path.name: path.read_bytes() for path in paths}


def _bundle_files(bundle: Bundle, graphs: list[Member]) -> dict[str, bytes]:
    """Return the manifest, the card and the graphs. Their bytes are those that were verified."""
    from organ_infer.bundle.files import MANIFEST_FILE

    listed = {graph.file: graph.sha256 for graph in graphs}
    listed[bundle.manifest.card.file] = bundle.manifest.card.sha256
    files = {MANIFEST_FILE: (bundle.directory / MANIFEST_FILE).read_bytes()}
    for name, sha256 in listed.items():
        files[name] = (bundle.directory / name).read_bytes()
        if hashlib.sha256(files[name]).hexdigest() != sha256:
            raise WebError(
                f"{bundle.directory / name}: changed while it was read; rerun the command"
            )
    return files


def _description(files: Mapping[str, bytes], precision: str, graphs: list[str]) -> bytes:
    """Return page.json."""
    policy = _POLICY.search(files["index.html"].decode())
    assert policy is not None
    description = {
        "format": FORMAT,
        "precision": precision,
        "graphs": graphs,
        "headers": {
            # a page cannot forbid frames itself
            "Content-Security-Policy": f"{policy[1]}; frame-ancestors 'none'",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
        "files": {
            name: {
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "type": TYPES.get(Path(name).suffix, TYPES[".txt"]),
            }
            for name, data in sorted(files.items())
        },
    }
    return f"{json.dumps(description, indent=1)}\n".encode()

"""python -m export.golden BUNDLE: store the networks' probabilities for the golden slices in a bundle's manifest.

The golden slices are a few slices that the runtime generates. `organ-infer --check` runs the networks on them and compares
the probabilities with the stored ones. A bundle that export.bundle writes has them already: the command is for older
bundles and for bundles whose manifest was changed. It also renews the manifest's checksum.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.console import run_bundle_command

if TYPE_CHECKING:
    from organ_infer.bundle.files import Input, Manifest, Member, UnverifiedBundle


def add_golden(bundle: Path) -> None:
    """Run the variants of each device on the golden slices, all with onnxruntime on this CPU, and store the results.

    The fast member, if there is one, gets its own.

    Args:
        bundle: A directory with manifest.json, which is replaced atomically.

    Raises:
        BundleError: It is not a valid bundle.
        DeviceError: onnxruntime is missing or refuses a graph.
        OSError: The manifest cannot be written.
    """
    from organ_infer.bundle.fast import fast_bundle
    from organ_infer.bundle.files import list_bundle

    listed = list_bundle(bundle)
    manifest = listed.manifest
    fast = manifest.fast
    if fast is not None:
        fast = replace(fast, metrics={**fast.metrics, **_golden_metrics(fast_bundle(listed))})
    metrics = {**manifest.metrics, **_golden_metrics(listed)}
    _replace_manifest(bundle, replace(manifest, metrics=metrics, fast=fast))


def _golden_metrics(bundle: UnverifiedBundle) -> dict[str, dict[str, list[str]]]:
    """Return the golden answers of a bundle by key and device, as `metrics` stores them."""
    from organ_infer.bundle.golden import GOLDEN, GOLDEN_ORIENTATION

    packed = _packed_slices(bundle.manifest.input)
    golden: dict[str, dict[str, list[str]]] = {}
    for device in ("cpu", "cuda"):
        rows = _golden_strings(bundle.manifest, bundle.verified(device).graphs, packed)
        for key, strings in zip((GOLDEN, GOLDEN_ORIENTATION), rows, strict=False):
            golden.setdefault(key, {})[device] = strings
    return golden


def _packed_slices(spec: Input) -> np.ndarray:
    """Return the golden slices as float32 (N, 1, S, S)."""
    from organ_infer.batching import pack_slices
    from organ_infer.bundle.golden import golden_slices

    slices = golden_slices()
    packed = np.empty((len(slices), 1, spec.size, spec.size), np.float32)
    for i, golden in enumerate(slices):
        pack_slices([golden], spec, packed[i : i + 1])
    return packed


def _golden_strings(
    manifest: Manifest, graphs: Sequence[tuple[Member, bytes]], packed: np.ndarray
) -> list[list[str]]:
    """Return the mean outputs of these graphs for the packed slices, as the manifest stores them.

    Returns:
        The rows of the probabilities, and those of the orientation if the networks return it.
    """
    from organ_infer.bundle.golden import golden_rows
    from organ_infer.engine.ensemble import Ensemble
    from organ_infer.engine.session import Session

    sessions = [
        Session(
            data,
            output=entry.output,
            classes=len(manifest.task.classes),
            where=entry.file,
            device="cpu",
            threads=1,
            extra=manifest.extra_outputs(),
        )
        for entry, data in graphs
    ]
    ensemble = Ensemble(manifest, [entry for entry, _ in graphs], sessions, 1)
    answer = ensemble.answer(packed)
    ensemble.close()
    return [golden_rows(output) for output in answer if output is not None]


def _replace_manifest(bundle: Path, manifest: Manifest) -> None:
    """Write the manifest under another name, flush it to the disk, and rename it."""
    from organ_infer.bundle.files import MANIFEST_FILE
    from organ_infer.files import flush_file

    text = manifest.to_json()
    # Beside the bundle, because no other file may be in it. The bundle's own name can be too long for a longer one.
    partial = bundle.absolute().with_name(f".{os.getpid()}.manifest.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            flush_file(file.fileno())
        os.replace(partial, bundle / MANIFEST_FILE)
    finally:
        partial.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Of the command line. None: sys.argv.

    Returns:
        The exit code: 0 done, 2 nothing could be done.
    """
    return run_bundle_command(lambda: _run(arguments))


def _run(arguments: list[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m export.golden",
        description="Store the networks' probabilities for the golden slices in a bundle's manifest.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of the bundle")
    add_golden(parser.parse_args(arguments).bundle)


if __name__ == "__main__":
    sys.exit(main())

"""python -m export.golden BUNDLE: what the networks of a bundle say of the runtime's golden slices, written into its
manifest, which is sealed anew. `organ-infer --check` asks again.

A bundle that export.bundle writes has them from the start; this is for one that is older, or whose manifest was changed.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np


def add_golden(bundle: Path) -> None:
    """Ask the forms of each device, in onnxruntime on this CPU. Raises BundleError and DeviceError."""
    from organ_infer.batching import pack_slices
    from organ_infer.bundle.files import MANIFEST_FILE, open_bundle, read_manifest
    from organ_infer.bundle.golden import GOLDEN, golden_rows, golden_slices
    from organ_infer.engine.ensemble import Ensemble
    from organ_infer.engine.session import Session

    manifest = read_manifest(bundle)
    how = manifest.input
    slices = golden_slices()
    packed = np.empty((len(slices), 1, how.size, how.size), np.float32)
    for i, piece in enumerate(slices):
        pack_slices([piece], how, packed[i : i + 1])
    golden = {}
    for device in ("cpu", "cuda"):
        graphs = open_bundle(bundle, device).graphs
        sessions = [
            Session(
                data,
                output=entry.output,
                classes=len(manifest.task.classes),
                where=entry.file,
                device="cpu",
                threads=1,
            )
            for entry, data in graphs
        ]
        ensemble = Ensemble(manifest, [entry for entry, _ in graphs], sessions, 1)
        golden[device] = golden_rows(ensemble.probabilities(packed))
        ensemble.close()
    text = replace(manifest, metrics={**manifest.metrics, GOLDEN: golden}).to_json()
    # beside the bundle first, in which no other file may lie
    partial = bundle.absolute().with_name(f".{bundle.absolute().name}.manifest.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, bundle / MANIFEST_FILE)
    finally:
        partial.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit code: 0 done, 2 nothing could be done."""
    from organ_infer import OrganInferError

    parser = argparse.ArgumentParser(prog="python -m export.golden", description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a directory with manifest.json")
    options = parser.parse_args(arguments)
    try:
        add_golden(options.bundle)
    except (OrganInferError, OSError) as e:
        print(f"export: error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

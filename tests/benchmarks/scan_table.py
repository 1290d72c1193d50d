"""Correct slices and organs, and the calibration error, of two public scans, by window, resampling and margin.

    ORGAN_SCANS_DIR=DIR python tests/benchmarks/scan_table.py [BUNDLE ...]

DIR holds TotalSegmentator's example files in `totalsegmentator`: an unenhanced scan and one with contrast medium. The
bundle is the packaged one by default. These scans are for development: choices may be made on them.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from export.temperature import expected_calibration_error
from organ_infer import OrganClassifier
from organ_infer.bundle.files import packaged_bundle
from organ_infer.volumes import open_mask, open_volume

PAIRS = (
    ("example_ct.nii.gz", "example_seg_fast_force_split.nii.gz"),
    ("example_ct_dicom", "example_seg_dicom.nii.gz"),
)
MARGINS = (0.0, 5.0)
WINDOWS = ((40, 400), (25, 450))


@contextmanager
def altered(bundle: Path, **values: object) -> Iterator[OrganClassifier]:
    """Open a copy of a bundle with other values of `input`."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "bundle"
        shutil.copytree(bundle, copy)
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["input"].update(values)
        # The seal is of the unaltered manifest.
        manifest["training"].pop("seal", None)
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with OrganClassifier(copy, device="cpu") as classifier:
            yield classifier


def main() -> None:
    directory = Path(os.environ["ORGAN_SCANS_DIR"]) / "totalsegmentator"
    for bundle in map(Path, sys.argv[1:] or [packaged_bundle()]):
        print(f"\n{bundle.name}\n")
        print("| window | `resample` | margin | " + "slices | organs | ECE | " * len(PAIRS))
        print("|---" * (3 + 3 * len(PAIRS)) + "|")
        for window in WINDOWS:
            for resample in ("area", "linear", "cubic"):
                with altered(bundle, resample=resample, window=window) as classifier:
                    for margin in MARGINS:
                        cells = (
                            cell
                            for scan, mask in PAIRS
                            for cell in _cells(
                                classifier, directory / scan, directory / mask, margin
                            )
                        )
                        first = f"| {window[0]}/{window[1]} | `{resample}` | {margin:g} | "
                        print(first + " | ".join(cells) + " |")


def _cells(
    classifier: OrganClassifier, scan: Path, mask: Path, margin: float
) -> tuple[str, str, str]:
    """The share of correct slices, the number of correct organs, and the ECE."""
    volume = open_volume(scan)
    organs = classifier.predict_volume(volume, open_mask(mask, like=volume), margin_mm=margin)
    slices = [(one.prediction, organ.expected) for organ in organs for one in organ.slices]
    labels = np.array([classifier.classes.index(expected) for _, expected in slices])
    probabilities = np.array([prediction.probabilities for prediction, _ in slices])
    return (
        f"{(probabilities.argmax(1) == labels).mean():.3f} of {len(labels)}",
        f"{sum(organ.agrees for organ in organs)} of {len(organs)}",
        f"{expected_calibration_error(probabilities, labels):.3f}",
    )


if __name__ == "__main__":
    main()

"""Correct slices and organs of two public scans, by resampling and margin.

    ORGAN_SCANS_DIR=DIR python tests/benchmarks/scan_table.py [BUNDLE]

DIR holds TotalSegmentator's example files in `totalsegmentator`: an unenhanced scan and one with contrast medium. The
bundle is the packaged one by default. These scans are for development: choices may be made on them.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from organ_infer import OrganClassifier
from organ_infer.bundle.files import packaged_bundle
from organ_infer.volumes import open_mask, open_volume

PAIRS = (
    ("example_ct.nii.gz", "example_seg_fast_force_split.nii.gz"),
    ("example_ct_dicom", "example_seg_dicom.nii.gz"),
)
MARGINS = (0.0, 5.0)


def main() -> None:
    directory = Path(os.environ["ORGAN_SCANS_DIR"]) / "totalsegmentator"
    bundle = Path(sys.argv[1]) if len(sys.argv) > 1 else packaged_bundle()
    print(f"{'resample':<10}{'margin':>7}" + "".join(f"  {scan:<28}" for scan, _ in PAIRS))
    for resample in ("area", "linear", "cubic"):
        with tempfile.TemporaryDirectory() as name:
            altered = Path(name) / "bundle"
            shutil.copytree(bundle, altered)
            manifest = altered / "manifest.json"
            values = json.loads(manifest.read_text())
            values["input"]["resample"] = resample
            # The seal is of the unaltered manifest.
            values["training"].pop("seal", None)
            manifest.write_text(json.dumps(values))
            with OrganClassifier(altered, device="cpu") as classifier:
                assert classifier.manifest.input.resample == resample
                for margin in MARGINS:
                    cells = (
                        _shares(classifier, directory / scan, directory / mask, margin)
                        for scan, mask in PAIRS
                    )
                    print(
                        f"{resample:<10}{margin:>7g}" + "".join(f"  {cell:<28}" for cell in cells)
                    )


def _shares(classifier: OrganClassifier, scan: Path, mask: Path, margin: float) -> str:
    volume = open_volume(scan)
    organs = classifier.predict_volume(volume, open_mask(mask, like=volume), margin_mm=margin)
    correct = [one.prediction.label == organ.expected for organ in organs for one in organ.slices]
    right = sum(organ.agrees for organ in organs)
    return f"{sum(correct) / len(correct):.3f} of {len(correct)}, {right} of {len(organs)} organs"


if __name__ == "__main__":
    main()

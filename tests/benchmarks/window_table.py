"""Gray values of fat and organs in OrganAMNIST and in two public scans, by window.

    ORGAN_SCANS_DIR=SCANS python tests/benchmarks/window_table.py DIR/organamnist.npz

SCANS holds TotalSegmentator's example files in `totalsegmentator`. Fat: the most frequent gray value below 100 in slices of
liver, spleen and kidneys. Organs: the median of the middle 8 x 8 pixels. The training split is used, never test.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from organ_infer import OrganClassifier
from train.edge.scans import SCANS, scan_crops

WINDOWS = ((40, 400), (25, 450), (50, 500), (0, 400), (50, 350))
ORGANS = ("liver", "spleen", "bladder", "heart")
FAT = ("liver", "spleen", "kidney-left", "kidney-right")


def grays(images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    """The gray of fat, and of each organ, for uint8 slices (N, 28, 28) and class indices (N,)."""
    chosen = images[np.isin(labels, [classes.index(name) for name in FAT])]
    counts = np.bincount(chosen[chosen < 100].ravel(), minlength=100)[5:]
    fat = np.convolve(counts, np.ones(5), "same").argmax() + 5
    centers = images[:, 10:18, 10:18]
    organs = (centers[labels == classes.index(name)] for name in ORGANS)
    return [f"{fat}", *(f"{np.median(pixels):.0f}" if pixels.size else "" for pixels in organs)]


def main() -> None:
    with np.load(sys.argv[1]) as data:
        images, labels = data["train_images"], data["train_labels"][:, 0]
    with OrganClassifier(device="cpu") as classifier:
        classes = classifier.classes
    rows = [["OrganAMNIST", "", *grays(images, labels, classes)]]
    for level, width in WINDOWS:
        crops = scan_crops(Path(os.environ["ORGAN_SCANS_DIR"]), classes, 28, (level, width))
        for scan in SCANS:
            [row] = [c for c in crops if (c.scan, c.margin, c.resample) == (scan, 0, "linear")]
            pixels = np.rint((row.images[:, 0] + 1) * 127.5).astype(np.uint8)
            rows.append([scan, f"{level}/{width}", *grays(pixels, row.labels, classes)])
    print("| slices | level/width | fat | " + " | ".join(ORGANS) + " |")
    print("|---" * (3 + len(ORGANS)) + "|")
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

"""What people write to classify the organs of a scan: nibabel, NumPy, OpenCV and onnxruntime. A baseline for benchmarks.

    python tests/benchmarks/plain_volume_script.py SCAN MASK

One box per organ, a margin of 5 mm, the middle 60 % of the slices, window 40/400, 28 x 28 pixels, batches of 64.
"""

import json
import sys
from pathlib import Path

import cv2
import nibabel
import numpy as np
import onnxruntime

BUNDLE = Path(__file__).resolve().parents[2] / "runtime" / "organ_infer" / "default"
NUMBERS = {1: "spleen", 2: "kidney-right", 3: "kidney-left", 5: "liver", 7: "pancreas"} | {
    10: "lung-left",
    11: "lung-left",
    12: "lung-right",
    13: "lung-right",
    14: "lung-right",
    21: "bladder",
    51: "heart",
    75: "femur-left",
    76: "femur-right",
}


def main() -> None:
    manifest = json.loads((BUNDLE / "manifest.json").read_text())
    classes = manifest["task"]["classes"]
    session = onnxruntime.InferenceSession(
        BUNDLE / "edge_deep.int8.onnx", providers=["CPUExecutionProvider"]
    )
    # x to the right of the patient's left, y to the front: RAS
    scan = nibabel.as_closest_canonical(nibabel.load(sys.argv[1]))
    mask = nibabel.as_closest_canonical(nibabel.load(sys.argv[2]))
    hu = scan.get_fdata(dtype=np.float32)
    labels = np.asanyarray(mask.dataobj)
    spacing = scan.header.get_zooms()
    for organ in sorted(set(NUMBERS.values())):
        inside = np.isin(labels, [number for number, name in NUMBERS.items() if name == organ])
        indices = np.argwhere(inside)
        if not len(indices):
            continue
        low, high = indices.min(axis=0), indices.max(axis=0) + 1
        for axis in (0, 1):
            margin = round(5 / spacing[axis])
            low[axis] = max(low[axis] - margin, 0)
            high[axis] = min(high[axis] + margin, hu.shape[axis])
        depth = high[2] - low[2]
        chosen = range(low[2] + round(0.2 * depth), high[2] - round(0.2 * depth))
        crops = []
        for z in chosen:
            # rows to the patient's left, columns to the back
            crop = hu[low[0] : high[0], low[1] : high[1], z][::-1, ::-1]
            gray = np.clip((crop + 160) / 400, 0, 1)
            crops.append(cv2.resize(gray, (28, 28), interpolation=cv2.INTER_AREA))
        batch = (np.stack(crops)[:, None] - 0.5) / 0.5
        logits = np.concatenate(
            [
                session.run(None, {session.get_inputs()[0].name: batch[i : i + 64]})[0]
                for i in range(0, len(batch), 64)
            ]
        )
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        mean = (exponents / exponents.sum(axis=1, keepdims=True)).mean(axis=0)
        print(f"{organ:<13} {classes[mean.argmax()]:<13} {mean.max():.3f} {len(batch)}")


if __name__ == "__main__":
    main()

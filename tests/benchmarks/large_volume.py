"""Seconds and peak memory of `organ-infer volume` on a large scan, beside a plain script, in turns.

    python tests/benchmarks/large_volume.py [--shape 512,512,800] [--turns 3] [--directory DIR]

Needs nibabel and opencv-python-headless. The scan is a phantom of 11 structures with noise, int16, its mask a label
image with TotalSegmentator's numbers, each as .nii and as .nii.gz. Each run is a process of its own.
"""

import argparse
import gzip
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.phantoms import nifti

SCRIPT = Path(__file__).resolve().parent / "plain_volume_script.py"
# number -> center and half axes as parts of the shape, x toward the left, y toward the back, z toward the head; and HU
STRUCTURES = {
    5: ((0.33, 0.42, 0.60), (0.16, 0.17, 0.08), 60),
    1: ((0.70, 0.60, 0.60), (0.06, 0.08, 0.05), 50),
    2: ((0.38, 0.62, 0.50), (0.05, 0.06, 0.05), 35),
    3: ((0.63, 0.62, 0.51), (0.05, 0.06, 0.05), 33),
    7: ((0.52, 0.45, 0.54), (0.12, 0.05, 0.03), 40),
    10: ((0.68, 0.48, 0.82), (0.13, 0.17, 0.12), -800),
    13: ((0.32, 0.48, 0.82), (0.13, 0.17, 0.12), -800),
    51: ((0.53, 0.38, 0.74), (0.09, 0.10, 0.06), 45),
    21: ((0.50, 0.42, 0.15), (0.08, 0.08, 0.05), 5),
    75: ((0.72, 0.50, 0.08), (0.06, 0.06, 0.08), 300),
    76: ((0.28, 0.50, 0.08), (0.06, 0.06, 0.08), 300),
}


def phantom(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return HU and labels, in memory order of x, y, z as in files."""
    x, y = np.ogrid[: shape[0], : shape[1]]
    x, y = (x + 0.5) / shape[0], (y + 0.5) / shape[1]
    body = ((x - 0.5) / 0.45) ** 2 + ((y - 0.5) / 0.36) ** 2 <= 1
    random = np.random.default_rng(0)
    hu = np.empty(shape, np.int16, order="F")
    labels = np.zeros(shape, np.uint8, order="F")
    noise = random.normal(0, 12, (4, *shape[:2])).astype(np.int16)
    for k in range(shape[2]):
        plane = np.where(body, np.int16(-80), np.int16(-1000))
        for number, (center, half, value) in STRUCTURES.items():
            left = 1 - (((k + 0.5) / shape[2] - center[2]) / half[2]) ** 2
            if left > 0:
                inside = ((x - center[0]) / half[0]) ** 2 + ((y - center[1]) / half[1]) ** 2 <= left
                plane[inside] = value
                labels[:, :, k][inside] = number
        hu[:, :, k] = plane + noise[k % 4]
    return hu, labels


def written(directory: Path, shape: tuple[int, int, int]) -> None:
    hu, labels = phantom(shape)
    affine = np.diag([0.8, 0.8, 1.0, 1.0])
    affine[:3, 3] = (-0.4 * shape[0], -0.4 * shape[1], 0)
    for name, array in (("scan", hu), ("mask", labels)):
        content = nifti(array, affine)
        (directory / f"{name}.nii").write_bytes(content)
        with gzip.open(directory / f"{name}.nii.gz", "wb", compresslevel=1) as file:
            file.write(content)


def measured(command: list[str]) -> tuple[float, float]:
    """Return the seconds and the peak of resident memory in MiB of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command)}: {errors.decode()}")
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="512,512,800")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    x, y, z = map(int, options.shape.split(","))
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        written(directory, (x, y, z))
        print(f"{'files':<8}{'program':<20}{'seconds':>8}{'peak MiB':>10}")
        for suffix in (".nii", ".nii.gz"):
            scan, mask = (str(directory / f"{part}{suffix}") for part in ("scan", "mask"))
            commands = {
                "organ-infer volume": [
                    *(sys.executable, "-m", "organ_infer", "volume", scan, "--mask", mask),
                    *("--device", "cpu", "--quiet"),
                ],
                "plain script": [sys.executable, str(SCRIPT), scan, mask],
            }
            runs: dict[str, list[tuple[float, float]]] = {program: [] for program in commands}
            for _ in range(options.turns):
                for program, command in commands.items():
                    runs[program].append(measured(command))
            for program, results in runs.items():
                seconds, peak = (statistics.median(column) for column in zip(*results, strict=True))
                print(f"{suffix:<8}{program:<20}{seconds:>8.2f}{peak:>10.0f}")


if __name__ == "__main__":
    main()

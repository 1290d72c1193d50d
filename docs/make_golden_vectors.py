"""Golden vectors for implementations in other languages: docs/deploy/golden_vectors.json.

    python docs/make_golden_vectors.py                 # write the file
    python docs/make_golden_vectors.py --check         # exit with 1 if the stored file is not the current one
    python docs/make_golden_vectors.py --slices DIR    # write the slices of the known answers as PGM files, golden-00.pgm, ...

Each vector is a small slice and the network's input that `pack` makes of it.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT / "docs" / "deploy" / "golden_vectors.json"
sys.path.insert(0, str(ROOT / "runtime"))

from organ_infer._packing import pack  # noqa: E402
from organ_infer.bundle.golden import golden_slices  # noqa: E402

SIZE, MEAN, STD = 8, 0.5, 0.25
# (H, W): unchanged, both axes longer, both shorter, one of each
SHAPES = ((8, 8), (20, 13), (5, 6), (19, 5))
WINDOWS = ((40.0, 400.0), (-600.5, 1499.0))


def slice_of(shape: tuple[int, int], dtype: str) -> NDArray[np.generic]:
    """Return a slice that is the same on every machine. HU range from -1,024 to 1,023."""
    count = shape[0] * shape[1]
    data = hashlib.shake_256(f"{shape} {dtype}".encode()).digest(2 * count)
    values = np.frombuffer(data, "<u2").reshape(shape)
    if dtype == "uint8":
        return (values >> 8).astype(np.uint8)
    return (
        values.astype(np.uint16) if dtype == "uint16" else (values % 2048).astype(np.int16) - 1024
    )


def vectors() -> str:
    """Return the content of the file."""
    cases = [
        *(
            ("uint8", shape, resample, None)
            for resample in ("area", "linear", "cubic")
            for shape in SHAPES
        ),
        *(("uint16", shape, "area", None) for shape in SHAPES[1:]),
        *(("int16", shape, "area", window) for window in WINDOWS for shape in SHAPES[:2]),
    ]
    lines = []
    for dtype, shape, resample, window in cases:
        pixels = slice_of(shape, dtype)
        packed = pack(pixels, SIZE, mean=MEAN, std=STD, window=window, resample=resample)
        # nine digits represent a float32 exactly
        rows = [[float(f"{value:.9g}") for value in row] for row in packed[0, 0].tolist()]
        case = {
            "dtype": dtype,
            "resample": resample,
            "window": window,
            "pixels": pixels.tolist(),
            "packed": rows,
        }
        lines.append("  " + json.dumps(case))
    spec = json.dumps({"size": SIZE, "mean": MEAN, "std": STD})
    return f'{{\n "input": {spec},\n "vectors": [\n' + ",\n".join(lines) + "\n ]\n}\n"


def write_slices(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(golden_slices()):
        height, width = pixels.shape
        header = f"P5 {width} {height} {np.iinfo(pixels.dtype).max}\n".encode()
        # PGM stores the high byte first
        data = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
        (directory / f"golden-{i:02}.pgm").write_bytes(header + data)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--slices", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    if options.slices is not None:
        write_slices(options.slices)
        return 0
    text = vectors()
    if not options.check:
        VECTORS.write_text(text)
        return 0
    if not VECTORS.is_file() or VECTORS.read_text() != text:
        print(f"{VECTORS}: not current; run python docs/make_golden_vectors.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

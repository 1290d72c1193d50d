"""Write the 44 example slices: four per class, evenly spaced in OrganAMNIST's validation split.

    python examples/make_examples.py --data-dir DIR

The PNG files are written beside this script.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from train.data import load_data

SLICES_PER_CLASS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="directory of organamnist.npz")
    data = load_data("organamnist", directory=parser.parse_args().data_dir)
    for class_index, name in enumerate(data.classes):
        indices = np.flatnonzero(data.labels["val"] == class_index)
        # The middles of four equal parts: the odd ones of nine evenly spaced positions.
        positions = np.linspace(0, len(indices) - 1, 2 * SLICES_PER_CLASS + 1).round().astype(int)
        for number, index in enumerate(indices[positions[1::2]], 1):
            path = Path(__file__).parent / f"{name}-{number}.png"
            Image.fromarray(data.images["val"][index]).save(path, optimize=True)


if __name__ == "__main__":
    main()

"""Write the 44 example slices beside this file: four a class, evenly spaced in OrganAMNIST's validation split.

python examples/make_examples.py --data-dir DIR
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from train.data import load_data

EACH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    data = load_data("organamnist", directory=parser.parse_args().data_dir)
    for index, name in enumerate(data.classes):
        of_class = np.flatnonzero(data.labels["val"] == index)
        spaced = of_class[np.linspace(0, len(of_class) - 1, 2 * EACH + 1).round().astype(int)[1::2]]
        for number, i in enumerate(spaced, 1):
            slice_of = Image.fromarray(data.images["val"][i])
            slice_of.save(Path(__file__).parent / f"{name}-{number}.png", optimize=True)


if __name__ == "__main__":
    main()

"""Does removing what `OrganClassifier.explain` ranks first lower the probability faster than removing random parts?

    ORGAN_DATA_DIR=DIR python tests/benchmarks/faithfulness.py [BUNDLE] [--alternatives]

Takes 200 validation slices of DIR/organamnist.npz, never test, and the packaged bundle by default. Removes their parts (squares of
4 x 4 pixels, or single pixels) in the order of the map, the largest values first, and in random orders. A removed part shows the
mean gray of the slice, the blurred slice, or black. Prints the area under the curve of the label's probability over the removed
fraction (deletion: lower is faster), its difference from random orders with a bootstrap interval over slices, and for how many
slices the map is faster. `--alternatives` compares what hidden squares show and how wide they are.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from organ_infer import OrganClassifier
from organ_infer.explain import SQUARES, occlusion_map

SLICES, RANDOM_ORDERS, RESAMPLES = 200, 10, 2000
# pixels per side of the removed parts
PARTS = (4, 1)
FRACTIONS = np.linspace(0, 1, 21)


def blurred(images: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur of uint8 (N, H, W)."""
    return np.stack(
        [
            np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
            for image in images
        ]
    )


def mean_gray(images: np.ndarray) -> np.ndarray:
    means = np.rint(images.mean(axis=(1, 2))).astype(np.uint8)
    return np.broadcast_to(means[:, None, None], images.shape)


REMOVALS = {
    "mean gray": mean_gray,
    "blurred": lambda images: blurred(images, 3),
    "black": np.zeros_like,
}


def part_means(maps: np.ndarray, side: int) -> np.ndarray:
    """Average maps (N, H, W) over parts -> (N, parts)."""
    n, height, width = maps.shape
    parts = maps.reshape(n, height // side, side, width // side, side)
    return parts.mean(axis=(2, 4)).reshape(n, -1)


def deletion(
    classifier: OrganClassifier,
    images: np.ndarray,
    removed: np.ndarray,
    importance: np.ndarray,
    labels: np.ndarray,
    side: int,
) -> np.ndarray:
    """Return the area under the deletion curve of each slice.

    Args:
        classifier: Names the probabilities.
        images: uint8 (N, H, W).
        removed: What removed pixels show, uint8 (N, H, W).
        importance: (N, parts), the largest is removed first.
        labels: The class whose probability is followed, (N,).
        side: Pixels per side of a part.

    Returns:
        (N,), 0 to 1.
    """
    n, height, width = images.shape
    rank = np.argsort(np.argsort(-importance, axis=1, kind="stable"), axis=1)
    rank = rank.reshape(n, height // side, width // side)
    rank = rank.repeat(side, axis=1).repeat(side, axis=2)
    curve = [
        classifier.predict_proba(
            np.where(rank < round(fraction * importance.shape[1]), removed, images)
        )[np.arange(n), labels]
        for fraction in FRACTIONS
    ]
    # by trapezoids of equal width
    return ((np.array(curve[1:]) + np.array(curve[:-1])) / 2).mean(axis=0)


def random_deletion(
    classifier: OrganClassifier,
    images: np.ndarray,
    removed: np.ndarray,
    labels: np.ndarray,
    side: int,
) -> np.ndarray:
    """Return the area under the deletion curve of each slice, the mean over random orders."""
    rng = np.random.default_rng(0)
    shape = part_means(np.zeros(images.shape), side).shape
    areas = [
        deletion(classifier, images, removed, rng.random(shape), labels, side)
        for _ in range(RANDOM_ORDERS)
    ]
    return np.mean(areas, axis=0)


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over slices."""
    rng = np.random.default_rng(0)
    n = len(differences)
    means = differences[rng.integers(0, n, (RESAMPLES, n))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def compare(classifier: OrganClassifier, images: np.ndarray, maps: np.ndarray) -> None:
    """Print the map against random orders."""
    labels = classifier.predict_proba(images).argmax(axis=1)
    print("| removed parts | show | by the map | at random | difference (95 %) | faster |")
    print("|---|---|---|---|---|---|")
    for side in PARTS:
        for name, removal in REMOVALS.items():
            removed = removal(images)
            ranked = deletion(classifier, images, removed, part_means(maps, side), labels, side)
            at_random = random_deletion(classifier, images, removed, labels, side)
            low, high = interval(ranked - at_random)
            parts = f"{side} x {side} squares" if side > 1 else "single pixels"
            print(
                f"| {parts} | {name} | {ranked.mean():.3f} | {at_random.mean():.3f} |"
                f" {(ranked - at_random).mean():+.3f} ({low:+.3f} to {high:+.3f}) |"
                f" {(ranked < at_random).sum()} of {len(images)} |"
            )


def alternatives(classifier: OrganClassifier, images: np.ndarray) -> None:
    """Print other fillings and sizes of the hidden squares, by the deletion of 4 x 4 squares."""
    labels = classifier.predict_proba(images).argmax(axis=1)
    fillings = {
        **REMOVALS,
        "blurred more": lambda images: blurred(images, 6),
        "middle gray": lambda images: np.full_like(images, 128),
    }
    print(f"| hidden squares show | width of 28 | {' | '.join(REMOVALS)} | mean |")
    print("|---|---|" + "---|" * (len(REMOVALS) + 1))
    for name, filling in fillings.items():
        filled = filling(images)
        for widths in ((4,), (7,), (10,), (4, 10)):
            maps = np.stack(
                [
                    occlusion_map(
                        classifier._probabilities,
                        classifier._pack([image]),
                        label,
                        classifier._batch_size,
                        squares=[width / 28 for width in widths],
                        filling=classifier._pack([shown]),
                    )
                    for image, shown, label in zip(images, filled, labels, strict=True)
                ]
            )
            areas = [
                deletion(classifier, images, removal(images), part_means(maps, 4), labels, 4).mean()
                for removal in REMOVALS.values()
            ]
            cells = " | ".join(f"{area:.3f}" for area in [*areas, np.mean(areas)])
            print(f"| {name} | {' and '.join(map(str, widths))} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", nargs="?")
    parser.add_argument("--alternatives", action="store_true")
    options = parser.parse_args()
    with np.load(Path(os.environ["ORGAN_DATA_DIR"]) / "organamnist.npz") as data:
        validation = data["val_images"]
    chosen = np.linspace(0, len(validation) - 1, SLICES).round().astype(int)
    images = validation[chosen]
    with OrganClassifier(options.bundle, device="cpu", batch_size=256) as classifier:
        print(f"{classifier.manifest.name}, {len(images)} validation slices\n")
        if options.alternatives:
            alternatives(classifier, images)
        else:
            widths = " and ".join(f"{round(square * 28)}" for square in SQUARES)
            print(f"Hidden squares: {widths} of 28 pixels wide, mean gray.\n")
            compare(classifier, images, np.stack([classifier.explain(image) for image in images]))


if __name__ == "__main__":
    main()

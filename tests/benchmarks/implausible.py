"""How many images that are no organ crop have a low probability, at 1 % false alarms on validation.

    ORGAN_SCANS_DIR=SCANS python tests/benchmarks/implausible.py DIR/organamnist.npz [BUNDLE ...]

An image counts as detected if its plausibility is below the manifest's threshold. For bundles without plausibilities, the
highest probability is used instead, and the first percentile of validation's. SCANS holds
TotalSegmentator's example files in `totalsegmentator`, for whole slices. Photographs are parts of scikit-learn's two
sample images. Without a bundle, the packaged one is measured. Test is never used.
"""

import os
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_sample_images

from organ_infer import OrganClassifier
from organ_infer.bundle.files import packaged_bundle
from organ_infer.volumes import open_volume

COUNT, PHOTOS = 1000, 300
LEVEL, WIDTH = 40, 400


def through(hu: np.ndarray, level: float, width: float) -> np.ndarray:
    """HU through a window, uint8."""
    return np.rint(np.clip((hu - level) / width + 0.5, 0, 1) * 255).astype(np.uint8)


def images(validation: np.ndarray, rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """Images by kind, uint8 (H, W) each."""
    n = len(validation)
    hu = validation / 255 * WIDTH + LEVEL - WIDTH / 2
    photos = []
    for picture in load_sample_images().images:
        gray = picture.mean(axis=2)
        for _ in range(PHOTOS):
            side = int(rng.integers(60, 400))
            y, x = (int(rng.integers(0, length - side)) for length in gray.shape)
            photos.append(np.rint(gray[y : y + side, x : x + side]).astype(np.uint8))
    scan = open_volume(
        Path(os.environ["ORGAN_SCANS_DIR"]) / "totalsegmentator" / "example_ct.nii.gz"
    )
    whole = through(scan.hu.transpose(2, 0, 1), LEVEL, WIDTH)
    return {
        "constant": list(
            np.repeat(np.linspace(0, 255, n).astype(np.uint8), 784).reshape(n, 28, 28)
        ),
        "noise, normal": list(rng.normal(128, 60, (n, 28, 28)).clip(0, 255).astype(np.uint8)),
        "noise, uniform": list(rng.integers(0, 256, (n, 28, 28), np.uint8)),
        "inverted": list(255 - validation),
        "lung window (-600/1500)": list(through(hu, -600, 1500)),
        "bone window (400/2000)": list(through(hu, 400, 2000)),
        "black and white": list(((validation > 128) * 255).astype(np.uint8)),
        "whole slices": list(whole),
        "photographs": photos,
        "turned by 90 degrees": list(np.rot90(validation, 1, (1, 2))),
        "turned by 270 degrees": list(np.rot90(validation, -1, (1, 2))),
        "turned by 180 degrees": list(np.rot90(validation, 2, (1, 2))),
        "left-right flipped": list(validation[:, ::-1]),
    }


def scores(classifier: OrganClassifier, examples: np.ndarray | list[np.ndarray]) -> np.ndarray:
    """The plausibilities of images, or their highest probabilities if the bundle has none."""
    if classifier.manifest.plausibility is None:
        return classifier.predict_proba(examples).max(axis=1)
    return np.array([result.plausibility for result in classifier.predict(list(examples))])


def main() -> None:
    file, *bundles = sys.argv[1:]
    with np.load(file) as data:
        validation = data["val_images"]
    chosen = validation[np.linspace(0, len(validation) - 1, COUNT).round().astype(int)]
    kinds = images(chosen, np.random.default_rng(0))
    columns = []
    for bundle in bundles or [packaged_bundle()]:
        with OrganClassifier(bundle, device="cpu") as classifier:
            on_validation = scores(classifier, validation)
            plausibility = classifier.manifest.plausibility
            limit = plausibility.threshold if plausibility else np.quantile(on_validation, 0.01)
            columns.append(
                [f"{limit:.3f}", f"{(on_validation < limit).mean():.3f}"]
                + [
                    f"{(scores(classifier, examples) < limit).mean():.3f}"
                    for examples in kinds.values()
                ]
            )
    for name, *cells in zip(["limit", "validation", *kinds], *columns, strict=True):
        print(f"{name:<26}" + "".join(f"{cell:>8}" for cell in cells))


if __name__ == "__main__":
    main()

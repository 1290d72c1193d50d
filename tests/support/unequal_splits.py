"""A tiny data set whose splits differ in length, labels and images: none of them passes for another."""

import hashlib
import io

import numpy as np
from conftest import CLASSES

from train.data import Data

LENGTHS = {"train": 60, "val": 37, "test": 48}
LABEL_STEP = 20


def unequal_data(lengths=LENGTHS, *, size=28, flag="organamnist", view="axial", classes=11):
    """Noise whose upper left corner holds the label times LABEL_STEP; unbalanced, in no order, each class in each split."""
    images, labels = {}, {}
    for seed, (split, count) in enumerate(lengths.items()):
        generator = np.random.default_rng(seed)
        shares = generator.dirichlet(np.ones(classes))
        drawn = np.concatenate([np.arange(classes), generator.choice(classes, count, p=shares)])[
            :count
        ]
        labels[split] = generator.permutation(drawn).astype(np.int64)
        images[split] = generator.integers(0, 256, (count, size, size), np.uint8)
        images[split][:, : size // 7, : size // 7] = (LABEL_STEP * labels[split] + 5)[:, None, None]
    counts = {split: np.bincount(y, minlength=classes).tolist() for split, y in labels.items()}
    return Data(flag, view, size, "0123", list(CLASSES[:classes]), images, labels, counts)


def npz_of(data):
    """The bytes of MedMNIST's file of these splits."""
    arrays = {f"{split}_images": a for split, a in data.images.items()}
    arrays |= {f"{split}_labels": y.astype(np.uint8)[:, None] for split, y in data.labels.items()}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def content_of(image):
    return hashlib.sha256(np.ascontiguousarray(image)).hexdigest()


class Origins:
    """Which split, place and label each slice of a data set has, by the hash of its pixels."""

    def __init__(self, data):
        self.by_content = {
            content_of(image): (split, place, int(label))
            for split in data.images
            for place, (image, label) in enumerate(
                zip(data.images[split], data.labels[split], strict=True)
            )
        }
        assert len(self.by_content) == sum(len(y) for y in data.labels.values())

    def places(self, images, labels, split):
        """The places of `images` in `split`; fails if one is of another split, or has another slice's label."""
        found = [self.by_content[content_of(image)] for image in images]
        assert [origin for origin, _, _ in found] == [split] * len(images)
        assert [label for _, _, label in found] == list(labels)
        return [place for _, place, _ in found]

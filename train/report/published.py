"""Published results on the same data sets: the reference study that the ladder reproduces, and later results.

The reference study is C. Mariño, "Trabajo Final: Aprendizaje Profundo para Análisis de Imágenes Biomédicas", 2022.
Accuracies are on test unless a split is named. None marks a value that the source does not give.
"""

from __future__ import annotations

from dataclasses import dataclass

from train.datasets import DATASETS

STUDY_DATASET = "organsmnist"
STUDY_METRICS = ("accuracy", "precision", "recall", "f1")

STUDY_NAME = "the reference study (C. Mariño, 2022)"
STUDY_CITATION = (
    "C. Mariño, “Trabajo Final: Aprendizaje Profundo para Análisis de Imágenes Biomédicas”, 2022"
)

# The reference study's Table 10, OrganSMNIST at 28 px: accuracy, weighted precision, recall, F1.
STUDY: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "base": {
        "train": (0.774, 0.779, 0.774, 0.774),
        "val": (0.817, 0.826, 0.817, 0.814),
        "test": (0.680, 0.687, 0.680, 0.679),
    },
    "early_stopping": {
        "train": (0.811, 0.810, 0.811, 0.802),
        "val": (0.836, 0.839, 0.836, 0.832),
        "test": (0.685, 0.678, 0.685, 0.671),
    },
    "big": {
        "train": (0.961, 0.969, 0.961, 0.956),
        "val": (0.871, 0.897, 0.871, 0.858),
        "test": (0.731, 0.728, 0.731, 0.724),
    },
    "augmentation": {
        "train": (0.877, 0.878, 0.877, 0.876),
        "val": (0.889, 0.892, 0.889, 0.887),
        "test": (0.738, 0.738, 0.738, 0.736),
    },
    "batch_norm": {
        "train": (0.936, 0.938, 0.936, 0.934),
        "val": (0.900, 0.902, 0.900, 0.900),
        "test": (0.765, 0.764, 0.765, 0.758),
    },
    "ensemble": {
        "train": (0.956, 0.961, 0.956, 0.952),
        "val": (0.924, 0.905, 0.924, 0.911),
        "test": (0.811, 0.810, 0.811, 0.808),
    },
}

# The reference study gives only the validation accuracy of the members.
STUDY_MEMBERS_VAL = {"resnet50": 0.912, "resnet101": 0.897, "resnet152": 0.892}


@dataclass(frozen=True)
class Published:
    """One published test result."""

    source: str
    # pixels per side of the network's input, in words
    pixels: str
    accuracy: float
    auc: float | None = None
    # the split that the network was chosen on; None if not stated
    chosen_on: str | None = None
    note: str = ""


_OFFICIAL = "MedMNIST v2, official ResNet-18 or -50"
_DOERRICH = "Doerrich et al., Scientific Reports 2025"

# The results at 28 px with a network chosen on validation come first, because a run of this ladder is comparable to them.
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "organamnist": (
        Published(_OFFICIAL, "28", 0.935, 0.997, "validation"),
        Published(_OFFICIAL, "28 upscaled to 224", 0.951, 0.998),
        Published(_DOERRICH, "224", 0.969, note="three seeds"),
    ),
    "organcmnist": (
        Published(_OFFICIAL, "28", 0.905, 0.992, "validation"),
        Published(_OFFICIAL, "28 upscaled to 224", 0.920, 0.994),
        Published(_DOERRICH, "224", 0.940, note="three seeds"),
    ),
    "organsmnist": (
        Published(_OFFICIAL, "28", 0.782, 0.972, "validation"),
        Published("MedMNIST v2, official AutoKeras", "28", 0.813, 0.974, "validation"),
        Published(
            "C. Mariño (2022), reference study, ensemble",
            "28",
            0.811,
            note="on an earlier release of the data set",
        ),
        Published(_DOERRICH, "64", 0.835),
        Published(_DOERRICH, "224", 0.825, note="three seeds"),
    ),
}

# from the table of data sets: the number of scans by split, if known, and the titles
SCANS = {flag: dict(dataset.scans) for flag, dataset in DATASETS.items() if dataset.scans}
DATASET_TITLES = {flag: dataset.title for flag, dataset in DATASETS.items()}


def study_values(flag: str, stage: str, split: str) -> tuple[float | None, ...] | None:
    """Return the reference study's values of a stage on a split.

    Args:
        flag: MedMNIST's name of the data set; the study has only OrganSMNIST.
        stage: of the ladder.
        split: "train", "val" or "test".

    Returns:
        Accuracy, precision, recall and F1, each None if the study does not give it; None for a stage without values.
    """
    if flag != STUDY_DATASET:
        return None
    if stage in STUDY:
        return STUDY[stage][split]
    if stage in STUDY_MEMBERS_VAL and split == "val":
        return (STUDY_MEMBERS_VAL[stage], None, None, None)
    return None

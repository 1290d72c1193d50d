"""What others have published, as they have published it: the report's table against the values written out here."""

from __future__ import annotations

import pytest

from train.datasets import DATASETS
from train.report import published
from train.stages import STAGES

# Table 10 of the reference study (OrganSMNIST, 28 px), by stage: accuracy, weighted precision, weighted recall and F1 on
# train, validation and test.
TABLE_10 = """
base            0.774 0.779 0.774 0.774   0.817 0.826 0.817 0.814   0.680 0.687 0.680 0.679
early_stopping  0.811 0.810 0.811 0.802   0.836 0.839 0.836 0.832   0.685 0.678 0.685 0.671
big             0.961 0.969 0.961 0.956   0.871 0.897 0.871 0.858   0.731 0.728 0.731 0.724
augmentation    0.877 0.878 0.877 0.876   0.889 0.892 0.889 0.887   0.738 0.738 0.738 0.736
batch_norm      0.936 0.938 0.936 0.934   0.900 0.902 0.900 0.900   0.765 0.764 0.765 0.758
ensemble        0.956 0.961 0.956 0.952   0.924 0.905 0.924 0.911   0.811 0.810 0.811 0.808
"""

# Test accuracy and AUC. "official": MedMNIST v2 (Yang et al., Scientific Data 2023), Table 3, the better of ResNet-18 and
# ResNet-50 by accuracy. "native": Doerrich et al., Scientific Reports 2025.
OFFICIAL_28 = {
    "organamnist": (0.935, 0.997),
    "organcmnist": (0.905, 0.992),
    "organsmnist": (0.782, 0.972),
}
OFFICIAL_224 = {"organamnist": (0.951, 0.998), "organcmnist": (0.920, 0.994)}
AUTOKERAS_28 = {"organsmnist": (0.813, 0.974)}
NATIVE_224 = {"organamnist": 0.969, "organcmnist": 0.940, "organsmnist": 0.825}


def table_10() -> dict[str, dict[str, tuple[float, ...]]]:
    found = {}
    for line in TABLE_10.split("\n")[1:-1]:
        name, *cells = line.split()
        values = tuple(map(float, cells))
        found[name] = {"train": values[:4], "val": values[4:8], "test": values[8:]}
    return found


def test_the_studys_values_are_those_of_its_table_10():
    assert table_10() == published.STUDY
    assert published.STUDY_METRICS == ("accuracy", "precision", "recall", "f1")
    assert (published.STUDY_DATASET, list(table_10())[-1]) == ("organsmnist", "ensemble")


def test_recall_weighted_by_support_is_the_accuracy_in_every_row():
    for splits in published.STUDY.values():
        for accuracy, _, recall, _ in splits.values():
            assert accuracy == recall


@pytest.mark.parametrize(
    ("stage", "accuracy"), [("resnet50", 0.912), ("resnet101", 0.897), ("resnet152", 0.892)]
)
def test_of_the_members_the_study_gives_the_validation_accuracy_alone(stage, accuracy):
    assert published.study_values("organsmnist", stage, "val") == (accuracy, None, None, None)
    for split in ("train", "test"):
        assert published.study_values("organsmnist", stage, split) is None


def test_the_studys_values_are_of_organsmnist_alone():
    for stage, splits in table_10().items():
        for split, values in splits.items():
            assert published.study_values("organsmnist", stage, split) == values
            assert published.study_values("organamnist", stage, split) is None
    assert published.study_values("organsmnist", "edge", "test") is None


def found(flag: str, source: str, pixels: str) -> published.Published:
    (entry,) = [p for p in published.PUBLISHED[flag] if source in p.source and p.pixels == pixels]
    return entry


@pytest.mark.parametrize("flag", DATASETS)
def test_official_results_are_those_of_medmnist(flag):
    first = published.PUBLISHED[flag][0]
    assert (first.accuracy, first.auc) == OFFICIAL_28[flag]
    assert (first.pixels, first.chosen_on) == (
        "28",
        "validation",
    ) and "official ResNet" in first.source
    for values, source, pixels in (
        (OFFICIAL_28, "official ResNet", "28"),
        (OFFICIAL_224, "official ResNet", "28 upscaled to 224"),
        (AUTOKERAS_28, "AutoKeras", "28"),
    ):
        if flag in values:
            entry = found(flag, source, pixels)
            assert (entry.accuracy, entry.auc) == values[flag]


@pytest.mark.parametrize("flag", DATASETS)
def test_results_at_224_pixels_are_those_of_doerrich_et_al(flag):
    entry = found(flag, "Doerrich", "224")
    assert (entry.accuracy, entry.auc, entry.note) == (NATIVE_224[flag], None, "three seeds")


def test_other_published_results():
    assert found("organsmnist", "Doerrich", "64").accuracy == 0.835
    study = found("organsmnist", "reference study", "28")
    assert study.accuracy == table_10()["ensemble"]["test"][0] == 0.811
    assert [len(published.PUBLISHED[flag]) for flag in DATASETS] == [5, 3, 3]
    # no source but the official ones says which split it was chosen on
    for entries in published.PUBLISHED.values():
        assert all(
            (entry.chosen_on is None) == ("official" not in entry.source or "224" in entry.pixels)
            for entry in entries
        )


def test_the_scans_behind_organamnist_are_those_of_medmnist():
    # MedMNIST v2, "Organ{A,C,S}MNIST": 115 and 16 scans of LiTS's training set, 70 of its test set
    assert published.SCANS == {"organamnist": {"train": 115, "val": 16, "test": 70}}


def test_every_data_set_and_stage_has_its_name():
    assert published.DATASET_TITLES == {
        "organamnist": "OrganAMNIST",
        "organcmnist": "OrganCMNIST",
        "organsmnist": "OrganSMNIST",
    }
    assert {*published.STUDY, *published.STUDY_MEMBERS_VAL} == {
        name for name in STAGES if not name.startswith("edge")
    }

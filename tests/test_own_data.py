"""Data sets of the user: found, divided, checked and refused, each kind of wrong input as one line and an exit code."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from export.bundle import paired
from tests.support.image_files import dicom
from train.all import main
from train.data import SPLITS
from train.data_dir import own_data_of
from train.errors import RunError
from train.options import TrainOptions
from train.own_data.class_names import pairs_of
from train.own_data.load import load_own, slices_csv
from train.own_data.request import OwnRequest, own_request, request_of
from train.results_format import Dataset, results_from_json

CLASSES = ("heart", "kidney-left", "kidney-right", "liver")
SPLIT = ("--split", "0.5,0.25,0.25")


def picture(seed, size=28, mode="L"):
    """A picture that differs from those of other seeds."""
    shape = (size, size) if mode == "L" else (size, size, 3)
    values = np.random.default_rng(seed).integers(20, 220, shape, dtype=np.uint8)
    return Image.fromarray(values)


class Folder:
    """A folder of images, to which every test does something."""

    def __init__(self, root, seed=0):
        self.root, self.seed = root, seed

    def add(self, *names, **options):
        for name in names:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self.seed += 1
            picture(self.seed, **options).save(path)
        return self

    def classes(self, *labels, count=4, split=""):
        for label in labels:
            self.add(*(f"{split}{label}/patient{i}_{label}.png" for i in range(count)))
        return self

    def splits(self, *labels, count=2):
        for split in SPLITS:
            self.classes(*labels, count=count, split=f"{split}/")
        return self


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "data")


def request(path, kind="folder", **options):
    return own_request(TrainOptions(dataset=f"{kind}:{path}", **options))


def load(path, kind="folder", **options):
    """The data, and the warnings."""
    warnings = []
    size = options.pop("size", 28)
    return load_own(request(path, kind, **options), size=size, warn=warnings.append), warnings


def train(path, *arguments, kind="folder"):
    """Run the command as far as the plan."""
    start = ["--dataset", f"{kind}:{path}", "--plan", "--stages", "base", "--device", "cpu"]
    return main([*start, "--amp", "off", "--smoke", *map(str, arguments)])


# what is read


def test_slices_get_the_class_and_the_split_of_their_folders(folder):
    folder.splits(*CLASSES)
    data, warnings = load(folder.root)
    assert warnings == [] and data.classes == list(CLASSES) and data.flag == "data"
    assert data.counts == {split: [2, 2, 2, 2] for split in SPLITS}
    for split in SPLITS:
        for i, name in enumerate(data.names[split]):
            assert name.split("/")[:2] == [split, data.classes[data.labels[split][i]]]
            with Image.open(folder.root / name) as image:
                assert np.array_equal(data.images[split][i], np.asarray(image))
    assert (data.view, data.own.orientation, data.recipe_view) == ("unknown", None, "unknown")
    assert data.own.pairs == [["kidney-left", "kidney-right"]]


@pytest.mark.parametrize("name", ["valid", "validation", "Val"])
def test_other_usual_names_of_the_validation_folder_are_taken(folder, name):
    folder.splits("a", "b")
    (folder.root / "val").rename(folder.root / name)
    assert load(folder.root)[0].counts["val"] == [2, 2]


def test_a_split_divides_every_class_and_does_not_depend_on_the_seed(folder):
    folder.classes("a", count=40).classes("b", count=20)
    data, _ = load(folder.root, split="0.8,0.1,0.1")
    assert data.counts == {"train": [32, 16], "val": [4, 2], "test": [4, 2]}
    again, _ = load(folder.root, split="0.8,0.1,0.1", seed=7)
    assert again.names == data.names and again.md5 == data.md5
    every = [name for split in SPLITS for name in data.names[split]]
    assert len(every) == len({*every}) == 60


def test_three_slices_of_a_class_are_enough_for_three_splits(folder):
    folder.classes("a", "b", count=3)
    assert load(folder.root, split="0.8,0.1,0.1")[0].counts == {split: [1, 1] for split in SPLITS}


def test_slices_of_one_patient_stay_together(folder):
    for patient in range(12):
        for label in ("a", "b"):
            folder.add(*(f"{label}/p{patient}-{i}.png" for i in range(3)))
    data, warnings = load(folder.root, split="0.5,0.25,0.25", group_by=r"/p(\d+)-")
    patients = {
        split: {re.search(r"p(\d+)", name)[1] for name in names}
        for split, names in data.names.items()
    }
    assert [len(patients[split]) for split in SPLITS] == [6, 3, 3] and not warnings
    assert len(set.union(*patients.values())) == 12


def test_identical_slices_stay_together_when_a_folder_is_divided(folder):
    folder.classes("a", "b", count=12)
    for i in range(8):
        shutil.copy(folder.root / "a/patient0_a.png", folder.root / f"a/copy{i}.png")
    data, warnings = load(folder.root, split="0.5,0.25,0.25")
    same = [
        split
        for split in SPLITS
        for n in data.names[split]
        if "copy" in n or n == "a/patient0_a.png"
    ]
    assert len(same) == 9 and len({*same}) == 1 and warnings == []


def test_the_slices_of_a_stack_stay_together(folder):
    folder.classes("a", "b", count=8)
    frames = [picture(1000 + i) for i in range(5)]
    frames[0].save(folder.root / "a/stack.tif", save_all=True, append_images=frames[1:])
    data, _ = load(folder.root, split="0.5,0.25,0.25")
    homes = {split for split in SPLITS for name in data.names[split] if "stack.tif#" in name}
    assert len(homes) == 1 and sum(sum(data.counts[split]) for split in SPLITS) == 21


def test_slices_are_resampled_as_the_runtime_resamples_them(folder):
    from organ_infer._packing import pack

    folder.splits("a", "b").add("train/a/large.png", size=61)
    data, warnings = load(folder.root)
    row = data.names["train"].index("train/a/large.png")
    with Image.open(folder.root / "train/a/large.png") as image:
        packed = pack(np.asarray(image), 28)[0, 0]
    networks = data.images["train"][row].astype(np.float32) / 127.5 - 1
    assert np.abs(networks - packed).max() <= 0.5 / 127.5 + 1e-6
    assert warnings == [
        f"{folder.root}: 1 of 13 slices have another size (61 x 61 pixels); resampled to 28 x 28 (area), and to 8 bits"
    ]


def test_the_same_images_elsewhere_are_the_same_data_set_and_a_changed_pixel_is_another(
    folder, tmp_path
):
    folder.splits("a", "b")
    first, _ = load(folder.root)
    shutil.copytree(folder.root, tmp_path / "moved")
    assert load(tmp_path / "moved")[0].md5 == first.md5
    with Image.open(tmp_path / "moved/val/b/patient0_b.png") as image:
        pixels = np.array(image)
    pixels[3, 4] += 1
    Image.fromarray(pixels).save(tmp_path / "moved/val/b/patient0_b.png")
    assert load(tmp_path / "moved")[0].md5 != first.md5


def test_another_label_of_a_slice_in_the_same_place_is_another_data_set(folder):
    folder.splits("a", "b", count=3)
    first, _ = load(folder.root)
    os.rename(folder.root / "train/a/patient2_a.png", folder.root / "train/b/0.png")
    second, _ = load(folder.root)
    assert np.array_equal(first.images["train"], second.images["train"])
    assert first.md5 != second.md5


def test_a_moved_slice_and_a_renamed_class_change_the_data_set(folder):
    folder.splits("a", "b", count=3)
    first, _ = load(folder.root)
    os.rename(folder.root / "val/a/patient0_a.png", folder.root / "test/a/z.png")
    second, _ = load(folder.root)
    for split in SPLITS:
        (folder.root / split / "b").rename(folder.root / split / "c")
    third, _ = load(folder.root)
    assert len({first.md5, second.md5, third.md5}) == 3


def test_the_smoke_slices_have_every_class(folder):
    folder.splits(*CLASSES)
    data, _ = load(folder.root)
    assert data.smoke().names == data.names
    many = {split: np.repeat(np.arange(4), 200) for split in SPLITS}
    images = {split: np.zeros((800, 28, 28), np.uint8) for split in SPLITS}
    names = {split: [str(i) for i in range(800)] for split in SPLITS}
    smoke = type(data)(**vars(data) | {"labels": many, "images": images, "names": names}).smoke()
    assert (
        np.bincount(smoke.labels["train"]).tolist() == [64] * 4 and len(smoke.names["val"]) == 256
    )


def test_the_table_of_slices_names_the_file_of_each(folder):
    folder.splits("a", "b", count=1)
    data, _ = load(folder.root)
    lines = slices_csv(data).splitlines()
    assert lines[:3] == [
        "split,index,label,path",
        "train,0,a,train/a/patient0_a.png",
        "train,1,b,train/b/patient0_b.png",
    ]
    assert len(lines) == 7


def arrays(**changed):
    """What an .npz file holds."""
    generator = np.random.default_rng(3)
    content = {}
    for split, count in (("train", 12), ("val", 6), ("test", 9)):
        content[f"{split}_images"] = generator.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        content[f"{split}_labels"] = (np.arange(count) % 3)[:, None].astype(np.uint8)
    return content | changed


def npz(tmp_path, **changed):
    path = tmp_path / "mine.npz"
    content = {key: value for key, value in arrays(**changed).items() if value is not None}
    np.savez(path, **content)
    return path


def test_an_npz_file_is_read_with_its_own_splits_and_names(tmp_path):
    path = npz(tmp_path, classes=np.array(["spleen", "aorta", "left lung"]))
    data, warnings = load(path, "npz")
    content = arrays()
    assert data.classes == ["spleen", "aorta", "left-lung"] and data.flag == "mine" and not warnings
    for split in SPLITS:
        assert np.array_equal(data.images[split], content[f"{split}_images"])
        assert np.array_equal(data.labels[split], content[f"{split}_labels"][:, 0])
    assert load(npz(tmp_path), "npz")[0].classes == ["class-0", "class-1", "class-2"]


def test_color_slices_of_an_npz_file_are_converted_and_counted(tmp_path):
    color = np.random.default_rng(1).integers(0, 255, (12, 28, 28, 3), dtype=np.uint8)
    data, warnings = load(npz(tmp_path, train_images=color), "npz")
    assert np.array_equal(
        data.images["train"][5], np.asarray(Image.fromarray(color[5]).convert("L"))
    )
    assert len(warnings) == 1 and "12 slices: " in warnings[0] and "color" in warnings[0]


# what is reported and goes on


def test_conversions_unreadable_files_and_other_files_are_counted(folder):
    folder.splits("a", "b")
    folder.add("train/a/color.png", "train/b/color.png", mode="RGB")
    (folder.root / "train/a/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder.root / "train/a/empty.png").touch()
    (folder.root / "train/b/notes.txt").write_text("not an image")
    folder.add("loose.png")
    (folder.root / "extra").mkdir()
    (folder.root / "train/c").mkdir()
    data, warnings = load(folder.root)
    assert data.counts["train"] == [3, 3] and data.classes == ["a", "b"]
    text = "\n".join(warnings)
    assert f"{folder.root}: 2 files left out, which cannot be read, such as train/a/" in text
    assert re.search(r": 2 slices: .*color", text)
    assert f"{folder.root}: extra left out; only train, val and test are read" in text
    assert f"{folder.root}/train/c: no image in this folder; left out" in text
    assert f"{folder.root}: files that are no images passed over (1)" in text
    assert len(warnings) == 5 and all("\n" not in line for line in warnings)


def test_loose_images_of_a_divided_folder_are_counted(folder):
    folder.classes("a", "b").add("loose.png", "another.png")
    data, warnings = load(folder.root, split="0.5,0.25,0.25")
    assert data.counts["train"] == [2, 2]
    assert warnings == [f"{folder.root}: images outside of a class's folder left out (2)"]


def test_duplicates_across_splits_are_counted_and_named_whatever_their_format(folder):
    folder.splits("a", "b")
    with Image.open(folder.root / "train/a/patient0_a.png") as image:
        image.save(folder.root / "test/a/other_name.bmp")
    shutil.copy(folder.root / "train/b/patient1_b.png", folder.root / "val/b/again.png")
    (line,) = load(folder.root)[1]
    assert line == (
        f"{folder.root}: 4 identical slices of more than one split, such as train/a/patient0_a.png and"
        " test/a/other_name.bmp; accuracies are too high, remove them"
    )


def test_one_slice_with_two_labels_is_named(folder):
    folder.splits("a", "b")
    shutil.copy(folder.root / "train/a/patient0_a.png", folder.root / "train/b/wrong.png")
    (line,) = load(folder.root)[1]
    assert (
        "2 identical slices of more than one label, such as train/a/patient0_a.png and train/b/wrong.png"
        in line
    )


def test_strong_imbalance_is_reported_and_a_weak_one_is_not(folder):
    folder.splits("a", "b", count=2).add(*(f"train/a/more{i}.png" for i in range(17)))
    assert load(folder.root)[1] == []
    folder.add("train/a/one_more.png")
    (line,) = load(folder.root)[1]
    assert "train has 20 slices of a but 2 of b" in line


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_missing_from_validation_or_test_is_reported(folder, split):
    folder.splits("a", "b", "c")
    shutil.rmtree(folder.root / split / "b")
    data, (line,) = load(folder.root)
    assert f"{split} has no slice of b; it is not measured there" in line
    assert data.classes == ["a", "b", "c"] and data.counts[split] == [2, 0, 2]


def test_a_patient_in_two_splits_is_reported(folder):
    folder.splits("a", "b")
    (line,) = load(folder.root, group_by=r"(patient\d)")[1]
    assert "2 patients of --group-by in several splits, such as patient0" in line


def test_links_to_images_and_to_folders_of_classes_are_followed(folder, tmp_path):
    folder.splits("a", "b")
    outside = Folder(tmp_path / "outside", 500).add("x.png", "c/y.png", "c/z.png", "deep/w.png")
    (folder.root / "train/a/link.png").symlink_to(outside.root / "x.png")
    (folder.root / "train/a/broken.png").symlink_to(outside.root / "gone.png")
    (folder.root / "train/b/linked").symlink_to(outside.root / "deep")
    for split in SPLITS:
        (folder.root / split / "c").symlink_to(outside.root / "c")
    data, warnings = load(folder.root)
    assert data.counts["train"] == [3, 2, 2]
    text = "\n".join(warnings)
    assert "1 file left out, which cannot be read, such as train/a/broken.png: no such file" in text
    assert "links to directories passed over (1)" in text
    assert "6 identical slices of more than one split" in text


def test_names_with_spaces_and_other_letters_are_classes(folder):
    folder.splits("left kidney", "Niere, rechts", "foie gauche é", "肝臓")
    (folder.root / "train/left kidney/a b#1[2].png").write_bytes(
        (folder.root / "train/left kidney/patient0_left kidney.png").read_bytes()
    )
    data, _ = load(folder.root)
    assert data.classes == ["Niere-rechts", "foie-gauche-é", "left-kidney", "肝臓"]
    assert data.counts["train"] == [2, 2, 3, 2]


def test_decomposed_and_composed_letters_are_one_class(folder):
    folder.splits("b").classes("e\u0301", split="train/")
    folder.classes("\u00e9", split="val/").classes("\u00e9", split="test/")
    with pytest.raises(RunError, match="are both class 'é'; rename one"):
        load(folder.root)


# pairs


def test_pairs_come_from_names_with_hyphens_and_underscores():
    assert paired(["a-left", "b_left", "b_right", "a-right", "c-left", "c_right", "left", "right"]) == (
        ("a-left", "a-right"), ("b_left", "b_right"),
    )  # fmt: skip
    # a manifest refuses a pair whose organ is a class
    assert paired(["a-left", "a-right", "a"]) == ()


def test_a_file_adds_pairs_to_those_of_the_names(tmp_path):
    classes = ["hip-left", "hip-right", "lk", "rk", "x_left", "x_right"]
    file = tmp_path / "pairs.csv"
    file.write_text("left,right,organ\nlk, rk, kidney\nhip-left,hip-right,hip\n")
    assert pairs_of(classes, file) == (
        ("lk", "rk", "kidney"), ("hip-left", "hip-right"), ("x_left", "x_right"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no pair; write one per line, left,right,organ"),
        ("left,right,organ\n", "no pair"),
        ("a\n", "pair 1: expected left,right,organ, found 'a'"),
        ("a,b,c,d\n", "pair 1: expected left,right,organ, found 'a,b,c,d'"),
        ("a,,c\n", "pair 1: expected left,right,organ, found 'a,,c'"),
        ("a,z,c\n", "pair 1: no class 'z'; choose from a, b, c, d"),
        ("a,a,k\n", "pair 1: 'a' twice"),
        ("a,b\n", "pair 1: the names do not show the organ; add it as a third column"),
        ("a,b,c\n", "pair 1: the organ 'c' is itself a class"),
        ("a,b,k\nb,c,m\n", "class 'b' is in two pairs; list it once"),
        (b"\xff\xfe\x00", r"cannot be read \(not CSV in UTF-8\)"),
        (None, r"cannot be read \(No such file or directory\)"),
    ],
)
def test_a_wrong_file_of_pairs_is_one_line(tmp_path, text, message):
    file = tmp_path / "pairs.csv"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RunError, match=message) as caught:
        pairs_of(["a", "b", "c", "d"], file)
    assert str(caught.value).startswith(f"--pairs {file}: ") and ";" in str(caught.value)


# orientation


@pytest.mark.parametrize(
    ("orientation", "view", "flipped"),
    [(None, "unknown", False), ("LP", "axial", True), ("PL", "axial", False), ("fp", "sagittal", False)],
)  # fmt: skip
def test_slices_are_flipped_front_to_back_only_if_the_given_columns_run_so(
    folder, orientation, view, flipped
):
    from train.stages import STAGES

    folder.splits("a", "b")
    data, _ = load(folder.root, orientation=orientation)
    assert data.view == view and data.own.orientation_given == (orientation is not None)
    recipe = STAGES["edge"].recipe_for(data.recipe_view)
    assert (recipe.flip_front_back > 0) == flipped


# the columns and rows of an image in the patient, by orientation
COSINES = {"PL": [1, 0, 0, 0, 1, 0], "LP": [0, 1, 0, 1, 0, 0], "AR": [-1, 0, 0, 0, -1, 0], "FL": [1, 0, 0, 0, 0, -1]}  # fmt: skip


def scans(folder, *orientations, split="train"):
    """CT slices in Hounsfield units, all of the same patient directions but stored in several orientations."""
    for number, letters in enumerate(orientations):
        generator = np.random.default_rng(number)
        hu = generator.integers(-100, 200, (30, 30)).astype(np.int16)
        stored = {"PL": hu, "LP": hu.T, "AR": hu[::-1, ::-1], "FL": hu}[letters]
        fields = {"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "HU"}
        content = dicom(
            np.ascontiguousarray(stored), ImageOrientationPatient=COSINES[letters], **fields
        )
        path = folder.root / split / "ab"[number % 2] / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def reoriented(folder, *orientations):
    for split in SPLITS:
        scans(folder, *orientations, split=split)


def test_dicom_slices_are_turned_to_their_most_frequent_orientation(folder):
    reoriented(folder, "PL", "PL", "LP", "AR", "PL", "PL")
    data, warnings = load(folder.root)
    assert (data.own.orientation, data.view, data.own.orientation_given) == ("PL", "axial", False)
    assert data.own.hounsfield and data.recipe_view == "unknown"
    plain = Folder(folder.root.parent / "plain")
    reoriented(plain, *["PL"] * 6)
    same, _ = load(plain.root)
    for split in SPLITS:
        difference = data.images[split].astype(int) - same.images[split]
        assert np.abs(difference).max() <= 1 and same.images[split].std() > 20
    assert not [line for line in warnings if "orientation" in line]


def test_slices_are_not_flipped_because_their_files_state_an_orientation(folder):
    reoriented(folder, "LP", "LP")
    data, _ = load(folder.root)
    assert (data.own.orientation, data.view, data.recipe_view) == ("LP", "axial", "unknown")
    assert load(folder.root, orientation="LP")[0].recipe_view == "axial"


def test_dicom_slices_are_reoriented_to_the_given_orientation(folder):
    reoriented(folder, "PL", "PL", "AR", "AR")
    data, _ = load(folder.root, orientation="LP")
    stored, _ = load(folder.root, orientation="PL")
    assert data.own.orientation == "LP" and data.own.orientation_given
    difference = data.images["train"].astype(int) - stored.images["train"].swapaxes(1, 2)
    assert np.abs(difference).max() <= 1


def test_orientations_of_some_slices_or_of_several_planes_leave_it_unknown(folder):
    reoriented(folder, "PL", "PL")
    folder.add("train/a/plain.png")
    data, warnings = load(folder.root)
    assert data.own.orientation is None and data.view == "unknown"
    assert [
        line
        for line in warnings
        if "an orientation is stated in only 6 of 7 slices; used as stored" in line
    ]
    (folder.root / "train/a/plain.png").unlink()
    scans(folder, "PL", "PL", "FL")
    data, warnings = load(folder.root)
    assert data.own.orientation is None
    assert [line for line in warnings if "an orientation is stated in several planes" in line]
    with pytest.raises(
        RunError, match=r"--orientation LP: train/a/2\.dcm is coronal, another plane; pass"
    ):
        load(folder.root, orientation="LP")


# refusals: one line, exit code 2, nothing written


def made(kind):
    """Return what makes a wrong data set of a kind."""
    return {
        "missing": lambda f: None,
        "a file": lambda f: f.root.write_text("no folder"),
        "empty": lambda f: f.root.mkdir(),
        "no image": lambda f: [(f.root / n).mkdir(parents=True) for n in ("a", "b")],
        "one class": lambda f: f.classes("a"),
        "two classes": lambda f: f.classes("a", "b"),
        "patient per class": lambda f: f.classes("a", "b", "c"),
        "two patients": lambda f: f.classes("a", "b", count=2),
        "splits": lambda f: f.splits("a", "b"),
        "one class in splits": lambda f: f.splits("a"),
        "no val": lambda f: [f.splits("a", "b"), shutil.rmtree(f.root / "val")],
        "empty test": lambda f: [f.splits("a", "b"), shutil.rmtree(f.root / "test/a"), shutil.rmtree(f.root / "test/b")],
        "val twice": lambda f: f.splits("a", "b").classes("a", split="valid/"),
        "not in train": lambda f: f.splits("a", "b").classes("c", split="test/"),
        "case": lambda f: f.classes("Liver", "liver", "b"),
        "case in splits": lambda f: f.splits("a", "b").classes("A", split="train/"),
        "same name": lambda f: f.classes("a b", "a-b"),
        "long name": lambda f: f.classes("x" * 61, "b"),
        "control": lambda f: f.classes("x\x1by", "b"),
        "loop": lambda f: [f.classes("a", "b"), (f.root / "c").symlink_to(f.root)],
        "unreadable": lambda f: [f.classes("a", "b"), *(p.write_bytes(b"no image") for p in f.root.rglob("*.png"))],
        "too many": lambda f: [f.add("c0/a.png"), *(shutil.copytree(f.root / "c0", f.root / f"c{i}") for i in range(1, 1001))],
    }[kind]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("missing", SPLIT, "{root}: no such directory; correct --dataset folder:PATH"),
        ("a file", SPLIT, "{root}: not a directory; correct --dataset folder:PATH"),
        ("empty", SPLIT, "{root}: no folder in it; make a folder per class"),
        ("no image", SPLIT, "{root}: no image in its folders; add PNG"),
        ("one class", SPLIT, "{root}: only one class, 'a'; a network needs two or more"),
        ("one class in splits", (), "{root}: only one class, 'a'"),
        ("two classes", (), "{root}: no folders train, val and test; add --split 0.8,0.1,0.1 to divide its classes a, b"),
        ("patient per class", (*SPLIT, "--group-by", "^(.)"), "{root}: no slice in val; add some to each class, choose larger shares, or correct --group-by"),
        ("two patients", (*SPLIT, "--group-by", "(patient.)"), "{root}: 2 patients or files that differ, too few"),
        ("splits", SPLIT, "{root}: has train, val, test already; leave out --split"),
        ("no val", (), "{root}: has train, but no folder val; add it"),
        ("empty test", (), "{root}: no slice in test; add some"),
        ("val twice", (), "{root}: 'val' and 'valid' are both val; merge them"),
        ("not in train", (), "{root}: train has no slice of c; a network cannot learn what it never sees"),
        ("case", SPLIT, "{root}: classes 'Liver' and 'liver' differ only in case; rename one"),
        ("case in splits", (), "{root}: classes 'A' and 'a' differ only in case; rename one"),
        ("same name", SPLIT, "{root}: 'a b' and 'a-b' are both class 'a-b'; rename one"),
        ("long name", SPLIT, "no name of a class; rename it to 1 to 60 printable characters"),
        ("control", SPLIT, r"x\x1by: no name of a class; rename it"),
        ("loop", SPLIT, "{root}/c: a link to a folder above it; remove the link"),
        ("unreadable", SPLIT, "{root}: none of 8 files can be read, such as a/patient0_a.png: unknown image format"),
        ("too many", SPLIT, "{root}: 1,001 classes; at most 1,000 are possible, merge some"),
        ("two classes", ("--split", "0.8,0.1"), "--split: expected three shares between 0 and 1, found '0.8,0.1'"),
        ("two classes", ("--split", "0.8,0.1,x"), "--split: expected three shares between 0 and 1, found '0.8,0.1,x'"),
        ("two classes", ("--split", "0.9,0.1,0"), "--split: expected three shares between 0 and 1"),
        ("two classes", ("--split", "0.8,0.1,nan"), "--split: expected three shares between 0 and 1"),
        ("two classes", ("--split", "0.8,0.1,0.2"), "--split: the shares sum to 1.1; choose three that sum to 1"),
        ("two classes", (*SPLIT, "--group-by", "patient[0-9]"), "--group-by: 'patient[0-9]' has no group; put parentheses"),
        ("two classes", (*SPLIT, "--group-by", "(patient"), "--group-by: '(patient' is no regular expression"),
        ("two classes", (*SPLIT, "--group-by", "scan([0-9])"), "--group-by: 'scan([0-9])' finds no patient in 8 of 8 paths, such as 'a/patient0_a.png'"),
        ("two classes", (*SPLIT, "--group-by", "(scan)?"), "--group-by: '(scan)?' finds no patient in 8 of 8 paths"),
        ("two classes", (*SPLIT, "--orientation", "LR"), "--orientation: expected two letters of L R A P H F"),
        ("two classes", (*SPLIT, "--data-dir", "x"), "--data-dir: applies to the data sets of MedMNIST; leave it out"),
        ("two classes", (*SPLIT, "--resample-from", "64"), "--resample-from: applies to the data sets of MedMNIST"),
        ("two classes", (*SPLIT, "--pairs", "none.csv"), "--pairs none.csv: cannot be read (No such file or directory)"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_trained_on_is_one_line(folder, kind, arguments, message, capsys):
    made(kind)(folder)
    assert train(folder.root, *arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    (line,) = errors
    assert line.startswith("train: error: ") and message.format(root=folder.root) in line
    assert ";" in line


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"val_images": None}, "no key 'val_images', found test_images, test_labels, train_images"),
        ({"test_labels": None}, "no key 'test_labels', found"),
        ({"train_labels": np.full((12, 1), -1)}, "train_labels: label -1; labels are 0 to 999 at most"),
        ({"val_labels": np.full((6, 1), 5000)}, "val_labels: label 5000; labels are 0 to 999 at most"),
        ({"val_labels": np.full((6, 1), 7)}, "train has no slice of class-3, class-4, class-5, class-6 and 1 more"),
        ({"val_labels": np.full((6, 1), 3), "classes": np.array(["a", "b", "c"])}, "label 3, but 3 names in 'classes'; labels are 0 to 2"),
        ({"train_labels": np.zeros((11, 1), int)}, "12 train_images but 11 train_labels; give each slice one label"),
        ({"train_labels": np.zeros((12, 2), int)}, "train_labels: expected whole numbers (N,) or (N, 1), found int64 (12, 2)"),
        ({"train_labels": np.zeros(12)}, "train_labels: expected whole numbers (N,) or (N, 1), found float64 (12,)"),
        ({"train_images": np.zeros((12, 28, 28), np.float32)}, "train_images: expected uint8, uint16, int16 (N, H, W)"),
        ({"train_images": np.zeros((12, 784), np.uint8)}, "train_images: expected uint8, uint16, int16 (N, H, W)"),
        ({"test_images": np.zeros((0, 28, 28), np.uint8)}, "test_images: expected uint8"),
        ({"train_images": np.array([None] * 12)}, "cannot be read as .npz (Object arrays cannot be loaded"),
        ({"classes": np.array(["a", "A", "c"])}, "classes 'a' and 'A' differ only in case; rename one"),
        ({"classes": np.array(["a", "a", "c"])}, "are both class 'a'; rename one"),
        ({"classes": np.arange(3)}, "'classes' holds int64 (3,); save the names as an array of texts"),
        ({f"{split}_labels": np.zeros(count, int) for split, count in (("train", 12), ("val", 6), ("test", 9))}, "train has no slice of class-1"),
    ],
)  # fmt: skip
def test_an_npz_file_that_cannot_be_trained_on_is_one_line(tmp_path, changed, message, capsys):
    path = npz(tmp_path, **changed)
    assert train(path, kind="npz") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith(f"train: error: {path}: ") and message in line and ";" in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; correct --dataset npz:FILE"),
        (b"", "cannot be read as .npz"),
        (b"no archive", "cannot be read as .npz (no .npz file)"),
        ("texts", "cannot be read as .npz (train_images is no array)"),
        (b"PK\x03\x04 and no more", "cannot be read as .npz"),
        ("npy", r"cannot be read as .npz (one array)"),
        ("directory", "not a file; correct --dataset npz:FILE"),
    ],
)
def test_what_is_no_npz_file_is_one_line(tmp_path, content, message, capsys):
    path = tmp_path / "mine.npz"
    if content == "directory":
        path.mkdir()
    elif content == "npy":
        file = io.BytesIO()
        np.save(file, np.zeros(3))
        path.write_bytes(file.getvalue())
    elif content == "texts":
        with zipfile.ZipFile(path, "w") as archive:
            for key in arrays():
                archive.writestr(f"{key}.npy", b"no array")
    elif content is not None:
        path.write_bytes(content)
    assert train(path, kind="npz") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith(f"train: error: {path}: ") and message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "folder:"), "--dataset folder: no path; write --dataset folder:PATH"),
        (("--dataset", "npz:"), "--dataset npz: no path; write --dataset npz:PATH"),
        (("--dataset", "npz:a.npz", *SPLIT), "--split: applies to --dataset folder:PATH"),
        (("--dataset", "npz:a.npz", "--group-by", "(a)"), "--group-by: applies to --dataset folder:PATH"),
        (("--dataset", "organamnist", *SPLIT), "--split: applies to your own data, but --dataset is 'organamnist'"),
        (("--dataset", "Folder:a", "--group-by", "(a)"), "--group-by: applies to your own data, but --dataset is 'Folder:a'"),
        (("--pairs", "a.csv"), "--pairs: applies to your own data"),
        (("--orientation", "LP"), "--orientation: applies to your own data"),
        (("--dataset", "directory:a"), "data set 'directory:a': unknown; choose from organsmnist"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_the_data_set_are_one_line(arguments, message, capsys):
    assert main([*arguments, "--plan", "--device", "cpu", "--stages", "base"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message in line and ";" in line


# names of the data set


@pytest.mark.parametrize(
    ("path", "flag"),
    [
        ("/data/hips", "hips"), ("/data/hips/", "hips"), ("/data/two words", "two-words"),
        ("/data/OrganAMNIST", "own-OrganAMNIST"), ("/", "own"), ("/data/..hidden", "hidden"),
        ("/data/é", "é"), ("/data/" + "x" * 300, "x" * 60),
    ],
)  # fmt: skip
def test_the_data_set_has_the_name_of_its_folder(path, flag):
    assert OwnRequest("folder", Path(os.path.abspath(path))).flag == flag


@pytest.mark.parametrize("out", ["data", "data/runs", "data/a/b"])
def test_a_run_inside_its_own_data_is_refused(folder, tmp_path, out, capsys):
    folder.classes("a", "b")
    assert train(folder.root, *SPLIT, "--out", tmp_path / out) == 2
    error = capsys.readouterr().err
    assert f"--out {tmp_path / out}: inside the data set's folder" in error
    assert request(folder.root, out=tmp_path / "database") and request(folder.root, out=tmp_path)


def test_a_home_directory_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert request("~/hips").path == Path("/home/me/hips")


# later commands


def test_a_run_finds_its_images_again_and_refuses_others(folder, tmp_path):
    folder.classes("a_left", "a_right", "b", count=6)
    data, _ = load(folder.root, split="0.5,0.25,0.25", group_by=r"(patient\d)", orientation="LP")
    dataset = Dataset(flag=data.flag, md5=data.md5, classes=data.classes, own=data.own)
    assert dataset.organs() == ("a", "a", "b")
    again = own_data_of(dataset, None)
    assert (again.md5, again.own, again.names) == (data.md5, data.own, data.names)
    shutil.move(folder.root, tmp_path / "moved")
    with pytest.raises(RunError, match="the run used these images, but they are gone; pass"):
        own_data_of(dataset, None)
    moved = own_data_of(dataset, tmp_path / "moved")
    assert (moved.flag, moved.md5) == (data.flag, data.md5)
    picture(99).save(tmp_path / "moved/b/new.png")
    with pytest.raises(RunError, match="finds no patient in 1 of 19 paths"):
        own_data_of(dataset, tmp_path / "moved")
    (tmp_path / "moved/b/new.png").rename(tmp_path / "moved/b/patient9_b.png")
    with pytest.raises(RunError, match="not the images of the run, expected MD5"):
        own_data_of(dataset, tmp_path / "moved")
    assert own_data_of(Dataset(flag="organamnist"), None) is None


def test_what_a_run_records_gives_the_same_request(folder):
    folder.classes("a", "b")
    options = {"split": "0.5,0.25,0.25", "group_by": "(patient.)", "orientation": "pl"}
    data, _ = load(folder.root, **options)
    again = request_of(data.own)
    first = request(folder.root, **options)
    assert (again.kind, again.path, again.shares, again.group_by, again.orientation) == (
        first.kind, first.path, first.shares, first.group_by, first.orientation,
    )  # fmt: skip


# a whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A smoke run on four classes of the examples, two stages of the ladder."""
    root = tmp_path_factory.mktemp("own")
    for label in ("bladder", "kidney-left", "kidney-right", "liver"):
        (root / "four" / label).mkdir(parents=True)
        for path in (ROOT / "examples").glob(f"{label}-*.png"):
            shutil.copy(path, root / "four" / label)
    code = main([
        "--dataset", f"folder:{root / 'four'}", "--split", "0.5,0.25,0.25", "--out", str(root / "runs"),
        "--smoke", "--stages", "base,edge", "--precision", "fp32", "--device", "cpu", "--amp", "off",
    ])  # fmt: skip
    assert code == 0
    return root / "runs" / "four"


@pytest.mark.slow
def test_a_ladder_of_four_classes_ends_in_a_bundle_that_names_them(run):
    from organ_infer import OrganClassifier

    with OrganClassifier(bundle=run / "bundle") as classifier:
        assert classifier.classes == ("bladder", "kidney-left", "kidney-right", "liver")
        images = sorted((run.parents[1] / "four").rglob("*.png"))
        predictions = list(classifier.predict_paths(images))
        manifest = classifier.manifest
    assert len(predictions) == 16 and all(
        p.ok and p.label in manifest.task.classes for p in predictions
    )
    assert {p.organ for p in predictions} <= {"bladder", "kidney", "liver"}
    assert (manifest.task.dataset, manifest.task.view) == ("four", "unknown")
    assert manifest.input.orientation is None and manifest.input.window is None
    assert manifest.license.startswith("not stated")
    card = (run / "bundle" / "MODEL_CARD.md").read_text()
    assert "MedMNIST v2" not in card and "8 for\ntraining, 4 for validation, 4 for testing" in card


@pytest.mark.slow
def test_the_run_records_its_data_set_and_the_file_of_each_slice(run):
    results = results_from_json(
        json.loads((run / "results.json").read_text()), run / "results.json"
    )
    own = results.dataset.own
    assert (own.kind, own.split, own.orientation) == ("folder", [0.5, 0.25, 0.25], None)
    lines = (run / "slices.csv").read_text().splitlines()
    assert len(lines) == 17 and lines[1].startswith("train,0,bladder,bladder/bladder-")
    page = (run / "report" / "index.html").read_text()
    assert "MedMNIST v2" not in page and str(run.parents[1] / "four") in page


@pytest.mark.slow
def test_the_later_commands_read_the_images_again(run, tmp_path, capsys):
    from export.all import main as export
    from train.report.__main__ import main as report

    checkpoint = run / "edge" / "checkpoint.pt"
    place = ["--out", str(tmp_path / "out"), "--bundle", str(tmp_path / "b"), "--precision", "fp32"]
    assert export(["--checkpoint", str(checkpoint), *place]) == 0
    written = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert written["task"] == json.loads((run / "bundle" / "manifest.json").read_text())["task"]
    assert report([str(run)]) == 0
    shutil.copy(checkpoint, tmp_path / "checkpoint.pt")
    capsys.readouterr()
    assert export(["--checkpoint", str(tmp_path / "checkpoint.pt")]) == 2
    assert (
        "trained on your own data 'four'; export it in the directory of its run"
        in capsys.readouterr().err
    )


def test_a_run_is_resumed_on_the_same_images_and_refused_on_others(run, tmp_path, capsys):
    shutil.copytree(run.parents[1], tmp_path / "copy")
    arguments = [
        "--dataset", f"folder:{tmp_path / 'copy' / 'four'}", "--out", str(tmp_path / "copy" / "runs"),
        "--smoke", "--stages", "base,edge", "--precision", "fp32", "--device", "cpu", "--amp", "off",
    ]  # fmt: skip
    assert main([*arguments, "--split", "0.5,0.25,0.25"]) == 0
    assert "finished in this run" in capsys.readouterr().out
    assert main([*arguments, "--split", "0.6,0.2,0.2"]) == 2
    assert (
        "holds a run with --split 0.5,0.25,0.25, but this command has --split 0.6,0.2,0.2"
        in capsys.readouterr().err
    )
    before = (tmp_path / "copy/runs/four/results.json").read_bytes()
    shutil.copy(ROOT / "examples/liver-1.png", tmp_path / "copy/four/bladder/new.png")
    assert main([*arguments, "--split", "0.5,0.25,0.25"]) == 2
    error = capsys.readouterr().err
    assert (
        "holds a run on other images (MD5 " in error and "restore the images to resume it" in error
    )
    assert (tmp_path / "copy/runs/four/results.json").read_bytes() == before


# the guide

GUIDE = (ROOT / "docs" / "guides" / "training.md").read_text()


def test_the_guide_explains_every_message():
    from tests.test_docs import python_messages, template

    sources = [*(ROOT / "train" / "own_data").glob("*.py"), ROOT / "train" / "tensorboard.py"]
    messages = {text for path in sources for text in python_messages(path, {})}
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "warn":
                messages.add(template(node.args[0], {}))
    # those of ValueError, and of another error passed on
    messages -= {"one array", "{}: {}: {}", "--{}; leave it out if it is not known"}
    assert len(messages) > 50
    cells = re.findall(r"`([^`\n]+)`", GUIDE)
    patterns = []
    for cell in cells:
        # what varies: numbers, names in quotes, dots
        parts = [part.strip() for part in re.split(r"'[^']*'|\d[\d,.]*|\.\.\.", cell)]
        if sum(map(len, parts)) > 8:
            patterns.append(".*".join(map(re.escape, parts)))
    without = [text for text in messages if not any(re.search(p, text) for p in patterns)]
    assert not without, "docs/guides/training.md explains none of:\n" + "\n".join(without)

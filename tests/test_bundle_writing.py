"""What a bundle's manifest says: published constants, each file's own checksum and precision, the temperature of the listed variants."""

import hashlib
import json
import stat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export import bundle as writing
from export import variants
from export.bundle import Trained, check_place, paired, write_bundle
from export.bundle_info import BundleInfo, OwnSlices
from export.calibrated import best_member
from export.member import ExportError
from export.variants import Slices
from organ_infer import OrganClassifier
from organ_infer.bundle.files import read_manifest
from organ_infer.bundle.golden import golden_answers, golden_slices
from tests.support.tiny_graphs import SIZE, accept_every_variant, linear_graph, packed, softmax

CLASSES = ["liver", "kidney-left", "kidney-right"]
RNG = np.random.default_rng(21)
TRAIN, VAL, OTHER = (
    RNG.integers(0, 256, (count, 4, 4), dtype=np.uint8) for count in (50, 200, 150)
)
BASE = RNG.normal(size=(16, 3)).astype(np.float32)


def labels_of(slices, sharpness, seed):
    """Labels drawn from the probabilities of BASE at this sharpness: its own temperature is 1 / sharpness."""
    draws = np.random.default_rng(seed).random((len(slices), 1))
    return (softmax(packed(slices) @ BASE * sharpness).cumsum(1) < draws).sum(1)


VAL_LABELS, OTHER_LABELS = labels_of(VAL, 1.0, 1), labels_of(OTHER, 0.3, 2)
SLICES = Slices(TRAIN, VAL, VAL_LABELS, SIZE, (OTHER, OTHER_LABELS))
METRICS = {"val": {"accuracy": 0.5, "auc": 0.75, "ece": 0.125}}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a bundle of members of these matrices (int8, fp32, fp16 each; None: not accepted)."""

    def written(*members, folder="bundle", slices=SLICES, report=lambda line: None, **changes):
        by_float = {}
        trained = []
        for i, (int8, fp32, fp16) in enumerate(members):
            path = tmp_path / "members" / f"m{i}.onnx"
            path.parent.mkdir(exist_ok=True)
            onnx.save(linear_graph(fp32), path)
            by_float[np.float32(fp32).tobytes()] = int8, fp16
            trained.append(Trained(f"stage{i}", path))

        def converter(which):
            def convert(model, *_):
                weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
                matrix = by_float[weights["matrix"].tobytes()][which]
                if matrix is None:
                    raise ValueError("none")
                return linear_graph(matrix)

            return convert

        monkeypatch.setattr(variants, "to_int8", converter(0))
        monkeypatch.setattr(variants, "to_fp16", converter(1))
        accept_every_variant(monkeypatch)
        facts = {
            "dataset": "organamnist",
            "view": "axial",
            "classes": CLASSES,
            "size": SIZE,
            "metrics": METRICS,
            "training": {"seed": 7},
            "name": "organamnist-tiny",
        }
        options = {k: changes.pop(k) for k in ("temperature", "fast_member") if k in changes}
        info = BundleInfo(**(facts | changes))
        return write_bundle(tmp_path / folder, info, trained, slices, report=report, **options)

    return written


def manifest_of(bundle):
    return json.loads((bundle / "manifest.json").read_text())


def loss(logits, labels, temperature):
    """Negative log likelihood of the mean of the members' softmax, float64."""
    mean = np.mean([softmax(z / temperature) for z in logits], axis=0)
    return -np.log(mean[np.arange(len(labels)), labels]).mean()


def best_temperature(logits, labels):
    """The best of a fine grid."""
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 2001))
    return grid[np.argmin([loss(logits, labels, temperature) for temperature in grid])]


# The temperature is that of the listed variants.


def test_int8_is_listed_with_the_temperature_of_int8(write):
    manifest = manifest_of(write((4 * BASE, BASE, BASE)))
    assert manifest["members"][0]["precision"] == "int8"
    logits = packed(OTHER) @ BASE.astype(np.float64)
    of_float32 = best_temperature([logits], OTHER_LABELS)
    assert manifest["temperature"] == pytest.approx(
        best_temperature([4 * logits], OTHER_LABELS), rel=3e-3
    )
    assert manifest["temperature"] == pytest.approx(4 * of_float32, rel=3e-3)


def test_float32_is_listed_with_the_temperature_of_float32(write):
    manifest = manifest_of(write((None, BASE, 4 * BASE)))
    assert manifest["members"][0]["precision"] == "fp32"
    expected = best_temperature([packed(OTHER) @ BASE.astype(np.float64)], OTHER_LABELS)
    assert manifest["temperature"] == pytest.approx(expected, rel=3e-3)


def test_the_temperature_is_fitted_on_what_is_given_for_it_and_else_on_validation(write):
    plain = Slices(TRAIN, VAL, VAL_LABELS, SIZE)
    on_validation = manifest_of(write((None, BASE, None), slices=plain))["temperature"]
    on_other = manifest_of(write((None, BASE, None)))["temperature"]
    assert on_validation == pytest.approx(
        best_temperature([packed(VAL) @ BASE], VAL_LABELS), rel=3e-3
    )
    assert on_other > 2 * on_validation


def test_the_temperature_of_several_members_is_of_their_mean_probability(write):
    second = RNG.normal(size=(16, 3)).astype(np.float32)
    manifest = manifest_of(write((3 * BASE, BASE, None), (None, second, None)))
    logits = [
        packed(OTHER) @ (3 * BASE).astype(np.float64),
        packed(OTHER) @ second.astype(np.float64),
    ]
    assert manifest["temperature"] == pytest.approx(
        best_temperature(logits, OTHER_LABELS), rel=3e-3
    )


def ece(probabilities, labels):
    """Expected calibration error of the top probability over 15 equal bins (Guo et al., ICML 2017), bin by bin."""
    top, right = probabilities.max(1), probabilities.argmax(1) == labels
    total = 0.0
    for low in np.arange(15) / 15:
        inside = (top > low) & (top <= low + 1 / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - top[inside].mean())
    return total


def accuracy(matrix):
    return float(((packed(VAL) @ matrix).argmax(1) == VAL_LABELS).mean())


# wrong on many slices of validation
WORSE = BASE + np.random.default_rng(3).normal(size=BASE.shape).astype(np.float32)


def test_the_fast_member_is_the_best_on_validation_with_its_own_temperature(write):
    lines = []
    bundle = write((None, WORSE, None), (2 * BASE, BASE, None), report=lines.append)
    manifest = read_manifest(bundle)
    alone = packed(OTHER) @ (2 * BASE)
    assert accuracy(WORSE) < accuracy(BASE) - 0.1
    assert manifest.fast.stage == "stage1" and manifest.fast.plausibility is None
    assert manifest.fast.temperature == pytest.approx(
        best_temperature([alone], OTHER_LABELS), rel=6e-3
    )
    assert abs(manifest.fast.temperature / manifest.temperature - 1) > 0.05
    listed = manifest.fast.metrics["val_as_listed"]
    after = softmax(packed(VAL) @ (2 * BASE) / manifest.fast.temperature)
    assert listed["accuracy"] == pytest.approx(accuracy(BASE))
    assert listed["ece"] == pytest.approx(ece(after, VAL_LABELS), abs=1e-5)
    assert f"stage1: the fast member, accuracy on validation {accuracy(BASE):.4f}" in lines
    assert any(
        line.startswith(f"stage1 alone: temperature {manifest.fast.temperature:g}: ECE")
        for line in lines
    )
    card = (bundle / "MODEL_CARD.md").read_text()
    assert f"The fast member (`--fast`) is `stage1` alone: accuracy {accuracy(BASE):.4f}" in card
    assert f"temperature {manifest.fast.temperature:g}, ECE {listed['ece']:.4f}." in card


def test_another_fast_member_can_be_chosen_and_a_given_temperature_is_its_own_too(write):
    bundle = write((None, WORSE, None), (None, BASE, None), fast_member="stage0", temperature=0.7)
    manifest = read_manifest(bundle)
    assert manifest.fast.stage == "stage0"
    assert manifest.fast.temperature == manifest.temperature == 0.7


def test_of_equally_good_members_the_fast_one_has_the_smaller_file():
    sizes = [("a", 0.9, 30), ("b", 0.9, 20), ("c", 0.9, 25), ("d", 0.8, 10), ("e", None, 1)]
    entries = [SimpleNamespace(stage=s, val_accuracy=a, bytes=b) for s, a, b in sizes]
    assert best_member(entries).stage == "b" and best_member(entries[:1]).stage == "a"
    assert best_member(entries[3:]).stage == "d"


def test_a_bundle_of_one_network_has_no_fast_member(write):
    bundle = write((None, BASE, None))
    assert "fast" not in manifest_of(bundle)
    assert "--fast" not in (bundle / "MODEL_CARD.md").read_text()


def test_the_fast_member_has_golden_answers_of_its_own(write):
    bundle = write((None, WORSE, None), (None, BASE, None))
    for device in ("cpu", "cuda"):
        with OrganClassifier(bundle, device="cpu", fast=True) as opened:
            stored = golden_answers(opened.manifest, device)
            answers = opened.predict_proba(golden_slices())
        np.testing.assert_allclose(answers, stored, atol=1e-5)
        assert not np.allclose(stored, golden_answers(read_manifest(bundle), device), atol=1e-3)


def test_what_the_listed_variants_reach_is_measured_on_validation_with_the_temperature_and_without(
    write,
):
    second = RNG.normal(size=(16, 3)).astype(np.float32)
    lines = []
    manifest = manifest_of(write((4 * BASE, BASE, BASE), (None, second, None), report=lines.append))
    logits = [packed(VAL) @ matrix.astype(np.float64) for matrix in (4 * BASE, second)]
    before, after = (
        np.mean([softmax(z / t) for z in logits], axis=0) for t in (1.0, manifest["temperature"])
    )
    listed = manifest["metrics"]["val_as_listed"]
    assert listed.keys() == {"accuracy", "ece", "ece_uncalibrated"}
    assert listed["accuracy"] == (after.argmax(1) == VAL_LABELS).mean()
    assert listed["ece"] == pytest.approx(ece(after, VAL_LABELS), abs=1e-5)
    assert listed["ece_uncalibrated"] == pytest.approx(ece(before, VAL_LABELS), abs=1e-5)
    assert abs(listed["ece"] - listed["ece_uncalibrated"]) > 0.02
    (line,) = (line for line in lines if line.startswith("temperature"))
    assert line.partition("; higher")[0] == (
        f"temperature {manifest['temperature']:g}: ECE on validation {listed['ece']:.4f}, "
        f"without it {listed['ece_uncalibrated']:.4f}"
    )


# The manifest.


def test_every_listed_file_has_its_own_checksum_size_precision_and_accuracy(write):
    matrices = {
        (stage, precision): RNG.normal(size=(16, 3)).astype(np.float32)
        for stage in ("stage0", "stage1")
        for precision in ("int8", "fp32", "fp16")
    }
    bundle = write(
        *(
            [matrices[stage, precision] for precision in ("int8", "fp32", "fp16")]
            for stage in ("stage0", "stage1")
        )
    )
    seen = []
    for member in manifest_of(bundle)["members"]:
        assert [variant["precision"] for variant in member["alternatives"]] == ["fp32", "fp16"]
        for variant in (member, *member["alternatives"]):
            content = (bundle / variant["file"]).read_bytes()
            assert variant["sha256"] == hashlib.sha256(content).hexdigest()
            assert variant["bytes"] == len(content)
            assert variant["stage"] == member["stage"] and variant["output"] == "logits"
            weights = {t.name: t for t in onnx.load_from_string(content).graph.initializer}
            matrix = matrices[variant["stage"], variant["precision"]]
            np.testing.assert_array_equal(numpy_helper.to_array(weights["matrix"]), matrix)
            right = (packed(VAL) @ matrix.astype(np.float64)).argmax(1) == VAL_LABELS
            assert variant["val_accuracy"] == right.mean()
            seen.append(variant["file"])
    assert seen == [f"stage{i}{suffix}.onnx" for i in (0, 1) for suffix in (".int8", "", ".fp16")]
    assert sorted(path.name for path in bundle.iterdir()) == sorted(
        [*seen, "MODEL_CARD.md", "manifest.json"]
    )


def test_the_manifest_carries_the_published_input_and_where_it_comes_from(write):
    bundle = write((None, BASE, None), training={"seed": 7, "data_md5": "0" * 32})
    manifest = manifest_of(bundle)
    # docs/results/robustness.md, "Resampling and window": level 25 HU, width 450 HU.
    # MedMNIST's own training code: mean 0.5, deviation 0.5. docs/guides/orientation.md: rows to the left, columns to the back.
    assert manifest["input"] == {
        "size": SIZE,
        "mean": 0.5,
        "std": 0.5,
        "resample": "area",
        "window": [25, 450],
        "orientation": ["L", "P"],
    }
    assert manifest["task"] == {
        "dataset": "organamnist",
        "view": "axial",
        "classes": CLASSES,
        "paired": [["kidney-left", "kidney-right"]],
    }
    assert (manifest["format"], manifest["combine"]) == (1, "mean_probability")
    assert manifest["name"] == "organamnist-tiny"
    # medmnist.INFO: CC BY 4.0
    assert manifest["license"] == "CC BY 4.0 (MedMNIST v2)"
    assert manifest["metrics"]["val"] == METRICS["val"]
    assert (manifest["training"]["seed"], manifest["training"]["data_md5"]) == (7, "0" * 32)
    card = (bundle / "MODEL_CARD.md").read_bytes()
    assert manifest["card"] == {"file": "MODEL_CARD.md", "sha256": hashlib.sha256(card).hexdigest()}


@pytest.mark.parametrize("resample", ["linear", "cubic"])
def test_the_manifest_names_the_resampling(write, resample):
    bundle = write((None, BASE, None), resample=resample)
    assert manifest_of(bundle)["input"]["resample"] == resample


@pytest.mark.parametrize("orientation", [None, ("P", "L")])
def test_of_own_slices_only_what_is_known_is_claimed(write, orientation):
    window = (40, 400) if orientation else None
    pairs = ((CLASSES[0], CLASSES[1], "organ"),)
    own = OwnSlices({"train": 1234, "val": 12, "test": 34}, pairs, orientation, window)
    view = "axial" if orientation else "unknown"
    bundle = write((None, BASE, None), dataset="mine", view=view, own=own)
    manifest = manifest_of(bundle)
    assert manifest["task"]["view"] == view and manifest["task"]["paired"] == [list(pairs[0])]
    given = manifest["input"]
    assert given["orientation"] == (list(orientation) if orientation else None)
    assert given["window"] == (list(window) if window else None)
    assert manifest["license"] == "not stated; that of the slices it was trained on"
    card = " ".join((bundle / "MODEL_CARD.md").read_text().split())
    assert "mine, own slices" in card and "1,234 for training, 12 for validation, 34" in card
    assert "MedMNIST" not in card and "CT scans" not in card
    assert ("rows run to the patient's back, columns to the left" in card) == bool(orientation)
    assert ("Hounsfield units" in card) == bool(window)
    assert ("an orientation that is not known" in card) == (orientation is None)


@pytest.mark.parametrize("view", ["sagittal", "coronal"])
def test_the_orientation_of_other_views_is_not_claimed(view, write):
    bundle = write((None, BASE, None), view=view)
    assert manifest_of(bundle)["input"]["orientation"] is None
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "as MedMNIST stores them.\n" in card and "rows run" not in card


@pytest.mark.parametrize(
    "classes, expected",
    [
        (["a-right", "b", "a-left"], (("a-left", "a-right"),)),
        (["a-left", "b-right"], ()),
        (["left", "right"], ()),
        (
            ["b-left", "a-left", "a-right", "b-right"],
            (("b-left", "b-right"), ("a-left", "a-right")),
        ),
    ],
)
def test_two_sides_of_one_organ_are_paired_left_first(classes, expected):
    assert paired(classes) == expected


def test_a_bundle_has_golden_answers_and_may_be_read_by_everyone(write):
    bundle = write((None, BASE, None))
    assert manifest_of(bundle)["metrics"]["golden"].keys() == {"cpu", "cuda"}
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o755
    assert "seal" in manifest_of(bundle)["training"]


# Its place.


def test_a_bundle_appears_in_a_folder_that_is_not_there_yet(write, tmp_path):
    bundle = write((None, BASE, None), folder="deep/er/bundle")
    assert bundle == tmp_path / "deep" / "er" / "bundle" and (bundle / "manifest.json").is_file()
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_bundle_that_is_replaced_leaves_none_of_its_files(write, tmp_path):
    write((2 * BASE, BASE, 3 * BASE))
    bundle = write((None, BASE, None))
    assert sorted(path.name for path in bundle.iterdir()) == [
        "MODEL_CARD.md",
        "manifest.json",
        "stage0.onnx",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "members"]


def test_a_bundle_that_cannot_be_written_leaves_the_one_before(write, tmp_path, monkeypatch):
    bundle = write((None, BASE, None))
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "add_golden", full)
    with pytest.raises(
        ExportError, match=r"bundle: the bundle cannot be written \(No space left on device\)"
    ):
        write((None, 2 * BASE, None))
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "members"]


def test_a_bundle_that_the_runtime_refuses_leaves_the_one_before(write, tmp_path):
    bundle = write((None, BASE, None))
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(ExportError, match=r"^bundle: the runtime refuses the bundle: .*\(N, 2\)"):
        write((None, 2 * BASE, None), classes=CLASSES[:2])
    assert (bundle / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "members"]


def test_the_files_are_on_the_disk_before_they_take_their_place(write, monkeypatch):
    import os

    synced, real = [], os.fsync

    def sync(descriptor):
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    rename, renamed = os.replace, []

    def replaced(new, directory):
        if Path(directory).name == "bundle":
            renamed.append({"MODEL_CARD.md", "manifest.json", "stage0.onnx"} <= set(synced))
        rename(new, directory)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replaced)
    before = len(os.listdir("/proc/self/fd"))
    write((None, BASE, None))
    assert renamed == [True]
    assert len(os.listdir("/proc/self/fd")) == before


def manifest_text(**changes):
    return json.dumps({"format": 1, "members": [], "combine": "mean_probability"} | changes)


@pytest.mark.parametrize(
    "files, refused",
    [
        ({}, False),
        ({"manifest.json": manifest_text(), "a.onnx": "", "CARD.md": ""}, False),
        ({"manifest.json": manifest_text(), "a.txt": ""}, True),
        ({"manifest.json": "{}"}, True),
        ({"manifest.json": "[]"}, True),
        ({"manifest.json": '["format", "members", "combine"]'}, True),
        ({"manifest.json": "no JSON"}, True),
        ({"a.onnx": ""}, True),
        ({"manifest.json": '{"format": 1, "members": []}'}, True),
    ],
)
def test_only_an_empty_directory_or_a_bundle_is_replaced(files, refused, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    for name, text in files.items():
        (place / name).write_text(text)
    if not refused:
        return check_place(place)
    foreign = "a.txt" if "a.txt" in files else sorted(files)[0]
    with pytest.raises(ExportError, match=f"place: not a bundle, contains '{foreign}'"):
        check_place(place)


def test_a_file_or_a_link_is_not_replaced_and_nothing_is_no_obstacle(tmp_path):
    check_place(tmp_path / "nothing")
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link", "broken"):
        with pytest.raises(ExportError, match=f"{name}: not a directory"):
            check_place(tmp_path / name)

"""Models that know when not to answer: the second output of their networks, and what becomes of it.

The networks are graphs that read the orientation from the first nine pixels of a slice (`support.orientation_graphs`).
"""

import csv
import io
import json
import sys
from itertools import product
from types import ModuleType

import numpy as np
import pytest
from conftest import CLASSES, entry, make_graph, write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.dict_mask import DictMask, block
from support.orientation_graphs import (
    orientation_bundle,
    orientation_graph,
    shares,
    slice_of,
)

from organ_infer import BundleError, DeviceError, OrganClassifier
from organ_infer.bundle.files import open_bundle, read_manifest
from organ_infer.bundle.manifest import Manifest
from organ_infer.cli import main
from organ_infer.images.axes import appearance, axes_message, orientation_names
from organ_infer.images.orientation import can_reorient, reorient
from organ_infer.plausibility import orientation_warnings, without_orientation_warnings
from organ_infer.volumes.types import Volume
from organ_infer.volumes.votes import scan_orientation, scan_warnings

# what the columns mean for the model's orientation, rows to the left and columns to the back
NAMES = (
    "as required",
    "left-right flipped",
    "front-back flipped",
    "turned by 180 degrees",
    "axes exchanged: left-right <-> front-back",
    # in the usual display, in which rows run to the back
    "turned by 90 degrees counterclockwise",
    "turned by 90 degrees clockwise",
    "axes exchanged: left-right <-> front-back, both flipped",
    "no organ crop",
)


@pytest.fixture(scope="module")
def reading_bundle(tmp_path_factory):
    """A bundle whose network reads the orientation from the pixels. The threshold is 0.1."""
    return orientation_bundle(tmp_path_factory.mktemp("orientation") / "bundle")


@pytest.fixture(scope="module")
def classifier(reading_bundle):
    with OrganClassifier(reading_bundle, device="cpu", threads=1) as opened:
        yield opened


def open_one(folder, *graphs, **changes):
    return OrganClassifier(orientation_bundle(folder, *graphs, **changes), device="cpu", threads=1)


def looks(column):
    """What a slice of this column looks, in a warning."""
    return {
        4: "as if axes were exchanged: left-right <-> front-back",
        7: "as if axes were exchanged: left-right <-> front-back, both flipped",
    }.get(column, NAMES[column])


def sure(column, rest=0.01):
    """Nine probabilities of which one is high."""
    orientation = np.full(9, rest)
    orientation[column] = 1 - 8 * rest
    return orientation


# The names.


def changed(pixels, index):
    """A slice as the contract of the output changes it for a column."""
    if index & 1:
        pixels = pixels[::-1]
    if index & 2:
        pixels = pixels[:, ::-1]
    return pixels.T if index & 4 else pixels


AXIS = {"L": 0, "R": 0, "P": 1, "A": 1, "H": 2, "F": 2}
ORIENTATIONS = [(a, b) for a, b in product("LRAPHF", repeat=2) if AXIS[a] != AXIS[b]]


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids="".join)
@pytest.mark.parametrize("index", range(8))
def test_a_name_describes_where_the_pixels_of_a_changed_slice_really_are(orientation, index):
    """Each pixel is followed: where it seems to be under the required orientation, and where it truly is."""
    steps = [np.zeros(3, int) for _ in range(2)]
    for step, letter in zip(steps, orientation, strict=True):
        step[AXIS[letter]] = 1 if letter in "LPH" else -1
    rows, columns = np.mgrid[-1:2, -1:2]
    truth = rows[..., None] * steps[0] + columns[..., None] * steps[1]
    moved = np.stack([changed(truth[..., axis], index) for axis in range(3)], axis=-1)
    seeming = truth
    # the matrix that takes what seems to be there to what is, found by brute force
    through = 3 - AXIS[orientation[0]] - AXIS[orientation[1]]
    matches = []
    for order in ((0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 1, 0)):
        for signs in product((1, -1), repeat=3):
            axes = np.zeros((3, 3), int)
            axes[np.arange(3), order] = signs
            if axes[through, through] == 1 and (seeming @ axes.T == moved).all():
                matches.append(axes)
    (axes,) = matches
    expected = "as required" if index == 0 else axes_message(axes)
    assert orientation_names(orientation)[index] == expected


def test_names_for_axial_slices_are_those_of_an_audit():
    assert orientation_names(("L", "P")) == NAMES


def test_a_slice_in_the_usual_display_that_is_turned_clockwise_is_called_so():
    """The usual display is PL. The model reads it as LP."""
    picture = np.arange(12).reshape(3, 4)
    clockwise = np.rot90(picture, -1)
    required = reorient(picture, ("P", "L"), ("L", "P"))
    read = reorient(clockwise, ("P", "L"), ("L", "P"))
    (index,) = [
        i
        for i in range(8)
        if changed(required, i).shape == read.shape and (changed(required, i) == read).all()
    ]
    assert NAMES[index] == "turned by 90 degrees clockwise"


def test_without_a_known_orientation_the_names_are_about_pixels():
    names = orientation_names(None)
    picture = np.arange(12).reshape(3, 4)
    assert names[0] == "as required" and names[8] == "no organ crop" and len(set(names)) == 9
    for name, expected in {
        "flipped vertically": picture[::-1],
        "flipped horizontally": picture[:, ::-1],
        "turned by 180 degrees": np.rot90(picture, 2),
        "turned by 90 degrees clockwise": np.rot90(picture, -1),
        "turned by 90 degrees counterclockwise": np.rot90(picture),
        "rows and columns exchanged": picture.T,
    }.items():
        np.testing.assert_array_equal(changed(picture, names.index(name)), expected)


def test_what_rows_and_columns_look_like_is_a_sentence_too():
    assert [appearance(orientation_names(None)[i]) for i in (1, 4, 7)] == [
        "flipped vertically",
        "as if rows and columns were exchanged",
        "as if rows and columns were exchanged, both flipped",
    ]


def test_every_orientation_of_a_plane_has_eight_different_names():
    for orientation in ORIENTATIONS:
        assert can_reorient(orientation, orientation)
        assert len(set(orientation_names(orientation))) == 9


# Predictions.


@pytest.mark.parametrize("column", range(9))
def test_a_prediction_has_the_plausibility_and_the_most_probable_orientation(classifier, column):
    (prediction,) = classifier.predict(slice_of(column))
    assert prediction.plausibility == pytest.approx(shares(column)[0], abs=1e-6)
    assert prediction.orientation == NAMES[column]
    assert prediction.label == "liver"


@pytest.mark.parametrize("column", range(1, 9))
def test_below_the_threshold_one_warning_names_the_most_probable_reason(classifier, column):
    (prediction,) = classifier.predict(slice_of(column))
    (warning,) = prediction.warnings
    beginning = "plausibility 0.000, below 0.100: "
    if column == 8:
        assert warning == (
            f"{beginning}no organ crop; crop it around one organ, with the window of an abdominal CT"
        )
    else:
        assert warning == (
            f"{beginning}looks {looks(column)}; check the orientation, or pass it with --orientation or orientation="
        )


def test_a_plausible_slice_has_no_warning(classifier):
    (prediction,) = classifier.predict(slice_of(0))
    assert prediction.warnings == () and prediction.plausibility > 0.99


def test_a_slice_below_a_high_threshold_is_not_said_to_look_as_required(tmp_path):
    with open_one(tmp_path / "b", threshold=0.9) as opened:
        (prediction,) = opened.predict(slice_of(0, 2))
    assert prediction.orientation == "as required" and prediction.plausibility < 0.9
    (warning,) = prediction.warnings
    assert "looks front-back flipped" in warning


@pytest.mark.parametrize("column, count", [(8, 1), (1, 2)])
def test_what_another_check_calls_implausible_is_not_called_no_crop_again(tmp_path, column, count):
    with open_one(tmp_path / "b", orientation_graph(sure(column))) as opened:
        (prediction,) = opened.predict(np.full((28, 28), 90, np.uint8))
    assert len(prediction.warnings) == count
    assert prediction.warnings[0].startswith("implausible: pixels span")


def test_numbers_that_differ_are_written_so_that_they_differ():
    orientation = np.full((1, 9), 0.0, np.float32)
    orientation[0, 0], orientation[0, 8] = 0.02096, 0.97904
    ((warning,),) = orientation_warnings(orientation, 0.021, NAMES, [()])
    assert warning.startswith("plausibility 0.02096, below 0.02100: ")


def test_a_plausibility_equal_to_the_threshold_has_no_warning():
    orientation = np.zeros((2, 9), np.float32)
    orientation[:, 0] = 0.25, np.nextafter(np.float32(0.25), np.float32(0))
    found = orientation_warnings(orientation, 0.25, NAMES, [(), ("read",)])
    assert found[0] == () and len(found[1]) == 2 and found[1][0] == "read"


def test_every_way_to_classify_gives_the_same_plausibility(classifier, tmp_path):
    pixels = slice_of(3)
    file = tmp_path / "a.png"
    Image.fromarray(pixels).save(file)
    (by_array,) = classifier.predict(pixels)
    (by_path,) = classifier.predict_paths([file])
    (by_bytes,) = classifier.predict_bytes(file.read_bytes())
    assert by_array.plausibility == by_path.plausibility == by_bytes.plausibility
    assert by_array.warnings == by_path.warnings == by_bytes.warnings != ()


def test_the_mean_over_the_networks_decides(tmp_path):
    flipped, required = np.full(9, 0.01), np.full(9, 0.025)
    flipped[1], required[0] = 0.92, 0.8
    with open_one(
        tmp_path / "b", orientation_graph(flipped), orientation_graph(required)
    ) as opened:
        (prediction,) = opened.predict(slice_of())
    assert prediction.plausibility == pytest.approx((0.01 + 0.8) / 2, abs=1e-6)
    assert prediction.orientation == "left-right flipped"


def test_the_mean_over_the_shifts_decides(reading_bundle):
    pixels = slice_of(0)
    with OrganClassifier(reading_bundle, device="cpu", threads=1, tta=True) as opened:
        (prediction,) = opened.predict(pixels)
        views = [pixels]
        for axis, step in product((0, 1), (1, -1)):
            index = np.clip(np.arange(28) + step, 0, 27)
            views.append(np.take(pixels, index, axis=axis))
    with OrganClassifier(reading_bundle, device="cpu", threads=1) as opened:
        each = [one.plausibility for one in opened.predict(views)]
    assert prediction.plausibility == pytest.approx(np.mean(each), abs=1e-6)
    assert max(each) - min(each) > 0.5


def test_a_model_without_the_output_gives_none(bundle):
    with OrganClassifier(bundle, device="cpu", threads=1) as opened:
        (prediction,) = opened.predict(slice_of(8))
    assert (prediction.plausibility, prediction.orientation) == (None, None)


# What is refused.


@pytest.mark.parametrize(
    "graph, problem",
    [
        (
            orientation_graph(columns=8),
            r"'orientation' must be \(N, 9\) with N free, .* found \(N, 8\)",
        ),
        (orientation_graph(elem_type=10), "'orientation' must be float32, found ONNX type 10"),
        (make_graph(), r"must have exactly the outputs 'logits', 'orientation', found 'logits'"),
    ],
    ids=["shape", "type", "missing"],
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_graph_without_a_proper_second_output_is_refused(tmp_path, graph, problem, place):
    graphs = [orientation_graph(), orientation_graph()]
    graphs[place] = graph
    with pytest.raises(BundleError, match=problem):
        open_bundle(orientation_bundle(tmp_path / "b", *graphs))


def test_an_alternative_without_the_output_is_refused(tmp_path):
    def with_alternative(manifest):
        other = entry(make_graph(), "other.onnx")
        manifest["members"][0]["alternatives"] = [other]

    folder = orientation_bundle(tmp_path / "b", change=with_alternative)
    (folder / "other.onnx").write_bytes(make_graph())
    with pytest.raises(BundleError, match="exactly the outputs 'logits', 'orientation'"):
        open_bundle(folder)


def test_a_second_output_that_the_manifest_does_not_name_is_refused(tmp_path):
    folder = write_bundle(tmp_path / "b", {"a.onnx": orientation_graph()})
    with pytest.raises(
        BundleError, match="exactly one output, 'logits', found 'logits', 'orientation'"
    ):
        open_bundle(folder)


def test_an_orientation_that_does_not_sum_to_1_is_refused(tmp_path):
    with open_one(tmp_path / "b", orientation_graph(normalized=False)) as opened:
        with pytest.raises(DeviceError, match="does not sum to 1; export the bundle again"):
            opened.predict(slice_of(0))
        # the classes are right all the same
        assert opened.predict_proba(slice_of(0)).shape == (1, 11)


@pytest.mark.parametrize(
    "value, problem",
    [
        (
            {"output": "orientation", "threshold": -0.01},
            "plausibility.threshold must be a number from 0 to 1",
        ),
        (
            {"output": "orientation", "threshold": 1.01},
            "plausibility.threshold must be a number from 0 to 1",
        ),
        (
            {"output": "orientation", "threshold": True},
            "plausibility.threshold must be a number from 0 to 1",
        ),
        (
            {"output": "orientation", "threshold": "0.1"},
            "plausibility.threshold must be a number from 0 to 1",
        ),
        ({"output": "other", "threshold": 0.1}, "plausibility.output must be one of orientation"),
        ({"output": "orientation"}, "key 'plausibility.threshold' is missing"),
        ({"threshold": 0.1}, "key 'plausibility.output' is missing"),
        ({"output": "orientation", "threshold": 0.1, "x": 1}, "unknown key 'plausibility.x'"),
        (0.1, "plausibility must be an object"),
    ],
)
def test_a_wrong_entry_of_the_manifest_is_refused(tmp_path, value, problem):
    folder = orientation_bundle(tmp_path / "b", change=lambda m: m.update(plausibility=value))
    with pytest.raises(BundleError, match=problem):
        read_manifest(folder)


@pytest.mark.parametrize("threshold", [0, 0.0211, 1])
def test_the_entry_of_the_manifest_is_written_as_it_is_read(tmp_path, threshold):
    manifest = read_manifest(orientation_bundle(tmp_path / "b", threshold=threshold))
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest and again.plausibility.threshold == threshold


def test_a_manifest_without_the_entry_has_no_key_that_older_readers_refuse(bundle):
    manifest = read_manifest(bundle)
    assert manifest.plausibility is None
    assert "plausibility" not in json.loads(manifest.to_json())


def test_a_null_entry_is_none(tmp_path):
    folder = write_bundle(tmp_path / "b", {"a.onnx": make_graph()}, plausibility=None)
    assert open_bundle(folder).manifest.plausibility is None


# The command.


@pytest.fixture
def run(reading_bundle, tmp_path, capfd):
    """Runs the command on slices of these columns. Returns the exit code, standard output and standard error."""

    def run(*arguments, columns=(0, 1), bundle=reading_bundle):
        paths = []
        for column in columns:
            path = tmp_path / f"{column}.png"
            Image.fromarray(slice_of(column)).save(path)
            paths.append(str(path))
        code = main([*paths, "--bundle", str(bundle), "--device", "cpu", *arguments])
        return code, *capfd.readouterr()

    return run


def test_text_warns_on_standard_error(run, tmp_path):
    code, out, err = run()
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["liver", "liver"]
    (line,) = err.splitlines()
    assert line.startswith(
        f"organ-infer: warning: {tmp_path}/1.png: plausibility 0.000, below 0.100: looks left-right flipped; "
    )


@pytest.mark.parametrize("least, label", [("0.01", "uncertain"), ("0.00001", "liver")])
def test_min_plausibility_marks_as_min_probability(run, least, label):
    code, out, _ = run("-q", "--min-plausibility", least)
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["liver", label]
    by_probability = run("-q", "--min-probability", "0.95")[1].splitlines()[1]
    if label == "uncertain":
        assert out.splitlines()[1] == by_probability


def test_min_plausibility_marks_the_organ_with_organs(run):
    _, out, _ = run("-q", "--min-plausibility", "0.5", "--organs", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["label"], row["organ"]) for row in rows] == [
        ("liver", "liver"),
        ("liver", "uncertain"),
    ]


def test_csv_and_jsonl_have_the_plausibility_and_keep_all_other_columns(run):
    _, out, _ = run("--format", "csv", "--min-plausibility", "1e-9")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0])[-2:] == ["plausibility", "orientation"]
    assert list(rows[0])[:-2] == [
        *("path", "label", "probability", "organ", "organ_probability", "warnings", "error"),
        *CLASSES,
    ]
    lines = [json.loads(line) for line in run("--format", "jsonl")[1].splitlines()]
    for row, line, column in zip(rows, lines, (0, 1), strict=True):
        assert float(row["plausibility"]) == line["plausibility"]
        assert line["plausibility"] == pytest.approx(shares(column)[0], abs=1e-6)
        assert row["orientation"] == line["orientation"] == NAMES[column]


def test_a_failed_image_has_a_row_as_long_as_the_others(run, tmp_path):
    (tmp_path / "0.png").write_bytes(b"no picture")
    code = main([str(tmp_path / "0.png"), "--bundle", "none"])
    assert code == 2
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"\x89PNG\r\n\x1a\n")
    code, out, _ = run("-q", "--format", "csv", "--min-plausibility", "1e-9", str(damaged))
    header, *rows = csv.reader(io.StringIO(out))
    assert code == 1 and [len(row) for row in rows] == [len(header)] * 3
    assert rows[-1][-2:] == ["", ""] or rows[0][-2:] == ["", ""]


def test_csv_has_the_columns_of_earlier_versions_unless_it_is_asked_for_more(run):
    _, out, _ = run("-q", "--format", "csv")
    columns = ("path", "label", "probability", "organ", "organ_probability", "warnings", "error")
    assert out.splitlines()[0].split(",") == [*columns, *CLASSES]


def test_rows_of_a_model_without_the_output_are_as_before(run, bundle):
    _, out, _ = run("-q", "--format", "csv", bundle=bundle)
    assert out.splitlines()[0].endswith(CLASSES[-1])
    (line, *_) = run("-q", "--format", "jsonl", bundle=bundle)[1].splitlines()
    assert not {"plausibility", "orientation"} & json.loads(line).keys()


def test_min_plausibility_needs_a_model_that_gives_it(run, bundle):
    code, out, err = run("--min-plausibility", "0.5", bundle=bundle)
    assert (code, out) == (2, "")
    assert "--min-plausibility 0.5: random gives no plausibility; leave the option out" in err


def test_parquet_has_the_plausibility(run, tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    file = tmp_path / "rows.parquet"
    assert run("-o", str(file))[0] == 0
    table = pyarrow.parquet.read_table(file)
    assert table.column_names[-2:] == ["plausibility", "orientation"]
    assert table.column_names[-3] == CLASSES[-1]
    assert table["orientation"].to_pylist() == [NAMES[0], NAMES[1]]
    assert table["plausibility"].to_pylist() == pytest.approx(
        [shares(0)[0], shares(1)[0]], abs=1e-6
    )


def test_check_names_the_threshold_and_tests_the_orientation(reading_bundle, capfd):
    assert main(["--check", "--bundle", str(reading_bundle), "--device", "cpu"]) == 0
    out = capfd.readouterr().out
    assert "plausibility   output orientation, warning below 0.1\n" in out


# Scans.

SHAPE = (60, 50, 40)
VOLUME = Volume(
    np.random.default_rng(8).integers(-60, 140, SHAPE, np.int16), np.eye(4), "scan.nii.gz"
)
MASK = DictMask({"liver": block(SHAPE, (10, 40), (5, 30), (10, 30))})


@pytest.mark.parametrize("column", range(9))
def test_a_scan_gets_one_warning_and_its_slices_none(tmp_path, column):
    with open_one(tmp_path / "b", orientation_graph(sure(column))) as opened:
        organs = opened.predict_volume(VOLUME, MASK)
    slices = [one.prediction for organ in organs for one in organ.slices]
    assert len(slices) > 3 and all(one.orientation == NAMES[column] for one in slices)
    assert not any(text.startswith("plausibility") for one in slices for text in one.warnings)
    if column == 0:
        assert organs.warnings == ()
        return
    (warning,) = organs.warnings
    crops = f"its {len(slices)} crops look"
    if column == 8:
        assert warning.startswith(f"{crops} like no organ crops; check that the mask belongs")
    else:
        assert warning.startswith(f"{crops} {looks(column)}; check the orientation in its header")


def test_a_model_without_the_output_has_no_warning_about_the_scan(bundle):
    with OrganClassifier(bundle, device="cpu", threads=1) as opened:
        organs = opened.predict_volume(VOLUME, MASK)
    assert organs.warnings == () and organs[0].slices[0].prediction.plausibility is None
    assert isinstance(organs, list)


@pytest.fixture
def scan(monkeypatch):
    """The arguments of a scan and its mask, from a fake reader."""
    module = ModuleType("organ_infer.volumes.reading")
    module.open_volume = lambda path, series: VOLUME
    module.open_mask = lambda path, **_: MASK
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return ["volume", "scan.nii.gz", "--mask", "mask.nii.gz", "--device", "cpu"]


@pytest.mark.parametrize("form", ["text", "csv", "jsonl"])
def test_the_command_warns_once_about_a_flipped_scan(scan, form, tmp_path, capfd):
    model = orientation_bundle(tmp_path / "b", orientation_graph(sure(1)))
    assert main([*scan, "--bundle", str(model), "--format", form]) == 0
    out, err = capfd.readouterr()
    (line,) = err.splitlines()
    assert line.startswith(
        "organ-infer: warning: scan.nii.gz: its 12 crops look left-right flipped; check the orientation"
    )
    assert "plausibility 0." not in out


def test_rows_of_slices_have_the_plausibility_and_those_of_organs_do_not(scan, tmp_path, capfd):
    model = orientation_bundle(tmp_path / "b", orientation_graph(sure(0)))
    main([*scan, "--bundle", str(model), "--format", "csv"])
    header, *rows = csv.reader(io.StringIO(capfd.readouterr().out))
    assert header[-2:] == ["plausibility", "orientation"] and header[-3] == CLASSES[-1]
    assert all(len(row) == len(header) for row in rows)
    assert rows[0][0] == "organ" and rows[0][-2:] == ["", ""]
    for row in rows[1:]:
        assert row[0] == "slice" and float(row[-2]) == pytest.approx(0.92, abs=1e-6)
        assert row[-1] == "as required"
    main([*scan, "--bundle", str(model), "--format", "jsonl"])
    organ, *slices = map(json.loads, capfd.readouterr().out.splitlines())
    assert "plausibility" not in organ
    assert [list(row)[-2:] for row in slices] == [["plausibility", "orientation"]] * 12
    assert [str(row["plausibility"]) for row in slices] == [row[-2] for row in rows[1:]]


def test_rows_of_slices_of_a_model_without_the_output_are_as_before(scan, bundle, capfd):
    main([*scan, "--bundle", str(bundle), "--format", "csv"])
    header, *_ = csv.reader(io.StringIO(capfd.readouterr().out))
    assert header[-1] == CLASSES[-1]


def test_parquet_of_slices_has_the_plausibility(scan, tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    model = orientation_bundle(tmp_path / "b", orientation_graph(sure(0)))
    file = tmp_path / "rows.parquet"
    assert main([*scan, "--bundle", str(model), "-o", str(file), "-q"]) == 0
    table = pyarrow.parquet.read_table(file)
    assert table.column_names[-2:] == ["plausibility", "orientation"]
    assert table["orientation"].to_pylist() == [None, *["as required"] * 12]
    assert table["plausibility"].to_pylist()[1:] == pytest.approx([0.92] * 12, abs=1e-6)


def test_slices_keep_their_warnings_if_no_orientation_wins(tmp_path):
    even = np.full(9, 0.001)
    even[1] = even[2] = (1 - 0.007) / 2
    with open_one(tmp_path / "b", orientation_graph(even)) as opened:
        organs = opened.predict_volume(VOLUME, MASK)
    assert organs.warnings == ()
    for one in organs[0].slices:
        assert [text.split(":")[0] for text in one.prediction.warnings] == [
            "plausibility 0.001, below 0.100"
        ]


def test_a_few_slices_of_which_the_network_is_wrongly_sure_do_not_decide():
    many = np.stack([sure(0, 0.02)] * 12).astype(np.float32)
    wrong = np.stack([sure(1, 1e-12)] * 3).astype(np.float32)
    assert scan_orientation(np.concatenate([many, wrong]), NAMES) == "as required"
    # without the least probability, these three would
    assert np.log(np.concatenate([many, wrong])).sum(axis=0).argmax() == 1


@settings(max_examples=60, deadline=None)
@given(column=st.integers(0, 8), count=st.integers(1, 5), share=st.floats(0.2, 0.99))
def test_the_winner_is_at_least_20_times_as_likely_as_the_second(column, count, share):
    orientation = np.full((count, 9), (1 - share) / 8)
    orientation[:, column] = share
    ratio = (share / max((1 - share) / 8, 0.005)) ** count
    if abs(np.log(ratio) - 3) < 1e-3:
        return
    expected = NAMES[column] if np.log(ratio) > 3 else None
    assert scan_orientation(orientation.astype(np.float32), NAMES) == expected


def test_a_slice_that_is_no_crop_is_reported_in_a_scan_of_another_orientation():
    look, none = (
        "plausibility 0.0, below 0.1: looks x; y",
        "plausibility 0.0, below 0.1: no organ crop; y",
    )
    warnings = ("read", look, none)
    assert without_orientation_warnings(warnings, "left-right flipped") == ("read", none)
    assert without_orientation_warnings(warnings, "as required") == ("read", none)
    assert without_orientation_warnings(warnings, "no organ crop") == ("read",)
    assert scan_warnings(None, 3) == scan_warnings("as required", 3) == ()

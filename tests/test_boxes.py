"""Boxes: --boxes for images, boxes as a part of a path, and boxes around the organs of a scan."""

import csv
import io
import json
import os
import re
import threading

import numpy as np
import pytest
from conftest import constant_graph, write_bundle
from support.image_files import saved

from organ_infer import ImageError, InputError, OrganClassifier, unescape_path
from organ_infer.cli import main
from organ_infer.csv_rows import csv_rows
from organ_infer.images.boxes import Box, cut_box, split_box
from organ_infer.images.orientation import reorient
from organ_infer.images.registry import open_slices, split_selector
from organ_infer.images.types import Slice
from organ_infer.volumes import BoxMask, Volume, open_boxes, organ_crops
from organ_infer.volumes.boxes import UNITS

PIXELS = np.random.default_rng(4).integers(0, 256, (30, 40), np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    graph = constant_graph({"kidney-right": 0.75, "liver": 0.25})
    return str(write_bundle(tmp_path_factory.mktemp("bundle") / "kidney", {"a.onnx": graph}))


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A directory with a.png, stack.npy and a file of boxes. The working directory is another one."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(saved(PIXELS))
    np.save(folder / "stack.npy", np.stack([PIXELS, PIXELS[::-1]]))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def run(images, bundle, capfd):
    """Runs the command on a file of boxes. Returns the exit code, standard output and standard error."""

    def run(text, *arguments):
        (images / "boxes.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        code = main(["--boxes", "images/boxes.csv", "--bundle", bundle, *arguments])
        return code, *capfd.readouterr()

    return run


def read_all(path):
    return [(name, read()) for name, read in open_slices(str(path))]


def names(out):
    return [row["path"] for row in map(json.loads, out.splitlines())]


# Images.


def test_each_line_is_a_result_in_the_order_of_the_file(run):
    code, out, err = run(
        "a.png,2,3,12,23\na.png,0,0,40,30,whole\nstack.npy#1,5,6,15,16\na.png,1,1,9,9,left kidney\n",
        "--format",
        "jsonl",
    )
    assert (code, err) == (0, "")
    assert names(out) == [
        "images/a.png[2:12,3:23]",
        "images/a.png[whole=0:40,0:30]",
        "images/stack.npy#1[5:15,6:16]",
        "images/a.png[left kidney=1:9,1:9]",
    ]


def test_a_box_of_a_stack_is_cut_from_every_slice(run):
    code, out, _ = run("stack.npy,5,6,15,16,x\n", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert [row["path"] for row in rows] == [
        "images/stack.npy#0[x=5:15,6:16]",
        "images/stack.npy#1[x=5:15,6:16]",
    ]


def test_a_header_is_optional_and_may_order_the_columns(run):
    plain = run("a.png,2,3,12,23,n\n")
    for text in (
        "path,x0,y0,x1,y1,name\r\na.png,2,3,12,23,n\r\n",
        "\ufeffpath,x0,y0,x1,y1,name\n\na.png,2,3,12,23,n\n",
        "Name,Y1,Y0,X1,X0,score,Path\nn,23.0,3.,12,2,0.5,a.png\n",
        ' a.png , 2,3 ,12,"23", n\n',
    ):
        assert run(text) == plain
    assert run("path,x0,y0,x1,y1\na.png,2,3,12,23\n")[1].endswith("a.png[2:12,3:23]\n")


@pytest.mark.parametrize("box", ["2,3,2,23", "2,3,12,3", "2,3,12,2", "2,3,1,23"])
def test_a_line_without_a_pixel_is_named(run, box):
    code, _, err = run(f"a.png,{box}\n")
    assert code == 1 and "line 1: no pixels in the box; x1 and y1 must be larger" in err


def test_only_the_first_line_is_a_header(run):
    code, out, err = run("a.png,2,3,12,23\npath,x0,y0,x1,y1\na.png,2,3,13,23\n")
    assert code == 1 and len(out.splitlines()) == 2
    assert "line 2: x0: expected a whole number, found 'x0'" in err


def test_boxes_are_read_from_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = b"\xef\xbb\xbforgan,x0\nliver,1\n"
    writer = threading.Thread(target=pipe.write_bytes, args=(text,))
    writer.start()
    lines = list(csv_rows(str(pipe), ("organ", "x0")))
    writer.join()
    assert [line.cells for line in lines] == [{"organ": "liver", "x0": "1"}]


def test_messages_about_a_file_of_any_name_are_one_line(tmp_path):
    path = tmp_path / "a\nb.csv"
    path.write_text("liver,1\n")
    (line,) = csv_rows(str(path), ("organ", "x0", "y0"))
    assert line.where == f"{tmp_path}/a\\x0ab.csv, line 1" and line.error.startswith(line.where)


def test_the_name_of_a_result_is_a_path_and_gives_the_box_back(run, images, bundle, capfd):
    text = "a.png,2,3,12,23\nstack.npy,5,6,15,16,a=b#1\n"
    rows = run(text, "--format", "jsonl")[1]
    paths = [unescape_path(name) for name in names(rows)]
    assert main([*paths, "--bundle", bundle, "--format", "jsonl"]) == 0
    assert capfd.readouterr().out == rows
    with OrganClassifier(bundle) as classifier:
        assert [result.path for result in classifier.predict_paths(paths)] == paths
    assert [split_selector(path) for path in paths] == [
        ("images/a.png", "[2:12,3:23]"),
        ("images/stack.npy", "0[a=b#1=5:15,6:16]"),
        ("images/stack.npy", "1[a=b#1=5:15,6:16]"),
    ]
    assert split_box(paths[1])[1] == Box(5, 6, 15, 16, "a=b#1")
    # The expression of docs/reference/results_format.md.
    pattern = r"(.*)\[(?:([^\[\]]*)=)?(-?\d+):(-?\d+),(-?\d+):(-?\d+)\]"
    assert re.fullmatch(pattern, paths[2]).groups() == (
        *("images/stack.npy#1", "a=b#1"),
        *("5", "15", "6", "16"),
    )


def test_a_file_of_that_very_name_goes_first(images):
    path = images / "a.png[0:9,0:9]"
    path.write_bytes(saved(PIXELS[:5, :4]))
    ((name, image),) = read_all(path)
    assert name == str(path) and image.pixels.shape == (5, 4)


def test_the_pixels_are_those_of_the_array(images):
    ((_, image),) = read_all(f"{images}/a.png[2:12,3:23]")
    np.testing.assert_array_equal(image.pixels, PIXELS[3:23, 2:12])
    ((_, image),) = read_all(f"{images}/stack.npy#1[-5:6,20:99]")
    np.testing.assert_array_equal(image.pixels, PIXELS[::-1][20:30, 0:6])
    assert image.warnings == (
        "the box reaches beyond the image of 40 x 30 pixels; clipped to [0:6,20:30]",
    )


def test_the_box_is_cut_before_the_slice_is_reoriented(run, bundle, images, monkeypatch):
    seen = []
    original = OrganClassifier._prepare

    def prepare(self, image):
        seen.append((image, original(self, image)))
        return seen[-1][1]

    monkeypatch.setattr(OrganClassifier, "_prepare", prepare)
    assert run("a.png,2,3,12,23\n", "--orientation", "PR")[0] == 0
    ((before, after),) = seen
    np.testing.assert_array_equal(before.pixels, PIXELS[3:23, 2:12])
    with OrganClassifier(bundle) as classifier:
        wanted = reorient(before.pixels, ("P", "R"), classifier.manifest.input.orientation)
    np.testing.assert_array_equal(after.pixels, wanted)
    assert wanted.shape != before.pixels.shape


def test_the_field_shrinks_with_the_box():
    image = Slice(PIXELS, ("w",), ("P", "L"), (300.0, 400.0))
    cut = cut_box(image, Box(10, 5, 30, 20))
    assert cut.field == (150.0, 200.0)
    assert (cut.warnings, cut.orientation) == (("w",), ("P", "L"))
    assert cut_box(Slice(PIXELS), Box(0, 0, 1, 1)).field is None


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (Box(40, 0, 50, 9), "outside the image of 40 x 30 pixels"),
        (Box(0, 30, 9, 40), "outside the image"),
        (Box(-9, 0, 0, 9), "outside the image"),
        (Box(0, -9, 9, 0), "outside the image"),
        (Box(5, 0, 5, 9), "no pixels in it"),
        (Box(0, 9, 5, 8), "no pixels in it"),
    ],
)
def test_a_box_without_a_pixel_of_the_image_is_refused(box, words):
    with pytest.raises(ImageError, match=words):
        cut_box(Slice(PIXELS), box)


def test_a_wrong_line_is_named_and_the_others_go_on(run, images):
    (images / "folder").mkdir()
    (images / "a.png[7:8,7:8]").write_bytes(b"")
    lines = {
        "a.png,2,3,12,23": None,
        "a.png,2,3,12": "line 2: not a box, expected path,x0,y0,x1,y1[,name], found 'a.png,2,3,12'",
        "a.png;2;3;12;23": "line 3: not a box, expected path,x0,y0,x1,y1[,name]",
        "a.png,2,3,12,23,n,7": "line 4: not a box, expected path,x0,y0,x1,y1[,name]",
        "a.png,2,3,1.5,23": "line 5: x1: expected a whole number, found '1.5'",
        "a.png,2,y,12,23": "line 6: y0: expected a whole number, found 'y'",
        "a.png,12,3,2,23": "line 7: no pixels in the box; x1 and y1 must be larger",
        "b.png,2,3,12,23": "line 8: no such file",
        "folder,2,3,12,23": "line 9: a directory, not an image",
        ",2,3,12,23": "line 10: not a box, expected path,x0,y0,x1,y1[,name]",
        "a.png,2,3,12,23,[n]": "line 11: name: expected text without brackets",
        "a.png,7,7,8,8": "line 12: a file is named like this box",
        "a.png,50,3,60,23": "box [50:60,3:23]: outside the image of 40 x 30 pixels",
        "boxes.csv,0,0,1,1": "boxes.csv[0:1,0:1]: unknown image format",
        "a.png,0,0,1,1,last": None,
    }
    code, out, err = run("\n".join(lines), "--format", "jsonl", "--quiet")
    rows = list(map(json.loads, out.splitlines()))
    assert code == 1 and len(rows) == len(lines)
    expected = [words for words in lines.values() if words]
    for line, words in zip(err.splitlines(), expected, strict=True):
        assert words in line
    assert [("error" in row) for row in rows] == [words is not None for words in lines.values()]
    assert rows[9]["path"] == "images/boxes.csv" and rows[7]["path"] == "images/b.png"


def test_a_clipped_box_is_a_warning(run):
    code, _, err = run("a.png,2,3,120,23\n")
    assert code == 0
    assert err.splitlines() == [
        "organ-infer: warning: images/a.png[2:120,3:23]: the box reaches beyond the image of 40 x 30 pixels;"
        " clipped to [2:40,3:23]"
    ]


def test_names_that_are_not_utf_8_are_found(run, images):
    (images / "a.png").rename(str(images / "caf") + "\udce9.png")
    code, out, _ = run(b"caf\xe9.png,2,3,12,23\n", "--format", "jsonl")
    assert code == 0 and names(out) == [r"images/caf\xe9.png[2:12,3:23]"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no image found: --boxes lists no box"),
        ("path,x0,y0,x1,y1\n", "no image found: --boxes lists no box"),
        ("a.png,1".encode("utf-16"), "the file is UTF-16; save it as UTF-8"),
        (b"a" * 200_000, "line 1: no valid CSV (field larger than field limit"),
    ],
)
def test_a_file_without_boxes_is_one_line_and_2(run, text, words):
    code, out, err = run(text)
    assert (code, out, err.count("\n")) == (2, "", 1) and words in err


def test_boxes_are_the_only_input(bundle, capfd):
    for arguments in (["x.png"], ["--files-from", "-"]):
        assert main(["--boxes", "b.csv", *arguments]) == 2
        assert "--boxes: takes no paths and no --files-from" in capfd.readouterr().err
    assert main(["--boxes", ""]) == 2
    assert "--boxes: the value is empty" in capfd.readouterr().err
    assert main(["--boxes", "none.csv", "--bundle", bundle]) == 2
    assert "--boxes none.csv: cannot be read (No such file" in capfd.readouterr().err


# Volumes.

SHAPE = (20, 18, 16)
AFFINE = np.array([[-3.0, 0, 0, 40], [0, 4, 0, -30], [0, 0, 5, 100], [0, 0, 0, 1]])
HU = np.random.default_rng(2).integers(-200, 300, SHAPE, np.int16)
VOLUME = Volume(HU, AFFINE, "scan")


def boxes(tmp_path, text, volume=VOLUME, **options):
    (tmp_path / "b.csv").write_text(text)
    return open_boxes(tmp_path / "b.csv", volume, **options)


def test_boxes_without_an_organ_list_their_names(tmp_path):
    for name in ("livre", "5"):
        with pytest.raises(
            InputError,
            match=f"no organ is in the label map totalsegmentator: found {name}; write names such as liver",
        ):
            boxes(tmp_path, f"{name},2,3,4,12,9,8\n")


def test_voxels_are_half_open_indices(tmp_path):
    mask = boxes(tmp_path, "Left Kidney,2,3,4,12,9,8\nstomach,0,0,0,1,1,1\nliver,0,0,0,20,18,16\n")
    assert [*mask] == ["kidney-left", "liver"] and mask.unmapped == ("stomach",)
    expected = np.zeros(SHAPE, bool)
    expected[2:12, 3:9, 4:8] = True
    np.testing.assert_array_equal(mask["kidney-left"], expected)
    assert mask.box("kidney-left") == (slice(2, 12), slice(3, 9), slice(4, 8))
    part = (slice(0, 5), slice(5, 18), slice(6, 7))
    np.testing.assert_array_equal(mask.region("kidney-left", part), expected[part])
    beside = (slice(0, 1), slice(0, 18), slice(0, 16))
    assert not mask.region("kidney-left", beside).any()
    beside = (slice(12, 20), slice(0, 18), slice(0, 16))
    assert not mask.region("kidney-left", beside).any()
    assert mask.structures("kidney-left") == ("Left Kidney",)
    assert mask["liver"].all() and mask.warnings == ()
    assert mask.shape == SHAPE and len(mask) == 2
    assert "liver" in mask and "spleen" not in mask


@pytest.mark.parametrize("degrees", [0, 10])
def test_millimeters_take_the_voxels_whose_centers_are_inside(tmp_path, degrees):
    angle = np.radians(degrees)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    volume = Volume(HU, rotation @ AFFINE, "scan")
    # The sides of the first one are on centers, whose voxels are in the box.
    for low, high in (((-2, -10, 120), (10, 2, 140)), ((-2.9, -10.1, 119.7), (11.3, 3.3, 141.9))):
        text = "liver," + ",".join(map(str, (*low, *high)))
        mask = boxes(tmp_path, text, volume, units="mm")
        indices = np.array([*np.ndindex(SHAPE)])
        centers = indices @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        inside = indices[
            ((centers >= np.array(low) - 1e-9) & (centers <= np.array(high) + 1e-9)).all(axis=1)
        ]
        if degrees == 0:
            expected = zip(inside.min(axis=0), inside.max(axis=0) + 1, strict=True)
            assert mask.box("liver") == tuple(slice(int(a), int(b)) for a, b in expected)
        else:
            # the smallest box of voxels around the whole box, which is oblique in the scan
            assert mask["liver"][tuple(inside.T)].all() and mask["liver"].sum() < 3 * len(inside)


def test_crops_of_boxes_have_no_margin_unless_it_is_given(tmp_path):
    mask = boxes(tmp_path, "liver,2,3,4,12,9,9\n")
    shapes = [
        {crop.pixels.shape for crop in organ_crops(VOLUME, mask, orientation="PL", **options)}
        for options in ({}, {"margin_mm": 0}, {"margin_mm": 4})
    ]
    assert shapes == [{(6, 10)}, {(6, 10)}, {(8, 12)}]


def test_a_box_beyond_the_scan_is_clipped_with_a_warning(tmp_path):
    mask = boxes(tmp_path, "liver,-4,3,4,12,99,8\n")
    assert mask.box("liver") == (slice(0, 12), slice(3, 18), slice(4, 8))
    assert mask.warnings == (
        "liver: the box reaches beyond the scan; clipped to voxels 0:12, 3:18, 4:8",
    )


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("liver,1,2,3,4,5\n", {}, "line 1: not a box, expected organ,x0,y0,z0,x1,y1,z1, found"),
        ("liver,1,2,3,4,5,six\n", {}, "line 1: z1: expected a whole number, found 'six'"),
        ("liver,1,2,3,4,5,6.5\n", {}, "line 1: z1: expected a whole number"),
        ("liver,1,2,3,4,5,nan\n", {"units": "mm"}, "line 1: z1: expected a number of mm, found 'nan'"),
        ("liver,1,2,3,4,5,x\n", {"units": "mm"}, "line 1: z1: expected a number of mm, found 'x'"),
        ("\nliver,1,2,3,4,2,6\n", {}, "line 2: no voxels in the box"),
        ("liver,20,2,3,24,5,6\n", {}, "line 1: outside the scan of 20 x 18 x 16 voxels"),
        ("liver,1,2,-3,4,5,0\n", {}, "line 1: outside the scan"),
        ("liver,1e30,2,3,2e30,5,6\n", {"units": "mm"}, "line 1: outside the scan"),
        ("liver,0.1,0.1,0.1,0.2,0.2,0.2\n", {"units": "mm"}, "line 1: no voxel has its center in the box"),
        ("liver,1,2,3,4,5,6\nLiver,1,2,3,4,5,6\n", {}, "line 2: a second box of liver"),
        ("", {}, "b.csv: no box in the file"),
        ("organ,x0,y0,z0,x1,y1,z1\n", {}, "b.csv: no box in the file"),
        ("liver,1,2,3,4,5,6\n", {"units": "cm"}, "units: expected 'voxels' or 'mm', found 'cm'"),
        ("liver,1,2,3,4,5,6\n", {"volume": HU}, "like: expected a Volume"),
    ],
)  # fmt: skip
def test_a_line_without_a_box_of_the_scan_is_refused(tmp_path, text, options, words):
    with pytest.raises(InputError, match=re.escape(words)):
        boxes(tmp_path, text, **options)


def test_boxes_of_a_program_are_checked_and_classified(bundle):
    box = (slice(2, 12), slice(3, 9), slice(4, 8))
    with OrganClassifier(bundle) as classifier:
        (organ,) = classifier.predict_volume(VOLUME, BoxMask({"liver": box}, SHAPE))
    assert organ.expected == "liver" and organ.label == "kidney-right"
    first = (slice(2, 21), slice(5, 5), slice(-1, 3), slice(3), slice(0.0, 3.0), slice(0, 9, 2), 5)
    for wrong in (*((side, *box[1:]) for side in first), box[:2]):
        with pytest.raises(InputError, match="boxes: 'liver': expected three slices inside"):
            BoxMask({"liver": wrong}, SHAPE)
    assert set(UNITS) == {"voxels", "mm"}


def test_a_file_of_boxes_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"none.csv: cannot be read \(No such file"):
        list(csv_rows(str(tmp_path / "none.csv"), ("organ",)))

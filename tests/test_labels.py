"""Labels of files: from a CSV file, from folders, and groups from paths."""

import os
import re

import numpy as np
import pytest
from conftest import CLASSES

from organ_infer import InputError
from organ_infer.evaluation.collection import Collection
from organ_infer.evaluation.labels import ClassNames, FileLabels, FolderLabels, group_function
from organ_infer.results import Prediction

NAMES = ClassNames(CLASSES)


@pytest.fixture
def labels(tmp_path):
    """Writes a file of labels and reads it."""

    def read(content, name="labels.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return FileLabels(str(path), NAMES)

    return read


def test_a_class_is_found_whatever_its_case_and_hyphens():
    for text in ("kidney-left", "Kidney-Left", "kidney_left", " KIDNEY LEFT ", "kidney - left"):
        assert NAMES.index(text) == CLASSES.index("kidney-left")
    assert NAMES.index("kidney") is None and NAMES.index("") is None
    # An exact name comes first.
    assert [ClassNames(["Liver", "liver"]).index(name) for name in ("Liver", "liver")] == [0, 1]


@pytest.mark.parametrize(
    "content",
    [
        "path,label\na.png,liver\nsub/b.png,spleen\n",
        "a.png,liver\nsub/b.png,spleen\n",
        "label,note,PATH\nliver,x,a.png\nspleen,,sub/b.png\n",
        "\ufeffpath,label\r\na.png,liver\r\n\r\nsub/b.png,spleen\r\n",
        "path,label\na.png,liver\nsub/../a.png,liver\nsub/b.png,spleen\nfailed.png,\n",
    ],
)
def test_paths_are_relative_to_the_file(labels, tmp_path, content, monkeypatch):
    (tmp_path / "sub").mkdir()
    read = labels(content)
    assert read.label_of(str(tmp_path / "a.png")) == "liver"
    monkeypatch.chdir(tmp_path / "sub")
    assert read.label_of("b.png") == "spleen" and read.label_of("../a.png") == "liver"
    assert read.label_of("a.png") is None and read.unused() == []


def test_links_to_a_directory_lead_to_the_same_files(labels, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    read = labels("real/a.png,liver\nlink/b.png,spleen\n")
    assert read.label_of(str(tmp_path / "link" / "a.png")) == "liver"
    assert read.label_of(str(tmp_path / "real" / "b.png")) == "spleen"


def test_the_label_of_a_slice_comes_before_that_of_its_file(labels, tmp_path):
    np.save(tmp_path / "s.npy", np.zeros((3, 4, 4), np.uint8))
    (tmp_path / "s.png").write_bytes(b"")
    read = labels('s.npy,liver\ns.npy#1,spleen\n"s.png[a=0:2,0:2]",heart\n"s.png",bladder\n')
    path = str(tmp_path / "s.npy")
    assert [read.label_of(f"{path}#{i}") for i in range(3)] == ["liver", "spleen", "liver"]
    assert read.label_of(f"{path}#1[0:2,0:2]") == "spleen"
    picture = str(tmp_path / "s.png")
    assert read.label_of(f"{picture}[a=0:2,0:2]") == "heart"
    assert read.label_of(f"{picture}[0:2,0:2]") == "bladder" == read.label_of(picture)


def test_paths_of_results_are_unescaped(labels, tmp_path):
    read = labels("path,label\nb\\xe9.png,liver\nplain\\x41.png,spleen\n")
    assert read.label_of(os.path.join(str(tmp_path), os.fsdecode(b"b\xe9.png"))) == "liver"
    assert read.label_of(str(tmp_path / "plainA.png")) == "spleen"
    (tmp_path / "plain\\x41.png").write_bytes(b"")
    read = labels("path,label\nplain\\x41.png,spleen\n")
    assert read.label_of(str(tmp_path / "plain\\x41.png")) == "spleen"


def test_labels_that_no_result_has_are_named(labels, tmp_path):
    read = labels("a.png,liver\nb.png,liver\nc.png,spleen\n")
    read.label_of(str(tmp_path / "b.png"))
    assert read.unused() == ["a.png", "c.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "labels.csv: lists no label; expected lines with path,label"),
        ("path,label\n", "labels.csv: lists no label; expected lines with path,label"),
        ("file,class,x\n", "line 1: not a label, expected path,label, found 'file,class,x'"),
        ("a.png\n", "line 1: not a label, expected path,label, found 'a.png'"),
        ("a.png;liver\n", "line 1: not a label, expected path,label, found 'a.png;liver'"),
        ("path,label\n,liver\n", "line 2: not a label, expected path,label"),
        ("a.png,liver\nb.png,liver,3\n", "line 2: not a label, expected path,label"),
        (
            "file,organ\na.png,aorta\n",
            "expected lines with path,label, found the labels organ, aorta; the classes of the model are bladder,",
        ),
        (
            "a.png,liver\nb.png,liver\n./a.png,spleen\n",
            "line 3: ./a.png has the label 'spleen', but 'liver' in line 1; keep one of them",
        ),
        ("a.png,liver".encode("utf-16"), "the file is UTF-16; save it as UTF-8"),
        (
            "a.png,liver\n".encode("utf-16-le"),
            "line 1: NUL in the text; save the file as CSV in UTF-8",
        ),
        (
            'a.png,liver\nb.png,"spleen\nc.png,heart\n',
            "labels.csv, line 2: no valid CSV (unexpected end of data); save it as CSV, with closed quotation marks",
        ),
        ('a.png,liver\n"b"c.png,spleen\n', "labels.csv, line 2: no valid CSV (',' expected after"),
        (
            "a.png," + "x" * 200_000,
            "labels.csv, line 1: no valid CSV (field larger than field limit",
        ),
    ],
)
def test_a_wrong_file_is_one_clear_message(labels, content, message):
    with pytest.raises(InputError, match=re.escape(message)):
        labels(content)


def test_one_class_in_two_writings_is_one_label(labels, tmp_path):
    read = labels("a.png,kidney-left\na.png,Kidney_Left\nb.png,aorta\nb.png,aorta\nc.png,liver\n")
    assert read.count == 3
    assert NAMES.index(read.label_of(str(tmp_path / "a.png"))) == NAMES.index("kidney-left")
    with pytest.raises(InputError, match="has the label 'Aorta', but 'aorta' in line 2"):
        labels("a.png,liver\nb.png,aorta\nb.png,Aorta\n")


def test_spaces_around_quoted_cells_do_not_count(labels, tmp_path):
    read = labels('"a,1.png", "liver"\n "b.png" ,spleen\n'.replace('" ,', '",'))
    assert read.label_of(str(tmp_path / "a,1.png")) == "liver"
    assert read.label_of(str(tmp_path / "b.png")) == "spleen"


def test_a_missing_file_is_one_clear_message(tmp_path):
    for path, reason in ((tmp_path / "none.csv", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError, match=rf"cannot be read \({reason}"):
            FileLabels(str(path), NAMES)


# Folders


def test_standard_input_has_no_folder(tmp_path, monkeypatch):
    (tmp_path / "liver").mkdir()
    monkeypatch.chdir(tmp_path / "liver")
    read = FolderLabels(["-"], NAMES)
    assert read.label_of("-") is None and read.label_of("a.png") == "liver"


def test_the_nearest_folder_that_is_a_class_is_the_label(tmp_path, monkeypatch):
    for folder in ("val/liver/p1", "val/Spleen", "val/aorta"):
        (tmp_path / folder).mkdir(parents=True)
    read = FolderLabels([str(tmp_path / "val")], NAMES)
    expected = {"liver/a.png": "liver", "liver/p1/a.npy#3": "liver", "Spleen/a.png": "Spleen"}
    expected |= {"aorta/a.png": "aorta", "a.png": "val"}
    (tmp_path / "val/liver/p1/a.npy").write_bytes(b"")
    for path, label in expected.items():
        assert read.label_of(str(tmp_path / "val" / path)) == label, path
    monkeypatch.chdir(tmp_path / "val" / "liver")
    assert FolderLabels(["a.png"], NAMES).label_of("a.png") == "liver"
    assert FolderLabels(["."], NAMES).label_of("./p1/a.png") == "liver"
    assert read.unused() == []


def test_a_folder_above_the_named_one_is_no_label(tmp_path):
    (tmp_path / "liver" / "val" / "aorta").mkdir(parents=True)
    path = str(tmp_path / "liver" / "val" / "aorta" / "a.png")
    assert FolderLabels([str(tmp_path / "liver" / "val")], NAMES).label_of(path) == "aorta"
    # Of a file, only its own folder counts.
    assert FolderLabels([path], NAMES).label_of(path) == "aorta"
    assert FolderLabels([str(tmp_path / "liver")], NAMES).label_of(path) == "liver"
    # The nearest of the named folders counts.
    for order in (1, -1):
        named = [str(tmp_path / "liver"), str(tmp_path / "liver" / "val")][::order]
        assert FolderLabels(named, NAMES).label_of(path) == "aorta"
    assert FolderLabels(["/"], NAMES).label_of("/a.png") is None


# Groups and the collection


def test_a_group_is_the_first_group_of_the_expression_or_its_match():
    assert group_function(r"p(\d+)")("x/p12/a.png") == "12"
    assert group_function(r"p\d+")("x/p12/a.png") == "p12"
    assert group_function(r"p(\d+)?")("x/p/a.png") == "p"
    assert group_function(r"q\d")("x/p12/a.png") is None


def prediction(path, label, probability=0.9):
    index = CLASSES.index(label)
    row = [(1 - probability) / 10] * 11
    row[index] = probability
    return Prediction(path, label, index, probability, tuple(row), label, probability)


def test_the_collection_counts_and_names_what_it_leaves_out():
    truth = {"a": "liver", "b": "Liver", "c": "aorta", "d": None, "e": "spleen", "f": "liver"}
    collected = Collection(NAMES, truth.get, group_function("[abc]"))
    given = [prediction(path, "liver") for path in truth]
    assert [collected.add(each) for each in given] == [
        "liver", "liver", "aorta", None, "spleen", "liver",
    ]  # fmt: skip
    assert (collected.unlabeled.count, collected.unlabeled.paths) == (1, ["d"])
    assert dict(collected.unknown) == {"aorta": 1}
    assert (collected.ungrouped.count, collected.ungrouped.paths) == (2, ["e", "f"])
    assert collected.paths == {4: "e"} and not collected.is_empty
    found = collected.evaluation()
    assert (found.slices, found.accuracy, found.interval.groups) == (4, 3 / 4, 4)
    assert collected.groups == 4
    assert (found.unlabeled, found.unknown_labels) == (1, {"aorta": 1})
    assert [mistake.index for mistake in found.mistakes] == [4]


def test_a_collection_without_labels_is_empty():
    collected = Collection(NAMES, lambda path: "aorta" if path == "a" else None)
    for path in "ab":
        collected.add(prediction(path, "liver"))
    assert collected.is_empty
    with pytest.raises(InputError, match="no slice has one of the model's classes"):
        collected.evaluation()

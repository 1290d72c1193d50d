"""Rows and where they are written: csv and jsonl read back are the predictions, and a write that fails leaves whole lines."""

import csv
import errno
import io
import json
import os

import numpy as np
import pytest
from conftest import CLASSES, PAIRED
from hypothesis import given, settings
from hypothesis import strategies as st
from support.command_results import COLUMNS

from organ_infer import ImageFailure, Prediction
from organ_infer.bundle.files import Task
from organ_infer.cli import formats
from organ_infer.cli.formats import FORMATS, RowOptions
from organ_infer.cli.output import ClosedPipe, OutputError, Writer
from organ_infer.names import escape_path

ORGANS = Task("organamnist", "axial", tuple(CLASSES), tuple(map(tuple, PAIRED))).organs()

quick = settings(max_examples=60, deadline=None)
weights = st.lists(st.integers(0, 1000), min_size=11, max_size=11).filter(any)
# without what is no text of a line: surrogates are file names that are not UTF-8, tried on their own
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def prediction(shares, path="a.png", warnings=(), plausibility=None, orientation=None):
    """A prediction as OrganClassifier makes it of probabilities in proportion to `shares`."""
    exact = np.asarray(shares, np.float64) / np.sum(shares)
    found = exact.astype(np.float32)
    names = list(dict.fromkeys(ORGANS))
    sums = np.array([exact[[o == name for o in ORGANS]].sum() for name in names])
    index, organ = int(exact.argmax()), int(sums.argmax())
    return Prediction(
        path=path,
        label=CLASSES[index],
        index=index,
        probability=float(found[index]),
        probabilities=tuple(map(float, found)),
        organ=names[organ],
        organ_probability=float(np.float32(sums[organ])),
        warnings=tuple(warnings),
        plausibility=None if plausibility is None else float(np.float32(plausibility)),
        orientation=orientation,
    )


def format_of(name, top=None, by_organ=False, least=None, **options):
    return FORMATS[name](RowOptions(CLASSES, ORGANS, top, by_organ, least, **options))


def row_of(row_format, result):
    """The row of a prediction or a failure."""
    return (
        row_format.failure(result) if isinstance(result, ImageFailure) else row_format.row(result)
    )


predictions = st.builds(
    prediction,
    weights,
    path=texts.filter(bool),
    warnings=st.lists(texts.filter(bool), max_size=2),
    plausibility=st.floats(0, 1, width=32),
    orientation=st.sampled_from(["as required", "left-right flipped", "no organ crop"]),
)
failures = st.builds(ImageFailure, texts.filter(bool), texts.filter(bool))


# What is written.


@quick
@given(results=st.lists(predictions | failures, max_size=5), top=st.sampled_from([None, 2]))
def test_json_is_one_array_of_the_objects_of_jsonl(results, top):
    one, lines = format_of("json", top), format_of("jsonl", top)
    rows = [row_of(one, result) for result in results]
    assert all(row.count("\n") == 1 and row.endswith("\n") for row in rows)
    assert json.loads(one.header + "".join(rows) + one.footer) == [
        json.loads(row_of(lines, result)) for result in results
    ]
    assert (one.has_warnings, one.lists_organs, lines.header, lines.footer) == (True, False, "", "")


@quick
@given(results=st.lists(predictions | failures, max_size=5), more=st.booleans())
def test_csv_reads_back_as_the_predictions_in_every_column(results, more):
    # a threshold below every float32 number marks nothing
    csv_format = format_of("csv", has_plausibility=more, min_plausibility=1e-300 if more else None)
    text = csv_format.header + "".join(row_of(csv_format, result) for result in results)
    names, *rows = csv.reader(io.StringIO(text, newline=""))
    # the last ones, so that those of models without it keep their places
    assert names == COLUMNS + CLASSES + ["plausibility", "orientation"] * more
    assert len(rows) == len(results)
    for cells, result in zip(rows, results, strict=True):
        found = dict(zip(names, cells, strict=True))
        if isinstance(result, ImageFailure):
            assert found == dict.fromkeys(names, "") | {"path": result.path, "error": result.error}
            continue
        assert (found["path"], found["label"], found["organ"], found["error"]) == (
            result.path, result.label, result.organ, "",
        )  # fmt: skip
        assert found["warnings"] == "; ".join(result.warnings)
        assert np.float32(found["probability"]) == np.float32(result.probability)
        assert np.float32(found["organ_probability"]) == np.float32(result.organ_probability)
        assert [np.float32(found[name]) for name in CLASSES] == [
            np.float32(p) for p in result.probabilities
        ]
        if more:
            assert np.float32(found["plausibility"]) == np.float32(result.plausibility)
            assert found["orientation"] == result.orientation


@quick
@given(
    results=st.lists(predictions | failures, max_size=5),
    top=st.none() | st.integers(1, 11),
    more=st.booleans(),
)
def test_jsonl_reads_back_as_the_predictions_in_every_key(results, top, more):
    jsonl = format_of("jsonl", top, has_plausibility=more)
    lines = [row_of(jsonl, result) for result in results]
    assert jsonl.header == "" and all(
        line.count("\n") == 1 and line.endswith("\n") for line in lines
    )
    for line, result in zip(lines, results, strict=True):
        found = json.loads(line)
        if isinstance(result, ImageFailure):
            assert found == {"path": result.path, "error": result.error}
            continue
        listed = found.pop("top", None)
        assert found.keys() == {*Prediction.__slots__} - (
            set() if more else {"plausibility", "orientation"}
        )
        if more:
            assert np.float32(found["plausibility"]) == np.float32(result.plausibility)
            assert found["orientation"] == result.orientation
        for key in ("path", "label", "index", "organ"):
            assert found[key] == getattr(result, key)
        for key in ("probability", "organ_probability"):
            assert np.float32(found[key]) == np.float32(getattr(result, key))
        assert list(found["probabilities"]) == CLASSES and found["warnings"] == list(
            result.warnings
        )
        assert [np.float32(p) for p in found["probabilities"].values()] == [
            np.float32(p) for p in result.probabilities
        ]
        if top is None:
            assert listed is None
        else:
            assert listed[0] == {"label": result.label, "probability": found["probability"]}
            assert [pair["probability"] for pair in listed] == sorted(
                found["probabilities"].values(), reverse=True
            )[:top]
            assert all(
                found["probabilities"][pair["label"]] == pair["probability"] for pair in listed
            )
            assert len({pair["label"] for pair in listed}) == top


@quick
@given(
    result=predictions, top=st.none() | st.integers(1, 11), least=st.none() | st.integers(1, 1000)
)
def test_text_is_the_likeliest_labels_then_the_path(result, top, least):
    least = least and least / 1000
    line = format_of("text", top, least=least).row(result)
    count = top or 1
    width = max(map(len, CLASSES))  # `uncertain` is shorter than the longest of them
    pairs, path = line[: (width + 7) * count - 1], line[(width + 7) * count - 1 :]
    shown = [pairs[i : i + width + 6] for i in range(0, len(pairs), width + 7)]
    assert path == f" {escape_path(result.path, one_line=True)}\n" and line.count("\n") == 1
    assert len(shown) == count
    ranked = sorted(result.probabilities, reverse=True)[:count]
    assert [pair[width:] for pair in shown] == [f" {p:.3f}" for p in ranked]
    unsure = least is not None and np.float32(result.probability) < np.float32(least)
    assert shown[0][:width].rstrip() == ("uncertain" if unsure else result.label)
    for pair in shown[1:]:
        at = CLASSES.index(pair[:width].rstrip())
        assert f" {result.probabilities[at]:.3f}" == pair[width:]


@quick
@given(result=predictions, top=st.integers(1, 8))
def test_text_with_organs_has_the_sums_of_both_sides(result, top):
    line = format_of("text", top, by_organ=True).row(result)
    words = line.removesuffix(f" {escape_path(result.path, one_line=True)}\n").split()
    found = dict(zip(words[::2], words[1::2], strict=True))
    sums = {
        name: sum(p for p, organ in zip(result.probabilities, ORGANS, strict=True) if organ == name)
        for name in ORGANS
    }
    assert len(found) == top and next(iter(found)) == result.organ
    for name, number in found.items():
        assert float(number) == pytest.approx(sums[name], abs=6e-4)
    assert sorted(map(float, found.values()), reverse=True) == list(map(float, found.values()))
    assert min(map(float, found.values())) >= sorted(sums.values())[-top] - 6e-4


@pytest.mark.parametrize("top", range(1, 12))
def test_top_lists_as_many_classes_as_asked_for(top):
    result = prediction(range(1, 12))
    expected = CLASSES[::-1][:top]
    assert format_of("text", top).row(result).split()[:-1:2] == expected
    assert [
        pair["label"] for pair in json.loads(format_of("jsonl", top).row(result))["top"]
    ] == expected


def test_of_equal_classes_the_label_stands_first_and_then_the_earlier_ones():
    tied = prediction([0, 5, 0, 5, 0, 0, 0, 5, 0, 1, 0])
    for index in (1, 3, 7):
        result = Prediction(
            "a", CLASSES[index], index, tied.probability, tied.probabilities, "x", 0.5
        )
        row = json.loads(format_of("jsonl", 5).row(result))
        others = [i for i in (1, 3, 7) if i != index]
        assert [pair["label"] for pair in row["top"]] == [
            CLASSES[i] for i in (index, *others, 9, 0)
        ]


def test_a_failure_has_no_line_in_text():
    assert format_of("text").failure(ImageFailure("a", "b")) == format_of("text").header == ""


def test_a_slice_without_a_path_has_an_empty_one():
    result = prediction([1] * 11, path=None)
    assert format_of("csv").row(result).startswith(",bladder,")
    assert json.loads(format_of("jsonl").row(result))["path"] is None
    assert format_of("text").row(result) == f"{'bladder':<12} 0.091 \n"


def test_nine_digits_name_every_float32():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 0x3F80_0001, 20_000, dtype=np.uint32).view(np.float32)
    assert all(np.float32(formats._nine_digits(float(value))) == value for value in values)
    assert formats._nine_digits(float(np.float32(0.1))) == 0.100000001


def test_a_name_that_is_not_utf8_is_escaped_and_no_other():
    jsonl, table = format_of("jsonl"), format_of("csv")
    odd, plain = ImageFailure("\udcff", "ä\udcfe"), ImageFailure("ö", "ä")
    assert jsonl.failure(odd) == '{"path": "\\\\xff", "error": "ä\\\\xfe"}\n'
    assert jsonl.failure(plain) == '{"path": "ö", "error": "ä"}\n'
    assert table.failure(odd).startswith("\\xff,,,,,,ä\\xfe,")
    warned = prediction(range(1, 12), path="\udcff", warnings=["w\udcfd"])
    assert json.loads(jsonl.row(warned))["warnings"] == ["w\\xfd"]
    assert table.row(warned).startswith("\\xff,") and ",w\\xfd,," in table.row(warned)
    assert format_of("text").row(warned).endswith(" \\xff\n")


# Where it is written.


def test_a_write_that_takes_a_part_at_a_time_loses_nothing(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))
    writer = Writer(str(tmp_path / "out"))
    writer.write("heart\n")
    writer.write("ä\n")
    assert not (tmp_path / "out").exists() and not writer.busy
    writer.finish()
    assert (tmp_path / "out").read_bytes() == b"heart\n\xc3\xa4\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


FULL = {errno.ENOSPC: True, errno.EDQUOT: True, errno.EFBIG: True, errno.EIO: False}


@pytest.mark.parametrize("number", FULL)
def test_a_write_that_fails_leaves_whole_lines_and_tells_where(tmp_path, monkeypatch, number):
    out, real = tmp_path / "out", os.write
    writer = Writer(str(out))
    writer.write("heart\nliver\n")
    assert writer.partial_note() == f"; results so far are in {out}.partial"

    def half(descriptor, data):
        assert writer.busy
        if len(data) < 4:
            raise OSError(number, os.strerror(number))
        return real(descriptor, data[:4])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OutputError) as told:
        writer.write("spleen\n")
    kept = f"; results so far are in {out}.partial" if FULL[number] else ""
    assert str(told.value) == f"--output {out}: cannot be written ({os.strerror(number)}){kept}"
    assert (tmp_path / "out.partial").read_text() == "heart\nliver\n" and not writer.busy
    writer.discard()  # something was done
    assert (tmp_path / "out.partial").exists()


def test_a_disk_that_is_full_at_the_first_write_leaves_no_partial_file_to_name(
    tmp_path, monkeypatch
):
    writer = Writer(str(tmp_path / "out"))

    def full(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)$"):
        writer.write("heart\n")
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_wrote_nothing_goes_away_and_keeps_nothing(tmp_path):
    writer = Writer(str(tmp_path / "out"))
    assert writer.partial_note() == ""
    writer.discard()
    assert list(tmp_path.iterdir()) == []
    writer.discard()


def test_standard_output_is_written_at_once_and_never_renamed_or_taken_away(capfd, monkeypatch):
    writer = Writer(None)
    writer.discard()
    writer.write("heart\n")
    assert capfd.readouterr().out == "heart\n"
    writer.finish()
    writer.discard()
    assert writer.partial_note() == ""
    writer.write("still open\n")
    assert capfd.readouterr().out == "still open\n"

    def refuse(number):
        def write(*_):
            raise OSError(number, os.strerror(number))

        return write

    monkeypatch.setattr(os, "write", refuse(errno.EPIPE))
    with pytest.raises(ClosedPipe):
        writer.write("x\n")
    monkeypatch.setattr(os, "write", refuse(errno.ENOSPC))
    with pytest.raises(OutputError) as told:
        writer.write("x\n")
    assert str(told.value) == "standard output: cannot be written (No space left on device)"


def test_an_output_that_cannot_be_opened_or_named_is_told(tmp_path):
    for name, words in {
        str(tmp_path / "none" / "out"): "cannot be written (No such file or directory)",
        "a\0b": "cannot be written (NUL in the name)",
        str(tmp_path): "exists and is not a regular file; choose another path",
    }.items():
        with pytest.raises(OutputError) as told:
            Writer(name)
        assert str(told.value) == f"--output {escape_path(name, one_line=True)}: {words}"
    writer = Writer(str(tmp_path / "out"))
    writer.write("heart\n")
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match=r"out: cannot be written \(Is a directory\)$"):
        writer.finish()
    assert (tmp_path / "out.partial").read_text() == "heart\n"


def test_what_is_finished_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """The file is flushed, then renamed, then its folder is flushed and closed."""
    done, before = [], len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os,
        "fsync",
        lambda d: (done.append("folder" if os.path.isdir(f"/dev/fd/{d}") else "file"), fsync(d)),
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("named"), replace(a, b)))
    writer = Writer(str(tmp_path / "out"))
    writer.write("heart\n")
    writer.finish()
    assert done == ["file", "named", "folder"]
    assert before is None or len(os.listdir("/proc/self/fd")) == before


def test_a_new_file_has_the_rights_that_the_umask_leaves(tmp_path):
    before = os.umask(0o026)
    try:
        writer = Writer(str(tmp_path / "out"))
        writer.finish()
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640


def test_what_an_earlier_run_left_in_the_partial_file_is_gone(tmp_path):
    (tmp_path / "out.partial").write_text("old and longer\n")
    writer = Writer(str(tmp_path / "out"))
    writer.write("new\n")
    writer.finish()
    assert (tmp_path / "out").read_text() == "new\n"

"""Parquet of both commands: the values of JSON lines, typed, in a file that appears whole."""

import json
import os
import signal
import sys
from types import ModuleType

import numpy as np
import pytest
from conftest import CLASSES, constant_graph, write_bundle
from support.dict_mask import DictMask, block
from support.image_files import saved

from organ_infer.cli import formats, main, parquet
from organ_infer.cli.arguments import UsageError, parse
from organ_infer.cli.volume_arguments import parse_volume
from organ_infer.errors import InputError
from organ_infer.volumes.types import Volume

SHAPE = (40, 40, 30)
ORGANS = {
    "liver": block(SHAPE, (5, 30), (5, 25), (5, 15)),
    "kidney-left": block(SHAPE, (0, 9), (20, 35), (20, 25)),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    graph = constant_graph({"kidney-right": 0.75, "liver": 0.25})
    return str(write_bundle(tmp_path_factory.mktemp("bundle") / "kidney", {"a.onnx": graph}))


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Three arguments, one of which is no image."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(4).integers(0, 256, (3, 30, 40), np.uint8)
    (tmp_path / "a.png").write_bytes(saved(pixels[0]))
    (tmp_path / "caf\udce9.png").write_bytes(saved(pixels[1] // 100))
    (tmp_path / "bad.png").write_bytes(b"no image")
    return ["a.png", "bad.png", "caf\udce9.png"]


@pytest.fixture
def scan(monkeypatch):
    """Arguments for a scan and a mask from a fake reader."""
    module = ModuleType("organ_infer.volumes.reading")
    hu = np.random.default_rng(2).integers(-200, 300, SHAPE, np.int16)
    module.open_volume = lambda path, series: Volume(hu, np.diag([1.0, 1, 2.5, 1]), path)
    module.open_mask = lambda path, **_: DictMask(ORGANS, structures={"liver": ("5", "6")})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return ["volume", "scan.nii.gz", "--mask", "mask.nii.gz"]


def table(path):
    return pytest.importorskip("pyarrow.parquet").read_table(path)


def kinds(path):
    schema = table(path).schema
    return {name: str(kind) for name, kind in zip(schema.names, schema.types, strict=True)}


PROBABILITIES = dict.fromkeys(CLASSES, "float")


def test_the_rows_of_images_are_those_of_json_lines(images, bundle, tmp_path, capfd, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(parquet, "GROUP", 2)
    assert main([*images, "--bundle", bundle, "-o", "rows.parquet"]) == 1
    assert main([*images, "--bundle", bundle, "--format", "jsonl"]) == 1
    lines = list(map(json.loads, capfd.readouterr().out.splitlines()))
    rows = table("rows.parquet").to_pylist()
    assert [row["path"] for row in rows] == ["a.png", "bad.png", r"caf\xe9.png"]
    for row, line in zip(rows, lines, strict=True):
        if "error" in line:
            assert row == dict.fromkeys(row) | {"warnings": []} | line
            continue
        expected = {**line, "error": None, **line.pop("probabilities")}
        expected.pop("probabilities")
        assert row == {
            name: pytest.approx(value, rel=1e-7) if isinstance(value, float) else value
            for name, value in expected.items()
        }
    assert rows[2]["warnings"] and not [name for name in os.listdir() if "partial" in name]
    assert kinds("rows.parquet") == {
        **{"path": "string", "label": "string", "index": "int32", "probability": "float"},
        **{"organ": "string", "organ_probability": "float"},
        **{"warnings": "list<element: string>", "error": "string"},
        **PROBABILITIES,
    }


def test_the_rows_of_a_volume_are_those_of_json_lines(scan, bundle, tmp_path, capfd):
    pytest.importorskip("pyarrow")
    output = str(tmp_path / "rows.pq")
    assert main([*scan, "--bundle", bundle, "-o", output]) == 0
    assert main([*scan, "--bundle", bundle, "--format", "jsonl"]) == 0
    lines = list(map(json.loads, capfd.readouterr().out.splitlines()))
    rows = table(output).to_pylist()
    assert len(rows) == 11
    for row, line in zip(rows, lines, strict=True):
        expected = {**dict.fromkeys(row), **line, **line.pop("probabilities")}
        expected.pop("probabilities")
        assert row == {
            name: pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
            for name, value in expected.items()
        }
    assert rows[0]["structure"] == ["5", "6"] and rows[0]["agrees"] is False
    assert kinds(output) == {
        **{"row": "string", "scan": "string", "structure": "list<element: string>"},
        **{"expected": "string", "view": "string"},
        **{"index": "int32", "position": "double", "label": "string", "probability": "float"},
        **{"slices": "int32", "organ_label": "string", "organ_probability": "float"},
        **{"agrees": "bool", "only_side_differs": "bool", "warnings": "list<element: string>"},
        **PROBABILITIES,
    }


def test_uncertain_labels_are_replaced_as_in_the_other_formats(images, bundle):
    pytest.importorskip("pyarrow")
    common = ["a.png", "--bundle", bundle, "-o", "r.parquet", "-q", "--force"]
    assert main([*common, "--min-probability", "0.9"]) == 0
    (row,) = table("r.parquet").to_pylist()
    assert (row["label"], row["organ"]) == ("uncertain", "kidney")


def test_an_existing_parquet_file_is_replaced_and_no_other_binary_file(
    images, bundle, tmp_path, capfd
):
    pytest.importorskip("pyarrow")
    arguments = ["a.png", "--bundle", bundle, "-o", "rows.parquet"]
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert "rows.parquet: exists and will be replaced" in capfd.readouterr().err
    assert main([*arguments, "--format", "csv"]) == 2
    assert "another binary file" in capfd.readouterr().err
    (tmp_path / "rows.parquet").write_bytes(b"\0\1")
    assert main(arguments) == 2
    assert (tmp_path / "rows.parquet").read_bytes() == b"\0\1"


def test_a_signal_leaves_no_file(images, bundle, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    original = formats.ParquetFormat.row

    def row(self, prediction):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, prediction)

    monkeypatch.setattr(formats.ParquetFormat, "row", row)
    assert main([*images, "--bundle", bundle, "-o", "rows.parquet"]) == 143
    assert not [name for name in os.listdir(tmp_path) if "rows" in name]


@pytest.mark.parametrize("suffix", ["parquet", "PARQUET", "pq"])
def test_the_suffix_chooses_parquet(suffix):
    assert parse(["x", "-o", f"rows.{suffix}"]).format == "parquet"
    assert parse_volume(["x", "--mask", "m", "-o", f"rows.{suffix}"]).format == "parquet"


def test_standard_output_is_refused():
    words = "--format parquet: not written to standard output; pass --output FILE"
    with pytest.raises(UsageError, match=words):
        parse(["x", "--format", "parquet"])
    with pytest.raises(UsageError, match=words):
        parse_volume(["x", "--mask", "m", "--format", "Parquet"])


def test_without_pyarrow_one_line_names_the_extra(
    images, scan, bundle, tmp_path, monkeypatch, capfd
):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for arguments in (images, scan):
        assert main([*arguments, "--bundle", bundle, "-o", "rows.parquet"]) == 2
        out, err = capfd.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert "pyarrow is not installed; pip install 'organ-infer[parquet]'" in err
    assert not [name for name in os.listdir(tmp_path) if "rows" in name]


def test_a_class_may_not_have_the_name_of_a_column():
    pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match="class 'label': this is the name of another column"):
        parquet.ParquetTable({"label": "text"}, ("liver", "label"))

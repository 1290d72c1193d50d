"""Ray Data: rows of a batch, what is refused, and a local cluster of two workers of which one is killed."""

import importlib.util
import json
import os
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import CLASSES, make_graph, write_bundle
from test_imports import loaded

import organ_infer.ray as beyond
from organ_infer import BundleError, InputError, OrganInferError

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None,
    reason="ray is not installed: pip install -e '.[ray]'",
)
FOUND = ("label", "index", "probability", "organ", "organ_probability")


# Without a cluster.


def test_nothing_imports_ray_before_it_is_needed():
    assert loaded("import organ_infer, organ_infer.ray", ["ray", "pyarrow", "torch"]) == []


def test_a_missing_ray_is_one_line(pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(
        OrganInferError, match=r"^ray cannot be loaded \(.*\): pip install 'organ-infer\[ray\]'$"
    ):
        beyond.classify(pictures, tmp_path / "rows")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options, words",
    [
        ({"format": "csv"}, "format: one of parquet, jsonl expected, found 'csv'"),
        ({"workers": 0}, "workers: a number of at least 1 expected, found 0"),
        ({"workers": 2.5}, "workers: a whole number expected, found 2.5"),
        ({"workers": float("inf")}, "workers: a whole number expected, found inf"),
        ({"num_gpus": -1}, "num_gpus: a number of at least 0 expected, found -1"),
        ({"out": "s3://rows"}, "out: a directory expected, found 's3://rows'"),
        ({"paths": []}, "paths: no image in it"),
        ({"paths": "no-such-file"}, "no-such-file: cannot be read"),
        ({"paths": "one.png"}, r"found one image: pass \['one.png'\]"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, words, pictures, tmp_path):
    with pytest.raises(InputError, match=words):
        beyond.classify(**{"paths": pictures, "out": tmp_path / "rows"} | options)


def test_a_directory_with_something_in_it_is_refused(pictures, tmp_path):
    (tmp_path / "old").write_text("kept")
    with pytest.raises(InputError, match="not empty; name a directory that is not there yet"):
        beyond.classify(pictures, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_list_and_a_directory_name_the_same_images(pictures, tmp_path):
    names = sorted(str(path) for path in pictures.iterdir())
    (tmp_path / "list").write_text("\n".join(names) + "\r\n\n")
    assert beyond._names(pictures) == beyond._names(tmp_path / "list") == beyond._names(names) == names


def test_a_cluster_that_starts_here_reports_to_no_one(monkeypatch):
    seen = []
    ray = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda: seen.append(os.environ.get(beyond.USAGE_VARIABLE)),
        shutdown=lambda: seen.append("ended"),
    )
    monkeypatch.delenv(beyond.USAGE_VARIABLE, raising=False)
    with beyond._cluster(ray):
        assert beyond.USAGE_VARIABLE not in os.environ
    monkeypatch.setenv(beyond.USAGE_VARIABLE, "1")
    with beyond._cluster(ray):
        pass
    assert seen == ["0", "ended", "1", "ended"] and os.environ[beyond.USAGE_VARIABLE] == "1"


def test_the_output_goes_away_where_it_is_not_finished(tmp_path):
    with pytest.raises(KeyboardInterrupt), beyond._appearing(tmp_path / "deep" / "rows") as building:
        (building / "part").write_text("half")
        raise KeyboardInterrupt
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_workers_first_error_is_what_is_told():
    traced = "ray::x\n  File 1\n{}\n\nThe above\nray.exceptions.UserCodeException: failed\nValueError: last"
    told = {
        "organ_infer.errors.DeviceError: it broke: buy one": "it broke: buy one",
        "OSError: [Errno 28] No space left": "OSError: [Errno 28] No space left",
    }
    for line, said in told.items():
        assert beyond._reason(Exception(traced.format(line))) == said
    assert beyond._reason(Exception("The actor\ndied.")) == "The actor died."


@needs_ray
def test_a_batch_becomes_rows(bundle, pictures, classifier):
    names = ["s00.png", b"s01.png", "missing.png", os.fsdecode(b"odd\xff.png")]
    table = beyond.Classify(bundle, base=pictures, threads=1)({"path": np.array(names, object)})
    assert table.column_names == [*beyond.COLUMNS, *CLASSES]
    first, second, missing, odd = table.to_pylist()
    (expected,) = classifier.predict_paths([pictures / "s00.png"])
    assert [row["path"] for row in (first, second, missing, odd)] == [
        *("s00.png", "s01.png", "missing.png", "odd\\udcff.png")
    ]
    assert [first[key] for key in FOUND] == [
        pytest.approx(getattr(expected, key), rel=1e-5) if "prob" in key else getattr(expected, key)
        for key in FOUND
    ]
    assert [first[name] for name in CLASSES] == pytest.approx(expected.probabilities, rel=1e-5)
    assert first["warnings"] == [] and first["error"] is None
    assert missing["error"] == "no such file" and missing["warnings"] == []
    assert all(missing[name] is None for name in (*FOUND, *CLASSES))


@needs_ray
def test_a_file_of_many_slices_has_a_row_each(bundle, slices, tmp_path):
    np.save(tmp_path / "three.npy", slices[:3])
    np.save(tmp_path / "one.npy", slices[3])
    names = ["one.npy", "three.npy", "three.npy#1", "one.npy", "one.npy"]
    table = beyond.Classify(bundle, base=tmp_path, threads=1)({"path": np.array(names)})
    assert table["path"].to_pylist() == [
        *("one.npy", "three.npy#0", "three.npy#1", "three.npy#2", "three.npy#1", "one.npy", "one.npy")
    ]


@needs_ray
def test_a_class_named_as_a_column_is_refused(pictures, tmp_path):
    def change(manifest):
        manifest["task"] = manifest["task"] | {"classes": ["label", *CLASSES[1:]]}

    model = write_bundle(tmp_path / "bundle", {"small.onnx": make_graph()}, change=change)
    with pytest.raises(BundleError, match="a class is named 'label'"):
        beyond.classify(pictures, tmp_path / "rows", bundle=model)


# On a cluster.


@pytest.fixture(scope="module")
def cluster():
    """A local cluster of two CPUs that this process is connected to."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(beyond.USAGE_VARIABLE, "0")
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    yield ray
    ray.shutdown()


@needs_ray
def test_a_killed_worker_loses_no_row_and_doubles_none(
    cluster, bundle, pictures, tmp_path, classifier, monkeypatch
):
    pandas = pytest.importorskip("pandas")
    many = tmp_path / "many"
    many.mkdir()
    for i in range(400):
        shutil.copy(pictures / f"s{i % 40:02}.png", many / f"{i:03}.png")
    (many / "123.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    notes, marks = tmp_path / "workers", tmp_path / "killed"
    notes.mkdir()

    class Mortal(beyond.Classify):  # local to the test, so Ray sends it by value: workers do not import tests
        def __init__(self, *given, **options):
            super().__init__(*given, **options)
            (notes / str(os.getpid())).touch()
            self.batches = 0

        def __call__(self, batch):
            rows = super().__call__(batch)
            self.batches += 1
            if self.batches == 2:  # the first worker to finish a second batch dies before it can hand it over
                try:
                    marks.touch(exist_ok=False)
                except FileExistsError:
                    return rows
                os.kill(os.getpid(), 9)
            return rows

    monkeypatch.setattr(beyond, "Classify", Mortal)
    monkeypatch.chdir(many)
    names = sorted(path.name for path in many.iterdir())
    out = tmp_path / "rows"
    beyond.classify(names, out, bundle=bundle, workers=2)

    assert (
        marks.exists() and len(list(notes.iterdir())) == 3
    )  # two workers, and the one that took the dead one's place
    assert not list(tmp_path.glob(".*")) and {path.suffix for path in out.iterdir()} == {".parquet"}
    rows = pandas.read_parquet(out).sort_values("path", ignore_index=True)
    assert list(rows.path) == names
    assert list(rows.path[rows.error.notna()]) == ["123.png"]
    good = rows[rows.error.isna()]
    expected = [p for p in classifier.predict_paths(names) if hasattr(p, "label")]
    assert list(good.label) == [p.label for p in expected]
    np.testing.assert_allclose(good[CLASSES], [p.probabilities for p in expected], rtol=1e-4, atol=1e-6)


@needs_ray
def test_an_image_that_kills_every_worker_ends_the_run(cluster, bundle, pictures, tmp_path, monkeypatch):
    deaths = tmp_path / "deaths"
    deaths.mkdir()

    class Mortal(beyond.Classify):
        def __call__(self, batch):
            if b"killer.png" in list(batch["path"]):
                (deaths / str(os.getpid())).touch()
                os.kill(os.getpid(), 9)
            return super().__call__(batch)

    monkeypatch.setattr(beyond, "Classify", Mortal)
    monkeypatch.setattr(beyond, "RETRIES", 2)
    names = [*sorted(map(str, pictures.iterdir()))[:8], "killer.png"]
    with pytest.raises(OrganInferError, match=r"^a worker died 3 times over the same 3 images or") as caught:
        beyond.classify(names, tmp_path / "rows", bundle=bundle, workers=1)
    assert len(list(deaths.iterdir())) == 3 and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["deaths"]


@needs_ray
def test_json_lines_are_the_commands_and_an_error(cluster, bundle, pictures, tmp_path, command):
    names = [*sorted(map(str, pictures.iterdir()))[:3], "missing.png"]
    (tmp_path / "rows").mkdir()  # empty, so it may be taken
    beyond.classify(names, tmp_path / "rows", bundle=bundle, workers=1, format="jsonl", orientation="PL")
    text = "".join(path.read_text() for path in (tmp_path / "rows").glob("*.jsonl"))
    rows = sorted(map(json.loads, text.splitlines()), key=lambda row: names.index(row["path"]))
    asked = command("--threads", "1", "--format", "jsonl", "--orientation", "PL", *names).stdout.splitlines()
    for row, line in zip(rows[:3], map(json.loads, asked[:3]), strict=True):
        assert list(row) == [*line, "error"] and row.pop("error") is None
        for key in ("probability", "organ_probability", "probabilities"):
            assert row.pop(key) == pytest.approx(line.pop(key), rel=1e-5)
        assert row == line
    assert rows[3]["error"] == "no such file" and rows[3]["label"] is rows[3]["probabilities"] is None


@needs_ray
def test_a_network_that_fails_ends_the_run_in_one_line(cluster, pictures, tmp_path):
    def broken(model):
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
        bias.raw_data = np.full(11, np.nan, np.float32).tobytes()

    model = write_bundle(tmp_path / "bundle", {"small.onnx": make_graph(change=broken)})
    with pytest.raises(OrganInferError, match=r"^Ray could not classify them all: .*not finite") as caught:
        beyond.classify(pictures, tmp_path / "rows", bundle=model, workers=1)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]

"""Ray Data: rows of a batch, what is refused, and a local cluster of two workers of which one is killed."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import CLASSES, make_graph, write_bundle
from support.orientation_graphs import orientation_bundle
from test_imports import loaded

import organ_infer.ray as beyond
from organ_infer import BundleError, InputError, OrganClassifier, OrganInferError

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None,
    reason="ray is not installed: pip install -e '.[ray]'",
)
FOUND = ("label", "index", "probability", "organ", "organ_probability")


# Without a cluster.


def test_nothing_imports_ray_before_it_is_needed():
    assert loaded("import organ_infer, organ_infer.ray", ["ray", "pyarrow", "torch"]) == []


def test_the_former_name_of_the_batch_class_works():
    assert beyond.Classify is beyond.ClassifyBatch


def test_a_missing_ray_is_one_line(pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(
        OrganInferError, match=r"^ray cannot be loaded \(.*\); pip install 'organ-infer\[ray\]'$"
    ):
        beyond.classify(pictures, tmp_path / "rows")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options, words",
    [
        ({"format": "csv"}, "format: expected one of parquet, jsonl, found 'csv'"),
        ({"workers": 0}, "workers: expected a number of at least 1, found 0"),
        ({"workers": 2.5}, "workers: expected a whole number, found 2.5"),
        ({"workers": float("inf")}, "workers: expected a whole number, found inf"),
        ({"num_gpus": -1}, "num_gpus: expected a number of at least 0, found -1"),
        ({"out": "s3://rows"}, "out: expected a directory, found 's3://rows'"),
        ({"paths": []}, "paths: contains no images"),
        ({"paths": "no-such-file"}, "no-such-file: cannot be read"),
        ({"paths": "one.png"}, r"found one image; pass \['one.png'\]"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, words, pictures, tmp_path):
    with pytest.raises(InputError, match=words):
        beyond.classify(**{"paths": pictures, "out": tmp_path / "rows"} | options)


def test_a_directory_with_something_in_it_is_refused(pictures, tmp_path):
    (tmp_path / "old").write_text("kept")
    with pytest.raises(InputError, match="not empty; pass a directory that does not exist"):
        beyond.classify(pictures, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_list_and_a_directory_name_the_same_images(pictures, tmp_path):
    names = sorted(str(path) for path in pictures.iterdir())
    (tmp_path / "list").write_text("\n".join(names) + "\r\n\n")
    assert (
        beyond._image_paths(pictures)
        == beyond._image_paths(tmp_path / "list")
        == beyond._image_paths(names)
        == names
    )


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


# the frame SETTINGS of HTTP/2, which is how a server of gRPC begins
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@contextlib.contextmanager
def server(*answer):
    """The port of a server that reads the greeting, sends pieces of an answer, and closes; or stays silent."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        done = threading.Event()

        def serve():
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 10)
                for piece in answer:
                    connection.sendall(piece)
                if not answer:
                    done.wait(60)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            done.set()
            thread.join(60)


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def test_a_dead_address_is_refused_before_ray_is_asked(monkeypatch):
    ray = SimpleNamespace(is_initialized=lambda: False, init=lambda: pytest.fail("Ray was asked"))
    for form in ("127.0.0.1:{}", "ray://127.0.0.1:{}"):
        address = form.format(closed_port())
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(OrganInferError) as told, beyond._cluster(ray):
            pass
        assert str(told.value) == (
            f"RAY_ADDRESS={address}: no Ray cluster is there ([Errno 111] Connection refused);"
            " start one, correct RAY_ADDRESS, or unset it to run on this machine"
        )


def test_a_connected_cluster_is_used_whatever_the_address_is(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port()}")
    with beyond._cluster(SimpleNamespace(is_initialized=lambda: True)):
        pass


@pytest.mark.parametrize(
    "answer, reason",
    [
        ((), "no answer in 0.5 s"),
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), "another program answers"),
        ((b"\0",), "another program answers"),
        ((b"",), "another program answers"),
    ],
)
def test_what_does_not_answer_as_ray_does_is_refused_in_time(answer, reason, monkeypatch):
    monkeypatch.setattr(beyond, "ANSWER_SECONDS", 0.5)
    with server(*answer) as port, pytest.raises(OrganInferError, match=re.escape(f"({reason});")):
        beyond._check_address(f"127.0.0.1:{port}")


@pytest.mark.parametrize("pieces", [(SETTINGS,), (SETTINGS[:2], SETTINGS[2:])])
def test_what_answers_as_ray_does_is_left_to_ray(pieces):
    with server(*pieces) as port:
        beyond._check_address(f"127.0.0.1:{port}")


def test_an_encrypted_cluster_is_only_connected_to(monkeypatch):
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with server(b"TLS") as port:
        beyond._check_address(f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["", "auto", "local", "host", "http://host:1", "a:b:c"])
def test_addresses_without_a_port_are_left_to_ray(address, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    beyond._check_address(address)


@pytest.mark.parametrize(
    "address, place",
    [
        ("host:6379", ("host", 6379)),
        ("ray://host", ("host", 10001)),
        ("ray://[::1]:7", ("::1", 7)),
        ("[::1]:7", ("::1", 7)),
    ],
)
def test_the_place_in_an_address(address, place, monkeypatch):
    def refuse(where, timeout):
        assert where == place and timeout == beyond.ANSWER_SECONDS
        raise OSError("unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(OrganInferError, match=r"\(unreachable\)"):
        beyond._check_address(address)


def test_a_port_that_cannot_be_is_one_line():
    with pytest.raises(OrganInferError, match=r"^RAY_ADDRESS=127.0.0.1:99999: no Ray cluster"):
        beyond._check_address("127.0.0.1:99999")


def test_the_output_goes_away_where_it_is_not_finished(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        beyond._complete_directory(tmp_path / "deep" / "rows") as building,
    ):
        (building / "part").write_text("half")
        raise KeyboardInterrupt
    assert not (tmp_path / "deep").exists()


def test_a_workers_first_error_is_what_is_told():
    traced = "ray::x\n  File 1\n{}\n\nThe above\nray.exceptions.UserCodeException: failed\nValueError: last"
    told = {
        "organ_infer.errors.DeviceError: it broke: buy one": "it broke: buy one",
        "OSError: [Errno 28] No space left": "OSError: [Errno 28] No space left",
    }
    for line, said in told.items():
        assert beyond._reason(Exception(traced.format(line))) == said
    assert beyond._reason(Exception("The actor\ndied.")) == "The actor died."


# Rows, with tables of plain Python in the place of pyarrow's.


class FakeArrow:
    """The few names that the rows need; a table is its rows and their schema."""

    binary, string, int32, float32 = (
        staticmethod(lambda name=name: name) for name in ("bytes", "text", "i4", "f4")
    )

    class Table:
        @staticmethod
        def from_pylist(rows, schema):
            names = [name for name, _ in schema]
            assert all(set(row) <= set(names) for row in rows)
            return [{name: row.get(name) for name in names} for row in rows]

    @staticmethod
    def list_(kind):
        return [kind]

    @staticmethod
    def schema(fields):
        return list(fields)

    @staticmethod
    def array(values, kind):
        return list(values)

    @staticmethod
    def table(columns):
        return FakeColumn(columns["path"])


class FakeColumn(list):
    def slice(self, start, length):
        return self[start : start + length]


@pytest.fixture
def arrow(monkeypatch):
    monkeypatch.setattr(beyond, "_arrow", lambda: FakeArrow)


def test_rows_stand_in_the_order_of_their_paths_with_a_row_a_slice(
    arrow, bundle, slices, pictures, tmp_path
):
    np.save(tmp_path / "three.npy", slices[:3])
    (tmp_path / "three.npy#9.png").write_bytes(
        b"no image"
    )  # a name that begins as the stack's own slices
    shutil.copy(pictures / "s03.png", tmp_path / "a.png")
    names = [
        "a.png",
        "three.npy",
        b"three.npy#1",
        "three.npy#9.png",
        "gone",
        "a.png",
        "a.png",
        "odd\udcff.png",
    ]
    with OrganClassifier(bundle, device="cpu", threads=1) as opened:
        expected = opened.predict(slices[[3, 0, 1, 2, 1, 3, 3]])
    found = beyond.ClassifyBatch(bundle, base=tmp_path, threads=1)(
        {"path": np.array(names, object)}
    )
    assert [row["path"] for row in found] == [
        *(
            "a.png",
            "three.npy#0",
            "three.npy#1",
            "three.npy#2",
            "three.npy#1",
            "three.npy#9.png",
            "gone",
        ),
        *("a.png", "a.png", "odd\\xff.png"),
    ]
    good = [row for row in found if row["error"] is None]
    for row, wanted in zip(good, expected, strict=True):
        assert [row[name] for name in CLASSES] == pytest.approx(wanted.probabilities, rel=1e-5)
        for key in FOUND:
            if "probability" in key:
                assert row[key] == pytest.approx(getattr(wanted, key), rel=1e-5)
            else:
                assert row[key] == getattr(wanted, key)
        assert row["warnings"] == list(wanted.warnings)
    for row in (row for row in found if row["error"] is not None):
        assert row["warnings"] == [] and {row[name] for name in (*FOUND, *CLASSES)} == {None}
    assert [row["error"] for row in found if row["error"]][1:] == ["no such file"] * 2


def test_the_columns_are_the_published_ones_then_a_column_a_class(arrow):
    assert beyond._schema(["x", "y"]) == [
        ("path", "text"), ("label", "text"), ("index", "i4"), ("probability", "f4"), ("organ", "text"),
        ("organ_probability", "f4"), ("warnings", ["text"]), ("error", "text"), ("x", "f4"), ("y", "f4"),
    ]  # fmt: skip
    for name in ("path", "error", "index"):
        with pytest.raises(
            BundleError, match=f"class {name!r}: this is the name of another column"
        ):
            beyond._schema(["x", name])


def test_the_columns_of_the_plausibility_are_the_last_ones(arrow):
    assert beyond._schema(["x", "y"], True) == [
        *beyond._schema(["x", "y"]),
        ("plausibility", "f4"),
        ("orientation", "text"),
    ]
    # a model without it may have a class of that name
    assert beyond._schema(["x", "orientation"])[-1] == ("orientation", "f4")
    for name in ("plausibility", "orientation"):
        with pytest.raises(
            BundleError, match=f"class {name!r}: this is the name of another column"
        ):
            beyond._schema(["x", name], True)


def test_a_line_of_json_ends_with_the_plausibility_of_models_that_give_it():
    third = float(np.float32(1 / 3))
    row = {"path": "a", "label": "x", "index": 0, "probability": 1.0, "organ": "x", "organ_probability": 1.0,
           "warnings": [], "error": None, "x": 1.0, "y": 0.0}  # fmt: skip
    more = {"plausibility": third, "orientation": "as required"}
    line = json.loads(beyond._json_line(row | more, ["x", "y"]))
    assert list(line)[-2:] == list(more)
    assert line == json.loads(beyond._json_line(row, ["x", "y"])) | {
        "plausibility": 0.333333343,
        "orientation": "as required",
    }
    failed = dict.fromkeys(row | more) | {"path": "a", "warnings": [], "error": "broken"}
    line = json.loads(beyond._json_line(failed, ["x", "y"]))
    assert line["plausibility"] is line["orientation"] is None
    # a class of that name is no column
    named = beyond._json_line({**row, "plausibility": 0.5}, ["x", "plausibility"])
    assert "plausibility" not in json.loads(named)
    assert json.loads(named)["probabilities"] == {"x": 1.0, "plausibility": 0.5}


def test_a_line_of_json_has_every_key_and_nine_digits():
    third = float(np.float32(1 / 3))
    row = {"path": "ä", "label": "x", "index": 0, "probability": third, "organ": "x", "organ_probability": 1.0,
           "warnings": ["w"], "error": None, "x": third, "y": 1e-30}  # fmt: skip
    line = beyond._json_line(row, ["x", "y"])
    assert (
        line.endswith(b"\n")
        and line.count(b"\n") == 1
        and "ä".encode() in line
        and b"0.333333343" in line
    )
    assert json.loads(line) == {
        "path": "ä", "label": "x", "index": 0, "probability": 0.333333343, "organ": "x", "organ_probability": 1.0,
        "probabilities": {"x": 0.333333343, "y": 1e-30}, "warnings": ["w"], "error": None,
    }  # fmt: skip
    failed = dict.fromkeys(row) | {"path": "a", "warnings": [], "error": "broken"}
    assert json.loads(beyond._json_line(failed, ["x", "y"])) == {
        "path": "a", "label": None, "index": None, "probability": None, "organ": None, "organ_probability": None,
        "probabilities": None, "warnings": [], "error": "broken",
    }  # fmt: skip


def test_paths_go_in_tasks_of_at_most_a_size(arrow):
    names = [f"{i}\udcff" for i in range(7)]
    for size, lengths in {1: [1] * 7, 3: [3, 3, 1], 7: [7], 8: [7]}.items():
        blocks = beyond._path_tables(names, size)
        assert [len(block) for block in blocks] == lengths
        assert [os.fsdecode(name) for block in blocks for name in block] == names


def test_an_output_may_be_there_only_as_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nothing")
    assert (
        beyond._output_directory("new") == tmp_path / "new"
        and beyond._output_directory("empty") == tmp_path / "empty"
    )
    for name in ("file", "link"):
        with pytest.raises(InputError, match="not empty; pass a directory that does not exist"):
            beyond._output_directory(name)


def test_the_output_appears_whole_in_place_of_an_empty_directory(tmp_path):
    target = tmp_path / "rows"
    for _ in range(2):
        with beyond._complete_directory(target) as building:
            assert building.parent == tmp_path and building.name.startswith(".rows.")
            assert building.stat().st_mode & 0o777 == 0o755
            (building / "part").write_text("whole")
            assert not target.exists() or not list(target.iterdir())
        assert (target / "part").read_text() == "whole" and [
            p.name for p in tmp_path.iterdir()
        ] == ["rows"]
        (target / "part").unlink()
    (target / "late").touch()  # something came there meanwhile
    with (
        pytest.raises(OrganInferError, match="rows: cannot be written"),
        beyond._complete_directory(target),
    ):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["rows", "late"]
    with (
        pytest.raises(InputError, match="cannot be written"),
        beyond._complete_directory(target / "late" / "rows"),
    ):
        pass


def test_every_file_is_on_the_disk_before_the_output_appears(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(
        os,
        "fsync",
        lambda number: done.append(os.path.basename(os.readlink(f"/proc/self/fd/{number}"))),
    )
    with beyond._complete_directory(tmp_path / "rows") as building:
        for name in ("a", "b"):
            (building / name).write_text(name)
    assert sorted(done) == ["a", "b"]


def test_files_hold_some_65_536_rows_and_are_written_beside_the_actors(monkeypatch):
    seen = []
    rows = SimpleNamespace(write_parquet=lambda *given, **options: seen.append((given, options)))
    beyond._write_parquet(rows, "there", CLASSES)
    assert seen == [(("there",), {"min_rows_per_file": 65_536, "ray_remote_args": {"num_cpus": 0}})]


def test_a_cluster_that_is_there_is_left_as_it_is_and_one_that_fails_is_told(monkeypatch):
    done = []
    there = SimpleNamespace(
        is_initialized=lambda: True, init=lambda: done.append(1), shutdown=lambda: done.append(2)
    )
    with beyond._cluster(there):
        pass
    assert done == []

    def fails():
        raise ConnectionError("no\nport")

    ray = SimpleNamespace(is_initialized=lambda: False, init=fails, shutdown=lambda: done.append(3))
    monkeypatch.delenv(beyond.USAGE_VARIABLE, raising=False)
    words = r"^no Ray cluster could be started or reached: no port$"
    with pytest.raises(OrganInferError, match=words), beyond._cluster(ray):
        raise AssertionError
    assert done == [] and beyond.USAGE_VARIABLE not in os.environ
    started = SimpleNamespace(
        is_initialized=lambda: False, init=lambda: None, shutdown=lambda: done.append(4)
    )
    with pytest.raises(ZeroDivisionError), beyond._cluster(started):
        raise ZeroDivisionError
    assert done == [4]


def test_a_list_and_a_directory_that_hold_nothing_or_cannot_be_read_are_told(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_bytes(b"a\r\n\n\xff\nb")
    assert beyond._image_paths(tmp_path / "list.txt") == ["a", "\udcff", "b"]
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "a.png").touch()
    assert beyond._image_paths(str(tmp_path / "folder.png")) == [
        str(tmp_path / "folder.png" / "a.png")
    ]
    assert beyond._image_paths((b"a", tmp_path)) == ["a", str(tmp_path)]
    for paths, words in {
        "empty": "no image in this directory|contains no images",
        "none": "none: cannot be read",
    }.items():
        with pytest.raises(InputError, match=words):
            beyond._image_paths(tmp_path / paths)


@pytest.mark.parametrize(
    "count, workers, size", [(1, 1, 1), (9, 2, 2), (40, 2, 5), (100_000, 2, 1024), (8192, 2, 1024)]
)
def test_a_run_is_asked_of_ray_as_it_was_asked_for(
    arrow, bundle, tmp_path, monkeypatch, count, workers, size
):
    """Four tasks a worker at least, 1,024 paths each at most."""
    seen = {}

    class Rows:
        def map_batches(self, kind, **options):
            seen.update(options, kind=kind)
            return "rows"

    ray = SimpleNamespace(
        is_initialized=lambda: True,
        data=SimpleNamespace(
            from_arrow=lambda blocks: (
                seen.update(blocks=[len(block) for block in blocks]),
                Rows(),
            )[1],
            ActorPoolStrategy=lambda size: ("pool", size),
        ),
        exceptions=SimpleNamespace(RayActorError=KeyError, RayError=LookupError),
    )
    monkeypatch.setattr(beyond, "_ray", lambda: ray)
    monkeypatch.chdir(tmp_path)

    def written(rows, directory, classes):
        seen["written"] = rows, classes
        (beyond.Path(directory) / "part").write_text("rows")

    monkeypatch.setitem(beyond._WRITERS, "jsonl", written)
    beyond.classify(
        [f"{i}.png" for i in range(count)], "rows", bundle=bundle, workers=workers, format="jsonl",
        num_cpus=2.5, num_gpus=0.5, tta=True,
    )  # fmt: skip
    assert (tmp_path / "rows" / "part").read_text() == "rows" and seen["written"] == (
        "rows",
        tuple(CLASSES),
    )
    assert sum(seen["blocks"]) == count and max(seen["blocks"]) == size == seen["batch_size"]
    assert seen["fn_constructor_kwargs"] == {
        "bundle": str(bundle), "base": str(tmp_path), "device": "cuda", "threads": 2, "tta": True,
    }  # fmt: skip
    assert (seen["kind"], seen["compute"]) == (beyond.ClassifyBatch, ("pool", workers))
    assert (seen["num_cpus"], seen["num_gpus"]) == (2.5, 0.5)
    assert seen["ray_remote_args_fn"]() == {"max_task_retries": 10}
    if count == 1:
        monkeypatch.setitem(
            beyond._WRITERS, "jsonl", lambda *_: (_ for _ in ()).throw(KeyError("it died"))
        )
        with pytest.raises(
            OrganInferError, match="a worker died 11 times on the same 1 images or fewer"
        ):
            beyond.classify(
                ["a.png"], "again", bundle=bundle, workers=1, format="jsonl", num_cpus=0
            )
        assert seen["fn_constructor_kwargs"] == {
            "bundle": str(bundle), "base": str(tmp_path), "device": "cpu", "threads": 1,
        }  # fmt: skip
        monkeypatch.setitem(
            beyond._WRITERS, "jsonl", lambda *_: (_ for _ in ()).throw(LookupError("lost"))
        )
        with pytest.raises(OrganInferError, match="Ray could not classify all images: lost"):
            beyond.classify(["a.png"], "again", bundle=bundle, workers=1, format="jsonl")
        defaults = seen["num_cpus"], seen["num_gpus"], seen["fn_constructor_kwargs"]["device"]
        assert defaults == (1, 0, "cpu")
        assert not (tmp_path / "again").exists()


@needs_ray
def test_a_batch_becomes_rows(bundle, pictures, classifier):
    names = ["s00.png", b"s01.png", "missing.png", os.fsdecode(b"odd\xff.png")]
    table = beyond.ClassifyBatch(bundle, base=pictures, threads=1)(
        {"path": np.array(names, object)}
    )
    assert table.column_names == [*beyond.COLUMNS, *CLASSES]
    first, second, missing, odd = table.to_pylist()
    (expected,) = classifier.predict_paths([pictures / "s00.png"])
    assert [row["path"] for row in (first, second, missing, odd)] == [
        *("s00.png", "s01.png", "missing.png", "odd\\xff.png")
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
def test_a_batch_of_a_model_that_gives_a_plausibility_has_its_columns(pictures, tmp_path):
    model = orientation_bundle(tmp_path / "bundle")
    table = beyond.ClassifyBatch(model, base=pictures, threads=1)(
        {"path": np.array(["s00.png", "missing.png"], object)}
    )
    assert table.column_names == [*beyond.COLUMNS, *CLASSES, "plausibility", "orientation"]
    first, missing = table.to_pylist()
    with OrganClassifier(model, device="cpu") as opened:
        (expected,) = opened.predict_paths([pictures / "s00.png"])
    assert first["plausibility"] == pytest.approx(expected.plausibility, rel=1e-5)
    assert first["orientation"] == expected.orientation
    assert missing["plausibility"] is missing["orientation"] is None


@needs_ray
def test_a_file_of_many_slices_has_a_row_each(bundle, slices, tmp_path):
    np.save(tmp_path / "three.npy", slices[:3])
    np.save(tmp_path / "one.npy", slices[3])
    names = ["one.npy", "three.npy", "three.npy#1", "one.npy", "one.npy"]
    table = beyond.ClassifyBatch(bundle, base=tmp_path, threads=1)({"path": np.array(names)})
    assert table["path"].to_pylist() == [
        *(
            "one.npy",
            "three.npy#0",
            "three.npy#1",
            "three.npy#2",
            "three.npy#1",
            "one.npy",
            "one.npy",
        )
    ]


@needs_ray
def test_a_class_named_as_a_column_is_refused(pictures, tmp_path):
    def change(manifest):
        manifest["task"] = manifest["task"] | {"classes": ["label", *CLASSES[1:]]}

    model = write_bundle(tmp_path / "bundle", {"small.onnx": make_graph()}, change=change)
    with pytest.raises(BundleError, match="class 'label': this is the name of another column"):
        beyond.classify(pictures, tmp_path / "rows", bundle=model)


# On a cluster.


@pytest.fixture(scope="module")
def cluster():
    """A local cluster of two CPUs that this process is connected to."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(beyond.USAGE_VARIABLE, "0")
        ray.init(
            num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False
        )
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

    class Mortal(
        beyond.ClassifyBatch
    ):  # local to the test, so Ray sends it by value: workers do not import tests
        def __init__(self, *given, **options):
            super().__init__(*given, **options)
            (notes / str(os.getpid())).touch()
            self.batches = 0

        def __call__(self, batch):
            rows = super().__call__(batch)
            self.batches += 1
            if (
                self.batches == 2
            ):  # the first worker to finish a second batch dies before it can hand it over
                try:
                    marks.touch(exist_ok=False)
                except FileExistsError:
                    return rows
                os.kill(os.getpid(), 9)
            return rows

    monkeypatch.setattr(beyond, "ClassifyBatch", Mortal)
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
    np.testing.assert_allclose(
        good[CLASSES], [p.probabilities for p in expected], rtol=1e-4, atol=1e-6
    )


@needs_ray
def test_an_image_that_kills_every_worker_ends_the_run(
    cluster, bundle, pictures, tmp_path, monkeypatch
):
    deaths = tmp_path / "deaths"
    deaths.mkdir()

    class Mortal(beyond.ClassifyBatch):
        def __call__(self, batch):
            if b"killer.png" in list(batch["path"]):
                (deaths / str(os.getpid())).touch()
                os.kill(os.getpid(), 9)
            return super().__call__(batch)

    monkeypatch.setattr(beyond, "ClassifyBatch", Mortal)
    monkeypatch.setattr(beyond, "RETRIES", 2)
    names = [*sorted(map(str, pictures.iterdir()))[:8], "killer.png"]
    with pytest.raises(
        OrganInferError, match=r"^a worker died 3 times on the same 3 images or"
    ) as caught:
        beyond.classify(names, tmp_path / "rows", bundle=bundle, workers=1)
    assert len(list(deaths.iterdir())) == 3 and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["deaths"]


@needs_ray
def test_json_lines_are_the_commands_and_an_error(cluster, bundle, pictures, tmp_path, command):
    names = [*sorted(map(str, pictures.iterdir()))[:3], "missing.png"]
    (tmp_path / "rows").mkdir()  # empty, so it may be taken
    beyond.classify(
        names, tmp_path / "rows", bundle=bundle, workers=1, format="jsonl", orientation="PL"
    )
    text = "".join(path.read_text() for path in (tmp_path / "rows").glob("*.jsonl"))
    rows = sorted(map(json.loads, text.splitlines()), key=lambda row: names.index(row["path"]))
    asked = command(
        "--threads", "1", "--format", "jsonl", "--orientation", "PL", *names
    ).stdout.splitlines()
    for row, line in zip(rows[:3], map(json.loads, asked[:3]), strict=True):
        assert list(row) == [*line, "error"] and row.pop("error") is None
        for key in ("probability", "organ_probability", "probabilities"):
            assert row.pop(key) == pytest.approx(line.pop(key), rel=1e-5)
        assert row == line
    assert (
        rows[3]["error"] == "no such file" and rows[3]["label"] is rows[3]["probabilities"] is None
    )


@needs_ray
def test_a_network_that_fails_ends_the_run_in_one_line(cluster, pictures, tmp_path):
    def broken(model):
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
        bias.raw_data = np.full(11, np.nan, np.float32).tobytes()

    model = write_bundle(tmp_path / "bundle", {"small.onnx": make_graph(change=broken)})
    with pytest.raises(
        OrganInferError, match=r"^Ray could not classify all images: .*not finite"
    ) as caught:
        beyond.classify(pictures, tmp_path / "rows", bundle=model, workers=1)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]

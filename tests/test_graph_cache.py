"""The cache of optimized graphs: faster, never required, never trusted beyond its own checksums."""

import hashlib
import json
import logging
import os
import shutil
import stat
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import make_graph, write_bundle

from organ_infer import BundleError, OrganClassifier
from organ_infer.engine import ensemble, graph_cache
from organ_infer.engine.graph_cache import (
    ABANDONED,
    ENTRY_LIMIT,
    Cache,
    cache_directory,
    describe_cache,
    graph_files,
)

posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners and modes here")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A cache directory that is used for any size of graph."""
    monkeypatch.setattr(ensemble, "CACHE_THRESHOLD", 0)
    monkeypatch.setenv("ORGAN_INFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def two(tmp_path):
    return write_bundle(
        tmp_path / "two", {"a.onnx": make_graph(seed=1), "b.onnx": make_graph(seed=2)}
    )


def cache_of(root, bundle):
    import onnxruntime

    return Cache(root, bundle, ensemble.list_bundle(bundle).sha256, onnxruntime.__version__)


def answer(bundle, slices):
    with OrganClassifier(bundle, device="cpu", threads=2) as classifier:
        return classifier.predict_proba(slices)


def entries(root):
    return sorted(path for path in root.iterdir())


def test_the_second_opening_takes_the_optimized_graphs_and_answers_alike(
    root, two, slices, monkeypatch
):
    first = answer(two, slices)
    (entry,) = entries(root)
    names = {path.name for path in entry.iterdir()}
    assert {"a.onnx.optimized", "b.onnx.optimized", "record.json"} <= names
    assert stat.S_IMODE(entry.stat().st_mode) == 0o700
    reads = []
    monkeypatch.setattr("organ_infer.bundle.files._read_graph", lambda path, *_: reads.append(path))
    assert np.array_equal(answer(two, slices), first)
    assert not reads  # neither read nor optimized again


def test_a_bundle_that_was_written_to_is_verified_again(root, two, slices):
    answer(two, slices)
    data = bytearray((two / "a.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (two / "a.onnx").write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"a\.onnx: sha256"):
        OrganClassifier(two, device="cpu")


def test_another_manifest_is_another_entry(root, two, slices, monkeypatch):
    first = answer(two, slices)
    text = (two / "manifest.json").read_text()
    (two / "manifest.json").write_text(text.replace('"temperature": 1.0', '"temperature": 2.0'))
    warm = answer(two, slices)
    assert len(entries(root)) == 2 and not np.allclose(warm, first)
    monkeypatch.setenv("ORGAN_INFER_CACHE", "")
    assert np.array_equal(warm, answer(two, slices))


@pytest.mark.parametrize("part", ["a.onnx.optimized", "b.onnx.weights", "record.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_entry_is_rebuilt(root, two, slices, part, damage, caplog):
    first = answer(two, slices)
    (entry,) = entries(root)
    path = entry / part
    if not path.exists():
        pytest.skip(f"onnxruntime wrote no {part}: the weights are small")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.unlink()
    if damage != "remove":
        path.write_bytes(bytes(data[: len(data) // 2] if damage == "cut" else data))
    with caplog.at_level(logging.WARNING, logger="organ_infer"):
        assert np.array_equal(answer(two, slices), first)
    assert len(caplog.records) == (damage != "remove" and part != "record.json")  # reported once
    assert np.array_equal(answer(two, slices), first)
    assert len(entries(root)) == 1


def test_a_graph_that_was_already_cut_off_when_it_was_cached_is_replaced_for_good(
    root, two, slices, caplog
):
    """As a full disk leaves it: its checksum is right, but it does not open."""
    first = answer(two, slices)
    (entry,) = entries(root)
    graph, record = entry / "a.onnx.optimized", entry / "record.json"
    content = graph.read_bytes()[:-40]
    graph.write_bytes(content)
    told = json.loads(record.read_text())
    told["sha256"][graph.name] = hashlib.sha256(content).hexdigest()
    record.write_text(json.dumps(told))
    caplog.set_level(logging.WARNING, logger="organ_infer")
    assert np.array_equal(answer(two, slices), first)
    assert [line.split(":")[0] for line in caplog.messages] == ["rebuilding the cached graph"]
    caplog.clear()
    assert np.array_equal(answer(two, slices), first)
    assert caplog.messages == [] and len(entries(root)) == 1


@posix
def test_an_entry_that_others_may_write_is_not_used(root, two, slices):
    answer(two, slices)
    (entry,) = entries(root)
    entry.chmod(0o777)
    assert cache_of(root, two).find(ensemble.list_bundle(two).files()) is None
    answer(two, slices)
    assert stat.S_IMODE(entries(root)[0].stat().st_mode) == 0o700


def test_nothing_fails_if_nothing_can_be_cached(root, two, slices, caplog):
    root.write_text("a file in the cache's place")
    with caplog.at_level(logging.INFO, logger="organ_infer"):
        answer(two, slices)
    assert f"{root}: the optimized graphs were not cached (" in caplog.text


# Environments without a place for a cache, and what the log says of it. {} is a directory.
HOME = {"ORGAN_INFER_CACHE": None, "XDG_CACHE_HOME": None}
NO_PLACE = {
    "not UTF-8": ({"ORGAN_INFER_CACHE": "{}/cach\udce9"}, "the path is not UTF-8"),
    "XDG_CACHE_HOME not UTF-8": (
        HOME | {"XDG_CACHE_HOME": "{}/cach\udce9"},
        "the path is not UTF-8",
    ),
    "HOME not UTF-8": (HOME | {"HOME": "{}/hom\udce9"}, "the path is not UTF-8"),
    "a file": ({"ORGAN_INFER_CACHE": "{}/file"}, "were not cached"),
    "below a file": ({"ORGAN_INFER_CACHE": "{}/file/a"}, "were not cached"),
    "a long name": ({"ORGAN_INFER_CACHE": "{}/" + "x" * 300}, "were not cached"),
    "a long path": ({"ORGAN_INFER_CACHE": "{}" + "/xxx" * 2000}, "were not cached"),
    "a device": ({"ORGAN_INFER_CACHE": "/dev/null"}, "were not cached"),
    "a directory that cannot be written": ({"ORGAN_INFER_CACHE": "/proc"}, "were not cached"),
}


@posix
@pytest.mark.parametrize("kind", NO_PLACE)
def test_without_a_place_for_a_cache_the_answers_are_the_same(
    kind, two, slices, tmp_path, monkeypatch, caplog
):
    expected = answer(two, slices)
    monkeypatch.setattr(ensemble, "CACHE_THRESHOLD", 0)
    (tmp_path / "file").write_text("")
    (tmp_path / "work").mkdir()
    variables, words = NO_PLACE[kind]
    for name, value in variables.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value.format(tmp_path))
    monkeypatch.chdir(tmp_path / "work")
    before = sorted(tmp_path.rglob("*"))
    with caplog.at_level(logging.INFO, logger="organ_infer"):
        assert np.array_equal(answer(two, slices), expected)
    assert sorted(tmp_path.rglob("*")) == before
    assert [record.levelname for record in caplog.records] == ["INFO"]
    message = caplog.records[0].getMessage()
    assert words in message and message.isprintable() and len(message) < 1200
    if kind != "a directory that cannot be written":
        assert "not used: " in describe_cache() or "not created yet" in describe_cache()


@pytest.mark.parametrize("variables", [{"XDG_CACHE_HOME": "here"}, {"HOME": "here"}, {"HOME": "~"}])
def test_a_relative_home_never_puts_a_cache_into_the_working_directory(monkeypatch, variables):
    """Versions of platformdirs differ in what they do with it."""
    import platformdirs

    monkeypatch.delenv("ORGAN_INFER_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    directory = cache_directory()
    assert directory is None or directory.is_absolute()
    for relative in ("here/organ_infer", "~/.cache/organ_infer"):
        monkeypatch.setattr(
            platformdirs, "user_cache_path", lambda *_, where=relative, **__: Path(where)
        )
        assert cache_directory() is None and describe_cache() == "none (no directory for it)"


@posix
def test_a_relative_cache_in_a_directory_that_was_removed_is_no_cache(
    two, slices, tmp_path, monkeypatch
):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(ensemble, "CACHE_THRESHOLD", 0)
    monkeypatch.setenv("ORGAN_INFER_CACHE", "here")
    assert cache_directory() is None
    assert len(answer(two, slices)) == len(slices)


def test_a_failed_save_still_opens(root, two, slices, monkeypatch):
    monkeypatch.setattr(
        ensemble, "graph_files", lambda name: (f"no/such/{name}", f"{name}.weights")
    )
    first = answer(two, slices)
    assert first.shape == (40, 11) and not entries(root)


def test_small_bundles_are_not_cached(tmp_path, monkeypatch, two, slices):
    monkeypatch.setenv("ORGAN_INFER_CACHE", str(tmp_path / "cache"))
    answer(two, slices)
    assert not (tmp_path / "cache").exists()


def test_the_entries_used_last_are_kept_and_nothing_else_is_touched(root, tmp_path, slices):
    other = root / ("0" * 32)
    other.mkdir(parents=True)
    (root / ".bundle-killed.partial").mkdir()
    os.utime(root / ".bundle-killed.partial", (0, 0))
    bundles = [
        write_bundle(tmp_path / f"b{i}", {"a.onnx": make_graph(seed=i)})
        for i in range(ENTRY_LIMIT + 2)
    ]
    for i, bundle in enumerate(bundles):
        answer(bundle, slices)
        os.utime(cache_of(root, bundle).entry, (i + 1, i + 1))
    answer(bundles[-1], slices)
    cached = [
        cache_of(root, bundle).find(ensemble.list_bundle(bundle).files()) is not None
        for bundle in bundles
    ]
    assert cached == [False] * 2 + [True] * ENTRY_LIMIT
    assert len(entries(root)) == ENTRY_LIMIT + 1 and other.is_dir()


@posix
def test_group_writable_files_by_default_are_no_hindrance(root, two, slices, monkeypatch):
    before = os.umask(0o002)
    try:
        answer(two, slices)
    finally:
        os.umask(before)
    assert cache_of(root, two).find(ensemble.list_bundle(two).files())


@posix
def test_a_directory_in_which_others_may_rename_is_not_used(root, two, slices, caplog):
    answer(two, slices)
    root.chmod(0o777)
    assert cache_of(root, two).find(ensemble.list_bundle(two).files()) is None
    with caplog.at_level(logging.INFO, logger="organ_infer"):
        answer(two, slices)
    assert "other users may write to it; run chmod go-w on it" in caplog.text
    root.chmod(0o1777)  # sticky, as /tmp is
    assert cache_of(root, two).find(ensemble.list_bundle(two).files())


def test_a_cache_that_cannot_be_written_to_is_used(root, two, slices, monkeypatch):
    answer(two, slices)

    def read_only(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", read_only)
    assert cache_of(root, two).find(ensemble.list_bundle(two).files())


def test_the_entry_of_another_process_stays(root, two, slices):
    answer(two, slices)
    (entry,) = entries(root)
    inode = entry.stat().st_ino
    files = ensemble.list_bundle(two).files()
    with cache_of(root, two).new_entry(files, ["a.onnx", "b.onnx"]) as folder:
        for name in ("a.onnx", "b.onnx"):
            (folder / graph_files(name)[0]).write_bytes(b"slower")
    assert entries(root)[0].stat().st_ino == inode and len(entries(root)) == 1


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("ORGAN_INFER_CACHE", "")
    assert cache_directory() is None
    monkeypatch.delenv("ORGAN_INFER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory().name == "organ_infer"


# What an entry belongs to, without a network.


@pytest.fixture
def files(tmp_path):
    """The files of a bundle, as a cache sees them."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in ("manifest.json", "a.onnx", "b.onnx"):
        (folder / name).write_text(name)
    return sorted(folder.iterdir())


def opened(files, root, *, sha256="0" * 64, version="1.20"):
    return Cache(root, files[0].parent, sha256, version)


def fill(cache, files, graphs=("a.onnx", "b.onnx"), names=None):
    """Save a graph for each of `graphs`, and weights for the first."""
    with cache.new_entry(files, graphs) as folder:
        for i, graph in enumerate(graphs if names is None else names):
            optimized, weights = graph_files(graph)
            (folder / optimized).write_bytes(b"graph %d" % i)
            if not i:
                (folder / weights).write_bytes(b"weights")
    return cache


def test_a_cached_graph_is_found_by_its_name(files, tmp_path):
    cache = fill(opened(files, tmp_path / "root"), files)
    found = opened(files, tmp_path / "root").find(files)
    assert found == {name: cache.entry / f"{name}.optimized" for name in ("a.onnx", "b.onnx")}
    assert [path.read_bytes() for path in found.values()] == [b"graph 0", b"graph 1"]
    assert [path.name for path in (tmp_path / "root").iterdir()] == [
        cache.entry.name
    ]  # no unfinished entry
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in cache.entry.iterdir())


@pytest.mark.parametrize("what", ["manifest", "version", "processor", "place"])
def test_another_manifest_version_processor_or_place_has_no_entry(
    files, tmp_path, monkeypatch, what
):
    root = tmp_path / "root"
    fill(opened(files, root), files)
    options = {"manifest": {"sha256": "1" * 64}, "version": {"version": "1.21"}}.get(what, {})
    if what == "processor":
        monkeypatch.setattr(graph_cache, "_processor", lambda: "another")
    if what == "place":
        moved = shutil.move(files[0].parent, tmp_path / "moved")
        files = sorted(moved.iterdir())
    other = opened(files, root, **options)
    assert other.find(files) is None
    fill(other, files)
    assert (
        other.find(files) and len(list(root.iterdir())) == 2
    )  # beside the first, not in its place


def rewritten(path):
    path.write_text(path.read_text())


def replaced(path):
    path.with_name("new").write_text(path.read_text())
    path.with_name("new").replace(path)


def longer(path):
    status = path.stat()
    path.write_text(path.read_text() + "x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("name", ["manifest.json", "a.onnx", "b.onnx"])
@pytest.mark.parametrize("change", [rewritten, replaced, longer])
def test_a_file_that_was_written_or_replaced_has_no_entry_any_more(files, tmp_path, name, change):
    cache = fill(opened(files, tmp_path / "root"), files)
    assert cache.find(files)
    os.utime(
        files[0].parent / name, ns=(1, 1)
    )  # another time than the one of the change, however coarse the clock
    cache = fill(opened(files, tmp_path / "root"), files)
    assert cache.find(files)
    change(files[0].parent / name)
    assert cache.find(files) is None
    fill(cache, files)
    assert cache.find(files)


@pytest.mark.parametrize("at", range(5))
def test_each_part_of_a_file_s_identity_counts(files, tmp_path, at):
    """Device, inode, size, and the times of its content and of its entry."""
    cache = fill(opened(files, tmp_path / "root"), files)
    path = cache.entry / "record.json"
    record = json.loads(path.read_text())
    status = (files[0].parent / "a.onnx").stat()
    assert record["bundle"]["a.onnx"] == [
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
    ]  # fmt: skip
    record["bundle"]["a.onnx"][at] += 1
    path.write_text(json.dumps(record))
    assert cache.find(files) is None


def test_a_file_more_or_less_has_no_entry(files, tmp_path):
    cache = fill(opened(files, tmp_path / "root"), files)
    assert cache.find(files[:-1]) is None
    (files[0].parent / "c.onnx").touch()
    assert cache.find([*files, files[0].parent / "c.onnx"]) is None and cache.find(files)
    files[0].unlink()
    assert cache.find(files) is None


@pytest.mark.parametrize("name", ["a.onnx.optimized", "a.onnx.weights", "b.onnx.optimized"])
@pytest.mark.parametrize("warned", [False, True])
def test_a_changed_file_of_an_entry_is_reported_once_and_not_used(
    files, tmp_path, caplog, name, warned
):
    cache = fill(opened(files, tmp_path / "root"), files)
    (cache.entry / name).write_bytes(b"graph X")
    with caplog.at_level(logging.DEBUG, logger="organ_infer"):
        assert cache.find(files, warned=warned) is None
    (record,) = caplog.records
    assert record.levelno == (logging.DEBUG if warned else logging.WARNING)
    assert record.getMessage() == f"{cache.entry / name}: damaged; rebuilding the cached graph"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"bundle": {}}', '{"bundle": 1, "sha256": 2, "graphs": 3}', "x" * 99],
)
def test_a_record_of_anything_else_is_passed_over(files, tmp_path, text):
    cache = fill(opened(files, tmp_path / "root"), files)
    (cache.entry / "record.json").write_text(text)
    assert cache.find(files) is None


def test_a_record_is_read_up_to_a_mebibyte(files, tmp_path):
    cache = fill(opened(files, tmp_path / "root"), files)
    path = cache.entry / "record.json"
    text = path.read_text()
    path.write_text(text + " " * ((1 << 20) - len(text)))
    assert cache.find(files)
    path.write_text(" " * (1 << 20) + text)
    assert cache.find(files) is None


@posix
def test_what_others_may_have_written_is_not_used(files, tmp_path):
    root = tmp_path / "root"
    cache = fill(opened(files, root), files)
    for path in (root, cache.entry, *cache.entry.iterdir()):
        before = stat.S_IMODE(path.stat().st_mode)
        for bit in (0o020, 0o002):
            path.chmod(before | bit)
            assert cache.find(files) is None, path
        path.chmod(before | 0o055 & ~0o022)  # others may read
        assert cache.find(files), path
        path.chmod(before)


@posix
@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="gives files to another user"
)
def test_what_belongs_to_another_user_is_not_used(files, tmp_path):
    root = tmp_path / "root"
    cache = fill(opened(files, root), files)
    for path in (root, cache.entry, *cache.entry.iterdir()):
        os.chown(path, 12345, -1)
        assert cache.find(files) is None, path
        os.chown(path, 0, -1)
    assert cache.find(files)


def test_a_link_in_an_entry_is_not_followed(files, tmp_path):
    cache = fill(opened(files, tmp_path / "root"), files)
    for name in ("a.onnx.optimized", "record.json"):
        shutil.move(cache.entry / name, tmp_path / name)
        (cache.entry / name).symlink_to(tmp_path / name)
        assert cache.find(files) is None
        (cache.entry / name).unlink()
        shutil.move(tmp_path / name, cache.entry / name)
    shutil.move(cache.entry, tmp_path / "entry")
    cache.entry.symlink_to(tmp_path / "entry")
    assert cache.find(files) is None


def test_an_entry_without_all_graphs_is_not_cached(files, tmp_path):
    cache = fill(opened(files, tmp_path / "root"), files, names=["a.onnx"])
    assert cache.find(files) is None and list((tmp_path / "root").iterdir()) == []


def test_an_entry_that_fails_while_it_is_created_leaves_nothing(files, tmp_path):
    cache = opened(files, tmp_path / "root")
    with pytest.raises(ZeroDivisionError), cache.new_entry(files, ["a.onnx"]) as folder:
        (folder / "a.onnx.optimized").write_bytes(b"graph")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        raise ZeroDivisionError
    assert list((tmp_path / "root").iterdir()) == []


def test_a_bundle_that_changes_while_it_is_optimized_has_no_entry_that_is_found(files, tmp_path):
    """The identities are those from before the bundle was read."""
    cache = opened(files, tmp_path / "root")
    with cache.new_entry(files, ["a.onnx"]) as folder:
        (folder / "a.onnx.optimized").write_bytes(b"graph")
        longer(files[1])
    assert cache.find(files) is None


def test_an_entry_that_is_found_counts_as_used(files, tmp_path):
    cache = fill(opened(files, tmp_path / "root"), files)
    os.utime(cache.entry, (5, 5))
    begun = time.time() - 1
    assert cache.find(files) and cache.entry.stat().st_mtime >= begun


def test_of_nine_entries_the_one_not_used_for_the_longest_goes_and_others_work_is_left_for_an_hour(
    files, tmp_path
):
    root = tmp_path / "root"
    assert (ENTRY_LIMIT, ABANDONED) == (8, 3600)
    caches = [fill(opened(files, root, version=str(i)), files) for i in range(8)]
    for i, one in enumerate(caches):
        os.utime(one.entry, (1000 - i, 1000 - i))
    strange = [root / "other", root / "bundle-empty", root / ".bundle-x"]
    young, old = root / ".bundle-young.partial", root / ".bundle-old.partial"
    for path in (*strange, young, old):
        path.mkdir()
    now = time.time()
    os.utime(young, (now - 3000, now - 3000))
    os.utime(old, (now - 4000, now - 4000))
    fill(opened(files, root, version="new"), files)
    assert [one.entry.exists() for one in caches] == [True] * 7 + [False]
    assert all(path.is_dir() for path in (*strange, young)) and not old.exists()


def test_a_cache_is_described(files, tmp_path, monkeypatch):
    root = tmp_path / "root"
    monkeypatch.setenv("ORGAN_INFER_CACHE", "")
    assert describe_cache() == "none (ORGAN_INFER_CACHE is empty)"
    monkeypatch.setenv("ORGAN_INFER_CACHE", str(root))
    assert cache_directory() == root and describe_cache() == f"{root}, not created yet"
    cache = fill(opened(files, root), files)
    (cache.entry / "record.json").write_bytes(bytes(2_500_000 - 22))  # beside 7 + 7 + 8 bytes
    assert describe_cache() == f"{root}, 1 bundles, 2.5 MB"
    root.chmod(0o777)
    assert (
        describe_cache() == f"{root}, not used: other users may write to it (run chmod go-w on it)"
    )
    monkeypatch.setenv("ORGAN_INFER_CACHE", str(files[0]))
    assert describe_cache().startswith(f"{files[0]}, not used: [Errno 20] Not a directory")
    monkeypatch.setenv("ORGAN_INFER_CACHE", str(files[0] / "below"))
    assert describe_cache().startswith(f"{files[0] / 'below'}, not used: ")
    monkeypatch.delenv("ORGAN_INFER_CACHE")
    monkeypatch.setattr(graph_cache, "cache_directory", lambda: None)
    assert describe_cache() == "none (no directory for it)"


def test_a_relative_cache_is_an_absolute_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORGAN_INFER_CACHE", "here")
    assert cache_directory() == tmp_path / "here"


def test_a_processor_is_known_by_its_model_and_its_instructions(monkeypatch, tmp_path):
    def info(text):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(graph_cache, "Path", lambda path: tmp_path / "cpuinfo")
        return graph_cache._processor()

    one = "processor\t: 0\nmodel name\t: A\ncpu MHz\t: 1000\nflags\t: sse avx\n\nprocessor\t: 1\n"
    assert info(one) == "model name\t: A\nflags\t: sse avx"
    assert info(one.replace("1000", "2000")) == info(one)
    assert info(one.replace("avx", "avx2")) != info(one) != info(one.replace(": A", ": B"))
    assert info("Features : neon\nCPU part : 0x1\n") == "Features : neon\nCPU part : 0x1"
    assert info("nothing") and info("nothing") == info("")


def test_without_a_home_there_is_no_place_for_a_cache(monkeypatch):
    import platformdirs

    def homeless(*_, **__):
        raise RuntimeError("no home directory")

    monkeypatch.delenv("ORGAN_INFER_CACHE", raising=False)
    monkeypatch.setattr(platformdirs, "user_cache_path", homeless)
    assert cache_directory() is None and describe_cache() == "none (no directory for it)"


@pytest.mark.parametrize("path", ["~/.cache/organ_infer", "~someone/c/organ_infer", "organ_infer"])
def test_a_relative_directory_is_no_place_for_a_cache(path, monkeypatch):
    import platformdirs

    monkeypatch.delenv("ORGAN_INFER_CACHE", raising=False)
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: Path(path))
    assert cache_directory() is None and describe_cache() == "none (no directory for it)"


def test_where_there_are_no_owners_nothing_is_asked_of_them(files, tmp_path, monkeypatch):
    cache = fill(opened(files, tmp_path / "root"), files)
    (tmp_path / "root").chmod(0o777)
    assert cache.find(files) is None
    monkeypatch.delattr(os, "getuid")
    assert cache.find(files)


def test_an_entry_that_cannot_be_published_is_reported_and_leaves_nothing(
    files, tmp_path, monkeypatch, caplog
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with caplog.at_level(logging.INFO, logger="organ_infer"):
        fill(opened(files, tmp_path / "root"), files)
    assert f"{tmp_path / 'root'}: the optimized graphs were not cached (" in caplog.text
    assert "No space left on device" in caplog.text and list((tmp_path / "root").iterdir()) == []

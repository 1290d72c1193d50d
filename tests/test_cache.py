"""The cache of optimised graphs: quicker, never required, never trusted beyond its own hash."""

import logging
import os
import stat

import numpy as np
import pytest
from conftest import make_graph, write_bundle

from organ_infer import BundleError, OrganClassifier, ensemble
from organ_infer.cache import KEPT, Cache, cache_directory, graph_files

posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners and modes here")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A cache directory that is used for any size of graph."""
    monkeypatch.setattr(ensemble, "CACHED_FROM", 0)
    monkeypatch.setenv("ORGAN_INFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def two(tmp_path):
    return write_bundle(tmp_path / "two", {"a.onnx": make_graph(seed=1), "b.onnx": make_graph(seed=2)})


def cache_of(root, bundle):
    import onnxruntime

    return Cache(root, bundle, ensemble.list_bundle(bundle).sha256, onnxruntime.__version__)


def answer(bundle, slices):
    with OrganClassifier(bundle, device="cpu", threads=2) as classifier:
        return classifier.predict_proba(slices)


def entries(root):
    return sorted(path for path in root.iterdir())


def test_the_second_opening_takes_the_optimised_graphs_and_answers_alike(root, two, slices, monkeypatch):
    first = answer(two, slices)
    (entry,) = entries(root)
    names = {path.name for path in entry.iterdir()}
    assert {"a.onnx.optimised", "b.onnx.optimised", "record.json"} <= names
    assert stat.S_IMODE(entry.stat().st_mode) == 0o700
    reads = []
    monkeypatch.setattr("organ_infer.bundle._read_graph", lambda path, *_: reads.append(path))
    assert np.array_equal(answer(two, slices), first)
    assert not reads  # neither read nor optimised again


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


@pytest.mark.parametrize("part", ["a.onnx.optimised", "b.onnx.weights", "record.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_entry_is_made_again(root, two, slices, part, damage, caplog):
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
    assert len(caplog.records) == (damage != "remove" and part != "record.json")  # said once
    assert np.array_equal(answer(two, slices), first)
    assert len(entries(root)) == 1


@posix
def test_an_entry_that_others_may_write_is_not_used(root, two, slices):
    answer(two, slices)
    (entry,) = entries(root)
    entry.chmod(0o777)
    assert cache_of(root, two).find(ensemble.list_bundle(two).files()) is None
    answer(two, slices)
    assert stat.S_IMODE(entries(root)[0].stat().st_mode) == 0o700


def test_nothing_fails_where_nothing_can_be_kept(root, two, slices, caplog):
    root.write_text("a file in the cache's place")
    with caplog.at_level(logging.INFO, logger="organ_infer"):
        answer(two, slices)
    assert "nothing is kept in the cache" in caplog.text


def test_a_failed_save_still_opens(root, two, slices, monkeypatch):
    monkeypatch.setattr(ensemble, "graph_files", lambda name: (f"no/such/{name}", f"{name}.weights"))
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
    bundles = [write_bundle(tmp_path / f"b{i}", {"a.onnx": make_graph(seed=i)}) for i in range(KEPT + 2)]
    for i, bundle in enumerate(bundles):
        answer(bundle, slices)
        os.utime(cache_of(root, bundle).entry, (i + 1, i + 1))
    answer(bundles[-1], slices)
    kept = [
        cache_of(root, bundle).find(ensemble.list_bundle(bundle).files()) is not None for bundle in bundles
    ]
    assert kept == [False] * 2 + [True] * KEPT
    assert len(entries(root)) == KEPT + 1 and other.is_dir()


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
    assert "other users may write there" in caplog.text
    root.chmod(0o1777)  # sticky, as /tmp is
    assert cache_of(root, two).find(ensemble.list_bundle(two).files())


def test_a_cache_that_cannot_be_written_to_is_used(root, two, slices, monkeypatch):
    answer(two, slices)

    def read_only(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", read_only)
    assert cache_of(root, two).find(ensemble.list_bundle(two).files())


def test_what_another_process_left_first_is_kept(root, two, slices):
    answer(two, slices)
    (entry,) = entries(root)
    made = entry.stat().st_ino
    files = ensemble.list_bundle(two).files()
    with cache_of(root, two).making(files, ["a.onnx", "b.onnx"]) as folder:
        for name in ("a.onnx", "b.onnx"):
            (folder / graph_files(name)[0]).write_bytes(b"slower")
    assert entries(root)[0].stat().st_ino == made and len(entries(root)) == 1


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("ORGAN_INFER_CACHE", "")
    assert cache_directory() is None
    monkeypatch.delenv("ORGAN_INFER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory().name == "organ_infer"

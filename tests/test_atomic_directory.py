"""A directory that appears whole or not at all."""

import os
from pathlib import Path

import pytest

from organ_infer.files import atomic_directory, created_directory


def contents(directory):
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in directory.rglob("*")
        if path.is_file()
    }


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_directory_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "er" / "target"
    with atomic_directory(target) as building:
        (building / "inside").mkdir()
        (building / "inside" / "file").write_text("whole")
        assert not target.exists() and building.parent == target.parent
        # train.record removes what a killed process left by this name
        assert building.name.startswith(".target.") and building.name.endswith(".partial")
    assert contents(target) == {"inside/file": "whole"} and names(target.parent) == ["target"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("replace", [False, True])
def test_an_empty_directory_is_replaced(tmp_path, replace):
    (tmp_path / "target").mkdir()
    with atomic_directory(tmp_path / "target", replace=replace) as building:
        (building / "file").write_text("new")
    assert contents(tmp_path / "target") == {"file": "new"} and names(tmp_path) == ["target"]


def test_a_directory_with_files_is_replaced_only_on_request(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(OSError), atomic_directory(target) as building:
        (building / "file").write_text("new")
    assert contents(target) == {"old": "old"} and names(tmp_path) == ["target"]
    with atomic_directory(target, replace=True) as building:
        (building / "file").write_text("new")
    assert contents(target) == {"file": "new"} and names(tmp_path) == ["target"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_block_that_raises_leaves_everything_as_it_was(tmp_path, error):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(type(error)), atomic_directory(target, replace=True) as building:
        (building / "file").write_text("half")
        raise error
    assert contents(target) == {"old": "old"} and names(tmp_path) == ["target"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")
@pytest.mark.parametrize("replace", [False, True])
def test_every_file_is_on_the_disk_before_the_directory_appears(tmp_path, monkeypatch, replace):
    steps, flush, rename = [], os.fsync, os.replace

    def flushed(descriptor):
        steps.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        flush(descriptor)

    def renamed(source, target):
        steps.append("renamed")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    opened = len(os.listdir("/proc/self/fd"))
    with atomic_directory(tmp_path / "target", replace=replace) as building:
        (building / "a").write_text("a")
        (building / "inside").mkdir()
        (building / "inside" / "b").write_text("b")
    assert sorted(steps[:2]) == ["a", "b"] and steps[2:] == ["renamed"]
    assert len(os.listdir("/proc/self/fd")) == opened


def test_a_directory_that_fails_leaves_no_new_parent(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "old" / "new" / "target"):
        raise ZeroDivisionError
    assert names(tmp_path) == ["old"] and names(tmp_path / "old") == []


def test_a_created_directory_stays_if_something_is_in_it(tmp_path):
    with created_directory(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").touch()
    assert names(tmp_path / "a") == ["file"]

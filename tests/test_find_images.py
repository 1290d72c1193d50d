"""find_images lists what the command classifies."""

import os
from pathlib import Path

import numpy as np
import pytest

from organ_infer import InputError, find_images


@pytest.fixture
def tree(tmp_path, pictures, monkeypatch):
    """Directories with images, other files, hidden files and links."""
    data = next(iter(sorted(Path(pictures).iterdir()))).read_bytes()
    for name in (
        "b.png",
        "a.png",
        "series/IM1",
        "series/deep/c.png",
        "set [1]/d.png",
        ".hidden.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("paths", "recursive", "expected"),
    [
        (["a.png", "b.png"], False, ["a.png", "b.png"]),
        (["b.png", "a.png", "b.png"], False, ["b.png", "a.png", "b.png"]),
        ("a.png", False, ["a.png"]),
        (b"a.png", False, ["a.png"]),
        (Path("series"), False, ["series/IM1"]),
        (["series"], True, ["series/IM1", "series/deep/c.png"]),
        ([".", "series"], False, ["./a.png", "./b.png", "series/IM1"]),
        ("*.png", False, ["a.png", "b.png"]),
        ("set [1]", False, ["set [1]/d.png"]),
        ("set [1]/*.png", False, ["set [1]/d.png"]),
        ("none.png", False, ["none.png"]),
        ("notes.txt", False, ["notes.txt"]),
        ([], False, []),
    ],
)
def test_files_directories_and_patterns_are_listed(tree, paths, recursive, expected):
    assert find_images(paths, recursive=recursive) == expected


def test_a_slice_of_a_stack_is_no_pattern(tree):
    np.save("[x].npy", np.zeros((3, 8, 8), np.uint8))
    assert find_images("[x].npy#2") == ["[x].npy#2"]


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ("*.tif", r"\*.tif: no file matches this pattern"),
        ("empty", "empty: no image in this directory; use --recursive"),
        (["a.png", None], r"paths\[1\]: expected a path"),
        ([float("nan")], r"paths\[0\]: expected a path"),
    ],
)
def test_what_names_no_image_is_refused(tree, paths, words):
    with pytest.raises(InputError, match=words):
        find_images(paths)


def test_the_command_classifies_the_same_files(tree, command):
    done = command("--format", "csv", "--recursive", ".", cwd=tree)
    listed = [line.split(",")[0] for line in done.stdout.splitlines()[1:]]
    assert listed == find_images(".", recursive=True)
    assert len(listed) == 5


def test_predict_paths_takes_the_list(tree, classifier):
    results = list(classifier.predict_paths(find_images(["series", "none.png"], recursive=True)))
    assert [result.ok for result in results] == [True, True, False]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can list every directory")
def test_a_directory_that_cannot_be_listed_is_named(tree):
    (tree / "empty").chmod(0)
    with pytest.raises(InputError, match="cannot be listed"):
        find_images("empty")

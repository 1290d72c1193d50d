"""What mutants survived without (tests/endurance/mutate.py): small promises that no other test asks for."""

import hashlib
import os
from pathlib import Path

import pytest
from conftest import make_graph, write_bundle

from organ_infer import BundleError
from organ_infer.bundle import list_bundle, open_bundle


def test_a_listed_bundle_names_its_files_manifest_first(bundle):
    assert list_bundle(bundle).files() == [
        bundle / name for name in ("manifest.json", "small.onnx", "MODEL_CARD.md")
    ]


def test_a_link_is_refused_before_anything_is_read(copied, tmp_path):
    os.replace(copied / "small.onnx", tmp_path / "elsewhere.onnx")
    (copied / "small.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match=r"small\.onnx: must be a regular file, found a symbolic link"):
        list_bundle(copied)


def test_a_directory_that_cannot_be_listed_is_named(bundle, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(BundleError) as told:
        list_bundle(bundle)
    assert str(told.value) == f"{bundle}: cannot be listed (Permission denied)"


def test_a_graph_that_is_cut_after_it_was_listed_is_told_by_its_size(copied):
    listed = list_bundle(copied)
    size = (copied / "small.onnx").stat().st_size
    os.truncate(copied / "small.onnx", size - 1)
    with pytest.raises(
        BundleError, match=rf"small\.onnx: {size - 1:,} bytes, manifest\.json says {size:,}: truncated"
    ):
        listed.verified()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_that_takes_a_file_s_place_is_not_read(copied, monkeypatch):
    """Between the look at it and its opening."""
    listed, regular = list_bundle(copied), os.stat(copied / "manifest.json")
    (copied / "MODEL_CARD.md").unlink()
    os.mkfifo(copied / "MODEL_CARD.md")
    monkeypatch.setattr(os, "lstat", lambda path: regular)
    with pytest.raises(BundleError, match=r"MODEL_CARD\.md: must be a regular file, found a pipe"):
        listed.verified()


def test_a_card_of_a_byte_too_much_is_refused_though_it_is_the_listed_one(tmp_path):
    card = b"#" * ((1 << 20) + 1)

    def change(manifest):
        manifest["card"]["sha256"] = hashlib.sha256(card).hexdigest()

    folder = write_bundle(tmp_path / "large", {"small.onnx": make_graph()}, change=change)
    (folder / "MODEL_CARD.md").write_bytes(card)
    with pytest.raises(BundleError, match=r"MODEL_CARD\.md: 1,048,577 bytes, at most 1,048,576 are read"):
        open_bundle(folder)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts in /proc")
def test_files_are_closed(bundle):
    before = os.listdir("/proc/self/fd")
    open_bundle(bundle)
    assert os.listdir("/proc/self/fd") == before

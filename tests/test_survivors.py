"""What mutants survived without (tests/endurance/mutate.py): small promises that no other test asks for."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import make_graph, write_bundle

from organ_infer import BundleError
from organ_infer._packing import pack
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


# packing.pyx


@pytest.mark.parametrize("level", [-32_569, -32_568, -32_567, 32_566, 32_567, 32_568, 32_700])
def test_a_window_at_the_ends_of_int16_is_what_it_says(level):
    """Bounds of 200 HU below and above the level: within int16, at its ends, and one past them."""
    image = np.linspace(-32_768, 32_767, 28 * 28).astype(np.int16).reshape(28, 28)
    near = np.clip(np.arange(28 * 28) + level - 392, -32_768, 32_767).astype(np.int16).reshape(28, 28)
    for slice_ in (image, near):
        wanted = np.clip((slice_.astype(float) - (level - 200)) / 400, 0, 1) * 2 - 1
        np.testing.assert_allclose(pack(slice_, window=(level, 400))[0, 0], wanted, atol=1e-6)


def beside(shape, at, strides=None):
    """Slices of bytes, and an array of floats for them that begins at byte `at` of the same memory."""
    count = shape[0] if len(shape) == 3 else 1
    memory = np.zeros(4096, np.float32).view(np.uint8)
    images = np.ndarray(shape, np.uint8, memory, strides=strides)
    return images, np.ndarray((count, 1, 2, 2), np.float32, memory, at)


@pytest.mark.parametrize(
    ("shape", "strides", "end"),
    [((5, 5), None, 25), ((4, 7), None, 28), ((3, 5, 5), None, 75), ((3, 1, 5), (12, 5, 1), 29), ((5, 1), (12, 1), 49), ((1, 5), (5, 12), 49)],
)  # fmt: skip
def test_memory_overlaps_up_to_the_last_byte_of_the_last_slice(shape, strides, end):
    images, out = beside(shape, (end - 1) // 4 * 4, strides)
    with pytest.raises(ValueError, match="memory that overlaps"):
        pack(images, 2, out=out)
    images, out = beside(shape, (end + 3) // 4 * 4, strides)
    assert pack(images, 2, out=out) is out


def test_memory_before_the_slices_is_apart_from_them():
    memory = np.zeros(64, np.float32)
    images = memory.view(np.uint8)[16 : 16 + 25].reshape(5, 5)
    for array in (images, images[::-1], images[:, ::-1], images[::-1, ::-1]):
        assert pack(array, 2, out=memory[:4].reshape(1, 1, 2, 2)).shape == (1, 1, 2, 2)
        with pytest.raises(ValueError, match="memory that overlaps"):
            pack(array, 2, out=memory[1:5].reshape(1, 1, 2, 2))


@pytest.mark.parametrize(
    "shape", [(3, 1, 28, 28), (2, 2, 28, 28), (2, 1, 27, 28), (2, 1, 28, 27), (1, 1, 28, 28)]
)
def test_each_axis_of_out_must_be_what_is_packed(shape):
    with pytest.raises(ValueError, match=r"expected out of shape \(2, 1, 28, 28\), found"):
        pack(np.zeros((2, 28, 28), np.uint8), out=np.zeros(shape, np.float32))


def test_more_slices_than_memory_has_addresses_are_refused_before_memory_is_asked_for():
    most = (2**63 - 1) // 4 // 4096**2
    for count, error in ((most, MemoryError), (most + 1, ValueError), (2**40, ValueError)):
        with pytest.raises(error):
            pack(np.broadcast_to(np.zeros((1, 1, 1), np.uint8), (count, 1, 1)), 4096)

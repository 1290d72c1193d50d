"""Bundles that were altered, by accident or on purpose: refused by name before onnxruntime sees a byte of them."""

import os
import shutil

import pytest
from conftest import write_bundle
from support.altered_bundles import altered, seal, tiny_graph
from support.fake_onnxruntime import CPU

from organ_infer import BundleError, OrganClassifier
from organ_infer.bundle.files import Manifest, list_bundle, open_bundle, read_manifest

FILES = ("manifest.json", "MODEL_CARD.md", "tiny.onnx")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sealed bundle of some 3,000 bytes. Read only."""
    return seal(write_bundle(tmp_path_factory.mktemp("whole") / "b", {"tiny.onnx": tiny_graph()}))


@pytest.fixture
def tiny(whole, tmp_path):
    """A copy of it to be altered."""
    return shutil.copytree(whole, tmp_path / "tiny")


def refusal(bundle):
    """The one line that `bundle` is refused with, or None."""
    try:
        open_bundle(bundle)
    except BundleError as e:
        assert "\n" not in str(e) and len(str(e)) < 400 + len(str(bundle)), e
        return str(e)
    return None


# Bytes.


def test_a_manifest_altered_in_any_bit_is_refused(whole):
    data = (whole / "manifest.json").read_bytes()
    tried = 0
    for other in altered(data):
        if other == data:
            continue
        with pytest.raises(BundleError) as caught:
            Manifest.from_json(other)
        assert "\n" not in str(caught.value)
        tried += 1
    assert tried > 10 * len(data)


@pytest.mark.parametrize("name", FILES)
def test_an_altered_file_is_refused_by_its_name(tiny, name):
    path = tiny / name
    data = path.read_bytes()
    assert refusal(tiny) is None
    every = list(altered(data))  # of which a spread; tests/endurance/tamper.py takes them all
    for other in every[:: 1 + len(every) // 500]:
        if other != data:
            path.write_bytes(other)
            assert name in (refusal(tiny) or ""), other
    path.write_bytes(data)
    assert refusal(tiny) is None


def test_a_seal_says_what_was_changed_and_a_damaged_one_is_no_missing_one(tiny):
    path = tiny / "manifest.json"
    text = path.read_text()
    for other in (
        text.replace('"mean": 0.5', '"mean": 0.4'),
        text.replace('"seal"', '"seam"'),
        text.replace("sha256 of this file", "sha256 of that file"),
        text.replace('"seed": 0', '"seal2": "sha256 of this file with zeros here: "'),
        text + " ",
    ):
        assert other != text
        path.write_text(other)
        assert (
            "manifest.json: changed since it was written, its sha256 differs from training.seal"
            in refusal(tiny)
        )


def test_a_bundle_without_a_seal_opens_and_the_seal_is_not_part_of_training(bundle, tiny):
    assert "seal" not in (bundle / "manifest.json").read_text() and open_bundle(bundle)
    assert dict(read_manifest(tiny).training) == {"seed": 0}
    path = tiny / "manifest.json"
    sealed = path.read_text()
    assert seal(tiny) and path.read_text() == sealed  # sealing again changes nothing


@pytest.mark.parametrize("name", ["second.onnx", "third.onnx", "MODEL_CARD.md", "manifest.json"])
def test_nothing_is_run_before_the_last_file_is_verified(install_fake, ensemble, tmp_path, name):
    """Of three networks not even the first is opened."""
    ort = install_fake(available=(CPU,))
    OrganClassifier(ensemble, device="cpu").close()
    assert len(ort.opened) == 3
    ort.opened.clear()
    folder = seal(shutil.copytree(ensemble, tmp_path / "b"))
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(BundleError, match=name):
        OrganClassifier(folder, device="cpu")
    assert ort.opened == []


# Files.


@pytest.mark.parametrize("name", FILES)
def test_each_file_missing_or_something_else_is_refused(tiny, name, tmp_path):
    path = tiny / name
    data = path.read_bytes()
    path.unlink()
    assert name in refusal(tiny)
    others = {
        "a directory": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a symbolic link": lambda: path.symlink_to(tmp_path / "elsewhere"),
        "a special file": lambda: (
            os.mknod(path, 0o140644) if os.name == "posix" else None
        ),  # a socket
    }
    (tmp_path / "elsewhere").write_bytes(data)
    for found, make in others.items():
        make()
        assert refusal(tiny).endswith(
            f"{name}: must be a regular file, found {found}; copy the bundle again"
        )
        path.rmdir() if path.is_dir() else path.unlink()
    path.write_bytes(data)
    assert refusal(tiny) is None


@pytest.mark.parametrize(
    "name",
    [
        "x",
        ".x",
        "tiny.onnx~",
        "tiny.onnx.data",
        "TINY.ONNX",
        "manifest.json.bak",
        "\n",
        "\udcff",
        "a" * 255,
    ],
)
def test_any_other_file_is_refused_by_name(tiny, name):
    (tiny / name).write_bytes(b"")
    assert f"{name!r} is not listed in manifest.json" in refusal(tiny)


def test_a_listing_that_changes_meanwhile_is_an_error_of_ours(tiny):
    listed = list_bundle(tiny)
    (tiny / "tiny.onnx").unlink()
    with pytest.raises(BundleError, match=r"tiny\.onnx: cannot be read \(No such file"):
        listed.verified()

"""Helpers for files: flags, checksums, and directories that appear whole."""

import hashlib
import os
import stat

import pytest

from organ_infer.files import atomic_file, open_flags, partial_directory, sha256_of


def test_flags_are_combined_and_one_that_the_platform_lacks_is_left_out(monkeypatch):
    monkeypatch.setattr(os, "O_NOFOLLOW", 0x100, raising=False)
    monkeypatch.setattr(os, "O_NONBLOCK", 0x200, raising=False)
    monkeypatch.delattr(os, "O_BINARY", raising=False)
    assert open_flags(0x1) == 0x1
    assert open_flags(0x1, "O_NOFOLLOW", "O_BINARY", "O_NONBLOCK") == 0x301


@pytest.mark.parametrize("data", [b"", b"abc", bytes(range(256)) * 5000])
def test_the_checksum_is_that_of_the_whole_file(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_a_file_that_cannot_be_read_has_no_checksum(tmp_path):
    with pytest.raises(FileNotFoundError):
        sha256_of(tmp_path / "missing")


def test_a_partial_directory_is_empty_private_and_beside_its_target(tmp_path):
    with partial_directory(tmp_path / "target") as folder:
        assert folder.parent == tmp_path and list(folder.iterdir()) == []
        assert folder.name.startswith(".target.") and folder.name.endswith(".partial")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_renamed_partial_directory_stays(tmp_path):
    with partial_directory(tmp_path / "target") as folder:
        (folder / "file").write_text("content")
        folder.rename(tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target" / "file").read_text() == "content"


@pytest.mark.parametrize("error", [None, OSError, KeyboardInterrupt])
def test_any_other_partial_directory_is_removed(tmp_path, error):
    def fill():
        with partial_directory(tmp_path / "target") as folder:
            (folder / "file").write_text("content")
            if error is not None:
                raise error

    if error is None:
        fill()
    else:
        with pytest.raises(error):
            fill()
    assert list(tmp_path.iterdir()) == []


def test_without_a_parent_there_is_no_partial_directory(tmp_path):
    with pytest.raises(FileNotFoundError), partial_directory(tmp_path / "missing" / "target"):
        pass


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "table.csv"
    target.write_text("former")
    with atomic_file(target) as file:
        file.write("é\r\n")
        file.flush()
        assert target.read_text() == "former"
    assert target.read_bytes() == b"\xc3\xa9\r\n"
    with pytest.raises(KeyboardInterrupt), atomic_file(target) as file:
        file.write("half")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"\xc3\xa9\r\n" and list(tmp_path.iterdir()) == [target]
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "none" / "a"):
        pass

"""Builds from a checkout: nothing is written into it, whatever its path and its permissions."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# what pip and an isolated build environment need, but a user of the runtime does not
needs_cython = pytest.mark.skipif(
    importlib.util.find_spec("Cython") is None or importlib.util.find_spec("setuptools") is None,
    reason="builds need setuptools and Cython: pip install 'setuptools>=77' 'cython>=3.1'",
)
# its path is no trouble for the compiler, and what is left in it does not get into a wheel
NAME = "check out ä ß"


def build_backend(monkeypatch):
    pytest.importorskip("setuptools")
    monkeypatch.syspath_prepend(str(ROOT / "ext"))
    return importlib.import_module("build_backend")


@pytest.fixture
def checkout(tmp_path):
    """A copy of the tree with what earlier builds leave behind."""
    tree = tmp_path / NAME
    tree.mkdir()
    for name in ("ext", "runtime"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, tree)
    (tree / "ext" / "packing.c").write_text("#error left over")
    (tree / "runtime" / "organ_infer" / "_packing.abi3.so").write_text("left over")
    return tree


def listing(tree):
    """Every path, with its time of change and its permissions."""
    return {
        path.relative_to(tree): (path.stat().st_mtime_ns, path.stat().st_mode)
        for path in [tree, *tree.rglob("*")]
    }


def make_read_only(tree):
    for path in [tree, *tree.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)


def start_pip(checkout, target, *options):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    return subprocess.Popen(
        [*command, "--no-index", *options, "-w", target, checkout],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wheel_names(directory):
    (wheel,) = Path(directory).glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


def test_pyproject_names_the_backend(monkeypatch):
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^build-backend = "build_backend"\nbackend-path = \["ext"\]$', text, re.M)
    assert callable(build_backend(monkeypatch).build_wheel)


@pytest.mark.parametrize("hook", ["build_wheel", "build_sdist", "prepare_metadata_for_build_wheel"])
def test_a_build_sees_a_writable_copy_without_earlier_products(hook, checkout, monkeypatch):
    backend, seen = build_backend(monkeypatch), {}

    def fake_build(target, *_):
        seen["target"], seen["files"] = target, {path.as_posix() for path in Path().rglob("*")}
        seen["modes"] = {path.stat().st_mode & 0o200 for path in Path().rglob("*")}
        return "built"

    monkeypatch.setattr(backend.build_meta, hook, fake_build)
    make_read_only(checkout)
    monkeypatch.chdir(checkout)
    before = listing(checkout)
    assert getattr(backend, hook)("out") == "built"
    assert Path.cwd() == checkout and listing(checkout) == before
    assert seen["target"] == str(checkout / "out") and seen["modes"] == {0o200}
    expected = {path.relative_to(checkout).as_posix() for path in checkout.rglob("*")}
    products = {"ext/packing.c", "ext/reading.c"} | {
        name for name in expected if name.endswith((".so", ".pyd"))
    }
    assert "ext/packing.c" in expected and seen["files"] == expected - products


def test_nothing_is_run_to_learn_what_a_build_needs(checkout, monkeypatch):
    backend = build_backend(monkeypatch)
    monkeypatch.chdir(checkout)
    before = listing(checkout)
    for kind in ("wheel", "sdist", "editable"):
        assert getattr(backend, f"get_requires_for_build_{kind}")() == []
    assert listing(checkout) == before


def test_an_editable_install_of_a_read_only_checkout_says_what_to_do(checkout, monkeypatch):
    backend = build_backend(monkeypatch)
    monkeypatch.chdir(checkout)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(SystemExit) as stopped:
        backend.build_editable("out")
    assert str(stopped.value) == (
        f"{checkout}: read-only, and an editable install writes into it; run pip install without -e"
    )


@pytest.mark.slow
@needs_cython
def test_two_builds_of_one_read_only_checkout_at_once_give_whole_wheels(checkout, tmp_path):
    make_read_only(checkout)
    before = listing(checkout)
    builds = [start_pip(checkout, tmp_path / name) for name in ("first", "second")]
    for build in builds:
        output, _ = build.communicate(timeout=600)
        assert build.returncode == 0, output
    assert listing(checkout) == before
    names = wheel_names(tmp_path / "first")
    assert names == wheel_names(tmp_path / "second")
    assert {"organ_infer/_packing.abi3.so", "organ_infer/default/edge_wide.onnx"} <= {*names}
    assert any(name.endswith(".data/data/share/man/man1/organ-infer.1") for name in names)


@pytest.mark.slow
@needs_cython
def test_an_sdist_of_a_read_only_checkout_builds_too(checkout, tmp_path):
    make_read_only(checkout)
    before = listing(checkout)
    code = "import sys; sys.path.insert(0, 'ext'); import build_backend as b; b.build_sdist(sys.argv[1])"
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "sdist"], cwd=checkout, env=environment, check=True
    )
    (sdist,) = (tmp_path / "sdist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive}
    assert {"ext/build_backend.py", "ext/packing.pyx", "setup.py", "runtime/organ-infer.1"} <= names
    assert not {"ext/packing.c", "ext/reading.c"} & names and listing(checkout) == before
    build = start_pip(sdist, tmp_path / "wheel")
    output, _ = build.communicate(timeout=600)
    assert build.returncode == 0, output
    assert "organ_infer/_packing.abi3.so" in wheel_names(tmp_path / "wheel")

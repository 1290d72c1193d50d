"""The build backend: setuptools, in a temporary copy of the tree.

A build writes C files, objects and metadata into the tree. In a copy, it also works from a checkout that is read-only or
belongs to another user, and two builds of one checkout do not disturb each other. Only an editable build writes into the
checkout, because the modules that it builds stay there.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setuptools import build_meta

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

# What a build needs, if it is there: files, and directories with all that is below them.
FILES = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg", "setup.py")
DIRECTORIES = ("ext", "runtime")
# Left behind by an earlier build, perhaps by another version of Cython or Python.
BUILT = shutil.ignore_patterns("*.so", "*.pyd", "*.egg-info", "__pycache__")
GENERATED = ("ext/packing.c", "ext/reading.c")

Settings = dict[str, Any] | None


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    target = os.path.abspath(wheel_directory)
    metadata = None if metadata_directory is None else os.path.abspath(metadata_directory)
    with _copied_tree():
        return build_meta.build_wheel(target, config_settings, metadata)


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    target = os.path.abspath(sdist_directory)
    with _copied_tree():
        return build_meta.build_sdist(target, config_settings)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    if not os.access("runtime/organ_infer", os.W_OK):
        raise SystemExit(
            f"{os.getcwd()}: read-only, and an editable install writes into it; run pip install without -e"
        )
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: Settings = None
) -> str:
    target = os.path.abspath(metadata_directory)
    with _copied_tree():
        return build_meta.prepare_metadata_for_build_wheel(target, config_settings)


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: Settings = None
) -> str:
    return prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    # pyproject.toml lists all. Those of setuptools run setup.py, which writes.
    return []


get_requires_for_build_editable = get_requires_for_build_sdist = get_requires_for_build_wheel


@contextlib.contextmanager
def _copied_tree() -> Iterator[None]:
    """Run the block in a writable copy of the tree in the working directory."""
    tree = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="organ-infer-build-") as name:
        copy = Path(name)
        for file in FILES:
            if (tree / file).is_file():
                # the content alone: permissions may forbid to write
                shutil.copyfile(tree / file, copy / file)
        for directory in DIRECTORIES:
            _copy_directory(tree / directory, copy / directory)
        for file in GENERATED:
            (copy / file).unlink(missing_ok=True)
        os.chdir(copy)
        try:
            yield
        finally:
            os.chdir(tree)


def _copy_directory(source: Path, target: Path) -> None:
    """Copy files without their permissions. `shutil.copytree` would copy those of directories."""
    target.mkdir()
    names = sorted(os.listdir(source))
    for name in sorted({*names} - BUILT(str(source), names)):
        if (source / name).is_dir():
            _copy_directory(source / name, target / name)
        else:
            shutil.copyfile(source / name, target / name)

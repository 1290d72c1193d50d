"""A program that PyInstaller makes: it has the model and onnxruntime, and runs without the environment it was made in."""

import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

import pytest

from organ_infer._pyinstaller import hook_directories

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PROGRAM = """
import sys
from organ_infer.cli import main

sys.exit(main())
"""


def test_the_hook_is_where_the_entry_point_says():
    (directory,) = hook_directories()
    assert (Path(directory) / "hook-organ_infer.py").is_file()
    for entry in entry_points(group="pyinstaller40"):
        if entry.value.startswith("organ_infer"):
            assert entry.load() is hook_directories


def is_installed():
    try:
        version("organ-infer")
    except PackageNotFoundError:
        return False
    return importlib.util.find_spec("PyInstaller") is not None


@pytest.mark.slow
@pytest.mark.skipif(
    not is_installed(), reason="needs pip install pyinstaller, and organ-infer installed by pip"
)
def test_a_frozen_program_classifies_the_examples_elsewhere(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    build = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "ERROR", "--onedir"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([*build, "program.py"], cwd=tmp_path, env=environment, check=True, timeout=900)
    program = tmp_path / "elsewhere" / "program" / "program"
    shutil.move(tmp_path / "dist", tmp_path / "elsewhere")
    paths = sorted(EXAMPLES.glob("*.png"))

    def run(*arguments):
        return subprocess.run(
            [program, *arguments],
            cwd=tmp_path / "elsewhere",
            env={},
            capture_output=True,
            text=True,
        )

    done = run(*paths)
    assert done.returncode == 0, done.stderr
    labels = [line.split()[0] for line in done.stdout.splitlines()]
    expected = [path.stem.rpartition("-")[0] for path in paths]
    # as README's first command is checked
    assert len(labels) == 44 and sum(map(str.__eq__, labels, expected)) >= 42
    assert run("--version").stdout == f"organ-infer {version('organ-infer')}\n"
    checked = run("--check")
    assert checked.returncode == 0, checked.stderr

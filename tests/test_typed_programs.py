"""The Python programs of README and docs pass strict type checkers, so that an editor finds no mistake in a copy of one."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The session types runs them.
pytestmark = pytest.mark.slow
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A directory with every program that is marked as `python` and whose imports are installed."""
    folder = tmp_path_factory.mktemp("programs")
    written = 0
    for page in PAGES:
        blocks = re.findall(r"^```python\n(.+?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        for i, block in enumerate(blocks):
            modules = re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE)
            if all(importlib.util.find_spec(module) for module in modules):
                (folder / f"{page.stem}_{i}.py").write_text(block)
                written += 1
    assert written > 10
    return folder


def checked(checker, *arguments, folder):
    """Run a type checker that finds organ_infer in this tree."""
    return subprocess.run(
        [sys.executable, "-m", checker, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"MYPYPATH": str(ROOT / "runtime")},
    )


def checked_by_mypy(folder):
    pytest.importorskip("mypy", reason="mypy is not installed")
    files = sorted(path.name for path in folder.glob("*.py"))
    cache = str(folder / "cache")
    return checked(
        "mypy", "--strict", "--config-file", "", "--cache-dir", cache, *files, folder=folder
    )


def test_mypy_finds_nothing(programs):
    done = checked_by_mypy(programs)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright_finds_nothing(programs):
    pytest.importorskip("pyright", reason="pyright is not installed")
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT / "runtime")]}
    (programs / "pyrightconfig.json").write_text(json.dumps(settings))
    done = checked("pyright", "--pythonpath", sys.executable, ".", folder=programs)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_mistake_is_found(tmp_path):
    """An answer may be a failure, and pixels have a type."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import numpy as np\nfrom organ_infer import OrganClassifier\n\nclassifier = OrganClassifier()\n"
        "for result in classifier.predict_paths(['a']):\n    print(result.label)\n"
        "classifier.predict('a.png')\nclassifier.predict(np.zeros((2, 2), np.float32))\n"
    )
    done = checked_by_mypy(tmp_path)
    found = [int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line]
    assert found == [6, 7, 8], done.stdout

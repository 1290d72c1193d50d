"""The modules of the web page, called in node."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "export" / "web" / "page"
PROGRAM = Path(__file__).with_suffix(".mjs")


def find_node() -> str | None:
    """Return the path of node if its version is at least 18, whose streams decompress."""
    node = shutil.which("node")
    if node is None:
        return None
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
    return node if int(version.removeprefix("v").partition(".")[0]) >= 18 else None


def encoded(array: NDArray[Any]) -> dict[str, Any]:
    """Return an array as JSON."""
    return {
        "dtype": str(array.dtype),
        "shape": array.shape,
        "data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode(),
    }


def decoded(value: dict[str, Any]) -> NDArray[Any]:
    """Return the array of JSON."""
    return np.frombuffer(base64.b64decode(value["data"]), value["dtype"]).reshape(value["shape"])


def call_page(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Call the page's modules, once per case. Returns a dictionary with `result` or `error` each."""
    node = find_node()
    assert node is not None
    done = subprocess.run(
        [node, PROGRAM, PAGE], input=json.dumps(cases), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results

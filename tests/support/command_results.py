"""What came of a run of organ-infer."""

import json
import re

import numpy as np

RAMP = np.arange(28 * 28).reshape(28, 28, 1).astype(np.uint8)
COLUMNS = ["path", "label", "probability", "organ", "organ_probability", "warnings", "error"]


def rows(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def paths(done):
    return [row["path"] for row in rows(done)]


def failed(done, words, code=2):
    """One error line, nothing on standard output, no traceback."""
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("organ-infer: error: ") and done.stderr.count("\n") == 1, (
        done.stderr
    )
    assert re.search(words, done.stderr), done.stderr

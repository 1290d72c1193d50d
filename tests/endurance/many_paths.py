"""Does memory grow with the number of paths? `python tests/endurance/many_paths.py [--paths 100000]`

Runs organ-infer on 1,000 and on many paths (one in a hundred of them bad), prints the peak resident memory and the
seconds of each, and ends in 1 where the larger takes more than 1.2 times the memory of the smaller, or a row is missing.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.png"))


def run(count: int, folder: Path) -> tuple[float, float, int]:
    """Peak MiB, seconds and rows of one run over `count` paths."""
    listed, rows = folder / "paths", folder / "rows.jsonl"
    bad = folder / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n no more")
    paths = (str(bad) if i % 100 == 99 else str(EXAMPLES[i % len(EXAMPLES)]) for i in range(count))
    listed.write_text("\n".join(paths) + "\n")
    begun = time.perf_counter()
    command = [sys.executable, "-m", "organ_infer", "--device", "cpu", "--quiet", "--format", "jsonl"]
    process = subprocess.Popen(
        [*command, "--files-from", str(listed), "--output", str(rows)], stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    assert os.waitstatus_to_exitcode(status) == 1, "some images are bad: exit code 1 expected"
    with rows.open() as file:
        return usage.ru_maxrss / 1024, seconds, sum(1 for _ in file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paths", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {count: run(count, Path(folder)) for count in (1_000, options.paths)}
    print(f"{'paths':>9}{'rows':>9}{'peak MiB':>10}{'seconds':>9}")
    for count, (peak, seconds, rows) in found.items():
        print(f"{count:>9,}{rows:>9,}{peak:>10.0f}{seconds:>9.1f}")
    few, many = found[1_000][0], found[options.paths][0]
    print(f"{many / few:.2f} times the memory")
    return 0 if many / few <= 1.2 and all(rows == count for count, (_, _, rows) in found.items()) else 1


if __name__ == "__main__":
    sys.exit(main())

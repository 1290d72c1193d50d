"""Is every path answered, and does memory grow with their number? `python tests/endurance/many_paths.py [--paths 100000]`

Runs organ-infer on 1,000 and on many paths, one in a hundred of them bad in one of five ways, from a list and from
standard input. Holds against what was asked: a row a path, in order; each bad one, and no other, an error in its row and a
line on standard error; the same picture the same answer; exit code 1. Prints the peak resident memory and the seconds of
each, and ends in 1 where anything of that fails, or the larger takes more than 1.2 times the memory of the smaller.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.png"))
FEW = 1_000


def bad_paths(folder: Path) -> list[str]:
    """Damaged, not an image, absent, a device, and empty."""
    (folder / "damaged.png").write_bytes(EXAMPLES[0].read_bytes()[:200])
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").touch()
    return [
        str(folder / name) for name in ("damaged.png", "text.png", "absent.png", "empty.png")
    ] + ["/dev/null"]


def run(paths: list[str], folder: Path, source: str) -> tuple[float, float, list[str], list[str]]:
    """Peak MiB, seconds, rows and lines of error of one run."""
    listed, rows, words = folder / "paths", folder / "rows.jsonl", folder / "words"
    listed.write_text("\n".join(paths) + "\n")
    command = [
        sys.executable,
        "-m",
        "organ_infer",
        "--device",
        "cpu",
        "--quiet",
        "--format",
        "jsonl",
    ]
    command += [
        "--output",
        str(rows),
        "--files-from",
        "-" if source == "standard input" else str(listed),
    ]
    begun = time.perf_counter()
    with listed.open() as given, words.open("w") as said:
        process = subprocess.Popen(command, stdin=given, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    code = os.waitstatus_to_exitcode(status)
    assert code == 1, (
        f"some images are bad: exit code 1 expected, found {code}: {words.read_text()[-300:]}"
    )
    left = sorted(path.name for path in folder.iterdir() if path.suffix == ".partial")
    assert not left, f"left over: {left}"
    return (
        usage.ru_maxrss / 1024,
        seconds,
        rows.read_text().splitlines(),
        words.read_text().splitlines(),
    )


def held_against(paths: list[str], bad: list[str], rows: list[str], words: list[str]) -> None:
    assert len(rows) == len(paths), f"{len(paths):,} paths, {len(rows):,} rows"
    errors, answers = iter(words), {}
    for path, line in zip(paths, rows, strict=True):
        row = json.loads(line)
        assert row["path"] == path, f"{path} expected, found {row['path']}"
        assert ("error" in row) == (path in bad), row
        if path in bad:
            assert next(errors) == f"organ-infer: error: {path}: {row['error']}"
        else:
            first = answers.setdefault(path, row)
            assert (
                row["label"] == first["label"]
                and abs(row["probability"] - first["probability"]) < 1e-5
            ), row
    assert next(errors, None) is None, "a line of error too many"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paths", type=int, default=100_000)
    options = parser.parse_args()
    peaks: dict[tuple[str, int], float] = {}
    print(f"{'paths':>9}  {'from':<16}{'bad':>7}{'peak MiB':>10}{'seconds':>9}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bad = bad_paths(folder)
        for source in ("a list", "standard input"):
            for count in (FEW, options.paths):
                paths = [
                    bad[i // 100 % len(bad)] if i % 100 == 99 else str(EXAMPLES[i % len(EXAMPLES)])
                    for i in range(count)
                ]
                peak, seconds, rows, words = run(paths, folder, source)
                held_against(paths, bad, rows, words)
                peaks[source, count] = peak
                print(
                    f"{count:>9,}  {source:<16}{len(words):>7,}{peak:>10.0f}{seconds:>9.1f}",
                    flush=True,
                )
    ratios = {source: peaks[source, options.paths] / peaks[source, FEW] for source, _ in peaks}
    print(
        ", ".join(f"{ratio:.2f} times the memory from {source}" for source, ratio in ratios.items())
    )
    return 0 if max(ratios.values()) <= 1.2 else 1


if __name__ == "__main__":
    sys.exit(main())

"""Size and time of a report of 5,000 slices: `python tests/benchmarks/report_page.py DIR/organamnist.npz`

Writes the first validation slices as PNG files into a temporary directory, classifies them with and without --report, and
opens the page in headless Chromium if there is one. CPU seconds are those of the process, on a busy machine too.
"""

import argparse
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.chromium import BROWSER, opened, with_script  # noqa: E402

COUNT = 5000
# Reports when everything is there and laid out. Pictures below the first screen follow.
TIMER = """
addEventListener("load", () => {
  document.body.offsetHeight;
  document.title = `loaded after ${Math.round(performance.now())} ms`;
});
"""


def write_slices(file: Path, folder: Path) -> None:
    folder.mkdir()
    with np.load(file) as data:
        for i, pixels in enumerate(data["val_images"][:COUNT]):
            Image.fromarray(pixels).save(folder / f"{i:05}.png")


def seconds_of(*arguments: object) -> tuple[float, float]:
    """Run the command, and return its seconds and its CPU seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "organ_infer", *map(str, arguments)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cpu


def load_milliseconds(page: Path) -> str:
    """Open the page in the browser and return what its timer says."""
    timed = page.with_name("timed.html")
    timed.write_text(with_script(page.read_text(encoding="utf-8"), TIMER), encoding="utf-8")
    html, _ = opened(timed, page.with_name("profile"))
    match = re.search(r"<title>(loaded after \d+ ms)", html)
    return match[1] if match else "not loaded"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_slices(arguments.file, folder / "val")
        plain = ("--quiet", "--force", folder / "val", "-o", folder / "rows.csv")
        report = folder / "report.html"
        for label, more in (("without", ()), ("with", ("--report", report))):
            runs = [seconds_of(*plain, *more) for _ in range(arguments.rounds)]
            wall, cpu = (min(column) for column in zip(*runs, strict=True))
            print(f"{label} --report: {wall:.2f} s, {cpu:.2f} CPU seconds")
        print(f"page: {report.stat().st_size / 1e6:.1f} MB")
        if BROWSER is not None:
            print("Chromium:", load_milliseconds(report))


if __name__ == "__main__":
    main()

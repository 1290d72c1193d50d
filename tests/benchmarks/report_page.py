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
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.dumped_page import BROWSER, opened, with_script  # noqa: E402

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


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Run something in other processes, and return its seconds and their CPU seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cpu


def classify(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "organ_infer", *map(str, arguments)], check=True)


def load_time(page: Path) -> str:
    """Open the page in the browser and return what its timer says, and the CPU seconds that an empty page does not need."""
    profile = page.with_name("profile")
    empty, measured = page.with_name("empty.html"), page.with_name("timed.html")
    empty.write_text("<!DOCTYPE html>")
    measured.write_text(with_script(page.read_text(encoding="utf-8"), TIMER), encoding="utf-8")
    # The first start creates the profile.
    opened(empty, profile)
    titles: list[str] = []
    _, base = timed(lambda: opened(empty, profile))
    _, cpu = timed(
        lambda: titles.extend(
            re.findall(r"<title>(loaded after \d+ ms)", opened(measured, profile)[0])
        )
    )
    return f"{titles[0] if titles else 'not loaded'}, {cpu - base:.2f} CPU seconds more than an empty page"


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
            runs = [timed(partial(classify, *plain, *more)) for _ in range(arguments.rounds)]
            wall, cpu = (min(column) for column in zip(*runs, strict=True))
            print(f"{label} --report: {wall:.2f} s, {cpu:.2f} CPU seconds")
        print(f"page: {report.stat().st_size / 1e6:.1f} MB")
        if BROWSER is not None:
            print("Chromium:", load_time(report))


if __name__ == "__main__":
    main()

"""Ray Data on this machine: one worker, two, and two of which some are killed. `python tests/endurance/ray_run.py`

    [--paths 50000] [--rounds 3] [--kills 3] [--bundle DIR] [--seed 0]

One local cluster with two CPUs. Each round classifies the same paths by one worker, by two, and without Ray by one
classifier on one thread and on two; start-up is measured by two paths and taken off for the rate. Then two workers
are killed by SIGKILL at random moments. Every Parquet directory is read back with pandas. Ends in 1 where a row is lost,
doubled, or another one than without Ray.
"""

import argparse
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import pandas
import ray

import organ_infer.ray
from organ_infer import ImageFailure, OrganClassifier

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.png"))
KEYS = ["path", "label", "error"]


def make_paths(folder: Path, count: int) -> list[str]:
    """Distinct names, hard links to the examples; one in a hundred is bad."""
    folder.mkdir()
    (folder / "bad").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    for example in EXAMPLES:
        shutil.copy(example, folder / example.stem)
    paths = []
    for i in range(count):
        path = folder / f"{i:07}.png"
        os.link(folder / ("bad" if i % 100 == 99 else EXAMPLES[i % len(EXAMPLES)].stem), path)
        paths.append(str(path))
    return paths


def alone(paths: list[str], bundle: Path | None, threads: int) -> tuple[float, pandas.DataFrame]:
    """Seconds and rows of one classifier in this process."""
    begun = time.perf_counter()
    with OrganClassifier(bundle, device="cpu", threads=threads) as classifier:
        rows = [
            (p.path, None, p.error) if isinstance(p, ImageFailure) else (p.path, p.label, None)
            for p in classifier.predict_paths(paths)
        ]
    return time.perf_counter() - begun, pandas.DataFrame(rows, columns=KEYS)


def by_ray(
    paths: list[str], bundle: Path | None, workers: int, out: Path
) -> tuple[float, pandas.DataFrame]:
    shutil.rmtree(out, ignore_errors=True)
    begun = time.perf_counter()
    organ_infer.ray.classify(paths, out, bundle=bundle, workers=workers)
    seconds = time.perf_counter() - begun
    return seconds, pandas.read_parquet(out).sort_values("path", ignore_index=True)


def wrong(found: pandas.DataFrame, expected: pandas.DataFrame) -> str:
    """What is the matter with the rows, empty where nothing is."""
    lost = len(set(expected.path) - set(found.path))
    doubled = len(found) - found.path.nunique()
    if lost or doubled or len(found) != len(expected):
        return f"{lost} rows lost, {doubled} doubled"
    left, right = (rows[KEYS].astype(object).fillna("") for rows in (found, expected))
    other = int((left != right).any(axis=1).sum())
    return f"{other} rows differ from those without Ray" if other else ""


def worker_pids() -> list[int]:
    """The actors' processes on this machine, by the title that Ray gives them while they live."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
            except OSError:  # it ended meanwhile
                continue
            if b"MapWorker(MapBatches(ClassifyBatch))" in title:
                found.append(int(entry.name))
    return found


class Killer(threading.Thread):
    """Kills one worker, `after` seconds from when the first is there, unless it is stopped before."""

    def __init__(self, after: float, rng: random.Random) -> None:
        super().__init__()
        self.after, self.rng, self.stopped, self.killed = after, rng, threading.Event(), False

    def run(self) -> None:
        while not worker_pids() and not self.stopped.wait(0.1):
            pass
        if not self.stopped.wait(self.after) and (pids := worker_pids()):
            os.kill(self.rng.choice(sorted(pids)), signal.SIGKILL)
            self.killed = True

    def stop(self) -> None:
        self.stopped.set()
        self.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paths", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=500 << 20, log_to_driver=False
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    rng = random.Random(options.seed)
    told: dict[str, list[float]] = {}
    troubles = []
    with tempfile.TemporaryDirectory() as folder:
        paths, out = make_paths(Path(folder, "slices"), options.paths), Path(folder, "rows")
        few = paths[:2]
        by_ray(few, options.bundle, 1, out)  # what only the first call pays
        for _ in range(options.rounds):
            for threads in (1, 2):
                seconds, expected = alone(paths, options.bundle, threads)
                told.setdefault(f"no Ray, {threads} threads", []).append(seconds)
            for workers in (1, 2):
                start, _ = by_ray(few, options.bundle, workers, out)
                seconds, found = by_ray(paths, options.bundle, workers, out)
                told.setdefault(f"{workers} workers", []).append(seconds)
                told.setdefault(f"{workers} workers, two paths", []).append(start)
                troubles.append(wrong(found, expected))
        print(f"{options.paths:,} paths, {options.rounds} rounds, medians (all)")
        for name, seconds in told.items():
            rate = (
                ""
                if "two paths" in name
                else f"{options.paths / statistics.median(seconds):>8,.0f} a second"
            )
            print(
                f"{name:<24}{statistics.median(seconds):>8.1f} s {rate}  ({', '.join(f'{s:.1f}' for s in seconds)})"
            )
        one, two = (
            statistics.median(
                a - b
                for a, b in zip(told[f"{n} workers"], told[f"{n} workers, two paths"], strict=True)
            )
            for n in (1, 2)
        )
        print(
            f"past start-up: {options.paths / one:,.0f} a second by one worker, {options.paths / two:,.0f} by two: {one / two:.2f} times"
        )

        for turn in range(options.kills):
            after = rng.uniform(0.1, 0.9) * two
            killer = Killer(after, rng)
            killer.start()
            seconds, found = by_ray(paths, options.bundle, 2, out)
            killer.stop()
            trouble = wrong(found, expected) if killer.killed else "nobody was killed"
            troubles.append(trouble)
            print(
                f"kill {turn + 1}, {after:.1f} s from a worker's start, {seconds:.1f} s in all: {len(found):,} rows, "
                f"{trouble or 'none lost, none twice'}"
            )
        files = [path.name for path in out.iterdir()]
        print(
            f"pandas reads {len(found):,} rows, {int(found.error.notna().sum()):,} with an error, of {len(files)} Parquet files"
        )
    return 1 if any(troubles) else 0


if __name__ == "__main__":
    sys.exit(main())

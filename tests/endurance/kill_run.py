"""Kill a smoke run at random moments, then let it end: the same results.json as of a run that was left alone?

    python tests/endurance/kill_run.py --data-dir DIR [--kills 20] [--stages base,batch_norm,resnet50]

Prints what it did and ends in 1 where anything but the seconds differs. Kills are SIGKILL to the process, at a moment
drawn evenly between the start and the length of the run that was left alone.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def results_of(out: Path) -> dict:
    results = json.loads((out / "organamnist" / "results.json").read_text())
    for row in results["stages"]:
        row.pop("seconds"), row.pop("seconds_per_epoch")
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--stages", default="base,early_stopping,big,augmentation,batch_norm,resnet50"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)

    def command(out: Path) -> list[str]:
        fixed = [
            "--dataset",
            "organamnist",
            "--data-dir",
            str(options.data_dir.absolute()),
            "--device",
            "cpu",
            "--smoke",
        ]
        return [
            sys.executable,
            "-m",
            "train.all",
            *fixed,
            "--stages",
            options.stages,
            "--out",
            str(out),
        ]

    with tempfile.TemporaryDirectory() as folder:
        alone, killed = Path(folder, "alone"), Path(folder, "killed")
        begun = time.monotonic()
        subprocess.run(command(alone), cwd=ROOT, check=True, capture_output=True)
        length = time.monotonic() - begun
        print(f"left alone: {length:.0f} s")
        kills = finished = 0
        while kills < options.kills:
            process = subprocess.Popen(
                command(killed), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            after = rng.uniform(0, length)
            try:
                _, said = process.communicate(timeout=after)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
                files = len([p for p in killed.rglob("*") if p.is_file()])
                print(f"kill {kills:>2} after {after:5.1f} s, {files} files there", flush=True)
                continue
            if process.returncode:
                print(f"ended in {process.returncode}: {said.decode().strip()[-300:]}")
                return 1
            finished += 1  # it got to the end before its moment: begin again, as the first time
            if results_of(killed) != results_of(alone):
                break
            subprocess.run(["rm", "-rf", str(killed)], check=True)
        subprocess.run(command(killed), cwd=ROOT, check=True, capture_output=True)
        same = results_of(killed) == results_of(alone)
        left = [str(p) for p in killed.rglob("*.partial")]
        print(
            f"{kills} kills, {finished} runs got to their end between; same results.json: {same}; left over: {left}"
        )
        return 0 if same and not left else 1


if __name__ == "__main__":
    sys.exit(main())

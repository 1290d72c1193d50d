"""Stopped at any moment: `python tests/endurance/stop_run.py [--rounds 20]`

Starts organ-infer on many paths and stops it at moments drawn over the length of a whole run: by SIGINT, SIGTERM and
SIGKILL, with --output and without, and by closing the pipe that it writes to. Holds against it: the exit code, whole lines
that are the first rows in order, FILE only with all of them, and no line on standard error but those of docs/reference/errors.md. Prints a row a
way, and ends in 1 where one of them failed.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.png"))
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9, None: 0}
WORDS = {signal.SIGINT: ["organ-infer: interrupted"], signal.SIGTERM: ["organ-infer: terminated"]}


def handles(pid: int) -> bool:
    """Whether the command has taken SIGTERM over."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(
        int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt")
    )
    return bool(caught >> signal.SIGTERM - 1 & 1)


def once(
    paths: list[str], folder: Path, number: int | None, to_file: bool, after: float
) -> tuple[str, int]:
    """What was wrong, or ""; and how many rows there were. `number`: the signal, None closes the pipe."""
    listed, out, partial = folder / "paths", folder / "out", folder / "out.partial"
    for path in (out, partial):
        path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "organ_infer", "--device", "cpu", "--format", "jsonl"]
    command += ["--files-from", str(listed), *(["--output", str(out)] if to_file else [])]
    with (folder / "stdout").open("w+b") as written, (folder / "stderr").open("w+b") as said:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE if number is None else written,
            stderr=said,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while not handles(process.pid) and process.poll() is None:
            time.sleep(0.001)  # Python itself is starting
        if number is None:
            process.stdout.read(1000 + int(after * 1e5))
            process.stdout.close()
        else:
            time.sleep(after)
            process.send_signal(number)
        code = process.wait(60)
        said.seek(0)
        words = said.read().decode().splitlines()
        words = [line.removesuffix(f"; results so far are in {partial}") for line in words]
    if number is None:
        return ("", 0) if (code, words) == (0, []) else (f"exit code {code}: {words[-1:]}", 0)
    source = (out if out.exists() else partial) if to_file else folder / "stdout"
    text = source.read_text() if source.exists() else ""
    if number == signal.SIGKILL and not to_file:
        text = text[: text.rfind("\n") + 1]  # SIGKILL alone may cut a write
    if text and not text.endswith("\n"):
        return f"half a line: {text[-50:]!r}", 0
    found = [json.loads(line)["path"] for line in text.splitlines()]
    whole = len(found) == len(paths)
    if found != paths[: len(found)]:
        return "rows missing or out of order", 0
    if to_file and out.exists() and (not whole or partial.exists()):
        return "FILE of a run that was stopped", 0
    # Once all is written Python ends, and with it the command's own way of taking a signal.
    if code != CODES.get(number, 0) and not (whole and code in (0, -number)):
        return f"exit code {code}: {words[-1:]}", 0
    if words not in ([], WORDS.get(number, [])):
        return f"on standard error: {words[:2]}", 0
    return "", len(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--paths", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, wrong = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [str(EXAMPLES[i % len(EXAMPLES)]) for i in range(options.paths)]
        (folder / "paths").write_text("\n".join(paths) + "\n")
        begun = time.perf_counter()
        what, count = once(paths, folder, signal.SIGCONT, True, 0)  # which stops nothing
        length = time.perf_counter() - begun
        if what or count != len(paths):
            print(f"left alone: {what or 'rows missing'}")
            return 1
        print(
            f"left alone: {length:.1f} s\n{'stopped by':<14}{'--output':>9}{'rounds':>8}{'wrong':>7}{'rows':>16}"
        )
        for number in CODES:
            for to_file in (True, False) if number is not None else (False,):
                rows, failed = [], []
                for _ in range(options.rounds):
                    what, count = once(paths, folder, number, to_file, rng.uniform(0, length))
                    (failed if what else rows).append(what or count)
                kind = "closed pipe" if number is None else signal.Signals(number).name
                spread = f"{min(rows):,} to {max(rows):,}" if rows and number is not None else ""
                print(
                    f"{kind:<14}{'yes' if to_file else 'no':>9}{options.rounds:>8}{len(failed):>7}{spread:>16}",
                    flush=True,
                )
                for what in failed[:3]:
                    print(f"  {what}")
                wrong += len(failed)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Prove on a machine with a GPU, without network, what only a GPU can prove.

    python tests/gpu/prove.py [--device cuda|cuda:N|cpu] [--quick] [--data-dir DIR] [--budget SECONDS] [--only NAME,...]

Runs the checks of proof/table.py, the most important first, and never stops at a failure. Prints a line per check and
one table at the end; writes the same, with all figures, as JSON after every check. A check that would exceed the time
that is left is listed as "not run: time".
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from proof import machine
from proof.harness import FAILED, NOT_RUN, OK, SKIPPED, Check, Result, Settings, run_checks
from proof.table import CHECKS

EPILOG = """\
packages:
  every check        numpy, Pillow; Cython and a C compiler if organ_infer is not built yet
  runtime            onnxruntime-gpu (a CPU build skips these checks); onnx for fp16 and for the ensemble;
                     torch for beside_torch
  training           torch with CUDA, torchvision
  two_ranks, ladder  all that python -m train.all needs: medmnist, onnx, onnxscript, onnxruntime, scikit-learn, scipy,
                     matplotlib, jinja2; and organamnist.npz in --data-dir
A check whose package is missing is skipped, and names it. Without organamnist.npz made-up slices are used.

exit codes: 0 nothing failed; 1 a check failed; 2 nothing could be run."""

CLOSING = 5.0  # seconds of the budget for what is left to do after the last check
WIDTH = 100  # columns of the table's text


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace; argparse ends the program with 2 for what it cannot take."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--device",
        default="cuda",
        type=_device,
        help="cuda (default), cuda:N, or cpu, which implies --quick",
    )
    add(
        "--quick",
        action="store_true",
        help="small sizes, to see that the checks run; figures mean little",
    )
    add(
        "--data-dir",
        type=Path,
        default=_default_data(),
        metavar="DIR",
        help="where organamnist.npz is (default: ORGAN_DATA_DIR, else medmnist's own folder)",
    )
    add(
        "--budget",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="time for everything (default: 600)",
    )
    add("--only", metavar="NAME,...", help="these checks alone")
    add(
        "--out",
        type=Path,
        default=Path("gpu_report.json"),
        metavar="FILE",
        help="default: gpu_report.json",
    )
    add("--list", action="store_true", help="list the checks and end")
    options = parser.parse_args(arguments)
    names = [check.name for check in CHECKS]
    wanted = options.only.split(",") if options.only else names
    if unknown := [name for name in wanted if name not in names]:
        parser.error(f"--only: unknown check {unknown[0]!r}; choose from {', '.join(names)}")
    options.checks = [check for check in CHECKS if check.name in wanted]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    begun = time.monotonic()
    options = parse_arguments(arguments)
    if options.list:
        print(listing(options.checks))
        return 0
    # Nothing may be left in the user's cache, and nothing is sent.
    os.environ |= {
        "ORGAN_INFER_CACHE": "",
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }
    os.environ.pop("ORGAN_INFER_BUNDLE", None)
    if problem := machine.use_tree():
        return _cannot(problem)
    about = machine.describe()
    if options.device != "cpu" and (problem := no_gpu(about)):
        return _cannot(problem)
    print(first_line(about), flush=True)
    with tempfile.TemporaryDirectory(prefix="organ-prove-") as scratch:
        quick = options.quick or options.device == "cpu"
        data = options.data_dir.resolve() if options.data_dir else None
        settings = Settings(options.device, quick, data, Path(scratch))
        report = Report(options, about, quick)
        try:
            report.write()
        except OSError as e:
            return _cannot(f"cannot write {options.out}: {e.strerror}; choose another --out")
        left = options.budget - (time.monotonic() - begun) - CLOSING
        run_checks(options.checks, settings, left, report.add)
    print(table(report.results))
    counts = ", ".join(
        f"{sum(result.verdict == verdict for result in report.results)} {verdict}"
        for verdict in (OK, FAILED, SKIPPED, NOT_RUN)
    )
    print(f"\n{counts}; {time.monotonic() - begun:.0f} s; report: {options.out}")
    return exit_code(report.results)


def first_line(about: dict[str, Any]) -> str:
    """What is checked, and on what."""
    torch, runtime = about.get("torch", {}), about.get("onnxruntime", {})
    gpus = torch.get("devices") or about.get("nvidia_smi")
    return (
        f"commit {about.get('commit')}, organ_infer of {about.get('organ_infer')}; GPU: {gpus}; "
        f"torch {torch.get('version')}, onnxruntime {runtime.get('version')}"
    )


def exit_code(results: Sequence[Result]) -> int:
    """1 if a check failed, 2 if none was run, else 0."""
    if any(result.verdict == FAILED for result in results):
        return 1
    return 0 if any(result.verdict == OK for result in results) else 2


def no_gpu(about: dict[str, Any]) -> str | None:
    """Why no check can use a GPU here, in one line; None if one can."""
    torch, runtime = about.get("torch", {}), about.get("onnxruntime", {})
    if torch.get("cuda_available") or "CUDAExecutionProvider" in runtime.get("providers", []):
        return None
    found = [
        f"torch {torch['version']} sees no GPU"
        if "version" in torch
        else f"torch: {torch.get('error', 'no answer')}",
        f"onnxruntime offers {', '.join(runtime['providers'])}"
        if "providers" in runtime
        else f"onnxruntime: {runtime.get('error', 'no answer')}",
    ]
    return f"no GPU can be used: {'; '.join(found)}; --device cpu runs small forms of the checks"


class Report:
    """gpu_report.json, written anew after every check, so that a run that is killed leaves what it has."""

    def __init__(self, options: argparse.Namespace, about: dict[str, Any], quick: bool) -> None:
        self.path: Path = options.out
        self.begun = time.monotonic()
        self.results: list[Result] = []
        self.head = {
            "format": 1,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "device": options.device,
            "quick": quick,
            "budget": options.budget,
            "machine": about,
        }

    def add(self, result: Result) -> None:
        self.results.append(result)
        text = result.reason or result.summary
        print(f"{result.name}: {result.verdict}, {text}  [{result.seconds:.1f} s]", flush=True)
        self.write()

    def write(self) -> None:
        rows = [result.as_json() for result in self.results]
        whole = self.head | {"seconds": time.monotonic() - self.begun, "checks": rows}
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(json.dumps(whole, indent=1, default=str) + "\n")
        os.replace(partial, self.path)


def table(results: Sequence[Result]) -> str:
    """check, result, seconds, and the figures in a few words or the reason."""
    lines = [f"\n{'check':18} {'result':13} {'seconds':>7}  figures"]
    for result in results:
        text = (
            f"{result.reason} | {result.summary}"
            if result.reason and result.summary
            else result.reason or result.summary
        )
        first, *rest = _wrapped(text)
        lines.append(f"{result.name:18} {result.verdict:13} {result.seconds:7.1f}  {first}")
        lines += [f"{'':41} {line}" for line in rest]
    return "\n".join(lines)


def listing(checks: Sequence[Check]) -> str:
    """The checks in their order, with the seconds expected on one H100."""
    return "\n".join(
        f"{check.name:18} {check.group:9} {check.seconds:4.0f} s{'+' if check.fills else ' '} {check.proves}"
        for check in checks
    )


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, WIDTH, break_long_words=False) or [""]


def _device(text: str) -> str:
    kind, colon, number = text.partition(":")
    if text in ("cpu", "cuda") or (kind == "cuda" and colon and number.isdecimal()):
        return text
    raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, found {text!r}")


def _default_data() -> Path | None:
    named = os.environ.get("ORGAN_DATA_DIR")
    usual = Path.home() / ".medmnist"
    return Path(named) if named else usual if usual.is_dir() else None


def _cannot(problem: str) -> int:
    print(f"prove: error: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    # As Ctrl-C: the worker and what it started are ended as well.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())

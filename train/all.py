"""python -m train.all: train every stage of the ladder, export each, and leave a bundle and a report.

Everything goes under OUT/DATASET. A run that was stopped, at any moment, goes on where it was when the same command
is given again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from train.arguments import device_name, natural, positive

EPILOG = """\
examples:
  python -m train.all                                    the study's data set, OrganSMNIST; everything
  python -m train.all --dataset organamnist --stages base,batch_norm
  python -m train.all --smoke                            a few batches of everything, to prove the line
  torchrun --nproc-per-node 4 -m train.all               the networks side by side, one a GPU

exit codes: 0 done; 1 a stage failed; 2 usage, data, weights, device or a directory in use; 130, 143 after a signal.
Research software, not a medical device."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace; argparse ends the program with 2 for what it cannot take."""
    parser = argparse.ArgumentParser(
        prog="python -m train.all",
        description=__doc__.split("\n\n")[0].split(": ", 1)[1].capitalize(),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", default="organsmnist", help="organsmnist (default), organamnist or organcmnist")
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where the data set is or goes (default: medmnist's own folder)",
    )
    add("--out", type=Path, default=Path("runs"), metavar="DIR", help="where everything goes (default: runs)")
    add("--stages", metavar="LIST", help="names with commas between (default: all, base to edge)")
    add(
        "--device",
        type=device_name,
        default="auto",
        metavar="DEVICE",
        help="auto (default: a GPU if there is one), cpu, cuda or cuda:N",
    )
    add(
        "--amp",
        choices=("auto", "bf16", "fp16", "off"),
        default="auto",
        help="precision of the forward pass: auto (default: bf16 if the device computes it natively, else float32), bf16,"
        " fp16 with loss scaling, or off for float32",
    )
    add("--size", type=int, default=28, choices=(28, 64, 128, 224), help="pixels a side (default: 28)")
    add(
        "--resample-from",
        type=int,
        choices=(64, 128, 224),
        metavar="SIZE",
        help="make the slices from the file of 64, 128 or 224 px, as the runtime resamples (area averages)",
    )
    add("--seed", type=natural, default=1, help="default: 1")
    add(
        "--seeds",
        type=positive,
        default=1,
        metavar="K",
        help="repeat each stage with K seeds, from --seed on",
    )
    add("--batch-size", type=positive, default=128, help="default: 128")
    add(
        "--max-epochs",
        action="append",
        default=[],
        metavar="N",
        help="at most N epochs a stage, or STAGE=N for one of them (ensemble=N: its ResNets); may be repeated",
    )
    add("--weights", choices=("imagenet", "none"), default="imagenet", help="what the ResNets start from")
    add(
        "--weights-dir",
        type=Path,
        metavar="DIR",
        help="resnet50.pth and so on, where they cannot be downloaded",
    )
    add(
        "--precision",
        default="int8,fp32,fp16",
        metavar="LIST",
        help="forms to try for the bundle: fp32, always there, int8 and fp16 where validation accepts them",
    )
    add(
        "--parallel",
        choices=("stages", "batches"),
        default="stages",
        help="what several processes share (torchrun)",
    )
    add("--deterministic", action="store_true", help="equal results from run to run on CUDA too (slower)")
    add(
        "--smoke",
        action="store_true",
        help="a few batches of every stage, from scratch; the figures mean nothing",
    )
    add("--fresh", action="store_true", help="start over: forget what the directory holds")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit code."""
    options = parse_arguments(arguments)
    received: list[int] = []

    def stop(number: int, _frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    from train.errors import RunError

    try:
        from train.run import run

        run(options)
    except RunError as e:
        print(f"train: error: {e}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("train: stopped; the same command goes on from the last finished epoch", file=sys.stderr)
        return 128 + (received[0] if received else signal.SIGINT)
    except ImportError as e:
        print(
            f"train: error: {e.name} is not installed: pip install -e '.[train,cpu]' (or train,gpu)",
            file=sys.stderr,
        )
        return 2
    except OSError as e:
        where = e.filename or options.out
        print(f"train: error: {e.strerror or e}: {where}; what was finished before is kept", file=sys.stderr)
        return 1
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError):
                signal.signal(number, handler)
    return 0


def run_and_exit() -> NoReturn:
    """Run the command and end the process.

    A process that failed in a group leaves at once: an orderly end would wait for the others, which wait for it.
    """
    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = 1
    if code and "torch" in sys.modules:
        from train.parallel import joined

        if joined():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run_and_exit()

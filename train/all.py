"""python -m train.all: train every stage, export each to ONNX, and write a bundle and a report.

Everything goes under OUT/DATASET. Rerun the same command to resume an interrupted run.
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

from export.console import forgiving_output
from organ_infer.bundle.manifest import RESAMPLE
from train.arguments import device_name, names, natural, positive, temperature
from train.datasets import DATASETS, SIZES
from train.options import TrainOptions

EPILOG = """\
examples:
  python -m train.all                                    every stage on OrganSMNIST, the reference study's data set
  python -m train.all --dataset organamnist --stages base,batch_norm
  python -m train.all --smoke                            a few batches of everything, to try the pipeline
  python -m train.all --dataset folder:PATH --plan       your own images: stages, disk, memory and time, then stop
  torchrun --nproc-per-node 4 -m train.all               several networks at a time, one per GPU

exit codes: 0 done; 1 a stage failed; 2 usage, data, weights, device or directory in use; 130, 143 after a signal.
Research software, not a medical device."""


def parse_arguments(arguments: list[str] | None = None) -> TrainOptions:
    """Parse the command line.

    Args:
        arguments: without the program's name; by default those of this process.

    Returns:
        The options.

    Raises:
        SystemExit: an option is invalid (exit code 2), or --help was given.
    """
    values = vars(_parser().parse_args(arguments))
    # an empty --stages stands for all of them
    stages = None if values["stages"] == ("",) else values["stages"]
    return TrainOptions(**values | {"max_epochs": tuple(values["max_epochs"]), "stages": stages})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train.all",
        description="Train every stage, export each to ONNX, and write a bundle and a report.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--dataset",
        default=TrainOptions.dataset,
        metavar="NAME",
        help=f"data set: {', '.join(DATASETS)}, or your own: folder:PATH or npz:FILE (default: {TrainOptions.dataset})",
    )
    add(
        "--split",
        metavar="SHARES",
        help="shares of train, val and test, such as 0.8,0.1,0.1, for a folder without them",
    )
    add(
        "--group-by",
        metavar="REGEX",
        help="the group in this pattern names the patient in a path; a patient stays in one split",
    )
    add(
        "--pairs",
        type=Path,
        metavar="FILE",
        help="CSV of left,right,organ: the two sides of an organ (default: classes named ORGAN-left and ORGAN-right)",
    )
    add(
        "--orientation",
        metavar="XY",
        help="orientation of your own slices: patient directions (L R A P H F) in which row and column index grow"
        " (default: that of DICOM files, else unknown)",
    )
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="directory of the data set's file, downloaded if the directory is empty (default: medmnist's own folder)",
    )
    add(
        "--out",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="directory for all output (default: runs)",
    )
    add(
        "--stages",
        type=names,
        metavar="LIST",
        help="stage names separated by commas (default: all, base to edge)",
    )
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
        help="precision of the forward pass; auto (default) is bf16 if the device supports it, else off (float32)",
    )
    add(
        "--size",
        type=int,
        default=28,
        choices=SIZES,
        help="pixels per side of the input (default: 28)",
    )
    add(
        "--resample-from",
        type=int,
        choices=SIZES[1:],
        metavar="SIZE",
        help="resample the slices from the data set's file of this size: 64, 128 or 224 px",
    )
    add(
        "--resample",
        default="area",
        choices=RESAMPLE,
        help="how slices are resampled, by --resample-from and by the bundle (default: area)",
    )
    add("--seed", type=natural, default=1, metavar="N", help="seed of the run (default: 1)")
    add(
        "--seeds",
        type=positive,
        default=1,
        metavar="K",
        help="train each stage with K seeds, counted up from --seed (default: 1)",
    )
    add(
        "--batch-size",
        type=positive,
        default=128,
        metavar="N",
        help="slices per training step (default: 128)",
    )
    add(
        "--max-epochs",
        action="append",
        default=[],
        metavar="N",
        help="most epochs of every stage, or STAGE=N for one stage; may be repeated",
    )
    add(
        "--weights",
        choices=("imagenet", "none"),
        default="imagenet",
        help="starting weights of the ResNets (default: imagenet)",
    )
    add(
        "--weights-dir",
        type=Path,
        metavar="DIR",
        help="directory of the ImageNet weights, such as resnet50.pth (default: download them)",
    )
    add(
        "--precision",
        type=names,
        default=TrainOptions.precision,
        metavar="LIST",
        help="precisions to try for the bundle, separated by commas (default: int8,fp32,fp16)",
    )
    add(
        "--temperature",
        type=temperature,
        metavar="T",
        help="divide the logits of the bundle by T, such as the temperature that python -m train.edge.ablate fits on"
        " held-out slices (default: fitted on corrupted validation slices)",
    )
    add(
        "--fast-member",
        metavar="STAGE",
        help="the network that organ-infer --fast runs alone, of a bundle that averages several (default: the best on"
        " validation)",
    )
    add(
        "--parallel",
        choices=("stages", "batches"),
        default="stages",
        help="what the processes of torchrun divide among them: stages or batches (default: stages)",
    )
    add(
        "--deterministic", action="store_true", help="reproducible results on CUDA as well (slower)"
    )
    add(
        "--smoke",
        action="store_true",
        help="train every stage on a few batches, to test the pipeline; the results mean nothing",
    )
    add(
        "--fresh",
        action="store_true",
        help="remove the results of earlier runs from the directory and start over",
    )
    add(
        "--plan",
        action="store_true",
        help="print the stages, their parameters, disk, memory and the estimated time on this device, then stop",
    )
    add(
        "--tensorboard",
        type=Path,
        metavar="DIR",
        help="also write the figures of each epoch and pictures of each stage for TensorBoard",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the program's name; by default those of this process.

    Returns:
        The exit code, as the epilog of --help lists them.
    """
    with forgiving_output():
        return _run(parse_arguments(arguments))


def _run(options: TrainOptions) -> int:
    """Run the command. Returns the exit code."""
    received: list[int] = []

    def stop(number: int, _frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    previous_handlers = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    from organ_infer.engine.cpu_count import usable_processors
    from organ_infer.engine.threads import limit_libraries
    from train.errors import RunError

    try:
        limit_libraries(usable_processors())
        try:
            from train.run import run

            run(options)
        except Exception:
            # what a signal raises inside an extension module can come out as another error
            if received:
                raise KeyboardInterrupt from None
            raise
    except RunError as e:
        print(f"train: error: {e}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print(
            "train: stopped; rerun the same command to continue from the last finished epoch",
            file=sys.stderr,
        )
        return 128 + (received[0] if received else signal.SIGINT)
    except ImportError as e:
        print(
            f"train: error: {e.name}: not installed; run pip install -e '.[train,cpu]' (or train,gpu)",
            file=sys.stderr,
        )
        return 2
    except OSError as e:
        path = e.filename2 or e.filename or options.out
        print(
            f"train: error: {path}: {e.strerror or e}; rerun the same command to resume after the"
            " finished stages",
            file=sys.stderr,
        )
        return 1
    except Exception as e:
        from export.machine import machine_failure

        reason = machine_failure(e)
        if reason is None:
            raise
        print(
            f"train: error: {reason}; free memory or disk space, and rerun the same command to resume",
            file=sys.stderr,
        )
        return 1
    finally:
        for number, handler in previous_handlers.items():
            with contextlib.suppress(ValueError):
                signal.signal(number, handler)
    return 0


def run_and_exit() -> NoReturn:
    """Run the command and exit with its code.

    A process that fails in a group exits at once. An orderly exit would wait for the other processes, which wait for
    this one.
    """
    try:
        code = main()
    except Exception:
        with forgiving_output():
            traceback.print_exc()
        code = 1
    if code and "torch" in sys.modules:
        from train.parallel import is_joined

        if is_joined():
            with forgiving_output():
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run_and_exit()

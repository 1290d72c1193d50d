"""python -m export.all: export checkpoints to verified ONNX members and, on request, to one bundle.

This is the only module of export/ that imports train/: it rebuilds the networks and loads the validation split.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.console import run_command

if TYPE_CHECKING:
    import numpy as np

    from export.bundle import Trained
    from train.checkpoint import Checkpoint, StageFacts
    from train.data import Data


@dataclass(frozen=True)
class ExportOptions:
    """The options of the command.

    Attributes:
        checkpoints: RUN/STAGE/checkpoint.pt, one or more.
        data_dir: The directory of the data set. None: the one that the run of the first checkpoint used.
        out: The directory for STAGE.onnx. None: member.onnx beside each checkpoint.
        bundle: The directory for a bundle. None: no bundle.
        precisions: The precisions to try for the bundle. None: all.
        merged: The file for one graph of all members. None: no such graph.
        resample: How the bundle resamples slices. None: as in training.
        temperature: Divides the logits. None: fitted on corrupted validation slices.
        fast_member: The stage that the bundle names for --fast of the runtime. None: the best on validation.
        force: Whether existing files are replaced without a note.
    """

    checkpoints: tuple[Path, ...]
    data_dir: Path | None
    out: Path | None
    bundle: Path | None
    precisions: tuple[str, ...] | None
    merged: Path | None
    resample: str | None = None
    temperature: float | None = None
    fast_member: str | None = None
    force: bool = False


@dataclass(frozen=True)
class CheckpointFile:
    """A finished checkpoint and its path."""

    path: Path
    checkpoint: Checkpoint

    @property
    def facts(self) -> StageFacts:
        """What the stage trained, on which data."""
        return self.checkpoint.facts


@dataclass(frozen=True)
class Exported:
    """A verified member: a trained network as an ONNX file.

    Attributes:
        trained: The stage and the file.
        logits: float32 (N, classes), of the validation slices.
        fitting_logits: float32 (N, classes), of the slices that the temperature of a merged graph is fitted on. None
            if no merged graph was requested.
        orientation: float32 (N, 9), of the validation slices. None if the network does not know when not to answer.
    """

    trained: Trained
    logits: np.ndarray
    fitting_logits: np.ndarray | None
    orientation: np.ndarray | None = None


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Of the command line. None: sys.argv.

    Returns:
        The exit code: 0 done, 1 an export failed, 2 nothing could be done.
    """
    return run_command("export", lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    """Run the command. Returns the exit code."""
    from organ_infer.engine.cpu_count import usable_processors
    from organ_infer.engine.threads import limit_libraries

    options = _parse(arguments)
    limit_libraries(usable_processors())
    try:
        from export.member import ExportError
        from train.errors import RunError
    except ImportError as e:
        return _report_missing_package(e)
    try:
        export(options)
    except RunError as e:
        print(f"export: error: {e}", file=sys.stderr)
        return 2
    except ExportError as e:
        print(f"export: error: {e}", file=sys.stderr)
        return 1
    except OSError as e:
        path = f"{e.filename}: " if e.filename else ""
        print(f"export: error: {path}{e.strerror or e}", file=sys.stderr)
        return 2
    except ImportError as e:
        return _report_missing_package(e)
    except Exception as e:
        from export.machine import machine_failure

        reason = machine_failure(e)
        if reason is None:
            raise
        print(
            f"export: error: {reason}; free memory or disk space and rerun the command",
            file=sys.stderr,
        )
        return 1
    return 0


def _parse(arguments: list[str] | None) -> ExportOptions:
    from organ_infer.bundle.manifest import RESAMPLE
    from train.arguments import temperature

    parser = argparse.ArgumentParser(
        prog="python -m export.all",
        description="Export checkpoints of python -m train.all to ONNX and compare each with PyTorch on validation.",
        epilog="A bundle of several checkpoints averages their probabilities. Research software, not a medical device.",
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="checkpoints to export, such as runs/organsmnist/base/checkpoint.pt",
    )
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="directory of the data set's file, downloaded if the directory is empty (default: the one that the run used)",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="directory for STAGE.onnx (default: member.onnx beside each checkpoint)",
    )
    add(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="also write a bundle of the networks; it replaces an existing bundle",
    )
    add(
        "--precision",
        metavar="LIST",
        help="precisions to try for the bundle, separated by commas (default: int8,fp32,fp16)",
    )
    add(
        "--merged",
        type=Path,
        metavar="FILE",
        help="also write one ONNX file of all networks, which returns the mean probabilities",
    )
    add(
        "--resample",
        choices=RESAMPLE,
        help="how the bundle resamples slices (default: as the run of the first checkpoint)",
    )
    add(
        "--temperature",
        type=temperature,
        metavar="T",
        help="divide the logits by T, such as the temperature that python -m train.edge.ablate fits on held-out slices"
        " (default: fitted on corrupted validation slices)",
    )
    add(
        "--fast-member",
        metavar="STAGE",
        help="the network that organ-infer --fast runs alone, of the bundle's several (default: the best on validation)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace an existing bundle or file of --bundle, --merged and --out without a note",
    )
    values = parser.parse_args(arguments)
    return ExportOptions(
        checkpoints=tuple(values.checkpoint),
        data_dir=values.data_dir,
        out=values.out,
        bundle=values.bundle,
        precisions=None if values.precision is None else tuple(values.precision.split(",")),
        merged=values.merged,
        resample=values.resample,
        temperature=values.temperature,
        fast_member=values.fast_member,
        force=values.force,
    )


def _report_missing_package(error: ImportError) -> int:
    """Print the command that installs a missing package. Returns the exit code."""
    print(
        f"export: error: {error.name}: not installed; run pip install -e '.[train,cpu]' (or train,gpu)",
        file=sys.stderr,
    )
    return 2


def export(options: ExportOptions) -> None:
    """Export every checkpoint, then write the merged graph and the bundle if requested.

    Args:
        options: Of the command.

    Raises:
        ExportError: A member is not the trained network, or a file cannot be written.
        RunError: The options, a checkpoint or the data cannot be used.
    """
    from train import calibration, parallel
    from train.data import load_data
    from train.data_dir import data_dir_of_checkpoint, own_data_of_checkpoint

    _check_options(options)
    parallel.limit_threads()
    checkpoints = [_load(path) for path in options.checkpoints]
    _check_checkpoints(checkpoints, options)
    if not options.force:
        _note_replaced(checkpoints, options)
    first = checkpoints[0].facts
    data = own_data_of_checkpoint(
        checkpoints[0].path, first.dataset, options.data_dir, options.resample
    ) or load_data(
        first.dataset,
        size=first.size,
        directory=data_dir_of_checkpoint(checkpoints[0].path, options.data_dir),
        resample_from=first.stored,
        resample=options.resample or first.resample,
    )
    if first.smoke:
        print(
            f"export: warning: {checkpoints[0].path}: from a smoke run, its figures mean nothing; train without --smoke",
            file=sys.stderr,
        )
    data = calibration.add_calibration_split(data.smoke() if first.smoke else data)
    members = [_export_member(checkpoint, options, data) for checkpoint in checkpoints]
    if options.merged:
        _write_merged(options.merged, options, members, data)
    if options.bundle:
        _write_bundle(options.bundle, options, checkpoints, members, data)


def _check_options(options: ExportOptions) -> None:
    """Raise RunError if an option cannot be used, before anything is read or written."""
    from export.bundle import check_place
    from export.member import ExportError
    from export.variants import PRECISIONS
    from train.errors import RunError

    if options.bundle:
        try:
            check_place(options.bundle)
        except ExportError as e:
            raise RunError(f"--bundle: {e}") from e
    for precision in options.precisions or ():
        if precision not in PRECISIONS:
            raise RunError(
                f"--precision: unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}"
            )


def _load(path: Path) -> CheckpointFile:
    """Read a checkpoint. Raises RunError if its stage is not finished."""
    from train.checkpoint import read_checkpoint
    from train.errors import RunError

    checkpoint = read_checkpoint(path)
    if not checkpoint.finished:
        raise RunError(
            f"{path}: training of this stage is not finished; resume it with python -m train.all"
        )
    return CheckpointFile(path, checkpoint)


def _check_checkpoints(checkpoints: Sequence[CheckpointFile], options: ExportOptions) -> None:
    """Raise RunError if the checkpoints cannot be exported together."""
    from train.errors import RunError

    stages = [checkpoint.facts.stage for checkpoint in checkpoints]
    if (options.bundle or options.merged or options.out) and len(set(stages)) < len(stages):
        repeated = next(stage for stage in stages if stages.count(stage) > 1)
        raise RunError(
            f"--checkpoint: stage {repeated} is given twice; with --bundle, --merged and --out pass each stage once"
        )
    _check_fast_member(stages, options)
    first = checkpoints[0]
    for checkpoint in checkpoints:
        for text, value, expected in (
            ("the data set is {}", checkpoint.facts.dataset, first.facts.dataset),
            ("the input has {} px per side", checkpoint.facts.size, first.facts.size),
            ("the stored slices have {} px per side", checkpoint.facts.stored, first.facts.stored),
            ("resampled by {}", checkpoint.facts.resample, first.facts.resample),
            ("from a {} run", *(_kind(c.facts.smoke) for c in (checkpoint, first))),
        ):
            if value != expected:
                raise RunError(
                    f"{checkpoint.path}: {text.format(value)}, but {first.path}: {text.format(expected)}; export them"
                    " separately"
                )


def _check_fast_member(stages: Sequence[str], options: ExportOptions) -> None:
    """Raise RunError if --fast-member names no stage of a bundle of several."""
    from train.errors import RunError

    if options.fast_member is None:
        return
    if options.bundle is None or len(stages) == 1:
        raise RunError(
            "--fast-member: needs --bundle and several checkpoints; leave it out, one network is always used alone"
        )
    if options.fast_member not in stages:
        raise RunError(
            f"--fast-member: no checkpoint of stage {options.fast_member!r}; choose from {', '.join(stages)}"
        )


def _kind(smoke: bool) -> str:
    return "smoke" if smoke else "full"


def _note_replaced(checkpoints: Sequence[CheckpointFile], options: ExportOptions) -> None:
    """Print a note on each existing bundle or file that will be replaced."""
    places = [("--bundle", options.bundle), ("--merged", options.merged)]
    if options.out:
        places += [("--out", _member_file(checkpoint, options)) for checkpoint in checkpoints]
    for option, path in places:
        if path and path.exists() and not (path.is_dir() and not any(path.iterdir())):
            print(
                f"export: note: {option} {path}: exists and will be replaced; --force omits this note",
                file=sys.stderr,
            )


def _member_file(checkpoint: CheckpointFile, options: ExportOptions) -> Path:
    """Return the ONNX file of a checkpoint."""
    if options.out:
        return options.out / f"{checkpoint.facts.stage}.onnx"
    return checkpoint.path.with_name("member.onnx")


def _export_member(checkpoint: CheckpointFile, options: ExportOptions, data: Data) -> Exported:
    """Export one checkpoint and print the comparison with PyTorch."""
    from export.bundle import Trained
    from export.member import export_member
    from export.variants import logits_of
    from train import calibration
    from train.fit import network_of

    file = _member_file(checkpoint, options)
    parity = export_member(
        network_of(checkpoint.checkpoint),
        file,
        data.images["val"],
        data.labels["val"],
        size=data.size,
        resample=data.resample,
    )
    fitting_logits = None
    if options.merged:
        fitting_logits = logits_of(
            file.read_bytes(), data.images[calibration.SPLIT], data.size, data.resample
        )
    print(
        f"{file}: {parity.slices} validation slices, logits within {parity.max_abs:.1e} of PyTorch's, "
        f"accuracy {parity.accuracy:.4f}"
    )
    trained = Trained(checkpoint.facts.stage, file)
    return Exported(trained, parity.logits, fitting_logits, parity.orientation)


def _write_merged(
    path: Path, options: ExportOptions, members: Sequence[Exported], data: Data
) -> None:
    """Write one graph of all members, with the temperature given or fitted to their float32 networks."""
    import numpy as np
    import onnx

    from export.member import write_model
    from export.merge import check_merged, merge
    from export.rewrite import rewrite
    from export.temperature import Labeled, fit_temperature, mean_softmax, why_rejected
    from train import calibration

    fitting_logits = [m.fitting_logits for m in members if m.fitting_logits is not None]
    labels = data.labels[calibration.SPLIT]
    temperature, rejected = options.temperature, ""
    if temperature is None:
        temperature = fit_temperature(fitting_logits, labels)
        rejected = why_rejected(
            temperature,
            Labeled(fitting_logits, labels),
            Labeled([m.logits for m in members], data.labels["val"]),
        )
    if rejected:
        temperature = 1.0
        print(f"{rejected}; it stays 1")
    merged = merge(
        {m.trained.stage: rewrite(onnx.load(m.trained.file)) for m in members},
        temperature=temperature,
    )
    expected = mean_softmax([m.logits for m in members], temperature)
    orientations = [m.orientation for m in members if m.orientation is not None]
    check_merged(
        merged,
        expected,
        data.images["val"],
        data.size,
        data.resample,
        orientation=np.mean(orientations, axis=0) if orientations else None,
    )
    write_model(merged, path)
    print(f"{path}: {len(members)} members in one graph, temperature {temperature:g}")


def _write_bundle(
    directory: Path,
    options: ExportOptions,
    checkpoints: Sequence[CheckpointFile],
    members: Sequence[Exported],
    data: Data,
) -> None:
    """Write a bundle of all members and print its validation accuracy."""
    from export.bundle import write_bundle
    from export.bundle_info import BundleInfo
    from export.variants import PRECISIONS
    from train import calibration
    from train.ensemble import mean_probabilities
    from train.fit import probabilities
    from train.metrics import measure
    from train.own_data.bundle import own_slices

    name = checkpoints[0].facts.stage if len(checkpoints) == 1 else "ensemble"
    weights = sorted({checkpoint.facts.weights for checkpoint in checkpoints} - {"none"})
    val_metrics = measure(
        mean_probabilities([probabilities(m.logits) for m in members]), data.labels["val"]
    )
    info = BundleInfo(
        name=f"{data.flag}-{name}",
        dataset=data.flag,
        view=data.view,
        classes=data.classes,
        size=data.size,
        metrics={"val": val_metrics.for_manifest()},
        training={
            "seed": checkpoints[0].facts.seed,
            "data_md5": data.md5,
            "weights": "; ".join(weights) or "none",
            "versions": {},
            "temperature_fitted_on": calibration.describe_split(data),
            "smoke": checkpoints[0].facts.smoke,
        },
        resample=data.resample,
        own=own_slices(data),
    )
    write_bundle(
        directory,
        info,
        [m.trained for m in members],
        calibration.variant_slices(data),
        precisions=tuple(PRECISIONS) if options.precisions is None else options.precisions,
        temperature=options.temperature,
        fast_member=options.fast_member,
    )
    print(f"{directory}: {len(members)} members, validation accuracy {val_metrics.accuracy:.4f}")


if __name__ == "__main__":
    sys.exit(main())

"""A whole run: trains, measures and exports every stage, then measures test and writes the bundle and the report."""

from __future__ import annotations

import importlib
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export.bundle import Trained, write_bundle
from export.bundle_info import GIVEN_TEMPERATURE, BundleInfo
from export.calibrated import best_member
from export.member import ExportError, check_installed
from export.variants import PRECISIONS
from organ_infer import BundleError
from organ_infer.bundle.files import open_bundle
from train import calibration, devices, fit, parallel, record
from train.bundled import describe_bundle
from train.checkpoint import read_checkpoint
from train.data import Data, load_data
from train.disk import check_space
from train.download import digest_of
from train.errors import RunError
from train.jobs import Job, epoch_caps, plan_jobs
from train.json_format import to_json
from train.options import TrainOptions
from train.own_data.bundle import own_slices
from train.own_data.load import SLICES_FILE, data_line, load_own, print_warning, slices_csv
from train.own_data.request import OwnRequest, own_request
from train.progress import phase
from train.results import (
    PREDICTIONS_FILES,
    PROBABILITIES_FILE,
    measure_stage,
    measure_test,
    open_results,
    summary,
    table,
)
from train.results_format import (
    MANIFEST_METRICS,
    RESULTS_FILE,
    ROBUSTNESS_FILE,
    SPLITS,
    Results,
    StageResult,
    write_results,
)
from train.robustness import measure_robustness
from train.stages import LISTED, STAGES, Stage, chosen_stages
from train.tensorboard import Board, writer_class

# test slices of the robustness measurement; in a smoke run also the validation slices for the temperature
CORRUPTED, SMOKE_CORRUPTED = 1000, 4


STAGE_FILES = (
    "checkpoint.pt",
    "history.csv",
    PROBABILITIES_FILE,
    *PREDICTIONS_FILES.values(),
    "member.onnx",
)


@dataclass(frozen=True)
class Plan:
    """The command line, checked: what to train, where, and the precisions of the bundle."""

    options: TrainOptions
    stages: list[Stage]
    # epochs at most, by stage or "all"
    caps: dict[str, int]
    precisions: Sequence[str]
    device: torch.device
    # all processes of this run
    group: parallel.Group
    # the data set of the user, if it is one
    own: OwnRequest | None = None

    @property
    def directory(self) -> Path:
        """The directory of the data set below --out."""
        options = self.options
        suffix = "" if options.size == 28 else f"_{options.size}"
        if options.resample_from:
            suffix += f"_from_{options.resample_from}"
        if options.resample != "area":
            suffix += f"_{options.resample}"
        return options.out / f"{self.own.flag if self.own else options.dataset}{suffix}"

    @property
    def settings(self) -> dict[str, object]:
        """The options that results.json records and that must be equal when a run is resumed."""
        options = self.options
        return (self.own.settings if self.own else {}) | {
            "seed": options.seed,
            "seeds": options.seeds,
            "size": options.size,
            "resample_from": options.resample_from,
            "resample": options.resample,
            "batch_size": options.batch_size,
            "weights": "none" if options.smoke else options.weights,
            "smoke": options.smoke,
            "max_epochs": self.caps,
            "deterministic": options.deterministic,
            "amp": options.amp,
        }

    def jobs(self) -> list[Job]:
        """Return the jobs: every stage with every seed."""
        return plan_jobs(self.stages, self.options, self.caps, self.directory)


def run(options: TrainOptions) -> None:
    """Train, measure and export the stages, then write the bundle and the report.

    Args:
        options: the command line of `train.all`.

    Raises:
        RunError: the run cannot start or continue. Everything that can be checked is checked before the first epoch.
    """
    plan = _check_options(options)
    parallel.limit_threads()
    if plan.group.first:
        print(devices.device_line(plan.device, options.amp), flush=True)
    data = _load(plan)
    if options.smoke:
        data = data.smoke()
    if options.plan:
        _print_plan(plan, data)
        return
    board = Board(options.tensorboard, plan.directory.name) if options.tensorboard else None
    if not plan.group.first:
        _train_in_group(plan, plan.jobs(), data, board)
        return
    with record.locked(plan.directory):
        results = _prepare_directory(plan, data)
        jobs = plan.jobs()
        _check_weights(jobs, data)
        processes = plan.group.size if options.parallel == "stages" else 1
        print(check_space(plan.directory, jobs, data, plan.precisions, processes), flush=True)
        write_results(plan.directory, results)
        if data.own:
            record.atomic_write(plan.directory / SLICES_FILE, slices_csv(data))
        _train_in_group(plan, jobs, data, board)
        parallel.use_all_processors()
        data = calibration.add_calibration_split(
            data, SMOKE_CORRUPTED if options.smoke else calibration.SLICES
        )
        with phase("measuring", _print_line):
            _measure_all(plan, jobs, data, results)
        with phase("robustness", _print_line):
            _measure_robustness(plan.directory, data, results, plan.device)
        with phase("bundle", _print_line):
            bundle = _bundles(
                plan.directory,
                data,
                results,
                options.seeds,
                plan.precisions,
                options.temperature,
                options.fast_member,
            )
        with phase("report", _print_line):
            _write_report(plan.directory, data, board)
        _print_outcome(plan.directory, results, bundle)


def _print_plan(plan: Plan, data: Data) -> None:
    """Print what the run would do, from a few timed steps. Nothing is written."""
    from train.plan import plan_lines

    options = plan.options
    lines = plan_lines(
        plan.jobs(), data, plan.device, plan.directory, plan.precisions, fresh=options.fresh
    )
    for line in lines:
        print(line, flush=True)


def _load(plan: Plan) -> Data:
    """Load the data set. The first process reports what it should know about one of the user."""
    options = plan.options
    if plan.own:
        warn = print_warning if plan.group.first else lambda line: None
        data = load_own(plan.own, size=options.size, resample=options.resample, warn=warn)
        if plan.group.first:
            print(data_line(data), flush=True)
        return data
    return load_data(
        options.dataset,
        size=options.size,
        directory=options.data_dir,
        resample_from=options.resample_from,
        resample=options.resample,
    )


def _check_options(options: TrainOptions) -> Plan:
    """Check the command line and the packages that the end of the run needs. Raises RunError."""
    own = own_request(options)
    stages = chosen_stages(options.stages or LISTED)
    caps = epoch_caps(options.max_epochs)
    precisions = options.precision
    if unknown := [name for name in precisions if name not in PRECISIONS]:
        raise RunError(
            f"--precision: unknown precision {unknown[0]!r}; choose from {', '.join(PRECISIONS)}"
        )
    _check_fast_member(options.fast_member, stages)
    device = devices.choose_device(options.device, deterministic=options.deterministic)
    group = parallel.group_from_environment()
    parallel.check(group, device, options.parallel)
    if options.plan and group.size > 1:
        raise RunError("--plan: measures one process; run it without torchrun")
    # batch normalization needs two slices per process
    least = 2 * (group.size if options.parallel == "batches" else 1)
    if options.batch_size < least:
        raise RunError(
            f"--batch-size: expected {least} or more for batch normalization, found {options.batch_size}"
        )
    if options.tensorboard:
        writer_class()
    # report a package that the end of the run needs before training
    try:
        importlib.import_module("train.report.page")
    except OSError as e:
        raise RunError(
            f"matplotlib: cannot be loaded ({e.strerror or e}); set MPLCONFIGDIR to a directory that can be written"
        ) from e
    try:
        check_installed()
    except ExportError as e:
        raise RunError(str(e)) from e
    return Plan(options, stages, caps, precisions, device, group, own)


def _check_fast_member(name: str | None, stages: Sequence[Stage]) -> None:
    """Raise RunError if --fast-member names no member of an average that is trained."""
    members = [member for stage in stages for member in stage.members]
    if name is None or name in members:
        return
    remedy = (
        f"choose from {', '.join(members)}"
        if members
        else "leave it out, no average is among --stages"
    )
    raise RunError(f"--fast-member: {name!r} is no member of an average that is trained; {remedy}")


def _prepare_directory(plan: Plan, data: Data) -> Results:
    """Remove old files from the run's directory. Returns the existing results, or new ones."""
    if plan.options.fresh:
        _remove_results(plan.directory)
    _check_places(plan)
    record.sweep_partials(plan.directory)
    return open_results(
        plan.directory, data, plan.device, plan.settings, data_dir=plan.options.data_dir
    )


def _check_places(plan: Plan) -> None:
    """Raise RunError if a directory has the name of a file of the run, or a file that of a directory."""
    run, stages = plan.directory, [job.directory for job in plan.jobs()]
    report = run / "report"
    pages = list(report.iterdir()) if report.is_dir() else []
    files = [run / name for name in (RESULTS_FILE, "results.csv", ROBUSTNESS_FILE, SLICES_FILE)]
    files += pages
    files += [stage / name for stage in stages for name in STAGE_FILES]
    for path in files:
        if path.is_dir():
            raise RunError(
                f"{path}: a directory, but the run has a file of this name; move it away"
            )
    for path in (report, run / "bundle", *stages):
        if path.exists() and not path.is_dir():
            raise RunError(
                f"{path}: not a directory, but the run has one of this name; move it away"
            )


def _measure_all(plan: Plan, jobs: list[Job], data: Data, results: Results) -> None:
    """Measure every stage on train and validation. Then, when every choice has been made, measure once on test."""
    for job in jobs:
        measure_stage(job, data, plan.device, results)
        write_results(plan.directory, results)
    for job in jobs:
        measure_test(job, data, plan.device, results)
    results.stages.sort(key=lambda row: (list(STAGES).index(row.name), row.seed))
    if plan.options.seeds > 1:
        results.summary = summary(results.stages)
    write_results(plan.directory, results)


def _print_outcome(directory: Path, results: Results, bundle: Path) -> None:
    """Print the table and the paths of the report and the bundle."""
    print(table(results))
    print(f"\nreport  {directory / 'report' / 'index.html'}\nbundle  {bundle}")
    if last := _last_measured(results):
        row = results.best_row(last, tested=True)
        assert row is not None
        for line in describe_bundle(results, last, row.seed):
            print(f"        {line}")
    print(f"use it  organ-infer --bundle {shlex.quote(str(bundle))} images/*.png")
    if results.smoke:
        print("A smoke run: the figures above mean nothing.")
        print(
            f"warning: {bundle}: from a smoke run, its answers mean nothing; train without --smoke"
        )


def _remove_results(directory: Path) -> None:
    """Remove what earlier runs wrote to `directory`, and nothing else."""
    for name in (RESULTS_FILE, "results.csv", ROBUSTNESS_FILE, SLICES_FILE):
        _remove(directory / name)
    averages = [f"bundle-{stage.name}" for stage in STAGES.values() if stage.members]
    for name in ("bundle", *averages, "report", *STAGES):
        _remove(directory / name)


def _remove(path: Path) -> None:
    """Remove a file, a link or a directory, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _check_weights(jobs: list[Job], data: Data) -> None:
    """Load the ImageNet weights of every stage without a checkpoint, so that a missing file is reported at once."""
    for job in jobs:
        if job.stage.pretrained and not (job.directory / "checkpoint.pt").exists():
            fit.starting_network(job.stage, data, job.config)


def _train_in_group(plan: Plan, jobs: list[Job], data: Data, board: Board | None) -> None:
    """Train the networks with the other processes of the run."""
    share = plan.options.parallel
    parallel.join(plan.group, plan.device, share)
    _train_all(jobs, data, plan.device, plan.group, share, board)
    parallel.leave(plan.group)


def _train_all(
    jobs: list[Job],
    data: Data,
    device: torch.device,
    group: parallel.Group,
    share: str,
    board: Board | None = None,
) -> None:
    """Train the jobs that have a network, each by all processes together or each by one process."""
    jobs = [job for job in jobs if job.stage.network]

    def watching(job: Job) -> dict[str, Any]:
        """Return the argument of `fit` that writes the job's epochs to the board."""
        shown = board and (group.first or share == "stages")
        return {"watch": board.watch(job, data)} if board and shown else {}

    if share == "batches":
        for job in jobs:
            fit.fit(
                job.stage,
                data,
                job.config,
                device,
                job.directory,
                report=_print_line,
                group=group,
                label=job.label,
                **watching(job),
            )
        return
    # the most expensive networks first; process i of n takes every n-th from the i-th on
    order = (
        sorted(jobs, key=lambda job: -list(STAGES).index(job.stage.name))
        if group.size > 1
        else jobs
    )
    for job in order[group.rank :: group.size]:
        fit.fit(
            job.stage,
            data,
            job.config,
            device,
            job.directory,
            report=_print_line,
            label=job.label,
            **watching(job),
        )
    group.wait()


def _measure_robustness(
    directory: Path, data: Data, results: Results, device: torch.device
) -> None:
    """Measure the stages whose row asks for it on some slices; python -m train.robustness measures all."""
    names = [stage.name for stage in STAGES.values() if stage.robustness]
    slices = SMOKE_CORRUPTED if results.smoke else CORRUPTED
    measure_robustness(
        directory, data, results, names, slices=slices, device=device, report=lambda line: None
    )


def _bundles(
    directory: Path,
    data: Data,
    results: Results,
    seeds: int,
    precisions: Sequence[str],
    temperature: float | None = None,
    fast_member: str | None = None,
) -> Path:
    """Write the bundle of the run, with a temperature if one was given, and return its directory.

    It contains the last measured stage of the ladder. Each average before that stage gets its own, `bundle-NAME`. An
    average of which `fast_member` is a member names it as its fast one.
    """
    measured = {row.name for row in results.stages if row.test}
    last = _last_measured(results)
    for name in STAGES:
        if STAGES[name].members and name in measured - {last}:
            _bundle(
                directory / f"bundle-{name}",
                name,
                data,
                results,
                seeds,
                precisions,
                temperature,
                fast_member,
            )
    return _bundle(
        directory / "bundle", last, data, results, seeds, precisions, temperature, fast_member
    )


def _last_measured(results: Results) -> str:
    """Return the last stage of the ladder that was measured on test; an empty text if there is none."""
    measured = {row.name for row in results.stages if row.test}
    return next((name for name in reversed(STAGES) if name in measured), "")


def _bundle(
    directory: Path,
    last: str,
    data: Data,
    results: Results,
    seeds: int,
    precisions: Sequence[str],
    temperature: float | None = None,
    fast_member: str | None = None,
) -> Path:
    """Write the bundle of the stage `last` unless it is current. Of several seeds it gets the best on validation."""
    best = results.best_row(last, tested=True)
    assert best is not None
    members = []
    for stage in STAGES[last].members or (last,):
        stage_dir = directory.parent / stage
        folder = stage_dir if seeds == 1 else stage_dir / f"seed-{best.seed}"
        members.append(Trained(stage, folder / "member.onnx"))
        _check_measured(members[-1], best.seed, results)
    suffix = "" if data.size == 28 else f"-{data.size}"
    name = f"{data.flag}{suffix}-{last}{'-smoke' if results.smoke else ''}"
    training = _training_record(best, members, data, results, precisions)
    if temperature is not None:
        training["temperature_fitted_on"] = GIVEN_TEMPERATURE
    if fast_member not in STAGES[last].members:
        fast_member = None
    if _is_current(directory, name, training, temperature, fast_member):
        _print_line(f"{directory.name:<14} of the same networks already; not written again")
        return directory
    try:
        return write_bundle(
            directory,
            BundleInfo(
                name=name,
                dataset=data.flag,
                view=data.view,
                classes=data.classes,
                size=data.size,
                resample=data.resample,
                metrics=_metrics(best, results),
                training=training,
                own=own_slices(data),
            ),
            members,
            calibration.variant_slices(data),
            precisions=precisions,
            temperature=temperature,
            fast_member=fast_member,
            report=_print_line,
        )
    except ExportError as e:
        raise RunError(str(e), exit_code=1) from e


def _check_measured(member: Trained, seed: int, results: Results) -> None:
    """Raise RunError if an exported network is not the one that was measured."""
    row = next((r for r in results.stages if (r.name, r.seed) == (member.stage, seed)), None)
    expected = row.export.sha256 if row and row.export else None
    if expected and digest_of(member.file, "sha256") != expected:
        raise RunError(
            f"{member.file}: not the network that was measured; rebuild it with --stages {member.stage}",
            exit_code=1,
        )


def _training_record(
    row: StageResult,
    members: list[Trained],
    data: Data,
    results: Results,
    precisions: Sequence[str],
) -> dict[str, Any]:
    """Return the manifest's record of a stage's training."""
    training: dict[str, Any] = {
        "seed": row.seed,
        "data_md5": data.md5,
        "weights": row.weights,
        "versions": results.versions,
        "device": results.device,
        "smoke": results.smoke,
        "precisions_tried": list(precisions),
        "temperature_fitted_on": calibration.describe_split(data),
        "members": {member.stage: digest_of(member.file, "sha256") for member in members},
    }
    if STAGES[row.name].card:
        checkpoint = read_checkpoint(members[0].file.with_name("checkpoint.pt"))
        training["recipe"] = {
            "network": f"{STAGES[row.name].card} of {row.parameters:,} parameters",
            "epochs": row.epochs,
            "settings": dict(checkpoint.facts.settings.method),
        }
    return training


def _metrics(row: StageResult, results: Results) -> dict[str, Any]:
    """Return the manifest's metrics: those of the row by split, and with several seeds their means."""
    metrics: dict[str, Any] = {}
    for split in SPLITS:
        measured = row.on(split)
        assert measured is not None
        metrics[split] = measured.for_manifest()
    if row.calibration:
        metrics["val"]["ece_calibrated"] = row.calibration.val_ece
        metrics["test"]["ece_calibrated"] = row.calibration.test_ece
    entry = next((entry for entry in results.summary if entry.name == row.name), None)
    if entry:
        spread = {
            s: {key: to_json(entry.on(s)[key]) for key in MANIFEST_METRICS} for s in ("val", "test")
        }
        metrics["seeds"] = {"count": len(entry.seeds)} | spread
    return metrics


def _is_current(
    bundle: Path,
    name: str,
    training: dict[str, Any],
    temperature: float | None = None,
    fast_member: str | None = None,
) -> bool:
    """Return whether a bundle exists, is complete, and was made from the same networks with the same options."""
    try:
        manifest = open_bundle(bundle).manifest
    except BundleError:
        return False
    if temperature not in (None, manifest.temperature):
        return False
    if fast_member is None and len(manifest.members) > 1:
        fast_member = best_member(manifest.members).stage
    # Bundles of earlier versions name none.
    if fast_member != (manifest.fast and manifest.fast.stage):
        return False
    calibrated = "ece" in (manifest.metrics.get("val_as_listed") or {})
    return manifest.name == name and dict(manifest.training) == training and calibrated


def _write_report(directory: Path, data: Data, board: Board | None) -> None:
    from train.report import write_report

    if board is None:
        write_report(directory, data)
        return
    write_report(directory, data, show=board.add_figures)
    board.close()


def _print_line(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)

"""A whole run: the stages in order, each trained, measured and exported; then test, the bundle, the report."""

from __future__ import annotations

import argparse
import importlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from export.bundle import Trained, write_bundle
from export.forms import PRECISIONS
from export.member import ExportError, check_installed
from organ_infer import BundleError
from organ_infer.bundle.files import open_bundle, sha256_of
from train import calibration, devices, fit, parallel, record
from train.data import Data, load_data
from train.errors import RunError
from train.jobs import Job, epoch_caps, plan
from train.results import measure_stage, measure_test, opened, summary, table
from train.robustness import measure_robustness
from train.stages import RUNGS, STAGES, chosen_stages

ROBUST = ("ensemble", "edge")  # stages whose accuracy on corrupted slices is measured
# slices that are corrupted: of test, and of validation for the temperature
CORRUPTED, SMOKE_CORRUPTED = 1000, 4


def run(options: argparse.Namespace) -> None:
    """Do what the command line asks. Raises RunError; what can be found wrong beforehand is found before an epoch."""
    stages = chosen_stages(options.stages.split(",") if options.stages else list(RUNGS))
    caps = epoch_caps(options.max_epochs)
    precisions = options.precision.split(",")
    if unknown := [name for name in precisions if name not in PRECISIONS]:
        raise RunError(f"--precision: {unknown[0]!r} is none of {', '.join(PRECISIONS)}")
    device = devices.choose_device(options.device, deterministic=options.deterministic)
    group = parallel.launched()
    parallel.check(group, device, options.parallel)
    least = 2 * (group.size if options.parallel == "batches" else 1)  # slices that batch normalisation needs
    if options.batch_size < least:
        raise RunError(f"--batch-size takes {least} or more here, found {options.batch_size}")
    importlib.import_module("train.report.page")  # what a run needs at its end is missed now
    try:
        check_installed()
    except ExportError as e:
        raise RunError(str(e)) from e
    if group.first:
        print(devices.device_line(device, options.amp), flush=True)
    data = load_data(
        options.dataset, size=options.size, directory=options.data_dir, resample_from=options.resample_from
    )
    if options.smoke:
        data = data.smoke()
    suffix = "" if options.size == 28 else f"_{options.size}"
    if options.resample_from:
        suffix += f"_from_{options.resample_from}"
    directory = options.out / f"{options.dataset}{suffix}"
    settings = {
        "seed": options.seed,
        "seeds": options.seeds,
        "size": options.size,
        "resample_from": options.resample_from,
        "batch_size": options.batch_size,
        "weights": "none" if options.smoke else options.weights,
        "smoke": options.smoke,
        "max_epochs": caps,
        "deterministic": options.deterministic,
        "amp": options.amp,
    }
    if not group.first:
        parallel.join(group, device, options.parallel)
        _train_all(plan(stages, options, caps, directory), data, device, group, options.parallel)
        parallel.leave(group)
        return
    with record.locked(directory):
        if options.fresh:
            _clear(directory)
        record.sweep_partials(directory)
        results = opened(directory, data, device, settings)
        jobs = plan(stages, options, caps, directory)
        _check_weights(jobs, data)
        _write_results(directory, results)
        parallel.join(group, device, options.parallel)
        _train_all(jobs, data, device, group, options.parallel)
        parallel.leave(group)
        parallel.use_all_processors()
        data = calibration.fitted_on(data, SMOKE_CORRUPTED if options.smoke else calibration.SLICES)
        for job in jobs:
            measure_stage(job, data, device, results)
            _write_results(directory, results)
        for job in jobs:  # test, once, when every choice has been made
            measure_test(job, data, device, results)
        results["stages"].sort(key=lambda row: (list(STAGES).index(row["name"]), row["seed"]))
        if options.seeds > 1:
            results["summary"] = summary(results["stages"])
        _write_results(directory, results)
        _measure_robustness(directory, data, results, device)
        bundle = _bundles(directory, data, results, options.seeds, precisions)
        _write_report(directory, data)
        print(table(results))
        print(f"\nreport  {directory / 'report' / 'index.html'}\nbundle  {bundle}")
        print(f"use it  organ-infer --bundle {bundle} images/*.png")
        if options.smoke:
            print("A smoke run: the figures above mean nothing.")


def _clear(directory: Path) -> None:
    """Remove what runs leave in `directory`, and nothing else."""
    for name in ("results.json", "results.csv", "robustness.json"):
        (directory / name).unlink(missing_ok=True)
    for name in ("bundle", "bundle-ensemble", "report", *STAGES):
        shutil.rmtree(directory / name, ignore_errors=True)


def _check_weights(jobs: list[Job], data: Data) -> None:
    """Load the ImageNet weights of every stage that has not begun, so that a missing file is found at once."""
    for job in jobs:
        if job.stage.pretrained and not (job.directory / "checkpoint.pt").exists():
            fit.starting_network(job.stage, data, job.recipe)


def _train_all(jobs: list[Job], data: Data, device: torch.device, group: parallel.Group, share: str) -> None:
    """Train the jobs that are single networks: all by every process together, or each by one process."""
    jobs = [job for job in jobs if job.stage.network]
    if share == "batches":
        for job in jobs:
            fit.fit(job.stage, data, job.recipe, device, job.directory, say=_say, group=group)
        return
    # the dearest networks first, dealt out in turn
    order = sorted(jobs, key=lambda job: -list(STAGES).index(job.stage.name)) if group.size > 1 else jobs
    for job in order[group.rank :: group.size]:
        fit.fit(job.stage, data, job.recipe, device, job.directory, say=_say)
    group.wait()


def _write_results(directory: Path, results: dict[str, Any]) -> None:
    record.write_json(directory / "results.json", results)


def _measure_robustness(directory: Path, data: Data, results: dict[str, Any], device: torch.device) -> None:
    """Of the ensemble and of edge, where they are; the command python -m train.robustness does any stage and all slices."""
    slices = SMOKE_CORRUPTED if results["smoke"] else CORRUPTED
    measure_robustness(directory, data, results, ROBUST, slices=slices, device=device, say=lambda line: None)


def _bundles(
    directory: Path, data: Data, results: dict[str, Any], seeds: int, precisions: Sequence[str]
) -> Path:
    """The bundle: `edge` once it is trained, then the ensemble has one of its own beside it; before that the ensemble;
    before that the last single network."""
    names = [row["name"] for row in results["stages"] if row["test"]]
    if "edge" in names and "ensemble" in names:
        _bundle(directory / "bundle-ensemble", "ensemble", data, results, seeds, precisions)
    last = next((name for name in ("edge", "ensemble") if name in names), names[-1])
    return _bundle(directory / "bundle", last, data, results, seeds, precisions)


def _bundle(
    place: Path, last: str, data: Data, results: dict[str, Any], seeds: int, precisions: Sequence[str]
) -> Path:
    """The bundle of the stage `last` at `place`; of several seeds the best on validation."""
    rows = [row for row in results["stages"] if row["test"]]
    directory = place.parent
    best = max((row for row in rows if row["name"] == last), key=lambda row: row["val"]["accuracy"])
    members = []
    for name in STAGES[last].members or (last,):
        home = directory / name if seeds == 1 else directory / name / f"seed-{best['seed']}"
        members.append(Trained(name, home / "member.onnx"))
    suffix = "" if data.size == 28 else f"-{data.size}"
    name = f"{data.flag}{suffix}-{last}{'-smoke' if results['smoke'] else ''}"
    training = {
        "seed": best["seed"],
        "data_md5": data.md5,
        "weights": best["weights"],
        "versions": results["versions"],
        "device": results["device"],
        "smoke": results["smoke"],
        "precisions_tried": list(precisions),
        "temperature_fitted_on": calibration.described(data),
        "members": {member.stage: sha256_of(member.file) for member in members},
    }
    keys = ("accuracy", "auc", "ece")
    metrics: dict[str, Any] = {s: {key: best[s][key] for key in keys} for s in ("train", "val", "test")}
    for split in ("val", "test"):
        metrics[split]["ece_calibrated"] = best["calibration"][f"{split}_ece"]
    entry = next((entry for entry in results.get("summary", []) if entry["name"] == last), None)
    if entry:
        spread = {s: {key: entry[s][key] for key in keys} for s in ("val", "test")}
        metrics["seeds"] = {"count": len(entry["seeds"])} | spread
    if STAGES[last].method == "edge":
        training["recipe"] = {
            "network": f"A residual network of {best['parameters']:,} parameters",
            "epochs": best["epochs"],
            "settings": record.load_checkpoint(members[0].file.with_name("checkpoint.pt"))["recipe"][
                "method"
            ],
        }
    if _is_current(place, name, training):
        return place
    try:
        return write_bundle(
            place,
            dataset=data.flag,
            view=data.view,
            classes=data.classes,
            size=data.size,
            members=members,
            slices=calibration.judged_with(data),
            metrics=metrics,
            training=training,
            precisions=precisions,
            name=name,
            say=_say,
        )
    except ExportError as e:
        raise RunError(str(e), exit_code=1) from e


def _is_current(bundle: Path, name: str, training: dict[str, Any]) -> bool:
    """Whether the bundle that is there is whole and was made from the same networks."""
    try:
        manifest = open_bundle(bundle).manifest
    except BundleError:
        return False
    calibrated = "ece" in manifest.metrics.get("val_as_listed", {})
    return manifest.name == name and dict(manifest.training) == training and calibrated


def _write_report(directory: Path, data: Data) -> None:
    from train.report import write_report

    write_report(directory, data)


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)

"""A whole run: the stages in order, each trained, measured and exported; then test, the bundle, the report."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.bundle import Trained, write_bundle
from export.member import ExportError, check_installed, export_member
from train import fit, parallel, record
from train.data import Data, load_data
from train.ensemble import mean_probabilities
from train.metrics import measure
from train.networks import make_network
from train.record import RunError
from train.stages import RUNGS, STAGES, Stage, chosen_stages

SMOKE_EPOCHS = 2
VERSIONS = (
    "torch",
    "torchvision",
    "medmnist",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "scikit-learn",
    "numpy",
)


@dataclass(frozen=True)
class Job:
    """One stage with one seed, and the directory it writes to."""

    stage: Stage
    recipe: fit.Recipe
    directory: Path


def run(options: argparse.Namespace) -> None:
    """Do what the command line asks. Raises RunError; what can be found wrong beforehand is found before an epoch."""
    stages = chosen_stages(options.stages.split(",") if options.stages else list(RUNGS))
    caps = _caps(options.max_epochs)
    device = _device(options)
    group = parallel.launched()
    check_installed()
    data = load_data(options.dataset, size=options.size, directory=options.data_dir)
    if options.smoke:
        data = data.smoke()
    suffix = "" if options.size == 28 else f"_{options.size}"
    directory = options.out / f"{options.dataset}{suffix}"
    settings = {
        "seed": options.seed,
        "seeds": options.seeds,
        "size": options.size,
        "batch_size": options.batch_size,
        "weights": "none" if options.smoke else options.weights,
        "smoke": options.smoke,
        "max_epochs": caps,
    }
    if not group.first:
        parallel.join(group, device)
        try:
            _train_all(_jobs(stages, options, caps, directory), data, device, group, options.parallel)
        finally:
            parallel.leave(group)
        return
    with record.locked(directory):
        if options.fresh:
            _clear(directory)
        record.sweep_partials(directory)
        results = _opened(directory, data, device, settings)
        jobs = _jobs(stages, options, caps, directory)
        _check_weights(jobs, data)
        _write_results(directory, results)
        parallel.join(group, device)
        try:
            _train_all(jobs, data, device, group, options.parallel)
        finally:
            parallel.leave(group)
        for job in jobs:
            _measure(job, data, device, results)
            _write_results(directory, results)
        for job in jobs:  # test, once, when every choice has been made
            _measure_test(job, data, device, results)
        results["stages"].sort(key=lambda row: (list(STAGES).index(row["name"]), row["seed"]))
        if options.seeds > 1:
            results["summary"] = _summary(results["stages"])
        _write_results(directory, results)
        bundle = _bundle(directory, data, results, options.seeds)
        _write_report(directory, data)
        print(_table(results))
        print(f"\nreport  {directory / 'report' / 'index.html'}\nbundle  {bundle}")
        print(f"use it  organ-infer --bundle {bundle} images/*.png")
        if options.smoke:
            print("A smoke run: the figures above mean nothing.")


def _caps(given: list[str]) -> dict[str, int]:
    """--max-epochs as {stage or "all": N}."""
    caps = {}
    for text in (part for entry in given for part in entry.split(",")):
        name, _, number = text.rpartition("=")
        if not number.isdecimal() or int(number) < 1:
            raise RunError(f"--max-epochs takes N or STAGE=N with N from 1 on, found {text!r}")
        if name and name not in STAGES:
            raise RunError(f"--max-epochs: unknown stage {name!r}; choose from {', '.join(STAGES)}")
        caps[name or "all"] = int(number)
    return dict(sorted(caps.items()))


def _device(options: argparse.Namespace) -> torch.device:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: PyTorch finds no CUDA GPU here; use --device auto or cpu")
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if options.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _jobs(
    stages: list[Stage], options: argparse.Namespace, caps: dict[str, int], directory: Path
) -> list[Job]:
    jobs = []
    members = STAGES["ensemble"].members
    for stage in stages:
        cap = caps.get(stage.name)
        if cap is None and stage.pretrained and stage.name in members:
            cap = caps.get("ensemble")
        cap = min(
            stage.max_epochs, cap or caps.get("all") or (SMOKE_EPOCHS if options.smoke else stage.max_epochs)
        )
        for seed in range(options.seed, options.seed + options.seeds):
            recipe = fit.Recipe(
                seed=seed,
                batch_size=options.batch_size,
                max_epochs=cap,
                weights="none" if options.smoke else options.weights,
                weights_dir=options.weights_dir,
                smoke=options.smoke,
            )
            place = directory / stage.name if options.seeds == 1 else directory / stage.name / f"seed-{seed}"
            jobs.append(Job(stage, recipe, place))
    return jobs


def _opened(directory: Path, data: Data, device: torch.device, settings: dict[str, Any]) -> dict[str, Any]:
    """The results so far; RunError names the first setting that differs from those of this run."""
    path = directory / "results.json"
    fresh = {
        "format": 1,
        "smoke": settings["smoke"],
        "dataset": {
            "flag": data.flag,
            "size": data.size,
            "md5": data.md5,
            "counts": data.counts,
            "classes": data.classes,
        },
        "device": _device_name(device),
        "versions": _versions(),
        "settings": settings,
        "stages": [],
    }
    if not path.exists():
        return fresh
    old = record.read_json(path)
    if not isinstance(old, dict) or not isinstance(old.get("settings"), dict):
        raise RunError(
            f"{path} is not a results file of this program; move it away or start over with --fresh"
        )
    for key, value in settings.items():
        if old["settings"].get(key) != value:
            raise RunError(
                f"{directory} was trained with {key} {old['settings'].get(key)}, this run has {value}; "
                f"use --fresh to start over, or another --out"
            )
    return fresh | {"stages": old.get("stages", [])}


def _clear(directory: Path) -> None:
    """Remove what runs leave in `directory`, and nothing else."""
    for name in ("results.json", "results.csv"):
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


def _measure(job: Job, data: Data, device: torch.device, results: dict[str, Any]) -> None:
    """Measure a trained stage on train and validation, export and verify it; its row in results."""
    member = job.directory / "member.onnx"
    kept = job.directory / "probabilities.npz"
    if _row(results, job) and kept.exists() and (member.exists() or not job.stage.network):
        return
    if job.stage.network:
        state = record.load_checkpoint(job.directory / "checkpoint.pt")
        network = make_network(
            state["network"], classes=len(data.classes), size=data.size, seed=job.recipe.seed
        )
        network.load_state_dict(state["state"])
        try:
            parity = export_member(network, member, data.images["val"], data.labels["val"])
        except ExportError as e:
            raise RunError(f"export of {job.stage.name}: {e}", exit_code=1) from e
        network.to(device)
        found = {s: fit.probabilities(fit.evaluate(network, data.images[s])) for s in ("train", "val")}
        seconds = [epoch["seconds"] for epoch in state["history"]]
        row = {
            "network": state["network"],
            "parameters": state["parameters"],
            "epochs": len(state["history"]),
            "best_epoch": state["best_epoch"],
            "seconds": sum(seconds),
            "seconds_per_epoch": sum(seconds) / len(seconds),
            "weights": state["weights"],
            "export": {"max_abs": parity.max_abs, "val_accuracy": parity.accuracy, "slices": parity.slices},
        }
        print(
            f"{job.stage.name:<14} exported: {parity.slices} slices through onnxruntime, logits within "
            f"{parity.max_abs:.1e} of PyTorch's, val accuracy {parity.accuracy:.4f}",
            flush=True,
        )
    else:
        members = [_member_of(job, name) for name in job.stage.members]
        found = {
            s: mean_probabilities([np.load(m / "probabilities.npz")[s] for m in members])
            for s in ("train", "val")
        }
        rows = [_row(results, Job(STAGES[name], job.recipe, job.directory)) for name in job.stage.members]
        row = {
            "network": "mean probability of " + ", ".join(job.stage.members),
            "parameters": sum(r["parameters"] for r in rows),
            "epochs": sum(r["epochs"] for r in rows),
            "best_epoch": None,
            "seconds": sum(r["seconds"] for r in rows),
            "seconds_per_epoch": sum(r["seconds_per_epoch"] for r in rows),
            "weights": "; ".join(dict.fromkeys(r["weights"] for r in rows if r["weights"] != "none"))
            or "none",
        }
    record.atomic_save(kept, lambda file: np.savez(file, **found))
    results["stages"] = [r for r in results["stages"] if not _is_of(r, job)]
    results["stages"].append(
        {"name": job.stage.name, "seed": job.recipe.seed}
        | row
        | {split: measure(found[split], data.labels[split]) for split in ("train", "val")}
        | {"test": None}
    )


def _measure_test(job: Job, data: Data, device: torch.device, results: dict[str, Any]) -> None:
    """Measure a stage on test, where it has not been."""
    row, kept = _row(results, job), job.directory / "probabilities.npz"
    found = dict(np.load(kept))
    if row["test"] and "test" in found:
        return
    if job.stage.network:
        state = record.load_checkpoint(job.directory / "checkpoint.pt")
        network = make_network(
            state["network"], classes=len(data.classes), size=data.size, seed=job.recipe.seed
        )
        network.load_state_dict(state["state"])
        found["test"] = fit.probabilities(fit.evaluate(network.to(device), data.images["test"]))
    else:
        members = [_member_of(job, name) for name in job.stage.members]
        found["test"] = mean_probabilities([np.load(m / "probabilities.npz")["test"] for m in members])
    record.atomic_save(kept, lambda file: np.savez(file, **found))
    row["test"] = measure(found["test"], data.labels["test"])


def _member_of(job: Job, name: str) -> Path:
    """The directory of an ensemble's member, beside the ensemble's own."""
    parts = job.directory.parts
    return Path(
        *(name if part == job.stage.name and i >= len(parts) - 2 else part for i, part in enumerate(parts))
    )


def _is_of(row: dict[str, Any], job: Job) -> bool:
    return row["name"] == job.stage.name and row["seed"] == job.recipe.seed


def _row(results: dict[str, Any], job: Job) -> dict[str, Any] | None:
    return next((row for row in results["stages"] if _is_of(row, job)), None)


def _write_results(directory: Path, results: dict[str, Any]) -> None:
    record.write_json(directory / "results.json", results)


def _summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation (of the sample) over seeds, a row a stage."""
    summary = []
    for name in dict.fromkeys(row["name"] for row in rows):
        same = [row for row in rows if row["name"] == name]
        entry: dict[str, Any] = {"name": name, "seeds": [row["seed"] for row in same]}
        for split in ("train", "val", "test"):
            entry[split] = {}
            for key in ("accuracy", "precision", "recall", "f1", "auc", "ece"):
                values = [row[split][key] for row in same if row[split] and row[split][key] is not None]
                known = len(values) == len(same)
                entry[split][key] = {
                    "mean": float(np.mean(values)) if known else None,
                    "std": float(np.std(values, ddof=1)) if known and len(values) > 1 else None,
                }
        summary.append(entry)
    return summary


def _bundle(directory: Path, data: Data, results: dict[str, Any], seeds: int) -> Path:
    """The bundle: the ensemble once it is trained, before that the last single network; the best seed on validation."""
    rows = [row for row in results["stages"] if row["test"]]
    last = "ensemble" if any(row["name"] == "ensemble" for row in rows) else rows[-1]["name"]
    best = max((row for row in rows if row["name"] == last), key=lambda row: row["val"]["accuracy"])
    members = []
    for name in STAGES[last].members or (last,):
        place = directory / name if seeds == 1 else directory / name / f"seed-{best['seed']}"
        row = next(row for row in rows if row["name"] == name and row["seed"] == best["seed"])
        members.append(Trained(name, place / "member.onnx", row["export"]["val_accuracy"]))
    suffix = "" if data.size == 28 else f"-{data.size}"
    keys = ("accuracy", "auc", "ece")
    try:
        return write_bundle(
            directory / "bundle",
            dataset=data.flag,
            view=data.view,
            classes=data.classes,
            size=data.size,
            members=members,
            metrics={split: {key: best[split][key] for key in keys} for split in ("train", "val", "test")},
            training={
                "seed": best["seed"],
                "data_md5": data.md5,
                "weights": best["weights"],
                "versions": results["versions"],
                "device": results["device"],
                "smoke": results["smoke"],
            },
            name=f"{data.flag}{suffix}-{last}{'-smoke' if results['smoke'] else ''}",
        )
    except ExportError as e:
        raise RunError(str(e), exit_code=1) from e


def _write_report(directory: Path, data: Data) -> None:
    from train.report import write_report

    write_report(directory, data)


def _table(results: dict[str, Any]) -> str:
    """The summary that ends a run: a row a stage and seed."""
    head = f"{'stage':<15}{'parameters':>12}{'epochs':>8}{'best':>6}{'s/epoch':>9}{'train':>9}{'val':>9}{'test':>9}"
    lines = ["", f"{results['dataset']['flag']}, accuracy on {results['device']}", head, "-" * len(head)]
    several = len({row["seed"] for row in results["stages"]}) > 1
    for row in results["stages"]:
        name = f"{row['name']} #{row['seed']}" if several else row["name"]
        accuracy = "".join(
            f"{row[s]['accuracy']:>9.4f}" if row[s] else f"{'–':>9}" for s in ("train", "val", "test")
        )
        lines.append(
            f"{name:<15}{row['parameters']:>12,}{row['epochs']:>8}{row['best_epoch'] or '':>6}"
            f"{row['seconds_per_epoch']:>9.1f}{accuracy}"
        )
    for entry in results.get("summary", []):
        mean, std = entry["test"]["accuracy"]["mean"], entry["test"]["accuracy"]["std"]
        lines.append(
            f"{entry['name']:<15}test accuracy {mean:.4f} ± {std:.4f} over {len(entry['seeds'])} seeds"
        )
    return "\n".join(lines)


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

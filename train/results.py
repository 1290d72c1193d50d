"""results.json: a row a stage and seed, measured on train and validation, and once, at the end, on test."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from export.member import ExportError, export_member
from train import fit, record
from train.calibration import SPLIT, calibration, described
from train.data import Data
from train.devices import device_name
from train.ensemble import mean_probabilities
from train.errors import RunError
from train.jobs import Job, member_of
from train.metrics import measure
from train.stages import STAGES

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


# settings that older runs did not record, with the value they had
SETTINGS_ADDED = {"deterministic": False}
# each stage records its precision, and is continued in that one alone, whichever --amp led to it
NOT_COMPARED = ("amp",)


def opened(directory: Path, data: Data, device: torch.device, settings: dict[str, Any]) -> dict[str, Any]:
    """The results so far; RunError names the first setting that differs from those of this run."""
    path = directory / "results.json"
    fresh = {
        "format": 1,
        "smoke": settings["smoke"],
        "dataset": {
            "flag": data.flag,
            "size": data.size,
            "resample_from": None if data.stored == data.size else data.stored,
            "md5": data.md5,
            "counts": data.counts,
            "classes": data.classes,
        },
        "device": device_name(device),
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
    before = SETTINGS_ADDED | old["settings"]
    for key, value in settings.items():
        if key not in NOT_COMPARED and before.get(key) != value:
            raise RunError(
                f"{directory} was trained with {key} {before.get(key)}, this run has {value}; "
                f"use --fresh to start over, or another --out"
            )
    rows = old.get("stages", [])
    if unknown := [row["name"] for row in rows if row["name"] not in STAGES]:
        raise RunError(
            f"{path} has a stage {unknown[0]!r}, of another version of this program; use another --out"
        )
    return fresh | {"stages": rows}


def measure_stage(job: Job, data: Data, device: torch.device, results: dict[str, Any]) -> None:
    """Measure a trained stage on train and validation, export and verify it; its row in results. A network is asked
    about the slices that its temperature is fitted on as well (train.calibration.fitted_on)."""
    member = job.directory / "member.onnx"
    kept = job.directory / "probabilities.npz"
    splits = ("train", "val", SPLIT) if job.stage.network else ("train", "val")
    whole = kept.exists() and set(splits) <= set(np.load(kept).files)
    if row_of(results, job) and whole and (member.exists() or not job.stage.network):
        return
    if job.stage.network:
        network, state = trained(job)
        try:
            parity = export_member(network, member, data.images["val"], data.labels["val"], size=data.size)
        except ExportError as e:
            raise RunError(f"export of {job.stage.name}: {e}", exit_code=1) from e
        network.to(device)
        found = {s: fit.probabilities(fit.evaluate(network, data.network_images(s))) for s in splits}
        seconds = [epoch["seconds"] for epoch in state["history"]]
        row = {
            "network": state["network"],
            "parameters": state["parameters"],
            "epochs": len(state["history"]),
            "best_epoch": state["best_epoch"],
            "seconds": sum(seconds),
            "seconds_per_epoch": sum(seconds) / len(seconds),
            "weights": state["weights"],
            "precision": state["recipe"].get("precision"),
            "export": {"max_abs": parity.max_abs, "val_accuracy": parity.accuracy, "slices": parity.slices},
        }
        print(
            f"{job.stage.name:<14} exported: {parity.slices} slices through onnxruntime, logits within "
            f"{parity.max_abs:.1e} of PyTorch's, val accuracy {parity.accuracy:.4f}",
            flush=True,
        )
    else:
        members = [member_of(job, name) for name in job.stage.members]
        found = {
            s: mean_probabilities([np.load(m / "probabilities.npz")[s] for m in members]) for s in splits
        }
        rows = [row_of(results, Job(STAGES[name], job.config, job.directory)) for name in job.stage.members]
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
        {"name": job.stage.name, "seed": job.config.seed}
        | row
        | {split: measure(found[split], data.labels[split]) for split in ("train", "val")}
        | {"test": None}
    )


def measure_test(job: Job, data: Data, device: torch.device, results: dict[str, Any]) -> None:
    """Measure a stage on test, and its calibration, where it has not been."""
    row, kept = row_of(results, job), job.directory / "probabilities.npz"
    members = [member_of(job, name) / kept.name for name in job.stage.members]
    found = dict(np.load(kept))
    if not row["test"] or "test" not in found:
        if job.stage.network:
            network, _ = trained(job)
            found["test"] = fit.probabilities(fit.evaluate(network.to(device), data.network_images("test")))
        else:
            found["test"] = mean_probabilities([np.load(member)["test"] for member in members])
        record.atomic_save(kept, lambda file: np.savez(file, **found))
        row["test"] = measure(found["test"], data.labels["test"])
    if row.get("calibration", {}).get("fitted_on") != described(data):
        fitted = calibration([np.load(member) for member in members or (kept,)], data.labels)
        row["calibration"] = fitted | {"fitted_on": described(data)}


def _is_of(row: dict[str, Any], job: Job) -> bool:
    return row["name"] == job.stage.name and row["seed"] == job.config.seed


def row_of(results: dict[str, Any], job: Job) -> dict[str, Any] | None:
    return next((row for row in results["stages"] if _is_of(row, job)), None)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
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


def table(results: dict[str, Any]) -> str:
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
        if std is not None:
            lines.append(
                f"{entry['name']:<15}test accuracy {mean:.4f} ± {std:.4f} over {len(entry['seeds'])} seeds"
            )
    return "\n".join(lines)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def trained(job: Job) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a finished stage with its best weights, on the CPU, and its checkpoint."""
    state = record.load_checkpoint(job.directory / "checkpoint.pt")
    return fit.network_of(state), state

"""Members become a bundle: a directory with a manifest, the ONNX files it lists, and a model card."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from export.forms import PRECISIONS, Form, Slices, forms_of
from export.golden import add_golden
from export.member import ExportError
from export.temperature import expected_calibration_error, fit_temperature, mean_softmax

if TYPE_CHECKING:
    from organ_infer.bundle.files import Member

# For each view, the patient direction in which the row and the column index of MedMNIST's stored slices grow, as
# DICOM letters. Established for axial slices from the data (README, "Orientation"); not for the other views.
ORIENTATION = {"axial": ("L", "P"), "sagittal": None, "coronal": None}
WINDOW = (40, 400)  # level and width of an abdominal window, HU
LICENCE = "CC BY 4.0 (MedMNIST v2)"


@dataclass(frozen=True)
class Trained:
    """One network of a bundle: its stage and its verified ONNX file, as export.member wrote it."""

    stage: str
    file: Path


def write_bundle(
    directory: Path,
    *,
    dataset: str,
    view: str,
    classes: Sequence[str],
    size: int,
    members: Sequence[Trained],
    slices: Slices,
    metrics: dict[str, dict[str, Any]],
    training: dict[str, Any],
    name: str,
    precisions: Sequence[str] = PRECISIONS,
    say: Callable[[str], None] = print,
) -> Path:
    """Write a bundle that replaces `directory` whole (`check_place` tells whether it may); what cannot be opened by the
    runtime never takes its place.

    slices: what the forms of each member are made and judged with; precisions: which of fp32, int8 and fp16 to try;
    metrics: of the float32 networks by split, with `accuracy`, before calibration; `seeds`, where there were several,
    with their mean and deviation by split and metric. The temperature is fitted to the forms that are listed, on
    `slices.fitted_on`; what they reach with it on validation joins the metrics as `val_as_listed`, with
    `ece_uncalibrated` as it was without. training: seed, data_md5, weights, versions, and in words, for the card, what
    the `temperature_fitted_on` is. Raises ExportError.
    """
    from organ_infer import OrganInferError
    from organ_infer.bundle.files import Card, Input, Manifest, Task, sha256_of

    directory.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.parent))
    building.chmod(0o755)
    try:
        entries, logits, fitting = [], [], []
        for member in members:
            forms = forms_of(member.stage, onnx.load(member.file), slices, precisions, say=say)
            entries.append(_member(building, member.stage, forms))
            logits.append(forms[0].logits)
            fitting.append(forms[0].fitting)
        temperature = fit_temperature(fitting, slices.fitted_on[1] if slices.fitted_on else slices.labels)
        listed = _calibrated(logits, slices.labels, temperature)
        metrics = metrics | {"val_as_listed": listed}
        say(
            f"temperature {temperature:g}: ECE on validation {listed['ece']:.4f}, "
            f"without it {listed['ece_uncalibrated']:.4f}"
        )
        card = building / "MODEL_CARD.md"
        card.write_text(
            model_card(name, dataset, view, size, entries, metrics, training, temperature), encoding="utf-8"
        )
        manifest = Manifest(
            format=1,
            name=name,
            task=Task(dataset=dataset, view=view, classes=tuple(classes), paired=paired(classes)),
            input=Input(
                size=size,
                mean=0.5,
                std=0.5,
                resample="area",
                window=WINDOW,
                orientation=ORIENTATION.get(view),
            ),
            members=tuple(entries),
            merged=None,
            combine="mean_probability",
            temperature=temperature,
            metrics=metrics,
            training=training,
            card=Card(file=card.name, sha256=sha256_of(card)),
            licence=LICENCE,
        )
        (building / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
        add_golden(building)  # opens it: what the runtime would refuse is not written
        for file in building.iterdir():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        _replace(building, directory)
    except OSError as e:
        raise ExportError(f"cannot write the bundle {directory}: {e.strerror}") from e
    except OrganInferError as e:
        raise ExportError(f"the runtime refuses the bundle {directory.name}: {e}") from e
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return directory


def _is_manifest(path: Path) -> bool:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"format", "members", "combine"} <= found.keys()


def check_place(directory: Path) -> None:
    """Raise ExportError where `directory` holds anything that no bundle has, for it would be replaced whole."""
    if not os.path.lexists(directory):
        return
    if directory.is_symlink() or not directory.is_dir():
        raise ExportError(f"{directory} is not a directory: name one that is not there yet, or a bundle")
    entries = sorted(directory.iterdir())
    odd = [path.name for path in entries if path.is_dir() or path.suffix not in (".onnx", ".md", ".json")]
    if entries and (odd or not _is_manifest(directory / "manifest.json")):
        raise ExportError(
            f"{directory} is no bundle, it holds {(odd or [entries[0].name])[0]!r}: name one that is not there yet, or a"
            " bundle"
        )


def _member(building: Path, stage: str, forms: Sequence[Form]) -> Member:
    """Write the forms of one member; its entry in the manifest."""
    from organ_infer.bundle.files import Member, sha256_of

    entries = []
    for form in forms:
        suffix = "" if form.precision == "fp32" else f".{form.precision}"
        path = building / f"{stage}{suffix}.onnx"
        path.write_bytes(form.content)
        entries.append(
            Member(
                stage=stage,
                file=path.name,
                sha256=sha256_of(path),
                bytes=len(form.content),
                precision=form.precision,
                output="logits",
                val_accuracy=form.val_accuracy,
            )
        )
    return replace(entries[0], alternatives=tuple(entries[1:]))


def _calibrated(logits: Sequence[np.ndarray], labels: np.ndarray, temperature: float) -> dict[str, float]:
    """What the members' mean reaches with the temperature, and its ECE without; logits: (N, C) a member."""
    found = mean_softmax(logits, temperature)
    return {
        "accuracy": float((found.argmax(1) == labels).mean()),
        "ece": expected_calibration_error(found, labels),
        "ece_uncalibrated": expected_calibration_error(mean_softmax(logits), labels),
    }


def _replace(new: Path, directory: Path) -> None:
    """Put the directory `new` in the place of `directory`; a reader finds the old one, the new one, or none."""
    if directory.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.parent))
        os.replace(directory, old / directory.name)
        os.replace(new, directory)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(new, directory)


def paired(classes: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The classes that are two sides of one organ, left first: names that end in -left and -right."""
    organs = [name.removesuffix("-left") for name in classes if name.endswith("-left")]
    return tuple((f"{organ}-left", f"{organ}-right") for organ in organs if f"{organ}-right" in classes)


def model_card(
    name: str,
    dataset: str,
    view: str,
    size: int,
    members: Sequence[Member],
    metrics: dict[str, dict[str, Any]],
    training: dict[str, Any],
    temperature: float,
) -> str:
    """The model card of a bundle, as Markdown: what it is, from what data, how good, and its limits."""
    from medmnist import INFO

    figures = "\n".join(
        f"| {split} | "
        + " | ".join(_figure(metrics[split].get(key)) for key in ("accuracy", "auc", "ece"))
        + " |"
        for split in ("train", "val", "test")
        if split in metrics
    )
    networks = ", ".join(f"`{member.stage}`" for member in members)
    combined = " Their probabilities are averaged." if len(members) > 1 else ""
    source = training.get("weights", "none")
    start = "from scratch" if source == "none" else f"from ImageNet weights ({source})"
    smoke = "\n**A smoke run: these figures mean nothing.**\n" if training.get("smoke") else ""
    published = INFO[dataset]["n_samples"]
    listed = metrics["val_as_listed"]
    return f"""# {name}

Research software, not a medical device. Not for diagnosis.
{smoke}
Names the organ on a crop of an abdominal CT slice, {view} view: one of {len(INFO[dataset]["label"])} classes.
Networks: {networks}, trained {start}, seed {training.get("seed")}.{combined}{_recipe(training)}
Input: {size} x {size} gray pixels of a crop around one organ, as MedMNIST stores them{_lie(view)}.

| {dataset}, {size} px | accuracy | AUC | ECE |
|---|---|---|---|
{figures}

Validation chose the epoch where a stage stops early, and among seeds; test was looked at once, at the end. {_spread(metrics)}

These are the figures of the float32 networks, before calibration. {_forms(members)}
Together the forms in use reach {_figure(listed["accuracy"])} on validation.

Calibration: logits are divided by the temperature {temperature:g}, fitted to the forms in use on
{training.get("temperature_fitted_on", "validation")}. ECE on
validation {_figure(listed["ece_uncalibrated"])} before, {_figure(listed["ece"])} after{_calibrated_test(metrics)}.

## Data

{dataset} of MedMNIST v2 (MD5 {training.get("data_md5")}): {published["train"]:,} slices to train, {published["val"]:,}
to validate, {published["test"]:,} to test, of 115, 16 and 70 CT scans. CC BY 4.0. Yang et al., "MedMNIST v2", Scientific
Data 2023; made from LiTS: Bilic et al., "The Liver Tumor Segmentation Benchmark", Medical Image Analysis 2023. This
model is a work derived from that data and carries its licence.

## Limits

- {view.capitalize()} slices alone; other views and other body parts get an answer that means nothing.
- The slice must be a crop to the bounding box of one organ, in the orientation that MedMNIST stores. A whole slice,
  another crop or a turned one is silently wrong.
- Neighbouring slices of a scan look alike: the spread between patients is wider than the slice counts suggest.
"""


def _calibrated_test(metrics: dict[str, dict[str, Any]]) -> str:
    """What calibration does on other scans, where it was measured."""
    after = metrics.get("test", {}).get("ece_calibrated")
    if after is None:
        return "; on other scans expect it to be higher"
    return f"; on test {_figure(metrics['test']['ece'])} before, {_figure(after)} after (float32, its own temperature)"


def _spread(metrics: dict[str, dict[str, Any]]) -> str:
    """What other seeds reached, where there were any."""
    seeds = metrics.get("seeds")
    if not seeds:
        return "One seed."
    told = [
        f"{split} {key} {_figure(seeds[split][key]['mean'])} ± {_figure(seeds[split][key]['std'])}"
        for split in ("val", "test")
        for key in ("accuracy", "auc", "ece")
    ]
    return f"The seed of {seeds['count']} that is best on validation; mean and deviation of all: {', '.join(told)}."


def _recipe(training: dict[str, Any]) -> str:
    """How the network was trained, where the training says so: a paragraph of its own."""
    recipe = training.get("recipe")
    if not recipe:
        return ""
    told = ", ".join(f"{key} {value}" for key, value in recipe["settings"].items())
    return f"\n\n{recipe['network']}; {recipe['epochs']} epochs. Recipe: {told}.\n"


def _lie(view: str) -> str:
    """How the slices of a view lie, in words; empty where that has not been established."""
    directions = {"L": "left", "R": "right", "A": "front", "P": "back", "H": "head", "F": "feet"}
    letters = ORIENTATION.get(view)
    return (
        f" (rows run to the patient's {directions[letters[0]]}, columns to the {directions[letters[1]]})"
        if letters
        else ""
    )


def _forms(members: Sequence[Member]) -> str:
    """Each member's precisions with their accuracy on validation, the one in use first."""
    told = []
    for member in members:
        forms = (member, *member.alternatives)
        told.append(
            f"`{member.stage}` " + ", ".join(f"{f.precision} {_figure(f.val_accuracy)}" for f in forms)
        )
    return f"Accuracy of each form on validation, the one in use on a CPU first: {'; '.join(told)}."


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"

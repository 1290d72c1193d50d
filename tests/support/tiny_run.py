"""A whole run in seconds: a small data set whose classes can be told apart, small networks, every array watched."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

FLAG, VIEW = "organcmnist", "coronal"
MEMBERS = ("base", "batch_norm")
STAGES = ("base", "batch_norm", "ensemble", "edge")
NETWORKS = ("base", "batch_norm", "edge")
SPLITS = {"train": 330, "val": 97, "test": 139}
# the share of slices that show another class than their label, so that no network is right on all of a split
MISLABELED = {"train": 0.05, "val": 0.15, "test": 0.25}
CLASSES, SIZE = 11, 28
# highest learning rate of the edge network
PEAK = 0.02
FITTED_ON, CORRUPTED = (
    50,
    40,
)  # slices of validation for the temperature, and of test that are corrupted


def data_file() -> bytes:
    """A MedMNIST file: splits of another length and with another distribution of classes each."""
    generator = np.random.default_rng(4)
    coarse = generator.uniform(40, 200, (CLASSES, 7, 7))
    patterns = np.repeat(np.repeat(coarse, 4, 1), 4, 2)
    arrays = {}
    for split, count in SPLITS.items():
        frequencies = generator.dirichlet(np.full(CLASSES, 3.0))
        rest = generator.choice(CLASSES, count - 2 * CLASSES, p=frequencies)
        labels = generator.permutation(
            np.concatenate([np.arange(CLASSES), np.arange(CLASSES), rest])
        )
        wrong = generator.random(count) < MISLABELED[split]
        shown = np.where(wrong, (labels + generator.integers(1, 4, count)) % CLASSES, labels)
        noise = generator.normal(0, 25, (count, SIZE, SIZE))
        arrays[f"{split}_images"] = np.clip(patterns[shown] + noise, 0, 255).astype(np.uint8)
        arrays[f"{split}_labels"] = labels.astype(np.uint8)[:, None]
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def evenly(count: int, total: int) -> np.ndarray:
    """`count` of `total` places from the first to the last, at equal distances."""
    return np.array([round(i * (total - 1) / (count - 1)) for i in range(count)])


@dataclass
class Event:
    """A call of the pipeline: by argument what the arrays hold, as "test images"."""

    name: str
    holds: dict[str, str]


@dataclass
class TinyRun:
    """A finished run, the arrays of its data file, and what was seen while it ran."""

    directory: Path
    content: bytes
    images: dict[str, np.ndarray] = field(default_factory=dict)
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    figures: dict[str, tuple[Any, str]] = field(default_factory=dict)  # and what each is called
    sheets: list[tuple[list[np.ndarray], list[str]]] = field(default_factory=list)
    printed: str = ""

    def named(self, name: str) -> list[Event]:
        return [event for event in self.events if event.name == name]

    def probabilities(self, stage: str) -> dict[str, np.ndarray]:
        with np.load(self.directory / stage / "probabilities.npz") as file:
            return dict(file)


def digest(array: np.ndarray) -> str:
    """Of an array's type, shape and content."""
    about = f"{array.dtype} {array.shape}".encode()
    return hashlib.sha256(about + np.ascontiguousarray(array).tobytes()).hexdigest()


def tiny_run(folder: Path) -> TinyRun:
    """Download nothing, train, export and report under `folder`."""
    import torch
    from medmnist import INFO

    content = data_file()
    (folder / f"{FLAG}.npz").write_bytes(content)
    run = TinyRun(folder / "runs" / FLAG, content)
    with np.load(io.BytesIO(content)) as file:
        for split in SPLITS:
            run.images[split] = file[f"{split}_images"]
            run.labels[split] = file[f"{split}_labels"][:, 0].astype(np.int64)
    threads = torch.get_num_threads()
    out = io.StringIO()
    known = INFO[FLAG] | {"MD5": hashlib.md5(content).hexdigest()}
    try:
        torch.set_num_threads(1)
        with (
            patch.dict(INFO, {FLAG: known}),
            _small(),
            _watched(run),
            contextlib.redirect_stdout(out),
        ):
            from train.all import main

            place = ["--dataset", FLAG, "--data-dir", str(folder), "--out", str(folder / "runs")]
            how = ["--device", "cpu", "--amp", "off", "--batch-size", "16", "--max-epochs", "6"]
            code = main([*place, *how, "--stages", "ensemble,edge", "--precision", "fp32"])
    finally:
        torch.set_num_threads(threads)
    run.printed = out.getvalue()
    assert code == 0, run.printed
    return run


@contextlib.contextmanager
def _small() -> Iterator[None]:
    """Small networks, two members of the ensemble, few corrupted slices."""
    from train import calibration, networks, stages
    from train import run as module

    def small(width: int, norm: bool) -> Callable[[int, int, int], Any]:
        def make(classes: int, size: int, seed: int) -> Any:
            about = {"classes": classes, "size": size, "seed": seed, "batch_norm": norm}
            return networks.PlainCNN((width, width), 3, (32, 24), **about)

        return make

    def edge(classes: int, size: int, seed: int) -> Any:
        about = {"classes": classes, "seed": seed, "orientation": True}
        return networks.ResidualNetwork(8, 2, (8, 16), **about)

    table = {"small": small(6, False), "big_batch_norm": small(5, True), "edge_orientation": edge}
    ensemble = replace(stages.STAGES["ensemble"], members=MEMBERS)
    # in a few steps the network learns what is hardly augmented
    mild = {"cutmix": 0.0, "erase": 0.0, "intensity": 0.0, "contrast": None, "shift": 0}
    few = {"negatives": 0.1, "reoriented": 0.1, "peak": PEAK, "ema_decay": 0.9}
    stage = stages.STAGES["edge"]
    edge_stage = replace(stage, recipe=replace(stage.recipe, **mild, **few))
    changed = {"ensemble": ensemble, "edge": edge_stage}
    ladder = tuple(changed.get(stage.name, stage) for stage in stages.LADDER)
    with (
        patch.dict(networks.NETWORKS, table),
        patch.dict(stages.STAGES, changed),
        patch.object(stages, "LADDER", ladder),
        patch.object(calibration, "SLICES", FITTED_ON),
        patch.object(module, "CORRUPTED", CORRUPTED),
    ):
        yield


@contextlib.contextmanager
def _watched(run: TinyRun) -> Iterator[None]:
    """Note of each call of the pipeline which slices and labels it is given."""
    from train import calibration, corruptions, fit, report, results, robustness
    from train import run as module
    from train.report import figures, page

    known = {}
    for split in SPLITS:
        known[digest(run.images[split])] = f"{split} images"
        known[digest(run.labels[split])] = f"{split} labels"
    chosen = evenly(FITTED_ON, SPLITS["val"])
    plain = run.images["val"][chosen]
    copies = [corruptions.corrupt(plain, name, 3) for name in corruptions.CORRUPTIONS]
    known[digest(np.concatenate([plain, *copies]))] = "fitting images"
    known[digest(np.concatenate([run.labels["val"][chosen]] * (1 + len(copies))))] = (
        "fitting labels"
    )
    chosen = evenly(CORRUPTED, SPLITS["test"])
    known[digest(run.images["test"][chosen])] = "some test images"
    known[digest(run.labels["test"][chosen])] = "some test labels"

    def holds(value: Any) -> str:
        return known.get(digest(np.asarray(value)), "unknown")

    def note(name: str, **arrays: Any) -> None:
        run.events.append(Event(name, {key: holds(value) for key, value in arrays.items()}))

    def watch(
        stack: contextlib.ExitStack, owner: Any, name: str, look: Callable[..., None]
    ) -> None:
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            look(*arguments, **options)
            return original(*arguments, **options)

        stack.enter_context(patch.object(owner, name, wrapped))

    def slices(_place: Path, _info: Any, _members: Any, slices: Any, **_: Any) -> None:
        fitting = dict(zip(("fitting", "fitting_labels"), slices.fitted_on, strict=True))
        note(
            "write_bundle", train=slices.train, val=slices.val, val_labels=slices.labels, **fitting
        )

    def data(_directory: Path, split: Any) -> None:
        images = {f"{part} images": split.images[part] for part in SPLITS}
        note("write_report", **images, **{f"{part} labels": split.labels[part] for part in SPLITS})

    def added(_files: Any, name: str, figure: Any, alt: str, **_: Any) -> None:
        run.figures[name] = (figure, alt)

    def sheet(images: list[np.ndarray], captions: list[str], **_: Any) -> None:
        run.sheets.append((images, captions))

    with contextlib.ExitStack() as stack:
        watch(
            stack,
            fit,
            "train_epoch",
            lambda _, x, y, *__: note("train_epoch", images=x.cpu(), labels=y.cpu()),
        )
        watch(stack, fit, "evaluate", lambda _, x: note("evaluate", images=x))
        watch(
            stack,
            results,
            "export_member",
            lambda _, __, x, y, **___: note("export", images=x, labels=y),
        )
        watch(stack, results, "measure", lambda _, y: note("measure", labels=y))
        watch(stack, calibration, "fit_temperature", lambda _, y: note("fit_temperature", labels=y))
        watch(
            stack,
            calibration,
            "expected_calibration_error",
            lambda _, y: note("calibrated", labels=y),
        )
        watch(
            stack,
            robustness,
            "corrupted_accuracy",
            lambda _, x, y, *__, **___: note("robustness", images=x, labels=y),
        )
        watch(stack, module, "write_bundle", slices)
        watch(stack, report, "write_report", data)
        watch(stack, page, "_add", added)
        watch(stack, figures, "contact_sheet", sheet)
        yield

"""python -m train.robustness RUN_DIR: the exported networks of a run on corrupted slices (MedMNIST-C).

Balanced error is 1 minus the balanced accuracy, the mean over severities and then over corruptions. MedMNIST-C gives it
relative to AlexNet's; those figures are of 224 pixels, so here it stands as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from export.member import BATCH, open_session
from organ_infer._packing import pack
from train import fit, record
from train.arguments import device_name
from train.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from train.data import Data, load_data
from train.devices import choose_device
from train.ensemble import mean_probabilities
from train.errors import RunError
from train.stages import STAGES

FILE = "robustness.json"
SPLITS = ("val", "test")
CPU = torch.device("cpu")


def corrupted_accuracy(
    predict: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    seed: int = 0,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Accuracy and balanced error on the slices as they are and on the 65 corrupted copies.

    predict: uint8 (N, S, S) to a score a class, (N, C); labels: int (N,). `accuracy` and `balanced_error` hold five
    values a corruption, mildest first; their means are over severities, then corruptions.
    """
    clean = _scores(predict(images), labels)
    accuracy: dict[str, list[float]] = {}
    error: dict[str, list[float]] = {}
    for name in CORRUPTIONS:
        found = [_scores(predict(corrupt(images, name, s, seed)), labels) for s in SEVERITIES]
        accuracy[name], error[name] = map(list, zip(*found, strict=True))
        say(f"{name:<18}" + "".join(f"{value:>8.4f}" for value in accuracy[name]))
    return {
        "clean_accuracy": clean[0],
        "clean_balanced_error": clean[1],
        "mean_corrupted_accuracy": float(np.mean(list(accuracy.values()))),
        "mean_balanced_error": float(np.mean(list(error.values()))),
        "accuracy": accuracy,
        "balanced_error": error,
    }


def _scores(answers: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Accuracy, and 1 minus the mean recall of the classes that occur."""
    right = answers.argmax(1) == labels
    recalls = [right[labels == c].mean() for c in np.unique(labels)]
    return float(right.mean()), float(1 - np.mean(recalls))


def measure_robustness(
    directory: Path,
    data: Data,
    results: dict[str, Any],
    names: Sequence[str],
    *,
    split: str = "test",
    slices: int | None = None,
    seed: int = 0,
    device: torch.device = CPU,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """The entries of robustness.json of the stages `names`, measured where they are not there yet.

    A stage is its exported float32 network, an ensemble the mean probability of its members; of several seeds the best
    on validation, and nothing where `results` has none. slices: so many, spread evenly over the split; None takes all.
    seed: of the noise. device: on the CPU onnxruntime runs the exported networks; on a GPU PyTorch runs those they were
    exported from, whose logits agree (export.member). The file is written after each stage; an entry of equal networks,
    split and slices stands as it is.
    Raises RunError.
    """
    path = directory / FILE
    total = len(data.labels[split])
    count = min(slices or total, total)
    chosen = np.linspace(0, total - 1, count).round().astype(int)
    images, labels = data.images[split][chosen], data.labels[split][chosen]
    wanted = {}
    for name in names:
        if (row := _best(results, name)) is not None:
            files = {
                stage: _member(directory, stage, row["seed"]) for stage in STAGES[name].members or (name,)
            }
            wanted[name] = (
                {
                    "name": name,
                    "seed": row["seed"],
                    "members": {
                        stage: hashlib.sha256(file.read_bytes()).hexdigest() for stage, file in files.items()
                    },
                    "split": split,
                    "slices": count,
                    "split_slices": total,
                    "corruption_seed": seed,
                },
                list(files.values()),
            )
    entries = _kept(path, data)
    todo = [(about, files) for about, files in wanted.values() if not _found(entries, about)]
    needed = [file for _, files in todo for file in files]
    networks = {file: _Network(file, data, device, shared=needed.count(file) > 1) for file in needed}
    for about, files in todo:

        def predict(slices: np.ndarray, files: list[Path] = files) -> np.ndarray:
            return mean_probabilities([networks[file](slices) for file in files])

        def tell(line: str, name: str = about["name"]) -> None:
            say(f"{name:<15}{line}")

        found = corrupted_accuracy(predict, images, labels, seed, say=tell)
        entries = [entry for entry in entries if not _outdated(entry, about)] + [about | found]
        dataset = {"flag": data.flag, "size": data.size, "md5": data.md5}
        whole = {"format": 1, "smoke": results["smoke"], "dataset": dataset, "stages": entries}
        record.write_json(path, whole)
    return [_found(entries, about) for about, _ in wanted.values()]


def _best(results: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The row of a stage; of several seeds the best on validation."""
    rows = [row for row in results["stages"] if row["name"] == name]
    return max(rows, key=lambda row: row["val"]["accuracy"], default=None)


def _member(directory: Path, stage: str, seed: int) -> Path:
    """The exported network of a stage, which must be there."""
    places = (directory / stage / f"seed-{seed}", directory / stage)
    for place in places:
        if (place / "member.onnx").is_file():
            return place / "member.onnx"
    raise RunError(f"no member.onnx in {places[-1]}: give the command that trained it again")


def _kept(path: Path, data: Data) -> list[dict[str, Any]]:
    """What the file holds of this data set."""
    old = record.read_json(path) if path.exists() else {}
    known = isinstance(old, dict) and (old.get("dataset") or {}).get("md5") == data.md5
    return old.get("stages", []) if known else []


def _found(entries: list[dict[str, Any]], about: dict[str, Any]) -> dict[str, Any] | None:
    return next((entry for entry in entries if about.items() <= entry.items()), None)


def _outdated(entry: dict[str, Any], about: dict[str, Any]) -> bool:
    """Whether an entry gives way to the one described by `about`: the same measurement, or one of other networks."""
    same = all(entry.get(key) == about[key] for key in ("split", "slices"))
    return entry.get("name") == about["name"] and (same or entry.get("members") != about["members"])


class _Network:
    """An exported network, opened when it is needed; a shared one keeps its answers for the next stage that asks."""

    def __init__(self, file: Path, data: Data, device: torch.device, *, shared: bool) -> None:
        self.file, self.data, self.device = file, data, device
        self.session: Any = None
        self.network: nn.Module | None = None
        self.answers: dict[bytes, np.ndarray] | None = {} if shared else None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """float32 (N, classes) probabilities of uint8 (N, H, W)."""
        if self.answers is None:
            return self._run(images)
        key = hashlib.sha256(images).digest()
        if key not in self.answers:
            self.answers[key] = self._run(images)
        return self.answers[key]

    def _run(self, images: np.ndarray) -> np.ndarray:
        logits = self._logits_on_gpu(images) if self.device.type == "cuda" else self._logits_exported(images)
        return fit.probabilities(logits)

    def _logits_on_gpu(self, images: np.ndarray) -> np.ndarray:
        if self.network is None:
            state = record.load_checkpoint(self.file.with_name("checkpoint.pt"))
            self.network = fit.network_of(state).to(self.device)
        return fit.evaluate(self.network, self.data.as_network_images(images))

    def _logits_exported(self, images: np.ndarray) -> np.ndarray:
        if self.session is None:
            try:
                self.session = open_session(self.file.read_bytes())
            except Exception as e:  # onnxruntime's errors share no base class
                raise RunError(f"cannot open {self.file}: {' '.join(str(e).split())[:200]}") from e
        starts = range(0, len(images), BATCH)
        batches = [pack(images[start : start + BATCH], self.data.size) for start in starts]
        return np.concatenate([self.session.run(["logits"], {"images": b})[0] for b in batches])


def table(entries: list[dict[str, Any]]) -> str:
    """A column a stage: clean and mean accuracy, the balanced error, and the mean accuracy by corruption."""
    names = [entry["name"] for entry in entries]
    rows = {
        "clean": [entry["clean_accuracy"] for entry in entries],
        "mean corrupted": [entry["mean_corrupted_accuracy"] for entry in entries],
        "balanced error": [entry["mean_balanced_error"] for entry in entries],
    } | {name: [float(np.mean(entry["accuracy"][name])) for entry in entries] for name in CORRUPTIONS}
    width = max(7, *map(len, names)) + 2
    lines = [f"{'':<18}" + "".join(f"{name:>{width}}" for name in names)]
    for name, values in rows.items():
        lines.append(f"{name:<18}" + "".join(f"{value:>{width}.4f}" for value in values))
    lines.insert(4, "-" * len(lines[0]))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit code: 0 done, 2 nothing could be done, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m train.robustness",
        description="Measure the exported networks of a run on the 65 corrupted copies of a split (MedMNIST-C).",
        epilog="What is measured is kept in RUN_DIR/robustness.json; python -m train.report shows it.",
    )
    add = parser.add_argument
    add("run_dir", type=Path, metavar="RUN_DIR", help="the directory of a data set, as runs/organsmnist")
    add("--data-dir", type=Path, metavar="DIR", help="where the data set is (default: medmnist's own folder)")
    add("--split", choices=SPLITS, default="test", help="default: test")
    add("--stages", metavar="LIST", help="names with commas between (default: all that were measured)")
    add("--slices", type=int, metavar="N", help="so many slices, spread evenly over the split (default: all)")
    add("--device", type=device_name, default="auto", help="auto (default), cpu, cuda or cuda:N")
    options = parser.parse_args(arguments)
    try:
        print(_measure(options))
    except RunError as e:
        print(f"train.robustness: error: {e}", file=sys.stderr)
        return e.exit_code
    except OSError as e:
        print(f"train.robustness: error: {e.strerror or e}: {e.filename or options.run_dir}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "train.robustness: stopped; the same command goes on from the last finished stage",
            file=sys.stderr,
        )
        return 130
    return 0


def _measure(options: argparse.Namespace) -> str:
    """Do what the command line asks; the table."""
    from train.report.run import read

    results = read(options.run_dir).results
    trained = list(dict.fromkeys(row["name"] for row in results["stages"]))
    names = options.stages.split(",") if options.stages else trained
    if unknown := [name for name in trained if name not in STAGES]:
        raise RunError(f"{options.run_dir} has a stage {unknown[0]!r}, of another version of this program")
    for name in names:
        if name not in trained:
            raise RunError(
                f"--stages: {name!r} is not in {options.run_dir}; it has {', '.join(trained) or 'none'}"
            )
    if not names:
        raise RunError(f"{options.run_dir} has no finished stage yet")
    if options.slices is not None and options.slices < 1:
        raise RunError(f"--slices takes 1 or more, found {options.slices}")
    about = results["dataset"]
    data = load_data(
        about["flag"],
        size=about["size"],
        directory=options.data_dir,
        resample_from=about.get("resample_from"),
    )
    data = data.smoke() if results["smoke"] else data
    device = choose_device(options.device)
    with record.locked(options.run_dir):
        entries = measure_robustness(
            options.run_dir,
            data,
            results,
            names,
            split=options.split,
            slices=options.slices,
            device=device,
        )
    first = entries[0]
    head = f"\n{data.flag}, {first['slices']:,} of the {first['split_slices']:,} slices of {options.split}"
    last = "\nA smoke run: the figures above mean nothing." if results["smoke"] else ""
    return f"{head}\n{table(entries)}{last}"


if __name__ == "__main__":
    sys.exit(main())

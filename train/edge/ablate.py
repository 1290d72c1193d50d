"""python -m train.edge.ablate: what each ingredient of the edge network's recipe is worth.

Each variant is the reference, the recipe without erasing and other windows, with one ingredient taken away or added,
or the recipe itself, trained for 8 epochs on three quarters of the training split. They are judged on the chains of
slices that were held out, on validation as it is, mirrored front to back, and corrupted (the third severity of each of
MedMNIST-C's corruptions). Test is never touched. What was trained before is not trained again, so the command can be
stopped, and run several times beside itself with --only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from train import fit, record
from train.arguments import positive
from train.corruptions import CORRUPTIONS, corrupt
from train.data import Data, load_data
from train.devices import choose_device, device_line
from train.edge.chains import chains, held_out
from train.edge.method import Edge
from train.errors import RunError
from train.stages import STAGES

REFERENCE = Edge(erase=0.0, intensity=0.0)
VARIANTS = {
    "reference": REFERENCE,
    "no cutting": replace(REFERENCE, cut=0.0),
    "no mirroring": replace(REFERENCE, mirror=0.0),
    "no shifts": replace(REFERENCE, shift=0),
    "no averaged weights": replace(REFERENCE, averaged=None),
    "no label smoothing": replace(REFERENCE, smoothing=0.0),
    "with erasing": replace(REFERENCE, erase=0.5),
    "with mixing": replace(REFERENCE, mix=0.5),
    "with rotation and scale": replace(REFERENCE, affine=1.0),
    "with another window": replace(REFERENCE, intensity=0.3),
    "with noise": replace(REFERENCE, noise=0.05),
    "the recipe": Edge(),
}
SCORES = {
    "held_out": "held-out chains",
    "val": "validation",
    "val_mirrored": "validation mirrored",
    "val_corrupted": "validation corrupted",
}
SEVERITY, CORRUPTED = 3, 1000  # slices


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0 done, 1 a training failed, 2 usage or data, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m train.edge.ablate", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--dataset", default="organamnist")
    add("--data-dir", type=Path, metavar="DIR")
    add("--out", type=Path, default=Path("runs/ablation"), metavar="DIR")
    add("--seeds", type=positive, default=3, metavar="K")
    add("--epochs", type=positive, default=8, metavar="N")
    add("--only", metavar="LIST", help=f"some of: {', '.join(VARIANTS)}")
    options = parser.parse_args(arguments)
    names = options.only.split(",") if options.only else list(VARIANTS)
    try:
        for name in names:
            if name not in VARIANTS:
                raise RunError(f"--only: {name!r} is none of {', '.join(VARIANTS)}")
        data = load_data(options.dataset, directory=options.data_dir)
        kept, held = split(data)
        device = choose_device("auto")
        print(device_line(device, "auto"), flush=True)
        for seed in range(1, options.seeds + 1):
            for name in names:
                judge(name, VARIANTS[name], seed, kept, held, options.epochs, options.out, device)
    except RunError as e:
        print(f"ablate: error: {e}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("ablate: stopped; the same command goes on from the last finished epoch", file=sys.stderr)
        return 130
    print(table(options.out, names, options.seeds))
    return 0


def split(data: Data) -> tuple[Data, Data]:
    """The data with three quarters of its training slices, and with the held out quarter as its training split."""
    out = held_out(chains(data.images["train"], data.labels["train"]))
    return _only(data, ~out), _only(data, out)


def _only(data: Data, chosen: np.ndarray) -> Data:
    return replace(
        data,
        images=data.images | {"train": data.images["train"][chosen]},
        labels=data.labels | {"train": data.labels["train"][chosen]},
    )


def judge(
    name: str,
    method: Edge,
    seed: int,
    kept: Data,
    held: Data,
    epochs: int,
    out: Path,
    device: torch.device,
) -> dict[str, float]:
    """Train a variant with a seed and measure it, where that has not been done: accuracies by SCORES."""
    place = out / name.replace(" ", "_") / f"seed-{seed}"
    done = place / "scores.json"
    about = {"data_md5": kept.md5, "epochs": epochs, "method": method.described()}
    if done.exists():
        scores = record.read_json(done)
        if {key: scores.get(key) for key in about} != about:
            raise RunError(f"{done} is of another recipe, data set or number of epochs; use another --out")
        return scores

    def say(line: str) -> None:
        print(f"{name}, {line}", flush=True)

    recipe = fit.Recipe(seed, 128, epochs, "none")
    state = fit.fit(STAGES["edge"], kept, recipe, device, place, method=method, say=say)
    network = fit.network_of(state).to(device)

    def accuracy(images: np.ndarray, labels: np.ndarray) -> float:
        return float((fit.evaluate(network, images).argmax(1) == labels).mean())

    val, labels = kept.network_images("val"), kept.labels["val"]
    some = np.linspace(0, len(labels) - 1, min(CORRUPTED, len(labels))).round().astype(int)
    scores = {
        "held_out": accuracy(held.network_images("train"), held.labels["train"]),
        "val": accuracy(val, labels),
        "val_mirrored": accuracy(np.ascontiguousarray(val[:, :, ::-1]), labels),
        "val_corrupted": float(
            np.mean([accuracy(corrupt(val[some], c, SEVERITY), labels[some]) for c in CORRUPTIONS])
        ),
    }
    record.write_json(done, about | scores)
    say(f"seed {seed}: " + ", ".join(f"{key} {value}" for key, value in scores.items()))
    return scores


def table(out: Path, names: Sequence[str], seeds: int) -> str:
    """Mean and standard deviation over the seeds, a row a variant, as Markdown."""
    lines = [f"| variant | {' | '.join(SCORES.values())} |", "|---" * (1 + len(SCORES)) + "|"]
    for name in names:
        files = [out / name.replace(" ", "_") / f"seed-{k}" / "scores.json" for k in range(1, seeds + 1)]
        rows = [record.read_json(file) for file in files]
        cells = [_cell([row[key] for row in rows]) for key in SCORES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


if __name__ == "__main__":
    sys.exit(main())

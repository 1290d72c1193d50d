"""python tests/benchmarks/edge_table.py RUN: the edge network beside the ensemble and its members, as a table.

RUN: a directory of python -m train.all with `bundle` (edge), `bundle-ensemble` or both; its results.json and, if it is
there, robustness.json give the accuracies, of the float32 networks. A note names what is missing. Size and latency are of
the forms that the bundles list, on a CPU with as many threads as there are processors; contestants take turns, medians.
"""

import json
import sys
from pathlib import Path

import numpy as np
from turns import medians

from organ_infer.bundle.files import open_bundle
from organ_infer.engine.cpu_count import usable_processors
from organ_infer.engine.ensemble import open_ensemble
from organ_infer.engine.session import Session

BATCHES = {1: (20, 25), 256: (1, 9)}  # calls a turn, turns


NOTES = {
    "bundle-ensemble": "the table has no ensemble and no members; train the stage ensemble in this run to have them",
    "bundle": "the table has no last stage; finish the run to have it",
    "robustness.json": "the column corrupted is empty; run python -m train.robustness to fill it",
}


def contestants(run):
    """By stage: its seed, the bytes of its graphs, their precisions, and what classifies packed slices (N, 1, S, S)."""
    threads = usable_processors()
    found = {}
    for name in ("bundle-ensemble", "bundle"):
        if not (run / name).is_dir():
            continue
        bundle = open_bundle(run / name)
        size, seed = bundle.manifest.input.size, bundle.manifest.training.get("seed")
        classes = len(bundle.manifest.task.classes)
        for entry, data in bundle.graphs:
            session = Session(
                data,
                output=entry.output,
                classes=classes,
                where=entry.file,
                device="cpu",
                threads=threads,
            )
            found[entry.stage] = (seed, entry.bytes, entry.precision, session.run)
        if len(bundle.graphs) > 1:
            ensemble = open_ensemble(run / name, device="cpu", threads=threads)
            sizes = sum(entry.bytes for entry, _ in bundle.graphs)
            found["ensemble"] = (seed, sizes, "mixed", ensemble.probabilities)
    if not found:
        raise SystemExit(
            f"{run}: no bundle and no bundle-ensemble; pass the directory of a finished run"
        )
    return found, size


def number(metrics, key, digits):
    """A metric as text, a dash if it was not measured."""
    value = (metrics or {}).get(key)
    return "–" if value is None else f"{value:.{digits}f}"


def main(run):
    if not (run / "results.json").is_file():
        raise SystemExit(
            f"{run}: no results.json; pass the directory of a run, such as runs/organamnist"
        )
    results = json.loads((run / "results.json").read_text())
    rows = {(row["name"], row["seed"]): row for row in results["stages"]}
    robust = run / "robustness.json"
    measured = json.loads(robust.read_text())["stages"] if robust.is_file() else []
    corrupted = {(entry["name"], entry["seed"]): entry for entry in measured}
    found, size = contestants(run)
    for name, consequence in NOTES.items():
        if not (run / name).exists():
            print(f"note: {run}: no {name}; {consequence}", file=sys.stderr)
    slices = np.random.default_rng(0).random((max(BATCHES), 1, size, size), np.float32) * 2 - 1
    took = {}
    for batch, (calls, turns) in BATCHES.items():
        runs = [lambda answer=answer, x=slices[:batch]: answer(x) for *_, answer in found.values()]
        took[batch] = medians(runs, [calls] * len(runs), turns, rest=0.02)
    print(
        "| network | test accuracy | AUC | ECE | corrupted | MB | precision | us a slice at 1 | at 256 |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for i, (name, (seed, size, precision, _)) in enumerate(found.items()):
        test = rows.get((name, seed), {}).get("test")
        worse = corrupted.get((name, seed))
        cells = [number(test, "accuracy", 3), number(test, "auc", 4), number(test, "ece", 3)]
        cells.append(number(worse, "mean_corrupted_accuracy", 3))
        times = [f"{took[batch][i] / batch * 1e6:,.0f}" for batch in BATCHES]
        print(f"| {' | '.join([name, *cells, f'{size / 1e6:.2f}', precision, *times])} |")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("pass the directory of a run, such as runs/organamnist")
    main(Path(sys.argv[1]))

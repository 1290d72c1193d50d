"""python tests/benchmarks/edge_table.py RUN: the edge network beside the ensemble and its members, as a table.

RUN: a directory of python -m train.all with `bundle` (edge) and `bundle-ensemble`; its results.json and, where it is
there, robustness.json give the accuracies, of the float32 networks. Size and latency are of the forms that the bundles
list, on a CPU with as many threads as there are processors; contestants take turns, medians.
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


def contestants(run):
    """By stage: the bytes of its graphs, their precisions, and what classifies packed slices (N, 1, S, S)."""
    threads = usable_processors()
    found = {}
    for name in ("bundle-ensemble", "bundle"):
        bundle = open_bundle(run / name)
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
            found[entry.stage] = (entry.bytes, entry.precision, session.run)
        if len(bundle.graphs) > 1:
            ensemble = open_ensemble(run / name, device="cpu", threads=threads)
            sizes = sum(entry.bytes for entry, _ in bundle.graphs)
            found["ensemble"] = (sizes, "mixed", ensemble.probabilities)
    return found, bundle.manifest.input.size


def main(run):
    results = json.loads((run / "results.json").read_text())
    rows = {row["name"]: row for row in results["stages"]}
    robust = run / "robustness.json"
    measured = json.loads(robust.read_text())["stages"] if robust.is_file() else []
    corrupted = {entry["name"]: entry["mean_corrupted_accuracy"] for entry in measured}
    found, size = contestants(run)
    slices = np.random.default_rng(0).random((max(BATCHES), 1, size, size), np.float32) * 2 - 1
    took = {}
    for batch, (calls, turns) in BATCHES.items():
        runs = [
            lambda answer=answer, x=slices[:batch]: answer(x) for _, _, answer in found.values()
        ]
        took[batch] = medians(runs, [calls] * len(runs), turns, rest=0.02)
    print(
        "| network | test accuracy | AUC | ECE | corrupted | MB | precision | us a slice at 1 | at 256 |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for i, (name, (size, precision, _)) in enumerate(found.items()):
        test, known = rows[name]["test"], corrupted.get(name)
        worse = f"{known:.3f}" if known else "–"
        cells = [f"{test['accuracy']:.3f}", f"{test['auc']:.4f}", f"{test['ece']:.3f}", worse]
        times = [f"{took[batch][i] / batch * 1e6:,.0f}" for batch in BATCHES]
        print(f"| {' | '.join([name, *cells, f'{size / 1e6:.2f}', precision, *times])} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

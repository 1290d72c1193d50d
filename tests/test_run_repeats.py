"""python -m train.all from outside: several seeds, and several processes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.support.data_files import needs_organamnist
from tests.support.train_command import ROOT, command, results_of, train


@pytest.mark.slow
@needs_organamnist
def test_seeds_repeat_a_stage_and_are_summed_up(tmp_path):
    done = train(tmp_path, "--stages", "base", "--seeds", "2", "--seed", "5")
    assert done.returncode == 0, done.stderr
    results = results_of(tmp_path)
    assert [(row["name"], row["seed"]) for row in results["stages"]] == [("base", 5), ("base", 6)]
    accuracies = [row["test"]["accuracy"] for row in results["stages"]]
    summary = results["summary"][0]["test"]["accuracy"]
    assert summary["mean"] == pytest.approx(np.mean(accuracies))
    assert summary["std"] == pytest.approx(np.std(accuracies, ddof=1))
    assert (tmp_path / "organamnist" / "base" / "seed-6" / "checkpoint.pt").is_file()


@pytest.mark.slow
@needs_organamnist
def test_of_several_seeds_the_best_is_bundled(tmp_path):
    done = train(tmp_path, "--stages", "edge", "--seeds", "2")
    assert done.returncode == 0, done.stderr
    results = results_of(tmp_path)
    rows = [(row["val"]["accuracy"], row["seed"]) for row in results["stages"]]
    assert [seed for _, seed in rows] == [1, 2] and "over 2 seeds" in done.stdout
    directory = tmp_path / "organamnist"
    manifest = json.loads((directory / "bundle" / "manifest.json").read_text())
    assert manifest["training"]["seed"] == max(rows, key=lambda row: row[0])[1]
    assert (
        "the best of 2 seeds on validation" in (directory / "bundle" / "MODEL_CARD.md").read_text()
    )


ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def stages_of_one_process(tmp_path_factory):
    """The results of base and big, trained by one process."""
    out = tmp_path_factory.mktemp("one")
    alone = train(out, "--stages", "base,big", env=ONE_THREAD)
    assert alone.returncode == 0, alone.stderr
    return results_of(out)["stages"]


@pytest.mark.slow
@needs_organamnist
@pytest.mark.parametrize("share", ["stages", "batches"])
def test_two_processes_train_side_by_side_or_share_the_batches(
    tmp_path, stages_of_one_process, share
):
    arguments = command(tmp_path / "two", "--stages", "base,big", "--parallel", share)[3:]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "train.all",
    ]
    done = subprocess.run(
        [*launch, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=ONE_THREAD,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for two, one in zip(results_of(tmp_path / "two")["stages"], stages_of_one_process, strict=True):
        assert two["name"] == one["name"]
        if share == "stages":
            assert two["val"] == one["val"]
        else:  # sums in another order
            assert two["val"]["accuracy"] == pytest.approx(one["val"]["accuracy"], abs=0.03)

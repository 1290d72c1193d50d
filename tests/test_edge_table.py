"""tests/benchmarks/edge_table.py on runs that have a part of what it shows."""

import json
import shutil

import pytest
from conftest import ROOT, needs_default

from organ_infer.bundle.files import packaged_bundle, read_manifest


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    import edge_table

    monkeypatch.setattr(edge_table, "BATCHES", {1: (1, 1), 2: (1, 1)})
    return edge_table


@pytest.fixture
def run(tmp_path):
    """A run of two seeds whose bundle is the packaged one, without ensemble and robustness.json."""
    shutil.copytree(packaged_bundle(), tmp_path / "bundle")
    seed = read_manifest(packaged_bundle()).training["seed"]
    rows = [
        {
            "name": "edge_deep",
            "seed": seed,
            "test": {"accuracy": 0.9111, "auc": None, "ece": 0.0222},
        },
        {"name": "edge_deep", "seed": seed + 1, "test": {"accuracy": 0.8, "auc": 0.8, "ece": 0.8}},
    ]
    (tmp_path / "results.json").write_text(json.dumps({"stages": rows}))
    return tmp_path


@needs_default
def test_a_run_without_ensemble_has_a_table_of_what_it_has(table, run, capsys):
    table.main(run)
    printed = capsys.readouterr()
    head, _, *lines = printed.out.splitlines()
    assert all(len(line.split(" | ")) == len(head.split(" | ")) for line in lines)
    assert [line.split(" | ")[0] for line in lines] == [
        "| edge",
        "| edge_wide",
        "| edge_deep",
        "| ensemble",
    ]
    # of the seed in the bundle
    assert lines[2].startswith("| edge_deep | 0.911 | – | 0.022 | – | ")
    assert printed.err.splitlines() == [
        f"note: {run}: no bundle-ensemble; {table.NOTES['bundle-ensemble']}",
        f"note: {run}: no robustness.json; {table.NOTES['robustness.json']}",
    ]


@needs_default
def test_a_run_without_its_last_stage_has_a_table_too(table, run, capsys):
    (run / "bundle").rename(run / "bundle-ensemble")
    table.main(run)
    printed = capsys.readouterr()
    assert printed.out.splitlines()[4].startswith("| edge_deep | 0.911 ")
    assert f"note: {run}: no bundle; the table has no last stage" in printed.err


@needs_default
def test_what_is_no_run_is_one_line(table, run):
    shutil.rmtree(run / "bundle")
    with pytest.raises(SystemExit, match=r"no bundle and no bundle-ensemble; pass"):
        table.main(run)
    (run / "results.json").unlink()
    with pytest.raises(SystemExit, match=r"no results\.json; pass the directory of a run"):
        table.main(run)

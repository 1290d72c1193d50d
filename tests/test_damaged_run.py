"""The same command again on a run with a damaged file: rebuilt from the checkpoint, or one line that names the file."""

import json
import shutil

import numpy as np
import pytest

from tests.support.data_files import DATA, needs_organamnist
from train import record
from train.errors import DamagedFile
from train.report.run import StageFiles

DERIVED = ("base/probabilities.npz", "base/member.onnx", "base/history.csv", "results.json")
REWRITTEN = ("results.csv", "report/index.html", "bundle/manifest.json", "bundle/base.onnx", "bundle/MODEL_CARD.md")  # fmt: skip
DAMAGES = ("empty", "truncated", "other")
# Each case takes a run of the command, so one kind of damage stands for all by default.
USUAL = [
    pytest.param(
        name, how, marks=() if name in DERIVED and how == "truncated" else pytest.mark.slow
    )
    for name in (*DERIVED, *REWRITTEN)
    for how in DAMAGES
]


def train_here(out):
    from train.all import main

    place = ["--dataset", "organamnist", "--data-dir", str(DATA), "--out", str(out)]
    how = ["--device", "cpu", "--smoke", "--stages", "base", "--max-epochs", "1"]
    return main([*place, *how, "--precision", "fp32"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    assert train_here(out) == 0
    return out


@pytest.fixture
def run(finished, tmp_path, capsys):
    capsys.readouterr()
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs" / "organamnist"


def damage(path, how):
    content = path.read_bytes()
    if how == "directory":
        path.unlink()
        path.mkdir()
    else:
        other = np.random.default_rng(0).bytes(5000)
        path.write_bytes(
            {"empty": b"", "truncated": content[: len(content) // 2], "other": other}[how]
        )


@needs_organamnist
@pytest.mark.parametrize(("name", "how"), USUAL)
def test_a_damaged_derived_file_is_rebuilt(finished, run, capsys, name, how):
    damage(run / name, how)
    assert train_here(run.parent) == 0
    printed = capsys.readouterr()
    if name != "report/index.html":
        assert (run / name).read_bytes() == (finished / "organamnist" / name).read_bytes()
    assert (run / "report" / "index.html").read_text().rstrip().endswith("</html>")
    notes = [line for line in printed.err.splitlines() if line.startswith("train: note: ")]
    assert "Traceback" not in printed.err
    if name in DERIVED:
        assert len(notes) == 1 and str(run / name) in notes[0] and "rebuilt from" in notes[0]


@needs_organamnist
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_one_line_with_what_to_do(run, capsys, how):
    path = run / "base" / "checkpoint.pt"
    damage(path, how)
    assert train_here(run.parent) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{path}: not a readable checkpoint" in error
    assert "remove it to train the stage again, or start over with --fresh" in error


@needs_organamnist
@pytest.mark.parametrize(
    "name", [*DERIVED, "results.csv", "robustness.json", "base/checkpoint.pt", "report/index.html"]
)
def test_a_directory_in_the_place_of_a_file_is_one_line(run, capsys, name):
    if not (run / name).exists():
        (run / name).touch()
    damage(run / name, "directory")
    assert train_here(run.parent) == 2
    assert capsys.readouterr().err == (
        f"train: error: {run / name}: a directory, but the run has a file of this name; move it away\n"
    )


@needs_organamnist
@pytest.mark.parametrize("name", ["base", "report", "bundle"])
def test_a_file_in_the_place_of_a_directory_is_one_line(run, capsys, name):
    shutil.rmtree(run / name)
    (run / name).touch()
    assert train_here(run.parent) == 2
    assert capsys.readouterr().err == (
        f"train: error: {run / name}: not a directory, but the run has one of this name; move it away\n"
    )


@needs_organamnist
@pytest.mark.parametrize(
    "change",
    [
        "other order",
        *(pytest.param(c, marks=pytest.mark.slow) for c in ("fewer rows", "NaN", "other type")),
    ],
)
def test_sound_probabilities_of_something_else_are_rebuilt(finished, run, capsys, change):
    path = run / "base" / "probabilities.npz"
    arrays = record.read_arrays(path)
    arrays["val"] = {
        "other order": lambda p: np.roll(p, 1, axis=1),
        "fewer rows": lambda p: p[:-1],
        "NaN": lambda p: np.where(np.arange(len(p))[:, None] == 3, np.nan, p).astype(np.float32),
        "other type": lambda p: p.astype(np.float64),
    }[change](arrays["val"])
    np.savez(path, **arrays)
    assert train_here(run.parent) == 0
    assert "not the probabilities of this stage; rebuilt from the checkpoint" in (
        capsys.readouterr().err
    )
    assert path.read_bytes() == (finished / "organamnist/base/probabilities.npz").read_bytes()


@needs_organamnist
@pytest.mark.slow
def test_a_damaged_results_file_is_kept_beside_the_new_one(run):
    damage(run / "results.json", "other")
    damaged = (run / "results.json").read_bytes()
    assert train_here(run.parent) == 0
    assert (run / "results.json.damaged").read_bytes() == damaged
    assert json.loads((run / "results.json").read_text())["stages"][0]["name"] == "base"


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"\x93NUMPY", b"text", b"\x93NUMPY\x01\x00\x02\x00{}", bytes(3000)],
)
def test_what_is_no_archive_of_arrays_is_damaged(tmp_path, content):
    path = tmp_path / "probabilities.npz"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"probabilities\.npz: cannot be read") as caught:
        record.read_arrays(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"epoch\n", b"epoch,train_loss\n1,x\n", b"a,b\n1,2\n", bytes(99)]
)
def test_what_is_no_history_is_damaged_and_left_out_of_the_report(tmp_path, capsys, content):
    path = tmp_path / "history.csv"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"history\.csv: "):
        record.read_history(path)
    assert StageFiles(tmp_path).history == []
    error = capsys.readouterr().err
    assert error.startswith(f"train: note: {path}: ") and error.count("\n") == 1
    assert "left out of the report, rerun the command" in error

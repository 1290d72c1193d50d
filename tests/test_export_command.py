"""python -m export.all on tiny checkpoints: what is exported, judged and calibrated with what, and what is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from export import all as command
from export import member
from export.member import ExportError
from tests.support.tiny_graphs import SIZE, linear_graph, packed, softmax
from train.data import Data
from train.errors import RunError

CLASSES = [f"organ{i}" for i in range(11)]
RNG = np.random.default_rng(31)
SPLITS = {"train": 300, "val": 280, "test": 20}
IMAGES = {
    split: RNG.integers(0, 256, (count, 4, 4), dtype=np.uint8) for split, count in SPLITS.items()
}
LABELS = {split: RNG.integers(0, 11, count) for split, count in SPLITS.items()}
MATRICES = {
    name: RNG.normal(size=(16, 11)).astype(np.float32)
    for name in ("base", "batch_norm", "resnet50")
}


class Linear(nn.Module):
    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def forward(self, x):
        return x.flatten(1) @ torch.from_numpy(self.matrix)


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """Makes checkpoints of these stages, with changes to what they hold, in a world of 4 px: their paths."""
    states, asked = {}, {}

    def data(flag, **options):
        asked.update(options, flag=flag)
        counts = {split: [0] * 11 for split in SPLITS}
        return Data(
            flag, "axial", SIZE, "f" * 32, CLASSES, IMAGES, LABELS, counts, options["resample"]
        )

    monkeypatch.setattr("train.data.load_data", data)
    monkeypatch.setattr("train.record.load_checkpoint", lambda path: states[path])
    monkeypatch.setattr(
        "train.fit.network_of", lambda checkpoint: Linear(MATRICES[checkpoint.facts.network])
    )
    monkeypatch.setattr(member, "to_onnx", lambda network, size: linear_graph(network.matrix))
    monkeypatch.setattr("train.calibration.CORRUPTIONS", {"negative": None})
    monkeypatch.setattr("train.calibration.corrupt", lambda images, name, severity: 255 - images)

    def make(*stages, **changes):
        paths = []
        for stage in stages:
            path = tmp_path / "runs" / stage / f"{len(states)}" / "checkpoint.pt"
            path.parent.mkdir(parents=True)
            states[path] = {
                "stage": stage, "network": stage, "dataset": "organamnist", "size": SIZE, "stored": SIZE,
                "classes": CLASSES, "data_md5": "0" * 32, "smoke": False, "seed": 5, "finished": True, "weights": "none",
                "parameters": 1, "recipe": {"batch_size": 8, "max_epochs": 1, "method": {}}, "state": {}, "best_epoch": 1,
                "history": [], "optimiser": {}, "best": {}, "best_accuracy": 0.5,
            } | changes  # fmt: skip
            paths.append(path)
        make.states, make.asked = states, asked
        return paths

    return make


def run(paths, *options):
    return command.main(["--checkpoint", *map(str, paths), *map(str, options)])


def matrix_of(path):
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    return next(value for name, value in weights.items() if name.endswith("matrix"))


def logits_of(name, images):
    return packed(images) @ MATRICES[name].astype(np.float64)


def test_each_member_stands_beside_its_checkpoint_and_is_judged_on_validation(checkpoints, capsys):
    paths = checkpoints("base", "batch_norm")
    assert run(paths) == 0
    lines = capsys.readouterr().out.splitlines()
    for path, line, name in zip(paths, lines, ("base", "batch_norm"), strict=True):
        file = path.with_name("member.onnx")
        np.testing.assert_array_equal(matrix_of(file), MATRICES[name])
        accuracy = (logits_of(name, IMAGES["val"]).argmax(1) == LABELS["val"]).mean()
        assert line.startswith(f"{file}: 280 validation slices, logits within ")
        assert line.endswith(f"of PyTorch's, accuracy {accuracy:.4f}")


def test_members_go_where_they_are_asked_for_by_stage(checkpoints, tmp_path):
    assert run(checkpoints("base", "batch_norm"), "--out", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "base.onnx",
        "batch_norm.onnx",
    ]
    np.testing.assert_array_equal(matrix_of(tmp_path / "out" / "base.onnx"), MATRICES["base"])


def test_the_same_stage_of_two_runs_is_exported_beside_each(checkpoints):
    paths = checkpoints("base", "base")
    assert run(paths) == 0
    assert all(path.with_name("member.onnx").is_file() for path in paths)


def test_the_data_of_the_checkpoint_is_loaded_as_it_was_stored(checkpoints):
    paths = checkpoints("base", stored=64)
    assert run(paths, "--data-dir", "somewhere") == 0
    assert checkpoints.asked == {
        "flag": "organamnist",
        "size": SIZE,
        "directory": Path("somewhere"),
        "resample_from": 64,
        "resample": "area",
    }
    checkpoints.states[paths[0]]["resample"] = "linear"
    assert run(paths) == 0 and checkpoints.asked["resample"] == "linear"
    assert run(paths, "--resample", "cubic") == 0 and checkpoints.asked["resample"] == "cubic"
    del checkpoints.states[paths[0]]["stored"], checkpoints.states[paths[0]]["resample"]
    assert run(paths) == 0 and checkpoints.asked["resample"] == "area"
    assert checkpoints.asked["resample_from"] == SIZE and checkpoints.asked["directory"] is None


@pytest.fixture
def bundled(monkeypatch):
    """What `write_bundle` was given."""
    given = {}

    def record(directory, info, members, slices, *, precisions, temperature, fast_member):
        assert temperature is None
        given.update(
            vars(info),
            directory=directory,
            members=members,
            slices=slices,
            precisions=precisions,
            fast_member=fast_member,
        )

    monkeypatch.setattr("export.bundle.write_bundle", record)
    return given


def test_a_bundle_is_measured_on_validation_and_states_where_it_comes_from(
    checkpoints, bundled, tmp_path, capsys
):
    paths = checkpoints("base", weights="b.pt") + checkpoints("batch_norm", weights="a.pt", seed=6)
    assert run(paths, "--bundle", tmp_path / "b", "--precision", "fp32,int8") == 0
    slices = bundled["slices"]
    np.testing.assert_array_equal(slices.train, IMAGES["train"])
    np.testing.assert_array_equal(slices.val, IMAGES["val"])
    np.testing.assert_array_equal(slices.labels, LABELS["val"])
    np.testing.assert_array_equal(
        slices.fitted_on[0], np.concatenate([IMAGES["val"], 255 - IMAGES["val"]])
    )
    np.testing.assert_array_equal(slices.fitted_on[1], np.tile(LABELS["val"], 2))
    assert bundled["directory"] == tmp_path / "b" and bundled["precisions"] == ("fp32", "int8")
    assert [(m.stage, m.file) for m in bundled["members"]] == [
        (stage, path.with_name("member.onnx"))
        for stage, path in zip(("base", "batch_norm"), paths, strict=True)
    ]
    assert {key: bundled[key] for key in ("dataset", "view", "classes", "size", "name")} == {
        "dataset": "organamnist", "view": "axial", "classes": CLASSES, "size": SIZE, "name": "organamnist-ensemble",
    }  # fmt: skip
    training = bundled["training"]
    assert training.pop("temperature_fitted_on").startswith(
        "280 validation slices and 1 corrupted copies"
    )
    assert training == {
        "seed": 5, "data_md5": "f" * 32, "weights": "a.pt; b.pt", "versions": {}, "smoke": False,
    }  # fmt: skip
    mean = np.mean(
        [softmax(logits_of(name, IMAGES["val"])) for name in ("base", "batch_norm")], axis=0
    )
    found = bundled["metrics"]["val"]
    assert bundled["metrics"].keys() == {"val"} and found.keys() == {"accuracy", "auc", "ece"}
    accuracy = (mean.argmax(1) == LABELS["val"]).mean()
    assert found["accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert (
        f"{tmp_path / 'b'}: 2 members, validation accuracy {accuracy:.4f}"
        in capsys.readouterr().out
    )


def test_a_bundle_of_one_is_named_after_its_stage_and_tries_every_precision(
    checkpoints, bundled, tmp_path
):
    assert run(checkpoints("base"), "--bundle", tmp_path / "b") == 0
    assert bundled["name"] == "organamnist-base" and bundled["training"]["weights"] == "none"
    assert bundled["resample"] == bundled["slices"].resample == "area"
    assert run(checkpoints("base", resample="cubic"), "--bundle", tmp_path / "b") == 0
    assert bundled["resample"] == bundled["slices"].resample == "cubic"
    assert sorted(bundled["precisions"]) == ["fp16", "fp32", "int8"]


def test_a_smoke_checkpoint_is_judged_on_the_slices_of_a_smoke_run(
    checkpoints, bundled, tmp_path, capsys
):
    paths = checkpoints("base", smoke=True)
    assert run(paths, "--bundle", tmp_path / "b") == 0
    assert capsys.readouterr().err == (
        f"export: warning: {paths[0]}: from a smoke run, its figures mean nothing; train without --smoke\n"
    )
    assert len(bundled["slices"].train) == len(bundled["slices"].val) == 256
    assert bundled["training"]["smoke"] is True


def test_the_merged_graph_has_the_temperature_of_the_float32_members(checkpoints, tmp_path, capsys):
    names = ("base", "batch_norm")
    assert run(checkpoints(*names), "--merged", tmp_path / "m.onnx") == 0
    fitted_on = np.concatenate([IMAGES["val"], 255 - IMAGES["val"]])
    labels = np.tile(LABELS["val"], 2)
    logits = [logits_of(name, fitted_on) for name in names]

    def loss(temperature):
        mean = np.mean([softmax(z / temperature) for z in logits], axis=0)
        return -np.log(mean[np.arange(len(labels)), labels]).mean()

    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 1001))
    best = grid[np.argmin([loss(temperature) for temperature in grid])]
    told = capsys.readouterr().out.splitlines()[-1]
    prefix = f"{tmp_path / 'm.onnx'}: 2 members in one graph, temperature "
    assert told.startswith(prefix)
    temperature = float(told.removeprefix(prefix))
    assert temperature == pytest.approx(best, rel=6e-3)
    found = ReferenceEvaluator(onnx.load(tmp_path / "m.onnx")).run(
        None, {"images": packed(IMAGES["test"]).reshape(-1, 1, 4, 4).astype(np.float32)}
    )[0]
    expected = np.mean(
        [softmax(logits_of(name, IMAGES["test"]) / temperature) for name in names], axis=0
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_merged_graph_that_is_not_the_members_is_not_written(
    checkpoints, tmp_path, monkeypatch, capsys
):
    from export import merge

    real = merge.merge
    monkeypatch.setattr(merge, "merge", lambda members, temperature: real(members, temperature=3.0))
    told = refused(capsys, checkpoints("base"), "--merged", tmp_path / "m.onnx", code=1)
    assert "the merged graph's probabilities differ" in told and not (tmp_path / "m.onnx").exists()


def test_a_bundle_is_written_with_what_it_lists(checkpoints, tmp_path):
    assert run(checkpoints("base"), "--bundle", tmp_path / "b", "--precision", "fp32") == 0
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert [entry["file"] for entry in manifest["members"]] == ["base.onnx"]
    assert manifest["task"]["classes"] == CLASSES and manifest["input"]["size"] == SIZE


@pytest.mark.parametrize("name", [None, "base", "batch_norm"])
def test_the_fast_member_of_the_bundle_is_the_one_that_is_named(
    checkpoints, bundled, tmp_path, name
):
    paths = checkpoints("base") + checkpoints("batch_norm")
    options = [] if name is None else ["--fast-member", name]
    assert run(paths, "--bundle", tmp_path / "b", *options) == 0
    assert bundled["fast_member"] == name


@pytest.mark.parametrize(
    ("stages", "options", "problem"),
    [
        (["base"], ["--bundle", "b", "--fast-member", "base"], "needs --bundle and several"),
        (["base", "batch_norm"], ["--fast-member", "base"], "needs --bundle and several"),
        (
            ["base", "batch_norm"],
            ["--bundle", "b", "--fast-member", "edge"],
            "no checkpoint of stage 'edge'; choose from base, batch_norm",
        ),
    ],
)
def test_a_fast_member_that_cannot_be_is_refused(
    checkpoints, tmp_path, monkeypatch, capsys, stages, options, problem
):
    monkeypatch.chdir(tmp_path)
    paths = [path for stage in stages for path in checkpoints(stage)]
    assert run(paths, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("export: error: --fast-member: ") and problem in line
    assert not (tmp_path / "b").exists()


def test_a_given_temperature_is_used_and_named(checkpoints, tmp_path):
    """A temperature fitted on slices of other scans is right where one fitted on validation is too small."""
    options = ("--bundle", tmp_path / "b", "--merged", tmp_path / "m.onnx", "--precision", "fp32")
    assert run(checkpoints("base"), *options, "--temperature", "0.5") == 0
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["temperature"] == 0.5
    assert manifest["training"]["temperature_fitted_on"] == "other slices (--temperature)"
    card = " ".join((tmp_path / "b" / "MODEL_CARD.md").read_text().split())
    assert "divided by the temperature 0.5, fitted on other slices (--temperature). ECE on" in card
    merged = ReferenceEvaluator(onnx.load(tmp_path / "m.onnx")).run(
        None, {"images": packed(IMAGES["test"]).reshape(-1, 1, 4, 4).astype(np.float32)}
    )[0]
    expected = softmax(logits_of("base", IMAGES["test"]) / 0.5)
    np.testing.assert_allclose(merged, expected, atol=1e-5)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "101", "warm"])
def test_a_temperature_that_is_none_is_a_usage_error(text, checkpoints, capsys):
    with pytest.raises(SystemExit) as ended:
        run(checkpoints("base"), "--temperature", text)
    assert ended.value.code == 2 and "argument --temperature: " in capsys.readouterr().err


# What is refused.


def refused(capsys, paths, *options, code=2):
    assert run(paths, *options) == code
    told = capsys.readouterr().err
    assert told.startswith("export: error: ") and told.count("\n") == 1
    return told


@pytest.mark.parametrize("precision", ["int4", "fp32,", "fp32,int4"])
def test_an_unknown_precision_is_refused(precision, checkpoints, capsys):
    told = refused(capsys, checkpoints("base"), "--precision", precision)
    assert "choose from int8, fp32, fp16" in told


def test_a_stage_that_is_not_finished_is_refused(checkpoints, capsys):
    paths = checkpoints("base") + checkpoints("batch_norm", finished=False)
    assert f"{paths[1]}: training of this stage is not finished" in refused(capsys, paths)
    assert not paths[0].with_name("member.onnx").exists()


@pytest.mark.parametrize("option", ["--bundle", "--merged", "--out"])
def test_one_stage_given_twice_is_refused_where_both_would_have_one_name(
    option, checkpoints, tmp_path, capsys
):
    paths = checkpoints("base", "batch_norm", "batch_norm")
    told = refused(capsys, paths, option, tmp_path / "x")
    assert "stage batch_norm is given twice" in told and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "key, value, text, expected",
    [
        ("dataset", "organcmnist", "the data set is organcmnist", "the data set is organamnist"),
        ("size", 28, "the input has 28 px per side", "the input has 4 px per side"),
        ("stored", 64, "the stored slices have 64 px per side", "the stored slices have 4 px per side"),
        ("smoke", True, "from a smoke run", "from a full run"),
    ],
)  # fmt: skip
def test_checkpoints_of_other_data_are_refused(key, value, text, expected, checkpoints, capsys):
    paths = checkpoints("base") + checkpoints("batch_norm", **{key: value})
    told = refused(capsys, paths)
    assert f"{paths[1]}: {text}, but {paths[0]}: {expected}; export them separately" in told


@pytest.mark.parametrize(
    "asked, advice",
    [
        ("runs/seeds/edge/checkpoint.pt", "runs/seeds/edge has seed-1/checkpoint.pt, seed-2/checkpoint.pt"),
        ("runs/seeds/edge", "runs/seeds/edge has seed-1/checkpoint.pt, seed-2/checkpoint.pt"),
        ("runs/seeds/egde/checkpoint.pt", "runs/seeds has base/checkpoint.pt, edge/seed-1/checkpoint.pt, edge/seed-2"),
        ("runs/sedes/base/checkpoint.pt", "runs has seeds/base/checkpoint.pt, seeds/edge/seed-1/checkpoint.pt"),
        ("other/checkpoint.pt", "check the path"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_is_not_there_is_answered_with_those_that_are(
    asked, advice, tmp_path, monkeypatch, capsys
):
    for name in ("base", "edge/seed-1", "edge/seed-2"):
        (tmp_path / "runs" / "seeds" / name).mkdir(parents=True)
        (tmp_path / "runs" / "seeds" / name / "checkpoint.pt").touch()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    assert f"{asked}: no such checkpoint; {advice}" in refused(capsys, [asked])


def test_of_many_checkpoints_the_first_are_named(tmp_path, capsys):
    for seed in range(1, 8):
        (tmp_path / "edge" / f"seed-{seed}").mkdir(parents=True)
        (tmp_path / "edge" / f"seed-{seed}" / "checkpoint.pt").touch()
    told = refused(capsys, [tmp_path / "edge" / "checkpoint.pt"])
    assert told.endswith("seed-3/checkpoint.pt, seed-4/checkpoint.pt and 3 more\n")


@pytest.mark.parametrize("option", ["--bundle", "--merged", "--out"])
def test_what_exists_is_replaced_with_a_note(option, checkpoints, tmp_path, capsys):
    paths = checkpoints("base")
    place = tmp_path / "place"
    replaced = place / "base.onnx" if option == "--out" else place
    given = (option, place, "--precision", "fp32")
    notes = []
    for more in ((), (), ("--force",)):
        assert run(paths, *given, *more) == 0
        notes.append(capsys.readouterr().err)
    note = (
        f"export: note: {option} {replaced}: exists and will be replaced; --force omits this note\n"
    )
    assert notes == ["", note, ""]


def test_an_empty_directory_is_no_bundle_to_note(checkpoints, tmp_path, capsys):
    (tmp_path / "b").mkdir()
    assert run(checkpoints("base"), "--bundle", tmp_path / "b", "--precision", "fp32") == 0
    assert capsys.readouterr().err == ""


def test_a_place_that_is_no_bundle_is_refused_before_anything_is_done(
    checkpoints, tmp_path, capsys
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    paths = checkpoints("base")
    assert "--bundle: " in refused(capsys, paths, "--bundle", tmp_path / "mine")
    assert not paths[0].with_name("member.onnx").exists()


def raising(error):
    def export(options):
        assert isinstance(options, command.ExportOptions)
        raise error

    return export


@pytest.mark.parametrize(
    "error, code, words",
    [
        (RunError("no data"), 2, "no data"),
        (ExportError("not the network"), 1, "not the network"),
        (OSError(28, "No space left on device", "there"), 2, "there: No space left on device"),
        (OSError("odd"), 2, "export: error: odd"),
        (
            ImportError("x", name="onnxscript"),
            2,
            "onnxscript: not installed; run pip install -e '.[train,cpu]'",
        ),
    ],
)
def test_each_failure_has_its_exit_code_and_one_line(
    error, code, words, checkpoints, monkeypatch, capsys
):
    monkeypatch.setattr(command, "export", raising(error))
    assert words in refused(capsys, checkpoints("base"), code=code)


def test_a_missing_package_is_named_before_anything_is_read(checkpoints, monkeypatch, capsys):
    paths = checkpoints("base")
    monkeypatch.setitem(sys.modules, "export.member", None)
    assert "export.member: not installed" in refused(capsys, paths)


def test_a_graph_that_is_not_the_network_ends_in_1(checkpoints, monkeypatch, capsys):
    monkeypatch.setattr(member, "to_onnx", lambda network, size: linear_graph(network.matrix, 0.01))
    paths = checkpoints("base")
    assert "logits differ from PyTorch's by 1.00e-02" in refused(capsys, paths, code=1)
    assert not paths[0].with_name("member.onnx").exists()


def test_a_checkpoint_must_be_named(capsys):
    with pytest.raises(SystemExit) as caught:
        command.main([])
    assert caught.value.code == 2 and "--checkpoint" in capsys.readouterr().err

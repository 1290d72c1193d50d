"""Exported networks on corrupted slices: the figures by hand, what is measured again, the command."""

import json
import re

import numpy as np
import pytest
from conftest import CLASSES, make_graph
from sklearn.metrics import balanced_accuracy_score

from export.temperature import mean_softmax
from organ_infer._packing import pack
from train import robustness
from train.corruptions import CORRUPTIONS, corrupt
from train.data import Data
from train.record import RunError
from train.robustness import corrupted_accuracy, main, measure_robustness, table

MEMBERS = ("batch_norm", "resnet50", "resnet101", "resnet152")


def make_data():
    generator = np.random.default_rng(0)
    images = {s: generator.integers(0, 256, (40, 28, 28), np.uint8) for s in ("train", "val", "test")}
    labels = {s: np.arange(40) % 11 for s in images}
    counts = {s: np.bincount(labels[s], minlength=11).tolist() for s in images}
    return Data("organamnist", "axial", 28, "0123", CLASSES, images, labels, counts)


def row(name, seed=1, accuracy=0.5):
    return {"name": name, "seed": seed, "val": {"accuracy": accuracy}}


def make_run(directory, *names):
    """The exported networks and results.json of a run; the results."""
    for i, name in enumerate(names):
        if name != "ensemble":
            (directory / name).mkdir()
            (directory / name / "member.onnx").write_bytes(make_graph(seed=i))
    dataset = {"flag": "organamnist", "size": 28, "md5": "0123"}
    results = {"format": 1, "smoke": False, "dataset": dataset, "stages": [row(name) for name in names]}
    (directory / "results.json").write_text(json.dumps(results))
    return results


@pytest.fixture
def counted(monkeypatch):
    """How often a network was run."""
    runs = []
    real = robustness._Network._run
    monkeypatch.setattr(robustness._Network, "_run", lambda self, x: runs.append(self.file) or real(self, x))
    return runs


def quiet(line):
    pass


def test_accuracy_and_balanced_error_by_hand():
    """A network that goes by brightness alone: right or wrong as the corruptions move a slice over its threshold."""
    images = np.repeat(np.array([60, 100, 140, 200], np.uint8), 784).reshape(4, 28, 28)
    labels = np.array([0, 0, 0, 1])

    def predict(slices):
        bright = slices.mean((1, 2)) > 130
        return np.stack([~bright, bright], axis=1).astype(float)

    said = []
    found = corrupted_accuracy(predict, images, labels, say=said.append)
    assert (found["clean_accuracy"], found["clean_balanced_error"]) == (0.75, pytest.approx(1 / 6))
    assert list(found["accuracy"]) == list(found["balanced_error"]) == list(CORRUPTIONS)
    # 140 falls below at every step, 200 at 0.65 and below
    assert found["accuracy"]["brightness_down"] == [1, 1, 1, 0.75, 0.75]
    assert found["balanced_error"]["brightness_down"] == [0, 0, 0, 0.5, 0.5]
    assert found["accuracy"]["pixelate"] == [0.75] * 5
    for kind, key in (("accuracy", "mean_corrupted_accuracy"), ("balanced_error", "mean_balanced_error")):
        assert found[key] == pytest.approx(np.mean([found[kind][name] for name in CORRUPTIONS]))
    assert len(said) == 13 and said[8].split() == [
        "brightness_down",
        "1.0000",
        "1.0000",
        "1.0000",
        "0.7500",
        "0.7500",
    ]


def test_the_balanced_error_is_scikit_learns():
    generator = np.random.default_rng(1)
    answers, labels = generator.random((200, 11)), generator.integers(0, 9, 200)
    accuracy, error = robustness._scores(answers, labels)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score(labels, answers.argmax(1))
    assert (accuracy, error) == (
        pytest.approx((answers.argmax(1) == labels).mean()),
        pytest.approx(1 - expected),
    )


def test_an_ensemble_is_the_mean_probability_of_its_members(tmp_path, counted):
    data = make_data()
    results = make_run(tmp_path, *MEMBERS, "ensemble")
    entries = measure_robustness(tmp_path, data, results, [*MEMBERS, "ensemble"], say=quiet)
    assert [entry["name"] for entry in entries] == [*MEMBERS, "ensemble"]
    assert len(counted) == 4 * 66  # the ensemble asks for what its members have answered
    logits = []
    for i in range(4):
        session = robustness._Network(
            tmp_path / MEMBERS[i] / "member.onnx", data, robustness.CPU, shared=False
        )
        session(data.images["test"])
        copy = corrupt(data.images["test"], "jpeg_compression", 4)
        logits.append(session.session.run(["logits"], {"images": pack(copy)})[0])
    expected = (mean_softmax(logits).argmax(1) == data.labels["test"]).mean()
    assert entries[-1]["accuracy"]["jpeg_compression"][3] == expected
    kept = json.loads((tmp_path / "robustness.json").read_text())
    assert kept["stages"] == entries and kept["smoke"] is False
    assert kept["dataset"] == {"flag": "organamnist", "size": 28, "md5": "0123"}
    assert list(entries[-1]["members"]) == list(MEMBERS)
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*.partial"))


def test_only_what_changed_is_measured_again(tmp_path, counted):
    data = make_data()
    results = make_run(tmp_path, "base", "big")

    def measured(*names, **options):
        counted.clear()
        entries = measure_robustness(tmp_path, data, results, names, slices=10, say=quiet, **options)
        return [file.parent.name for file in dict.fromkeys(counted)], entries

    ran, first = measured("base", "big")
    assert ran == ["base", "big"]
    assert measured("base", "big") == ([], first)
    assert measured("big", "base", "ensemble") == ([], first[::-1])  # one that was not trained is passed over
    assert measured("base", split="val")[0] == ["base"]
    (tmp_path / "big" / "member.onnx").write_bytes(make_graph(seed=7))
    ran, again = measured("base", "big")
    assert ran == ["big"] and again[0] == first[0] and again[1]["members"] != first[1]["members"]
    (tmp_path / "base" / "member.onnx").write_bytes(make_graph(seed=8))
    assert measured("base")[0] == ["base"]
    kept = json.loads((tmp_path / "robustness.json").read_text())["stages"]
    # the one of the split val was of another network
    assert [(entry["name"], entry["split"]) for entry in kept] == [("big", "test"), ("base", "test")]
    counted.clear()
    assert measure_robustness(tmp_path, data, results, ["big"], slices=20, say=quiet)[0]["slices"] == 20
    assert counted and len(json.loads((tmp_path / "robustness.json").read_text())["stages"]) == 3


def test_a_stage_that_is_finished_outlives_a_later_failure(tmp_path, monkeypatch):
    data = make_data()
    results = make_run(tmp_path, "base", "big")
    (tmp_path / "big" / "member.onnx").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"cannot open .*big/member\.onnx"):
        measure_robustness(tmp_path, data, results, ["base", "big"], slices=5, say=quiet)
    kept = json.loads((tmp_path / "robustness.json").read_text())["stages"]
    assert [entry["name"] for entry in kept] == ["base"]
    (tmp_path / "big" / "member.onnx").unlink()
    with pytest.raises(RunError, match=r"no member\.onnx in .*big: give the command that trained it again"):
        measure_robustness(tmp_path, data, results, ["big"], slices=5, say=quiet)


def test_the_slices_are_spread_over_the_split(tmp_path, monkeypatch):
    data = make_data()
    data.images["test"][:, 0, 0] = np.arange(40)
    seen = []

    def keep(predict, images, labels, seed, *, say):
        seen.append(images[:, 0, 0].tolist())
        return {}

    monkeypatch.setattr(robustness, "corrupted_accuracy", keep)
    results = make_run(tmp_path, "base")
    for slices in (4, 1, None):
        (entry,) = measure_robustness(tmp_path, data, results, ["base"], slices=slices, say=quiet)
        assert (entry["slices"], entry["split_slices"]) == (len(seen[-1]), 40)
    assert seen == [[0, 13, 26, 39], [0], list(range(40))]


def test_of_several_seeds_the_best_on_validation_is_measured(tmp_path):
    data = make_data()
    for seed in (5, 6):
        (tmp_path / "base" / f"seed-{seed}").mkdir(parents=True)
        (tmp_path / "base" / f"seed-{seed}" / "member.onnx").write_bytes(make_graph(seed=seed))
    results = {"smoke": True, "stages": [row("base", 5, 0.4), row("base", 6, 0.6)]}
    (entry,) = measure_robustness(tmp_path, data, results, ["base"], slices=5, say=quiet)
    assert entry["seed"] == 6
    assert json.loads((tmp_path / "robustness.json").read_text())["smoke"] is True


def test_the_command_measures_and_prints_a_table(tmp_path, monkeypatch, capsys):
    make_run(tmp_path, "base", "big")
    monkeypatch.setattr(robustness, "load_data", lambda flag, size, directory, resample_from: make_data())
    assert main([str(tmp_path), "--slices", "11", "--split", "val"]) == 0
    out = capsys.readouterr().out
    assert "organamnist, 11 of the 40 slices of val" in out
    (entry, _) = json.loads((tmp_path / "robustness.json").read_text())["stages"]
    assert entry["split"] == "val" and entry["slices"] == 11
    rows = {line[:18].strip(): line[18:].split() for line in out.split("slices of val\n")[1].splitlines()}
    assert rows[""] == ["base", "big"] and rows["clean"][0] == f"{entry['clean_accuracy']:.4f}"
    assert rows["shot_noise"][0] == f"{np.mean(entry['accuracy']['shot_noise']):.4f}"
    assert set(CORRUPTIONS) <= set(rows)
    assert main([str(tmp_path), "--slices", "11", "--split", "val", "--stages", "big"]) == 0
    assert capsys.readouterr().out.startswith("\norganamnist")  # nothing is measured again


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stages", "edge"], "--stages: 'edge' is not in .*; it has base"),
        (["--slices", "0"], "--slices takes 1 or more, found 0"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, capsys, arguments, words):
    make_run(tmp_path, "base")
    assert main([str(tmp_path), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(words, said)


def test_slices_are_resampled_as_in_the_run(tmp_path, monkeypatch):
    make_run(tmp_path, "base")
    results = json.loads((tmp_path / "results.json").read_text())
    results["dataset"]["resample_from"] = 64
    (tmp_path / "results.json").write_text(json.dumps(results))
    asked = []
    monkeypatch.setattr(robustness, "load_data", lambda flag, **how: asked.append(how) or make_data())
    assert main([str(tmp_path), "--slices", "5"]) == 0
    assert asked == [{"size": 28, "directory": None, "resample_from": 64}]


def test_a_run_with_a_stage_of_another_version_is_refused(tmp_path, capsys):
    make_run(tmp_path, "base")
    text = (tmp_path / "results.json").read_text()
    (tmp_path / "results.json").write_text(text.replace('"base"', '"edge_teacher1"'))
    assert main([str(tmp_path)]) == 2
    assert "has a stage 'edge_teacher1', of another version" in capsys.readouterr().err


def test_a_directory_without_a_run_is_refused_and_not_made(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "no results.json in" in capsys.readouterr().err and not (tmp_path / "nowhere").exists()


def test_the_table_of_one_stage():
    accuracy = {name: [0.5] * 5 for name in CORRUPTIONS}
    entry = {
        "name": "base",
        "clean_accuracy": 0.9,
        "mean_corrupted_accuracy": 0.5,
        "mean_balanced_error": 0.4,
    }
    lines = table([entry | {"accuracy": accuracy}]).splitlines()
    assert len(lines) == 5 + 13 and lines[1].split() == ["clean", "0.9000"]


def test_on_a_gpu_pytorch_runs_the_networks(tmp_path, monkeypatch):
    """The GPU is pretended: where the network is sent, and that its answers are the exported network's."""
    import torch

    from train import fit, record

    data, results = make_data(), make_run(tmp_path, "base")
    exported = robustness._Network(tmp_path / "base" / "member.onnx", data, robustness.CPU, shared=False)
    sent = []

    class Network:
        def to(self, device):
            sent.append(device)
            return self

    monkeypatch.setattr(record, "load_checkpoint", lambda path: {"from": path})
    monkeypatch.setattr(fit, "network_of", lambda state: state["from"].name == "checkpoint.pt" and Network())
    monkeypatch.setattr(fit, "evaluate", lambda network, images: exported._logits_exported(images))
    gpu = torch.device("cuda", 0)
    on_gpu = measure_robustness(tmp_path, data, results, ["base"], device=gpu, say=quiet)
    assert sent == [gpu]
    (tmp_path / robustness.FILE).unlink()
    assert measure_robustness(tmp_path, data, results, ["base"], say=quiet) == on_gpu and sent == [gpu]

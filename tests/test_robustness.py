"""Exported networks on corrupted slices: the figures by hand, what is measured again, the command."""

import hashlib
import json
import re
import runpy
import sys

import numpy as np
import pytest
from conftest import make_graph
from sklearn.metrics import balanced_accuracy_score

from export.temperature import mean_softmax
from organ_infer._packing import pack
from tests.support.result_rows import robustness_entry, split_metrics, stage_result
from tests.support.unequal_splits import Origins, content_of, unequal_data
from train import record, robustness
from train.corruptions import CORRUPTIONS, corrupt
from train.errors import RunError
from train.json_format import to_json
from train.results_format import CorruptionScores, Dataset, Results, write_results
from train.robustness import corrupted_accuracy, main, measure_robustness, table

MEMBERS = ("batch_norm", "resnet50", "resnet101", "resnet152")


def make_data():
    return unequal_data({"train": 33, "val": 37, "test": 40})


def row(name, seed=1, accuracy=0.5):
    return stage_result(name, seed, val=split_metrics(accuracy))


def make_run(directory, *names):
    """The exported networks and results.json of a run; the results."""
    for i, name in enumerate(names):
        if name != "ensemble":
            (directory / name).mkdir()
            (directory / name / "member.onnx").write_bytes(make_graph(seed=i))
    dataset = Dataset(flag="organamnist", size=28, md5="0123")
    results = Results(dataset=dataset, stages=[row(name) for name in names])
    write_results(directory, results)
    return results


def stored(directory):
    """The entries of robustness.json."""
    return json.loads((directory / "robustness.json").read_text())["stages"]


@pytest.fixture
def counted(monkeypatch):
    """How often a network was run."""
    runs = []
    real = robustness._Network._run
    monkeypatch.setattr(
        robustness._Network, "_run", lambda self, x: runs.append(self.file) or real(self, x)
    )
    return runs


def quiet(line):
    pass


# in the place of a measurement
SCORES = CorruptionScores(
    0.5, 0.5, 0.5, 0.5, accuracy={"shot_noise": [0.5] * 5}, balanced_error={"shot_noise": [0.5] * 5}
)


def test_accuracy_and_balanced_error_by_hand():
    """A network that goes by brightness alone: right or wrong as the corruptions move a slice over its threshold."""
    images = np.repeat(np.array([60, 100, 140, 200], np.uint8), 784).reshape(4, 28, 28)
    labels = np.array([0, 0, 0, 1])

    def predict(slices):
        bright = slices.mean((1, 2)) > 130
        return np.stack([~bright, bright], axis=1).astype(float)

    said = []
    found = corrupted_accuracy(predict, images, labels, report=said.append)
    assert (found.clean_accuracy, found.clean_balanced_error) == (0.75, pytest.approx(1 / 6))
    assert list(found.accuracy) == list(found.balanced_error) == list(CORRUPTIONS)
    # 140 falls below at every step, 200 at 0.65 and below
    assert found.accuracy["brightness_down"] == [1, 1, 1, 0.75, 0.75]
    assert found.balanced_error["brightness_down"] == [0, 0, 0, 0.5, 0.5]
    assert found.accuracy["pixelate"] == [0.75] * 5
    for values, mean in (
        (found.accuracy, found.mean_corrupted_accuracy),
        (found.balanced_error, found.mean_balanced_error),
    ):
        assert mean == pytest.approx(np.mean([values[name] for name in CORRUPTIONS]))
    assert len(said) == 13 and said[8].split() == [
        "brightness_down",
        "1.0000",
        "1.0000",
        "1.0000",
        "0.7500",
        "0.7500",
    ]


def test_the_balanced_error_weighs_each_class_alike():
    """Supports of 6, 3 and 1; the last class does not occur."""
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])
    answers = np.eye(4)[[0, 0, 0, 1, 1, 3, 1, 1, 0, 2]]
    accuracy, error = robustness._scores(answers, labels)
    # recalls 3/6, 2/3 and 1/1
    assert accuracy == 0.6
    assert error == pytest.approx(1 - (1 / 2 + 2 / 3 + 1) / 3)


def test_every_corruption_is_asked_about_once_per_severity_with_the_seed():
    """The 65 copies by the hash of their pixels; the noise of the seed 5, at no severity that of another."""
    images, labels = make_data().images["val"][:9], make_data().labels["val"][:9]
    asked = []

    def predict(slices):
        asked.append(content_of(slices))
        return np.zeros((9, 11))

    corrupted_accuracy(predict, images, labels, seed=5)
    expected = [
        images,
        *(corrupt(images, name, s, 5) for name in CORRUPTIONS for s in (1, 2, 3, 4, 5)),
    ]
    assert asked == [content_of(copy) for copy in expected] and len(set(asked)) == 66
    assert content_of(corrupt(images, "shot_noise", 1, 0)) not in asked


def test_the_figures_of_a_copy_stand_at_its_severity_and_the_means_are_theirs():
    """A network that is right on as many slices as the copy's place among the 65 says."""
    labels = np.repeat([0, 1], [60, 20])
    images = np.random.default_rng(2).integers(0, 256, (80, 28, 28), np.uint8)
    number = iter(range(66))

    def predict(slices):
        right = np.arange(80) < next(number)
        return np.eye(2)[np.where(right, labels, 1 - labels)]

    found = corrupted_accuracy(predict, images, labels)
    places = np.arange(1, 66).reshape(13, 5)
    assert (found.clean_accuracy, found.clean_balanced_error) == (0, 1)
    for name, row in zip(CORRUPTIONS, places, strict=True):
        assert found.accuracy[name] == pytest.approx(row / 80)
        recalls = np.minimum(row, 60) / 60, np.maximum(row - 60, 0) / 20
        assert found.balanced_error[name] == pytest.approx(1 - np.mean(recalls, axis=0))
    assert found.mean_corrupted_accuracy == pytest.approx(33 / 80)
    errors = [value for values in found.balanced_error.values() for value in values]
    assert found.mean_balanced_error == pytest.approx(sum(errors) / 65)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_is_measured_with_its_own_labels(tmp_path, monkeypatch, split):
    measured = []
    monkeypatch.setattr(
        robustness,
        "corrupted_accuracy",
        lambda predict, *arguments, report: measured.append(arguments) or SCORES,
    )
    data, results = make_data(), make_run(tmp_path, "base")
    measure_robustness(
        tmp_path, data, results, ["base"], split=split, slices=7, seed=3, report=quiet
    )
    ((images, labels, seed),) = measured
    places = Origins(data).places(images, labels, split)
    assert (
        len(places) == 7
        and (places[0], places[-1]) == (0, len(data.labels[split]) - 1)
        and seed == 3
    )


def test_another_seed_is_measured_anew_and_recorded(tmp_path, counted):
    data, results = make_data(), make_run(tmp_path, "base")
    (first,) = measure_robustness(tmp_path, data, results, ["base"], seed=1, report=quiet)
    (again,) = measure_robustness(tmp_path, data, results, ["base"], seed=1, report=quiet)
    assert again == first and len(counted) == 66
    (second,) = measure_robustness(tmp_path, data, results, ["base"], seed=2, report=quiet)
    assert (first.corruption_seed, second.corruption_seed) == (1, 2) and len(counted) == 2 * 66
    noisy = {name for name in CORRUPTIONS if first.accuracy[name] != second.accuracy[name]}
    assert noisy <= {"gaussian_noise", "speckle_noise", "impulse_noise", "shot_noise"}
    kept = stored(tmp_path)
    assert [entry["corruption_seed"] for entry in kept] == [2]


def test_the_noise_is_that_of_seed_0_unless_told_otherwise(tmp_path):
    data, results = make_data(), make_run(tmp_path, "base")
    images, labels, asked = data.images["test"][:5], data.labels["test"][:5], []

    def predict(slices):
        asked.append(content_of(slices))
        return np.zeros((5, 11))

    corrupted_accuracy(predict, images, labels)
    assert content_of(corrupt(images, "shot_noise", 2, 0)) in asked
    (entry,) = measure_robustness(tmp_path, data, results, ["base"], slices=5, report=quiet)
    assert entry.corruption_seed == 0


def test_more_slices_than_a_batch_are_answered_in_their_order(tmp_path):
    data = unequal_data({"train": 20, "val": 20, "test": 300})
    (tmp_path / "member.onnx").write_bytes(make_graph(seed=1))
    network = robustness._Network(tmp_path / "member.onnx", data, robustness.CPU, shared=False)
    found = network(data.images["test"])
    logits = network.session.run(["logits"], {"images": pack(data.images["test"])})[0]
    np.testing.assert_allclose(found, mean_softmax([logits]), atol=1e-5)
    assert found.dtype == np.float32 and robustness.BATCH == 256


def test_the_figures_of_another_data_set_are_dropped(tmp_path, counted):
    data, results = make_data(), make_run(tmp_path, "base")
    measure_robustness(tmp_path, data, results, ["base"], slices=5, report=quiet)
    for content in (
        '{"dataset": {"md5": "other"}, "stages": [1]}',
        "[]",
        "{}",
        '{"dataset": null}',
    ):
        (tmp_path / "robustness.json").write_text(content)
        counted.clear()
        (entry,) = measure_robustness(tmp_path, data, results, ["base"], slices=5, report=quiet)
        kept = json.loads((tmp_path / "robustness.json").read_text())
        assert len(counted) == 66 and kept["stages"] == [to_json(entry)] and kept["format"] == 1


def test_a_single_seed_may_lie_in_a_directory_of_its_own(tmp_path):
    """The directory of the seed is preferred to that of the stage."""
    data, results = make_data(), make_run(tmp_path, "base")
    own = tmp_path / "base" / "seed-1"
    own.mkdir()
    (own / "member.onnx").write_bytes(make_graph(seed=9))
    (entry,) = measure_robustness(tmp_path, data, results, ["base"], slices=5, report=quiet)
    assert entry.members == {"base": hashlib.sha256(make_graph(seed=9)).hexdigest()}


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
    entries = measure_robustness(tmp_path, data, results, [*MEMBERS, "ensemble"], report=quiet)
    assert [entry.name for entry in entries] == [*MEMBERS, "ensemble"]
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
    assert entries[-1].accuracy["jpeg_compression"][3] == expected
    kept = json.loads((tmp_path / "robustness.json").read_text())
    assert kept["stages"] == to_json(entries) and kept["smoke"] is False
    # the keys of an entry, in their order
    assert list(kept["stages"][-1]) == [
        *(
            "name",
            "seed",
            "members",
            "split",
            "slices",
            "split_slices",
            "corruption_seed",
            "clean_accuracy",
        ),
        *(
            "clean_balanced_error",
            "mean_corrupted_accuracy",
            "mean_balanced_error",
            "accuracy",
            "balanced_error",
        ),
    ]
    assert kept["dataset"] == {"flag": "organamnist", "size": 28, "md5": "0123"}
    assert list(entries[-1].members) == list(MEMBERS)
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*.partial"))


def test_only_what_changed_is_measured_again(tmp_path, counted):
    data = make_data()
    results = make_run(tmp_path, "base", "big")

    def measured(*names, **options):
        counted.clear()
        entries = measure_robustness(
            tmp_path, data, results, names, slices=10, report=quiet, **options
        )
        return [file.parent.name for file in dict.fromkeys(counted)], entries

    ran, first = measured("base", "big")
    assert ran == ["base", "big"]
    assert measured("base", "big") == ([], first)
    assert measured("big", "base", "ensemble") == (
        [],
        first[::-1],
    )  # one that was not trained is passed over
    assert measured("base", split="val")[0] == ["base"]
    (tmp_path / "big" / "member.onnx").write_bytes(make_graph(seed=7))
    ran, again = measured("base", "big")
    assert ran == ["big"] and again[0] == first[0] and again[1].members != first[1].members
    (tmp_path / "base" / "member.onnx").write_bytes(make_graph(seed=8))
    assert measured("base")[0] == ["base"]
    kept = stored(tmp_path)
    # the one of the split val was of another network
    assert [(entry["name"], entry["split"]) for entry in kept] == [
        ("big", "test"),
        ("base", "test"),
    ]
    counted.clear()
    assert (
        measure_robustness(tmp_path, data, results, ["big"], slices=20, report=quiet)[0].slices
        == 20
    )
    assert counted and len(stored(tmp_path)) == 3


def test_a_stage_that_is_finished_outlives_a_later_failure(tmp_path, monkeypatch):
    data = make_data()
    results = make_run(tmp_path, "base", "big")
    (tmp_path / "big" / "member.onnx").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"big/member\.onnx: cannot be opened"):
        measure_robustness(tmp_path, data, results, ["base", "big"], slices=5, report=quiet)
    kept = stored(tmp_path)
    assert [entry["name"] for entry in kept] == ["base"]
    (tmp_path / "big" / "member.onnx").unlink()
    with pytest.raises(
        RunError, match=r"big: no member\.onnx; rerun the command that trained the stage"
    ):
        measure_robustness(tmp_path, data, results, ["big"], slices=5, report=quiet)


def test_the_slices_are_spread_over_the_split(tmp_path, monkeypatch):
    data = make_data()
    data.images["test"][:, 0, 0] = np.arange(40)
    seen = []

    def keep(predict, images, labels, seed, *, report):
        seen.append(images[:, 0, 0].tolist())
        return SCORES

    monkeypatch.setattr(robustness, "corrupted_accuracy", keep)
    results = make_run(tmp_path, "base")
    for slices in (4, 1, None):
        (entry,) = measure_robustness(
            tmp_path, data, results, ["base"], slices=slices, report=quiet
        )
        assert (entry.slices, entry.split_slices) == (len(seen[-1]), 40)
    assert seen == [[0, 13, 26, 39], [0], list(range(40))]


def test_of_several_seeds_the_best_on_validation_is_measured(tmp_path):
    data = make_data()
    for seed in (5, 6):
        (tmp_path / "base" / f"seed-{seed}").mkdir(parents=True)
        (tmp_path / "base" / f"seed-{seed}" / "member.onnx").write_bytes(make_graph(seed=seed))
    results = Results(smoke=True, stages=[row("base", 5, 0.4), row("base", 6, 0.6)])
    (entry,) = measure_robustness(tmp_path, data, results, ["base"], slices=5, report=quiet)
    assert entry.seed == 6
    assert json.loads((tmp_path / "robustness.json").read_text())["smoke"] is True


def test_the_command_measures_and_prints_a_table(tmp_path, monkeypatch, capsys):
    make_run(tmp_path, "base", "big")
    monkeypatch.setattr(
        robustness, "load_data", lambda flag, size, directory, resample_from, resample: make_data()
    )
    assert main([str(tmp_path), "--slices", "11", "--split", "val"]) == 0
    out = capsys.readouterr().out
    assert "organamnist, 11 of the 37 slices of val" in out
    (entry, _) = json.loads((tmp_path / "robustness.json").read_text())["stages"]
    assert entry["split"] == "val" and entry["slices"] == 11
    rows = {
        line[:18].strip(): line[18:].split()
        for line in out.split("slices of val\n")[1].splitlines()
    }
    assert rows[""] == ["base", "big"] and rows["clean"][0] == f"{entry['clean_accuracy']:.4f}"
    assert rows["shot_noise"][0] == f"{np.mean(entry['accuracy']['shot_noise']):.4f}"
    assert set(CORRUPTIONS) <= set(rows)
    assert main([str(tmp_path), "--slices", "11", "--split", "val", "--stages", "big"]) == 0
    assert capsys.readouterr().out.startswith("\norganamnist")  # nothing is measured again


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stages", "edge"], "--stages: 'edge' is not in .*; choose from base"),
        (["--slices", "0"], "--slices: expected 1 or more, found 0"),
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
    results["dataset"] |= {"resample_from": 64, "resample": "linear"}
    (tmp_path / "results.json").write_text(json.dumps(results))
    asked = []
    monkeypatch.setattr(
        robustness, "load_data", lambda flag, **how: asked.append(how) or make_data()
    )
    assert main([str(tmp_path), "--slices", "5"]) == 0
    assert asked == [{"size": 28, "directory": None, "resample_from": 64, "resample": "linear"}]


def test_a_run_with_a_stage_of_another_version_is_refused(tmp_path, capsys):
    make_run(tmp_path, "base")
    text = (tmp_path / "results.json").read_text()
    (tmp_path / "results.json").write_text(text.replace('"base"', '"edge_teacher1"'))
    assert main([str(tmp_path)]) == 2
    assert "stage 'edge_teacher1' is of another version" in capsys.readouterr().err


def test_a_directory_without_a_run_is_refused_and_not_made(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert (
        ": no results.json; pass" in capsys.readouterr().err and not (tmp_path / "nowhere").exists()
    )


def test_the_table_has_a_column_per_stage_and_a_line_under_the_means():
    def entry(name, first):
        figures = ("clean_accuracy", "mean_corrupted_accuracy", "mean_balanced_error")
        accuracy = {
            c: [first + 0.01 * i, first, first, first, first] for i, c in enumerate(CORRUPTIONS)
        }
        means = {figure: first + 0.1 * i for i, figure in enumerate(figures)}
        return robustness_entry(name, accuracy=accuracy, **means)

    lines = table([entry("base", 0.5), entry("early_stopping", 0.25)]).splitlines()
    # 18, then columns as wide as the longest name and two more
    assert {len(line) for line in lines} == {18 + 2 * 16}
    assert lines[0] == " " * 18 + "            base  early_stopping"
    rows = [(line[:18].strip(), *line[18:].split()) for line in lines]
    assert rows[1:4] == [
        ("clean", "0.5000", "0.2500"),
        ("mean corrupted", "0.6000", "0.3500"),
        ("balanced error", "0.7000", "0.4500"),
    ]
    assert set(lines[4]) == {"-"}
    expected = [
        (c, f"{0.5 + 0.002 * i:.4f}", f"{0.25 + 0.002 * i:.4f}") for i, c in enumerate(CORRUPTIONS)
    ]
    assert rows[5:] == expected
    (name,) = {len(line) for line in table([entry("big", 0.5)]).splitlines()}
    assert name == 18 + 9


def test_progress_is_told_a_line_per_corruption_with_the_stage(tmp_path):
    said = []
    results = make_run(tmp_path, "base")
    (entry,) = measure_robustness(
        tmp_path, make_data(), results, ["base"], slices=5, report=said.append
    )
    values = "".join(f"{value:>8.4f}" for value in entry.accuracy["jpeg_compression"])
    assert len(said) == 13 and said[1] == f"base           jpeg_compression  {values}"


@pytest.fixture
def data_at_hand(monkeypatch):
    monkeypatch.setattr(robustness, "load_data", lambda flag, **options: make_data())


def test_a_smoke_runs_slices_are_the_first_and_its_figures_are_said_to_mean_nothing(
    tmp_path, monkeypatch, capsys
):
    data = unequal_data({"train": 300, "val": 290, "test": 270})
    monkeypatch.setattr(robustness, "load_data", lambda flag, **options: data)
    for smoke, total in ((True, 256), (False, 270)):
        results = make_run(tmp_path, "base")
        results.smoke = smoke
        write_results(tmp_path, results)
        assert main([str(tmp_path), "--slices", "3", "--device", "cpu"]) == 0
        out = capsys.readouterr().out
        assert f"3 of the {total} slices of test" in out
        assert out.rstrip().endswith("A smoke run: the figures above mean nothing.") == smoke
        for file in ("base/member.onnx", "robustness.json"):
            (tmp_path / file).unlink()
        (tmp_path / "base").rmdir()


def test_a_single_slice_may_be_asked_for(tmp_path, data_at_hand, capsys):
    make_run(tmp_path, "base")
    assert main([str(tmp_path), "--slices", "1", "--device", "cpu"]) == 0
    assert "1 of the 40 slices of test" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
def test_as_a_program_it_takes_its_arguments_and_ends_with_its_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["robustness", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("train.robustness", run_name="__main__")
    assert ended.value.code == 2 and ": no results.json; pass" in capsys.readouterr().err


def test_a_run_without_a_finished_stage_is_refused(tmp_path, data_at_hand, capsys):
    make_run(tmp_path)
    assert main([str(tmp_path)]) == 2
    assert (
        capsys.readouterr().err
        == f"train.robustness: error: {tmp_path}: no finished stage yet; train one with python -m train.all\n"
    )


def test_a_run_that_another_process_is_using_is_refused(tmp_path, data_at_hand, capsys):
    make_run(tmp_path, "base")
    with record.locked(tmp_path):
        assert main([str(tmp_path), "--slices", "3", "--device", "cpu"]) == 2
    assert "another run is using it" in capsys.readouterr().err


def test_the_command_measures_on_the_device_it_is_told(tmp_path, data_at_hand, monkeypatch, capsys):
    make_run(tmp_path, "base")
    asked = []
    monkeypatch.setattr(
        robustness, "choose_device", lambda name: asked.append(name) or robustness.CPU
    )
    for arguments in ([], ["--device", "cuda:1"]):
        assert main([str(tmp_path), "--slices", "3", *arguments]) == 0
    assert asked == ["auto", "cuda:1"]
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--device", "gpu"])


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RunError("something is wrong", 1), 1, "error: something is wrong"),
        (
            OSError(28, "No space left on device", "a.json"),
            2,
            "error: a.json: No space left on device",
        ),
        (OSError(28, "No space left on device"), 2, "error: {run}: No space left on device"),
        (OSError("no number"), 2, "error: {run}: no number"),
        (
            KeyboardInterrupt(),
            130,
            "interrupted; rerun the same command to resume after the last finished stage",
        ),
    ],
)
def test_what_stops_the_command_is_one_line_and_a_code(
    tmp_path, data_at_hand, monkeypatch, capsys, error, code, words
):
    def fails(*arguments, **options):
        raise error

    make_run(tmp_path, "base")
    monkeypatch.setattr(robustness, "measure_robustness", fails)
    assert main([str(tmp_path), "--device", "cpu"]) == code
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert words.format(run=tmp_path) in shown.err and "Traceback" not in shown.err
    with record.locked(tmp_path):  # it was given back
        pass


def test_on_a_gpu_pytorch_runs_the_networks(tmp_path, monkeypatch):
    """The GPU is pretended: where the network is sent, and that its answers are the exported network's."""
    import torch

    from train import fit

    data, results = make_data(), make_run(tmp_path, "base")
    exported = robustness._Network(
        tmp_path / "base" / "member.onnx", data, robustness.CPU, shared=False
    )
    sent = []

    class Network:
        def to(self, device):
            sent.append(device)
            return self

    monkeypatch.setattr(robustness, "read_checkpoint", lambda path: path)
    monkeypatch.setattr(fit, "network_of", lambda path: path.name == "checkpoint.pt" and Network())
    monkeypatch.setattr(fit, "evaluate", lambda network, images: exported._logits_exported(images))
    gpu = torch.device("cuda", 0)
    on_gpu = measure_robustness(tmp_path, data, results, ["base"], device=gpu, report=quiet)
    assert sent == [gpu]
    (tmp_path / "robustness.json").unlink()
    assert measure_robustness(
        tmp_path, data, results, ["base"], report=quiet
    ) == on_gpu and sent == [gpu]


@pytest.mark.parametrize("content", [b"", b'{"format": 1', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_robustness_file_is_set_aside_and_measured_again(tmp_path, capsys, content):
    path = tmp_path / "robustness.json"
    results = make_run(tmp_path)
    path.write_bytes(content)
    assert measure_robustness(tmp_path, make_data(), results, [], report=quiet) == []
    assert not path.exists() and (tmp_path / "robustness.json.damaged").read_bytes() == content
    error = capsys.readouterr().err
    assert error.startswith(f"train: note: {path}: not valid JSON") and error.count("\n") == 1

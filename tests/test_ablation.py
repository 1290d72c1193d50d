"""The ablation of the edge recipe: chains of slices, who is held out, what is measured on whom, and the table."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import ROOT
from support.data_files import SCANS, needs_scans
from test_fit import CPU, made_data

from export.member import open_session
from export.temperature import fit_temperature, mean_softmax
from organ_infer import OrganClassifier
from organ_infer.bundle.files import packaged_bundle
from organ_infer.volumes import open_mask, open_volume
from train import fit, record
from train.chains import chains, held_out
from train.config import TrainConfig
from train.corruptions import CORRUPTIONS
from train.devices import precision
from train.edge import ablate, scans
from train.edge.distillation import Distillation
from train.edge.scans import ScanCrops, scan_crops
from train.errors import RunError, StageFailed
from train.recipes import EDGE_RECIPE, EdgeRecipe
from train.stages import STAGES


def grays(*levels):
    """Slices of one gray each; their root mean square difference is the levels' difference."""
    return np.array(levels, np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)


def same_chain(images, labels=None):
    """The groups of slices that a chain holds, by number."""
    found = chains(images, np.zeros(len(images), int) if labels is None else np.array(labels))
    assert set(found) == set(range(found.max() + 1))  # numbered without a gap
    return sorted(np.flatnonzero(found == chain).tolist() for chain in set(found))


def test_slices_nearer_than_33_grays_are_joined():
    assert same_chain(grays(0, 32)) == [[0, 1]]
    assert same_chain(grays(0, 33)) == [[0], [1]]
    assert same_chain(grays(0, 32, 64, 97)) == [[0, 1, 2], [3]]


def test_a_slice_is_joined_to_its_two_nearest_only():
    assert same_chain(grays(0, 1, 2, 30, 31, 32)) == [[0, 1, 2], [3, 4, 5]]
    assert same_chain(grays(0, 1, 30, 31, 32)) == [[0, 1, 2, 3, 4]]


def test_equal_slices_are_joined():
    assert same_chain(grays(0, 200, 0, 200)) == [[0, 2], [1, 3]]


def test_slices_of_two_classes_are_never_joined():
    assert same_chain(grays(0, 0, 1, 1), [3, 5, 3, 5]) == [[0, 2], [1, 3]]
    assert same_chain(grays(9), [4]) == [[0]]


def test_the_quarter_of_chains_that_is_held_out_is_always_the_same():
    """The figures of docs/results/edge.md are of these chains."""
    chain = np.array([*range(16), 3, 4, 3])
    out = held_out(chain)
    assert out.dtype == bool and np.flatnonzero(out).tolist() == [3, 6, 16, 18]
    assert held_out(np.arange(4000)).mean() == pytest.approx(0.25, abs=0.03)
    assert held_out(np.arange(4000), share=0.5).mean() == pytest.approx(0.5, abs=0.03)


@pytest.fixture
def data():
    """240 training slices in chains of four, and 60 validation slices of which 13 are of class 0."""
    data = made_data(n=240)
    data.labels["val"][:] = np.where(np.arange(60) % 9 == 4, 0, 1)
    data.labels["val"][:6] = 0
    return data


class Watched:
    """What the ablation trains and measures, without a network: every slice is taken for class 0."""

    def __init__(self, monkeypatch, data):
        self.trained, self.measured, self.corrupted = [], [], []
        monkeypatch.setattr(
            ablate, "load_data", lambda *a, **k: self.__dict__.update(asked=(a, k)) or data
        )
        for name in ("chains", "pseudo_scans"):
            monkeypatch.setattr(ablate, name, lambda images, labels: np.arange(len(images)) // 4)
        monkeypatch.setattr(ablate, "CORRUPTED", 20)
        monkeypatch.setattr(ablate, "choose_device", lambda asked: CPU)
        monkeypatch.setattr(ablate, "corrupt", self.corrupt)
        monkeypatch.setattr(fit, "fit", self.fit)
        monkeypatch.setattr(fit, "network_of", lambda state: torch.nn.Identity())
        monkeypatch.setattr(fit, "evaluate", self.evaluate)

    def fit(self, stage, data, config, device, directory, *, recipe, report):
        self.trained.append((stage, data, config, directory, recipe))
        report("trained")
        return {}

    def evaluate(self, network, images):
        self.measured.append(images)
        return np.eye(3)[np.zeros(len(images), int)]

    def corrupt(self, images, name, severity):
        self.corrupted.append((images, name, severity))
        return images


def contents(images):
    return [image.tobytes() for image in images]


@pytest.mark.parametrize("by", ["chains", "scans"])
def test_training_sees_the_groups_that_are_kept_and_measuring_those_held_out(
    data, tmp_path, monkeypatch, by
):
    watched = Watched(monkeypatch, data)
    command = ["--out", str(tmp_path), "--seeds", "1", "--only", "the recipe", "--hold-out", by]
    assert ablate.main(command) == 0
    [(stage, kept, config, directory, recipe)] = watched.trained
    trained, held = contents(kept.images["train"]), contents(watched.measured[0])
    every = contents(data.images["train"])
    assert len(set(every)) == 240 and sorted(trained + held) == sorted(every)
    assert 0.65 < len(trained) / 240 < 0.85
    place = {image: number for number, image in enumerate(every)}
    assert not {place[image] // 4 for image in trained} & {place[image] // 4 for image in held}
    labels = dict(zip(every, data.labels["train"].tolist(), strict=True))
    assert [labels[image] for image in trained] == kept.labels["train"].tolist()
    assert contents(kept.images["val"]) == contents(data.images["val"])
    assert (
        stage == dataclasses.replace(STAGES["edge"], network="edge")
        and recipe == EdgeRecipe()
        and directory == tmp_path / "the_recipe" / "seed-1"
    )
    assert config == TrainConfig(seed=1, batch_size=128, max_epochs=8, weights="none")
    scores = record.read_json(directory / "scores.json")
    assert scores["held_out"] == np.mean([labels[image] == 0 for image in held])


def test_every_seed_holds_out_another_quarter_of_the_pseudo_scans(data, tmp_path, monkeypatch):
    watched = Watched(monkeypatch, data)
    monkeypatch.setattr(ablate, "pseudo_scans", lambda images, labels: np.arange(240) // 10)
    assert ablate.main(["--out", str(tmp_path), "--seeds", "5", "--only", "the recipe"]) == 0
    held = [contents(images) for images in watched.measured[:: 3 + 13]]
    assert [len(images) for images in held] == [60] * 5 and held[4] == held[0]
    every = [content for fold in held[:4] for content in fold]
    assert sorted(every) == sorted(contents(data.images["train"]))


def crops(scan, labels, seed=0):
    images = np.random.default_rng(seed).random((len(labels), 1, 28, 28), np.float32)
    return ScanCrops(scan, 5.0, "area", images, np.array(labels))


def test_scans_are_scored_by_the_mean_over_margins_and_ways_to_resample(
    data, tmp_path, monkeypatch
):
    Watched(monkeypatch, data)
    # a network that takes every slice for class 0
    monkeypatch.setattr(
        ablate, "packed_logits", lambda network, images: np.eye(3)[np.zeros(len(images), int)]
    )
    measured = [
        crops("unenhanced", [0, 1]),
        crops("unenhanced", [0, 0, 0, 1]),
        crops("enhanced", [0]),
    ]
    arguments = ("v", EdgeRecipe(), 1, data, data, 2, tmp_path, CPU)
    scores = ablate.measure_variant(*arguments, scans=measured)
    assert scores["unenhanced"] == (0.5 + 0.75) / 2 and scores["enhanced"] == 1
    assert (
        ablate.table(tmp_path, ["v"], ["seed-1"], scans=True)
        .splitlines()[0]
        .endswith("| validation corrupted | unenhanced scan | enhanced scan | temperature |")
    )
    assert ablate.measure_variant(*arguments, scans=measured)["unenhanced"] == scores["unenhanced"]


def test_scores_of_another_way_to_hold_out_or_without_scans_are_refused(
    data, tmp_path, monkeypatch
):
    Watched(monkeypatch, data)
    arguments = ("v", EdgeRecipe(), 1, data, data, 2, tmp_path, CPU)
    ablate.measure_variant(*arguments)
    with pytest.raises(RunError, match="with --hold-out chains, but this command has --hold-out"):
        ablate.measure_variant(*arguments, hold_out="scans")
    with pytest.raises(RunError, match="holds scores without --scans; use another --out"):
        ablate.measure_variant(*arguments, scans=[crops("enhanced", [0])])
    file = tmp_path / "v" / "seed-1" / "scores.json"
    scores = record.read_json(file)
    del scores["temperature"]
    record.write_json(file, scores)
    with pytest.raises(RunError, match="of an earlier version; use another --out"):
        ablate.measure_variant(*arguments)


@pytest.mark.parametrize(
    ("recipe", "network"), [(EdgeRecipe(), "edge"), (EDGE_RECIPE, "edge_orientation")]
)
def test_recipes_with_orientations_train_the_network_with_two_outputs(
    data, tmp_path, monkeypatch, recipe, network
):
    watched = Watched(monkeypatch, data)
    ablate.measure_variant("v", recipe, 1, data, data, 2, tmp_path, CPU)
    assert [stage.network for stage, *_ in watched.trained] == [network]


@needs_scans
def test_the_scans_crops_are_the_runtimes():
    classes = ["bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right"]
    classes += ["liver", "lung-left", "lung-right", "pancreas", "spleen"]
    rows = scan_crops(SCANS, classes, 28, (40, 400))
    assert [(c.scan, c.margin, c.resample) for c in rows] == [
        (scan, margin, resample)
        for scan in ("unenhanced", "enhanced")
        for margin in (0.0, 5.0)
        for resample in ("area", "linear")
    ]
    assert [len(c.labels) for c in rows] == [145] * 4 + [26] * 4
    with OrganClassifier(device="cpu") as classifier:
        how = classifier.manifest.input
        rows = scan_crops(SCANS, classifier.classes, how.size, how.window)
        for scan, (name, mask) in scans.SCANS.items():
            volume = open_volume(SCANS / "totalsegmentator" / name)
            organs = classifier.predict_volume(
                volume, open_mask(SCANS / "totalsegmentator" / mask, like=volume), margin_mm=5
            )
            [row] = [c for c in rows if (c.scan, c.margin, c.resample) == (scan, 5.0, how.resample)]
            expected = [one.prediction.probabilities for o in organs for one in o.slices]
            graph = packaged_bundle() / classifier.manifest.members[0].file
            [logits] = open_session(graph.read_bytes()).run(["logits"], {"images": row.images})
            found = mean_softmax([logits], classifier.manifest.temperature)
            # batches of another size round differently in int8
            np.testing.assert_allclose(found, np.array(expected), atol=1e-3)
            names = [o.expected for o in organs for _ in o.slices]
            assert [classifier.classes[k] for k in row.labels] == names


def test_missing_scans_are_one_line(data, tmp_path, monkeypatch, capsys):
    watched = Watched(monkeypatch, data)
    assert ablate.main(["--out", str(tmp_path), "--scans", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ablate: error: --scans ") and error.count("\n") == 1
    assert not watched.trained


def test_each_score_is_measured_on_its_own_slices(data, tmp_path, monkeypatch):
    watched = Watched(monkeypatch, data)
    scores = ablate.measure_variant("v", EdgeRecipe(), 3, data, data, 2, tmp_path, CPU)
    val, labels = data.images["val"], data.labels["val"]
    chosen = [
        0,
        3,
        6,
        9,
        12,
        16,
        19,
        22,
        25,
        28,
        31,
        34,
        37,
        40,
        43,
        47,
        50,
        53,
        56,
        59,
    ]  # 20 of 60, evenly
    assert contents(watched.measured[1]) == contents(val)
    assert contents(watched.measured[2]) == contents(val[:, :, ::-1])  # columns: front to back
    assert len(watched.measured) == 3 + 13
    assert [(name, severity) for _, name, severity in watched.corrupted] == [
        (c, 3) for c in CORRUPTIONS
    ]
    assert all(contents(images) == contents(val[chosen]) for images, _, _ in watched.corrupted)
    assert scores == {
        "held_out": np.mean(data.labels["train"] == 0),
        "val": np.mean(labels == 0),
        "val_mirrored": np.mean(labels == 0),
        "val_corrupted": pytest.approx(np.mean(labels[chosen] == 0)),
        "temperature": fit_temperature([np.eye(3)[np.zeros(240, int)]], data.labels["train"]),
    }
    assert scores["val"] != scores["val_corrupted"] != scores["held_out"]


def test_all_validation_slices_are_corrupted_if_there_are_fewer(data, tmp_path, monkeypatch):
    watched = Watched(monkeypatch, data)
    monkeypatch.setattr(ablate, "CORRUPTED", 1000)
    ablate.measure_variant("v", EdgeRecipe(), 3, data, data, 2, tmp_path, CPU)
    assert contents(watched.corrupted[0][0]) == contents(data.images["val"])


def test_every_variant_is_trained_with_every_seed_by_default(data, tmp_path, monkeypatch, capsys):
    watched = Watched(monkeypatch, data)
    monkeypatch.chdir(tmp_path)
    assert ablate.main([]) == 0
    assert watched.asked == (("organamnist",), {"directory": None})
    assert [(recipe, config.seed) for _, _, config, _, recipe in watched.trained] == [
        (recipe, seed) for seed in (1, 2, 3) for recipe in ablate.VARIANTS.values()
    ]
    assert all(config.max_epochs == 8 for _, _, config, _, _ in watched.trained)
    directories = sorted(path.name for path in (tmp_path / "runs" / "ablation").iterdir())
    assert directories == sorted(name.replace(" ", "_") for name in ablate.VARIANTS)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("device  cpu") and printed[0].endswith(
        f"({precision(CPU)}, --amp auto)"
    )
    assert "the recipe, trained" in printed and printed[-1].startswith("| the recipe in use | ")
    assert any(line.startswith("no shifts, seed 2: held_out 0.") for line in printed)


def test_what_was_measured_is_not_measured_again(data, tmp_path, monkeypatch):
    watched = Watched(monkeypatch, data)
    first = ablate.measure_variant("v", EdgeRecipe(), 3, data, data, 2, tmp_path, CPU)
    again = ablate.measure_variant("v", EdgeRecipe(), 3, data, data, 2, tmp_path, CPU)
    assert len(watched.trained) == 1 and first.items() <= again.items()
    for changed, named in (
        ({"epochs": 3}, "holds scores with --epochs 2, but this command has --epochs 3"),
        ({"recipe": EdgeRecipe(shift=1)}, "of another recipe"),
        ({"data": dataclasses.replace(data, md5="1" * 32)}, "of another data set"),
    ):
        arguments = {
            "name": "v",
            "recipe": EdgeRecipe(),
            "seed": 3,
            "data": data,
            "holdout": data,
            "epochs": 2,
        }
        with pytest.raises(RunError, match=f"{named}; use another --out"):
            ablate.measure_variant(**arguments | changed, out=tmp_path, device=CPU)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            KeyboardInterrupt(),
            130,
            "ablate: stopped; rerun the same command to continue from the last finished epoch",
        ),
        (StageFailed("edge: out of memory"), 1, "ablate: error: edge: out of memory"),
        (RunError("no data"), 2, "ablate: error: no data"),
    ],
)
def test_what_breaks_off_says_so_and_has_an_exit_code(
    data, tmp_path, monkeypatch, capsys, error, code, message
):
    Watched(monkeypatch, data)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(fit, "fit", fail)
    assert ablate.main(["--out", str(tmp_path)]) == code
    assert capsys.readouterr().err == f"{message}\n"


def test_help_says_what_the_command_is_for(capsys):
    with pytest.raises(SystemExit) as ended:
        ablate.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert (
        "Measure what each ingredient of the edge network's recipe contributes." in text
        and "The baseline is" not in text
    )


def test_a_variant_that_is_none_is_named(data, tmp_path, monkeypatch, capsys):
    watched = Watched(monkeypatch, data)
    assert ablate.main(["--out", str(tmp_path), "--only", "reference,no such"]) == 2
    assert (
        "ablate: error: --only: unknown variant 'no such'; choose from reference, no cutting, "
        in capsys.readouterr().err
    )
    assert not watched.trained


def test_each_variant_changes_one_ingredient_of_the_reference():
    """docs/results/edge.md, "What each ingredient is worth": the reference is the recipe without erasing and other windows."""
    reference = dataclasses.asdict(ablate.VARIANTS["reference"])
    assert reference == dataclasses.asdict(EdgeRecipe()) | {"erase": 0.0, "intensity": 0.0}
    changed = {
        name: {
            key: value
            for key, value in dataclasses.asdict(recipe).items()
            if value != reference[key]
        }
        for name, recipe in ablate.VARIANTS.items()
    }
    assert changed == {
        "reference": {},
        "no cutting": {"cutmix": 0.0},
        "no mirroring": {"flip_front_back": 0.0},
        "no shifts": {"shift": 0},
        "no averaged weights": {"ema_decay": None},
        "no label smoothing": {"smoothing": 0.0},
        "with erasing": {"erase": 0.5},
        "with mixing": {"mixup": 0.5},
        "with rotation and scale": {"affine": 1.0},
        "with another window": {"intensity": 0.3},
        "with noise": {"noise": 0.05},
        "the recipe": {"erase": 0.5, "intensity": 0.3},
        "with negatives": {"erase": 0.5, "intensity": 0.3, "negatives": 0.15},
        "the recipe in use": {
            "erase": 0.5,
            "intensity": 0.3,
            "contrast": 0.4,
            "negatives": 0.15,
            "reoriented": 0.2,
            "orientation_weight": 0.4,
        },
    }
    docs = (ROOT / "docs" / "results" / "edge.md").read_text()
    assert all(f"\n| {name} | 0." in docs for name in ablate.VARIANTS)
    assert all(f"`{name}`" in docs for name in (*ablate.CHANGES, ablate.DISTILLED))


def test_the_table_holds_mean_and_deviation_over_the_seeds(tmp_path):
    rows = {1: (0.9, 0.5, 0.3, 0.1, 1), 2: (0.8, 0.5, 0.4, 0.1, 1), 3: (0.7, 0.8, 0.8, 0.1, 1)}
    columns = [*ablate.SCORES, "temperature"]
    for seed, values in rows.items():
        place = tmp_path / "no_shifts" / f"seed-{seed}"
        place.mkdir(parents=True)
        record.write_json(place / "scores.json", dict(zip(columns, values, strict=True)))
    head = "| variant | held out | validation | validation mirrored | validation corrupted | temperature |\n|---|---|---|---|---|---|\n"
    # the deviation of a sample: sqrt(0.02 / 2), sqrt(0.06 / 2), sqrt(0.14 / 2)
    assert ablate.table(tmp_path, ["no shifts"], ["seed-1", "seed-2", "seed-3"]) == head + (
        "| no shifts | 0.8000 ± 0.1000 | 0.6000 ± 0.1732 | 0.5000 ± 0.2646 | 0.1000 ± 0.0000 | 1.0000 ± 0.0000 |"
    )
    assert (
        ablate.table(tmp_path, ["no shifts"], ["seed-1"])
        == head + "| no shifts | 0.9000 | 0.5000 | 0.3000 | 0.1000 | 1.0000 |"
    )


def test_each_change_leaves_out_or_adds_one_ingredient_of_the_recipe_in_use():
    def changed(network, stage):
        own = dataclasses.asdict(STAGES[stage].recipe)
        return {
            name: {
                field: value
                for field, value in dataclasses.asdict(by_stage[stage]).items()
                if value != own[field]
            }
            for name, by_stage in ablate.recipes(network).items()
        }

    every = {
        "the recipe in use": {},
        "no CutMix": {"cutmix": 0.0},
        "no flips": {"flip_front_back": 0.0},
        "no pixel shifts": {"shift": 0},
        "no averaging": {"ema_decay": None},
        "no smoothing": {"smoothing": 0.0},
        "no erasing": {"erase": 0.0},
        "no window": {"intensity": 0.0},
        "no contrast": {"contrast": None},
        "no negatives": {"negatives": None},
        "no orientations": {"reoriented": None, "orientation_weight": None},
        "with streaks": {"streaks": 0.3},
        "with thick slices": {"thick_slices": 0.3},
        "with zoom": {"zoom": 0.15},
    }
    no_noise, no_blur = {"no noise": {"noise": 0.0}}, {"no blur": {"blur": None}}
    with_blur = {"with blur": {"blur": 1.0}}
    assert changed("edge", "edge") == every | with_blur
    assert changed("edge_deep", "edge_deep") == every | no_noise | with_blur
    assert changed("edge_wide", "edge_wide") == every | no_blur
    # the average has what changes any of its members
    assert changed("edge_ensemble", "edge_deep") == every | no_noise | {"no blur": {}} | with_blur
    # every ingredient that is switched on in any stage is left out in some variant
    left_out = {field for change in (every | no_noise | no_blur).values() for field in change}
    off = dataclasses.asdict(
        EdgeRecipe(
            smoothing=0, shift=0, flip_front_back=0, erase=0, cutmix=0, intensity=0, ema_decay=None
        )
    )
    for stage in ablate.SINGLE:
        own = dataclasses.asdict(STAGES[stage].recipe)
        assert {field for field, value in own.items() if value != off[field]} <= left_out
    assert list(ablate.recipes(None))[: len(ablate.VARIANTS)] == list(ablate.VARIANTS)


def test_one_variant_one_seed_and_one_fold_are_one_process_and_the_table_joins_them(
    data, tmp_path, monkeypatch, capsys
):
    watched = Watched(monkeypatch, data)
    monkeypatch.setattr(ablate, "pseudo_scans", lambda images, labels: np.arange(240) // 10)

    def run(*arguments):
        assert ablate.main(["--out", str(tmp_path), "--network", "edge_deep", *arguments]) == 0
        return capsys.readouterr().out

    def trained_by(name, seed, fold):
        before = len(watched.trained)
        run("--only", name, "--seeds", "1", "--first-seed", str(seed), "--folds", str(fold))
        [(stage, kept, config, directory, recipe)] = watched.trained[before:]
        assert stage is STAGES["edge_deep"] and config.seed == seed
        assert recipe == ablate.recipes("edge_deep")[name]["edge_deep"]
        held = set(contents(data.images["train"])) - set(contents(kept.images["train"]))
        return directory.relative_to(tmp_path), frozenset(held)

    first = trained_by("the recipe in use", 1, 1)
    other = trained_by("the recipe in use", 1, 3)
    third = trained_by("no contrast", 3, 3)
    assert [str(directory) for directory, _ in (first, other, third)] == [
        "edge_deep/the_recipe_in_use/seed-1",
        "edge_deep/the_recipe_in_use/seed-1-fold-3",
        "edge_deep/no_contrast/seed-3",
    ]
    assert not first[1] & other[1] and other[1] == third[1]
    lines = run("--table").splitlines()
    assert len(watched.trained) == 3
    assert lines[0].startswith("| variant | runs | held out | ")
    assert [line[: line.index("0.")] for line in lines[2:]] == [
        "| the recipe in use | 2 | ",
        "| no contrast | 1 | ",
    ]
    # both folds with the same seed, in one process; what is finished is not trained again
    run("--only", "no contrast", "--seeds", "1", "--first-seed", "3", "--folds", "3,2")
    assert len(watched.trained) == 4
    assert (tmp_path / "edge_deep" / "no_contrast" / "seed-3-fold-2" / "scores.json").exists()


def test_folds_are_numbers_of_folds_and_chains_have_none(data, tmp_path, monkeypatch, capsys):
    watched = Watched(monkeypatch, data)
    for value in ("0", "5", "1,x", ""):
        with pytest.raises(SystemExit) as ended:
            ablate.main(["--folds", value])
        assert ended.value.code == 2
    assert ablate.main(["--out", str(tmp_path), "--folds", "1", "--hold-out", "chains"]) == 2
    assert capsys.readouterr().err.endswith(
        "ablate: error: --folds: chains are not held out in folds; use --hold-out scans\n"
    )
    assert ablate.main(["--network", "edge_wide", "--only", "no noise"]) == 2
    assert "unknown variant 'no noise'; choose from the recipe in use" in capsys.readouterr().err
    assert not watched.trained


# not by most votes, and not by the mean logit
@pytest.mark.parametrize(("logit", "answer"), [(0.5, 0), (2.0, 1)])
def test_the_average_of_the_networks_is_scored_by_the_mean_of_their_probabilities(
    data, tmp_path, monkeypatch, logit, answer
):
    watched = Watched(monkeypatch, data)
    # two networks prefer class 1, the third is very sure of class 0
    logits = {
        "edge": [0.0, logit, 0.0],
        "edge_wide": [0.0, logit, 0.0],
        "edge_deep": [9.0, 0.0, 0.0],
    }
    monkeypatch.setattr(
        fit, "fit", lambda stage, *a, **k: watched.fit(stage, *a, **k) or stage.name
    )
    monkeypatch.setattr(ablate, "network_on", lambda checkpoint, device: checkpoint)
    monkeypatch.setattr(
        fit, "evaluate", lambda name, images: np.tile(logits[name], (len(images), 1))
    )
    command = ["--out", str(tmp_path), "--seeds", "1", "--only", "the recipe in use"]
    assert ablate.main([*command, "--network", "edge_ensemble"]) == 0
    members = ["edge", "edge_wide", "edge_deep"]
    assert [(stage.name, recipe) for stage, *_, recipe in watched.trained] == [
        (name, STAGES[name].recipe) for name in members
    ]
    assert [str(d.relative_to(tmp_path)) for _, _, _, d, _ in watched.trained] == [
        f"{name}/the_recipe_in_use/seed-1" for name in members
    ]
    scores = record.read_json(tmp_path / "edge_ensemble/the_recipe_in_use/seed-1/scores.json")
    assert scores["val"] == np.mean(data.labels["val"] == answer)
    assert set(scores["method"]) == set(members)


def test_the_distilled_network_has_teachers_that_trained_on_the_same_slices(
    data, tmp_path, monkeypatch
):
    watched = Watched(monkeypatch, data)
    made = []

    def from_checkpoints(recipe, checkpoints, device):
        made.append(recipe)
        return Distillation(recipe, (), "teachers")

    monkeypatch.setattr(ablate.Distillation, "from_checkpoints", from_checkpoints)
    command = ["--out", str(tmp_path), "--seeds", "1", "--first-seed", "2", "--folds", "4"]
    assert ablate.main([*command, "--network", "edge_deep", "--only", "distilled"]) == 0
    assert [str(d.relative_to(tmp_path)) for _, _, _, d, _ in watched.trained] == [
        "edge/the_recipe_in_use/seed-2-fold-4",
        "edge_wide/the_recipe_in_use/seed-2-fold-4",
        "edge_deep/the_recipe_in_use/seed-2-fold-4",
        "edge_deep/distilled/seed-2-fold-4",
    ]
    kept = [contents(data.images["train"]) for _, data, *_ in watched.trained]
    assert kept.count(kept[0]) == 4
    student = watched.trained[3]
    assert student[0] is STAGES["edge_deep"] and student[4].recipe == STAGES["edge_deep"].recipe
    assert ablate.main(["--network", "edge_ensemble", "--only", "distilled"]) == 2


def test_runs_that_cannot_be_compared_are_not_joined(tmp_path, capsys):
    def message():
        assert ablate.main(["--out", str(tmp_path), "--table"]) == 2
        return capsys.readouterr().err

    assert message() == f"ablate: error: {tmp_path}: no finished runs; use another --out\n"
    scores = dict.fromkeys((*ablate.SCORES, "temperature"), 0.5)
    for run, more in (("seed-1", {"epochs": 8}), ("seed-2", {"epochs": 9})):
        place = tmp_path / "no_window" / run
        place.mkdir(parents=True)
        record.write_json(place / "scores.json", scores | more)
    assert "runs with different --epochs or --hold-out; use another --out" in message()
    record.write_json(place / "scores.json", {"val": 0.5, "epochs": 8})
    assert f"{place / 'scores.json'}: of an earlier version; use another --out" in message()
    record.write_json(place / "scores.json", scores | {"epochs": 8})
    assert ablate.main(["--out", str(tmp_path), "--table"]) == 0
    assert "| no window | 2 | 0.5000 ± 0.0000 |" in capsys.readouterr().out

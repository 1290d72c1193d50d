"""The edge stage: its augmentation, recipe, average of weights, restart; chains and the ablation."""

import dataclasses

import numpy as np
import pytest
import torch
from support.data_files import DATA, needs_organamnist
from test_fit import CPU, made_data, without_seconds

from train import chains as chains_module
from train import fit, record
from train.augment import normalize
from train.chains import chains, folds, held_out, neighbors, pseudo_scans
from train.config import TrainConfig
from train.edge import ablate
from train.ema import ModelEma
from train.errors import RunError
from train.networks import ResidualNetwork, count_parameters, make_network
from train.recipes import EdgeRecipe
from train.recipes import edge_augment as augment
from train.stages import STAGES


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def slices(n=64):
    return torch.rand(n, 1, 28, 28, generator=generator(9)) * 2 - 1


def test_shifts_are_whole_pixels_with_the_edge_repeated():
    x = torch.arange(28.0).expand(500, 1, 28, 28)  # the column's number
    moved = augment.shift(x, 2, generator())
    by = moved[:, 0, 0, 10] - 10
    assert set(by.tolist()) == {-2, -1, 0, 1, 2}
    for d in range(-2, 3):
        expected = (torch.arange(28.0) + d).clamp(0, 27)
        assert all(torch.equal(row, expected) for row in moved[by == d][:, 0].flatten(0, 1))
    down = augment.shift(x.transpose(2, 3), 2, generator())[:, 0, 10, 0] - 10
    assert set(down.tolist()) == {-2, -1, 0, 1, 2}
    assert not torch.equal(by, down)  # each axis on its own


def test_mirroring_keeps_the_patients_sides():
    x = slices(400)
    seen = augment.flip_front_back(x, 0.25, generator())
    same = torch.tensor([torch.equal(a, b) for a, b in zip(seen, x, strict=True)])
    flipped = torch.tensor(
        [torch.equal(a, b.flip(2)) for a, b in zip(seen, x, strict=True)]
    )  # columns
    assert (same ^ flipped).all() and 0.15 < flipped.float().mean() < 0.35


def test_erasing_puts_middle_gray_in_one_rectangle():
    x = torch.ones(500, 1, 28, 28)
    seen = augment.erase(x, 0.5, 0.25, generator())[:, 0]
    gone = seen == 0
    share = gone.flatten(1).float().mean(1)
    assert 0.4 < (share > 0).float().mean() < 0.6 and share.max() < 0.3
    for hole in gone[share > 0]:
        assert torch.equal(hole, hole.any(1)[:, None] & hole.any(0)[None])  # a rectangle


@pytest.mark.parametrize(
    "change",
    [
        lambda x, g: augment.affine(x, 10, 0.1, g),
        lambda x, g: augment.intensity(x, 0.3, g),
        lambda x, g: augment.noise(x, 0.1, g),
        lambda x, g: EdgeRecipe(affine=1).prepare(x, torch.zeros(64, dtype=torch.long), 11, g)[0],
        lambda x, g: EdgeRecipe(noise=0.1, cutmix=0).prepare(
            x, torch.zeros(64, dtype=torch.long), 11, g
        )[0],
    ],
)
def test_changes_keep_shape_and_range_and_follow_the_generator(change):
    x = slices()
    before = x.clone()
    seen = change(x, generator(1))
    assert (
        seen.shape == x.shape
        and seen.dtype == torch.float32
        and seen.min() >= -1
        and seen.max() <= 1
    )
    assert torch.equal(seen, change(x, generator(1))) and not torch.equal(
        seen, change(x, generator(2))
    )
    assert torch.equal(x, before) and not torch.equal(seen, x)


def test_a_square_of_another_slice_takes_its_share_of_the_target():
    x = torch.arange(1.0, 401).view(400, 1, 1, 1).expand(400, 1, 28, 28)  # each slice its own gray
    targets = torch.eye(400)
    seen, shares = augment.cutmix(x, targets, 0.5, generator())
    torch.testing.assert_close(shares.sum(1), torch.ones(400))
    cut = 0
    for i in range(400):
        other = seen[i, 0] != i + 1
        cut += bool(other.any())
        assert torch.equal(other, other.any(1)[:, None] & other.any(0)[None])  # a rectangle
        if other.any():
            assert len(seen[i, 0][other].unique()) == 1
            j = int(seen[i, 0][other][0]) - 1
            assert shares[i, j] == pytest.approx(float(other.float().mean()), abs=1e-6)
            assert other.any(1).sum() == other.any(0).sum()  # a square
    assert 150 < cut < 230
    assert torch.equal(augment.cutmix(x, targets, 0.0, generator())[0], x)


def test_mixing_weighs_slices_and_targets_alike():
    x = torch.arange(1.0, 401).view(400, 1, 1, 1).expand(400, 1, 28, 28)
    seen, shares = augment.mixup(x, torch.eye(400), 0.5, generator())
    torch.testing.assert_close(seen[:, 0, 0, 0], shares @ torch.arange(1.0, 401))
    torch.testing.assert_close(shares.sum(1), torch.ones(400))
    assert shares.diagonal().min() >= 0.5 and 150 < (shares.diagonal() < 1).sum() < 230


def test_rotation_without_angle_and_scale_changes_nothing():
    x = slices()
    torch.testing.assert_close(augment.affine(x, 0, 0, generator()), x, atol=1e-5, rtol=0)


def test_the_learning_rate_rises_then_falls_to_nearly_nothing():
    recipe = EdgeRecipe(peak=1.0)
    rates = [recipe.learning_rate(done / 100) for done in range(101)]
    assert rates[20] == 1.0 and rates[0] == rates[100] == 1e-3
    assert rates[:21] == sorted(rates[:21]) and rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[60] == pytest.approx(0.5)


def test_weight_decay_is_for_weights_alone():
    network = make_network("edge", classes=11, size=28, seed=1)
    with_decay, without = EdgeRecipe().optimizer(network).param_groups
    assert with_decay["weight_decay"] > 0 and without["weight_decay"] == 0
    assert all(p.ndim > 1 for p in with_decay["params"]) and all(
        p.ndim == 1 for p in without["params"]
    )
    assert sum(p.numel() for g in (with_decay, without) for p in g["params"]) == count_parameters(
        network
    )


def test_the_average_follows_weights_and_running_statistics():
    network = make_network("edge", classes=11, size=28, seed=1)
    average = ModelEma(network, 0.5)
    start = network.head.bias.detach().clone()
    with torch.no_grad():
        network.head.bias += 1
        network.norm.running_mean += 1
    average.steps = 1000
    average.update(network)
    torch.testing.assert_close(average.network.head.bias.detach(), start + 0.5)
    torch.testing.assert_close(average.network.norm.running_mean, torch.full((32,), 0.5))
    first = ModelEma(network, 0.999)
    with torch.no_grad():
        network.head.bias += 11
    first.update(network)  # in the first step most of the average is new
    torch.testing.assert_close(first.network.head.bias.detach(), start + 1 + 11 * 9 / 11)


def test_the_network_is_drawn_from_the_seed():
    network, again = (make_network("edge", classes=11, size=28, seed=1) for _ in range(2))
    assert count_parameters(network) == 308_203
    x = slices(3)
    assert torch.equal(network(x), again(x)) and network(x).shape == (3, 11)
    assert not torch.equal(network(x), make_network("edge", classes=11, size=28, seed=2)(x))


@pytest.fixture
def small(monkeypatch):
    """The edge network at a fraction of its size."""
    from train import networks

    def network(classes, size, seed):
        return ResidualNetwork(16, 2, (16, 32), classes=classes, seed=seed, orientation=True)

    monkeypatch.setitem(networks.NETWORKS, "edge_orientation", network)


def test_edge_keeps_its_last_weights_and_a_killed_run_ends_the_same(small, tmp_path, monkeypatch):
    data, config = made_data(), TrainConfig(1, 64, 3, "none")

    def run(directory):
        return fit.fit(STAGES["edge"], data, config, CPU, directory, report=lambda line: None)

    whole = run(tmp_path / "whole")
    recipe = STAGES["edge"].recipe_for("axial")
    assert whole.best_epoch == 3 and whole.facts.settings.method == recipe.stored_settings()
    # four steps an epoch: the slice left over joins the fourth
    rates = [row["learning_rate"] for row in whole.history]
    assert rates == [recipe.learning_rate((epoch + 3 / 4) / 3) for epoch in range(3)]
    assert whole.history[-1]["train_loss"] < whole.history[0]["train_loss"]

    class Killed(BaseException):
        pass

    save = record.save_checkpoint

    def save_then_die(path, state):
        save(path, state)
        raise Killed

    monkeypatch.setattr(record, "save_checkpoint", save_then_die)
    for _ in range(4):  # three epochs and an end
        with pytest.raises(Killed):
            run(tmp_path / "killed")
    monkeypatch.setattr(record, "save_checkpoint", save)
    again = run(tmp_path / "killed")
    assert without_seconds(again.history) == without_seconds(whole.history)
    assert all(torch.equal(again.state[key], value) for key, value in whole.state.items())


def test_a_part_of_every_slice_is_erased_after_cutting():
    still = EdgeRecipe(flip_front_back=0, shift=0, cutmix=0, intensity=0, erase=1.0)
    labels = torch.arange(64) % 3
    x, targets = still.prepare(slices(), labels, 3, generator())
    assert torch.equal(targets.argmax(1), labels)
    assert (x == 0).flatten(1).any(1).all()


def test_mirrored_validation_is_mirrored_front_to_back(small, tmp_path, monkeypatch):
    data, seen = made_data(), []
    real = fit.evaluate
    monkeypatch.setattr(fit, "evaluate", lambda network, x: seen.append(x) or real(network, x))
    ablate.measure_variant(
        "v", EdgeRecipe(erase=0.0, intensity=0.0), 1, data, data, 1, tmp_path, CPU
    )
    held, plain, mirrored = seen[1:4]  # the first is the epoch's own
    assert held is data.images["train"] and np.array_equal(plain, data.images["val"])
    assert np.array_equal(mirrored, data.images["val"][:, :, ::-1]) and len(seen) == 4 + 13


def test_a_stage_is_not_continued_by_another_recipe(small, tmp_path):
    data = made_data()
    stage = STAGES["edge"]
    fit.fit(stage, data, TrainConfig(1, 64, 1, "none"), CPU, tmp_path, report=lambda line: None)
    state = record.load_checkpoint(tmp_path / "checkpoint.pt")
    record.save_checkpoint(
        tmp_path / "checkpoint.pt",
        state | {"finished": False, "optimiser": {}, "best": None, "best_accuracy": 0.5},
    )
    with pytest.raises(RunError, match="trained with another recipe; use --fresh"):
        fit.fit(
            stage, data, TrainConfig(1, 64, 1, "none"), CPU, tmp_path, recipe=EdgeRecipe(shift=1)
        )


def test_only_axial_slices_are_mirrored():
    assert STAGES["edge"].recipe_for("axial").flip_front_back > 0
    assert STAGES["edge"].recipe_for("sagittal").flip_front_back == 0
    assert STAGES["edge"].recipe_for("coronal").flip_front_back == 0


def test_chains_join_what_is_alike_within_a_class():
    base = np.random.default_rng(0).integers(0, 255, (3, 28, 28))
    images = np.concatenate(
        [np.clip(base[k] + np.arange(5)[:, None, None] * 9, 0, 255) for k in (0, 1, 2, 2)]
    )
    labels = np.repeat([0, 0, 0, 1], 5)
    found = chains(images.astype(np.uint8), labels)
    groups = [set(found[i : i + 5]) for i in range(0, 20, 5)]
    assert all(len(group) == 1 for group in groups) and len(set.union(*groups)) == 4
    many = np.arange(1000)
    out = held_out(many)
    assert 200 < out.sum() < 300 and np.array_equal(out, held_out(many))


@needs_organamnist
def test_chains_of_the_real_training_split_are_long():
    with np.load(DATA / "organamnist.npz") as file:
        chosen = file["train_labels"][:, 0] == 3
        images, labels = file["train_images"][chosen], file["train_labels"][chosen, 0]
    sizes = np.bincount(chains(images, labels))
    assert 80 < len(sizes) < 200 and np.sort(sizes)[-3:].min() > 40


def scans_of_two_organs(scans=6, slices=12):
    """Slices of two organs in scans that differ in noise and in the gray of fat and soft tissue, and their scans."""
    rng = np.random.default_rng(0)
    images, labels, origin = [], [], []
    for scan in range(scans):
        for label in (0, 1):
            base = np.full((28, 28), 45 + 6 * scan)
            base[6:22, 6:22] = 150 + 10 * scan
            base[10:14, 10 : 14 + 6 * label] = 200
            texture = rng.normal(0, 1 + 1.5 * scan, (28, 28))
            for k in range(slices):
                images.append(np.clip(base + texture + k * 0.5, 0, 255))
                labels.append(label)
                origin.append(scan)
    return np.array(images).astype(np.uint8), np.array(labels), np.array(origin)


def test_pseudo_scans_join_the_chains_of_one_scan_and_divide_none():
    images, labels, origin = scans_of_two_organs()
    group = pseudo_scans(images, labels, count=6)
    assert sorted(np.unique(group)) == list(range(6))
    assert all(len(np.unique(group[origin == scan])) == 1 for scan in range(6))
    order = np.random.default_rng(1).permutation(len(images))
    shuffled = pseudo_scans(images[order], labels[order], count=6)
    assert all(len(np.unique(shuffled[origin[order] == scan])) == 1 for scan in range(6))


def test_short_chains_join_the_group_they_resemble():
    """A slice of its own, which is not near enough to any chain, with the noise and grays of a scan."""
    images, labels, origin = scans_of_two_organs()
    for scan in (0, 3):
        lone = np.roll(images[origin == scan][6:7], 5, 2)
        both = np.concatenate([images, lone])
        chain = chains(both, np.append(labels, 0))
        assert (chain == chain[-1]).sum() == 1
        group = pseudo_scans(both, np.append(labels, 0), count=6)
        assert group[-1] == group[:-1][origin == scan][0]


@pytest.mark.slow
@needs_organamnist
def test_pseudo_scans_put_the_chains_of_paired_organs_together():
    """The left thigh bone of a scan, flipped, resembles the right one. The groups do not use that."""
    with np.load(DATA / "organamnist.npz") as file:
        labels = file["train_labels"][:, 0]
        chosen = (labels == 1) | (labels == 2)
        images, labels = file["train_images"][chosen], labels[chosen]
    group, chain = pseudo_scans(images, labels, count=40), chains(images, labels)
    left, right = images[labels == 1][:, ::-1], images[labels == 2]
    flat = right.reshape(len(right), -1).astype(np.float32)
    nearest = [((flat - image.ravel().astype(np.float32)) ** 2).sum(1).argmin() for image in left]
    sizes = np.bincount(chain)
    long = (sizes[chain[labels == 1]] >= 8) & (sizes[chain[labels == 2][nearest]] >= 8)
    together = group[labels == 1][long] == group[labels == 2][nearest][long]
    shares = np.bincount(group) / len(group)
    assert together.mean() > 5 * (shares**2).sum()


def test_folds_divide_no_group_and_are_equally_large():
    group = np.random.default_rng(0).integers(0, 60, 5000) ** 2 // 60
    fold = folds(group, 4)
    assert all(len(np.unique(fold[group == g])) == 1 for g in np.unique(group))
    sizes = np.bincount(fold)
    assert len(sizes) == 4 and sizes.max() - sizes.min() < np.bincount(group).max()


def test_the_ablation_trains_each_variant_once_and_tables_it(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablate, "load_data", lambda *arguments, **named: made_data())
    monkeypatch.setattr(ablate, "pseudo_scans", lambda images, labels: np.arange(len(images)))
    command = [
        "--out",
        str(tmp_path),
        "--seeds",
        "2",
        "--epochs",
        "1",
        "--only",
        "reference,no shifts",
    ]
    assert ablate.main(command) == 0
    table = capsys.readouterr().out
    assert table.count("±") == 10 and "| no shifts |" in table
    with monkeypatch.context() as patch:
        patch.setattr(fit, "train_epoch", None)  # nothing is trained again
        assert ablate.main(command) == 0
    again = capsys.readouterr().out
    assert (
        again.startswith("device  ")
        and again.partition("\n")[2] == table[table.index("| variant") :]
    )
    assert ablate.main([*command[:4], "--epochs", "2", *command[6:]]) == 2
    assert "with --epochs 1, but this command has --epochs 2" in capsys.readouterr().err
    assert ablate.main(["--only", "no such"]) == 2
    assert "choose from reference, no cutting" in capsys.readouterr().err


def scan_of_ordered_slices(count=10, step=1.0, seed=0):
    """Slices that change evenly along a scan, so that those before and after each are known."""
    rng = np.random.default_rng(seed)
    first, last = rng.integers(60, 190, (2, 28, 28))
    shares = np.arange(count)[:, None, None] * step / count
    return (first + (last - first) * shares).round().astype(np.uint8)


def test_neighbors_are_the_slices_before_and_after():
    table = neighbors(scan_of_ordered_slices(), np.zeros(10, int))
    assert table.dtype == np.int64 and table.shape == (10, 2)
    assert [set(row) for row in table[1:-1]] == [{k - 1, k + 1} for k in range(1, 9)]
    # at the ends there is none on the other side
    assert table[0].tolist() == [1, 0] and table[9].tolist() == [8, 9]


def test_neighbors_are_of_the_same_class_and_chain():
    a, b = scan_of_ordered_slices(seed=1), scan_of_ordered_slices(seed=2)
    images, labels = np.concatenate([a, b, a, a[:1]]), np.repeat([0, 0, 1, 2], [10, 10, 10, 1])
    order = np.random.default_rng(3).permutation(31)
    images, labels = images[order], labels[order]
    table, chain = neighbors(images, labels), chains(images, labels)
    assert (chain[table] == chain[:, None]).all() and (labels[table] == labels[:, None]).all()
    lone = np.flatnonzero(labels == 2)
    assert table[lone].tolist() == [[lone[0], lone[0]]]
    far = neighbors(
        np.array([0, 33, 200])[:, None, None] * np.ones((1, 28, 28), np.uint8), np.zeros(3, int)
    )
    assert far.tolist() == [[0, 0], [1, 1], [2, 2]]
    # the slice on the other side is farther than 33 grays, too
    one_side = neighbors(
        np.array([0, 30, 70], np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8),
        np.zeros(3, int),
    )
    assert one_side.tolist() == [[1, 0], [0, 1], [2, 2]]


def test_thick_slices_average_training_slices_alone_and_leave_other_recipes_alone(
    small, tmp_path, monkeypatch
):
    """The table is made once, of the slices that are trained on."""
    data, asked, seen = made_data(), [], []
    real, real_thick = chains_module.neighbors, fit.thick_slices

    def watched(images, labels):
        asked.append((images, labels))
        return real(images, labels)

    def thick(x, around, probability, generator):
        seen.append((x, around, probability))
        return real_thick(x, around, probability, generator)

    monkeypatch.setattr(chains_module, "neighbors", watched)
    monkeypatch.setattr(fit, "thick_slices", thick)
    config = TrainConfig(1, 64, 2, "none")

    def run(name, **fields):
        recipe = dataclasses.replace(STAGES["edge"].recipe, **fields)
        quiet = {"recipe": recipe, "report": lambda line: None}
        return fit.fit(STAGES["edge"], data, config, CPU, tmp_path / name, **quiet).state

    plain = run("plain")
    assert not asked and not seen
    state = run("thick", thick_slices=0.5)
    [(images, labels)] = asked
    assert images is data.images["train"] and labels is data.labels["train"]
    assert len(seen) == 2 * 4 and all(p == 0.5 for *_, p in seen)
    trained = {normalize(torch.from_numpy(image)[None]).numpy().tobytes() for image in images}
    for x, around, _ in seen:
        assert around.shape == (len(x), 2, 28, 28)
        assert all(a[None, None].numpy().tobytes() in trained for pair in around for a in pair)
    assert any(not torch.equal(state[key], value) for key, value in plain.items())

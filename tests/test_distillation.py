"""Knowledge distillation: teachers answer the student's own augmented slices, and their share of the loss."""

import dataclasses

import numpy as np
import pytest
import torch
from test_fit import CPU, made_data

from train import fit, networks, record
from train.config import TrainConfig
from train.edge import ablate, distill
from train.edge.distillation import Distillation
from train.networks import ResidualNetwork
from train.recipes import EDGE_RECIPE, EdgeRecipe
from train.stages import STAGES


class Teacher(torch.nn.Module):
    """Its logits are the mean gray value, times a factor for each of three classes."""

    def __init__(self, *factors):
        super().__init__()
        self.factors, self.seen = torch.tensor(factors), []

    def forward(self, x):
        self.seen.append(x)
        return x.mean((1, 2, 3))[:, None] * self.factors


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=32):
    return torch.rand(n, 1, 28, 28, generator=generator(9)) * 2 - 1, torch.arange(n) % 3


@pytest.mark.parametrize("recipe", [EdgeRecipe(), EDGE_RECIPE], ids=["plain", "orientations"])
def test_teachers_see_the_augmented_slices_and_their_mean_probability_joins_the_targets(recipe):
    teachers = Teacher(3.0, -1.0, 0.5), Teacher(-2.0, 1.0, 0.0)
    x, labels = batch()
    seen, targets = Distillation(recipe, teachers, "").prepare(x, labels, 3, generator(1))
    alone, plain = recipe.prepare(x, labels, 3, generator(1))
    assert torch.equal(seen, alone) and torch.equal(targets[:, :-3], plain)
    assert all(torch.equal(given, alone) for teacher in teachers for given in teacher.seen)
    logits = [seen.mean((1, 2, 3))[:, None] * teacher.factors for teacher in teachers]
    expected = sum((z / 2).softmax(1) for z in logits) / 2
    torch.testing.assert_close(targets[:, -3:], expected, atol=1e-2, rtol=0)
    assert not targets.requires_grad


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_shares_the_classes_between_labels_and_teachers(weight):
    recipe = EdgeRecipe(reoriented=0.2, orientation_weight=0.5)
    logits = torch.randn(3, 3 + 9, generator=generator())
    soft = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]])
    targets = torch.zeros(3, 12)
    targets[0, 1] = targets[0, 3] = 1
    # a reoriented slice has no class, so teachers do not count either
    targets[1, 3 + 5] = 1
    targets[2, :3], targets[2, -1] = 1 / 3, 1
    log, log_orientation = logits[:, :3].log_softmax(1), logits[:, 3:].log_softmax(1)
    hard = -(0.9 * log[0, 1] + 0.1 * log[0].mean()) - log[2].mean()
    softer = (logits[:, :3] / 2).log_softmax(1)
    divergence = sum((soft[k] * (soft[k].log() - softer[k])).sum() for k in (0, 2))
    orientations = -(log_orientation[0, 0] + log_orientation[1, 5] + log_orientation[2, 8])
    loss = Distillation(recipe, (), "", weight).loss(logits, torch.cat([targets, soft], 1))
    expected = (1 - weight) * hard + weight * 4 * divergence + 0.5 * orientations
    torch.testing.assert_close(loss, expected)


def test_without_orientations_the_loss_takes_the_classes_alone():
    logits, soft = torch.randn(4, 3, generator=generator()), torch.full((4, 3), 1 / 3)
    hard = torch.eye(3)[[0, 1, 2, 1]]
    loss = Distillation(EdgeRecipe(), (), "", 0.5).loss(logits, torch.cat([hard, soft], 1))
    divergence = (soft * (soft.log() - (logits / 2).log_softmax(1))).sum()
    expected = 0.5 * EdgeRecipe().loss(logits, hard) + 0.5 * 4 * divergence
    torch.testing.assert_close(loss, expected)


def test_a_distillation_is_its_recipe_apart_from_targets_and_loss():
    recipe = dataclasses.replace(EDGE_RECIPE, thick_slices=0.2)
    distillation = Distillation(recipe, (), "abc", 0.4)
    assert distillation.ema_decay == recipe.ema_decay and distillation.thick_slices == 0.2
    assert distillation.learning_rate(0.3) == recipe.learning_rate(0.3)
    assert distillation.for_view("coronal").recipe == recipe.for_view("coronal")
    assert distillation.stored_settings() == recipe.stored_settings() | {
        "teachers": "abc",
        "teachers_weight": 0.4,
        "teachers_temperature": 2.0,
    }


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run of the three networks at a fraction of their size, and the arguments that train a student."""

    def network(classes, size, seed):
        return ResidualNetwork(8, 2, (8, 16), classes=classes, seed=seed, orientation=True)

    for name in ("edge_orientation", "edge_wide", "edge_deep"):
        monkeypatch.setitem(networks.NETWORKS, name, network)
    data = made_data()
    monkeypatch.setattr(distill, "load_data", lambda *arguments, **named: data)
    monkeypatch.setattr(distill, "choose_device", lambda asked: CPU)
    monkeypatch.setattr(ablate, "CORRUPTED", 4)
    for name in ablate.SINGLE:
        config = TrainConfig(1, 64, 1, "none")
        fit.fit(STAGES[name], data, config, CPU, tmp_path / "run" / name, report=lambda line: None)
    teachers = ["--teachers", str(tmp_path / "run")]
    return [*teachers, "--out", str(tmp_path / "out"), "--epochs", "1"], data


def test_the_command_trains_a_student_and_scores_it(run, tmp_path, capsys):
    arguments, _ = run
    assert distill.main(arguments) == 0
    directory = tmp_path / "out" / "edge_deep" / "seed-1"
    checkpoint = record.load_checkpoint(directory / "checkpoint.pt")
    assert checkpoint["finished"] and checkpoint["recipe"]["method"]["teachers_weight"] == 0.7
    scores = record.read_json(directory / "scores.json")
    assert 0 <= scores["val"] <= 1 and set(scores) == {
        "method",
        "val",
        "val_mirrored",
        "val_corrupted",
    }
    assert capsys.readouterr().out.splitlines()[-1].startswith("distilled, val ")
    # other teachers are another recipe
    assert distill.main([*arguments, "--members", "edge"]) == 2
    assert "trained with another recipe" in capsys.readouterr().err


def test_teachers_teach(run, tmp_path):
    """The student's weights depend on them, unless their weight is 0."""
    arguments, data = run

    def state(out, *more):
        arguments_here = [*arguments[:2], "--out", str(tmp_path / out), *arguments[4:], *more]
        assert distill.main(arguments_here) == 0
        path = tmp_path / out / "edge_deep" / "seed-1" / "checkpoint.pt"
        return record.load_checkpoint(path)["state"]

    def same(a, b):
        return all(torch.equal(a[key], b[key]) for key in a)

    taught, again, untaught = state("a"), state("b"), state("c", "--weight", "0")
    assert same(taught, again) and not same(taught, untaught)
    alone = fit.fit(
        STAGES["edge_deep"],
        data,
        TrainConfig(1, 128, 1, "none"),
        CPU,
        tmp_path / "alone",
        report=lambda line: None,
    )
    for key, value in alone.state.items():
        np.testing.assert_allclose(untaught[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts | {"data_md5": "1" * 32}, "trained on other data; use teachers of"),
        (lambda facts: facts | {"size": 64}, "trained on other data; use teachers of"),
        (None, "no such file; --teachers must be a run with the stage edge_wide"),
    ],
)
def test_teachers_of_other_data_and_missing_ones_are_refused(
    run, tmp_path, capsys, change, message
):
    arguments, _ = run
    path = tmp_path / "run" / "edge_wide" / "checkpoint.pt"
    if change is None:
        path.unlink()
    else:
        record.save_checkpoint(path, change(record.load_checkpoint(path)))
    assert distill.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

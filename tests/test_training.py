"""An epoch against a loop written out beside it; the order of slices; which weights are validated and kept."""

import dataclasses
import hashlib
import itertools
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_fit import CLASSES, CPU, made_data, without_seconds
from torch import nn

from train import checkpoint, fit, networks, progress, record
from train.augment import augment
from train.batches import split_order
from train.config import TrainConfig
from train.ema import ModelEma
from train.jobs import plan_jobs
from train.learner import Learner
from train.networks import ResidualNetwork, make_network
from train.options import TrainOptions
from train.parallel import ALONE, Group
from train.recipes import EDGE_RECIPE, ReferenceRecipe
from train.stages import STAGES

STAGE = STAGES["base"]
CONFIG = TrainConfig(seed=1, batch_size=32, max_epochs=4, weights="none", amp="off")


def numbered(n=70):
    """Slices that hold their number in two pixels, random elsewhere, and labels of 3 classes, unbalanced."""
    random = np.random.default_rng(n)
    images = random.integers(0, 256, (n, 28, 28), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(n) % 256, np.arange(n) // 256
    return torch.from_numpy(images), torch.from_numpy(random.choice(3, n, p=[0.6, 0.3, 0.1]))


def numbers_of(x):
    """The numbers of normalized slices (N, 1, S, S)."""
    pixels = ((x[:, 0, 0, :2] + 1) / 2 * 255).round().long()
    return (pixels[:, 0] + 256 * pixels[:, 1]).tolist()


@dataclasses.dataclass(frozen=True)
class Recorder(ReferenceRecipe):
    """The study's method, which notes every batch before and after it was prepared."""

    augmented: bool = False
    seen: list = dataclasses.field(default_factory=list)

    def prepare(self, x, labels, classes, generator):
        prepared, targets = super().prepare(x, labels, classes, generator)
        self.seen.append((x, prepared, targets))
        return prepared, targets

    def learning_rate(self, done):
        return 1e-3 * (1 + done)


def small_network(seed=1):
    return make_network("small", classes=3, size=28, seed=seed)


def run_epoch(
    network=None, recipe=None, *, images=None, stage=STAGE, config=CONFIG, epoch=1, group=ALONE
):
    learner = Learner.of(network or small_network(), recipe or Recorder())
    images, labels = images or numbered()
    return learner, fit.train_epoch(learner, images, labels, 3, stage, config, epoch, group)


def adam_by_hand(network, batches, rates):
    """Kingma and Ba 2015, algorithm 1, on the mean cross-entropy of each batch; the summed loss and the hits."""
    parameters = list(network.parameters())
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    loss_sum, hits = 0.0, 0
    for step, ((x, targets), rate) in enumerate(zip(batches, rates, strict=True), start=1):
        logits = network(x)
        log = logits - logits.logsumexp(1, keepdim=True)
        losses = -log[torch.arange(len(x)), targets]
        loss_sum, hits = (
            loss_sum + float(losses.detach().sum()),
            hits + int((logits.argmax(1) == targets).sum()),
        )
        gradients = torch.autograd.grad(losses.sum() / len(x), parameters)
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                p -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    return loss_sum, hits


def test_an_epoch_is_adam_on_the_mean_loss_of_each_batch():
    """Batches of 32, 32 and 6: the means over an epoch count slices, not batches."""
    recipe, epoch = Recorder(), 3
    learner, (loss, accuracy) = run_epoch(recipe=recipe, epoch=epoch)
    assert [len(targets) for _, _, targets in recipe.seen] == [32, 32, 6]
    by_hand = small_network()
    # of 4 epochs two are done
    rates = [1e-3 * (1 + (2 + step / 3) / 4) for step in range(3)]
    loss_sum, hits = adam_by_hand(by_hand, [(x, targets) for _, x, targets in recipe.seen], rates)
    assert loss == pytest.approx(loss_sum / 70, rel=1e-5) and accuracy == pytest.approx(hits / 70)
    for (name, found), expected in zip(
        learner.network.named_parameters(), by_hand.parameters(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-6, msg=name)
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(rates[-1])


def test_the_study_trains_with_adam_at_a_thousandth_and_plain_cross_entropy():
    """docs/guides/training.md: Adam (learning rate 1e-3), cross-entropy; nothing else of either is changed."""
    recipe, network = ReferenceRecipe(augmented=False), small_network()
    optimizer = recipe.optimizer(network)
    assert type(optimizer) is torch.optim.Adam
    [group] = optimizer.param_groups
    published = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0,
        "amsgrad": False,
    }
    assert {key: group[key] for key in published} == published
    assert len(group["params"]) == len(list(network.parameters()))
    assert [recipe.learning_rate(done) for done in (0.0, 0.3, 1.0)] == [1e-3] * 3
    assert recipe.stored_settings() == {"learning_rate": 1e-3} and recipe.ema_decay is None
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    expected = math.log(1 + math.exp(-2) + math.exp(-3)) + math.log(3)
    assert float(recipe.loss(logits, torch.tensor([0, 2]))) == pytest.approx(expected)


def test_only_augmented_stages_are_augmented():
    x = torch.rand(8, 1, 28, 28)
    labels = torch.arange(8) % 3
    same, targets = ReferenceRecipe(augmented=False).prepare(
        x, labels, 3, torch.Generator().manual_seed(0)
    )
    assert same is x and targets is labels
    changed, targets = ReferenceRecipe(augmented=True).prepare(
        x, labels, 3, torch.Generator().manual_seed(0)
    )
    assert torch.equal(changed, augment(x, torch.Generator().manual_seed(0))) and targets is labels


@given(
    full=st.integers(0, 4),
    size=st.integers(8, 200),
    rest=st.integers(0, 12),
    at_least=st.integers(1, 8),
)
@example(full=1, size=8, rest=1, at_least=2)
@settings(deadline=None)
def test_batches_hold_every_slice_once_in_order(full, size, rest, at_least):
    rest = max(min(rest, size - 1), full == 0)
    n = full * size + rest
    batches = split_order(torch.arange(n), size, at_least)
    assert torch.cat(batches).tolist() == list(range(n))
    joins = full > 0 and rest < at_least
    expected = [size] * full + ([] if joins else [rest])
    if joins:
        expected[-1] += rest
    assert [len(batch) for batch in batches] == expected


def order_of(**changes):
    recipe = Recorder()
    run_epoch(recipe=recipe, **changes)
    return list(itertools.chain.from_iterable(numbers_of(x) for x, _, _ in recipe.seen))


def test_every_epoch_sees_every_slice_once_with_its_label():
    images, labels = numbered(300)
    for epoch in (1, 2):
        recipe = Recorder()
        run_epoch(recipe=recipe, images=(images, labels), epoch=epoch)
        seen = [
            (number, int(y))
            for x, _, ys in recipe.seen
            for number, y in zip(numbers_of(x), ys, strict=True)
        ]
        assert sorted(seen) == list(enumerate(labels.tolist()))


def test_the_order_follows_seed_stage_and_epoch():
    first = order_of()
    assert first == order_of() and first != sorted(first)
    assert first == order_of(config=dataclasses.replace(CONFIG, max_epochs=9, batch_size=7))
    others = [
        order_of(epoch=2),
        order_of(config=dataclasses.replace(CONFIG, seed=2)),
        order_of(stage=STAGES["early_stopping"]),
        order_of(config=dataclasses.replace(CONFIG, seed=11), epoch=1),
        order_of(config=dataclasses.replace(CONFIG, seed=1), epoch=11),
    ]
    assert len({tuple(order) for order in [first, *others]}) == 6


def test_the_order_is_that_of_earlier_versions():
    """A checkpoint of an earlier version goes on in its order: 7 bytes of the SHA-256 of "seed/stage/epoch N"."""
    digest = hashlib.sha256(b"1/base/epoch 1").hexdigest()[:14]
    seed = int("".join(reversed([digest[i : i + 2] for i in range(0, 14, 2)])), 16)
    expected = torch.randperm(70, generator=torch.Generator().manual_seed(seed))
    assert order_of() == expected.tolist()


def test_augmentation_follows_seed_stage_and_epoch():
    """Per slice, as the order of the slices differs too."""

    def augmented(**changes):
        recipe = Recorder(augmented=True)
        run_epoch(recipe=recipe, **changes)
        pairs = [(n, y) for x, ys, _ in recipe.seen for n, y in zip(numbers_of(x), ys, strict=True)]
        return torch.stack([y for _, y in sorted(pairs, key=lambda pair: pair[0])])

    first = augmented()
    assert torch.equal(first, augmented())
    for changes in (
        {"epoch": 2},
        {"config": dataclasses.replace(CONFIG, seed=2)},
        {"stage": STAGES["big"]},
    ):
        differ = (first != augmented(**changes)).flatten(1).any(1)
        assert differ.float().mean() > 0.8


def test_torchs_own_generator_changes_nothing():
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        learner, scores = run_epoch(recipe=Recorder(augmented=True))
        results.append((scores, learner.network.state_dict()))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(value, results[1][1][key]) for key, value in results[0][1].items())


@dataclasses.dataclass(frozen=True)
class PlainDescent(Recorder):
    """Gradient descent, whose step is linear in the gradient."""

    def optimizer(self, network):
        return torch.optim.SGD(network.parameters(), lr=0.1)


class Pretended(Group):
    """One process of several, whose communication is left to the test."""

    def wrap(self, network):
        return network

    def sum(self, value):
        return value

    def wait(self):
        pass


def test_two_processes_share_each_batch_and_average_to_the_gradient_of_one():
    start = small_network().state_dict()
    one_batch = dataclasses.replace(CONFIG, batch_size=71)
    alone, (loss, accuracy) = run_epoch(
        recipe=PlainDescent(), config=one_batch, images=numbered(71)
    )
    shares = [
        run_epoch(
            recipe=PlainDescent(), config=one_batch, images=numbered(71), group=Pretended(rank, 2)
        )
        for rank in (0, 1)
    ]
    # each process sums over its rows, 36 and 35, and divides by all
    assert sum(result[0] for _, result in shares) == pytest.approx(loss, rel=1e-5)
    assert sum(result[1] for _, result in shares) == pytest.approx(accuracy)
    assert 0 < shares[0][1][1] < accuracy
    for key, value in alone.network.state_dict().items():
        averaged = torch.stack([learner.network.state_dict()[key] for learner, _ in shares]).mean(0)
        torch.testing.assert_close(averaged - start[key], value - start[key], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("group", "rest", "sizes"),
    [
        # batch normalization needs two slices in each process
        (ALONE, 1, [33, 34]),
        (ALONE, 2, [33, 33, 2]),
        (Pretended(0, 2), 3, [33, 36]),
        (Pretended(0, 2), 4, [33, 33, 4]),
        (Pretended(0, 3), 5, [33, 38]),
        (Pretended(0, 3), 6, [33, 33, 6]),
    ],
)
def test_a_batch_too_small_for_every_process_to_normalize_joins_the_one_before(group, rest, sizes):
    recipe, config = Recorder(), dataclasses.replace(CONFIG, batch_size=33)
    run_epoch(recipe=recipe, config=config, images=numbered(66 + rest), group=group)
    assert [len(x) for x, _, _ in recipe.seen] == sizes


class Wrapped(nn.Module):
    """A network as DistributedDataParallel holds it, for which training counts its calls."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, x):
        self.calls += 1
        return self.module(x)


def test_the_wrapped_network_is_trained_and_its_own_weights_are_averaged(small_edge, tmp_path):
    wrapped = []

    class Wrapping(Group):
        def wrap(self, network):
            wrapped.append(Wrapped(network))
            return wrapped[-1]

    data, config = made_data(n=64), dataclasses.replace(CONFIG, max_epochs=2)
    arguments = STAGES["edge"], data, config, CPU
    plain = fit.fit(*arguments, tmp_path / "plain", report=lambda line: None)
    done = fit.fit(*arguments, tmp_path / "wrapped", report=lambda line: None, group=Wrapping())
    assert equal(done.state, plain.state)
    assert [network.calls for network in wrapped] == [
        4
    ]  # two epochs of two batches, none of validation


class Shaky(nn.Module):
    """A network whose logits in training mode depend on chance and on the batch."""

    def __init__(self):
        super().__init__()
        self.norm, self.dropout, self.head = nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Linear(784, 3)

    def forward(self, x):
        return self.head(self.dropout(self.norm(x)).flatten(1))


def test_evaluation_is_in_evaluation_mode_and_changes_no_statistics():
    network, (images, _) = Shaky().train(), numbered(40)
    with torch.no_grad():
        network.norm.running_mean += 0.3
        network.norm.running_var *= 1.7
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = fit.evaluate(network, images)
    pixels = (images.numpy().reshape(40, -1) / 255 - 0.5) / 0.5
    pixels = (pixels - 0.3) / np.sqrt(1.7 + 1e-5)
    head = network.head.weight.detach().double().numpy()
    expected = pixels @ head.T + network.head.bias.detach().numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    np.testing.assert_allclose(
        fit.evaluate(network.train(), images.numpy()[7:8]), expected[7:8], rtol=1e-4, atol=1e-5
    )


def test_training_is_in_training_mode_after_an_evaluation():
    network = make_network("big_batch_norm", classes=3, size=28, seed=1).eval()
    run_epoch(network)
    assert network.norm1.num_batches_tracked == 3 and network.norm1.running_mean.abs().sum() > 0


def test_slices_that_are_normalized_already_are_evaluated_as_they_are():
    network, (images, _) = Shaky(), numbered(5)
    floats = (images.float() / 255 - 0.5) / 0.5
    np.testing.assert_allclose(
        fit.evaluate(network, floats), fit.evaluate(network, images), atol=1e-5
    )


def test_evaluation_keeps_the_order_of_slices_over_batches(monkeypatch):
    network, (images, _) = Shaky(), numbered(40)
    whole = fit.evaluate(network, images)
    monkeypatch.setattr(fit, "EVALUATION_PIXELS", 7 * 28 * 28)
    np.testing.assert_allclose(fit.evaluate(network, images), whole, atol=1e-6)


def test_probabilities_are_the_softmax():
    logits = np.random.default_rng(0).normal(0, 4, (2, 5, 3)).astype(np.float32)
    found = fit.probabilities(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, scipy.special.softmax(logits.astype(float), -1), rtol=1e-6)
    np.testing.assert_allclose(
        fit.probabilities(np.float32([[1000, 1000], [-1000, 0]])), [[0.5, 0.5], [0, 1]]
    )


@pytest.fixture
def small_edge(monkeypatch):
    """The edge network at a fraction of its size."""

    def network(classes, size, seed):
        return ResidualNetwork(4, 4, (4,), classes=classes, seed=seed, orientation=True)

    monkeypatch.setitem(networks.NETWORKS, "edge_orientation", network)


def watched_evaluations(monkeypatch):
    """A copy of the weights of every network that is evaluated."""
    seen, real = [], fit.evaluate

    def evaluate(network, images):
        seen.append({key: value.clone() for key, value in network.state_dict().items()})
        return real(network, images)

    monkeypatch.setattr(fit, "evaluate", evaluate)
    return seen


def equal(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) for key, value in one.items()
    )


@pytest.mark.parametrize("averaged", [0.9, None])
def test_the_weights_that_are_validated_are_those_that_are_kept(
    small_edge, tmp_path, monkeypatch, averaged
):
    """The average if there is one; the network itself goes on from its own."""
    seen, states, save = watched_evaluations(monkeypatch), [], record.save_checkpoint
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(
        record,
        "save_checkpoint",
        lambda path, state: states.append(checkpoint.copy_to_cpu(state)) or save(path, state),
    )
    data = made_data(n=64)
    done = fit.fit(STAGES["edge"], data, dataclasses.replace(CONFIG, max_epochs=2), CPU, tmp_path, recipe=dataclasses.replace(EDGE_RECIPE, ema_decay=averaged), report=lambda line: None)  # fmt: skip
    assert len(seen) == 2 and not equal(*seen)
    assert equal(done.state, seen[-1]) and equal(fit.network_of(done).state_dict(), seen[-1])
    for state, validated in zip(states[:2], seen, strict=True):
        assert equal(state["best"], validated)
        assert equal(state["state"], validated) == (averaged is None)
        if averaged:
            assert equal(state["average"]["state"], validated)


def test_the_average_of_weights_follows_every_step():
    """After `train_epoch`: the average of the network's weights after each of the three steps."""
    states = []

    class Watched(ModelEma):
        def update(self, network):
            states.append(network.head.bias.detach().clone())
            super().update(network)

    learner = Learner.of(small_network(), Recorder())
    learner.ema = Watched(learner.network, 0.15)
    start = learner.network.head.bias.detach().clone()
    fit.train_epoch(learner, *numbered(), 3, STAGE, CONFIG, 1)
    expected = start
    for state in states:
        expected = 0.15 * expected + 0.85 * state
    assert len(states) == 3
    torch.testing.assert_close(learner.validated.head.bias.detach(), expected)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=60), st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_the_average_is_shorter_over_the_first_steps(values, decay):
    """After step t the decay is min(decay, (1 + t) / (10 + t)), as TensorFlow's ExponentialMovingAverage has it
    (https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage)."""
    layer = nn.Linear(1, 1, bias=False)
    layer.register_buffer("count", torch.tensor(5))
    average = ModelEma(layer, decay)
    expected = layer.weight.item()
    for step, value in enumerate(values, start=1):
        with torch.no_grad():
            layer.weight.fill_(value)
        layer.count += 1
        average.update(layer)
        kept = min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * value
    assert average.network.weight.item() == pytest.approx(expected, abs=1e-4)
    assert average.network.count == 5  # whole numbers have no average
    other = ModelEma(layer, decay)
    other.load_state_dict(average.state_dict())
    assert other.steps == len(values) and torch.equal(other.network.weight, average.network.weight)


def test_the_average_is_of_one_network():
    average = ModelEma(nn.Sequential(nn.Linear(2, 2)), 0.9)
    assert not average.network.training
    with pytest.raises(ValueError, match="zip"):
        average.update(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


class Killed(BaseException):
    pass


def runs_killed_after(epochs, data, config, directory, whole):
    """Train to the end with a kill after each of `epochs`; the finished checkpoint must be `whole`."""
    save = record.save_checkpoint
    left = sorted(epochs)

    def save_then_die(path, state):
        save(path, state)
        if left and not state["finished"] and len(state["history"]) == left[0]:
            left.pop(0)
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "save_checkpoint", save_then_die)
        patch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
        for _ in epochs:
            with pytest.raises(Killed):
                fit.fit(STAGES["edge"], data, config, CPU, directory, report=lambda line: None)
        again = fit.fit(STAGES["edge"], data, config, CPU, directory, report=lambda line: None)
    assert without_seconds(again.history) == without_seconds(whole.history)
    assert equal(again.state, whole.state)


def test_a_run_killed_after_any_epochs_ends_as_one_that_was_not(monkeypatch):
    def network(classes, size, seed):
        return ResidualNetwork(4, 4, (4,), classes=classes, seed=seed, orientation=True)

    monkeypatch.setitem(networks.NETWORKS, "edge_orientation", network)
    data, config = made_data(n=40), dataclasses.replace(CONFIG, max_epochs=5)
    with tempfile.TemporaryDirectory() as directory:
        whole = fit.fit(
            STAGES["edge"], data, config, CPU, Path(directory), report=lambda line: None
        )

    @given(st.sets(st.integers(1, 5)))
    @settings(deadline=None, max_examples=6)
    def killed_after(epochs):
        with tempfile.TemporaryDirectory() as directory:
            runs_killed_after(epochs, data, config, Path(directory), whole)

    killed_after()


def test_a_checkpoint_records_what_was_trained_on_what(tmp_path):
    data = dataclasses.replace(made_data(n=40), md5="abc")
    config = dataclasses.replace(CONFIG, max_epochs=1, seed=4, smoke=True)
    fit.fit(STAGES["augmentation"], data, config, CPU, tmp_path, report=lambda line: None)
    kept = record.load_checkpoint(tmp_path / "checkpoint.pt")
    about = {key: value for key, value in kept.items() if key not in ("state", "history")}
    assert about == {
        "format": 1,
        "stage": "augmentation",
        "network": "big",
        "dataset": "organamnist",
        "classes": CLASSES,
        "size": 28,
        "stored": data.stored,
        "data_md5": "abc",
        "resample": "area",
        "seed": 4,
        "weights": "none",
        "smoke": True,
        # 8 classes less than the design's 11, of 240 weights and a bias
        "parameters": 1_662_939 - 8 * 241,
        "recipe": {
            "batch_size": 32,
            "max_epochs": 1,
            "method": {"learning_rate": 1e-3},
            "precision": "fp32",
        },
        "finished": True,
        "best_epoch": 1,
    }


def scripted(monkeypatch, logits):
    """Validation logits by epoch, of a network that is never trained; 100 validation slices of class 1."""
    answers = iter(logits)
    monkeypatch.setattr(fit, "train_epoch", lambda *rest: (0.25, 0.75))
    monkeypatch.setattr(fit, "evaluate", lambda network, images: next(answers))
    zeros = {s: np.zeros((4, 28, 28), np.uint8) for s in ("train", "val", "test")}
    labels = {s: np.array([1, 1, 0, 2]) for s in zeros}
    return dataclasses.replace(made_data(n=4), images=zeros, labels=labels)


def answer(*rows):
    return np.array(rows, np.float32)


BETTER = answer([0, 2, 0], [0, 1, 0], [3, 0, 0], [1, 0, 0])  # three of four
WORSE = answer([0, 2, 0], [1, 0, 0], [0, 3, 0], [1, 0, 0])  # one of four


def test_an_epoch_is_reported_with_its_losses_accuracy_and_time(monkeypatch, tmp_path):
    data = scripted(monkeypatch, [WORSE, BETTER, WORSE])
    now, lines = itertools.count(step=20.0), []
    monkeypatch.setattr(fit.time, "perf_counter", lambda: next(now))
    config = dataclasses.replace(CONFIG, max_epochs=3)
    done = fit.fit(STAGES["early_stopping"], data, config, CPU, tmp_path, report=lines.append)

    def log_loss(gain, right):
        return -math.log((math.exp(gain) if right else 1) / (math.exp(gain) + 2))

    worse = log_loss(2, True) + log_loss(1, False) + log_loss(3, False) + log_loss(1, False)
    better = log_loss(2, True) + log_loss(1, True) + log_loss(3, True) + log_loss(1, False)
    rows = done.history
    assert [row["val_loss"] for row in rows] == pytest.approx(
        [worse / 4, better / 4, worse / 4], rel=1e-5
    )
    assert [row["val_accuracy"] for row in rows] == [0.25, 0.75, 0.25]
    assert [(row["epoch"], row["train_loss"], row["train_accuracy"]) for row in rows] == [
        (epoch, 0.25, 0.75) for epoch in (1, 2, 3)
    ]
    # the last epoch's seconds hold what was written after it
    assert [row["seconds"] for row in rows] == [20, 20, 40] and rows[0]["learning_rate"] == 1e-3
    assert lines == [
        "early_stopping epoch   1/3  loss 0.250  val accuracy 0.2500 (best 0.2500, epoch 1)  20.0 s  left 0:40",
        "early_stopping epoch   2/3  loss 0.250  val accuracy 0.7500 (best 0.7500, epoch 2)  20.0 s  left 0:20",
        "early_stopping epoch   3/3  loss 0.250  val accuracy 0.2500 (best 0.7500, epoch 2)  20.0 s  left 0:00",
    ]


@pytest.mark.parametrize(
    ("stage", "epochs", "best", "left"),
    [
        # 100 s an epoch: 5 epochs of patience at least, all that is left at most
        ("early_stopping", 10, 10, "8:20 to 2:30:00"),
        ("early_stopping", 10, 7, "3:20 to 2:30:00"),
        ("early_stopping", 97, 95, "5:00"),
        ("base", 3, 3, "2:41:40"),
        ("base", 99, 1, "1:40"),
        ("base", 100, 1, "0:00"),
    ],
)
def test_the_time_that_is_left_counts_patience(stage, epochs, best, left):
    history = [
        {"train_loss": 1.0, "val_accuracy": 0.5, "seconds": seconds} for seconds in (50.0, 150.0)
    ]
    history = [*(history * 50)[: epochs - 1], history[0] | {"seconds": 100.0}]
    mean = np.mean([row["seconds"] for row in history])
    history[-1]["seconds"] += (100.0 - mean) * epochs
    line = progress.progress_line(STAGES[stage], 100, history, best, 0.5)
    assert line.endswith(f" left {left}")


@pytest.mark.parametrize(
    ("stage", "kept"),
    [
        ("early_stopping", "(best 0.7500, epoch 2)"),
        ("base", "(kept: last epoch)"),
        ("edge", "(kept: last epoch)"),
    ],
)
def test_the_line_of_an_epoch_names_the_weights_that_are_kept(stage, kept):
    row = {"train_loss": 1.0, "val_accuracy": 0.5, "seconds": 2.0}
    line = progress.progress_line(STAGES[stage], 9, [row] * 3, 2, 0.75)
    assert f"val accuracy 0.5000 {kept}  2.0 s" in line and line.startswith(f"{stage} ")
    assert progress.progress_line(
        STAGES[stage], 9, [row] * 3, 2, 0.75, label=f"{stage} #2"
    ).startswith(f"{stage} #2 ")


def test_one_of_several_seeds_is_named_and_a_single_one_is_not(tmp_path):
    for seeds, labels in ((1, ["base"]), (2, ["base #1", "base #2"])):
        jobs = plan_jobs([STAGES["base"]], TrainOptions(seeds=seeds), {}, tmp_path)
        assert [job.label for job in jobs] == labels


def test_a_phase_is_reported_with_its_time_when_it_has_ended(monkeypatch):
    lines, times = [], iter((10.0, 12.34))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(times))
    with progress.phase("bundle", lines.append):
        assert not lines
    assert lines == ["bundle         done in 2.3 s"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.4, "0:00"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (7325, "2:02:05"),
    ],
)
def test_durations_are_shown_as_a_clock(seconds, shown):
    assert progress.clock(seconds) == shown


def test_a_first_epoch_that_is_never_right_is_still_the_best(monkeypatch, tmp_path):
    data = scripted(monkeypatch, [answer([1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0])] * 6)
    config = dataclasses.replace(CONFIG, max_epochs=50)
    done = fit.fit(STAGES["early_stopping"], data, config, CPU, tmp_path, report=lambda line: None)
    assert (done.best_epoch, len(done.history)) == (1, 6) and "head.bias" in done.state


def test_a_learner_without_more_has_no_average_and_scales_nothing():
    network, recipe = small_network(), ReferenceRecipe(augmented=False)
    learner = Learner(network, recipe, recipe.optimizer(network))
    assert learner.ema is None and learner.validated is network and not learner.scaler.is_enabled()
    assert learner.resume_state(None, 0.5).ema is None


def test_a_second_process_writes_nothing_and_follows_the_first(monkeypatch, tmp_path):
    """The first process's validation accuracy decides which weights are best, and when to stop."""
    data = scripted(monkeypatch, [BETTER] * 20)
    told = iter([0.5, 0.75, 0.25, 0.25, 0.25, 0.25, 0.25])
    waits, lines = [], []

    class Second(Pretended):
        def agree(self, value):
            assert value == 0.75
            return next(told)

        def wait(self):
            waits.append(1)

    done = fit.fit(STAGES["early_stopping"], data, dataclasses.replace(CONFIG, max_epochs=50), CPU, tmp_path, report=lines.append, group=Second(1, 2))  # fmt: skip
    assert [row["val_accuracy"] for row in done.history] == [0.5, 0.75] + [0.25] * 5
    assert done.best_epoch == 2 and not list(tmp_path.iterdir()) and not lines
    assert len(waits) == 7 + 1  # after every epoch, and at the end


class Pretrained(nn.Module):
    """A network that takes ImageNet weights: a bias."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(784, 3)
        self.loaded = None

    def forward(self, x):
        return self.head(x.flatten(1))

    def load_imagenet(self, weights, source):
        self.loaded = weights, source


def test_imagenet_weights_are_loaded_into_pretrained_stages_that_begin(monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "resnet50", lambda classes, size, seed: Pretrained())
    asked = []
    monkeypatch.setattr(fit, "find_weights", lambda *a: asked.append(a) or ({"a": 1}, "the source"))
    stage, data = STAGES["resnet50"], made_data(n=4)
    config = TrainConfig(1, 32, 1, "imagenet", weights_dir=Path("somewhere"))
    network, source = fit.starting_network(stage, data, config)
    assert (network.loaded, source, asked) == (
        ({"a": 1}, "the source"),
        "the source",
        [("resnet50", Path("somewhere"))],
    )
    for arguments, options in (
        ((stage, data, config), {"fresh": False}),
        ((stage, data, dataclasses.replace(config, weights="none")), {}),
        ((dataclasses.replace(stage, pretrained=False), data, config), {}),
    ):
        network, source = fit.starting_network(*arguments, **options)
        assert network.loaded is None and source == "none"
    assert len(asked) == 1


def test_a_resumed_stage_needs_no_imagenet_weights_and_still_names_them(monkeypatch, tmp_path):
    monkeypatch.setitem(networks.NETWORKS, "resnet50", lambda classes, size, seed: Pretrained())
    monkeypatch.setattr(fit, "find_weights", lambda *a: ({}, "the source"))
    save = record.save_checkpoint

    def save_then_die(path, state):
        save(path, state)
        raise Killed

    monkeypatch.setattr(record, "save_checkpoint", save_then_die)
    arguments = STAGES["resnet50"], made_data(n=4), TrainConfig(1, 32, 2, "imagenet"), CPU, tmp_path
    lines = []
    with pytest.raises(Killed):
        fit.fit(*arguments, report=lines.append)
    monkeypatch.setattr(record, "save_checkpoint", save)
    monkeypatch.setattr(fit, "find_weights", None)
    done = fit.fit(*arguments, report=lines.append)
    assert done.facts.weights == "the source" and len(done.history) == 2
    assert lines[0] == "resnet50: continues after epoch 1"


def test_methods_belong_to_their_stages():
    assert STAGES["base"].recipe_for("axial") == ReferenceRecipe(augmented=False)
    assert STAGES["batch_norm"].recipe_for("coronal") == ReferenceRecipe(augmented=True)
    assert STAGES["edge"].recipe_for("axial") == EDGE_RECIPE
    for view in ("coronal", "sagittal"):
        assert STAGES["edge"].recipe_for(view) == dataclasses.replace(
            EDGE_RECIPE, flip_front_back=0.0
        )

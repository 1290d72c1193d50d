"""An epoch of `batch_norm` on the CPU: batches from the device against the study's way, slice by slice through PIL.

pytest tests/benchmarks/test_epoch.py -s
"""

import copy
import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from tests.benchmarks.comparison import compare
from tests.support.data_files import DATA, needs_organamnist
from train import fit
from train.config import TrainConfig
from train.data import load_data
from train.learner import Learner
from train.networks import make_network
from train.stages import STAGES

# An eighth of an epoch per round.
SLICES = 34_561 // 8
ROUNDS = 3
AT_LEAST = 3.0


class AsTheStudy(Dataset):
    """One PIL image at a time through torchvision's transforms."""

    def __init__(self, images, labels):
        from PIL import Image

        self.image = Image.fromarray
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.ToTensor(),
                transforms.Normalize([0.5], [0.5]),
                transforms.RandomApply([transforms.RandomRotation(30)], 0.5),
                transforms.RandomErasing(0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3)),
                transforms.RandomPerspective(0.5, 0.5),
            ]
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(self.image(self.images[i])), self.labels[i]


@pytest.fixture(scope="module")
def data():
    """Training slices, uint8 (SLICES, 28, 28), and their labels."""
    found = load_data("organamnist", directory=DATA)
    return found.images["train"][:SLICES], found.labels["train"][:SLICES]


@pytest.fixture(scope="module")
def network():
    return make_network("big_batch_norm", classes=11, size=28, seed=1)


@pytest.fixture
def study_epoch(data, network, workers):
    """Trains a copy of the network for an epoch in the study's way."""
    trained = copy.deepcopy(network).train()
    optimizer = torch.optim.Adam(trained.parameters())
    loader = DataLoader(AsTheStudy(*data), 128, shuffle=True, num_workers=workers)

    def run():
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(trained(x), y).backward()
            optimizer.step()

    return run


@pytest.fixture
def our_epoch(data, network):
    """Trains a copy of the network for an epoch as fit() does."""
    # As fit() has it.
    trained = copy.deepcopy(network).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(trained.parameters(), fused=True)
    x, y = map(torch.from_numpy, data)
    config = TrainConfig(seed=1, batch_size=128, max_epochs=1, weights="none")
    learner = Learner(trained, STAGES["batch_norm"].recipe_for("axial"), optimizer)
    epochs = itertools.count()
    return lambda: fit.train_epoch(learner, x, y, 11, STAGES["batch_norm"], config, next(epochs))


def options(workers):
    return {"group": f"{SLICES:,} slices of an epoch, {workers} workers", "rounds": ROUNDS}


def record(benchmark):
    if benchmark.enabled:
        benchmark.extra_info.update(slices_per_second=SLICES / benchmark.stats.stats.median)


@needs_organamnist
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_of_the_study(benchmark, our_epoch, study_epoch, workers):
    compare(benchmark, study_epoch, our_epoch, against="ours", **options(workers))
    record(benchmark)


@needs_organamnist
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_three_times_as_fast_as_the_studys(benchmark, our_epoch, study_epoch, workers):
    medians = compare(
        benchmark, our_epoch, study_epoch, against="the study's way", **options(workers)
    )
    record(benchmark)
    assert medians.speedup >= AT_LEAST

"""An epoch of `batch_norm` on the CPU: batches from the device against the study's way, slice by slice through PIL.

pytest tests/benchmarks/test_epoch.py -s
"""

import copy
import time
from statistics import median

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from tests.at_hand import DATA, needs_organamnist
from train import fit
from train.data import load_data
from train.networks import make_network
from train.stages import STAGES

SLICES = 34_561 // 8  # an eighth of an epoch a turn
TURNS = 3
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


def study_epoch(network, optimiser, loader):
    network.train()
    for x, y in loader:
        optimiser.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimiser.step()


@needs_organamnist
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_three_times_as_fast_as_the_studys(workers):
    data = load_data("organamnist", directory=DATA)
    images, labels = data.images["train"][:SLICES], data.labels["train"][:SLICES]
    network = make_network("big_batch_norm", classes=11, size=28, seed=1)
    theirs = copy.deepcopy(network)
    network.to(memory_format=torch.channels_last)  # as fit() has it
    ours_optimiser = torch.optim.Adam(network.parameters(), fused=True)
    theirs_optimiser = torch.optim.Adam(theirs.parameters())
    loader = DataLoader(AsTheStudy(images, labels), 128, shuffle=True, num_workers=workers)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    recipe = fit.Recipe(seed=1, batch_size=128, max_epochs=1, weights="none")
    learner = fit.Learner(network, fit.method_of(STAGES["batch_norm"], "axial"), ours_optimiser)
    our_seconds, their_seconds = [], []
    for turn in range(TURNS + 1):
        begun = time.perf_counter()
        fit.train_epoch(learner, x, y, 11, STAGES["batch_norm"], recipe, turn)
        middle = time.perf_counter()
        study_epoch(theirs, theirs_optimiser, loader)
        ended = time.perf_counter()
        if turn:  # the first one warms up
            our_seconds.append(middle - begun)
            their_seconds.append(ended - middle)
    ratio = median(np.array(their_seconds) / np.array(our_seconds))
    print(
        f"\n{SLICES} slices, {workers} workers: ours {median(our_seconds):.2f} s ({SLICES / median(our_seconds):,.0f} slices/s), "
        f"the study's way {median(their_seconds):.2f} s, ratio {ratio:.1f}"
    )
    assert ratio >= AT_LEAST

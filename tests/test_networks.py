"""The ladder's networks: sizes, equal starting weights, one input channel standing for three."""

import pytest
import torch
from torch import nn

from train.errors import RunError
from train.networks import NETWORKS, GrayResNet, SmallMapConv2d, count_parameters, make_network
from train.stages import LADDER, STAGES, chosen_stages

SIZES = {
    "base": 106_239,
    "early_stopping": 106_239,
    "big": 1_662_939,
    "augmentation": 1_662_939,
    "batch_norm": 1_663_747,
    "edge": 317_044,
    "edge_wide": 569_412,
    "edge_deep": 502_964,
}


def network_of(stage, seed=1):
    return make_network(STAGES[stage].network, classes=11, size=28, seed=seed)


@pytest.mark.parametrize("stage", SIZES)
def test_parameters_of_the_design(stage):
    assert count_parameters(network_of(stage)) == SIZES[stage]


def test_parameters_of_the_ensemble():
    members = [
        make_network(STAGES[m].network, classes=11, size=28, seed=1)
        for m in STAGES["ensemble"].members
    ]
    assert sum(map(count_parameters, members)) == 125_883_364


def test_stages_start_from_equal_weights_layer_by_layer():
    big, normed = network_of("big").state_dict(), network_of("batch_norm").state_dict()
    shared = [key for key in big if key in normed]
    assert sorted(key for key in shared if key.endswith("weight")) == [
        "conv1.weight", "conv2.weight", "head.weight", "linear1.weight", "linear2.weight",
    ]  # fmt: skip
    assert all(torch.equal(big[key], normed[key]) for key in shared)
    assert {"conv1.bias", "linear2.bias"} <= big.keys() - normed.keys()


def test_another_seed_is_another_network():
    assert not torch.equal(network_of("big").conv1.weight, network_of("big", seed=2).conv1.weight)


@pytest.mark.parametrize("name", [n for n in NETWORKS if not n.startswith("resnet")])
@pytest.mark.parametrize("size", [28, 64])
def test_networks_take_other_sizes(name, size):
    network = make_network(name, classes=11, size=size, seed=1).eval()
    assert network(torch.zeros(2, 1, size, size)).shape == (2, 11)


def test_one_channel_stem_equals_three_repeated_channels():
    network = GrayResNet("resnet50", classes=11, seed=1).eval()
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        repeated = network.resnet(x.expand(-1, 3, -1, -1))
        torch.testing.assert_close(network(x), repeated, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network.for_export().eval()(x), repeated, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kernel, stride, size",
    [(1, 1, 4), (1, 2, 5), (3, 1, 1), (3, 2, 1), (3, 1, 2), (3, 2, 2), (3, 1, 3), (3, 2, 4)],
)
def test_small_map_convolution_equals_torchs_with_its_gradients(kernel, stride, size):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Conv2d(8, 6, kernel, stride=stride, padding=kernel // 2, bias=False).double()
        x = torch.randn(3, 8, size, size, dtype=torch.float64, requires_grad=True)
    results = []
    for conv in (plain, SmallMapConv2d.like(plain)):
        y = conv(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, conv.weight))))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_imagenet_weights_of_the_wrong_shape_are_named():
    network = GrayResNet("resnet50", classes=11, seed=1)
    weights = {key: value.clone() for key, value in network.resnet.state_dict().items()}
    network.load_imagenet(weights, "w.pth")
    weights["layer1.0.conv1.weight"] = torch.zeros(64, 64, 3, 3)
    with pytest.raises(RunError, match=r"w.pth: layer1.0.conv1.weight has shape \(64, 64, 3, 3\)"):
        network.load_imagenet(weights, "w.pth")
    del weights["layer1.0.conv1.weight"]
    with pytest.raises(RunError, match=r"without layer1\.0\.conv1\.weight"):
        network.load_imagenet(weights, "w.pth")


def test_stages_are_chosen_in_the_ladders_order_with_their_members():
    chosen = [stage.name for stage in chosen_stages(["ensemble", "base"])]
    assert chosen == ["base", "batch_norm", "resnet50", "resnet101", "resnet152", "ensemble"]
    assert [stage.name for stage in chosen_stages([s.name for s in LADDER])] == [
        s.name for s in LADDER
    ]
    with pytest.raises(RunError, match="unknown stage 'nope'; choose from base, "):
        chosen_stages(["nope"])


def test_unknown_network_is_named():
    with pytest.raises(RunError, match="network 'vgg': not in this version"):
        make_network("vgg", classes=11, size=28, seed=1)

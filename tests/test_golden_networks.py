"""The networks' logits against forward passes written out in float64 NumPy, and torchvision's ResNets."""

import hashlib

import numpy as np
import pytest
import torch
import torchvision
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from train.errors import RunError
from train.networks import GrayResNet, ResidualNetwork, SmallMapConv2d, find_weights, make_network
from train.networks import weights as weights_module
from train.networks.init import layer_generator


def convolution(x, weight, bias=None, stride=1):
    """x (N, C, H, W), weight (O, C, K, K), padded by K // 2."""
    pad = weight.shape[2] // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = sliding_window_view(x, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    y = np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True)
    return y if bias is None else y + bias[None, :, None, None]


def normalized(x, state, name):
    """Batch normalization by running statistics, over axis 1."""
    shape = (1, -1) + (1,) * (x.ndim - 2)
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    scale = state[f"{name}.weight"] / np.sqrt(variance + 1e-5)
    return (x - mean.reshape(shape)) * scale.reshape(shape) + state[f"{name}.bias"].reshape(shape)


def relu(x):
    return np.where(x > 0, x, 0)


def largest_of_four(x):
    """2x2 max pooling; an odd last row or column is left out."""
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    x = x[:, :, :height, :width]
    return np.max([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)


def plain_cnn(state, x, *, batch_norm):
    """Two convolutions with max pooling, three linear layers; normalization before each ReLU."""

    def between(y, i):
        return relu(normalized(y, state, f"norm{i}") if batch_norm else y)

    def bias(name):
        return state.get(f"{name}.bias", 0)

    for i in (1, 2):
        y = convolution(
            x,
            state[f"conv{i}.weight"],
            np.broadcast_to(bias(f"conv{i}"), len(state[f"conv{i}.weight"])),
        )
        x = largest_of_four(between(y, i))
    x = x.reshape(len(x), -1)
    for i in (1, 2):
        x = between(x @ state[f"linear{i}.weight"].T + bias(f"linear{i}"), i + 2)
    return x @ state["head.weight"].T + state["head.bias"]


def residual_block(state, x, name, stride):
    """Two convolutions and the input, which a third one adapts."""
    y = relu(
        normalized(
            convolution(x, state[f"{name}.conv1.weight"], stride=stride), state, f"{name}.norm1"
        )
    )
    y = normalized(convolution(y, state[f"{name}.conv2.weight"]), state, f"{name}.norm2")
    if f"{name}.fit.0.weight" in state:
        x = normalized(
            convolution(x, state[f"{name}.fit.0.weight"], stride=stride), state, f"{name}.fit.1"
        )
    return relu(y + x)


def edge_features(state, x, *, strides):
    """A stem, residual blocks, and the mean of the map."""
    x = relu(normalized(convolution(x, state["stem.weight"], stride=2), state, "norm"))
    for i, stride in enumerate(strides):
        x = residual_block(state, x, f"blocks.{i}", stride)
    return x.mean((2, 3))


def edge_network(state, x, **strides):
    """The features, and a linear head."""
    return edge_features(state, x, **strides) @ state["head.weight"].T + state["head.bias"]


def orientation_of(state, x, **strides):
    """The second head: two linear layers."""
    hidden = edge_features(state, x, **strides) @ state["orientation_head.0.weight"].T
    hidden = relu(hidden + state["orientation_head.0.bias"])
    return hidden @ state["orientation_head.2.weight"].T + state["orientation_head.2.bias"]


def unsettled(network, seed=5):
    """The network in float64 and evaluation mode, its normalization as far from a new one as a trained one's."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.weight, 0.5, 1.5),
                (layer.bias, -0.5, 0.5),
                (layer.running_mean, -0.3, 0.3),
                (layer.running_var, 0.3, 2.0),
            ):
                with torch.no_grad():
                    tensor.uniform_(low, high, generator=generator)
    return network.double().eval()


def slices(size=28, n=3):
    return np.random.default_rng(size).uniform(-1, 1, (n, 1, size, size))


REFERENCES = {
    "small": lambda state, x: plain_cnn(state, x, batch_norm=False),
    "big": lambda state, x: plain_cnn(state, x, batch_norm=False),
    "big_batch_norm": lambda state, x: plain_cnn(state, x, batch_norm=True),
    "edge": lambda state, x: edge_network(state, x, strides=(1, 2, 2)),
}


@pytest.mark.parametrize("size", [28, 30])
@pytest.mark.parametrize("name", REFERENCES)
def test_logits_are_those_of_a_forward_pass_written_out_in_numpy(name, size):
    network = unsettled(make_network(name, classes=11, size=size, seed=3))
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    x = slices(size)
    with torch.no_grad():
        found = network(torch.from_numpy(x)).numpy()
    expected = REFERENCES[name](state, x)
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


TWO_HEADS = {
    "edge_orientation": {"strides": (1, 2, 2)},
    "edge_wide": {"strides": (1, 2, 2)},
    "edge_deep": {"strides": (1, 2, 2, 2)},
}


@pytest.mark.parametrize("name", TWO_HEADS)
def test_the_second_head_is_there_in_training_and_in_the_export_only(name):
    network = unsettled(make_network(name, classes=11, size=28, seed=3))
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    x = torch.from_numpy(slices(28))
    with torch.no_grad():
        logits = network(x).numpy()
        exported, probabilities = (output.numpy() for output in network.for_export()(x))
        # running statistics instead of the batch's, so that the numbers are comparable
        network.training = True
        both = network(x).numpy()
    expected = edge_network(state, x.numpy(), **TWO_HEADS[name])
    np.testing.assert_allclose(logits, expected, rtol=1e-9)
    np.testing.assert_array_equal(exported, logits)
    orientation = orientation_of(state, x.numpy(), **TWO_HEADS[name])
    shares, classes = (
        np.exp(values) / np.exp(values).sum(1, keepdims=True) for values in (orientation, logits)
    )
    # 1 less the entropy in units of that of 11 equal shares
    first = shares[:, :1] * (1 + (classes * np.log(classes)).sum(1, keepdims=True) / np.log(11))
    others = shares[:, 1:] / shares[:, 1:].sum(1, keepdims=True) * (1 - first)
    shares = np.concatenate([first, others], 1)
    assert probabilities.shape == (3, 9) and shares.std() > 1e-3
    np.testing.assert_allclose(probabilities, shares, rtol=1e-9)
    np.testing.assert_allclose(both, np.concatenate([logits, orientation], 1), rtol=1e-9)


def test_without_a_second_head_the_network_is_exported_itself():
    network = make_network("edge", classes=11, size=28, seed=3)
    assert network.for_export() is network


@pytest.mark.parametrize(
    ("stem", "widths", "fitted"),
    [(4, (4, 6), [1]), (4, (5, 5), [0, 1]), (3, (3, 3, 3), [1, 2])],
)
def test_a_block_fits_its_input_if_its_width_or_stride_changes(stem, widths, fitted):
    network = unsettled(ResidualNetwork(stem, 2, widths, classes=3, seed=2))
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    assert [i for i in range(len(widths)) if f"blocks.{i}.fit.0.weight" in state] == fitted
    assert not any(
        key.endswith(("conv1.bias", "conv2.bias", "fit.0.bias", "stem.bias")) for key in state
    )
    x = slices()
    with torch.no_grad():
        found = network(torch.from_numpy(x)).numpy()
    expected = edge_network(state, x, strides=[1, 2, 2][: len(widths)])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "size"), [("resnet50", 28), ("resnet18", 64)])
def test_a_resnet_on_gray_slices_is_torchvisions_on_three_equal_channels(name, size):
    network = unsettled(GrayResNet(name, classes=11, seed=3))
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None, num_classes=11).eval()
    theirs.load_state_dict(network.resnet.state_dict(), assign=True)
    x = torch.from_numpy(slices(size, n=2))
    with torch.no_grad():
        expected = theirs(x.expand(-1, 3, -1, -1))
        torch.testing.assert_close(network(x), expected, rtol=1e-9, atol=1e-9)


def test_every_convolution_of_a_bottleneck_is_one_for_small_maps_and_the_stem_is_not():
    """The logits are equal either way, the time is not."""
    net = GrayResNet("resnet18", classes=3, seed=1).resnet
    kinds = {
        name: type(layer) for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)
    }
    assert len(kinds) == 20 and kinds.pop("conv1") is nn.Conv2d
    assert set(kinds.values()) == {SmallMapConv2d}
    weights = [p for p in net.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


def test_the_exported_resnet_is_torchvisions_with_one_input_channel():
    network = unsettled(GrayResNet("resnet18", classes=11, seed=3))
    exported, x = network.for_export().eval(), torch.from_numpy(slices(n=2))
    assert type(exported) is torchvision.models.ResNet and exported.conv1.weight.shape == (
        64,
        1,
        7,
        7,
    )
    with torch.no_grad():
        torch.testing.assert_close(exported(x.float()).double(), network(x), rtol=1e-4, atol=1e-4)


# He et al. 2016, "Deep residual learning for image recognition", table 1: bottlenecks of the four stages
BOTTLENECKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_each_resnet_has_its_published_depth(name, monkeypatch):
    real = torchvision.models.get_model

    def without_memory(*arguments, **options):
        with torch.device("meta"):
            return real(*arguments, **options)

    monkeypatch.setattr(torchvision.models, "get_model", without_memory)
    net = make_network(name, classes=11, size=28, seed=1).resnet
    assert tuple(len(getattr(net, f"layer{i}")) for i in (1, 2, 3, 4)) == BOTTLENECKS[name]
    assert (
        all(hasattr(block, "conv3") for block in net.layer1)
        and net.layer1[0].conv3.out_channels == 256
    )


def test_the_three_channel_stem_is_trained_not_its_sum():
    network = GrayResNet("resnet18", classes=3, seed=1).eval()
    network(torch.from_numpy(slices(n=1)).float()).sum().backward()
    stem = network.resnet.conv1.weight
    assert stem.shape == (64, 3, 7, 7) and stem.grad.abs().sum() > 0
    # the input repeats one channel, so that the three kernels have equal gradients
    torch.testing.assert_close(stem.grad[:, 0], stem.grad[:, 2])


# LeNet-5's widths with 3x3 kernels, and the wider network with 5x5 kernels: docs/results/reference_study.md
SHAPES = {
    "small": {"conv1": (6, 1, 3, 3), "conv2": (16, 6, 3, 3), "linear1": (120, 784), "linear2": (84, 120), "head": (11, 84)},
    "big": {"conv1": (24, 1, 5, 5), "conv2": (64, 24, 5, 5), "linear1": (480, 3136), "linear2": (240, 480), "head": (11, 240)},
}  # fmt: skip
SHAPES["big_batch_norm"] = SHAPES["big"]


@pytest.mark.parametrize("name", SHAPES)
def test_layers_have_the_designs_shapes_and_biases_only_where_nothing_normalizes(name):
    state = make_network(name, classes=11, size=28, seed=1).state_dict()
    assert {layer: tuple(state[f"{layer}.weight"].shape) for layer in SHAPES[name]} == SHAPES[name]
    biased = {layer for layer in SHAPES[name] if f"{layer}.bias" in state}
    assert biased == ({"head"} if name == "big_batch_norm" else set(SHAPES[name]))


@pytest.mark.parametrize("name", ["small", "big", "edge"])
def test_layers_are_drawn_from_pytorchs_default_distributions(name):
    """Uniform within 1 / sqrt(fan in), weights and biases (https://pytorch.org/docs/stable/generated/torch.nn.Linear.html)."""
    state = make_network(name, classes=11, size=28, seed=1).state_dict()
    seen = set()
    for key, value in state.items():
        if key.endswith("weight") and value.ndim > 1:
            bound = value[0].numel() ** -0.5
            drawn = [
                value,
                *(state[bias] for bias in [key.replace("weight", "bias")] if bias in state),
            ]
            for tensor in drawn:
                assert tensor.abs().max() <= bound
                seen.add(hashlib.sha256(tensor.numpy().tobytes()).hexdigest())
            if value.numel() > 500:
                assert value.abs().max() > 0.98 * bound and abs(float(value.mean())) < 0.1 * bound
                assert float(value.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    layers = [
        m
        for m in make_network(name, classes=11, size=28, seed=1).modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    assert len(seen) == sum(1 + (layer.bias is not None) for layer in layers)  # no two alike


def test_weights_are_those_of_earlier_versions():
    """A seed's networks stay the same: 7 bytes of the SHA-256 of "seed/layer" seed each layer."""
    digest = hashlib.sha256(b"3/conv1").digest()
    generator = torch.Generator().manual_seed(
        sum(byte << 8 * i for i, byte in enumerate(digest[:7]))
    )
    weight = torch.empty(6, 1, 3, 3).uniform_(-1 / 3, 1 / 3, generator=generator)
    bias = torch.empty(6).uniform_(-1 / 3, 1 / 3, generator=generator)
    drawn = make_network("small", classes=11, size=28, seed=3).conv1
    torch.testing.assert_close(
        (drawn.weight, drawn.bias), (nn.Parameter(weight), nn.Parameter(bias))
    )


def test_a_resnet_starts_from_its_seed_and_does_not_seed_torchs_own_generator():
    after = []
    for i in range(2):
        torch.manual_seed(i)
        GrayResNet("resnet18", classes=3, seed=1)
        after.append(torch.rand(3))
    assert not torch.equal(*after)
    first, again, other = (
        GrayResNet("resnet18", classes=3, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    for key in ("resnet.conv1.weight", "resnet.layer4.1.conv2.weight", "resnet.fc.weight"):
        assert not torch.equal(first[key], other[key])


@pytest.fixture(scope="module")
def imagenet():
    """Weights that no draw gives: torchvision's names and shapes, each filled with a number of its own."""
    with torch.device("meta"):
        state = torchvision.models.resnet18(weights=None).state_dict()
    weights = {
        key: torch.full(value.shape, 0.001 * i)
        for i, (key, value) in enumerate(state.items(), start=1)
    }
    return {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}


def test_imagenet_weights_replace_every_layer_but_the_head(imagenet):
    network, drawn = (GrayResNet("resnet18", classes=11, seed=1) for _ in range(2))
    network.load_imagenet(imagenet, "w.pth")
    state, before = network.resnet.state_dict(), drawn.resnet.state_dict()
    for key, value in state.items():
        if key.startswith("fc.") or key.endswith("num_batches_tracked"):
            assert torch.equal(value, before[key]), key
        else:
            assert torch.equal(value, imagenet[key]), key
    assert len(imagenet) - 2 == sum(not k.startswith("fc.") and "tracked" not in k for k in state)


def test_missing_layers_are_counted(imagenet):
    kept = {
        key: value
        for key, value in imagenet.items()
        if key not in ("bn1.bias", "conv1.weight", "fc.bias")
    }
    with pytest.raises(
        RunError,
        match=r"^w\.pth: not the weights of resnet18, without bn1\.bias and 1 other tensors; use another file$",
    ):
        GrayResNet("resnet18", classes=3, seed=1).load_imagenet(kept, "w.pth")


def test_torchvisions_own_file_name_is_preferred_and_the_source_holds_its_digest(tmp_path):
    own, short = tmp_path / "resnet50-0676ba61.pth", tmp_path / "resnet50.pth"
    for number, path in enumerate((own, short)):
        torch.save({"a": torch.tensor([float(number)])}, path)
    weights, source = find_weights("resnet50", tmp_path)
    assert weights["a"].tolist() == [0.0]
    assert source == f"{own.name} (sha256 {hashlib.sha256(own.read_bytes()).hexdigest()[:16]})"
    own.unlink()
    weights, source = find_weights("resnet50", tmp_path)
    assert weights["a"].tolist() == [1.0] and source.startswith("resnet50.pth (sha256 ")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1.0}, {"a": torch.zeros(1), "b": "text"}])
def test_a_file_that_holds_no_state_dict_is_named(tmp_path, content):
    torch.save(content, tmp_path / "resnet50.pth")
    with pytest.raises(RunError, match=r"resnet50\.pth: not a state dict of tensors"):
        find_weights("resnet50", tmp_path)


def test_downloaded_weights_are_read_once_their_digest_agrees(tmp_path, monkeypatch):
    torch.save({"a": torch.tensor([7.0])}, tmp_path / "made.pth")
    content = (tmp_path / "made.pth").read_bytes()
    name = f"resnet50-{hashlib.sha256(content).hexdigest()[:8]}.pth"

    class Entry:
        class IMAGENET1K_V1:
            url = f"https://example.org/models/{name}"

    calls = []

    def fetch(url, path, digest, *, algorithm):
        calls.append((url, path, digest, algorithm))
        path.parent.mkdir()
        path.write_bytes(content)

    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda network: Entry)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(weights_module, "download", fetch)
    (tmp_path / "hub").mkdir()
    for _ in range(2):  # the second time from the cache
        weights, source = find_weights("resnet50", None)
        assert weights["a"].tolist() == [7.0] and source == "torchvision IMAGENET1K_V1"
    path = tmp_path / "hub" / "checkpoints" / name
    assert calls == [(Entry.IMAGENET1K_V1.url, path, name[9:17], "sha256")]


class _Executes:
    """Unpickled, it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_weights_that_would_execute_code_are_refused_and_execute_none(tmp_path):
    torch.save({"a": _Executes(tmp_path / "executed")}, tmp_path / "resnet50.pth")
    with pytest.raises(RunError, match=r"resnet50\.pth: not a readable PyTorch weights file"):
        find_weights("resnet50", tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(("seed", "layer"), [(1, "conv1"), (7, "blocks.0.body.0"), (2**31, "head")])
def test_a_layer_is_drawn_from_seven_bytes_of_the_digest_of_its_seed_and_name(seed, layer):
    digest = hashlib.sha256(f"{seed}/{layer}".encode()).hexdigest()
    pairs = [digest[i : i + 2] for i in range(0, 14, 2)]
    assert layer_generator(seed, layer).initial_seed() == int("".join(reversed(pairs)), 16)

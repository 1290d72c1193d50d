"""A training step never makes the host wait for the GPU. Counted on a GPU by tests/gpu; here, on pretended CUDA tensors
that compute nothing, every copy between host and device and every value that is read back is seen, up to the loss."""

import ast
import contextlib
import inspect

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException as DataDependent
from torch._subclasses.fake_tensor import DynamicOutputShapeException as DynamicShape
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from train import batches, devices, ema, fit
from train.config import TrainConfig
from train.learner import Learner
from train.networks import SmallMapConv2d, make_network
from train.recipes import edge as edge_recipe
from train.recipes import edge_augment, reference
from train.stages import STAGES


class Operations(TorchDispatchMode):
    """Every operation by name, with the kinds of device of the tensors it takes and gives."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = None
        try:
            result = function(*arguments, **(options or {}))
        finally:
            tensors = [
                t for t in tree_leaves((arguments, options, result)) if isinstance(t, torch.Tensor)
            ]
            name = str(function)
            if name.startswith("aten.index") and any(t.dtype == torch.bool for t in tensors):
                name += " (nonzero of a mask)"
            self.seen.append((name, frozenset(t.device.type for t in tensors)))
        return result

    def waits(self):
        """Operations for which CUDA's host waits: copies to or from it, values read back, data-dependent shapes."""
        reading = ("_local_scalar_dense", "nonzero", "masked_select", "item", "unique")
        return [
            name
            for name, devices_seen in self.seen
            if len(devices_seen) > 1 or any(word in name for word in reading)
        ]

    def named(self, word):
        return [name for name, _ in self.seen if word in name]


def on_pretended_cuda(network):
    for module in network.modules():
        for name, value in list(module._parameters.items()):
            if value is not None:
                module._parameters[name] = nn.Parameter(torch.empty(value.shape, device="cuda"))
        for name, value in list(module._buffers.items()):
            if value is not None:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device="cuda")
    return network


class NoGenerator:
    """A CUDA generator needs a GPU; None in its place draws all the same."""

    def __init__(self, device):
        pass

    def manual_seed(self, seed):
        return None


@pytest.fixture
def epoch_on_pretended_cuda(monkeypatch):
    """Runs the first batch of an epoch of a stage up to the loss; the operations."""

    class LossReached(Exception):
        pass

    def loss_reached(loss, *_, **__):
        raise LossReached

    def run(stage, network):
        config = TrainConfig(1, 64, 3, "none", amp="off")
        with FakeTensorMode(allow_non_fake_inputs=True):
            recipe = stage.recipe_for("axial")
            on_pretended_cuda(network)
            learner = Learner(network, recipe, recipe.optimizer(network))
            images = torch.empty((256, 28, 28), dtype=torch.uint8, device="cuda")
            labels = torch.empty(256, dtype=torch.int64, device="cuda")
            monkeypatch.setattr(fit.torch, "Generator", NoGenerator)
            monkeypatch.setattr(torch.Tensor, "backward", loss_reached)
            with Operations() as operations, pytest.raises(LossReached):
                fit.train_epoch(learner, images, labels, 11, stage, config, 1)
            monkeypatch.undo()
        return operations

    return run


@pytest.mark.parametrize("name", ["base", "augmentation", "batch_norm", "resnet50", "edge"])
def test_no_operation_of_a_step_waits_for_the_gpu(epoch_on_pretended_cuda, name):
    stage = STAGES[name]
    network = make_network(stage.network, classes=11, size=28, seed=1)
    operations = epoch_on_pretended_cuda(stage, network)
    assert operations.named("convolution") and operations.named("log_softmax")
    assert operations.waits() == []


def test_the_average_of_weights_waits_for_nothing():
    network = make_network("edge", classes=11, size=28, seed=1)
    kept = ema.ModelEma(network, 0.9)
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_pretended_cuda(network)
        on_pretended_cuda(kept.network)
        with Operations() as operations:
            kept.update(network)
    assert operations.named("_foreach_lerp_") and operations.waits() == []


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.cpu(),
        lambda x: x + torch.ones(3).to("cuda"),
        lambda x: torch.tensor([1.0, 2.0], device="cuda"),
        lambda x: x[x > 0],
        lambda x: float(x.sum()),
    ],
    ids=["to the host", "to the device", "made from numbers", "masked", "read back"],
)
def test_waits_are_seen(wait):
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(3, device="cuda")
        with Operations() as operations, contextlib.suppress(DataDependent, DynamicShape):
            wait(x)
    assert operations.waits()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_small_maps_are_convolved_as_they_are_on_a_gpu(device):
    """The products for 2x2 maps are an optimization for the CPU."""
    conv = SmallMapConv2d.like(nn.Conv2d(4, 4, 3, padding=1, bias=False))
    with FakeTensorMode(allow_non_fake_inputs=True):
        conv._parameters["weight"] = nn.Parameter(torch.empty(4, 4, 3, 3, device=device))
        with Operations() as operations:
            conv(torch.empty(2, 4, 2, 2, device=device))
    kinds = {"cpu": (0, 1), "cuda": (1, 0)}
    assert (len(operations.named("convolution")), len(operations.named("aten.mm"))) == kinds[device]


# What is called between the start of an epoch and its end, by file.
STEP = {
    fit: ["train_epoch"],
    batches: ["split_order"],
    reference: ["ReferenceRecipe"],
    edge_recipe: ["EdgeRecipe"],
    ema: ["ModelEma"],
}
WAITING_CALLS = {"item", "cpu", "tolist", "numpy", "nonzero", "synchronize"}
WAITING_FUNCTIONS = {"torch.tensor", "torch.as_tensor", "torch.from_numpy"}
# after the last step: the epoch's loss and accuracy are read back
ALLOWED = {("train_epoch", "float(means[0])"), ("train_epoch", "float(means[1])")}


def waiting_calls(function):
    """The calls in a function's source that make the host wait."""
    found = []
    for node in ast.walk(ast.parse(inspect.getsource(function))):
        if not isinstance(node, ast.Call):
            continue
        text = ast.unparse(node)
        called = ast.unparse(node.func)
        if called in WAITING_FUNCTIONS or (
            called.rpartition(".")[2] in WAITING_CALLS and "." in called
        ):
            found.append(text)
        if called == "float" and (function.__name__, text) not in ALLOWED:
            found.append(text)
    return found


def step_functions():
    from train import augment

    named = [getattr(module, name) for module, names in STEP.items() for name in names]
    public = [
        value
        for module in (augment, edge_augment)
        for value in vars(module).values()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    ]
    return [*named, *public]


@pytest.mark.parametrize("function", step_functions(), ids=lambda f: f"{f.__module__}.{f.__name__}")
def test_no_call_in_the_source_of_a_step_waits_for_the_gpu(function):
    assert waiting_calls(function) == []


def test_calls_that_wait_are_found_in_source():
    assert waiting_calls(devices.check_gpu) == ["float(x.grad.sum())"]
    assert any(".cpu()" in call for call in waiting_calls(fit._logits))

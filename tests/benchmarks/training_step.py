"""What a training step costs, way by way: `python tests/benchmarks/training_step.py [--device cuda] [--compile]`

Prints a table: one optimiser step on a batch of 128 slices of 28 px, each way in turn, medians. Ours is the last row of
each network but torch.compile's, which is slow to start and joins with --compile.
"""

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from train.networks import GrayResNet, make_network

BATCH = 128
ROUNDS = 9


class ThreeChannels(nn.Module):
    """The study's way: the gray slice three times, torchvision's network as it is."""

    def __init__(self, ours: GrayResNet) -> None:
        super().__init__()
        import torchvision

        self.resnet = torchvision.models.get_model(ours.name, num_classes=11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.resnet(x.expand(-1, 3, -1, -1))


def stepper(network, device, *, channels_last, bf16, compiled=False):
    network = copy.deepcopy(network).to(device).train()
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    run = torch.compile(network) if compiled else network
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 1, 28, 28, generator=generator).to(device)
    y = torch.randint(0, 11, (BATCH,), generator=generator).to(device)

    def step():
        begun = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = run(x)
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(logits.float(), y).backward()
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    return step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--compile", action="store_true", help="also torch.compile (minutes on a CPU)"
    )
    options = parser.parse_args()
    device = torch.device(options.device)
    print(f"{'network':<16}{'way':<48}{'ms a step':>10}{'times as fast':>15}")
    for name in ("big_batch_norm", "resnet50", "resnet152"):
        ours = make_network(name, classes=11, size=28, seed=1)
        plain = ThreeChannels(ours) if isinstance(ours, GrayResNet) else ours
        ways = {
            "float32": stepper(plain, device, channels_last=False, bf16=False),
            "float32, channels-last": stepper(plain, device, channels_last=True, bf16=False),
            "bf16": stepper(plain, device, channels_last=False, bf16=True),
            "bf16, channels-last": stepper(plain, device, channels_last=True, bf16=True),
        }
        if plain is not ours:
            ways["bf16, channels-last, small maps as products"] = stepper(
                ours, device, channels_last=True, bf16=True
            )
        if options.compile and name != "resnet152":
            ways["the same, torch.compile"] = stepper(
                ours, device, channels_last=True, bf16=True, compiled=True
            )
        for step in ways.values():
            step(), step()
        taken = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, step in ways.items():
                taken[way].append(step())
        slowest = statistics.median(taken["float32"])
        for way, seconds in taken.items():
            middle = statistics.median(seconds)
            print(f"{name:<16}{way:<48}{middle * 1e3:>10.0f}{slowest / middle:>15.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What training on CUDA must prove, network by network. Each check also has a small form on the CPU, or says why not."""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from proof import slices
from proof.harness import Context, Skip
from proof.machine import resident_memory, sampled_utilization
from proof.training_access import (
    config,
    device_of,
    make_learner,
    milliseconds,
    needs_training,
    on_device,
    peak_memory,
    train_epoch,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from train.checkpoint import Checkpoint

RESNETS = ("resnet50", "resnet101", "resnet152")
# Trained in this order; early_stopping is base with another number of epochs.
TRAINED = ("base", "big", "augmentation", "batch_norm", "edge", *RESNETS)
LEAST_ACCURACY = 0.5  # on validation after these epochs; chance is about 0.1
PRECISIONS = ("off", "bf16", "fp16")
# After the same few epochs, between two precisions: of the mean loss, relative, and of accuracy on validation.
LOSS_SPREAD, ACCURACY_SPREAD = 0.15, 0.05
EVALUATION_MEMORY = 4096  # MiB at 224 px


def device(ctx: Context) -> None:
    """This PyTorch is built for the GPU, and computes a convolution on it correctly."""
    needs_training(ctx.settings)
    import torch
    from torch.nn import functional as F

    where = device_of(ctx.settings)
    ctx.figures["torch"] = torch.__version__
    name = "cpu"
    if ctx.settings.cuda:
        name = torch.cuda.get_device_name(where)
        capability = torch.cuda.get_device_capability(where)
        built_for = torch.cuda.get_arch_list()
        ctx.figures |= {
            "capability": capability,
            "arch_list": built_for,
            "cuda": torch.version.cuda,
        }
        ctx.figures["bf16"] = torch.cuda.is_bf16_supported(including_emulation=False)
        native = f"sm_{capability[0]}{capability[1]}" in built_for
        ctx.figures["native_code"] = native
        ctx.expect(
            _runs_on(capability, built_for),
            f"PyTorch is built for {built_for}, the GPU is {capability}",
        )
    x = torch.ones(2, 1, 4, 4, device=where, requires_grad=True)
    total_of: Any = F.conv2d(x, torch.ones(1, 1, 3, 3, device=where)).sum()
    total_of.backward()
    total = float(x.grad.sum()) if x.grad is not None else math.nan
    ctx.expect(total == 72, f"a convolution's gradient sums to {total}, not to 72")
    ctx.figures["device"] = name
    ctx.summary = name
    if ctx.settings.cuda:
        ctx.summary += f", {ctx.figures['capability']} in {', '.join(ctx.figures['arch_list'])}"


def _runs_on(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Whether some code runs there: binaries of the same major version, or PTX of an earlier one."""
    try:
        from train.devices import runs_on
    except ImportError:
        major, minor = capability
        return any(
            f"{kind}_{major}{lower}" in built_for
            for kind in ("sm", "compute")
            for lower in range(minor + 1)
        )
    return runs_on(capability, built_for)


def evaluation(ctx: Context) -> None:
    """Evaluation keeps cuDNN on and TF32 off; its speed."""
    needs_training(ctx.settings)
    import torch

    from train import fit

    data = on_device(ctx, 128 if ctx.settings.quick else 4096)
    images = data["val"][0]
    flags: list[tuple[bool, bool]] = []

    def look(*_: Any) -> None:
        flags.append((torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32))

    parts = []
    for name in ("batch_norm", "resnet50") if ctx.settings.quick else ("batch_norm", "resnet152"):
        network = make_learner(name, ctx.settings).network
        hook = network.register_forward_hook(look)
        fit.evaluate(network, images[:64])
        begun = time.perf_counter()
        logits = fit.evaluate(network, images)
        seconds = time.perf_counter() - begun
        hook.remove()
        ctx.expect(bool(np.isfinite(logits).all()), f"{name}: logits are not finite")
        ctx.figures[name] = {"slices_per_second": len(images) / seconds}
        parts.append(f"{name}: {len(images) / seconds:,.0f} slices/s")
    enabled, tf32 = all(flag[0] for flag in flags), any(flag[1] for flag in flags)
    ctx.figures |= {"cudnn_enabled": enabled, "tf32": tf32}
    ctx.expect(enabled, "cuDNN is off during evaluation")
    ctx.expect(not tf32, "TF32 is on during evaluation")
    ctx.summary = f"cuDNN {'on' if enabled else 'off'}; " + "; ".join(parts)


def host_waits(ctx: Context) -> None:
    """The host never waits for the GPU within an epoch: twice the steps wait no more often."""
    ctx.needs_cuda("torch.cuda.set_sync_debug_mode counts waits on CUDA alone")
    needs_training(ctx.settings)
    import torch

    images, labels = on_device(ctx, 2560)["train"]
    parts = []
    for name, amp in (
        ("batch_norm", "auto"),
        ("resnet50", "auto"),
        ("edge", "auto"),
        ("batch_norm", "fp16"),
    ):
        try:
            how = config(4, amp=amp)
        except Skip as e:
            ctx.figures[f"{name} {amp}"] = f"not run: {e}"
            continue
        learner = make_learner(name, ctx.settings, amp)
        train_epoch(learner, name, (images[:256], labels[:256]), how, 1)
        counted: dict[int, Counter[str]] = {}
        for steps in (10, 20):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    chosen = images[: 128 * steps], labels[: 128 * steps]
                    # not by train_epoch above, which waits at its end
                    _epoch_alone(learner, name, chosen, how, steps)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            counted[steps] = Counter(
                f"{Path(entry.filename).name}:{entry.lineno}"
                for entry in caught
                if "synchroniz" in str(entry.message)
            )
        more = counted[20] - counted[10]
        per_epoch = sum(counted[10].values())
        ctx.figures[f"{name} {amp}"] = {"per_epoch": dict(counted[10]), "per_10_steps": dict(more)}
        ctx.expect(
            not more, f"{name} {amp}: {sum(more.values())} waits in 10 steps, at {', '.join(more)}"
        )
        ctx.expect(per_epoch > 0, f"{name} {amp}: even the end of the epoch was not seen to wait")
        parts.append(f"{name} {amp}: {sum(more.values())} per 10 steps, {per_epoch} per epoch")
    ctx.summary = "; ".join(parts)


def _epoch_alone(
    learner: Any, stage: str, data: tuple[Tensor, Tensor], how: Any, epoch: int
) -> tuple[float, float]:
    from train import fit
    from train.stages import STAGES

    found: tuple[float, float] = fit.train_epoch(
        learner, *data, len(slices.CLASSES), STAGES[stage], how, epoch
    )
    return found


def networks(ctx: Context) -> None:
    """Every network of the ladder: seconds per epoch, GPU utilization, peak memory, accuracy on validation."""
    needs_training(ctx.settings)
    from train import fit
    from train.networks import count_parameters

    data = on_device(ctx, 256 if ctx.settings.quick else None)
    parts, longest = [], 0.0
    for name in TRAINED:
        deep = name in RESNETS
        if ctx.seconds_left() < 1.5 * longest:
            ctx.figures[name] = "not run: time"
            continue
        begun = time.monotonic()
        epochs = (1 if deep else 2) if ctx.settings.quick else (2 if deep else 3)
        how, learner = config(epochs), make_learner(name, ctx.settings)
        count = 32 if deep and ctx.settings.quick else None
        images, labels = data["train"][0][:count], data["train"][1][:count]
        with (
            peak_memory(ctx.settings) as peak,
            sampled_utilization(ctx.settings.device) as utilization,
        ):
            rows = [
                train_epoch(learner, name, (images, labels), how, epoch + 1)
                for epoch in range(epochs)
            ]
        validated = learner.ema.network if learner.ema else learner.network
        answers = fit.evaluate(validated, data["val"][0][:count]).argmax(1)
        accuracy = float((answers == data["val"][1][:count].cpu().numpy()).mean())
        ctx.figures[name] = {
            "parameters": count_parameters(learner.network),
            "slices": len(images),
            "seconds_per_epoch": [row[2] for row in rows],
            "losses": [row[0] for row in rows],
            "val_accuracy": accuracy,
            "utilization_percent": utilization.figures(),
            "peak_mib": peak["mib"],
        }
        ctx.expect(all(math.isfinite(row[0]) for row in rows), f"{name}: the loss is not finite")
        if not ctx.settings.quick:
            ctx.expect(
                rows[-1][0] < rows[0][0],
                f"{name}: the loss does not fall, {rows[0][0]:.3f} to {rows[-1][0]:.3f}",
            )
            ctx.expect(accuracy >= LEAST_ACCURACY, f"{name}: {accuracy:.3f} on validation")
        used = utilization.figures()
        busy = f" {used['median']}%" if used else ""
        parts.append(f"{name} {rows[-1][2]:.2f} s{busy}")
        longest = max(longest, time.monotonic() - begun)
    ctx.summary = "per epoch: " + "; ".join(parts)


def precisions(ctx: Context) -> None:
    """fp32, bf16 and fp16 train alike: losses finite, losses and accuracies near each other."""
    needs_training(ctx.settings)
    from train import fit

    quick = ctx.settings.quick
    data = on_device(ctx, 128 if quick else None)
    labels = data["val"][1].cpu().numpy()
    found: dict[str, tuple[float, float, float]] = {}
    stage, epochs = "batch_norm", 2
    for amp in PRECISIONS:
        how, learner = config(epochs, amp=amp), make_learner(stage, ctx.settings, amp)
        rows = [
            train_epoch(learner, stage, data["train"], how, epoch + 1) for epoch in range(epochs)
        ]
        accuracy = float((fit.evaluate(learner.network, data["val"][0]).argmax(1) == labels).mean())
        found[amp] = rows[-1][0], accuracy, rows[-1][2]
        ctx.figures[amp] = {
            "losses": [row[0] for row in rows],
            "val_accuracy": accuracy,
            "seconds": rows[-1][2],
        }
        ctx.expect(all(math.isfinite(row[0]) for row in rows), f"{amp}: the loss is not finite")
    for amp, (loss, accuracy, _) in found.items():
        off = abs(loss - found["off"][0]) / found["off"][0]
        ctx.expect(off <= LOSS_SPREAD, f"{amp}: the loss is {off:.0%} from fp32's")
        if not quick:  # after a few steps on a few slices accuracies are noise
            lost = abs(accuracy - found["off"][1])
            ctx.expect(lost <= ACCURACY_SPREAD, f"{amp}: accuracy is {lost:.3f} from fp32's")
    ctx.summary = "; ".join(
        f"{amp}: loss {loss:.3f}, accuracy {accuracy:.3f}, {seconds:.2f} s"
        for amp, (loss, accuracy, seconds) in found.items()
    )


def deterministic(ctx: Context) -> None:
    """With deterministic algorithms a stage ends in the same bits, run twice, and stopped and resumed."""
    needs_training(ctx.settings)
    import torch

    from proof.training_access import as_data

    torch.use_deterministic_algorithms(True)
    quick = ctx.settings.quick
    data = as_data(slices.load(ctx.settings.data_dir).first(64 if quick else 2048))
    verdicts = []
    for name in ("edge",) if quick else ("batch_norm", "edge", "resnet50"):
        how = config(2 if quick else 3)
        runs = {
            kind: _finished(name, data, how, ctx, kind, interrupted=kind == "resumed")
            for kind in ("first", "again", "resumed")
        }
        for kind in ("again", "resumed"):
            far = _weights_apart(runs["first"].state, runs[kind].state)
            same = far == 0 and _losses(runs["first"]) == _losses(runs[kind])
            ctx.figures[f"{name} {kind}"] = {"equal": same, "largest_difference": far}
            ctx.expect(same, f"{name} {kind}: weights differ by {far:.1e}")
            verdicts.append(f"{name} {kind} {'equal' if same else 'DIFFERS'}")
    ctx.summary = "; ".join(verdicts)


def _finished(
    stage: str, data: Any, how: Any, ctx: Context, kind: str, interrupted: bool
) -> Checkpoint:
    """The finished checkpoint of a stage; `interrupted`: stopped as by a signal after its first epoch, and resumed."""
    from train import fit
    from train.stages import STAGES

    directory = ctx.settings.scratch / "deterministic" / f"{stage}-{kind}"
    given = STAGES[stage], data, how, device_of(ctx.settings), directory

    def interrupt(line: str) -> None:
        if "epoch   1/" in line:
            raise KeyboardInterrupt

    if interrupted:
        try:
            fit.fit(*given, report=interrupt)
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError(f"{stage} could not be stopped after its first epoch")
        if not (directory / "checkpoint.pt").exists():
            raise AssertionError(f"{stage} left no checkpoint when it was stopped")
    return fit.fit(*given, report=lambda line: None)


def _weights_apart(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((first[key].double() - second[key].double()).abs().max()) for key in first)


def _losses(finished: Checkpoint) -> list[float]:
    return [row["train_loss"] for row in finished.history]


def small_maps(ctx: Context) -> None:
    """SmallMapConv2d as shipped, as a plain convolution and as a matrix product: seconds per step, equal logits."""
    needs_training(ctx.settings)
    from torch import nn

    from train import fit
    from train.networks import SmallMapConv2d

    quick = ctx.settings.quick
    batch, steps = (16, 1) if quick else (128, 20)
    turns = (1,) if quick else (1, 2)
    data = on_device(ctx, batch * steps)
    variants = {
        "shipped": SmallMapConv2d.forward,
        "plain": nn.Conv2d.forward,
        "product": _matrix_product,
    }
    parts = []
    for name in ("resnet50",) if quick else ("resnet50", "resnet152"):
        logits, times = {}, {}
        for variant, forward in variants.items():
            with _patched(SmallMapConv2d, forward):
                learner = make_learner(name, ctx.settings)
                logits[variant] = fit.evaluate(learner.network, data["val"][0][: 2 * batch])
                how = config(2, batch_size=batch)
                seconds = [
                    train_epoch(learner, name, data["train"], how, epoch)[2] for epoch in turns
                ]
                times[variant] = seconds[-1] / steps * 1e3
        scale = float(np.abs(logits["plain"]).max())
        far = {v: float(np.abs(logits[v] - logits["plain"]).max()) / scale for v in variants}
        ctx.figures[name] = {"ms_per_step": times, "relative_difference": far}
        for variant, value in far.items():
            ctx.expect(
                value <= 1e-3,
                f"{name}: {variant} differs from the plain convolution by {value:.1e}",
            )
        parts.append(f"{name} ms: " + ", ".join(f"{v} {ms:.1f}" for v, ms in times.items()))
    ctx.summary = "; ".join(parts)


class _patched:
    """`SmallMapConv2d.forward` replaced within the block."""

    def __init__(self, kind: type[nn.Module], forward: Any) -> None:
        self.kind, self.replacement, self.before = kind, forward, kind.forward

    def __enter__(self) -> None:
        self.kind.forward = self.replacement

    def __exit__(self, *_: object) -> None:
        self.kind.forward = self.before


def _matrix_product(conv: Any, x: Tensor) -> Tensor:
    """What SmallMapConv2d computes on the CPU, on any device."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    stride, height, width = conv.stride[0], *x.shape[2:]
    if conv.kernel_size == (1, 1):
        pixels = x[:, :, ::stride, ::stride].permute(0, 2, 3, 1)
        return F.linear(pixels, conv.weight.flatten(1)).permute(0, 3, 1, 2)
    if max(height, width) > 2:
        return nn.Conv2d.forward(conv, x)
    taps = conv.weight.to(x.dtype).permute(0, 2, 3, 1)  # (O, 3, 3, C)
    rows = [slice(1 - i, 1 - i + height) for i in range(0, height, stride)]
    columns = [slice(1 - j, 1 - j + width) for j in range(0, width, stride)]
    dense = torch.cat([taps[:, i, j].flatten(1) for i in rows for j in columns])  # (H' W' O, H W C)
    y = F.linear(x.permute(0, 2, 3, 1).flatten(1), dense)
    return y.view(len(x), len(rows), len(columns), -1).permute(0, 3, 1, 2)


def augmentation(ctx: Context) -> None:
    """Milliseconds to augment a batch of 128 slices, by the study's recipe and by edge's."""
    needs_training(ctx.settings)
    import torch

    from train.augment import normalize
    from train.stages import STAGES

    images, labels = (part[:128] for part in on_device(ctx, 128)["train"])
    x, turns = normalize(images), 5 if ctx.settings.quick else 50
    for name in ("augmentation", "edge"):
        recipe = STAGES[name].recipe_for("axial")
        generator = torch.Generator(x.device).manual_seed(1)
        changed, _ = recipe.prepare(x.clone(), labels, len(slices.CLASSES), generator)
        ctx.expect(bool(torch.isfinite(changed).all()), f"{name}: augmented slices are not finite")
        ctx.expect(not torch.equal(changed, x), f"{name}: augmentation changes nothing")
        ctx.figures[name] = milliseconds(
            lambda recipe=recipe, generator=generator: recipe.prepare(  # type: ignore[misc]
                x.clone(), labels, len(slices.CLASSES), generator
            ),
            ctx.settings,
            turns,
        )
    ctx.summary = ", ".join(
        f"{name} {ctx.figures[name]:.2f} ms" for name in ("augmentation", "edge")
    )


def evaluation_memory(ctx: Context) -> None:
    """Memory of evaluation at 224 px stays bounded, however many slices are given."""
    needs_training(ctx.settings)
    import torch

    from train import fit
    from train.networks import make_network

    quick = ctx.settings.quick
    name, count = ("resnet50", 24) if quick else ("resnet152", 1024)
    network: Any = make_network(name, classes=len(slices.CLASSES), size=224, seed=1)
    network.to(device_of(ctx.settings), memory_format=torch.channels_last)
    images = np.random.default_rng(1).integers(0, 256, (count, 224, 224), np.uint8)
    largest = 0

    def look(_: Any, given: tuple[Tensor]) -> None:
        nonlocal largest
        largest = max(largest, len(given[0]))

    network.register_forward_pre_hook(look)
    before, begun = resident_memory(), time.perf_counter()
    with peak_memory(ctx.settings) as peak:
        logits = fit.evaluate(network, images)
    seconds = time.perf_counter() - begun
    mib = peak["mib"] if peak["mib"] is not None else resident_memory() - before
    ctx.figures |= {
        "network": name,
        "slices": count,
        "largest_batch": largest,
        "mib": mib,
        "seconds": seconds,
    }
    ctx.expect(bool(np.isfinite(logits).all()), "logits are not finite")
    ctx.expect(largest < count, f"all {count} slices were evaluated at once")
    ctx.expect(mib <= EVALUATION_MEMORY, f"evaluation took {mib} MiB")
    ctx.summary = (
        f"{name}, {count} slices: batches of {largest}, {mib} MiB, {count / seconds:,.0f} slices/s"
    )


def checkpoint(ctx: Context) -> None:
    """Seconds to write a checkpoint, and that it reads back the same."""
    needs_training(ctx.settings)
    import torch

    from train import record

    name = "resnet50" if ctx.settings.quick else "resnet152"
    learner = make_learner(name, ctx.settings)
    train_epoch(learner, name, on_device(ctx, 128)["train"], config(1), 1)
    state = learner.network.state_dict()
    path = ctx.settings.scratch / "checkpoint.pt"
    begun = time.perf_counter()
    record.save_checkpoint(
        path, {"network": name, "state": state, "optimiser": learner.optimizer.state_dict()}
    )
    seconds, megabytes = time.perf_counter() - begun, path.stat().st_size / 1e6
    read = record.load_checkpoint(path)["state"]
    path.unlink()
    ctx.expect(
        all(torch.equal(read[key], state[key].cpu()) for key in state),
        "it does not read back the same",
    )
    ctx.figures |= {"network": name, "megabytes": megabytes, "seconds": seconds}
    ctx.summary = f"{name}: {megabytes:.0f} MB in {seconds:.2f} s"

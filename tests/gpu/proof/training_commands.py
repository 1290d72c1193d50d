"""Checks of the whole command, `python -m train.all`, through subprocesses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from proof.harness import Context, Skip
from proof.machine import Done, run_command, smi_id
from proof.training_access import needs_command

REFUSAL = "needs a GPU per process"
# Epochs at most, so that most of the ladder fits into the time that is left on one H100.
LADDER_EPOCHS = ("3", "ensemble=1", "edge=6")


def two_ranks(ctx: Context) -> None:
    """Two processes on one GPU train stages side by side; sharing batches is refused with exit code 2."""
    needs_command(ctx.settings)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    one_gpu = _one_gpu(ctx)
    out = ctx.settings.scratch / "two-ranks"
    command = [
        *torchrun,
        *_train(ctx, out, "--smoke", "--stages", "base,early_stopping", "--max-epochs", "1"),
    ]
    done = run_command(
        command, ctx.seconds_left() / 2, ctx.settings.scratch / "two-ranks.log", one_gpu
    )
    ctx.figures["stages"] = {"exit_code": done.code, "seconds": done.seconds}
    bundle = out / "organamnist" / "bundle" / "manifest.json"
    ctx.expect(done.code == 0 and bundle.exists(), f"--parallel stages: {_ended(done)}")
    ctx.summary = f"--parallel stages: exit code {done.code}"
    if not ctx.settings.cuda:
        ctx.figures["batches"] = "not run: needs a GPU to be refused"
        return
    command = [*torchrun, *_train(ctx, out, "--smoke", "--stages", "base", "--parallel", "batches")]
    done = run_command(command, ctx.seconds_left(), ctx.settings.scratch / "batches.log", one_gpu)
    # torchrun ends with 1 itself, and reports the exit code of the process that failed first
    codes = [int(code) for code in re.findall(r"exitcode *: (-?\d+)", done.output)]
    ctx.figures["batches"] = {
        "exit_codes": codes,
        "seconds": done.seconds,
        "refused": REFUSAL in done.output,
    }
    ctx.expect(
        done.code != 0 and not done.stopped, f"--parallel batches was not refused: {_ended(done)}"
    )
    ctx.expect(
        2 in codes and REFUSAL in done.output,
        f"--parallel batches: exit codes {codes}, {_ended(done)}",
    )
    ctx.summary += f"; --parallel batches: exit codes {codes}"


def ladder(ctx: Context) -> None:
    """The whole ladder from scratch, export and report, as far as time allows."""
    needs_command(ctx.settings)
    out = ctx.settings.scratch / "ladder"
    if ctx.settings.quick:
        options = ["--smoke", "--stages", "base", "--max-epochs", "1", "--precision", "fp32"]
    else:
        options = [text for epochs in LADDER_EPOCHS for text in ("--max-epochs", epochs)]
    limit = ctx.seconds_left() - 12  # for the command to stop in order
    done = run_command(
        _train(ctx, out, *options), limit, ctx.settings.scratch / "ladder.log", _one_gpu(ctx)
    )
    results = out / "organamnist" / "results.json"
    ctx.figures |= {"exit_code": done.code, "seconds": done.seconds, "stopped": done.stopped}
    ctx.figures["epochs"] = _epochs(done.output)
    ctx.figures["device_line"] = next(
        (line for line in done.output.splitlines() if line.startswith("device ")), None
    )
    if results.exists():
        ctx.figures["results"] = json.loads(results.read_text())
    if done.stopped:
        ctx.expect(
            done.code == 143, f"stopped for time, it ended with exit code {done.code} and not 143"
        )
        ctx.expect(bool(ctx.figures["epochs"]), "no epoch was finished in time")
        ctx.summary = f"stopped after {done.seconds:.0f} s: {_reached(ctx.figures['epochs'])}"
        return
    ctx.expect(done.code == 0, _ended(done))
    rows = ctx.figures.get("results", {}).get("stages", [])
    accuracies = [f"{row['name']} {row['test']['accuracy']:.3f}" for row in rows if row.get("test")]
    ctx.expect(bool(accuracies), "no stage was measured on test")
    ctx.summary = "test accuracy: " + ", ".join(accuracies)


def _train(ctx: Context, out: Path, *options: str) -> list[str]:
    """The command's arguments after `python`."""
    device = "cuda" if ctx.settings.cuda else "cpu"
    if ctx.settings.data_dir is None:
        raise Skip("needs --data-dir")
    fixed = [
        "--dataset",
        "organamnist",
        "--data-dir",
        str(ctx.settings.data_dir),
        "--weights",
        "none",
    ]
    return ["-m", "train.all", *fixed, "--out", str(out), "--device", device, *options]


def _one_gpu(ctx: Context) -> dict[str, str]:
    """Variables that hide every GPU but the one that is checked."""
    return {"CUDA_VISIBLE_DEVICES": smi_id(ctx.settings.device)} if ctx.settings.cuda else {}


def _epochs(output: str) -> dict[str, dict[str, Any]]:
    """stage -> the last epoch that the command reported, of how many, and the best accuracy on validation."""
    pattern = re.compile(r"(\w+) +epoch +(\d+)/(\d+) .*best ([\d.]+)")
    return {
        stage: {"epoch": int(epoch), "of": int(most), "val_accuracy": float(best)}
        for stage, epoch, most, best in pattern.findall(output)
    }


def _reached(epochs: dict[str, dict[str, Any]]) -> str:
    return ", ".join(f"{stage} {row['epoch']}/{row['of']}" for stage, row in epochs.items())


def _ended(done: Done) -> str:
    """How a command ended, with its last line that says something."""
    lines = [line.strip() for line in done.output.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line.lower()]
    how = "stopped for time" if done.stopped else f"exit code {done.code}"
    return f"{how}, {(errors or lines or ['no output'])[-1][:200]}"

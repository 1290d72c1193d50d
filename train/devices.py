"""The device and precision of training: chosen from the command line, after a check that this PyTorch runs on it."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional as F

from train.errors import RunError
from train.parallel import environment_number

# The last PyTorch on the package index whose default build runs on sm_50 to sm_90 and on drivers for CUDA 12, and the
# last onnxruntime-gpu whose extras bring CUDA 12.
PINNED = "pip install torch==2.7.1 torchvision==0.22.1 'onnxruntime-gpu[cuda,cudnn]==1.26.0'"
NEWEST = "pip install --upgrade torch torchvision"


def choose_device(requested: str, *, deterministic: bool = False) -> torch.device:
    """Choose the device of this process. Under torchrun each process gets its own GPU if there are enough.

    Args:
        requested: `auto`, `cpu`, `cuda` or `cuda:N`. `auto` uses the CPU if no GPU is usable, with a warning on standard error.
        deterministic: whether to use deterministic algorithms; takes effect only before CUDA is first used.

    Returns:
        A device that ran a convolution.

    Raises:
        RunError: there is no such GPU, or this PyTorch does not run on it.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if requested == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        reason = why_no_gpu()
        if requested != "auto":
            raise RunError(f"--device {requested}: {reason}")
        print(f"train: warning: no GPU is used: {reason}", file=sys.stderr, flush=True)
        return torch.device("cpu")
    count = torch.cuda.device_count()
    _, _, number = requested.partition(":")
    if number and int(number) >= count:
        raise RunError(
            f"--device {requested}: PyTorch finds {count} GPUs; choose from cuda:0 to cuda:{count - 1}"
        )
    device = torch.device("cuda", (int(number) if number else _local_rank()) % count)
    check_gpu(device)
    return device


def _local_rank() -> int:
    """Return the number of this process on this machine; without LOCAL_RANK, its number in the run."""
    local = environment_number("LOCAL_RANK", 0)
    return environment_number("RANK", 0) or 0 if local is None else local


def why_no_gpu(environment: Mapping[str, str] = os.environ) -> str:
    """Explain why `torch.cuda.is_available()` is false, and what to do.

    Args:
        environment: environment variables; by default those of this process.

    Returns:
        One line without a final period.
    """
    if torch.version.cuda is None and torch.version.hip is None:
        return f"this PyTorch ({torch.__version__}) is built for the CPU only; install one built for CUDA: {NEWEST}"
    hidden = environment.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={hidden!r} hides every GPU; unset it"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    # RuntimeError or AssertionError, depending on the version
    except Exception as e:
        text = " ".join(str(e).split())
        if "too old" in text:
            return f"{text.split('. ')[0]}; update the driver, or {PINNED}"
        return text.split(". ")[0].rstrip(".") or type(e).__name__
    return "PyTorch finds no CUDA GPU; does nvidia-smi list one?"


def check_gpu(device: torch.device) -> None:
    """Check that this PyTorch has code for a GPU and runs a kernel on it.

    Raises:
        RunError: it does not; the message contains the command that installs a PyTorch that does.
    """
    name = f"{device} ({torch.cuda.get_device_name(device)})"
    capability = torch.cuda.get_device_capability(device)
    built_for = torch.cuda.get_arch_list()
    if torch.version.hip is None and not runs_on(capability, built_for):
        mismatch = f"{name}: compute capability {capability[0]}.{capability[1]}, but this PyTorch ({torch.__version__})"
        remedy = PINNED if capability < min(_parsed(arch)[1:3] for arch in built_for) else NEWEST
        raise RunError(f"{mismatch} is built for {', '.join(built_for)}; {remedy}")
    try:
        x = torch.ones(2, 1, 4, 4, device=device, requires_grad=True)
        total = F.conv2d(x, torch.ones(1, 1, 3, 3, device=device)).sum()
        total.backward()  # type: ignore[no-untyped-call]
        # 2 slices x 4 outputs x 9 taps
        works = x.grad is not None and float(x.grad.sum()) == 72
    except RuntimeError as e:
        raise RunError(
            f"{name}: cannot run a convolution ({str(e).splitlines()[0]}); {PINNED}"
        ) from e
    if not works:
        raise RunError(f"{name}: computes a wrong convolution; update the driver, or {PINNED}")


def runs_on(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Return whether code built for these architectures runs on a GPU.

    `sm_86` runs on 8.6 and later minor versions of 8. `compute_90` is compiled at load for 9.0 and everything later.
    `sm_90a` runs on exactly 9.0.

    Args:
        capability: the GPU's compute capability, major and minor.
        built_for: architectures as PyTorch lists them; an empty list counts as a match.
    """
    for name in built_for:
        kind, major, minor, suffix = _parsed(name)
        if suffix == "a":
            runs = capability == (major, minor)
        elif kind == "sm" or suffix == "f":
            runs = capability[0] == major and capability[1] >= minor
        else:
            runs = capability >= (major, minor)
        if runs:
            return True
    return not built_for


def _parsed(name: str) -> tuple[str, int, int, str]:
    """Split the name of an architecture: `sm_90a` becomes ("sm", 9, 0, "a")."""
    matched = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
    if matched is None:
        raise RunError(f"PyTorch {torch.__version__}: unknown GPU architecture {name!r}; {PINNED}")
    return matched[1], int(matched[2]), int(matched[3]), matched[4]


def precision(device: torch.device, amp: str = "auto") -> str:
    """Choose the precision of the forward pass of training.

    Args:
        device: where the network is trained.
        amp: a value of --amp. `auto` chooses bf16 if the device supports it natively, else fp32. Other values apply
            to every device, so that a run can continue on another kind of device.

    Returns:
        `bf16` or `fp16` for autocast, or `fp32`.
    """
    if amp != "auto":
        return "fp32" if amp == "off" else amp
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        native = available and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        # on x86 the check above is also true if bfloat16 is emulated
        if platform.machine() in ("x86_64", "AMD64"):
            native = native and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "bf16" if native else "fp32"


def amp_option(precision: str) -> str:
    """Return the value of --amp that gives this precision on every device."""
    return "off" if precision == "fp32" else precision


def device_name(device: torch.device) -> str:
    """Return the name of the device in results and reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def device_line(device: torch.device, amp: str) -> str:
    """Return the first line of a run: the device, its name, the precision."""
    name = device_name(device)
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{device}, {name}, compute capability {major}.{minor}"
    forward = precision(device, amp)
    kind = "full precision" if forward == "fp32" else "mixed precision"
    return f"device  {name}; {kind} ({forward}, --amp {amp})"

"""onnxruntime's errors on CUDA as one short line, with advice.

onnxruntime surrounds the relevant part with about 1,000 characters: C++ signatures, file names, the host name.
"""

import re
from typing import NamedTuple

from ..errors import one_line
from .gpus import driver_version
from .ort import both_wheels_installed, reinstall_text

__all__ = ["advice", "describe", "shorten"]

# The part of onnxruntime's text to report: the first match.
_ESSENTIALS = (
    # onnxruntime's CudaCall: "%s failure %d: %s ; GPU=%d ; hostname=%s ; file=%s ; line=%d ; expr=%s; %s"
    re.compile(
        r"\b(?:CUDA|CUBLAS|CUDNN|CUFFT|CURAND|CUSPARSE|NCCL)\w* failure -?\d+: .*?(?= ; |$)", re.I
    ),
    re.compile(r"Invalid device ID: .*?\(exclusive\)"),
    re.compile(r"Failed to allocate memory for requested buffer of size \d+"),
    re.compile(r"Failed to load (?:shared )?library .*"),
)


class _Advice(NamedTuple):
    """One row of the table.

    Attributes:
        failures: A regular expression for the short text.
        advice: The cause and what to do. {driver} stands for the version of the installed driver after a space, or
            for nothing.
    """

    failures: str
    advice: str


# One row per kind of failure. The first row that matches counts. The numbers are those of cudaError_t.
_ADVICE = (
    _Advice(
        r"CUDA failure 35:",
        "the NVIDIA driver{driver} is too old for this onnxruntime; update the driver, or install the last onnxruntime"
        " for CUDA 12: pip install 'onnxruntime-gpu[cuda,cudnn]<1.27'",
    ),
    _Advice(
        r"CUDA failure 100:",
        "no GPU is visible; check that nvidia-smi lists one and that CUDA_VISIBLE_DEVICES does not hide it",
    ),
    _Advice(
        r"CUDA failure 101:|Invalid device ID",
        "no GPU has this number; cuda:N counts from 0 the GPUs that CUDA_VISIBLE_DEVICES leaves visible",
    ),
    _Advice(
        r"CUDA failure (98|209|222|223):|no kernel image|unsupported PTX|ARCH_MISMATCH",
        "this build of onnxruntime does not support this GPU or driver; install another onnxruntime-gpu, update the"
        " driver, or use device cpu",
    ),
    _Advice(
        r"CUDA failure 2:|CUBLAS\w* failure 3:|ALLOC(ATION)?_FAILED|Failed to allocate memory|out of memory",
        "the GPU is out of memory; use a smaller batch size, or end other processes that nvidia-smi lists",
    ),
    _Advice(
        r"CUDA failure 3:",
        "CUDA cannot be used in a process that was forked after CUDA was first used; start workers with"
        " multiprocessing's 'spawn'",
    ),
    _Advice(
        r"CUDA failure 80[34]:",
        "the NVIDIA driver and its libraries differ; restart the machine after a driver update, and look for another"
        " libcuda.so in LD_LIBRARY_PATH",
    ),
    _Advice(
        r"CUDA failure 46:",
        "another process uses this GPU alone; end it, or change the compute mode (nvidia-smi -c DEFAULT)",
    ),
    _Advice(
        r"CUDA failure (700|702|710|71[4-9]|720):",
        "this process can no longer use CUDA; start it again, and report it if it happens again",
    ),
)
_DEFAULT = "check that nvidia-smi lists a GPU, and install CUDA's libraries with pip install 'organ-infer[gpu]'"


def shorten(error: BaseException | str) -> str:
    """Return the text of an error on one line.

    Args:
        error: What onnxruntime raised, or its text.

    Returns:
        Only `CUDA failure N: text` for a failure in CUDA or its libraries, otherwise the whole text.
    """
    text = one_line(error)
    for pattern in _ESSENTIALS:
        if match := pattern.search(text):
            return match[0]
    return text


def describe(error: BaseException | str) -> str | None:
    """Return the cause of a failure and what to do.

    Args:
        error: What onnxruntime raised, or its text.

    Returns:
        One line, or None if the table does not list the failure.
    """
    text = shorten(error)
    for row in _ADVICE:
        if re.search(row.failures, text, re.I):
            driver = driver_version() if "{driver}" in row.advice else None
            return row.advice.format(driver=f" {driver}" if driver else "")
    return None


def advice(error: BaseException | str = "") -> str:
    """Return what to do if CUDA is available but does not start.

    Args:
        error: What onnxruntime raised, or nothing if it only activated another execution provider.

    Returns:
        One line: the advice for this error, or else general advice.
    """
    if known := describe(error):
        return known
    if both_wheels_installed():
        return f"onnxruntime and onnxruntime-gpu are both installed and overwrite each other; {reinstall_text()}"
    return _DEFAULT

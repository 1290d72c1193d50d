"""The NVIDIA driver and GPUs of this machine, according to the driver's own file and nvidia-smi, if they exist."""

import re
from pathlib import Path

__all__ = ["VISIBLE_VARIABLE", "driver_version", "list_gpus"]

VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
# The longest time that nvidia-smi may take, in seconds.
SECONDS = 10
_DRIVER_FILE = Path("/proc/driver/nvidia/version")


def driver_version() -> str | None:
    """Return the version of the installed NVIDIA driver, or None if there is none."""
    try:
        match = re.search(
            r"Kernel Module\D*?(?:x86_64|aarch64)?\s+(\d+(?:\.\d+)+)", _DRIVER_FILE.read_text()
        )
    except OSError:
        match = None
    if match:
        return match[1]
    rows = _query("driver_version")
    return rows[0] if isinstance(rows, list) and rows else None


def list_gpus() -> list[str] | str:
    """Return the GPUs that nvidia-smi lists.

    Returns:
        One line per GPU with its number, name and memory, or the reason why there is none.
    """
    rows = _query("index,name,memory.total,memory.free")
    if isinstance(rows, str):
        return rows
    gpus = []
    for row in rows:
        number, name, total, free = [*row.split(", "), "?", "?", "?"][:4]
        gpus.append(f"{number}: {name}, {total} MiB, {free} MiB free")
    return gpus or "nvidia-smi lists none"


def _query(fields: str) -> list[str] | str:
    """Return the rows that nvidia-smi prints, or the reason why it prints none."""
    import subprocess

    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        finished = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SECONDS
        )
    except FileNotFoundError:
        return "nvidia-smi is not installed"
    except subprocess.TimeoutExpired:
        return f"nvidia-smi gave no answer in {SECONDS} seconds"
    except OSError as e:
        return f"nvidia-smi cannot be run ({e.strerror})"
    if finished.returncode:
        reason = " ".join((finished.stdout or finished.stderr).split())
        return f"nvidia-smi failed ({reason[:200] or finished.returncode})"
    return [line.strip() for line in finished.stdout.splitlines() if line.strip()]

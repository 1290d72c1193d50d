"""The machine: what is installed, the GPU as nvidia-smi sees it, memory, and commands that are run."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = (
    "numpy",
    "torch",
    "torchvision",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnx",
    "onnxscript",
    "medmnist",
    "scikit-learn",
    "scipy",
)
MIB = 1 << 20


# Packages.


def missing(modules: Sequence[str]) -> list[str]:
    """Which of the modules are not installed; nothing is imported."""
    return [name for name in modules if not _installed(name)]


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (
        ModuleNotFoundError,
        ValueError,
    ):  # its package is missing; a placeholder is in its place
        return False


def use_tree() -> str | None:
    """Make organ_infer importable, and build its extension if there is none.

    The tree's own is preferred, then an installed one, then the tree's after a build.

    Returns:
        None, or one line that says why it cannot be used.
    """
    if absent := missing(["numpy", "PIL"]):
        return f"{', '.join(absent)} not installed; every check needs numpy and Pillow"
    runtime = ROOT / "runtime"
    problem = None
    if not any(runtime.glob("organ_infer/_packing.*so")) and not _installed("organ_infer._packing"):
        problem = _build(runtime)
    built = any(runtime.glob("organ_infer/_packing.*so"))
    paths = [str(ROOT), *([str(runtime)] if built else [])]
    sys.path[:0] = [path for path in paths if path not in sys.path]
    # Children import it from the same place.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [*paths, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    return problem


def _build(runtime: Path) -> str | None:
    """Build the extension into the tree; None, or why it cannot be built."""
    print("organ_infer._packing is not built: running setup.py build_ext --inplace", flush=True)
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    importlib.invalidate_caches()
    if built.returncode == 0 and any(runtime.glob("organ_infer/_packing.*so")):
        return None
    last = (built.stderr.strip() or built.stdout.strip() or "no message").splitlines()[-1]
    return (
        f"organ_infer._packing cannot be built ({last}); it takes Cython, numpy and a C compiler: "
        "python setup.py build_ext --inplace"
    )


def describe() -> dict[str, Any]:
    """Versions and devices, asked for in a process of its own that may import everything."""
    command = [sys.executable, __file__]
    about: dict[str, Any] = {"python": sys.version.split()[0], "commit": commit(), "packages": {}}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            about["packages"][name] = metadata.version(name)
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, IndexError):
        asked = subprocess.run(command, capture_output=True, text=True, timeout=120)
        about |= json.loads(asked.stdout.splitlines()[-1])
    rows = nvidia_smi("name,driver_version,memory.total")
    about["nvidia_smi"] = rows if rows else "no answer"
    return about


def _imported() -> dict[str, Any]:
    """What only imports tell: runs in the child of `describe`."""
    about: dict[str, Any] = {}
    try:
        import organ_infer

        about["organ_infer"] = str(Path(organ_infer.__file__).parent)
        from organ_infer.engine.session import import_onnxruntime

        ort = import_onnxruntime()
        about["onnxruntime"] = {
            "version": ort.__version__,
            "providers": ort.get_available_providers(),
        }
    except Exception as e:
        about["onnxruntime"] = {"error": f"{type(e).__name__}: {e}"}
    try:
        import torch as torch_module

        torch: Any = torch_module
        found: dict[str, Any] = {"version": torch.__version__, "cuda": torch.version.cuda}
        found["cudnn"] = torch.backends.cudnn.version()
        found["cuda_available"] = torch.cuda.is_available()
        if found["cuda_available"]:
            found["devices"] = [
                torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
            ]
            found["arch_list"] = torch.cuda.get_arch_list()
        about["torch"] = found
    except Exception as e:
        about["torch"] = {"error": f"{type(e).__name__}: {e}"}
    return about


def commit() -> str | None:
    """The commit of the tree, with "-dirty" if files differ from it; None outside a repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    try:
        asked = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return asked.stdout.strip() or None


# The GPU, and memory.


def nvidia_smi(query: str, device: str | None = None) -> list[str]:
    """The rows that nvidia-smi answers, of one device or of all; empty without an answer."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    if device is not None:
        command += ["-i", smi_id(device)]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return asked.stdout.splitlines() if asked.returncode == 0 else []


def smi_id(device: str, environment: Mapping[str, str] = os.environ) -> str:
    """nvidia-smi's name of a CUDA device: its number or UUID, through CUDA_VISIBLE_DEVICES."""
    number = int(device.partition(":")[2] or 0)
    visible = [
        name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()
    ]
    return visible[number].strip() if number < len(visible) else str(number)


def gpu_memory(device: str) -> int | None:
    """MiB in use on the whole GPU; None if nvidia-smi does not tell."""
    rows = nvidia_smi("memory.used", device)
    return int(rows[0]) if rows and rows[0].strip().isdecimal() else None


def resident_memory() -> int:
    """MiB of this process that are resident."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // MIB


@dataclass
class Utilization:
    """GPU utilization in percent, sampled five times per second by nvidia-smi."""

    samples: list[int] = field(default_factory=list)

    def figures(self) -> dict[str, int] | None:
        if not self.samples:
            return None
        return {"median": round(statistics.median(self.samples)), "highest": max(self.samples)}


@contextlib.contextmanager
def sampled_utilization(device: str) -> Iterator[Utilization]:
    """Samples while the block runs; stays empty on the CPU and without nvidia-smi."""
    found = Utilization()
    command = ["nvidia-smi", "-i", smi_id(device) if device != "cpu" else "0", "-lms", "200"]
    command += ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    process = None
    if device != "cpu":
        with contextlib.suppress(OSError):
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
    if process is None:
        yield found
        return

    def read() -> None:
        assert process is not None and process.stdout is not None
        for line in process.stdout:
            if line.strip().isdecimal():
                found.samples.append(int(line))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield found
    finally:
        process.terminate()
        process.wait()
        reader.join(5)


# Commands.


@dataclass(frozen=True)
class Done:
    """A command that has ended, or was stopped after its time limit."""

    code: int
    output: str  # standard output and error
    seconds: float
    stopped: bool


def run_command(
    arguments: Sequence[str], limit: float, log: Path, environment: Mapping[str, str] | None = None
) -> Done:
    """Run Python with these arguments in the tree; SIGTERM after `limit` seconds, SIGKILL ten seconds later."""
    begun = time.monotonic()
    variables = os.environ | dict(environment or {})
    with log.open("w+b") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=output, stderr=output, env=variables
        )
        stopped = False
        try:
            process.wait(max(1.0, limit))
        except subprocess.TimeoutExpired:
            stopped = True
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    text = log.read_text(errors="replace")
    return Done(process.returncode, text, time.monotonic() - begun, stopped)


if __name__ == "__main__":
    sys.path.pop(0)
    print(json.dumps(_imported()))

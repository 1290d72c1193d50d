"""organ-infer --check: what is installed, what is granted, and whether the networks answer here as where they were made."""

import ctypes
import os
import platform
import sys
from importlib import import_module
from importlib.metadata import packages_distributions, version
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import TYPE_CHECKING

from ..bundle.files import list_bundle, packaged_bundle
from ..engine.cpu_count import usable_processors
from ..engine.gpus import VISIBLE_VARIABLE, driver_version, list_gpus
from ..engine.graph_cache import describe_cache
from ..engine.installed import installed_version
from ..engine.ort import import_onnxruntime, reinstall_text
from ..errors import InputError, OrganInferError, one_line, printable
from .arguments import Options

if TYPE_CHECKING:
    from ..classifier import OrganClassifier

__all__ = ["check"]


def check(options: Options) -> tuple[list[str], list[str]]:
    """Look at everything, whatever is missing. Returns the report's lines, and one line for each thing that is wrong."""
    report = _Report()
    report.versions()
    able = report.machine(options)
    report.gpus()
    ort = report.onnxruntime()
    whole = report.bundle(options)
    if able and whole and ort is not None:
        report.prediction(options, ort)
    return report.lines, report.wrong


class _Report:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.wrong: list[str] = []

    def say(self, name: str, value: str) -> None:
        self.lines.append(printable(f"{name:<14} {value}"))

    def versions(self) -> None:
        from .. import __version__

        self.say("organ-infer", __version__)
        self.say(
            "Python", f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})"
        )
        for name, module in {"NumPy": "numpy", "Pillow": "PIL"}.items():
            try:
                self.say(name, str(import_module(module).__version__))
            except ImportError as e:
                self.say(name, "missing")
                self.wrong.append(
                    f"{name} cannot be loaded ({one_line(e)}): pip install --force-reinstall {name}"
                )
        found = installed_version("pydicom")
        self.say("pydicom", found or "not installed, DICOM is not read: pip install 'organ-infer[dicom]'")

    def machine(self, options: Options) -> bool:
        """Whether what a prediction needs of this package is there."""
        usable = usable_processors()
        self.say("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
        self.say("processor", f"{_processor()}, {usable} of {os.cpu_count()} usable")
        self.say("threads", str(options.threads or usable))
        self.say("cache", describe_cache())
        try:
            import_module("organ_infer._reading")
            self.say("PNG reader", "built")
        except ImportError:
            self.say("PNG reader", "not built (zlib's header was not found): PNG is read by Pillow")
        try:
            from .._packing import level, levels
        except ImportError as e:
            self.say("packing", "missing")
            self.wrong.append(
                f"the packing extension cannot be loaded ({one_line(e)}): install organ-infer again"
            )
            return False
        except InputError as e:
            self.say("packing", "not as asked for")
            self.wrong.append(str(e))
            return False
        self.say("packing", f"{level()} (this processor has {', '.join(levels())})")
        return True

    def gpus(self) -> None:
        self.say("driver", driver_version() or "no NVIDIA driver found")
        found = list_gpus()
        for line in [found] if isinstance(found, str) else found:
            self.say("GPU", line)
        # Also if it is empty, which hides every GPU.
        if (visible := os.environ.get(VISIBLE_VARIABLE)) is not None:
            self.say("visible GPUs", f"{VISIBLE_VARIABLE}={visible!r}")

    def onnxruntime(self) -> ModuleType | None:
        names = sorted(set(packages_distributions().get("onnxruntime", [])))
        if len(names) > 1:
            self.wrong.append(
                f"{' and '.join(names)} are installed together and hide each other: {reinstall_text()}"
            )
        listed = ", ".join(f"{name} {version(name)}" for name in names) or "of no installed distribution"
        try:
            ort = import_onnxruntime()
        except OrganInferError as e:
            self.say("onnxruntime", f"missing ({listed})" if names else "missing")
            self.wrong.append(str(e))
            return None
        self.say("onnxruntime", f"{ort.__version__} ({listed})")
        self.say("providers", ", ".join(ort.get_available_providers()))
        return ort

    def bundle(self, options: Options) -> bool:
        """Whether the model's files are whole."""
        self.say("bundle", f"{options.bundle}" if options.bundle else f"packaged, {packaged_bundle()}")
        try:
            listed = list_bundle(options.bundle or packaged_bundle())
            listed.verified()
        except OrganInferError as e:
            self.wrong.append(str(e))
            return False
        task = listed.manifest.task
        self.say("model", f"{listed.manifest.name}: {task.dataset}, {task.view}, {len(task.classes)} classes")
        self.say("manifest", f"sha256 {listed.sha256}")
        for entry in listed.manifest.graphs():
            self.say(
                "",
                f"{entry.file}: {entry.stage}, {entry.precision}, {entry.bytes:,} bytes, sha256 {entry.sha256}",
            )
        return True

    def prediction(self, options: Options, ort: ModuleType) -> None:
        """Open the model as a prediction would, and ask it."""
        from ..classifier import OrganClassifier
        from ..engine.cuda import CUDA

        granted: tuple[str, ...] = ()
        begun = perf_counter()
        try:
            with OrganClassifier(
                options.bundle,
                device=options.device,
                threads=options.threads,
                batch_size=options.batch_size,
                cuda_graphs=options.cuda_graphs,
            ) as classifier:
                opened, granted = perf_counter(), classifier.providers
                self.say("device", f"{granted[0]} (asked for: {options.device})")
                for where, placement in classifier.placements:
                    slow = f" (slow: {len(placement.harmful)} of them carry the network's work)"
                    self.say("nodes", f"{where}: {placement}{slow if placement.harmful else ''}")
                self.self_test(classifier, "cuda" if granted[0] == CUDA else "cpu")
                tested = perf_counter()
                self.say(
                    "time",
                    f"{opened - begun:.3f} s to open the model, {tested - opened:.3f} s for the self-test",
                )
        except OrganInferError as e:
            self.wrong.append(str(e))
        if options.device != "cpu" and CUDA in ort.get_available_providers() and CUDA not in granted:
            self.say("CUDA", _why_not(ort))

    def self_test(self, classifier: "OrganClassifier", device: str) -> None:
        """Slices whose answers are known, in one batch and each alone."""
        import numpy as np

        from ..bundle.golden import golden_answers, golden_slices, tolerance

        slices = golden_slices()
        together = classifier.predict_proba(slices)
        alone = np.concatenate([classifier.predict_proba([piece]) for piece in slices])
        known = golden_answers(classifier.manifest, device)
        expected = together if known is None else known
        most = tolerance(classifier.manifest, device)
        apart = max(float(np.abs(found - expected).max()) for found in (together, alone))
        forms = ", ".join(f"{form.stage} {form.precision}" for form in classifier.manifest.forms(device))
        against = (
            "each other, one batch and single slices: none are known" if known is None else "the known ones"
        )
        self.say(
            "self-test",
            f"{forms}: {len(slices)} slices, probabilities within {apart:.1e} of {against} ({most:g} allowed)",
        )
        if apart > most:
            labels = int((alone.argmax(1) != expected.argmax(1)).sum())
            self.wrong.append(
                f"self-test: {forms} on {classifier.providers[0]} answers otherwise than where it was made, by up to"
                f" {apart:.3f} ({most:g} allowed), with another label for {labels} of {len(slices)} slices: try another"
                " onnxruntime, or a bundle of float32 (python -m export.all --precision fp32)"
            )


def _why_not(ort: ModuleType) -> str:
    """What keeps onnxruntime from CUDA, which it offers: the library that the loader misses, where it is one."""
    from ..engine.cuda_errors import advice

    library = Path(getattr(ort, "__file__", None) or "").parent / "capi" / "libonnxruntime_providers_cuda.so"
    try:
        ctypes.CDLL(str(library))
    except OSError as e:
        return f"cannot be loaded ({one_line(e)}): {advice()}"
    return f"its libraries are there, no device was granted: {advice()}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

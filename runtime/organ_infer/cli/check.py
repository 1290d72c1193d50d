"""organ-infer --check: report the environment and run a self-test on the golden slices."""

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

from ..bundle.fast import fast_bundle
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
    """Check as much as possible, even if parts of the installation are missing.

    Returns:
        The lines of the report, and one line per problem.
    """
    report = _Report()
    report.add_versions()
    can_pack = report.add_machine(options)
    report.add_gpus()
    ort = report.add_onnxruntime()
    is_bundle_valid = report.add_bundle(options)
    if can_pack and is_bundle_valid and ort is not None:
        report.add_model(options, ort)
    return report.lines, report.problems


class _Report:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.problems: list[str] = []
        self._is_fast = False

    def add(self, name: str, value: str) -> None:
        self.lines.append(printable(f"{name:<14} {value}"))

    def add_versions(self) -> None:
        from .. import __version__

        self.add("organ-infer", __version__)
        implementation = f"({platform.python_implementation()}, {sys.executable})"
        self.add("Python", f"{platform.python_version()} {implementation}")
        for name, module in {"NumPy": "numpy", "Pillow": "PIL"}.items():
            try:
                self.add(name, str(import_module(module).__version__))
            except ImportError as e:
                self.add(name, "missing")
                self.problems.append(
                    f"{name}: cannot be loaded ({one_line(e)}); run pip install --force-reinstall {name}"
                )
        pydicom = installed_version("pydicom")
        self.add(
            "pydicom", pydicom or "not installed; for DICOM files: pip install 'organ-infer[dicom]'"
        )

    def add_machine(self, options: Options) -> bool:
        """Report the machine. Returns whether the extension that packs slices can be loaded."""
        usable = usable_processors()
        self.add("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
        self.add("processor", f"{_processor_name()}, {usable} of {os.cpu_count()} usable")
        self.add("threads", str(options.threads or usable))
        self.add("cache", describe_cache())
        try:
            import_module("organ_infer._reading")
            self.add("PNG reader", "built")
        except ImportError:
            self.add("PNG reader", "not built (zlib headers were missing); Pillow reads PNG files")
        try:
            from .._packing import level, levels
        except ImportError as e:
            self.add("packing", "missing")
            self.problems.append(
                f"packing extension: cannot be loaded ({one_line(e)}); reinstall organ-infer"
            )
            return False
        except InputError as e:
            self.add("packing", "ORGAN_INFER_SIMD is not valid")
            self.problems.append(str(e))
            return False
        self.add("packing", f"{level()} (available: {', '.join(levels())})")
        return True

    def add_gpus(self) -> None:
        self.add("driver", driver_version() or "no NVIDIA driver found")
        gpus = list_gpus()
        for line in [gpus] if isinstance(gpus, str) else gpus:
            self.add("GPU", line)
        # An empty value is shown too, because it hides every GPU.
        if (visible := os.environ.get(VISIBLE_VARIABLE)) is not None:
            self.add("visible GPUs", f"{VISIBLE_VARIABLE}={visible!r}")

    def add_onnxruntime(self) -> ModuleType | None:
        """Report onnxruntime. Returns the module, or None if it cannot be loaded."""
        names = sorted(set(packages_distributions().get("onnxruntime", [])))
        if len(names) > 1:
            self.problems.append(
                f"{' and '.join(names)}: both are installed and overwrite each other; {reinstall_text()}"
            )
        packages = (
            ", ".join(f"{name} {version(name)}" for name in names) or "not installed as a package"
        )
        try:
            ort = import_onnxruntime()
        except OrganInferError as e:
            self.add("onnxruntime", f"missing ({packages})" if names else "missing")
            self.problems.append(str(e))
            return None
        self.add("onnxruntime", f"{ort.__version__} ({packages})")
        self.add("providers", ", ".join(ort.get_available_providers()))
        return ort

    def add_bundle(self, options: Options) -> bool:
        """Report the bundle. Returns whether all its files are complete and unchanged."""
        self.add(
            "bundle", f"{options.bundle}" if options.bundle else f"{packaged_bundle()} (packaged)"
        )
        try:
            listed = list_bundle(options.bundle or packaged_bundle())
            listed.verified()
            used = fast_bundle(listed) if options.fast else listed
        except OrganInferError as e:
            self.problems.append(str(e))
            return False
        task = listed.manifest.task
        self.add(
            "model",
            f"{used.manifest.name}: {task.dataset}, {task.view}, {len(task.classes)} classes",
        )
        if listed.manifest.is_smoke:
            self.add("warning", "from a smoke run, its answers mean nothing; train without --smoke")
        count, fast = len(listed.manifest.members), listed.manifest.fast
        self._is_fast = used.only is not None
        if self._is_fast:
            self.add("fast", f"only {used.only} is used, 1 of {count} networks (--fast)")
        elif fast is not None:
            self.add("fast", f"all {count} networks are used; with --fast only {fast.stage}")
        plausibility = used.manifest.plausibility
        if plausibility is not None:
            self.add(
                "plausibility",
                f"output {plausibility.output}, warning below {plausibility.threshold:.6g}",
            )
        self.add("manifest", f"sha256 {listed.sha256}")
        for entry in listed.manifest.graphs():
            self.add(
                "",
                f"{entry.file}: {entry.stage}, {entry.precision}, {entry.bytes:,} bytes, sha256 {entry.sha256}",
            )
        return True

    def add_model(self, options: Options, ort: ModuleType) -> None:
        """Open the model as for classification, and run the self-test."""
        from ..engine.cuda import CUDA
        from .model import open_classifier

        # The golden answers are those of the slices as stored, without augmentation.
        plain = options._replace(orientation=None, tta=False)
        providers: tuple[str, ...] = ()
        start = perf_counter()
        try:
            with open_classifier(plain) as classifier:
                opened, providers = perf_counter(), classifier.providers
                self.add("device", f"{providers[0]} (requested: {options.device})")
                for where, placement in classifier.placements:
                    slow = f" (slow: {len(placement.harmful)} of them are compute-intensive)"
                    self.add("nodes", f"{where}: {placement}{slow if placement.harmful else ''}")
                self.add_self_test(classifier, "cuda" if providers[0] == CUDA else "cpu")
                tested = perf_counter()
                self.add(
                    "time",
                    f"{opened - start:.3f} s to open the model, {tested - opened:.3f} s for the self-test",
                )
        except OrganInferError as e:
            self.problems.append(str(e))
        if (
            options.device != "cpu"
            and CUDA in ort.get_available_providers()
            and CUDA not in providers
        ):
            self.add("CUDA", _why_no_cuda(ort))

    def add_self_test(self, classifier: "OrganClassifier", device: str) -> None:
        """Compare the probabilities of the golden slices, in one batch and one by one, with the golden answers.

        Without golden answers in the bundle, the slices one by one are compared with the batch.
        """
        import numpy as np

        from ..bundle.golden import (
            FAST_METRICS,
            METRICS,
            golden_answers,
            golden_orientation,
            golden_slices,
            tolerance,
        )

        slices = golden_slices()
        batch = classifier.predict_proba(slices)
        singles = np.concatenate([classifier.predict_proba([piece]) for piece in slices])
        within = FAST_METRICS if self._is_fast else METRICS
        golden = golden_answers(classifier.manifest, device, within=within)
        expected = batch if golden is None else golden
        reference = (
            "the answers in one batch (this bundle has no known answers)"
            if golden is None
            else "the known answers"
        )
        allowed = tolerance(classifier.manifest, device)
        differences = [np.abs(answers - expected).max() for answers in (batch, singles)]
        orientation = classifier._slice_orientations(slices)
        if orientation is not None:
            alone = [classifier._slice_orientations([piece]) for piece in slices]
            golden_rows = golden_orientation(classifier.manifest, device, within=within)
            known = orientation if golden_rows is None else golden_rows
            each = np.concatenate([rows for rows in alone if rows is not None])
            differences += [np.abs(answers - known).max() for answers in (orientation, each)]
        difference = float(np.max(differences))
        in_use = classifier.manifest.variants(device)
        variants = ", ".join(f"{variant.stage} {variant.precision}" for variant in in_use)
        self.add(
            "self-test",
            f"{variants}: {len(slices)} slices, probabilities within {difference:.1e} of {reference};"
            f" at most {allowed:g} allowed",
        )
        if difference > allowed:
            labels = int((singles.argmax(1) != expected.argmax(1)).sum())
            self.problems.append(
                f"self-test: {variants} on {classifier.providers[0]} differs from {reference} by up to"
                f" {difference:.2g} (at most {allowed:g} allowed), and in {labels} of {len(slices)} labels; try another"
                " version of onnxruntime, or a float32 bundle (python -m export.all --precision fp32)"
            )


def _why_no_cuda(ort: ModuleType) -> str:
    """Explain why onnxruntime offers CUDA but does not use it, for example a library that cannot be loaded."""
    from ..engine.cuda_errors import advice

    library = (
        Path(getattr(ort, "__file__", None) or "").parent
        / "capi"
        / "libonnxruntime_providers_cuda.so"
    )
    try:
        ctypes.CDLL(str(library))
    except OSError as e:
        return f"cannot be loaded ({one_line(e)}); {advice()}"
    return f"the libraries can be loaded, but no device is active; {advice()}"


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

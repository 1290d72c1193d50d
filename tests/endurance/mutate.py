"""Do the tests notice a changed line? `python tests/endurance/mutate.py [TARGET ...]`

Changes one thing at a time in a copy of the tree (tests/endurance/mutants.py) and runs the tests that execute the line until
one fails. Which those are is measured first, a run of the target's test files under coverage: TESTS, and every test file that
imports the target. Prints each survivor with its line before and after, and one row per target. A mutant that hangs
counts as killed. equivalent_mutants.py names those that change nothing.

Exit code 1 if fewer than 90 % of a target's mutants die (95 % in STRICT). Of a sample, exit code 1 if its survivors are too
many for that by a binomial test at 5 %. Takes hours for everything:

    python tests/endurance/mutate.py --changed-since HEAD~5 --most-changed 4 --sample 12      # as CI does
    python tests/endurance/mutate.py train/fit.py --sample 50
"""

import argparse
import ast
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.endurance.mutants import Mutant, mutants_of  # noqa: E402

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # it forks
# A mutant that hangs is ended after so many seconds, and so many times what its tests take without it.
LIMIT_SECONDS, LIMIT_TIMES = 30, 5
GOAL, STRICT_GOAL = 0.9, 0.95
NOTHING = 77
PRELOADED = (
    "numpy",
    "PIL.Image",
    "onnx",
    "onnxruntime",
    "hypothesis",
    "pytest",
    "_pytest.assertion.rewrite",
    "torch",
    "torchvision",
    "scipy.optimize",
    "sklearn.metrics",
    "matplotlib.figure",
    "jinja2",
)
PACKAGES = ("train", "export", "runtime")
STRICT = (
    "train/metrics.py",
    "train/calibration.py",
    "export/temperature.py",
    "export/golden.py",
    "runtime/organ_infer/bundle/golden.py",
    "runtime/organ_infer/evaluation/bootstrap.py",
    "runtime/organ_infer/evaluation/calibration.py",
    "runtime/organ_infer/evaluation/evaluate.py",
    "runtime/organ_infer/images/orientation.py",
    "runtime/organ_infer/engine/ensemble.py",
)
BUNDLES = (
    "test_bundle",
    "test_tampering",
    "test_manifest_fields",
    "test_hostile_graphs",
)
# test files by target, beside those that import it
TESTS: dict[str, tuple[str, ...]] = {
    "export/average.py": (
        "test_export",
        "test_variants",
    ),
    "export/calibrated.py": ("test_bundle_writing", "test_two_heads"),
    "export/console.py": ("test_console",),
    "export/golden.py": ("test_check", "test_two_heads"),
    "export/quantize.py": ("test_variants", "test_two_heads"),
    "export/temperature.py": (
        "test_metrics",
        "test_temperature",
    ),
    "ext/packing.pyx": ("test_packing", "test_sampling"),
    "runtime/organ_infer/cli/arguments.py": (
        "test_cli",
        "test_cli_arguments",
    ),
    "runtime/organ_infer/box_files.py": ("test_boxes",),
    "runtime/organ_infer/csv_rows.py": ("test_boxes", "test_labels"),
    "runtime/organ_infer/evaluation/arguments.py": ("test_evaluation",),
    "runtime/organ_infer/evaluation/bootstrap.py": ("test_evaluation",),
    "runtime/organ_infer/evaluation/calibration.py": ("test_evaluation", "test_metrics"),
    "runtime/organ_infer/evaluation/collection.py": ("test_labels",),
    "runtime/organ_infer/evaluation/evaluate.py": ("test_evaluation",),
    "runtime/organ_infer/evaluation/labels.py": ("test_labels",),
    "runtime/organ_infer/evaluation/text.py": ("test_cli_evaluation",),
    "runtime/organ_infer/report/evaluation_section.py": ("test_predictions_page",),
    "runtime/organ_infer/report/page.py": ("test_predictions_page",),
    "runtime/organ_infer/report/rows.py": ("test_predictions_page",),
    "runtime/organ_infer/report/thumbnails.py": ("test_predictions_page",),
    "runtime/organ_infer/page/parts.py": ("test_audit_page", "test_predictions_page"),
    "runtime/organ_infer/page/pictures.py": ("test_predictions_page",),
    "runtime/organ_infer/cli/review.py": ("test_cli_evaluation", "test_cli_report"),
    "runtime/organ_infer/cli/whole_file.py": ("test_cli_report",),
    "runtime/organ_infer/cli/boxes.py": ("test_boxes",),
    "runtime/organ_infer/images/arrays.py": ("test_frames",),
    "runtime/organ_infer/images/boxes.py": ("test_boxes",),
    "runtime/organ_infer/bundle/fast.py": ("test_fast",),
    "runtime/organ_infer/bundle/files.py": BUNDLES,
    "runtime/organ_infer/classifier.py": (
        "test_classifier",
        "test_evaluation",
        "test_explain",
        "test_orientation_output",
        "test_paths",
        "test_predict_bytes",
        "test_predict_volume",
        "test_session",
        "test_tta",
    ),
    "runtime/organ_infer/cli/classify.py": (
        "test_cli",
        "test_cli_formats",
        "test_cli_inside",
        "test_paths",
    ),
    "runtime/organ_infer/cli/command.py": (
        "test_cli",
        "test_cli_inside",
        "test_cli_writing",
    ),
    **{
        f"runtime/organ_infer/audit/{name}.py": tests
        for name, tests in {
            **dict.fromkeys(("anatomy", "pictures", "structures"), ("test_audit",)),
            **dict.fromkeys(
                ("evidence", "explanations", "scan"), ("test_audit", "test_audit_implausible")
            ),
            "implausible": ("test_audit_implausible",),
            "directory": ("test_cli_audit", "test_audit_page"),
            "outputs": ("test_cli_audit",),
            "page": ("test_audit_page", "test_cli_audit"),
            "pairs": ("test_audit_pairs", "test_cli_audit"),
            "ranking": ("test_audit_page", "test_cli_audit"),
            "records": ("test_audit_page", "test_cli_audit"),
            "run": ("test_cli_audit", "test_ray_audit"),
        }.items()
    },
    **{
        f"runtime/organ_infer/serve/{name}.py": tests
        for name, tests in {
            "app": ("test_serve",),
            "batcher": ("test_serve_batcher",),
            "bodies": ("test_serve_bodies",),
            "metrics": ("test_serve",),
            "openapi": ("test_serve",),
            "pages": ("test_serve",),
            "protocol": ("test_serve",),
            "replica": ("test_ray_serve",),
            "server": ("test_serve",),
            "together": ("test_serve_batcher",),
        }.items()
    },
    "runtime/organ_infer/cli/serve.py": ("test_serve",),
    "runtime/organ_infer/cli/serve_arguments.py": ("test_serve",),
    "runtime/organ_infer/cli/audit.py": ("test_cli_audit",),
    "runtime/organ_infer/cli/audit_arguments.py": ("test_cli_audit",),
    "runtime/organ_infer/cli/scan_arguments.py": (
        "test_cli_volume",
        "test_cli_audit",
        "test_serve",
    ),
    "runtime/organ_infer/cli/parquet.py": ("test_parquet",),
    "runtime/organ_infer/cli/volume.py": ("test_cli_volume", "test_orientation_output"),
    "runtime/organ_infer/cli/volume_arguments.py": ("test_cli_volume",),
    "runtime/organ_infer/cli/volume_rows.py": ("test_cli_volume", "test_orientation_output"),
    "runtime/organ_infer/cli/formats.py": (
        "test_cli_arguments",
        "test_cli_formats",
        "test_orientation_output",
        "test_rows",
    ),
    "runtime/organ_infer/cli/model.py": (
        "test_check",
        "test_cli_inside",
    ),
    "runtime/organ_infer/cli/signals.py": (
        "test_cli_inside",
        "test_cli_writing",
    ),
    "runtime/organ_infer/cli/hints.py": ("test_cli_paths",),
    "runtime/organ_infer/cli/summary.py": (
        "test_cli_inside",
        "test_plausibility",
    ),
    "runtime/organ_infer/cli/total.py": ("test_cli_inside",),
    "runtime/organ_infer/engine/devices.py": ("test_cuda",),
    "runtime/organ_infer/images/dicom.py": (
        "test_dicom",
        "test_frames",
    ),
    "runtime/organ_infer/images/axes.py": ("test_orientation_output", "test_audit"),
    "runtime/organ_infer/plausibility.py": ("test_plausibility", "test_orientation_output"),
    "runtime/organ_infer/volumes/crops.py": (
        "test_predict_volume",
        "test_volume_crops",
    ),
    "runtime/organ_infer/volumes/boxes.py": ("test_boxes",),
    "runtime/organ_infer/volumes/organs.py": ("test_predict_volume",),
    "runtime/organ_infer/volumes/votes.py": ("test_orientation_output",),
    "runtime/organ_infer/volumes/resampling.py": ("test_resampling",),
    **{
        f"runtime/organ_infer/volumes/{name}.py": ("test_volumes",)
        for name in (
            "contours",
            "dicom_files",
            "grid",
            "hounsfield",
            "masks",
            "metaimage",
            "nifti",
            "nrrd",
            "reading",
            "scan_files",
            "segments",
            "series",
            "voxel_files",
        )
    },
    "runtime/organ_infer/images/scan_formats.py": ("test_volumes",),
    "runtime/organ_infer/engine/ensemble.py": (
        "test_graph_cache",
        "test_classifier",
        "test_cuda",
        "test_session",
    ),
    "runtime/organ_infer/errors.py": (
        "test_classifier",
        "test_cli",
        "test_messages",
        "test_names",
    ),
    "runtime/organ_infer/names.py": (
        "test_names",
        "test_rows",
    ),
    "runtime/organ_infer/images/discovery.py": (
        "test_cli_paths",
        "test_names",
    ),
    "runtime/organ_infer/bundle/json_fields.py": BUNDLES,
    "runtime/organ_infer/bundle/golden.py": ("test_check", "test_two_heads"),
    "runtime/organ_infer/images/registry.py": (
        "test_images",
        "test_slices",
    ),
    "runtime/organ_infer/cli/paths.py": (
        "test_cli",
        "test_cli_paths",
    ),
    "runtime/organ_infer/bundle/manifest.py": BUNDLES,
    "runtime/organ_infer/images/orientation.py": (
        "test_classifier",
        "test_cli_formats",
        "test_dicom",
    ),
    "runtime/organ_infer/cli/output.py": (
        "test_cli",
        "test_cli_inside",
        "test_cli_writing",
        "test_rows",
    ),
    "runtime/organ_infer/images/pillow.py": (
        "test_images",
        "test_slices",
    ),
    "runtime/organ_infer/batching.py": (
        "test_classifier",
        "test_paths",
        "test_reading",
        "test_resample",
    ),
    "runtime/organ_infer/images/truncation.py": (
        "test_damage",
        "test_images",
        "test_truncation",
    ),
    "train/all.py": (
        "test_run",
        "test_whole_run",
    ),
    "train/arguments.py": ("test_training_arguments",),
    "train/calibration.py": (
        "test_results",
        "test_temperature",
    ),
    "train/checkpoint.py": (
        "test_fit",
        "test_training",
    ),
    "train/bundled.py": ("test_bundled",),
    "train/data.py": ("test_data",),
    "train/data_dir.py": ("test_data_dir",),
    "train/disk.py": ("test_disk",),
    "train/download.py": ("test_data",),
    "train/jobs.py": (
        "test_results",
        "test_results_json",
        "test_run",
        "test_stages",
        "test_whole_run",
    ),
    "train/learner.py": (
        "test_edge",
        "test_fit",
    ),
    "runtime/organ_infer/locks.py": (
        "test_data",
        "test_record",
    ),
    "train/networks/init.py": ("test_golden_networks",),
    "train/networks/plain.py": (
        "test_golden_networks",
        "test_networks",
    ),
    "train/networks/edge.py": (
        "test_edge",
        "test_golden_networks",
    ),
    "train/networks/registry.py": (
        "test_golden_networks",
        "test_networks",
    ),
    "train/networks/resnet.py": (
        "test_golden_networks",
        "test_networks",
    ),
    "train/networks/weights.py": ("test_fit",),
    "train/options.py": ("test_train_command",),
    "train/own_data/bundle.py": ("test_own_data",),
    "train/own_data/checks.py": ("test_own_data",),
    "train/own_data/class_names.py": ("test_own_data",),
    "train/own_data/folder.py": ("test_own_data",),
    "train/own_data/load.py": ("test_own_data",),
    "train/own_data/npz.py": ("test_own_data",),
    "train/own_data/request.py": ("test_own_data",),
    "train/own_data/slices.py": ("test_own_data",),
    "train/own_data/splitting.py": ("test_own_data",),
    "train/plan.py": ("test_plan",),
    "train/progress.py": ("test_training",),
    "train/recipes/edge.py": (
        "test_ablation",
        "test_edge",
        "test_edge_augment",
        "test_training",
    ),
    "train/recipes/edge_augment.py": ("test_edge_augment", "test_host_waits"),
    "train/recipes/reference.py": (
        "test_fit",
        "test_training",
    ),
    "train/record.py": (
        "test_fit",
        "test_record",
    ),
    "runtime/organ_infer/__init__.py": ("test_imports",),
    "runtime/organ_infer/cli/exit_codes.py": ("test_cli",),
    "runtime/organ_infer/images/memory.py": ("test_classifier",),
    "runtime/organ_infer/images/png_metadata.py": ("test_host_switches",),
    "train/recipes/base.py": ("test_fit",),
    "runtime/organ_infer/__main__.py": ("test_cli",),
    "train/report/__init__.py": ("test_whole_run",),
    "train/report/comparison.py": (
        "test_report",
        "test_whole_run",
    ),
    "train/report/figures.py": (
        "test_report",
        "test_whole_run",
    ),
    "train/report/measures.py": ("test_whole_run",),
    "train/report/page.py": (
        "test_report",
        "test_whole_run",
    ),
    "train/report/pictures.py": ("test_whole_run",),
    "train/report/published.py": ("test_report_wording",),
    "train/report/run.py": ("test_whole_run",),
    "train/report/wording.py": (
        "test_report",
        "test_whole_run",
    ),
    "train/results_format.py": (
        "test_report",
        "test_results",
    ),
    "train/results.py": (
        "test_results",
        "test_run",
        "test_whole_run",
    ),
    "train/tensorboard.py": ("test_tensorboard",),
    "train/run.py": (
        "test_run",
        "test_whole_run",
    ),
}


# imported nearly everywhere: TESTS alone
TESTS_ALONE = (
    "export/temperature.py",
    "ext/packing.pyx",
    "runtime/organ_infer/__init__.py",
    "train/data.py",
    "train/record.py",
)


def targets() -> list[str]:
    """Every file that can be mutated."""
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return [
        "ext/packing.pyx",
        *sorted(str(path.relative_to(ROOT)) for path in found if _has_code(path)),
    ]


def _has_code(path: Path) -> bool:
    return len(ast.parse(path.read_text()).body) > 1


def changed_since(commit: str) -> list[str]:
    """The targets that differ from a commit, those with the most changed lines first."""
    asked = [
        "git",
        "-C",
        str(ROOT),
        "diff",
        "--numstat",
        "--no-renames",
        commit,
        "--",
        "*.py",
        "*.pyx",
    ]
    rows = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.splitlines()
    lines = {
        name: int(added) + int(removed)
        for added, removed, name in (row.split("\t") for row in rows)
    }
    return sorted(
        (target for target in targets() if target in lines), key=lambda target: -lines[target]
    )


def tests_of(target: str) -> list[str]:
    """The test files of a target: those named in TESTS, and those that import it."""
    module = (
        target.removeprefix("runtime/").removesuffix(".py").removesuffix(".pyx").replace("/", ".")
    )
    module = (
        "organ_infer._packing" if target == "ext/packing.pyx" else module.removesuffix(".__init__")
    )
    package, _, name = module.rpartition(".")
    named = {f"tests/{test}.py" for test in TESTS.get(target, ())}
    if target in TESTS_ALONE:
        return sorted(named)
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=names):
                    imports = any(alias.name == module for alias in names)
                case ast.ImportFrom(module=source, names=names):
                    from_package = source == package and any(alias.name == name for alias in names)
                    imports = source == module or from_package
                case _:
                    imports = False
            if imports:
                named.add(str(path.relative_to(ROOT)))
    return sorted(test for test in named if (ROOT / test).exists())


@dataclass
class Coverage:
    """Which tests execute a line of a target, and how long each takes."""

    tests: list[str]  # the files
    lines: dict[int, list[str]] = field(
        default_factory=dict
    )  # tests, or files whose fixtures execute it
    seconds: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)  # with the unchanged file

    def limit(self, tests: list[str]) -> float:
        """Seconds after which these tests count as hanging."""
        return LIMIT_SECONDS + LIMIT_TIMES * sum(self.seconds.get(test, 0.0) for test in tests)

    def of(self, mutant: Mutant) -> list[str]:
        """The tests that execute a mutant's line, the quickest first; all files if there is none."""
        lines = range(mutant.line, mutant.end + 1)
        chosen = {test for line in lines for test in self.lines.get(line, ())} - {*self.failed}
        return sorted(chosen, key=lambda test: self.seconds.get(test, 1e9)) or self.tests


class Watcher:
    """A pytest plugin: the coverage of a file by test. What a fixture executes counts for all tests of its file, and so
    does the longest setup."""

    def __init__(self, coverage: object) -> None:
        self.coverage = coverage
        self.seconds: Counter[str] = Counter()
        self.setup: Counter[str] = Counter()
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: object) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
        file = report.nodeid.partition("::")[0]
        self.seconds[file] += report.duration
        if report.when == "setup":
            self.setup[file] = max(self.setup[file], report.duration)
        else:
            self.seconds[report.nodeid] += report.duration

    def costs(self) -> dict[str, float]:
        """Seconds of each test with its file's setup, and of each file."""
        return {
            test: own + self.setup[test.partition("::")[0]] * ("::" in test)
            for test, own in self.seconds.items()
        }

    def pytest_runtest_setup(self, item: object) -> None:
        self.coverage.switch_context(item.nodeid.partition("::")[0])

    def pytest_runtest_call(self, item: object) -> None:
        self.coverage.switch_context(item.nodeid)

    def pytest_runtest_teardown(self, item: object) -> None:
        self.coverage.switch_context("")


class Place:
    """A copy of the tree in which mutants are tried, one after another, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("runtime", "ext", "tests", "examples", "docs", "train", "export"):
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
            )
        for name in ("pyproject.toml", "README.md", "setup.py"):
            shutil.copy(ROOT / name, folder)
        self.module = next((folder / "runtime" / "organ_infer").glob("_packing*.so"))
        self.whole = self.module.read_bytes()
        self.objects: list[Path] = []

    def measure(self, target: str) -> Coverage:
        """Run the target's test files once under coverage. Tests that fail with the unchanged file kill nothing."""
        found = Coverage(tests_of(target))
        if not found.tests:
            return found
        made = self.folder / "coverage.json"
        made.unlink(missing_ok=True)
        if pid := os.fork():
            os.waitpid(pid, 0)
        else:
            self._in_child(lambda: self._measured(target, found.tests, made))
        if not made.exists():
            raise SystemExit(
                f"{target}: the tests of the unchanged file do not run to their end: {', '.join(found.tests)}"
            )
        content = json.loads(made.read_text())
        found.lines = {int(line): tests for line, tests in content["lines"].items()}
        found.seconds, found.failed = content["seconds"], content["failed"]
        for test in found.failed:
            print(f"  {target}: left out, it fails with the unchanged file: {test}", flush=True)
        return found

    def _measured(self, target: str, tests: list[str], made: Path) -> int:
        import coverage
        import pytest

        self._enter()
        path = self.folder / target
        watched = coverage.Coverage(data_file=None, include=[str(path)], config_file=False)
        watcher = Watcher(watched)
        watched.start()
        pytest.main([*_quiet(), *tests], plugins=[watcher])
        watched.stop()
        contexts = {} if path.suffix == ".pyx" else watched.get_data().contexts_by_lineno(str(path))
        lines = {line: [test for test in named if test] for line, named in contexts.items()}
        made.write_text(
            json.dumps(
                {"lines": lines, "seconds": watcher.costs(), "failed": sorted(watcher.failed)}
            )
        )
        return 0

    def start(self, mutant: Mutant, tests: list[str]) -> int:
        """The process that tries it: exit code 0 if it survives, NOTHING if it does not compile."""
        path = self.folder / mutant.target
        self.before = path, path.read_text()
        if path.suffix == ".pyx" and not self.objects:
            self.compile_kernels(path.parent)
        path.write_text(mutant.source)
        if pid := os.fork():
            return pid
        self._in_child(lambda: self._tried(path, tests))
        return 0

    def _in_child(self, work: object) -> None:
        code = 1
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            os.dup2(1, 2)
            code = work()
        finally:
            os._exit(code)

    def _enter(self) -> None:
        os.chdir(self.folder)
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]
        sys.path[:0] = [str(self.folder), str(self.folder / "runtime")]
        os.environ["PYTHONPATH"] = str(self.folder / "runtime")
        sys.dont_write_bytecode = True

    def _tried(self, path: Path, tests: list[str]) -> int:
        import pytest

        if path.suffix == ".pyx" and not self.compiled(path):
            return NOTHING
        self._enter()
        return 1 if pytest.main(["-x", *_quiet(), *tests]) else 0

    def restore(self) -> None:
        path, text = self.before
        path.write_text(text)
        if path.suffix == ".pyx":
            self.module.unlink(missing_ok=True)
            self.module.write_bytes(self.whole)

    # As setup.py does it, except for the wrapper's optimization; the kernels are compiled once.

    def compiler(self, ext: Path) -> list[str]:
        import numpy

        macros = [
            "-DNPY_NO_DEPRECATED_API=NPY_1_25_API_VERSION",
            "-DNPY_TARGET_VERSION=NPY_1_25_API_VERSION",
        ]
        flags = ["-fPIC", "-std=c11", "-pthread", "-ffp-contract=off", "-fno-trapping-math", "-w"]
        headers = [ext, numpy.get_include(), sysconfig.get_path("include")]
        return [
            "gcc",
            *flags,
            *macros,
            "-DPy_LIMITED_API=0x030B0000",
            *(f"-I{path}" for path in headers),
        ]

    def compile_kernels(self, ext: Path) -> None:
        for kernel in sorted(ext.glob("*.c")):
            if kernel.stem not in ("packing", "reading", "files", "png"):
                self.objects.append(kernel.with_suffix(".o"))
                subprocess.run(
                    [*self.compiler(ext), "-O2", "-c", kernel, "-o", self.objects[-1]], check=True
                )

    def compiled(self, path: Path) -> bool:
        made, new = path.with_suffix(".c"), self.module.with_suffix(".new")
        name = ["--module-name", "organ_infer._packing"]
        cython = [sys.executable, "-m", "cython", "-3", *name, path, "-o", made]
        link = [*self.compiler(path.parent), "-O0", "-shared", made, *self.objects, "-o", new]
        if any(subprocess.run(step, cwd=path.parent).returncode for step in (cython, link)):
            return False
        new.replace(self.module)  # another file: a library that is mapped is not written over
        return True


def _quiet() -> list[str]:
    return ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no", "--no-header"]


def outcomes(
    mutants: list[Mutant], covered: Coverage, places: list[Place], ends: float
) -> Iterator[tuple[Mutant, str]]:
    """`killed`, `survived` or `nothing` for each, as they end; none is begun after `ends`.

    A mutant that survives the tests which execute its line is tried again by all tests of the files: coverage does not see
    what a test's child processes execute.
    """
    left_out = [f"--deselect={test}" for test in covered.failed]
    waiting = [(mutant, covered.of(mutant)) for mutant in reversed(mutants)]
    free = list(places)
    running: dict[int, tuple[Mutant, list[str], Place, float]] = {}
    while waiting or running:
        while waiting and free and time.monotonic() < ends:
            mutant, tests = waiting.pop()
            place = free.pop()
            running[place.start(mutant, [*tests, *left_out])] = (
                mutant,
                tests,
                place,
                time.monotonic() + covered.limit(tests),
            )
        if not running:
            return
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid not in running:
            for child, (*_, late) in running.items():
                if time.monotonic() > late:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child, signal.SIGKILL)
            time.sleep(0.02)
            continue
        mutant, tests, place, _ = running.pop(pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what a test left running
        place.restore()
        free.append(place)
        outcome = {0: "survived", NOTHING: "nothing"}.get(
            os.waitstatus_to_exitcode(status), "killed"
        )
        if outcome == "survived" and tests != covered.tests:
            waiting.append((mutant, covered.tests))
        else:
            yield mutant, outcome


@dataclass
class Score:
    """What became of a target's mutants."""

    target: str
    total: int
    counts: Counter[str]
    survivors: list[dict[str, object]]
    seconds: float

    @property
    def share(self) -> float:
        tried = self.counts["killed"] + self.counts["survived"]
        return self.counts["killed"] / tried if tried else 1.0

    @property
    def low(self) -> bool:
        goal = STRICT_GOAL if self.target in STRICT else GOAL
        if self.counts.total() == self.total:
            return self.share < goal
        from scipy.stats import binomtest

        alive = self.counts["survived"]
        tried = self.counts["killed"] + alive
        return (
            bool(tried) and binomtest(alive, tried, 1 - goal, alternative="greater").pvalue < 0.05
        )

    def row(self) -> str:
        died, alive = self.counts["killed"], self.counts["survived"]
        if not died + alive:
            return f"{self.target}: no mutant tried of {self.total}, {self.seconds:.0f} s"
        return (
            f"{self.target}: {died} of {died + alive} killed ({self.share:.1%}), {self.counts['equivalent']} equivalent,"
            f" {self.counts['nothing']} not compiled, {self.counts.total()} of {self.total} tried, {self.seconds:.0f} s"
        )


def tried(target: str, places: list[Place], sample: int | None, seed: int, ends: float) -> Score:
    """Try the mutants of a target, or a sample of them, and print those that survive."""
    mutants = mutants_of(target)
    chosen = [mutant for mutant in mutants if not mutant.equivalent]
    counts = Counter(equivalent=len(mutants) - len(chosen))
    random.Random(f"{seed} {target}").shuffle(chosen)
    begun, survivors = time.monotonic(), []
    covered = places[0].measure(target)
    if not covered.tests:
        print(f"  {target}: no test file; name one in TESTS", flush=True)
        counts["survived"] = len(chosen)
        return Score(target, len(mutants), counts, survivors, 0.0)
    for mutant, outcome in outcomes(chosen[:sample], covered, places, ends):
        counts[outcome] += 1
        if outcome == "survived":
            survivors.append({"line": mutant.line, "before": mutant.before, "after": mutant.after})
            print(f"  {target}:{mutant.line}: {mutant.before}  ->  {mutant.after}", flush=True)
    return Score(target, len(mutants), counts, survivors, time.monotonic() - begun)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("targets", nargs="*", metavar="TARGET", help="files or folders (default: all)")
    add("--changed-since", metavar="COMMIT", help="only targets that differ from COMMIT")
    add(
        "--most-changed",
        type=int,
        metavar="N",
        help="with --changed-since: the N most changed targets",
    )
    add("--sample", type=int, metavar="N", help="at most N mutants per target, drawn at random")
    add(
        "--minutes",
        type=float,
        default=float("inf"),
        help="begin no mutant after so many, shared by the targets",
    )
    add("--jobs", type=int, default=2)
    add("--seed", type=int, default=0)
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the scores and the survivors; targets in it are not tried again",
    )
    add("--list", action="store_true", help="only show the mutants")
    options = parser.parse_args()
    asked = [path.rstrip("/") for path in options.targets]
    chosen = changed_since(options.changed_since) if options.changed_since else targets()
    if options.most_changed:
        chosen = chosen[: options.most_changed]
    chosen = [
        t
        for t in chosen
        if not asked or any(t == path or t.startswith(f"{path}/") for path in asked)
    ]
    if options.list:
        for target in chosen:
            for mutant in mutants_of(target):
                print(f"{target}:{mutant.line}: {mutant.before}  ->  {mutant.after}")
        return 0
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    chosen = [target for target in chosen if target not in known]
    begun, low = time.monotonic(), False
    with contextlib.ExitStack() as stack:
        places = [
            Place(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            for _ in range(options.jobs)
        ]
        for name in PRELOADED:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        for i, target in enumerate(chosen):
            left = options.minutes * 60 - (time.monotonic() - begun)
            score = tried(
                target,
                places,
                options.sample,
                options.seed,
                time.monotonic() + left / (len(chosen) - i),
            )
            print(score.row(), flush=True)
            low = low or score.low
            if options.json:
                known[target] = {
                    "share": score.share,
                    "total": score.total,
                    **score.counts,
                    "survivors": score.survivors,
                }
                options.json.write_text(json.dumps(known, indent=1))
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())

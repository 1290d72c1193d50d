"""Past one machine: actors of Ray Data, each with a classifier of its own (extra `ray`).

    from organ_infer.ray import classify

    classify("crops/", "rows/", workers=8)

Every node sees the images, the bundle and the output under the same paths, as on a shared file system, and has this
package installed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .classifier import OrganClassifier
from .errors import BundleError, InputError, OrganInferError, one_line
from .images.discovery import images_below
from .images.registry import SUFFIXES
from .results import ImageFailure, Prediction

__all__ = ["Classify", "classify"]

StrPath = str | os.PathLike[str]

BLOCK = 1024  # paths a task, at most: what is done again when a worker is lost
SPREAD = 4  # tasks a worker, at least
RETRIES = 10  # of a batch whose worker died: an image that kills every worker must not be tried for ever
FILE_ROWS = 1 << 16  # rows a file, about
USAGE_VARIABLE = "RAY_USAGE_STATS_ENABLED"
COLUMNS = ("path", "label", "index", "probability", "organ", "organ_probability", "warnings", "error")


class Classify:
    """For Ray Data's `map_batches`: batches with a column `path` (str, or bytes as of `os.fsencode`) become rows.

    A row a slice (of a file of many: `path#0`, `path#1`, ...): path, label, index, probability, organ,
    organ_probability, warnings, error, and a column a class with its probability. Of an image that cannot be read all
    but path, warnings and error are null; `error` is null for the others. Relative paths start at `base`. options: of
    OrganClassifier.
    """

    def __init__(
        self, bundle: StrPath | None = None, *, base: StrPath = "", device: str = "cpu", **options: Any
    ) -> None:
        self._base = base
        self._classifier = OrganClassifier(bundle, device=device, **options)
        self._schema = _schema(self._classifier.classes)

    def __call__(self, batch: Any) -> Any:
        """A batch of NumPy columns -> pyarrow.Table, a row a slice, in order."""
        names = [os.fsdecode(name) for name in batch["path"]]
        whole = [os.path.join(self._base, name) for name in names]
        rows, at = [], 0
        for result in self._classifier.predict_paths(whole):
            found = result.path or ""
            while found != whole[at] and not found.startswith(f"{whole[at]}#"):
                at += 1  # a file of many slices has many results, path#0, path#1, ...
            rows.append(self._row(names[at] + found[len(whole[at]) :], result))
        return _arrow().Table.from_pylist(rows, schema=self._schema)

    def _row(self, name: str, result: Prediction | ImageFailure) -> dict[str, Any]:
        path = name.encode("utf-8", "backslashreplace").decode()  # a column of text holds no other bytes
        if isinstance(result, ImageFailure):
            return {"path": path, "warnings": [], "error": result.error}
        found = dict(zip(self._classifier.classes, result.probabilities, strict=True))
        return found | {
            "path": path,
            "label": result.label,
            "index": result.index,
            "probability": result.probability,
            "organ": result.organ,
            "organ_probability": result.organ_probability,
            "warnings": list(result.warnings),
            "error": None,
        }


def classify(
    paths: StrPath | Sequence[StrPath],
    out: StrPath,
    *,
    bundle: StrPath | None = None,
    workers: int = 2,
    format: str = "parquet",
    num_cpus: float = 1,
    num_gpus: float = 0,
    **options: Any,
) -> None:
    """Classify images on `workers` actors into the directory `out`, which appears whole or not at all: a row a path,
    a file of many slices has one a slice (`Classify`), in no particular order.

    paths: a sequence of paths, a directory (its images, as the command takes them), or a text file of paths, one a
    line. format: `parquet`, or `jsonl` (the command's lines and `error`, every key in every line). num_cpus, num_gpus:
    an actor's share; it runs on as many threads as CPUs, and on CUDA where it has a share of a GPU. options: of
    OrganClassifier, as orientation or tta.

    A worker that dies is replaced and its batch done again, by Ray Data's own means; the run ends in an error where a
    batch's workers die eleven times. Runs on the
    cluster that this process is connected to, else on RAY_ADDRESS's, else on this machine. Raises OrganInferError.
    """
    if format not in _WRITERS:
        raise InputError(f"format: one of {', '.join(_WRITERS)} expected, found {format!r}")
    for name, value, least in ("workers", workers, 1), ("num_cpus", num_cpus, 0), ("num_gpus", num_gpus, 0):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
            raise InputError(f"{name}: a number of at least {least} expected, found {value!r}")
    if not isinstance(workers, int):
        raise InputError(f"workers: a whole number expected, found {workers!r}")
    target = _vacant(out)
    names = _names(paths)
    ray = _ray()
    threads = max(1, int(num_cpus))
    chosen = None if bundle is None else os.path.abspath(bundle)
    with OrganClassifier(chosen, device="cpu", threads=1, **options) as tried:  # what is wrong is told here
        classes = tried.classes
        _schema(classes)
    size = min(BLOCK, math.ceil(len(names) / (SPREAD * workers)))
    with _cluster(ray), _appearing(target) as building:
        rows = ray.data.from_arrow(_blocks(names, size)).map_batches(
            Classify,
            fn_constructor_kwargs={
                "bundle": chosen,
                "base": os.getcwd(),
                "device": "cuda" if num_gpus else "cpu",
                "threads": threads,
                **options,
            },
            compute=ray.data.ActorPoolStrategy(size=workers),
            batch_size=size,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            ray_remote_args_fn=lambda: {"max_task_retries": RETRIES},
        )
        try:
            _WRITERS[format](rows, str(building), classes)
        except ray.exceptions.RayActorError as e:
            raise OrganInferError(
                f"a worker died {RETRIES + 1} times over the same {size} images or fewer ({_reason(e)}): look for one"
                " that ends the process, or for memory that ran out"
            ) from e
        except ray.exceptions.RayError as e:
            raise OrganInferError(f"Ray could not classify them all: {_reason(e)}") from e


# What comes in.


def _names(paths: StrPath | Sequence[StrPath]) -> list[str]:
    if isinstance(paths, (str, os.PathLike)):
        where = os.fspath(paths)
        if where.lower().endswith(SUFFIXES) and not os.path.isdir(where):
            raise InputError(
                f"a directory, a list of paths or a text file expected, found one image: pass [{where!r}]"
            )
        try:
            names = _images(where) if os.path.isdir(where) else _lines(where)
        except OSError as e:
            raise InputError(f"{where}: cannot be read ({e.strerror})") from e
    else:
        where, names = "paths", [os.fsdecode(path) for path in paths]
    if not names:
        raise InputError(f"{where}: no image in it")
    return names


def _images(directory: str) -> list[str]:
    found = list(images_below(directory, False))
    if wrong := [item.error for item in found if item.error is not None]:
        raise InputError(f"{directory}: {wrong[0]}")
    return [item.path for item in found]


def _lines(file: str) -> list[str]:
    with open(file, "rb") as lines:
        found = (os.fsdecode(line.rstrip(b"\r\n")) for line in lines)
        return [name for name in found if name]


def _blocks(names: list[str], size: int) -> list[Any]:
    """The paths as tables of one column and at most `size` rows, each a task's."""
    column = _arrow().array([os.fsencode(name) for name in names], _arrow().binary())
    table = _arrow().table({"path": column})
    return [table.slice(start, size) for start in range(0, len(names), size)]


# What goes out.


def _schema(classes: Sequence[str]) -> Any:
    """The rows' columns, the same in every batch whatever is null in it. Raises BundleError."""
    taken = sorted({*classes} & {*COLUMNS})
    if taken:
        raise BundleError(
            f"a class is named {taken[0]!r}, as a column of the rows is: rename it in the bundle"
        )
    arrow = _arrow()
    text, number = arrow.string(), arrow.float32()
    kinds = (text, text, arrow.int32(), number, text, number, arrow.list_(text), text)
    return arrow.schema([*zip(COLUMNS, kinds, strict=True), *((name, number) for name in classes)])


def _write_parquet(rows: Any, directory: str, classes: Sequence[str]) -> None:
    rows.write_parquet(directory, min_rows_per_file=FILE_ROWS, ray_remote_args=_BESIDE)


def _write_lines(rows: Any, directory: str, classes: Sequence[str]) -> None:
    class Lines(_ray().data.datasource.BlockBasedFileDatasink):  # type: ignore[misc]
        def write_block_to_file(self, block: Any, file: Any) -> None:
            for row in block.iter_rows(public_row_format=True):
                file.write(_json_line(row, classes))

    sink = Lines(directory, file_format="jsonl", min_rows_per_file=FILE_ROWS)
    rows.write_datasink(sink, ray_remote_args=_BESIDE)


_WRITERS: dict[str, Callable[[Any, str, Sequence[str]], None]] = {
    "parquet": _write_parquet,
    "jsonl": _write_lines,
}
_BESIDE = {"num_cpus": 0}  # writing waits for no CPU: the actors may hold them all


def _json_line(row: dict[str, Any], classes: Sequence[str]) -> bytes:
    numbers = {
        name: None if value is None else float(f"{value:.9g}")  # nine digits name a float32 exactly
        for name, value in row.items()
        if isinstance(value, float) or name in classes
    }
    line = {name: numbers.get(name, row[name]) for name in COLUMNS[:-2]}
    line["probabilities"] = None if row["error"] else {name: numbers[name] for name in classes}
    line |= {name: row[name] for name in COLUMNS[-2:]}
    return (json.dumps(line, ensure_ascii=False) + "\n").encode()


def _vacant(out: StrPath) -> Path:
    """`out` as an absolute path at which nothing is but perhaps an empty directory. Raises InputError."""
    if "://" in os.fspath(out):
        raise InputError(
            f"out: a directory expected, found {os.fspath(out)!r}: mount it, or write the rows yourself"
        )
    path = Path(os.path.abspath(out))
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path}: not empty; name a directory that is not there yet")
    return path


@contextlib.contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A directory beside `target` that takes its place when the block ends, and goes away where it does not."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as e:
        raise InputError(f"{target}: cannot be written ({e.strerror})") from e
    building.chmod(0o755)
    try:
        yield building
        for file in building.iterdir():
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
        if target.exists():
            target.rmdir()
        os.replace(building, target)
    except OSError as e:
        raise OrganInferError(f"{target}: cannot be written ({one_line(e)})") from e
    finally:
        shutil.rmtree(building, ignore_errors=True)


# Ray.


def _ray() -> ModuleType:
    """ray with ray.data. Raises OrganInferError with the command that installs it."""
    try:
        importlib.import_module("ray.data")
    except ImportError as e:
        raise OrganInferError(f"ray cannot be loaded ({one_line(e)}): pip install 'organ-infer[ray]'") from e
    return importlib.import_module("ray")


def _arrow() -> ModuleType:
    return importlib.import_module("pyarrow")  # comes with ray[data]


@contextlib.contextmanager
def _cluster(ray: ModuleType) -> Iterator[None]:
    """Connected to a cluster; to one of its own for the time of the block where there is none."""
    if ray.is_initialized():
        yield
        return
    asked = os.environ.get(USAGE_VARIABLE)
    os.environ[USAGE_VARIABLE] = asked or "0"  # a cluster that starts here reports nothing to anyone
    try:
        ray.init()
    except Exception as e:  # Ray's own have no common base here
        raise OrganInferError(f"no Ray cluster could be started or reached: {_reason(e)}") from e
    finally:
        if asked is None:
            os.environ.pop(USAGE_VARIABLE, None)
    try:
        yield
    finally:
        ray.shutdown()


def _reason(error: BaseException) -> str:
    """What happened in a worker, of a text with tracebacks: Ray's errors keep the first cause nowhere else."""
    text = str(error)
    named = re.search(r"^(?:organ_infer\.errors\.\w+: |(?=[\w.]+Error: ))(.+)$", text, re.MULTILINE)
    return one_line(named[1] if named else text or error)

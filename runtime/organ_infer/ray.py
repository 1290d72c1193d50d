"""Classification, audits and a web service on several machines, by actors of Ray (extra `ray`). Each has its own classifier.

    from organ_infer.ray import audit, classify

    classify("crops/", "rows/", workers=8)
    audit("pairs.csv", "audit/", workers=8)

Every node must have this package installed, and see the images, the bundle and the output under the
same paths, as on a shared file system.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import json
import logging
import math
import operator
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .audit.directory import audit_directory
from .audit.pairs import Pair, pair_directories, read_pairs
from .audit.records import record_line
from .audit.run import AuditRun, ScanAuditor, identity_of
from .classifier import OrganClassifier
from .errors import (
    BundleError,
    InputError,
    OrganInferError,
    escape_bytes,
    one_line,
    short_repr,
)
from .files import atomic_directory
from .images.discovery import images_below
from .images.registry import SUFFIXES
from .names import escape_path, path_text
from .results import ImageFailure, Prediction
from .volumes.label_maps import LABEL_MAPS, label_map

if TYPE_CHECKING:
    from .serve.limits import ServiceLimits

__all__ = ["AuditBatch", "Classify", "ClassifyBatch", "audit", "classify", "deployment"]

StrPath = str | bytes | os.PathLike[str]

logger = logging.getLogger("organ_infer")

_EXPECTED_PAIRS = "expected a CSV file, two directories, or (scan, mask[, labels]) per scan"
# paths per task, at most. If a worker dies, its task is repeated.
TASK_PATHS = 1024
# tasks per worker, at least
TASKS_PER_WORKER = 4
# retries of a batch whose worker died. An image that kills every worker must not be tried forever.
RETRIES = 10
# rows per output file, about
FILE_ROWS = 1 << 16
USAGE_VARIABLE = "RAY_USAGE_STATS_ENABLED"
ADDRESS_VARIABLE = "RAY_ADDRESS"
# seconds in which a cluster must answer. Ray itself waits for minutes.
ANSWER_SECONDS = 15.0
# port of Ray Client, for ray://HOST
CLIENT_PORT = 10001
# The first bytes of a client of HTTP/2, with an empty SETTINGS frame. Ray speaks gRPC, which is HTTP/2.
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
COLUMNS = (
    "path",
    "label",
    "index",
    "probability",
    "organ",
    "organ_probability",
    "warnings",
    "error",
)
# The last columns, if the model knows when not to answer.
PLAUSIBILITY_COLUMNS = ("plausibility", "orientation")


class ClassifyBatch:
    """A callable class for Ray Data's `map_batches`: a column of paths becomes rows of results.

    There is one row per slice (`path#0`, `path#1`, ... for a file of many), with the columns path, label,
    index, probability, organ, organ_probability, warnings and error, and one column per class with its
    probability. A model that knows when not to answer adds plausibility and orientation. Paths are escaped as by `organ_infer.escape_path`. If an image cannot be read, all columns
    but path, warnings and error are null. Otherwise error is null.

    Args:
        bundle: The bundle's directory, or None for the packaged bundle.
        base: Directory at which relative paths start.
        device: As for OrganClassifier.
        **options: Further arguments of OrganClassifier.

    Raises:
        BundleError: Also if a class has the name of another column.
        DeviceError: As OrganClassifier.
        InputError: As OrganClassifier.
    """

    def __init__(
        self,
        bundle: StrPath | None = None,
        *,
        base: StrPath = "",
        device: str = "cpu",
        **options: Any,
    ) -> None:
        self._base = path_text(base, "base")
        self._classifier = OrganClassifier(bundle, device=device, **options)
        self._has_plausibility = self._classifier.manifest.plausibility is not None
        self._schema = _schema(self._classifier.classes, self._has_plausibility)

    def __call__(self, batch: Any) -> Any:
        """Classify one batch.

        Args:
            batch: NumPy columns. `path` has str, or bytes as from `os.fsencode`.

        Returns:
            A pyarrow.Table with one row per slice, in order.
        """
        names = [path_text(name, f"path[{i}]") for i, name in enumerate(batch["path"])]
        paths = [os.path.join(self._base, name) for name in names]
        rows, index = [], 0
        for result in self._classifier.predict_paths(paths):
            result_path = result.path or ""
            # a file of many slices has many results, path#0, path#1, ...
            while result_path != paths[index] and not result_path.startswith(f"{paths[index]}#"):
                index += 1
            rows.append(self._row(names[index] + result_path[len(paths[index]) :], result))
        return _arrow().Table.from_pylist(rows, schema=self._schema)

    def _row(self, name: str, result: Prediction | ImageFailure) -> dict[str, Any]:
        # a column of text holds only UTF-8
        path = escape_path(name)
        if isinstance(result, ImageFailure):
            return {"path": path, "warnings": [], "error": escape_bytes(result.error)}
        values: dict[str, Any] = dict(
            zip(self._classifier.classes, result.probabilities, strict=True)
        )
        if self._has_plausibility:
            values |= {"plausibility": result.plausibility, "orientation": result.orientation}
        return values | {
            "path": path,
            "label": result.label,
            "index": result.index,
            "probability": result.probability,
            "organ": result.organ,
            "organ_probability": result.organ_probability,
            "warnings": list(map(escape_bytes, result.warnings)),
            "error": None,
        }


# former name
Classify = ClassifyBatch


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
    """Classify images on several workers and write the rows into a directory.

    The directory appears only when it is complete. It has one row per slice (see ClassifyBatch), in no
    particular order. The run uses the cluster that this process is connected to, else the one at
    RAY_ADDRESS, else it starts one on this machine. A worker that dies is replaced, and its batch is
    repeated. The run ends with an error if the workers of one batch die eleven times.

    Args:
        paths: A sequence of paths, a directory (its images, chosen as by the command), or a text file
            with one path per line.
        out: The directory to write. It must not exist, or be empty.
        bundle: The bundle's directory, or None for the packaged bundle.
        workers: Number of workers (Ray actors).
        format: `parquet`, or `jsonl` (the command's JSON lines with `error`, and all keys in every line).
        num_cpus: CPUs per worker, which are its threads.
        num_gpus: GPUs per worker. Above 0, workers run on CUDA.
        **options: Further arguments of OrganClassifier, such as `orientation`, `tta` or `fast`.

    Raises:
        InputError: If an argument is wrong, or `out` is not empty.
        BundleError: If the bundle cannot be used.
        OrganInferError: If Ray is not installed, or the run fails.
    """
    if not isinstance(format, str) or format not in _WRITERS:
        raise InputError(
            f"format: expected one of {', '.join(_WRITERS)}, found {short_repr(format)}"
        )
    workers = _worker_count(workers)
    num_cpus, num_gpus = _number("num_cpus", num_cpus, 0), _number("num_gpus", num_gpus, 0)
    target = _output_directory(out)
    names = _image_paths(paths)
    ray = _ray()
    bundle = None if bundle is None else _absolute("bundle", bundle)
    # errors in the options are raised here, not in a worker
    with OrganClassifier(bundle, device="cpu", threads=1, **options) as classifier:
        classes = classifier.classes
        _schema(classes, classifier.manifest.plausibility is not None)
    size = min(TASK_PATHS, math.ceil(len(names) / (TASKS_PER_WORKER * workers)))
    constructor_options = {"bundle": bundle, "base": _working_directory(), **options}
    with _cluster(ray), _complete_directory(target) as building:
        rows = _map_batches(
            ray,
            _path_tables(names, size),
            ClassifyBatch,
            constructor_options,
            size=size,
            workers=workers,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
        )
        with _run_errors(ray, size):
            _WRITERS[format](rows, str(building), classes)


class AuditBatch:
    """A callable class for Ray Data's `map_batches`: a column of pairs becomes a column of results.

    Args:
        bundle: The bundle's directory, or None for the packaged bundle.
        margin_mm: Margin around each organ in the plane of the slices, in mm.
        device: As for OrganClassifier.
        **options: Further arguments of OrganClassifier.

    Raises:
        BundleError: As OrganClassifier.
        DeviceError: As OrganClassifier.
        InputError: As OrganClassifier.
    """

    def __init__(
        self,
        bundle: StrPath | None = None,
        *,
        margin_mm: float = 5.0,
        device: str = "cpu",
        **options: Any,
    ) -> None:
        self._auditor = ScanAuditor(OrganClassifier(bundle, device=device, **options), margin_mm)

    def __call__(self, batch: Any) -> Any:
        """Audit one batch.

        Args:
            batch: NumPy columns. `pair` has the texts of `_pair_tables`.

        Returns:
            A pyarrow.Table with the column `line`: the lines of results.jsonl.
        """
        lines = []
        for text in batch["pair"]:
            scan, mask, labels, key = json.loads(str(text))
            lines.append({"line": record_line(self._auditor.audit(Pair(scan, mask, labels), key))})
        arrow = _arrow()
        return arrow.Table.from_pylist(lines, schema=arrow.schema([("line", arrow.string())]))


def audit(
    pairs: StrPath | Sequence[StrPath] | Sequence[Sequence[StrPath]],
    output: StrPath,
    *,
    bundle: StrPath | None = None,
    labels: str = "totalsegmentator",
    margin_mm: float = 5.0,
    fresh: bool = False,
    workers: int = 2,
    num_cpus: float = 1,
    num_gpus: float = 0,
    **options: Any,
) -> None:
    """Audit segmentations on several workers, as `organ-infer audit` does on one machine.

    The directory gets the same files: results.jsonl during the run, report.html and the tables at the end. A
    call with the same arguments continues a run that was interrupted. A scan that cannot be audited is in
    results.jsonl and in the page with its error. The cluster and lost workers are as for `classify`.

    Args:
        pairs: A CSV file with scan,mask[,labels] per line, two directories (scans, masks) in which a scan and
            its mask have the same name, or a sequence of (scan, mask) or (scan, mask, labels).
        output: The directory of the results.
        bundle: The bundle's directory, or None for the packaged bundle.
        labels: Name of a label map, or a CSV file. For pairs without one.
        margin_mm: Margin around each organ in the plane of the slices, in mm.
        fresh: Whether to forget the results in `output` and start over.
        workers: Number of workers (Ray actors).
        num_cpus: CPUs per worker, which are its threads.
        num_gpus: GPUs per worker. Above 0, workers run on CUDA.
        **options: Further arguments of OrganClassifier, such as `tta` or `fast`.

    Raises:
        InputError: If an argument is wrong, or `output` has results of another model or other options.
        BundleError: If the bundle cannot be used.
        OrganInferError: If Ray is not installed, or the run fails. Finished scans stay in `output`.
    """
    workers = _worker_count(workers)
    num_cpus, num_gpus = _number("num_cpus", num_cpus, 0), _number("num_gpus", num_gpus, 0)
    margin_mm = _number("margin_mm", margin_mm, 0)
    target = Path(_absolute("output", path_text(output, "output")))
    listed = _pairs(pairs, labels)
    ray = _ray()
    bundle = None if bundle is None else _absolute("bundle", bundle)
    # errors in the options are raised here, not in a worker
    with OrganClassifier(bundle, device="cpu", threads=1, **options) as classifier:
        identity = identity_of(classifier, margin_mm, bool(options.get("tta", False)))
    call = f"organ_infer.ray.audit({short_repr(pairs)}, {short_repr(os.fspath(output))})"
    with audit_directory(target, identity, fresh=fresh) as directory:
        run = AuditRun(listed, directory, identity, call)
        with run.written():
            if run.pending:
                with _cluster(ray), _run_errors(ray, 1, "audit", "scan"):
                    rows = _map_batches(
                        ray,
                        _pair_tables(run.pending),
                        AuditBatch,
                        {"bundle": bundle, "margin_mm": margin_mm, **options},
                        size=1,
                        workers=min(workers, len(run.pending)),
                        num_cpus=num_cpus,
                        num_gpus=num_gpus,
                    )
                    for row in rows.iter_rows():
                        directory.add_line(row["line"])
            run.write()


def deployment(
    bundle: StrPath | None = None,
    *,
    replicas: int = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    batch_wait: float = 0.002,
    limits: ServiceLimits | None = None,
    **options: Any,
) -> Any:
    """Return the web service of organ-infer serve as an application of Ray Serve, for `ray.serve.run`.

    Each replica has its own classifier, and classifies the requests that wait together. Needs the extras `ray` and
    `serve`, and Ray Serve itself (`pip install 'ray[serve]'`).

    Args:
        bundle: The bundle's directory, or None for the packaged bundle. All nodes must see it.
        replicas: Number of replicas (Ray actors).
        num_cpus: CPUs per replica, which are its threads.
        num_gpus: GPUs per replica. Above 0, replicas run on CUDA.
        batch_wait: Seconds that a request waits for others, at most. Unlike organ-infer serve, a lone request waits, too.
        limits: What is accepted, or None for the defaults of organ-infer serve. Ray's proxy has limits of its own for
            heads and connections.
        **options: Further arguments of OrganClassifier, such as `orientation`, `fast` or `batch_size`.

    Raises:
        InputError: If an argument is wrong.
        BundleError: If the bundle cannot be used.
        OrganInferError: If a package is not installed.
    """
    replicas = _worker_count(replicas, "replicas")
    num_cpus, num_gpus = _number("num_cpus", num_cpus, 0), _number("num_gpus", num_gpus, 0)
    batch_wait = _number("batch_wait", batch_wait, 0)
    bundle = None if bundle is None else _absolute("bundle", bundle)
    serve = _ray_serve()
    # errors in the options are raised here, not in a replica
    OrganClassifier(bundle, device="cpu", threads=1, **options).close()
    from .serve.replica import replica_class

    options = {
        "device": "cuda" if num_gpus else "cpu",
        "threads": max(1, int(num_cpus)),
        **options,
    }
    limits = _limits(limits)
    return serve.deployment(
        replica_class(serve, batch_wait),
        name="organ-infer",
        num_replicas=replicas,
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus},
        max_ongoing_requests=limits.queue,
        # Ray answers more with 503
        max_queued_requests=limits.queue,
    ).bind(bundle, limits, _json_rows, options)


def _limits(limits: ServiceLimits | None) -> ServiceLimits:
    from .serve.limits import ServiceLimits

    if limits is not None and not isinstance(limits, ServiceLimits):
        raise InputError(f"limits: expected ServiceLimits, found {short_repr(limits)}")
    return limits or ServiceLimits()


def _json_rows(classifier: OrganClassifier) -> Any:
    """Return the rows of organ-infer --format jsonl."""
    from .cli.formats import JsonlFormat, RowOptions

    return JsonlFormat(RowOptions(classifier.classes, classifier.manifest.task.organs()))


def _map_batches(
    ray: ModuleType,
    tables: list[Any],
    worker: type,
    constructor_options: dict[str, Any],
    *,
    size: int,
    workers: int,
    num_cpus: float,
    num_gpus: float,
) -> Any:
    """Return the dataset of what the workers make of the tables, of which each is one task."""
    return ray.data.from_arrow(tables).map_batches(
        worker,
        fn_constructor_kwargs={
            "device": "cuda" if num_gpus else "cpu",
            "threads": max(1, int(num_cpus)),
            **constructor_options,
        },
        compute=ray.data.ActorPoolStrategy(size=workers),
        batch_size=size,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        ray_remote_args_fn=lambda: {"max_task_retries": RETRIES},
    )


# Input


def _pairs(pairs: Any, labels: str) -> list[Pair]:
    """Return the pairs with absolute paths.

    Raises:
        InputError: If `pairs` is none of what `audit` takes, or empty.
    """
    if isinstance(pairs, (str, bytes, os.PathLike)):
        listed: Sequence[Pair] = read_pairs(os.fsdecode(pairs), labels)
    else:
        try:
            given = list(pairs)
        except TypeError as e:
            raise InputError(f"pairs: {_EXPECTED_PAIRS}, found {short_repr(pairs)}") from e
        if len(given) == 2 and all(isinstance(each, (str, bytes, os.PathLike)) for each in given):
            scans, masks = map(os.fsdecode, given)
            found = pair_directories(scans, masks, labels)
            for note in found.notes:
                logger.warning("%s", note)
            listed = found.pairs
        else:
            listed = [_pair(each, i, labels) for i, each in enumerate(given)]
    if not listed:
        raise InputError("pairs: no scan given; pass at least one scan with its mask")
    return _distinct(listed)


def _pair(value: Any, index: int, labels: str) -> Pair:
    if isinstance(value, (str, bytes, os.PathLike)) or not isinstance(value, Sequence):
        raise InputError(f"pairs[{index}]: {_EXPECTED_PAIRS}, found {short_repr(value)}")
    if not 2 <= len(value) <= 3:
        raise InputError(f"pairs[{index}]: {_EXPECTED_PAIRS}, found {short_repr(value)}")
    scan, mask, *rest = (path_text(each, f"pairs[{index}]") for each in value)
    own_labels = rest[0] if rest else labels
    label_map(own_labels)
    return Pair(scan, mask, own_labels)


def _distinct(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs with absolute paths. Raise InputError if two are the same."""
    absolute: dict[Pair, int] = {}
    for i, pair in enumerate(pairs):
        labels = pair.labels
        if labels.lower() not in LABEL_MAPS:
            labels = _absolute("labels", labels)
        whole = Pair(_absolute("pairs", pair.scan), _absolute("pairs", pair.mask), labels)
        first = absolute.setdefault(whole, i)
        if first != i:
            raise InputError(f"pairs[{i}]: the same scan and mask as pairs[{first}]; remove one")
    return list(absolute)


def _pair_tables(pairs: Sequence[tuple[Pair, str]]) -> list[Any]:
    """Return one table per pair, with a JSON array of its paths, label map and key."""
    arrow = _arrow()
    # JSON in ASCII holds also the bytes of names that are not UTF-8
    texts = [json.dumps([pair.scan, pair.mask, pair.labels, key]) for pair, key in pairs]
    return [arrow.table({"pair": arrow.array([text], arrow.string())}) for text in texts]


def _number(name: str, value: Any, least: int) -> Any:
    """Return a finite number as int or float, also one of NumPy. A bool is none."""
    number: Any = math.nan
    if isinstance(value, float):
        number = float(value)
    elif not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            number = operator.index(value)
    if not least <= number < math.inf:
        raise InputError(
            f"{name}: expected a number of at least {least}, found {short_repr(value)}"
        )
    return number


def _worker_count(value: Any, name: str = "workers") -> int:
    if isinstance(value, float) and value >= 1:
        raise InputError(f"{name}: expected a whole number, found {short_repr(value)}")
    return int(_number(name, value, 1))


def _working_directory() -> str:
    """Return the directory at which relative paths start, or "" if it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _absolute(name: str, path: StrPath) -> str:
    try:
        return os.path.abspath(path_text(path, name))
    except OSError as e:
        raise InputError(
            f"{name}: a relative path without a working directory ({e.strerror}); pass absolute paths"
        ) from e


def _image_paths(paths: StrPath | Sequence[StrPath]) -> list[str]:
    if isinstance(paths, (str, bytes, os.PathLike)):
        where = os.fsdecode(paths)
        if where.lower().endswith(SUFFIXES) and not os.path.isdir(where):
            raise InputError(
                "paths: expected a directory, a list of paths or a text file, found one image;"
                f" pass [{short_repr(where)}]"
            )
        try:
            names = _paths_in_directory(where) if os.path.isdir(where) else _paths_in_file(where)
        except OSError as e:
            raise InputError(f"{where}: cannot be read ({e.strerror})") from e
    else:
        try:
            iter(paths)
        except TypeError as e:
            raise InputError(
                "paths: expected a directory, a list of paths or a text file,"
                f" found {short_repr(paths)}"
            ) from e
        where = "paths"
        names = [path_text(path, f"paths[{i}]") for i, path in enumerate(paths)]
    if not names:
        raise InputError(f"{where}: contains no images")
    return names


def _paths_in_directory(directory: str) -> list[str]:
    candidates = list(images_below(directory, False))
    if errors := [candidate.error for candidate in candidates if candidate.error is not None]:
        raise InputError(f"{directory}: {errors[0]}")
    return [candidate.path for candidate in candidates]


def _paths_in_file(path: str) -> list[str]:
    with open(path, "rb") as file:
        content = file.read()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{path}: the list is UTF-16; save it as UTF-8")
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [os.fsdecode(line.rstrip(b"\r")) for line in lines if line.rstrip(b"\r")]


def _path_tables(names: list[str], size: int) -> list[Any]:
    """Return the paths as tables of one column and at most `size` rows. Each is one task."""
    column = _arrow().array(list(map(_name_bytes, names)), _arrow().binary())
    table = _arrow().table({"path": column})
    return [table.slice(start, size) for start in range(0, len(names), size)]


def _name_bytes(name: str) -> bytes:
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        # No file can have this name. Its row has the error.
        return name.encode("utf-8", "surrogatepass")


# Output


def _schema(classes: Sequence[str], has_plausibility: bool = False) -> Any:
    """Return the rows' columns, which are the same in every batch, even if all values are null.

    Raises:
        BundleError: If a class has the name of another column.
    """
    more = PLAUSIBILITY_COLUMNS if has_plausibility else ()
    taken = sorted({*classes} & {*COLUMNS, *more})
    if taken:
        raise BundleError(
            f"class {taken[0]!r}: this is the name of another column; rename the class in the bundle"
        )
    arrow = _arrow()
    text, number = arrow.string(), arrow.float32()
    kinds = (text, text, arrow.int32(), number, text, number, arrow.list_(text), text)
    fields = [*zip(COLUMNS, kinds, strict=True), *((name, number) for name in classes)]
    return arrow.schema([*fields, *zip(more, (number, text), strict=False)])


def _write_parquet(rows: Any, directory: str, classes: Sequence[str]) -> None:
    rows.write_parquet(directory, min_rows_per_file=FILE_ROWS, ray_remote_args=_WRITE_RESOURCES)


def _write_lines(rows: Any, directory: str, classes: Sequence[str]) -> None:
    class Lines(_ray().data.datasource.BlockBasedFileDatasink):  # type: ignore[misc]
        def write_block_to_file(self, block: Any, file: Any) -> None:
            for row in block.iter_rows(public_row_format=True):
                file.write(_json_line(row, classes))

    sink = Lines(directory, file_format="jsonl", min_rows_per_file=FILE_ROWS)
    rows.write_datasink(sink, ray_remote_args=_WRITE_RESOURCES)


_WRITERS: dict[str, Callable[[Any, str, Sequence[str]], None]] = {
    "parquet": _write_parquet,
    "jsonl": _write_lines,
}
# Writing does not wait for a CPU, because the workers may hold all of them.
_WRITE_RESOURCES = {"num_cpus": 0}


def _json_line(row: dict[str, Any], classes: Sequence[str]) -> bytes:
    # nine digits are exact for float32
    numbers = {
        name: None if value is None else float(f"{value:.9g}")
        for name, value in row.items()
        if isinstance(value, float) or name in classes
    }
    line = {name: numbers.get(name, row[name]) for name in COLUMNS[:-2]}
    line["probabilities"] = None if row["error"] else {name: numbers[name] for name in classes}
    line |= {name: row[name] for name in COLUMNS[-2:]}
    if not {*PLAUSIBILITY_COLUMNS} & {*classes}:
        line |= {name: numbers.get(name, row[name]) for name in PLAUSIBILITY_COLUMNS if name in row}
    return (json.dumps(line, ensure_ascii=False) + "\n").encode()


def _output_directory(out: StrPath) -> Path:
    """Return `out` as an absolute path.

    Raises:
        InputError: If something other than an empty directory is there.
    """
    name = path_text(out, "out")
    if "://" in name:
        raise InputError(
            f"out: expected a directory, found {short_repr(name)};"
            " mount it, or use ClassifyBatch and write the rows yourself"
        )
    path = Path(_absolute("out", name))
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path}: not empty; pass a directory that does not exist")
    return path


@contextlib.contextmanager
def _complete_directory(target: Path) -> Iterator[Path]:
    """Open `atomic_directory`, and convert its errors to this package's."""
    stack = contextlib.ExitStack()
    try:
        building = stack.enter_context(atomic_directory(target))
    except OSError as e:
        raise InputError(f"{target}: cannot be written ({e.strerror})") from e
    try:
        with stack:
            yield building
    except OSError as e:
        raise OrganInferError(f"{target}: cannot be written ({one_line(e)})") from e


# Ray


def _ray() -> ModuleType:
    """Return ray, with ray.data loaded.

    Raises:
        OrganInferError: If it is not installed, with the command that installs it.
    """
    try:
        importlib.import_module("ray.data")
    except ImportError as e:
        raise OrganInferError(
            f"ray cannot be loaded ({one_line(e)}); pip install 'organ-infer[ray]'"
        ) from e
    return importlib.import_module("ray")


def _ray_serve() -> ModuleType:
    """Return ray.serve.

    Raises:
        OrganInferError: If it or the extra serve is not installed, with the command that installs it.
    """
    try:
        importlib.import_module("starlette.applications")
        return importlib.import_module("ray.serve")
    except ImportError as e:
        raise OrganInferError(
            f"Ray Serve cannot be loaded ({one_line(e)}); pip install 'ray[serve]' 'organ-infer[ray,serve]'"
        ) from e


def _arrow() -> ModuleType:
    # a dependency of ray[data]
    return importlib.import_module("pyarrow")


@contextlib.contextmanager
def _cluster(ray: ModuleType) -> Iterator[None]:
    """Connect to a cluster for the block, or start one if there is none. A connected cluster is kept."""
    if ray.is_initialized():
        yield
        return
    _check_address(os.environ.get(ADDRESS_VARIABLE, ""))
    usage_setting = os.environ.get(USAGE_VARIABLE)
    # a cluster that starts here sends no usage statistics, unless the variable says otherwise
    os.environ[USAGE_VARIABLE] = usage_setting or "0"
    try:
        ray.init()
    except Exception as e:
        # exceptions of ray.init have no common base class
        raise OrganInferError(f"no Ray cluster could be started or reached: {_reason(e)}") from e
    finally:
        if usage_setting is None:
            os.environ.pop(USAGE_VARIABLE, None)
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Check that a Ray cluster may be at an address, within ANSWER_SECONDS.

    Raises:
        OrganInferError: If nothing, or something other than Ray, is there.
    """
    parts = re.fullmatch(r"(ray://)?(\[[^\]]+\]|[^:/\[\]]+)(?::(\d+))?", address)
    # "auto", "local" and malformed addresses are Ray's matter
    if parts is None or not (parts[1] or parts[3]):
        return
    host, port = parts[2].strip("[]"), int(parts[3] or CLIENT_PORT)
    try:
        with socket.create_connection((host, port), timeout=ANSWER_SECONDS) as connection:
            reason = _greeting_error(connection)
    except (OSError, OverflowError, ValueError) as e:
        reason = (
            f"no answer in {ANSWER_SECONDS:g} s" if isinstance(e, TimeoutError) else one_line(e)
        )
    if reason:
        raise OrganInferError(
            f"{ADDRESS_VARIABLE}={address}: no Ray cluster is there ({reason});"
            f" start one, correct {ADDRESS_VARIABLE}, or unset it to run on this machine"
        )


def _greeting_error(connection: socket.socket) -> str:
    """Return why a server does not speak HTTP/2, or an empty string."""
    # an encrypted connection would have to be negotiated first
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return ""
    connection.sendall(HTTP2_HELLO)
    answer = b""
    while len(answer) < 4 and (received := connection.recv(4 - len(answer))):
        answer += received
    # a server begins with SETTINGS, type 4
    return "" if answer[3:] == b"\x04" else "another program answers"


@contextlib.contextmanager
def _run_errors(
    ray: ModuleType, size: int, verb: str = "classify", noun: str = "image"
) -> Iterator[None]:
    """Convert Ray's exceptions to OrganInferError.

    Args:
        ray: The module.
        size: Images or scans per task.
        verb: What the run does, for the message.
        noun: What to.
    """
    try:
        yield
    except ray.exceptions.RayActorError as e:
        raise OrganInferError(
            f"a worker died {RETRIES + 1} times on the same {size} {noun}s or fewer ({_reason(e)});"
            f" look for the {noun} that ends the process, or for a lack of memory"
        ) from e
    except ray.exceptions.RayError as e:
        raise OrganInferError(f"Ray could not {verb} all {noun}s: {_reason(e)}") from e


def _reason(error: BaseException) -> str:
    """Return the first cause in a worker. Ray's exceptions have it only in a text with tracebacks."""
    text = str(error)
    cause = re.search(r"^(?:organ_infer\.errors\.\w+: |(?=[\w.]+Error: ))(.+)$", text, re.MULTILINE)
    return one_line(cause[1] if cause else text or error)

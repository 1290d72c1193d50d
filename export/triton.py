"""python -m export.triton BUNDLE DIR: write a bundle as a model repository of Triton Inference Server (docs/deploy/triton.md).

Each network of the bundle becomes a model. Triton's ensembles route tensors but compute nothing, so one more small graph
averages the networks' probabilities. Clients send their requests to the ensemble, which passes each batch through all
models. The command needs onnx and the runtime, but no PyTorch.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.console import run_bundle_command
from export.triton_config import Port, Serving, Step, ensemble_config, model_config
from organ_infer.bundle.manifest import ORIENTATION_COLUMNS, ORIENTATION_OUTPUT
from organ_infer.bundle.precision import BY_NAME

if TYPE_CHECKING:
    import onnx

    from organ_infer.bundle.files import Manifest, Member

KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}
PRECISIONS = ("listed", *BY_NAME)
# microseconds that a request waits for others to join its batch
DELAY = 500
# The file that keeps the version directory of an ensemble through git, object stores and archives, which know no empty
# directories. Triton lists the directories of a model for its versions and reads no file of an ensemble's version
# (https://github.com/triton-inference-server/core/blob/main/src/model_repository_manager/model_lifecycle.cc). The name is
# not hidden and the file not empty, because some copies leave such files out.
PLACEHOLDER = "placeholder.txt"
PLACEHOLDER_TEXT = "This file keeps the version directory of the ensemble, which would be empty.\n"
# the files that name the classes, and the columns of the orientation
LABELS, ORIENTATION_LABELS = "labels.txt", "orientation_labels.txt"
# largest accepted difference of a probability between the averaging graph and NumPy
MAX_ABS = 1e-5


class TritonError(Exception):
    """A bundle that cannot be written as a model repository. The message is one line."""


@dataclass(frozen=True)
class _Served:
    """A member as Triton serves it.

    Attributes:
        model: The name of its model.
        variant: The file that the model runs.
        tensor: The name of the ensemble's tensor that holds its output.
        extra: The name of the ensemble's tensor that holds each further output, by the name of the output.
    """

    model: str
    variant: Member
    tensor: str
    extra: Mapping[str, str]


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Of the command line. None: sys.argv.

    Returns:
        The exit code: 0 done, 2 nothing could be done.
    """
    return run_bundle_command(lambda: _run(arguments), TritonError)


def _run(arguments: list[str] | None) -> None:
    options = _parse(arguments)
    name = write_repository(
        options.bundle,
        options.directory,
        device=options.device,
        precision=options.precision,
        serving=Serving(KINDS[options.device], options.instances, options.max_batch),
    )
    print(f"{options.directory}: clients request the model {name}")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export.triton",
        description="Write a bundle as a model repository of Triton Inference Server.",
        epilog="Clients send packed float32 slices: docs/deploy/triton.md. Research software, not a medical device.",
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="directory of the bundle")
    add(
        "directory",
        type=Path,
        metavar="DIR",
        help="directory for the model repository, new or empty",
    )
    add("--device", choices=KINDS, default="cpu", help="device of the models (default: cpu)")
    add(
        "--precision",
        choices=PRECISIONS,
        default="listed",
        help="precision of every network (default: listed, the one that the runtime uses on the device)",
    )
    add(
        "--instances",
        type=int,
        default=1,
        metavar="N",
        help="instances per model; on a CPU each has one thread (default: 1)",
    )
    add(
        "--max-batch", type=int, default=64, metavar="N", help="most slices per batch (default: 64)"
    )
    options = parser.parse_args(arguments)
    for name in ("instances", "max_batch"):
        if not 1 <= getattr(options, name) <= 4096:
            parser.error(
                f"--{name.replace('_', '-')}: expected 1 to 4096, found {getattr(options, name)}"
            )
    return options


def write_repository(
    bundle: Path, directory: Path, *, device: str, precision: str, serving: Serving
) -> str:
    """Write a model repository. It appears whole or not at all.

    Args:
        bundle: A directory with manifest.json.
        directory: A new or an empty directory.
        device: `cpu` or `cuda`.
        precision: The precision of every member. `listed` is the variant that the runtime uses on the device.
        serving: How the models are served.

    Returns:
        The name of the model that returns the mean probabilities.

    Raises:
        TritonError: The bundle or the directory cannot be used.
        BundleError: It is not a valid bundle.
        OSError: A file cannot be read or written.
    """
    from organ_infer.bundle.files import open_bundle
    from organ_infer.files import atomic_directory

    if os.path.lexists(directory) and not (directory.is_dir() and not any(directory.iterdir())):
        raise TritonError(f"{directory}: not empty; name a new directory")
    manifest = open_bundle(bundle, device).manifest
    if manifest.is_smoke:
        print(
            f"export: warning: {bundle}: from a smoke run, its answers mean nothing; train without --smoke",
            file=sys.stderr,
        )
    name = _model_name(manifest.name)
    served = _served_members(manifest, name, precision, device)
    names = [name, f"{name}-mean", *(member.model for member in served)]
    # on file systems and in archives that do not distinguish upper and lower case, too
    if len({model.casefold() for model in names}) < len(names):
        raise TritonError(
            f"{bundle}: two models would have the same name ({', '.join(names)}); rename a stage in the bundle"
        )
    kinds = {member.tensor: member.variant.output for member in served}
    orientations = [tensor for member in served for tensor in member.extra.values()]
    mean = _averaging_graph(kinds, len(manifest.task.classes), manifest.temperature, orientations)
    with atomic_directory(directory.absolute()) as building:
        _write_models(building, bundle, manifest, name, served, mean, serving)
    return name


def _served_members(manifest: Manifest, name: str, precision: str, device: str) -> list[_Served]:
    """Choose a variant, a model name and a tensor name for each member."""
    served = []
    for member in manifest.members:
        stage = _model_name(member.stage)
        variant = _variant(member, precision, device)
        extra = {output: f"{stage}_{output}" for output in manifest.extra_outputs()}
        served.append(_Served(f"{name}-{stage}", variant, f"{stage}_{variant.output}", extra))
    return served


def _write_models(
    building: Path,
    bundle: Path,
    manifest: Manifest,
    name: str,
    served: Sequence[_Served],
    mean: bytes,
    serving: Serving,
) -> None:
    """Write the members' models, the averaging model and the ensemble."""
    from organ_infer.images.axes import orientation_names

    size, classes = manifest.input.size, manifest.task.classes
    labels = {LABELS: classes}
    columns = manifest.extra_outputs()
    if columns:
        labels[ORIENTATION_LABELS] = orientation_names(manifest.input.orientation)
    images = Port("images", (1, size, size))
    extra = [Port(output, (count,), ORIENTATION_LABELS) for output, count in columns.items()]
    means = [Port("probabilities", (len(classes),), LABELS), *extra]
    steps = []
    for member in served:
        variant = member.variant
        outputs = [Port(variant.output, (len(classes),), LABELS), *extra]
        content = (bundle / variant.file).read_bytes()
        if hashlib.sha256(content).hexdigest() != variant.sha256:
            raise TritonError(
                f"{bundle / variant.file}: changed while it was read; rerun the command"
            )
        config = model_config(member.model, [images], outputs, serving, DELAY)
        _write_model(building / member.model, config, labels, content)
        tensors = {variant.output: member.tensor, **member.extra}
        steps.append(Step(member.model, {"images": "images"}, tensors))
    member_outputs = [Port(member.tensor, (len(classes),)) for member in served]
    member_outputs += [
        Port(tensor, (columns[output],))
        for member in served
        for output, tensor in member.extra.items()
    ]
    config = model_config(f"{name}-mean", member_outputs, means, serving, 0)
    _write_model(building / f"{name}-mean", config, labels, mean)
    steps.append(
        Step(
            f"{name}-mean",
            {port.name: port.name for port in member_outputs},
            {port.name: port.name for port in means},
        )
    )
    ensemble = ensemble_config(name, images, means, serving, steps)
    _write_model(building / name, ensemble, labels, None)


def _model_name(text: str) -> str:
    """Convert text to a name that is valid in a path, a URL and a configuration. Raises TritonError for a leading dot."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", text)
    if name.startswith("."):
        raise TritonError(
            f"{name!r}: a model name cannot begin with a dot; rename it in the bundle"
        )
    return name


def _variant(member: Member, precision: str, device: str) -> Member:
    """Choose the variant of a member to serve. Raises TritonError if the bundle does not contain it."""
    variants = {variant.precision: variant for variant in (*reversed(member.alternatives), member)}
    if precision == "listed" and device == "cpu":
        return member
    if precision == "listed":
        return min(variants.values(), key=lambda variant: BY_NAME[variant.precision].cuda_rank)
    if precision not in variants:
        raise TritonError(
            f"--precision: {member.stage} has no {precision} variant; choose from {', '.join(sorted(variants))}"
        )
    return variants[precision]


def _write_model(
    folder: Path, config: str, labels: Mapping[str, Sequence[str]], graph: bytes | None
) -> None:
    """Write config.pbtxt, the files of labels and the directory of version 1. That of an ensemble has only PLACEHOLDER."""
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    for file, names in labels.items():
        (folder / file).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    if graph is None:
        (folder / "1" / PLACEHOLDER).write_text(PLACEHOLDER_TEXT, encoding="utf-8")
    else:
        (folder / "1" / "model.onnx").write_bytes(graph)


def _averaging_graph(
    outputs: Mapping[str, str], classes: int, temperature: float, orientations: Sequence[str] = ()
) -> bytes:
    """Create the graph that averages the members' outputs, and compare it with NumPy at batch 1 and 64.

    Args:
        outputs: By input name, its kind: `logits` or `probabilities`.
        classes: Number of classes.
        temperature: Divides logits.
        orientations: The names of the inputs with the members' orientation.

    Returns:
        The ONNX file.

    Raises:
        TritonError: The graph's probabilities differ from NumPy's.
    """
    import onnx
    from onnx import TensorProto, helper

    from export.average import averaging_nodes

    def port(name: str, columns: int = classes) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", columns])

    nodes, weights = averaging_nodes(
        {name: (name, kind) for name, kind in outputs.items()}, temperature, orientations
    )
    inputs, means = [*map(port, outputs)], [port("probabilities")]
    if orientations:
        inputs += [port(name, ORIENTATION_COLUMNS) for name in orientations]
        means.append(port(ORIENTATION_OUTPUT, ORIENTATION_COLUMNS))
    graph = helper.make_graph(nodes, "mean", inputs, means, weights)
    # older servers also read these versions
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    for batch in (1, 64):
        _compare(content, outputs, classes, temperature, batch, orientations)
    return content


def _compare(
    content: bytes,
    outputs: Mapping[str, str],
    classes: int,
    temperature: float,
    batch: int,
    orientations: Sequence[str],
) -> None:
    """Compare the averaging graph with NumPy on random logits and orientations. Raises TritonError."""
    from organ_infer.engine.session import import_onnxruntime

    random = np.random.default_rng(batch)
    inputs, expected = {}, []
    for name, kind in outputs.items():
        logits = random.normal(0, 5, (batch, classes)).astype(np.float32)
        powers = np.exp(logits / np.float64(temperature))
        expected.append(powers / powers.sum(axis=1, keepdims=True))
        inputs[name] = logits if kind == "logits" else expected[-1].astype(np.float32)
    for name in orientations:
        inputs[name] = random.dirichlet(np.ones(ORIENTATION_COLUMNS), batch).astype(np.float32)
    references = {"probabilities": np.mean(expected, axis=0)}
    if orientations:
        references[ORIENTATION_OUTPUT] = np.mean([inputs[name] for name in orientations], axis=0)
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    means = session.run(list(references), inputs)
    # np.max, because max does not pass NaN on
    worst = float(
        np.max([np.abs(a - b).max() for a, b in zip(means, references.values(), strict=True)])
    )
    if not worst <= MAX_ABS:
        raise TritonError(
            f"the averaging graph: probabilities differ from NumPy's by {worst:.1e}; install another onnxruntime"
        )


if __name__ == "__main__":
    sys.exit(main())

"""python -m export.triton BUNDLE DIR: write a bundle as a model repository of Triton Inference Server (docs/deploy/triton.md).

Each member is a model of its own. Triton's ensembles route tensors but compute nothing, so one more small graph averages
the members' probabilities. Clients send their requests to the ensemble, which passes each batch through all models.
Needs onnx and the runtime, no PyTorch.
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

from export.triton_config import Port, Serving, Step, ensemble_config, model_config
from organ_infer.bundle.precision import BY_NAME

if TYPE_CHECKING:
    import onnx

    from organ_infer.bundle.files import Manifest, Member

KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}
PRECISIONS = ("listed", *BY_NAME)
DELAY = 500  # microseconds that a request waits for others to join its batch
MAX_ABS = 1e-5  # largest accepted difference of a probability between the averaging graph and NumPy


class TritonError(Exception):
    """A bundle that cannot be written as a model repository. The message is one line."""


@dataclass(frozen=True)
class _Served:
    """A member as it is served: its model, its variant, and the ensemble's tensor that holds its answer."""

    model: str
    variant: Member
    tensor: str


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Of the command line. None: sys.argv.

    Returns:
        The exit code: 0 done, 2 nothing could be done.
    """
    from organ_infer import OrganInferError

    options = _parse(arguments)
    try:
        name = write_repository(
            options.bundle,
            options.directory,
            device=options.device,
            precision=options.precision,
            serving=Serving(KINDS[options.device], options.instances, options.max_batch),
        )
    except (TritonError, OrganInferError) as e:
        print(f"export: error: {e}", file=sys.stderr)
        return 2
    except OSError as e:
        print(f"export: error: {e.strerror or e}: {e.filename}", file=sys.stderr)
        return 2
    except ImportError as e:
        print(
            f"export: error: {e.name} is not installed: pip install -e '.[train,cpu]'",
            file=sys.stderr,
        )
        return 2
    print(f"{options.directory}: clients request the model {name}")
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export.triton",
        description="Write a bundle as a model repository of Triton Inference Server.",
        epilog="Clients send packed float32 slices: docs/deploy/triton.md. Research software, not a medical device.",
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="a directory with manifest.json")
    add("directory", type=Path, metavar="DIR", help="the repository: a new or an empty directory")
    add("--device", choices=KINDS, default="cpu", help="device of the instances (default: cpu)")
    add(
        "--precision",
        choices=PRECISIONS,
        default="listed",
        help="the variant of every member (default: the one that the runtime uses on the device)",
    )
    add(
        "--instances",
        type=int,
        default=1,
        metavar="N",
        help="instances per model, with one thread each on a CPU (default: 1)",
    )
    add(
        "--max-batch", type=int, default=64, metavar="N", help="most slices per batch (default: 64)"
    )
    options = parser.parse_args(arguments)
    for name in ("instances", "max_batch"):
        if not 1 <= getattr(options, name) <= 4096:
            parser.error(
                f"--{name.replace('_', '-')}: 1 to 4096 expected, found {getattr(options, name)}"
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
        precision: Of every member; `listed` for the variant that the runtime uses on the device.
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
        raise TritonError(f"{directory} is not empty; name a new directory")
    manifest = open_bundle(bundle, device).manifest
    name = _model_name(manifest.name)
    served = _served_members(manifest, name, precision, device)
    names = [name, f"{name}-mean", *(member.model for member in served)]
    if len(set(names)) < len(names):
        raise TritonError(f"{bundle}: two members would have one name: {', '.join(names)}")
    kinds = {member.tensor: member.variant.output for member in served}
    mean = _averaging_graph(kinds, len(manifest.task.classes), manifest.temperature)
    with atomic_directory(directory.absolute()) as building:
        _write_models(building, bundle, manifest, name, served, mean, serving)
    return name


def _served_members(manifest: Manifest, name: str, precision: str, device: str) -> list[_Served]:
    served = []
    for member in manifest.members:
        stage = _model_name(member.stage)
        variant = _variant(member, precision, device)
        served.append(_Served(f"{name}-{stage}", variant, f"{stage}_{variant.output}"))
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
    size, classes = manifest.input.size, manifest.task.classes
    images, probabilities = Port("images", (1, size, size)), Port("probabilities", (len(classes),))
    steps = []
    for member in served:
        variant = member.variant
        answer = Port(variant.output, (len(classes),))
        content = (bundle / variant.file).read_bytes()
        if hashlib.sha256(content).hexdigest() != variant.sha256:
            raise TritonError(f"{bundle / variant.file} changed while it was read")
        config = model_config(member.model, [images], answer, serving, DELAY)
        _write_model(building / member.model, config, classes, content)
        steps.append(Step(member.model, {"images": "images"}, {variant.output: member.tensor}))
    answers = [Port(member.tensor, (len(classes),)) for member in served]
    config = model_config(f"{name}-mean", answers, probabilities, serving, 0)
    _write_model(building / f"{name}-mean", config, classes, mean)
    steps.append(
        Step(
            f"{name}-mean",
            {port.name: port.name for port in answers},
            {"probabilities": "probabilities"},
        )
    )
    ensemble = ensemble_config(name, images, probabilities, serving, steps)
    _write_model(building / name, ensemble, classes, None)


def _model_name(text: str) -> str:
    """A name that is valid in a path, an address and a configuration. Raises TritonError if it would be hidden."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", text)
    if name.startswith("."):
        raise TritonError(f"a model cannot be named {name!r}; rename it in the bundle")
    return name


def _variant(member: Member, precision: str, device: str) -> Member:
    """The variant of a member to serve. Raises TritonError if the bundle does not contain it."""
    variants = {variant.precision: variant for variant in (*reversed(member.alternatives), member)}
    if precision == "listed" and device == "cpu":
        return member
    if precision == "listed":
        return min(variants.values(), key=lambda variant: BY_NAME[variant.precision].cuda_rank)
    if precision not in variants:
        raise TritonError(
            f"member {member.stage} has no {precision} variant, only {', '.join(sorted(variants))}"
        )
    return variants[precision]


def _write_model(folder: Path, config: str, classes: Sequence[str], graph: bytes | None) -> None:
    """Write config.pbtxt, labels.txt and the directory of version 1, which is empty for an ensemble."""
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    if graph is not None:
        (folder / "1" / "model.onnx").write_bytes(graph)


# The averaging graph.


def _averaging_graph(answers: Mapping[str, str], classes: int, temperature: float) -> bytes:
    """Create the graph from the members' answers to `probabilities`, compared with NumPy at batch 1 and 64.

    answers: by input name, `logits` or `probabilities`. Raises TritonError if they differ.
    """
    import onnx
    from onnx import TensorProto, helper

    from export.average import mean_of

    def port(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", classes])

    nodes, weights = mean_of({name: (name, kind) for name, kind in answers.items()}, temperature)
    graph = helper.make_graph(
        nodes, "mean", [*map(port, answers)], [port("probabilities")], weights
    )
    # older servers read these versions too
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    for batch in (1, 64):
        _compare(content, answers, classes, temperature, batch)
    return content


def _compare(
    content: bytes, answers: Mapping[str, str], classes: int, temperature: float, batch: int
) -> None:
    from organ_infer.engine.session import import_onnxruntime

    random = np.random.default_rng(batch)
    inputs, expected = {}, []
    for name, kind in answers.items():
        logits = random.normal(0, 5, (batch, classes)).astype(np.float32)
        powers = np.exp(logits / np.float64(temperature))
        expected.append(powers / powers.sum(axis=1, keepdims=True))
        inputs[name] = logits if kind == "logits" else expected[-1].astype(np.float32)
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    probabilities = session.run(["probabilities"], inputs)[0]
    worst = float(np.abs(probabilities - np.mean(expected, axis=0)).max())
    if not worst <= MAX_ABS:
        raise TritonError(f"the averaging graph's probabilities differ from NumPy's by {worst:.1e}")


if __name__ == "__main__":
    sys.exit(main())

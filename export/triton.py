"""python -m export.triton BUNDLE DIR: a bundle as a model repository of Triton Inference Server (docs/triton.md).

Each member is a model of its own. Triton's ensembles route tensors and compute nothing, so one more small graph takes
the members' answers to their mean probabilities, and the ensemble, which clients ask, sends a batch through all of them.
Needs onnx and the runtime, no PyTorch.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from organ_infer.bundle.files import Member

KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}
PRECISIONS = ("listed", "int8", "fp32", "fp16")
DELAY = 500  # microseconds that a request waits for others to join its batch
MAX_ABS = 1e-5  # of a probability, between the averaging graph and NumPy


class TritonError(Exception):
    """A bundle that cannot be written as a model repository; one line."""


@dataclass(frozen=True)
class Serving:
    """How the models are served: `kind` of Triton's instance groups, how many instances, slices a batch at most."""

    kind: str
    instances: int
    batch: int


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit code: 0 done, 2 nothing could be done."""
    parser = argparse.ArgumentParser(
        prog="python -m export.triton",
        description="Write a bundle as a model repository of Triton Inference Server.",
        epilog="Clients send packed float32 slices: docs/triton.md. Research software, not a medical device.",
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="a directory with manifest.json")
    add("directory", type=Path, metavar="DIR", help="the repository: a new directory, or an empty one")
    add("--device", choices=KINDS, default="cpu", help="what the instances run on (default: cpu)")
    add(
        "--precision",
        choices=PRECISIONS,
        default="listed",
        help="the form of every member (default: what the runtime takes on the device)",
    )
    add(
        "--instances",
        type=int,
        default=1,
        metavar="N",
        help="of each model, one thread each on a CPU (default: 1)",
    )
    add("--max-batch", type=int, default=64, metavar="N", help="slices a batch, at most (default: 64)")
    options = parser.parse_args(arguments)
    for name in ("instances", "max_batch"):
        if not 1 <= getattr(options, name) <= 4096:
            parser.error(f"--{name.replace('_', '-')}: 1 to 4096 expected, found {getattr(options, name)}")
    from organ_infer import OrganInferError

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
        print(f"export: error: {e.name} is not installed: pip install -e '.[train,cpu]'", file=sys.stderr)
        return 2
    print(f"{options.directory}: clients ask {name}")
    return 0


def write_repository(bundle: Path, directory: Path, *, device: str, precision: str, serving: Serving) -> str:
    """Write the repository, whole or not at all; the name of the model that answers with the mean probabilities.

    Raises TritonError, BundleError, OSError.
    """
    from organ_infer.bundle.files import open_bundle

    if os.path.lexists(directory) and not (directory.is_dir() and not any(directory.iterdir())):
        raise TritonError(f"{directory} is not empty: name a directory that is not there yet")
    manifest = open_bundle(bundle, device).manifest
    name = _name(manifest.name)
    forms = {_name(member.stage): _form(member, precision, device) for member in manifest.members}
    names = [name, f"{name}-mean", *(f"{name}-{stage}" for stage in forms)]
    if len(set(names)) < len(manifest.members) + 2:
        raise TritonError(f"{bundle}: two members would have one name: {', '.join(names)}")
    tensors = {stage: f"{stage}_{form.output}" for stage, form in forms.items()}
    kinds = {tensors[stage]: form.output for stage, form in forms.items()}
    mean = _averaging_graph(kinds, len(manifest.task.classes), manifest.temperature)
    directory = directory.absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.parent))
    building.chmod(0o755)
    try:
        size, classes = manifest.input.size, manifest.task.classes
        images, row = ("images", (1, size, size)), (len(classes),)
        answer = ("probabilities", row)
        steps: list[Step] = []
        for stage, form in forms.items():
            model = f"{name}-{stage}"
            config = _model(model, [images], (form.output, row), serving, DELAY)
            content = (bundle / form.file).read_bytes()
            if hashlib.sha256(content).hexdigest() != form.sha256:
                raise TritonError(f"{bundle / form.file} changed while it was read")
            _write(building / model, config, classes, content)
            steps.append((model, {"images": "images"}, {form.output: tensors[stage]}))
        model = f"{name}-mean"
        config = _model(model, [(tensor, row) for tensor in tensors.values()], answer, serving, 0)
        _write(building / model, config, classes, mean)
        steps.append(
            (model, {tensor: tensor for tensor in tensors.values()}, {"probabilities": "probabilities"})
        )
        _write(building / name, _ensemble(name, images, answer, serving, steps), classes, None)
        if directory.exists():
            directory.rmdir()
        os.replace(building, directory)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return name


def _name(text: str) -> str:
    """Plain enough for a directory, an address and a configuration. Raises TritonError for a hidden one."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", text)
    if name.startswith("."):
        raise TritonError(f"a model cannot be named {name!r}: rename it in the bundle")
    return name


def _form(member: Member, precision: str, device: str) -> Member:
    """The form of a member to serve. Raises TritonError where the bundle does not carry it."""
    from organ_infer.bundle.precision import BY_NAME

    forms = {form.precision: form for form in (*reversed(member.alternatives), member)}
    if precision == "listed":
        return member if device == "cpu" else min(forms.values(), key=lambda f: BY_NAME[f.precision].cuda_rank)
    if precision not in forms:
        raise TritonError(f"member {member.stage} has no {precision} form, only {', '.join(sorted(forms))}")
    return forms[precision]


def _write(folder: Path, config: str, classes: Sequence[str], graph: bytes | None) -> None:
    """One model: config.pbtxt, labels.txt, and version 1, which an ensemble has too, but empty."""
    (folder / "1").mkdir(parents=True)
    files = {"config.pbtxt": config.encode(), "labels.txt": "".join(f"{name}\n" for name in classes).encode()}
    if graph is not None:
        files["1/model.onnx"] = graph
    for name, content in files.items():
        with (folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


# The averaging graph.


def _averaging_graph(answers: Mapping[str, str], classes: int, temperature: float) -> bytes:
    """Members' answers to `probabilities`; compared with NumPy, at batch 1 and 64, before it is used. Raises
    TritonError.

    answers: the input's name and whether it holds `logits` or `probabilities`, of each member.
    """
    import onnx
    from onnx import TensorProto, helper

    from export.average import mean_of

    def port(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", classes])

    nodes, weights = mean_of({name: (name, kind) for name, kind in answers.items()}, temperature)
    graph = helper.make_graph(nodes, "mean", [*map(port, answers)], [port("probabilities")], weights)
    # versions that older servers read too
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    for batch in (1, 64):
        _compare(content, answers, classes, temperature, batch)
    return content


def _compare(
    content: bytes, answers: Mapping[str, str], classes: int, temperature: float, batch: int
) -> None:
    from organ_infer.engine.session import import_onnxruntime

    random = np.random.default_rng(batch)
    given, expected = {}, []
    for name, kind in answers.items():
        logits = random.normal(0, 5, (batch, classes)).astype(np.float32)
        powers = np.exp(logits / np.float64(temperature))
        expected.append(powers / powers.sum(axis=1, keepdims=True))
        given[name] = logits if kind == "logits" else expected[-1].astype(np.float32)
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found = session.run(["probabilities"], given)[0]
    worst = float(np.abs(found - np.mean(expected, axis=0)).max())
    if not worst <= MAX_ABS:
        raise TritonError(f"the averaging graph's probabilities differ from NumPy's by {worst:.1e}")


# config.pbtxt: the text form of ModelConfig, in triton-inference-server/common's protobuf/model_config.proto.

Port = tuple[str, tuple[int, ...]]  # a tensor's name and its shape without the batch
Step = tuple[
    str, dict[str, str], dict[str, str]
]  # model, its inputs and its outputs as tensors of the ensemble


def _model(name: str, inputs: Sequence[Port], output: Port, serving: Serving, delay: int) -> str:
    threads = 'parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n'
    return (
        f'name: "{name}"\nplatform: "onnxruntime_onnx"\n'
        + _ports(inputs, output, serving)
        + f"dynamic_batching {{ max_queue_delay_microseconds: {delay} }}\n"
        + f"instance_group [ {{ kind: {serving.kind} count: {serving.instances} }} ]\n"
        + (threads if serving.kind == "KIND_CPU" else "")
        + "".join(_warmup(inputs, batch) for batch in sorted({1, serving.batch}))
    )


def _ensemble(name: str, images: Port, output: Port, serving: Serving, steps: Sequence[Step]) -> str:
    def maps(which: str, tensors: dict[str, str]) -> str:
        return "".join(f'    {which} {{ key: "{key}" value: "{value}" }}\n' for key, value in tensors.items())

    listed = "".join(
        f'  step {{\n    model_name: "{model}"\n    model_version: -1\n'
        + maps("input_map", taken)
        + maps("output_map", given)
        + "  }\n"
        for model, taken, given in steps
    )
    ports = _ports([images], output, serving)
    return f'name: "{name}"\nplatform: "ensemble"\n{ports}ensemble_scheduling {{\n{listed}}}\n'


def _ports(inputs: Sequence[Port], output: Port, serving: Serving) -> str:
    def tensor(port: Port) -> str:
        return f'name: "{port[0]}" data_type: TYPE_FP32 dims: {list(port[1])}'

    return (
        f"max_batch_size: {serving.batch}\n"
        + "".join(f"input [ {{ {tensor(port)} }} ]\n" for port in inputs)
        + f'output [ {{ {tensor(output)} label_filename: "labels.txt" }} ]\n'
    )


def _warmup(inputs: Sequence[Port], batch: int) -> str:
    """A request of zeros, before the model says that it is ready: what is allocated at first use is then there."""
    listed = "".join(
        f'  inputs {{ key: "{name}" value {{ data_type: TYPE_FP32 dims: {list(shape)} zero_data: true }} }}\n'
        for name, shape in inputs
    )
    return f'model_warmup [ {{\n  name: "batch {batch}"\n  batch_size: {batch}\n{listed}}} ]\n'


if __name__ == "__main__":
    sys.exit(main())

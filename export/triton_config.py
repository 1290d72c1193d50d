"""The configurations of Triton's models, config.pbtxt.

They are the text form of ModelConfig (https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Serving:
    """How the models are served.

    Attributes:
        kind: The kind of Triton's instance groups, `KIND_CPU` or `KIND_GPU`.
        instances: Instances per model.
        batch: Most slices per batch.
    """

    kind: str
    instances: int
    batch: int


@dataclass(frozen=True)
class Port:
    """An input or output of a model: a float32 tensor.

    Attributes:
        name: Its name.
        shape: Its shape without the batch.
        labels: The file that names the columns of an output. None: no such file.
    """

    name: str
    shape: tuple[int, ...]
    labels: str | None = None


@dataclass(frozen=True)
class Step:
    """One model of an ensemble and its connections.

    Attributes:
        model: The name of the model.
        inputs: The name of the ensemble's tensor by the name of the model's input.
        outputs: The name of the ensemble's tensor by the name of the model's output.
    """

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def model_config(
    name: str, inputs: Sequence[Port], outputs: Sequence[Port], serving: Serving, delay: int
) -> str:
    """Write the configuration of a model that onnxruntime runs.

    Args:
        name: Of the model.
        inputs: Its inputs.
        outputs: Its outputs.
        serving: How it is served.
        delay: Microseconds that a request waits for others to join its batch.

    Returns:
        config.pbtxt.
    """
    threads = 'parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n'
    return (
        f'name: "{name}"\nplatform: "onnxruntime_onnx"\n'
        + _ports(inputs, outputs, serving)
        + f"dynamic_batching {{ max_queue_delay_microseconds: {delay} }}\n"
        + f"instance_group [ {{ kind: {serving.kind} count: {serving.instances} }} ]\n"
        + (threads if serving.kind == "KIND_CPU" else "")
        + "".join(_warmup(inputs, batch) for batch in sorted({1, serving.batch}))
    )


def ensemble_config(
    name: str, images: Port, outputs: Sequence[Port], serving: Serving, steps: Sequence[Step]
) -> str:
    """Write the configuration of an ensemble, which sends each batch through its steps.

    Args:
        name: Of the ensemble.
        images: Its input.
        outputs: Its outputs.
        serving: How it is served.
        steps: Its models.

    Returns:
        config.pbtxt.
    """

    def tensor_map(direction: str, tensors: Mapping[str, str]) -> str:
        return "".join(
            f'    {direction} {{ key: "{port}" value: "{tensor}" }}\n'
            for port, tensor in tensors.items()
        )

    listed = "".join(
        f'  step {{\n    model_name: "{step.model}"\n    model_version: -1\n'
        + tensor_map("input_map", step.inputs)
        + tensor_map("output_map", step.outputs)
        + "  }\n"
        for step in steps
    )
    ports = _ports([images], outputs, serving)
    return f'name: "{name}"\nplatform: "ensemble"\n{ports}ensemble_scheduling {{\n{listed}}}\n'


def _ports(inputs: Sequence[Port], outputs: Sequence[Port], serving: Serving) -> str:
    def tensor(port: Port) -> str:
        labels = "" if port.labels is None else f' label_filename: "{port.labels}"'
        return f'name: "{port.name}" data_type: TYPE_FP32 dims: {list(port.shape)}{labels}'

    return (
        f"max_batch_size: {serving.batch}\n"
        + "".join(f"input [ {{ {tensor(port)} }} ]\n" for port in inputs)
        + "".join(f"output [ {{ {tensor(port)} }} ]\n" for port in outputs)
    )


def _warmup(inputs: Sequence[Port], batch: int) -> str:
    """Format a request of zeros that runs before the model reports ready, so that its memory is already allocated."""
    listed = "".join(
        f'  inputs {{ key: "{port.name}" value {{ data_type: TYPE_FP32 dims: {list(port.shape)} zero_data: true }} }}\n'
        for port in inputs
    )
    return f'model_warmup [ {{\n  name: "batch {batch}"\n  batch_size: {batch}\n{listed}}} ]\n'

"""Checks an ONNX file in its protobuf wire format, before onnxruntime reads it.

A file is refused if its weights are in other files (external data), if operators are outside the ONNX standard, if it is
not one complete model, or if the graph has another input or output than the manifest describes.

The field numbers are those of onnx.proto (onnx 1.18, IR version 11,
https://github.com/onnx/onnx/blob/v1.18.0/onnx/onnx.proto). The encoding is described at
https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import BundleError

__all__ = ["DOMAINS", "GraphInfo", "MalformedFile", "Port", "check_graph", "read_graph"]

# The domain of the operators of the ONNX standard. The empty string is its usual spelling.
DOMAINS = ("", "ai.onnx")
# Fields in one file. Weights belong in raw_data, one field per tensor.
FIELD_LIMIT = 1_000_000
# Nested messages. A subgraph needs three.
DEPTH_LIMIT = 64
# The key of a field, which holds its number and wire type.
KEY_LIMIT = 0xFFFF_FFFF
# float32 in TensorProto.DataType.
FLOAT = 1

# The name and kind of each relevant field, by message and field number. The kind is another message of this table,
# "text", "int", or "bytes", of which only the presence is recorded. Other fields cannot contain a tensor, a graph or a
# domain, and are skipped.
_MESSAGES: dict[str, dict[int, tuple[str, str]]] = {
    "Model": {
        7: ("graph", "Graph"),
        8: ("opset_import", "Opset"),
        20: ("training_info", "bytes"),
        25: ("functions", "Function"),
    },
    "Opset": {1: ("domain", "text")},
    "Graph": {
        1: ("node", "Node"),
        5: ("initializer", "Tensor"),
        11: ("input", "Value"),
        12: ("output", "Value"),
        15: ("sparse_initializer", "Sparse"),
    },
    "Function": {
        7: ("node", "Node"),
        9: ("opset_import", "Opset"),
        10: ("domain", "text"),
        11: ("attribute", "Attribute"),
    },
    "Node": {5: ("attribute", "Attribute"), 7: ("domain", "text")},
    "Attribute": {
        5: ("tensor", "Tensor"),
        6: ("graph", "Graph"),
        10: ("tensor", "Tensor"),
        11: ("graph", "Graph"),
        22: ("sparse", "Sparse"),
        23: ("sparse", "Sparse"),
    },
    "Sparse": {1: ("tensor", "Tensor"), 2: ("tensor", "Tensor")},
    "Tensor": {8: ("name", "text"), 13: ("external_data", "bytes"), 14: ("data_location", "int")},
    "Value": {1: ("name", "text"), 2: ("type", "Type")},
    "Type": {1: ("tensor_type", "TensorType")},
    "TensorType": {1: ("elem_type", "int"), 2: ("shape", "Shape")},
    "Shape": {1: ("dim", "Dim")},
    "Dim": {1: ("dim_value", "int"), 2: ("dim_param", "text")},
}

# The known fields of a message by name, with every occurrence of each.
Values = dict[str, list[Any]]


class MalformedFile(Exception):
    """The bytes are not a valid ModelProto."""


@dataclass(frozen=True)
class Port:
    """An input or output of a graph.

    Attributes:
        name: Its name.
        elem_type: The number of its element type in TensorProto.DataType, or None if it is not one tensor.
        shape: The length of each axis, None for a free one. None if the shape is not given.
    """

    name: str
    elem_type: int | None
    shape: tuple[int | None, ...] | None


@dataclass
class GraphInfo:
    """What the check needs to know about a file.

    Attributes:
        domains: The domains of all operator sets, functions and nodes.
        external: The names of tensors whose data is in another file.
        inputs: The inputs of the main graph that are not weights.
        outputs: The outputs of the main graph.
        graphs: The number of main graphs.
        opsets: The number of operator sets.
        functions: The number of local functions.
        training: Whether there is training information.
    """

    domains: set[str] = field(default_factory=set)
    external: list[str] = field(default_factory=list)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    graphs: int = 0
    opsets: int = 0
    functions: int = 0
    training: bool = False


def check_graph(
    data: bytes,
    *,
    where: str,
    size: int,
    classes: int,
    output: str,
    extra: Mapping[str, int] | None = None,
) -> GraphInfo:
    """Check that a file is one self-contained graph from `images` to `output` and `extra`, all float32.

    Args:
        data: The content of the ONNX file.
        where: The name of the file in errors.
        size: Height and width of the input in pixels, which has the shape (N, 1, size, size).
        classes: The number of classes. The output has the shape (N, classes).
        output: The name of the output.
        extra: The columns of each further output, in their order, by name.

    Returns:
        What the file contains.

    Raises:
        BundleError: The file is anything else.
    """
    try:
        info = read_graph(data)
    except MalformedFile as e:
        raise BundleError(f"{where}: not a valid ONNX file ({e}); export the bundle again") from e
    if info.graphs != 1 or not info.opsets:
        raise BundleError(
            f"{where}: not an ONNX model, expected one graph and its operator set; export the bundle again"
        )
    if info.external:
        raise BundleError(
            f"{where}: tensor {info.external[0]!r} has its data in another file (external data);"
            " export the model with all weights in one file"
        )
    foreign = sorted(info.domains - set(DOMAINS))
    if foreign:
        raise BundleError(
            f"{where}: operators of the domain {foreign[0]!r} are not supported;"
            " export the model with operators of the ONNX standard only"
        )
    if info.training or info.functions:
        raise BundleError(
            f"{where}: contains training information or local functions; export a plain inference graph"
        )
    columns = {output: classes, **(extra or {})}
    _check_ports("input", info.inputs, {"images": (None, 1, size, size)}, where)
    _check_ports("output", info.outputs, {k: (None, v) for k, v in columns.items()}, where)
    return info


def _check_ports(
    kind: str, ports: Sequence[Port], shapes: Mapping[str, tuple[int | None, ...]], where: str
) -> None:
    """Check that a graph has exactly the inputs or outputs of these shapes, by name and in this order."""
    if [port.name for port in ports] != list(shapes):
        names = ", ".join(repr(port.name) for port in ports) or "none"
        expected = ", ".join(map(repr, shapes))
        if len(shapes) > 1:
            raise BundleError(
                f"{where}: the graph must have exactly the outputs {expected}, found {names}; export the bundle again"
            )
        raise BundleError(
            f"{where}: the graph must have exactly one {kind}, {expected}, found {names}; export the bundle again"
        )
    for port, shape in zip(ports, shapes.values(), strict=True):
        _check_port(kind, port, shape, where)


def _check_port(kind: str, port: Port, shape: tuple[int | None, ...], where: str) -> None:
    name = port.name
    if port.elem_type != FLOAT:
        raise BundleError(
            f"{where}: {kind} {name!r} must be float32, found ONNX type {port.elem_type}; export the bundle again"
        )
    if port.shape != shape:
        raise BundleError(
            f"{where}: {kind} {name!r} must be {_axes(shape)} with N free, to match the manifest,"
            f" found {_axes(port.shape or ())}; export the bundle again"
        )


def _axes(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("N" if axis is None else str(axis) for axis in shape) + ")"


def read_graph(data: bytes) -> GraphInfo:
    """Read a ModelProto with every subgraph, function and attribute in it.

    Args:
        data: The content of the ONNX file.

    Returns:
        What the file contains.

    Raises:
        MalformedFile: The bytes are not a valid ModelProto, or exceed a limit.
    """
    walk = _Walk(data)
    walk.message("Model", 0, len(data), 0)
    return walk.info


class _Walk:
    """Reads messages recursively and collects what the check needs in `info`."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.fields = 0
        self.info = GraphInfo()

    def varint(self, offset: int, end: int) -> tuple[int, int]:
        """Read a number of variable length. Returns it and the offset after it."""
        value = shift = 0
        while offset < end:
            byte = self.data[offset]
            offset += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, offset
            shift += 7
            if shift >= 70:
                raise MalformedFile("a number of more than 10 bytes")
        raise MalformedFile("truncated")

    def message(self, kind: str, offset: int, end: int, depth: int) -> Values:
        """Read one message from data[offset:end]."""
        if depth > DEPTH_LIMIT:
            raise MalformedFile("nested too deeply")
        known = _MESSAGES[kind]
        values: Values = {}
        while offset < end:
            self.fields += 1
            if self.fields > FIELD_LIMIT:
                raise MalformedFile(f"more than {FIELD_LIMIT:,} fields")
            number, wire, value, start, offset = self.field(offset, end)
            if number not in known:
                continue
            name, content_kind = known[number]
            if wire != (0 if content_kind == "int" else 2):
                raise MalformedFile(f"{kind}.{name} of wire type {wire}")
            content = (
                value if content_kind == "int" else self.content(content_kind, start, offset, depth)
            )
            values.setdefault(name, []).append(content)
        self.collect(kind, values, depth)
        return values

    def field(self, offset: int, end: int) -> tuple[int, int, int, int, int]:
        """Read one field. Returns its number, wire type, numeric value (or 0), and the start and end of its content."""
        key, start = self.varint(offset, end)
        if key > KEY_LIMIT:
            # Other readers drop the bits above 32 and see another field.
            raise MalformedFile("a field number of more than 29 bits")
        number, wire = key >> 3, key & 7
        value, stop = 0, start
        if wire == 0:
            value, stop = self.varint(start, end)
        elif wire == 2:
            length, start = self.varint(start, end)
            stop = start + length
        elif wire in (1, 5):
            stop = start + (8 if wire == 1 else 4)
        if number == 0 or wire not in (0, 1, 2, 5):
            raise MalformedFile(f"field {number} of wire type {wire}")
        if stop > end:
            raise MalformedFile("truncated")
        return number, wire, value, start, stop

    def content(self, kind: str, start: int, end: int, depth: int) -> Any:
        """Read the content of a field that is not a number."""
        if kind == "bytes":
            return None
        if kind == "text":
            try:
                return self.data[start:end].decode("utf-8")
            except UnicodeDecodeError as e:
                raise MalformedFile("a name that is not UTF-8") from e
        return self.message(kind, start, end, depth + 1)

    def collect(self, kind: str, values: Values, depth: int) -> None:
        """Add what the check needs to `info`."""
        info = self.info
        if kind in ("Opset", "Function", "Node"):
            info.domains.update(values.get("domain", []))
        if kind == "Function":
            info.functions += 1
        elif kind == "Tensor":
            if "external_data" in values or any(values.get("data_location", [])):
                info.external.append("".join(values.get("name", [])[-1:]))
        elif kind == "Model":
            info.graphs = len(values.get("graph", []))
            info.opsets = len(values.get("opset_import", []))
            info.training = "training_info" in values
        elif kind == "Graph" and depth == 1:
            weights = {
                name for tensor in values.get("initializer", []) for name in tensor.get("name", [])
            }
            info.inputs += [
                port for port in map(_port, values.get("input", [])) if port.name not in weights
            ]
            info.outputs += map(_port, values.get("output", []))


def _port(value: Values) -> Port:
    name = "".join(value.get("name", [])[-1:])
    tensors = [tensor for kind in value.get("type", []) for tensor in kind.get("tensor_type", [])]
    if len(tensors) != 1:
        # A sequence, a map, or nothing.
        return Port(name, None, None)
    elements = tensors[0].get("elem_type", [])
    shapes = tensors[0].get("shape", [])
    shape = None
    if len(shapes) == 1:
        shape = tuple(dim.get("dim_value", [None])[-1] for dim in shapes[0].get("dim", []))
    return Port(name, elements[-1] if elements else None, shape)

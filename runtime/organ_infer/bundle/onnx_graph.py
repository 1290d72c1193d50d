"""What an ONNX file holds, read from its protobuf wire format before onnxruntime sees a byte of it.

Refused: weights in other files (external data), operators outside the ONNX standard's own domain, a file that is
not one whole model, and a graph whose input or output is not the contract's. Field numbers are those of onnx.proto
(onnx/onnx 1.18, IR version 11); the encoding is that of protobuf.dev/programming-guides/encoding.
"""

from dataclasses import dataclass, field
from typing import Any

from ..errors import BundleError

__all__ = ["DOMAINS", "GraphInfo", "MalformedFile", "Port", "check_graph", "read_graph"]

DOMAINS = ("", "ai.onnx")  # the operators of the ONNX standard; "" is its usual spelling
FIELD_LIMIT = 1_000_000  # fields read in one file; weights belong in raw_data, one field a tensor
DEPTH_LIMIT = 64  # nested messages (a subgraph costs three)
KEY_LIMIT = 0xFFFF_FFFF  # a field's number and wire type
FLOAT = 1  # TensorProto.DataType

# message -> field number -> (name, kind); kind is a message here, or "text", "int", "bytes" (noted, not kept).
# Fields that are not named cannot hold a tensor, a graph or a domain, and are skipped.
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

Values = dict[str, list[Any]]  # a message's known fields by name, every occurrence of each


class MalformedFile(Exception):
    """The bytes are not a protobuf message of this kind."""


@dataclass(frozen=True)
class Port:
    """A graph's input or output: element type by ONNX's number, and its axes (None where free)."""

    name: str
    elem_type: int | None
    shape: tuple[int | None, ...] | None


@dataclass
class GraphInfo:
    """What the check needs of a file."""

    domains: set[str] = field(default_factory=set)  # of operator sets, functions and nodes
    external: list[str] = field(default_factory=list)  # tensors whose data lies elsewhere
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    graphs: int = 0
    opsets: int = 0
    functions: int = 0
    training: bool = False


def check_graph(data: bytes, *, where: str, size: int, classes: int, output: str) -> GraphInfo:
    """Refuse a file that is not one self-contained graph from `images` (N, 1, size, size) to `output` (N, classes).

    Raises BundleError.
    """
    try:
        info = read_graph(data)
    except MalformedFile as e:
        raise BundleError(f"{where}: not a valid ONNX file ({e}): export the bundle again") from e
    if info.graphs != 1 or not info.opsets:
        raise BundleError(
            f"{where}: not an ONNX model, one graph and its operator set expected: export it again"
        )
    if info.external:
        raise BundleError(
            f"{where}: tensor {info.external[0]!r} keeps its data in another file (external data):"
            " export with all weights in the one file"
        )
    foreign = sorted(info.domains - set(DOMAINS))
    if foreign:
        raise BundleError(
            f"{where}: operators of the domain {foreign[0]!r}, only those of the ONNX standard are run: export it again"
        )
    if info.training or info.functions:
        raise BundleError(
            f"{where}: holds training information or local functions: export a plain inference graph"
        )
    _check_port("input", info.inputs, "images", (None, 1, size, size), where)
    _check_port("output", info.outputs, output, (None, classes), where)
    return info


def _check_port(kind: str, found: list[Port], name: str, shape: tuple[int | None, ...], where: str) -> None:
    if [port.name for port in found] != [name]:
        listed = ", ".join(repr(port.name) for port in found) or "none"
        raise BundleError(
            f"{where}: the graph must have the one {kind} {name!r}, found {listed}: export it again"
        )
    port = found[0]
    if port.elem_type != FLOAT:
        raise BundleError(f"{where}: {kind} {name!r} must be float32, found ONNX type {port.elem_type}")
    if port.shape != shape:
        raise BundleError(
            f"{where}: {kind} {name!r} must be {_axes(shape)} with N free, as the manifest's size and classes say;"
            f" found {_axes(port.shape or ())}"
        )


def _axes(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("N" if axis is None else str(axis) for axis in shape) + ")"


def read_graph(data: bytes) -> GraphInfo:
    """Walk a ModelProto with every subgraph, function and attribute in it. Raises MalformedFile."""
    walk = _Walk(data)
    walk.message("Model", 0, len(data), 0)
    return walk.info


class _Walk:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.fields = 0
        self.info = GraphInfo()

    def varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end:
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at
            shift += 7
            if shift >= 70:
                raise MalformedFile("a number of more than 10 bytes")
        raise MalformedFile("truncated")

    def message(self, kind: str, at: int, end: int, depth: int) -> Values:
        """Read one message from data[at:end]."""
        if depth > DEPTH_LIMIT:
            raise MalformedFile("nested too deeply")
        known = _MESSAGES[kind]
        values: Values = {}
        while at < end:
            self.fields += 1
            if self.fields > FIELD_LIMIT:
                raise MalformedFile(f"more than {FIELD_LIMIT:,} fields")
            key, at = self.varint(at, end)
            if key > KEY_LIMIT:  # read in 32 bits elsewhere, as another field's
                raise MalformedFile("a field number of more than 29 bits")
            number, wire = key >> 3, key & 7
            start, value = at, 0
            if wire == 0:
                value, at = self.varint(at, end)
            elif wire == 2:
                length, start = self.varint(at, end)
                at = start + length
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            if number == 0 or wire not in (0, 1, 2, 5):
                raise MalformedFile(f"field {number} of wire type {wire}")
            if at > end:
                raise MalformedFile("truncated")
            if number not in known:
                continue
            name, what = known[number]
            if wire != (0 if what == "int" else 2):
                raise MalformedFile(f"{kind}.{name} of wire type {wire}")
            content = value if what == "int" else self.content(what, start, at, depth)
            values.setdefault(name, []).append(content)
        self.note(kind, values, depth)
        return values

    def content(self, what: str, start: int, end: int, depth: int) -> Any:
        if what == "bytes":
            return None
        if what == "text":
            try:
                return self.data[start:end].decode("utf-8")
            except UnicodeDecodeError as e:
                raise MalformedFile("a name that is not UTF-8") from e
        return self.message(what, start, end, depth + 1)

    def note(self, kind: str, values: Values, depth: int) -> None:
        """Keep what the check asks for."""
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
            weights = {name for tensor in values.get("initializer", []) for name in tensor.get("name", [])}
            info.inputs += [port for port in map(_port, values.get("input", [])) if port.name not in weights]
            info.outputs += map(_port, values.get("output", []))


def _port(value: Values) -> Port:
    name = "".join(value.get("name", [])[-1:])
    tensors = [tensor for kind in value.get("type", []) for tensor in kind.get("tensor_type", [])]
    if len(tensors) != 1:  # a sequence, a map, or none at all
        return Port(name, None, None)
    elements = tensors[0].get("elem_type", [])
    shapes = tensors[0].get("shape", [])
    shape = None
    if len(shapes) == 1:
        shape = tuple(dim.get("dim_value", [None])[-1] for dim in shapes[0].get("dim", []))
    return Port(name, elements[-1] if elements else None, shape)

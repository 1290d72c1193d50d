"""A bundle's manifest.json as frozen dataclasses whose field names are the JSON keys.

`Manifest.from_json` checks every field for presence, type and range and refuses unknown keys at every level;
`Manifest.to_json` writes only what `from_json` would accept.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..errors import BundleError
from .json_fields import MANIFEST_FILE, FieldReader, clipped, parse_json
from .precision import BY_NAME

__all__ = ["MANIFEST_FILE", "Card", "Input", "Manifest", "Member", "Task"]

FORMAT = 1
MANIFEST_LIMIT = 1 << 20  # bytes
CARD_LIMIT = 1 << 20  # bytes
GRAPH_LIMIT = (1 << 31) - 1  # bytes: protobuf holds no more
CLASS_LIMIT = 1000

VIEWS = ("axial", "coronal", "sagittal")
OUTPUTS = ("logits", "probabilities")
AXES = {"L": "LR", "R": "LR", "A": "AP", "P": "AP", "H": "HF", "F": "HF"}  # DICOM letter -> patient axis

# A checksum of the manifest's own text, in `training`: no other file can hold it (C3). Its 64 digits count as zeros.
SEAL = "seal"
SEAL_WORDS = "sha256 of this file with zeros here: "
SEALED = re.compile(SEAL_WORDS + "([0-9a-f]{64})")

# the keys in the order they are written
ORDER = "format name task input members merged combine temperature metrics training card licence"


@dataclass(frozen=True)
class Task:
    """What is classified: `paired` holds the classes that are two sides of one organ."""

    dataset: str
    view: str
    classes: tuple[str, ...]
    paired: tuple[tuple[str, str], ...] = ()

    def organs(self) -> tuple[str, ...]:
        """For each class, the organ it belongs to: its name without the side where it is paired."""
        sided = {name for pair in self.paired for name in pair}
        return tuple(name.rpartition("-")[0] if name in sided else name for name in self.classes)


@dataclass(frozen=True)
class Input:
    """How a slice becomes a network's input (C1).

    `window` is [level, width] in HU for int16 slices, or null where the model takes none. `orientation`
    names the patient direction in which the row index and the column index grow, as DICOM letters, or is
    null where it has not been established.
    """

    size: int
    mean: float
    std: float
    resample: str = "area"
    window: tuple[float, float] | None = None
    orientation: tuple[str, str] | None = None


@dataclass(frozen=True)
class Member:
    """One ONNX graph: a network that is averaged, another form of it, or all of them merged."""

    stage: str
    file: str
    sha256: str
    bytes: int
    precision: str
    output: str
    val_accuracy: float | None
    alternatives: "tuple[Member, ...]" = ()


@dataclass(frozen=True)
class Card:
    """The model card's file."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All of manifest.json."""

    name: str
    task: Task
    input: Input
    members: tuple[Member, ...]
    card: Card
    licence: str
    merged: Member | None = None
    combine: str = "mean_probability"
    temperature: float = 1.0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def graphs(self) -> Iterator[Member]:
        """Every graph the manifest lists: members, the merged one, and their alternatives."""
        for entry in (*self.members, *([self.merged] if self.merged else [])):
            yield entry
            yield from entry.alternatives

    def forms(self, device: str) -> tuple[Member, ...]:
        """The graphs to run on `device` (`cpu` or `cuda`): the merged one where there is one, else the members.

        A listed graph is the form that was chosen for the CPU; on CUDA, where int8 gains nothing, its fp16 or else
        its fp32 form is taken.
        """
        listed = (self.merged,) if self.merged else self.members
        if device == "cpu":
            return listed
        return tuple(
            min((entry, *entry.alternatives), key=lambda form: BY_NAME[form.precision].cuda_rank)
            for entry in listed
        )

    def files(self) -> tuple[str, ...]:
        """The names of all files of the bundle but manifest.json."""
        return (*(entry.file for entry in self.graphs()), self.card.file)

    def to_json(self) -> str:
        """The manifest as text, checked as a reader would check it. Raises BundleError."""
        values = asdict(self)
        blank = SEAL_WORDS + "0" * 64
        values["training"] = {**values["training"], SEAL: blank}
        try:
            text = json.dumps(
                {key: values[key] for key in ORDER.split()}, indent=1, ensure_ascii=False, allow_nan=False
            )
            digest = hashlib.sha256(f"{text}\n".encode()).hexdigest()
        except (TypeError, ValueError, RecursionError) as e:
            raise BundleError(f"manifest: {e}: every value must be plain, finite JSON") from e
        before, _, after = text.rpartition(blank)
        text = f"{before}{SEAL_WORDS}{digest}{after}\n"
        Manifest.from_json(text)
        return text

    @staticmethod
    def from_json(text: str | bytes, where: str = MANIFEST_FILE) -> "Manifest":
        """Read and check a manifest; `where` names it in errors. Raises BundleError."""
        if len(text) > MANIFEST_LIMIT:
            raise BundleError(f"{where}: {len(text):,} bytes, at most {MANIFEST_LIMIT:,} are read")
        return _Reader(where).manifest(parse_json(text, where), text)


def _blanked(data: bytes, digits: bytes) -> bytes:
    before, _, after = data.rpartition(digits)
    return before + b"0" * len(digits) + after


class _Reader(FieldReader):
    # The parts.

    def keys(self, value: Any, key: str, kind: type) -> dict[str, Any]:
        """`value` as an object with exactly the dataclass's fields as keys."""
        valid = sorted(part.name for part in fields(kind))
        prefix = f"{key}." if key else ""
        if not isinstance(value, dict):
            raise self.refuse(key or "the manifest", "an object", value)
        for name in value:
            if name not in valid:
                raise BundleError(
                    f"{self.where}: unknown key {clipped(prefix + name)!r}; valid ones are {', '.join(valid)}"
                )
        for name in valid:
            if name not in value:
                raise BundleError(f"{self.where}: key {prefix + name!r} is missing: export the bundle again")
        return value

    def manifest(self, data: Any, text: str | bytes) -> Manifest:
        if not isinstance(data, dict):
            raise self.refuse("the manifest", "an object", data)
        if "format" in data:
            self.format(data["format"])
        top = self.keys(data, "", Manifest)
        training = self.open_object(top["training"], "training")
        task = self.task(top["task"], "task")
        members = self.sequence(top["members"], "members", 1, 64, "entries")
        manifest = Manifest(
            format=FORMAT,
            name=self.text(top["name"], "name"),
            task=task,
            input=self.input(top["input"], "input"),
            members=tuple(self.member(entry, f"members[{i}]") for i, entry in enumerate(members)),
            merged=self.optional(top["merged"], "merged", self.member),
            combine=self.one_of(top["combine"], "combine", ["mean_probability"]),
            temperature=self.number(top["temperature"], "temperature", 0.01, 100),
            metrics=self.open_object(top["metrics"], "metrics"),
            training=training,
            card=self.card(top["card"], "card"),
            licence=self.text(top["licence"], "licence"),
        )
        if manifest.merged and manifest.merged.output != "probabilities":
            raise self.refuse("merged.output", "probabilities (the members' mean)", manifest.merged.output)
        names = [
            name.lower() for name in manifest.files()
        ]  # two names that differ in case are one file elsewhere
        for name in names:
            if names.count(name) > 1:
                raise BundleError(f"{self.where}: file {name!r} is listed twice: one file a graph")
        return replace(manifest, training=self.unsealed(training, text))

    def unsealed(self, training: dict[str, Any], text: str | bytes) -> dict[str, Any]:
        """`training` without the seal, which must be the text's own. One without is not required to have it; a key or a
        value that was damaged still tells by the other."""
        marks = {
            key: value
            for key, value in training.items()
            if key == SEAL or (isinstance(value, str) and value.startswith(SEAL_WORDS))
        }
        if not marks:
            return training
        value = marks.get(SEAL)
        found = SEALED.fullmatch(value) if len(marks) == 1 and isinstance(value, str) else None
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        if found is None or hashlib.sha256(_blanked(data, found[1].encode())).hexdigest() != found[1]:
            raise BundleError(
                f"{self.where}: changed since it was written, its sha256 is not the one in training.{SEAL}: copy or export"
                f" the bundle again, or take that key out if the change is meant"
            )
        return {key: value for key, value in training.items() if key != SEAL}

    def format(self, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refuse("format", f"the number {FORMAT}", value)
        if value != FORMAT:
            raise BundleError(
                f"{self.where}: bundle format {clipped(str(value))}, this organ-infer reads format {FORMAT}: a later release reads it"
                " (pip install --upgrade organ-infer)"
            )

    def task(self, value: Any, key: str) -> Task:
        found = self.keys(value, key, Task)
        listed = self.sequence(found["classes"], f"{key}.classes", 2, CLASS_LIMIT, "class names")
        classes = tuple(self.class_name(name, f"{key}.classes[{i}]") for i, name in enumerate(listed))
        if len(set(classes)) != len(classes):
            raise self.refuse(f"{key}.classes", "names that all differ", listed)
        pairs = self.sequence(found["paired"], f"{key}.paired", 0, CLASS_LIMIT, "pairs")
        task = Task(
            dataset=self.text(found["dataset"], f"{key}.dataset"),
            view=self.one_of(found["view"], f"{key}.view", VIEWS),
            classes=classes,
            paired=tuple(self.pair(pair, f"{key}.paired[{i}]", classes) for i, pair in enumerate(pairs)),
        )
        sided = [name for pair in task.paired for name in pair]
        if len(set(sided)) != len(sided):
            raise self.refuse(f"{key}.paired", "pairs that share no class", pairs)
        for stem in {name.rpartition("-")[0] for name in sided}:
            if stem in classes:
                raise self.refuse(
                    f"{key}.paired", f"pairs whose organ is no class itself ({stem!r} is one)", pairs
                )
        return task

    def class_name(self, value: Any, key: str) -> str:
        name = self.text(value, key, limit=60)
        if any(c.isspace() or c == "," for c in name):
            raise self.refuse(key, "a name without spaces and commas", value)
        return name

    def pair(self, value: Any, key: str, classes: tuple[str, ...]) -> tuple[str, str]:
        listed = self.sequence(value, key, 2, 2, "class names")
        first, second = (self.one_of(name, f"{key}[{i}]", classes) for i, name in enumerate(listed))
        stems = {name.rpartition("-")[0] for name in (first, second)}
        sides = {name.rpartition("-")[2] for name in (first, second)}
        if len(stems) != 1 or sides != {"left", "right"} or "" in stems:
            raise self.refuse(key, "an organ's two sides, ORGAN-left and ORGAN-right", value)
        return first, second

    def input(self, value: Any, key: str) -> Input:
        found = self.keys(value, key, Input)
        return Input(
            size=self.integer(found["size"], f"{key}.size", 4, 1024),
            mean=self.number(found["mean"], f"{key}.mean", 0, 1),
            std=self.number(found["std"], f"{key}.std", 1e-3, 100),
            resample=self.one_of(found["resample"], f"{key}.resample", ["area"]),
            window=self.optional(found["window"], f"{key}.window", self.window),
            orientation=self.optional(found["orientation"], f"{key}.orientation", self.orientation),
        )

    def window(self, value: Any, key: str) -> tuple[float, float]:
        level, width = self.sequence(value, key, 2, 2, "numbers (level and width in HU)")
        return self.number(level, f"{key}[0]", -32768, 32767), self.number(width, f"{key}[1]", 1, 65535)

    def orientation(self, value: Any, key: str) -> tuple[str, str]:
        listed = self.sequence(value, key, 2, 2, "DICOM letters (L R A P H F)")
        rows, columns = (self.one_of(letter, f"{key}[{i}]", tuple(AXES)) for i, letter in enumerate(listed))
        if AXES[rows] == AXES[columns]:
            raise self.refuse(key, "two directions at right angles (as L and P)", value)
        return rows, columns

    def member(self, value: Any, key: str, *, nested: bool = False) -> Member:
        found = self.keys(value, key, Member)
        most = 0 if nested else 16
        alternatives = self.sequence(found["alternatives"], f"{key}.alternatives", 0, most, "entries")
        return Member(
            stage=self.text(found["stage"], f"{key}.stage", limit=60),
            file=self.file_name(found["file"], f"{key}.file"),
            sha256=self.sha256(found["sha256"], f"{key}.sha256"),
            bytes=self.integer(found["bytes"], f"{key}.bytes", 1, GRAPH_LIMIT),
            precision=self.one_of(found["precision"], f"{key}.precision", tuple(BY_NAME)),
            output=self.one_of(found["output"], f"{key}.output", OUTPUTS),
            val_accuracy=self.optional(
                found["val_accuracy"], f"{key}.val_accuracy", lambda v, k: self.number(v, k, 0, 1)
            ),
            alternatives=tuple(
                self.member(entry, f"{key}.alternatives[{i}]", nested=True)
                for i, entry in enumerate(alternatives)
            ),
        )

    def card(self, value: Any, key: str) -> Card:
        found = self.keys(value, key, Card)
        return Card(
            self.file_name(found["file"], f"{key}.file"), self.sha256(found["sha256"], f"{key}.sha256")
        )

"""A bundle's manifest.json as frozen dataclasses whose field names are the JSON keys.

`Manifest.from_json` checks every field for presence, type and range, and refuses unknown keys at every level.
`Manifest.to_json` writes only what `from_json` accepts.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..errors import BundleError
from .json_fields import MANIFEST_FILE, FieldReader, clipped, parse_json
from .precision import BY_NAME

__all__ = ["MANIFEST_FILE", "Card", "Fast", "Input", "Manifest", "Member", "Plausibility", "Task"]

FORMAT = 1
# Bytes.
MANIFEST_LIMIT = 1 << 20
CARD_LIMIT = 1 << 20
# Bytes; protobuf cannot hold more.
GRAPH_LIMIT = (1 << 31) - 1
CLASS_LIMIT = 1000
# The lowest and the highest temperature.
TEMPERATURES = 0.01, 100

# of slices whose orientation is not known, the view is not known either
VIEWS = ("axial", "coronal", "sagittal", "unknown")
OUTPUTS = ("logits", "probabilities")
# The second output of a network that knows when not to answer, and its columns: the eight in-plane orientations, the
# required one first, and no organ crop at all.
ORIENTATION_OUTPUT = "orientation"
ORIENTATION_COLUMNS = 9
# how slices are resampled; `pack` takes the same names
RESAMPLE = ("area", "linear", "cubic")
# A class that is one side of an organ.
SIDED = re.compile(r"(.+)[-_](left|right)", re.DOTALL)
# The axis of the patient by DICOM letter.
AXES = {"L": "LR", "R": "LR", "A": "AP", "P": "AP", "H": "HF", "F": "HF"}

# The checksum of the manifest's own text. It is stored in `training`, because a bundle has no other place for it. To
# compute it, its 64 digits are replaced by zeros.
SEAL = "seal"
SEAL_PREFIX = "sha256 of this file with zeros here: "
SEAL_PATTERN = re.compile(SEAL_PREFIX + "([0-9a-f]{64})")

# The keys in the order in which they are written.
ORDER = "format name task input members combine temperature plausibility fast metrics training card license"
# Keys that a manifest may leave out. Readers of earlier versions refuse them, so they are written only with a value.
OPTIONAL = {"fast", "plausibility"}


@dataclass(frozen=True)
class Task:
    """What the model classifies.

    Attributes:
        dataset: The data set that it was trained on.
        view: The plane of the slices: axial, coronal, sagittal or unknown.
        classes: The names of the classes, in the order of the model's output.
        paired: Pairs of classes that are the two sides of one organ. The organ's name is third if the names of the
            classes do not show it.
    """

    dataset: str
    view: str
    classes: tuple[str, ...]
    paired: tuple[tuple[str, ...], ...] = ()

    def organs(self) -> tuple[str, ...]:
        """Return the organ of each class: the name of the class, without the side if the class is paired."""
        organ_of = {name: organ_of_pair(pair) for pair in self.paired for name in pair[:2]}
        return tuple(organ_of.get(name) or name for name in self.classes)


def organ_of_pair(pair: Sequence[str]) -> str | None:
    """Return the organ of which two classes are the sides.

    Args:
        pair: The two names, ORGAN-left and ORGAN-right or ORGAN_left and ORGAN_right, or any two names and the organ's.

    Returns:
        The organ's name, or None if two names do not show it.
    """
    if len(pair) == 3:
        return pair[2]
    sides = [SIDED.fullmatch(name) for name in pair]
    if len(sides) != 2 or sides[0] is None or sides[1] is None:
        return None
    organs, names = {side[1] for side in sides if side}, {side[2] for side in sides if side}
    return organs.pop() if len(organs) == 1 and names == {"left", "right"} else None


@dataclass(frozen=True)
class Input:
    """How a slice becomes the input of a network (docs/reference/bundle_format.md, "Preprocessing").

    Attributes:
        size: Height and width of the input in pixels.
        mean: Subtracted from gray values scaled to 0 to 1.
        std: The divisor after that.
        resample: The resampling method, one of RESAMPLE.
        window: (level, width) in HU for int16 slices, or None if the model does not take them.
        orientation: The directions of the patient in which the row index and the column index increase, as DICOM
            letters, or None if it is not known.
    """

    size: int
    mean: float
    std: float
    resample: str = "area"
    window: tuple[float, float] | None = None
    orientation: tuple[str, str] | None = None


@dataclass(frozen=True)
class Member:
    """One ONNX graph: a member of the ensemble, or another variant of a member.

    Attributes:
        stage: The training stage that it comes from.
        file: The file name in the bundle.
        sha256: The SHA-256 of the file.
        bytes: The size of the file.
        precision: The number format of the weights (`precision.PRECISIONS`).
        output: What the graph returns, `logits` or `probabilities`.
        val_accuracy: The accuracy on the validation slices, or None.
        alternatives: Other variants of the same network.
    """

    stage: str
    file: str
    sha256: str
    bytes: int
    precision: str
    output: str
    val_accuracy: float | None
    alternatives: "tuple[Member, ...]" = ()


@dataclass(frozen=True)
class Plausibility:
    """How the networks tell that a slice is no organ crop in the required orientation.

    Attributes:
        output: The name of the graphs' second output, always ORIENTATION_OUTPUT: float32 (N, ORIENTATION_COLUMNS),
            probabilities. Column 0 is the plausibility of a slice.
        threshold: The plausibility below which 1 % of the validation slices are, 0 to 1.
    """

    output: str
    threshold: float


@dataclass(frozen=True)
class Fast:
    """The member that is used alone if the user prefers speed, with what was chosen and measured for it alone.

    Attributes:
        stage: The stage of the member.
        temperature: As the manifest's.
        plausibility: As the manifest's, with the member's own threshold. None if the manifest's is.
        metrics: What was measured, with free keys, such as the golden answers.
    """

    stage: str
    temperature: float
    plausibility: Plausibility | None
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """The file of the model card and its SHA-256."""

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
    license: str
    combine: str = "mean_probability"
    temperature: float = 1.0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT
    plausibility: Plausibility | None = None
    fast: Fast | None = None

    @property
    def licence(self) -> str:
        """The former name of `license`."""
        return self.license

    @property
    def is_smoke(self) -> bool:
        """Whether the networks are from a smoke run, on a few batches, so that their answers mean nothing."""
        return self.training.get("smoke") is True

    def graphs(self) -> Iterator[Member]:
        """Yield every listed graph: members and their alternatives."""
        for entry in self.members:
            yield entry
            yield from entry.alternatives

    def extra_outputs(self) -> dict[str, int]:
        """Return the columns of each output that every graph has besides its class output, by name."""
        return {} if self.plausibility is None else {self.plausibility.output: ORIENTATION_COLUMNS}

    def variants(self, device: str) -> tuple[Member, ...]:
        """Return the graphs to run on `device` (`cpu` or `cuda`), one per member.

        A listed graph is the variant chosen for the CPU. CUDA runs its fp16 variant, or else its fp32 variant, because
        int8 gains nothing there.
        """
        if device == "cpu":
            return self.members
        return tuple(
            min(
                (entry, *entry.alternatives),
                key=lambda variant: BY_NAME[variant.precision].cuda_rank,
            )
            for entry in self.members
        )

    # The former name.
    forms = variants

    def files(self) -> tuple[str, ...]:
        """Return the names of all files of the bundle except manifest.json."""
        return (*(entry.file for entry in self.graphs()), self.card.file)

    def to_json(self) -> str:
        """Convert to JSON text with a checksum. The text is checked by reading it again.

        Raises:
            BundleError: A value is not plain JSON, or `from_json` would refuse it.
        """
        values = asdict(self)
        blank = SEAL_PREFIX + "0" * 64
        values["training"] = {**values["training"], SEAL: blank}
        try:
            text = json.dumps(
                {
                    key: values[key]
                    for key in ORDER.split()
                    if key not in OPTIONAL or values[key] is not None
                },
                indent=1,
                ensure_ascii=False,
                allow_nan=False,
            )
            digest = hashlib.sha256(f"{text}\n".encode()).hexdigest()
        except (TypeError, ValueError, RecursionError) as e:
            raise BundleError(f"manifest: {e}; every value must be plain, finite JSON") from e
        before, _, after = text.rpartition(blank)
        text = f"{before}{SEAL_PREFIX}{digest}{after}\n"
        Manifest.from_json(text)
        return text

    @staticmethod
    def from_json(text: str | bytes, where: str = MANIFEST_FILE) -> "Manifest":
        """Read and check a manifest.

        Args:
            text: The content of manifest.json.
            where: The name of the file in errors.

        Returns:
            The manifest. Its `training` does not contain the checksum.

        Raises:
            BundleError: The text is not JSON, a field is wrong, or the text was changed since it was written.
        """
        if len(text) > MANIFEST_LIMIT:
            raise BundleError(
                f"{where}: too large ({len(text):,} bytes, at most {MANIFEST_LIMIT:,}); export the bundle again"
            )
        return _Reader(where).manifest(parse_json(text, where), text)


def _blanked(data: bytes, digits: bytes) -> bytes:
    """Replace the last occurrence of `digits` by zeros."""
    before, _, after = data.rpartition(digits)
    return before + b"0" * len(digits) + after


def _with_current_keys(data: dict[str, Any]) -> dict[str, Any]:
    """Rename the keys of older bundles: they have `licence` for `license`, and `merged`, which is always null."""
    current = dict(data)
    if "licence" in current and "license" not in current:
        current["license"] = current.pop("licence")
    if "merged" in current and current["merged"] is None:
        del current["merged"]
    return current


class _Reader(FieldReader):
    """Reads the parts of a manifest."""

    def keys(
        self, value: Any, key: str, kind: type, optional: Collection[str] = ()
    ) -> dict[str, Any]:
        """Check that an object has exactly the fields of the dataclass `kind` as keys, and return it.

        Fields that are `optional` may be missing.
        """
        valid = sorted(part.name for part in fields(kind))
        prefix = f"{key}." if key else ""
        if not isinstance(value, dict):
            raise self.refuse(key or "the manifest", "an object", value)
        for name in value:
            if name not in valid:
                raise BundleError(
                    f"{self.where}: unknown key {clipped(prefix + name)!r}; valid keys are {', '.join(valid)}"
                )
        for name in valid:
            if name not in value and name not in optional:
                raise BundleError(
                    f"{self.where}: key {prefix + name!r} is missing; export the bundle again"
                )
        return value

    def manifest(self, data: Any, text: str | bytes) -> Manifest:
        if not isinstance(data, dict):
            raise self.refuse("the manifest", "an object", data)
        if "format" in data:
            self.format(data["format"])
        top = self.keys(_with_current_keys(data), "", Manifest, OPTIONAL)
        training = self.open_object(top["training"], "training")
        task = self.task(top["task"], "task")
        members = self.sequence(top["members"], "members", 1, 64, "entries")
        manifest = Manifest(
            format=FORMAT,
            name=self.text(top["name"], "name"),
            task=task,
            input=self.input(top["input"], "input"),
            members=tuple(self.member(entry, f"members[{i}]") for i, entry in enumerate(members)),
            combine=self.one_of(top["combine"], "combine", ["mean_probability"]),
            temperature=self.number(top["temperature"], "temperature", *TEMPERATURES),
            plausibility=self.optional(top.get("plausibility"), "plausibility", self.plausibility),
            fast=self.optional(top.get("fast"), "fast", self.fast),
            metrics=self.open_object(top["metrics"], "metrics"),
            training=training,
            card=self.card(top["card"], "card"),
            license=self.text(top["license"], "license"),
        )
        # On some file systems, two names that differ only in case are one file.
        names = [name.lower() for name in manifest.files()]
        for name in names:
            if names.count(name) > 1:
                raise BundleError(
                    f"{self.where}: file {name!r} is listed twice; export the bundle again"
                )
        if manifest.fast is not None:
            self.check_fast(manifest.fast, manifest)
        return replace(manifest, training=self.unsealed(training, text))

    def unsealed(self, training: dict[str, Any], text: str | bytes) -> dict[str, Any]:
        """Verify the checksum (the seal), and return `training` without it. A manifest without a seal is accepted.

        Both its key and its value identify the seal, so that damage to one of them does not remove it.
        """
        marks = {
            key: value
            for key, value in training.items()
            if key == SEAL or (isinstance(value, str) and value.startswith(SEAL_PREFIX))
        }
        if not marks:
            return training
        value = marks.get(SEAL)
        match = (
            SEAL_PATTERN.fullmatch(value) if len(marks) == 1 and isinstance(value, str) else None
        )
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        if (
            match is None
            or hashlib.sha256(_blanked(data, match[1].encode())).hexdigest() != match[1]
        ):
            raise BundleError(
                f"{self.where}: changed since it was written, its sha256 differs from training.{SEAL}; copy or export"
                f" the bundle again, or remove that key if the change is intended"
            )
        return {key: value for key, value in training.items() if key != SEAL}

    def format(self, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refuse("format", f"the number {FORMAT}", value)
        if value != FORMAT:
            raise BundleError(
                f"{self.where}: bundle format {clipped(str(value))}, but this organ-infer reads format {FORMAT};"
                " upgrade it: pip install --upgrade organ-infer"
            )

    def task(self, value: Any, key: str) -> Task:
        parts = self.keys(value, key, Task)
        names = self.sequence(parts["classes"], f"{key}.classes", 2, CLASS_LIMIT, "class names")
        classes = tuple(
            self.class_name(name, f"{key}.classes[{i}]") for i, name in enumerate(names)
        )
        if len(set(classes)) != len(classes):
            raise self.refuse(f"{key}.classes", "names that all differ", names)
        pairs = self.sequence(parts["paired"], f"{key}.paired", 0, CLASS_LIMIT, "pairs")
        task = Task(
            dataset=self.text(parts["dataset"], f"{key}.dataset"),
            view=self.one_of(parts["view"], f"{key}.view", VIEWS),
            classes=classes,
            paired=tuple(
                self.pair(pair, f"{key}.paired[{i}]", classes) for i, pair in enumerate(pairs)
            ),
        )
        sided = [name for pair in task.paired for name in pair[:2]]
        if len(set(sided)) != len(sided):
            raise self.refuse(f"{key}.paired", "pairs that share no class", pairs)
        for organ in {organ_of_pair(pair) for pair in task.paired}:
            if organ in classes:
                raise self.refuse(
                    f"{key}.paired",
                    f"pairs whose organ is not itself a class ({organ!r} is one)",
                    pairs,
                )
        return task

    def class_name(self, value: Any, key: str) -> str:
        name = self.text(value, key, limit=60)
        if any(c.isspace() or c == "," for c in name):
            raise self.refuse(key, "a name without spaces or commas", value)
        return name

    def pair(self, value: Any, key: str, classes: tuple[str, ...]) -> tuple[str, ...]:
        names = self.sequence(value, key, 2, 3, "class names")
        pair = tuple(self.one_of(name, f"{key}[{i}]", classes) for i, name in enumerate(names[:2]))
        if len(names) == 3:
            pair = (*pair, self.class_name(names[2], f"{key}[2]"))
        if pair[0] == pair[1] or organ_of_pair(pair) is None:
            raise self.refuse(key, "the two sides of an organ, ORGAN-left and ORGAN-right", value)
        return pair

    def input(self, value: Any, key: str) -> Input:
        parts = self.keys(value, key, Input)
        return Input(
            size=self.integer(parts["size"], f"{key}.size", 4, 1024),
            mean=self.number(parts["mean"], f"{key}.mean", 0, 1),
            std=self.number(parts["std"], f"{key}.std", 1e-3, 100),
            resample=self.one_of(parts["resample"], f"{key}.resample", RESAMPLE),
            window=self.optional(parts["window"], f"{key}.window", self.window),
            orientation=self.optional(parts["orientation"], f"{key}.orientation", self.orientation),
        )

    def window(self, value: Any, key: str) -> tuple[float, float]:
        level, width = self.sequence(value, key, 2, 2, "numbers (level and width in HU)")
        return self.number(level, f"{key}[0]", -32768, 32767), self.number(
            width, f"{key}[1]", 1, 65535
        )

    def orientation(self, value: Any, key: str) -> tuple[str, str]:
        letters = self.sequence(value, key, 2, 2, "DICOM letters (L R A P H F)")
        rows, columns = (
            self.one_of(letter, f"{key}[{i}]", tuple(AXES)) for i, letter in enumerate(letters)
        )
        if AXES[rows] == AXES[columns]:
            raise self.refuse(key, "two perpendicular directions, such as L and P", value)
        return rows, columns

    def member(self, value: Any, key: str, *, nested: bool = False) -> Member:
        parts = self.keys(value, key, Member)
        limit = 0 if nested else 16
        alternatives = self.sequence(
            parts["alternatives"], f"{key}.alternatives", 0, limit, "entries"
        )
        return Member(
            stage=self.text(parts["stage"], f"{key}.stage", limit=60),
            file=self.file_name(parts["file"], f"{key}.file"),
            sha256=self.sha256(parts["sha256"], f"{key}.sha256"),
            bytes=self.integer(parts["bytes"], f"{key}.bytes", 1, GRAPH_LIMIT),
            precision=self.one_of(parts["precision"], f"{key}.precision", tuple(BY_NAME)),
            output=self.one_of(parts["output"], f"{key}.output", OUTPUTS),
            val_accuracy=self.optional(
                parts["val_accuracy"], f"{key}.val_accuracy", lambda v, k: self.number(v, k, 0, 1)
            ),
            alternatives=tuple(
                self.member(entry, f"{key}.alternatives[{i}]", nested=True)
                for i, entry in enumerate(alternatives)
            ),
        )

    def plausibility(self, value: Any, key: str) -> Plausibility:
        parts = self.keys(value, key, Plausibility)
        return Plausibility(
            output=self.one_of(parts["output"], f"{key}.output", (ORIENTATION_OUTPUT,)),
            threshold=self.number(parts["threshold"], f"{key}.threshold", 0, 1),
        )

    def fast(self, value: Any, key: str) -> Fast:
        parts = self.keys(value, key, Fast)
        return Fast(
            stage=self.text(parts["stage"], f"{key}.stage", limit=60),
            temperature=self.number(parts["temperature"], f"{key}.temperature", *TEMPERATURES),
            plausibility=self.optional(
                parts["plausibility"], f"{key}.plausibility", self.plausibility
            ),
            metrics=self.open_object(parts["metrics"], f"{key}.metrics"),
        )

    def check_fast(self, fast: Fast, manifest: Manifest) -> None:
        """Check that the fast member is one of several, and has the outputs that the manifest describes."""
        stages = [member.stage for member in manifest.members]
        if len(stages) == 1:
            raise self.refuse("fast", "left out of a bundle of one network", fast.stage)
        if stages.count(fast.stage) != 1:
            raise self.refuse(
                "fast.stage", "the stage of exactly one member: " + ", ".join(stages), fast.stage
            )
        key = "fast.plausibility"
        if fast.plausibility is None and manifest.plausibility is not None:
            raise self.refuse(key, "an object like plausibility", None)
        if fast.plausibility is not None and manifest.plausibility is None:
            raise self.refuse(key, "null without plausibility", asdict(fast.plausibility))

    def card(self, value: Any, key: str) -> Card:
        parts = self.keys(value, key, Card)
        return Card(
            self.file_name(parts["file"], f"{key}.file"),
            self.sha256(parts["sha256"], f"{key}.sha256"),
        )

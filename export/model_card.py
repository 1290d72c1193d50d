"""The model card of a bundle, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from export.bundle_info import GIVEN_TEMPERATURE, ORIENTATION, BundleInfo, OwnSlices
from export.temperature import why_higher

if TYPE_CHECKING:
    from organ_infer.bundle.files import Fast, Member, Plausibility

DIRECTIONS = {"L": "left", "R": "right", "A": "front", "P": "back", "H": "head", "F": "feet"}


def model_card(
    info: BundleInfo,
    members: Sequence[Member],
    temperature: float,
    plausibility: Plausibility | None = None,
    fast: Fast | None = None,
) -> str:
    """Write the model card: what the bundle is, its data, its metrics and its limits.

    Args:
        info: The facts about the bundle. Its metrics include `val_as_listed`, with `accuracy`, `ece` and
            `ece_uncalibrated`.
        members: The manifest's members, with their alternatives.
        temperature: Divides the logits.
        plausibility: The manifest's, or None if the networks do not know when not to answer.
        fast: The manifest's, or None if there is one network.

    Returns:
        The card as Markdown.
    """
    training, metrics = info.training, info.metrics
    listed = metrics["val_as_listed"]
    networks = ", ".join(f"`{member.stage}`" for member in members)
    averaged = " Their probabilities are averaged." if len(members) > 1 else ""
    smoke = "\n**A smoke run: these figures mean nothing.**\n" if training.get("smoke") else ""
    text = (
        _own_data(info, info.own, plausibility) if info.own else _published_data(info, plausibility)
    )
    return f"""# {info.name}

Research software, not a medical device. Not for diagnosis.
{smoke}
{text.task}
Networks: {networks}, trained {_starting_weights(training)}, seed {training.get("seed")}.{averaged}{_recipe(training)}
{text.input}

| {info.dataset}, {info.size} px | accuracy | AUC | ECE |
|---|---|---|---|
{_metric_rows(metrics)}

Validation selected the epoch of stages that stop early, and the seed. The test split was evaluated once, at the end.
{_seeds(metrics, training)}

These are the figures of the float32 networks, before calibration. {_variants(members)}
Together the listed variants reach {_number(listed["accuracy"])} on validation.

{_calibration(info, temperature)}
{_fast(fast)}
## Data

{text.data}

## Limits

{text.limits}
"""


@dataclass(frozen=True)
class _DataText:
    """The sentences of a card that depend on the data set."""

    task: str
    input: str
    data: str
    limits: str


def _published_data(info: BundleInfo, plausibility: Plausibility | None) -> _DataText:
    """Describe a data set of MedMNIST."""
    from medmnist import INFO

    view, published = info.view, INFO[info.dataset]["n_samples"]
    return _DataText(
        f"Names the organ on a crop of an abdominal CT slice, {view} view: one of"
        f" {len(INFO[info.dataset]['label'])} classes.",
        f"Input: {info.size} x {info.size} gray pixels of a crop around one organ, as MedMNIST stores"
        f" them{_orientation(ORIENTATION.get(view))}.",
        f"""{info.dataset} of MedMNIST v2 (MD5 {info.training.get("data_md5")}): {published["train"]:,} slices for training,
{published["val"]:,} for validation, {published["test"]:,} for testing, of 115, 16 and 70 CT scans. CC BY 4.0. Yang et al.,
"MedMNIST v2", Scientific Data 2023, derived from LiTS: Bilic et al., "The Liver Tumor Segmentation Benchmark", Medical
Image Analysis 2023. This model is derived from that data and has its license.""",
        f"""- Only {view} slices. The answer for another view or body part means nothing.
- The slice must be a crop to the bounding box of one organ, in the orientation of MedMNIST. For a whole slice, another
  crop or a rotated one the answer is wrong{_warned(plausibility)}.
- Neighboring slices of a scan look alike. The spread between patients is wider than the slice counts suggest.""",
    )


def _own_data(info: BundleInfo, own: OwnSlices, plausibility: Plausibility | None) -> _DataText:
    """Describe a data set of the user, of which little is known."""
    known = (
        f"in the {info.view} plane" if own.orientation else "in an orientation that is not known"
    )
    units = "Hounsfield units (int16) or gray values" if own.window else "gray values"
    return _DataText(
        f"Names one of {len(info.classes)} classes on a slice {known}.",
        f"Input: {info.size} x {info.size} pixels, {units}, as in training{_orientation(own.orientation)}.",
        f"""{info.dataset}, own slices (MD5 of their content {info.training.get("data_md5")}): {own.counts["train"]:,} for
training, {own.counts["val"]:,} for validation, {own.counts["test"]:,} for testing. The license of the slices is not stated
here. The user of this model must know it.""",
        f"""- Only slices like those of training: of the same kind, crop, window and orientation. For others the answer is
  wrong{_warned(plausibility)}.
- Slices of one patient look alike. If a patient is in several splits, the figures above are too high.""",
    )


def _warned(plausibility: Plausibility | None) -> str:
    """Return the end of the sentence on inputs for which the answer is wrong."""
    if plausibility is None:
        return ", without a warning"
    return (
        f". The network has a second output for it: the\n  plausibility, the probability of a crop in the required"
        f" orientation. Below {plausibility.threshold:.4g}, as 1 % of the\n  validation slices are, a warning names the"
        " most probable reason. Not every wrong input is below it"
    )


def _starting_weights(training: Mapping[str, Any]) -> str:
    weights = training.get("weights", "none")
    return "from scratch" if weights == "none" else f"from ImageNet weights ({weights})"


def _recipe(training: Mapping[str, Any]) -> str:
    """Return a paragraph about the training of the network; empty if `training` has no recipe."""
    recipe = training.get("recipe")
    if not recipe:
        return ""
    settings = ", ".join(f"{key} {value}" for key, value in recipe["settings"].items())
    return f"\n\n{recipe['network']}; {recipe['epochs']} epochs. Recipe: {settings}.\n"


def _orientation(letters: tuple[str, str] | None) -> str:
    """Describe an orientation; empty if it is unknown."""
    if letters is None:
        return ""
    rows, columns = (DIRECTIONS[letter] for letter in letters)
    return f" (rows run to the patient's {rows}, columns to the {columns})"


def _metric_rows(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    return "\n".join(
        f"| {split} | {' | '.join(_number(metrics[split].get(key)) for key in ('accuracy', 'auc', 'ece'))} |"
        for split in ("train", "val", "test")
        if split in metrics
    )


def _seeds(metrics: Mapping[str, Mapping[str, Any]], training: Mapping[str, Any]) -> str:
    """Name the seed of the figures, and describe the results over all seeds."""
    seeds = metrics.get("seeds")
    if not seeds:
        return "One seed."
    spread = ", ".join(
        f"{split} {key} {_number(seeds[split][key]['mean'])} ± {_number(seeds[split][key]['std'])}"
        for split in ("val", "test")
        for key in ("accuracy", "auc", "ece")
    )
    return (
        f"The table is of seed {training.get('seed')}, the best of {seeds['count']} seeds on validation. As the mean over"
        f" {seeds['count']} seeds, ± one standard deviation: {spread}."
    )


def _variants(members: Sequence[Member]) -> str:
    """List the validation accuracy of each member's variants, in the manifest's order."""
    accuracies = []
    for member in members:
        variants = ", ".join(
            f"{variant.precision} {_number(variant.val_accuracy)}"
            for variant in (member, *member.alternatives)
        )
        accuracies.append(f"`{member.stage}` {variants}")
    return f"Accuracy of each variant on validation, the one listed for CPUs first: {'; '.join(accuracies)}."


def _fast(fast: Fast | None) -> str:
    """Return a paragraph about the member that is used alone; empty if there is one network."""
    if fast is None:
        return ""
    listed = fast.metrics["val_as_listed"]
    threshold = (
        ""
        if fast.plausibility is None
        else f" Its plausibility has the threshold {fast.plausibility.threshold:.4g}."
    )
    return (
        f"\nThe fast member (`--fast`) is `{fast.stage}` alone: accuracy {_number(listed['accuracy'])} on validation,"
        f" with the\ntemperature {fast.temperature:g}, ECE {_number(listed['ece'])}.{threshold}\n"
    )


def _calibration(info: BundleInfo, temperature: float) -> str:
    """Describe the temperature and the calibration errors, or why the fitted temperature is not used."""
    listed = info.metrics["val_as_listed"]
    fitted_on = info.training.get("temperature_fitted_on", "validation")
    before, after = listed["ece_uncalibrated"], listed["ece"]
    if rejected := listed.get("temperature_rejected"):
        return (
            f"Calibration: none, the temperature is 1. A temperature was fitted to the listed variants on\n{fitted_on},"
            f" and rejected:\n{rejected}. ECE on\nvalidation {_number(before)}{_calibration_on_test(info.metrics)}."
        )
    if fitted_on == GIVEN_TEMPERATURE:
        return (
            f"Calibration: logits are divided by the temperature {temperature:g}, fitted on {fitted_on}. ECE on\nvalidation"
            f" {_number(before)} before, {_number(after)} after."
        )
    higher = why_higher(before, after) if "temperature_fitted_on" in info.training else ""
    return (
        f"Calibration: logits are divided by the temperature {temperature:g}, fitted to the listed variants on\n{fitted_on}."
        f" ECE on\nvalidation {_number(before)} before, {_number(after)} after{_calibration_on_test(info.metrics)}."
        + (f" On validation it is {higher}." if higher else "")
    )


def _calibration_on_test(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Describe the effect of calibration on test, if it was measured."""
    calibrated = metrics.get("test", {}).get("ece_calibrated")
    if calibrated is None:
        return "; on other scans expect it to be higher"
    before = metrics["test"]["ece"]
    return f"; on test {_number(before)} before, {_number(calibrated)} after (float32, its own temperature)"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"

"""Writes bundles: a directory with a manifest, the ONNX files that it lists, and a model card."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from export.bundle_info import GIVEN_TEMPERATURE, ORIENTATION, BundleInfo
from export.calibrated import Calibrated, best_member, calibrate
from export.golden import add_golden
from export.member import ExportError
from export.merge import check_same_outputs
from export.model_card import model_card
from export.variants import PRECISIONS, Slices, Variant, make_variants

if TYPE_CHECKING:
    from organ_infer.bundle.files import Fast, Manifest, Member

# Level and width, HU. MedMNIST's abdominal window is 40/400, but crops of real scans are named more often correctly through
# this one (docs/results/robustness.md).
WINDOW = (25, 450)
LICENSE = "CC BY 4.0 (MedMNIST v2)"
OWN_LICENSE = "not stated; that of the slices it was trained on"


@dataclass(frozen=True)
class Trained:
    """A network of a bundle: its stage and its verified ONNX file, as export.member wrote it."""

    stage: str
    file: Path


def write_bundle(
    directory: Path,
    info: BundleInfo,
    members: Sequence[Trained],
    slices: Slices,
    *,
    precisions: Sequence[str] = tuple(PRECISIONS),
    temperature: float | None = None,
    fast_member: str | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Write a bundle and check that the runtime opens it. It appears whole or not at all.

    The temperature is fitted to the variants that are listed first; it is 1 if that makes validation worse. Their metrics on validation with this temperature
    are added to the manifest's as `val_as_listed`. Of several members, one is named that is used alone if speed is preferred, with its own
    temperature, threshold and metrics.

    Args:
        directory: Where the bundle appears. An existing directory is replaced: call `check_place` first.
        info: The facts for the manifest and the model card.
        members: The networks. The runtime averages their probabilities.
        slices: What the variants are converted, measured and calibrated with.
        precisions: Names of the precisions to try. fp32 is always included.
        temperature: Used instead of a fitted one.
        fast_member: The stage of the member that is used alone if speed is preferred. None: the best on validation.
        report: Called with one line per step.

    Returns:
        `directory`.

    Raises:
        ExportError: The bundle cannot be written, or the runtime refuses it. `directory` is then unchanged.
        OSError: No directory can be created beside `directory`.
    """
    from organ_infer import OrganInferError
    from organ_infer.files import atomic_directory

    stack = contextlib.ExitStack()
    building = stack.enter_context(atomic_directory(directory, replace=True))
    try:
        with stack:
            _write_files(
                building, info, members, slices, precisions, temperature, fast_member, report
            )
    except OSError as e:
        raise ExportError(
            f"{directory}: the bundle cannot be written ({e.strerror}); name another directory"
        ) from e
    except OrganInferError as e:
        raise ExportError(f"{directory.name}: the runtime refuses the bundle: {e}") from e
    return directory


def _write_files(
    building: Path,
    info: BundleInfo,
    members: Sequence[Trained],
    slices: Slices,
    precisions: Sequence[str],
    given_temperature: float | None,
    fast_member: str | None,
    report: Callable[[str], None],
) -> None:
    """Write every file of the bundle to the directory `building`."""
    entries, listed = [], []
    failed: dict[str, list[str]] = {}
    graphs = {member.stage: _read_graph(member.file) for member in members}
    check_same_outputs(graphs)
    for member in members:
        failures: list[str] = []
        start = time.perf_counter()
        variants = make_variants(
            member.stage,
            graphs.pop(member.stage),
            slices,
            precisions,
            report=report,
            failed=failures.append,
        )
        report(f"{member.stage}: variants done in {time.perf_counter() - start:.1f} s")
        if failures:
            failed[member.stage] = failures
        entries.append(_write_variants(building, member.stage, variants))
        listed.append(variants[0])

    chosen = calibrate(listed, slices, given_temperature, report)
    info = replace(info, metrics={**info.metrics, "val_as_listed": chosen.metrics})
    if given_temperature is not None:
        info = replace(info, training={**info.training, "temperature_fitted_on": GIVEN_TEMPERATURE})
    fast = _fast(entries, listed, slices, given_temperature, fast_member, report)
    if failed:
        # a run that finds this key repeats the conversion
        info = replace(info, training={**info.training, "failed_conversions": failed})

    card = building / "MODEL_CARD.md"
    card.write_text(
        model_card(info, entries, chosen.temperature, chosen.plausibility, fast), encoding="utf-8"
    )
    manifest = _manifest(info, entries, chosen, fast, card)
    (building / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    # This opens the bundle, so a bundle that the runtime refuses is never written.
    add_golden(building)


def _fast(
    entries: Sequence[Member],
    listed: Sequence[Variant],
    slices: Slices,
    temperature: float | None,
    stage: str | None,
    report: Callable[[str], None],
) -> Fast | None:
    """Return the manifest's entry of the member that is used alone, with what is chosen and measured for it alone.

    Args:
        entries: The manifest's members.
        listed: The variant of each member that is listed first.
        slices: The slices that the variants were measured with.
        temperature: Used instead of a fitted one.
        stage: The stage of the member. None: the best on validation.
        report: Called with one line per choice.
    """
    from organ_infer.bundle.files import Fast

    if len(entries) == 1:
        return None
    stage = stage or best_member(entries).stage
    variant = next(v for e, v in zip(entries, listed, strict=True) if e.stage == stage)
    report(f"{stage}: the fast member, accuracy on validation {variant.val_accuracy:.4f}")
    alone = calibrate([variant], slices, temperature, lambda line: report(f"{stage} alone: {line}"))
    return Fast(stage, alone.temperature, alone.plausibility, {"val_as_listed": alone.metrics})


def _read_graph(path: Path) -> onnx.ModelProto:
    """Read an exported network. Raises ExportError if it is damaged."""
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except OSError:
        raise
    # onnx and protobuf raise many kinds of errors for a damaged file
    except Exception as e:
        raise ExportError(f"{path}: not a sound ONNX file; export the network again") from e
    return model


def _write_variants(building: Path, stage: str, variants: Sequence[Variant]) -> Member:
    """Write the variants of one member. Returns its entry in the manifest."""
    from organ_infer.bundle.files import Member, sha256_of

    entries = []
    for variant in variants:
        path = building / f"{stage}{PRECISIONS[variant.precision].file_suffix}.onnx"
        path.write_bytes(variant.content)
        entries.append(
            Member(
                stage=stage,
                file=path.name,
                sha256=sha256_of(path),
                bytes=len(variant.content),
                precision=variant.precision,
                output="logits",
                val_accuracy=variant.val_accuracy,
            )
        )
    return replace(entries[0], alternatives=tuple(entries[1:]))


def _manifest(
    info: BundleInfo,
    entries: Sequence[Member],
    chosen: Calibrated,
    fast: Fast | None,
    card: Path,
) -> Manifest:
    from organ_infer.bundle.files import Card, Input, Manifest, Task, sha256_of

    classes, own = tuple(info.classes), info.own
    return Manifest(
        format=1,
        name=info.name,
        task=Task(
            dataset=info.dataset,
            view=info.view,
            classes=classes,
            paired=own.paired if own else paired(classes),
        ),
        input=Input(
            size=info.size,
            mean=0.5,
            std=0.5,
            resample=info.resample,
            window=own.window if own else WINDOW,
            orientation=own.orientation if own else ORIENTATION.get(info.view),
        ),
        members=tuple(entries),
        combine="mean_probability",
        temperature=chosen.temperature,
        plausibility=chosen.plausibility,
        fast=fast,
        metrics=info.metrics,
        training=info.training,
        card=Card(file=card.name, sha256=sha256_of(card)),
        license=OWN_LICENSE if own else LICENSE,
    )


def check_place(directory: Path) -> None:
    """Check that a bundle may replace `directory`.

    Raises:
        ExportError: It exists and is not a directory, or it contains files that no bundle has.
    """
    if not os.path.lexists(directory):
        return
    if directory.is_symlink() or not directory.is_dir():
        raise ExportError(
            f"{directory}: not a directory; name a new directory or an existing bundle"
        )
    entries = sorted(directory.iterdir())
    foreign = [
        path.name
        for path in entries
        if path.is_dir() or path.suffix not in (".onnx", ".md", ".json")
    ]
    if entries and (foreign or not _is_manifest(directory / "manifest.json")):
        raise ExportError(
            f"{directory}: not a bundle, contains {(foreign or [entries[0].name])[0]!r}; name a new directory or an"
            " existing bundle"
        )


def _is_manifest(path: Path) -> bool:
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and {"format", "members", "combine"} <= manifest.keys()


def paired(classes: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of classes that are the two sides of one organ.

    Args:
        classes: The class names.

    Returns:
        Pairs (ORGAN-left, ORGAN-right) or (ORGAN_left, ORGAN_right). An organ that is itself a class has no pair.
    """
    pairs = []
    for left in classes:
        for sign in "-_":
            organ = left.removesuffix(f"{sign}left")
            right = f"{organ}{sign}right"
            if organ and organ != left and right in classes and organ not in classes:
                pairs.append((left, right))
    return tuple(pairs)

"""HTML of results and classifiers for Jupyter notebooks: bars of probabilities, and a thumbnail of a file that still exists.

All text is escaped, and colors are those of the page or visible on light and dark ones.
"""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from .bundle.manifest import Manifest
from .errors import printable

if TYPE_CHECKING:
    from .results import OrganPrediction, Prediction

__all__ = ["classifier_html", "organ_html", "prediction_html", "thumbnail_png"]

# Classes with a bar, the most probable first.
BARS = 3
# Pixels of a thumbnail's longest side, and of its box on the page.
THUMBNAIL, BOX = 112, 112
# What is read for a thumbnail, far less than for a prediction: pixels, and bytes of a file.
THUMBNAIL_PIXELS, THUMBNAIL_BYTES = 1 << 24, 1 << 25
# Level and width in HU, the soft tissue window. A result does not know the window of its model.
WINDOW = 40.0, 400.0
BAR, TRACK = "#4a90d9", "rgba(128,128,128,.25)"


def prediction_html(
    prediction: "Prediction", classes: Sequence[str] = (), *, is_file: bool = False
) -> str:
    """Return a prediction as HTML: the thumbnail, the most probable classes with bars, and the warnings.

    Args:
        prediction: What is shown.
        classes: The names of its classes, in the order of its probabilities. Without them, only the label has a bar.
        is_file: Whether its path was read as a file. Results of arrays and bytes have no thumbnail.
    """
    header = [f"<b>{_text(prediction.label)}</b> {prediction.probability:.3f}"]
    if prediction.organ not in (prediction.label, prediction.label.rpartition("-")[0]):
        header.append(f"organ {_text(prediction.organ)} {prediction.organ_probability:.3f}")
    if prediction.path is not None:
        header.append(f"<code>{_text(prediction.path)}</code>")
    bars = _bars(prediction.label, prediction.probability, prediction.probabilities, classes)
    picture = _thumbnail(prediction.path) if prediction.path is not None and is_file else ""
    return _box(picture, header, bars, prediction.warnings)


def organ_html(organ: "OrganPrediction", classes: Sequence[str] = ()) -> str:
    """Return the prediction for an organ of a scan as HTML: the verdict, bars, and the answers of its slices."""
    if organ.agrees:
        verdict = "as expected"
    elif organ.only_side_differs:
        verdict = "the other side"
    else:
        verdict = "not as expected"
    header = [
        f"<b>{_text(organ.expected)}</b> in the mask: {_text(organ.label)} {organ.probability:.3f},"
        f" <b>{verdict}</b>"
    ]
    counts = Counter(each.prediction.label for each in organ.slices).most_common()
    answers = ", ".join(f"{count} {_text(label)}" for label, count in counts)
    header.append(f"{len(organ.slices)} {_text(organ.view)} slices: {answers}")
    bars = _bars(organ.label, organ.probability, organ.probabilities, classes)
    return _box("", header, bars, organ.warnings)


def classifier_html(manifest: Manifest, sha256: str, state: str) -> str:
    """Return a table of what a classifier is: its classes, its input and its networks.

    Args:
        manifest: Of its bundle.
        sha256: Identifies the bundle.
        state: The execution providers, or `closed`.
    """
    task, spec = manifest.task, manifest.input
    networks = ", ".join(f"{each.stage} ({each.precision})" for each in manifest.members)
    orientation = "".join(spec.orientation or ()) or "not known"
    window = "none" if spec.window is None else f"{spec.window[0]:g} / {spec.window[1]:g} HU"
    rows = {
        "model": manifest.name + (", from a smoke run" if manifest.is_smoke else ""),
        "trained on": f"{task.dataset}, {task.view}",
        "classes": ", ".join(task.classes),
        "input": f"{spec.size} x {spec.size}, orientation {orientation}, window {window}",
        "networks": networks,
        "runs on": state,
        "sha256": sha256,
    }
    cells = "".join(
        f'<tr><th style="text-align:left;white-space:nowrap">{name}</th><td style="text-align:left">{_text(value)}</td></tr>'
        for name, value in rows.items()
    )
    return (
        f"<div><b>OrganClassifier</b><table>{cells}</table>"
        "<small>Research software, not a medical device.</small></div>"
    )


def thumbnail_png(path: str) -> bytes | None:
    """Return a slice of a file as a small PNG, or None if it cannot be read now.

    The file is read as stored, without reorientation. Files over 32 MiB and slices over 16 million pixels have none.

    Args:
        path: As in `Prediction.path`, with `#0`, `#1`, ... for files of many slices.
    """
    try:
        return _thumbnail_png(path)
    except Exception:
        # A notebook shows the result also if its file is gone, was changed, or lacks a decoder.
        return None


def _thumbnail_png(path: str) -> bytes:
    import numpy as np
    from PIL import Image

    from .images.registry import open_slices
    from .images.types import Limits

    limits = Limits(THUMBNAIL_PIXELS, THUMBNAIL_BYTES, any_modality=True)
    # the file is open until `slices` goes, also if it has more of them
    slices = open_slices(path, limits)
    _, read = next(slices)
    pixels = read().pixels
    # less to convert, and still more pixels than the thumbnail has
    step = max(1, max(pixels.shape) // (4 * THUMBNAIL))
    pixels = pixels[::step, ::step]
    if pixels.dtype == np.int16:
        level, width = WINDOW
        fraction = (pixels - (level - width / 2)) / width
    else:
        fraction = pixels / np.iinfo(pixels.dtype).max
    image = Image.fromarray(np.rint(fraction.clip(0, 1) * 255).astype(np.uint8))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _thumbnail(path: str) -> str:
    """Return the picture of a file, or nothing."""
    png = thumbnail_png(path)
    if png is None:
        return ""
    return (
        f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}"'
        ' alt="the slice, read from its file now" title="the slice, read from its file now"'
        f' style="width:{BOX}px;height:{BOX}px;object-fit:contain;image-rendering:pixelated;background:#000"/>'
    )


def _bars(
    label: str, probability: float, probabilities: Sequence[float], classes: Sequence[str]
) -> str:
    """Return a table of the most probable classes. Without their names, only the label has a bar."""
    shown = [(label, probability)]
    if len(classes) == len(probabilities):
        shown = sorted(zip(classes, probabilities, strict=True), key=lambda pair: -pair[1])[:BARS]
    rows = "".join(
        '<tr style="background:none"><td style="text-align:left;padding:1px 8px 1px 0">'
        f"{_text(name)}</td>"
        f'<td style="padding:1px"><div style="width:120px;background:{TRACK}">'
        f'<div style="width:{min(max(value, 0), 1):.1%};height:10px;background:{BAR}"></div></div></td>'
        f'<td style="text-align:right;padding:1px 0 1px 8px">{value:.3f}</td></tr>'
        for name, value in shown
    )
    return f'<table style="border-collapse:collapse;margin:2px 0">{rows}</table>'


def _box(picture: str, header: Iterable[str], bars: str, warnings: Iterable[str]) -> str:
    notes = "".join(f"<li>{_text(warning)}</li>" for warning in warnings)
    listed = f'<ul style="margin:2px 0">{notes}</ul>' if notes else ""
    return (
        '<div style="display:flex;gap:12px;align-items:flex-start">'
        f"{picture}<div><div>{'<br/>'.join(header)}</div>{bars}{listed}</div></div>"
    )


def _text(value: str) -> str:
    return escape(printable(value))

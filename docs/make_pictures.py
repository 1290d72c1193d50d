"""Three pictures, and the table of docs/guides/orientation.md.

    python docs/make_pictures.py --data-dir DIR

docs/assets/predictions.png: the packaged model's answers, for each class an example and the validation slice that it
is least sure of. docs/assets/orientation.png: a right lung as it is usually shown and as MedMNIST stores it. The
docs/assets/audit.png: examples with labels as in a mask whose kidneys are swapped, and the model's answers. The
printed table counts, on train and validation, at which edge of a lung's slice the spine lies, and at which edge the
middle of the body.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "docs" / "assets"
sys.path.insert(0, str(ROOT))
from train.data import load_data  # noqa: E402

BONE = 235  # gray value: vertebrae, under the abdominal window
CLEAR = 8  # pixels more at one edge than at the other


def predictions(path: Path, slices: np.ndarray, labels: np.ndarray) -> None:
    """For each class an example, and below it the slice of the class whose highest probability is the lowest.

    slices: uint8 (N, H, W); labels: int (N,).
    """
    from organ_infer import OrganClassifier

    with OrganClassifier(device="cpu") as classifier:
        classes = classifier.classes
        files = [ROOT / "examples" / f"{name}-2.png" for name in classes]
        examples = [np.asarray(Image.open(file)) for file in files]
        sureness = classifier.predict_proba(slices).max(axis=1)
        hardest = [np.flatnonzero(labels == index) for index in range(len(classes))]
        hardest = [of_class[sureness[of_class].argmin()] for of_class in hardest]
        rows = ("an example", examples), ("least sure", [slices[index] for index in hardest])
        figure = Figure(figsize=(11, 3.5), layout="constrained")
        grid = figure.subplots(len(rows), len(classes))
        for line, (title, images) in zip(grid, rows, strict=True):
            line[0].set_ylabel(title, fontsize=10)
            answers = classifier.predict(images)
            for axes, image, answer, name in zip(line, images, answers, classes, strict=True):
                axes.imshow(image, cmap="gray", vmin=0, vmax=255)
                right = answer.label == name
                axes.set_title(answer.label, fontsize=10.5, color="black" if right else "#b3261e")
                truth = "" if right else f"\n(is {name})"
                axes.set_xlabel(f"{answer.probability:.2f}{truth}", fontsize=10, color="#333333")
                axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def audit(path: Path) -> None:
    """Examples with the labels of a mask whose kidneys are swapped, and the model's answers."""
    from organ_infer import OrganClassifier

    # what a mask would say, and the example that it says it of
    crops = [
        ("liver", "liver-1"),
        ("spleen", "spleen-1"),
        ("kidney-left", "kidney-right-1"),
        ("kidney-right", "kidney-left-1"),
        ("kidney-left", "kidney-right-2"),
        ("kidney-right", "kidney-left-2"),
    ]
    images = [np.asarray(Image.open(ROOT / "examples" / f"{name}.png")) for _, name in crops]
    with OrganClassifier(device="cpu") as classifier:
        answers = classifier.predict(images)
    figure = Figure(figsize=(11.5, 2.4), layout="constrained")
    for axes, image, (label, _), answer in zip(
        figure.subplots(1, len(crops)), images, crops, answers, strict=True
    ):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"mask: {label}", fontsize=10)
        color = "#1b6e35" if answer.label == label else "#b3261e"
        axes.set_xlabel(f"model: {answer.label} {answer.probability:.2f}", fontsize=9, color=color)
        axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def orientation(path: Path, slice_of: np.ndarray) -> None:
    """The slice as usually shown and as stored, with the patient's directions at its edges."""
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    shown = [
        ("as usually shown (P, L)", slice_of.T, "FRLB"),
        ("as stored (L, P)", slice_of, "RFBL"),
    ]
    names = {"F": "front", "B": "back", "R": "right", "L": "left"}
    for axes, (title, image, edges) in zip(figure.subplots(1, 2), shown, strict=True):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"{title}\n{names[edges[0]]}", fontsize=9)
        axes.set_ylabel(names[edges[1]], fontsize=9)
        axes.text(
            1.03,
            0.5,
            names[edges[2]],
            transform=axes.transAxes,
            rotation=270,
            va="center",
            fontsize=9,
        )
        axes.set_xlabel(names[edges[3]], fontsize=9)
    figure.savefig(path, dpi=110)


def count_edges(
    images: np.ndarray, labels: np.ndarray, classes: list[str]
) -> dict[str, tuple[float, float, int]]:
    """By lung: share of slices whose middle of the body lies above, share whose spine lies right, slices with a spine."""
    found = {}
    for name, middle in (("lung-left", slice(0, 8)), ("lung-right", slice(20, 28))):
        a = images[labels == classes.index(name)]
        bright = a.astype(float)
        above = (bright[:, :8].mean((1, 2)) > bright[:, 20:].mean((1, 2))).mean()
        bone = a[:, middle] > BONE
        left, right = (
            bone[:, :, :9].sum((1, 2)).astype(int),
            bone[:, :, 19:].sum((1, 2)).astype(int),
        )
        clear = np.abs(left - right) > CLEAR
        found[name] = (float(above), float((right > left)[clear].mean()), int(clear.sum()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    data = load_data("organamnist", directory=parser.parse_args().data_dir)
    print(f"{'split':<7}{'class':<12}{'middle above':>13}{'spine right':>13}{'of slices':>11}")
    for split in ("train", "val"):
        for name, (above, right, n) in count_edges(
            data.images[split], data.labels[split], data.classes
        ).items():
            print(f"{split:<7}{name:<12}{above:>13.3f}{right:>13.3f}{n:>11}")
    lungs = data.images["val"][data.labels["val"] == data.classes.index("lung-right")]
    orientation(ASSETS / "orientation.png", lungs[(lungs[:, 20:, 19:] > BONE).sum((1, 2)).argmax()])
    audit(ASSETS / "audit.png")
    predictions(ASSETS / "predictions.png", data.images["val"], data.labels["val"])


if __name__ == "__main__":
    main()

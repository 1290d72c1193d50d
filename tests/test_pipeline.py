"""From PNG files through organ-infer to the accuracy of the packaged member on the same arrays: exactly equal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from scipy.special import softmax

from organ_infer._packing import pack
from tests.support.data_files import DATA, needs_organamnist

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = ROOT / "runtime" / "organ_infer" / "default"
SPLIT = os.environ.get("ORGAN_PIPELINE_SPLIT", "val")
SLICES = 2000 if SPLIT == "test" else 500


@needs_organamnist
def test_pngs_through_the_command_give_the_members_answers(tmp_path):
    with np.load(DATA / "organamnist.npz") as file:
        images, labels = file[f"{SPLIT}_images"][:SLICES], file[f"{SPLIT}_labels"][:SLICES, 0]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:05}.png")
    command = [
        sys.executable,
        "-m",
        "organ_infer",
        "--bundle",
        str(DEFAULT),
        "--format",
        "jsonl",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in rows] == [str(tmp_path / f"{i:05}.png") for i in range(SLICES)]
    manifest = json.loads((DEFAULT / "manifest.json").read_text())
    packed, means = pack(images), []
    for member in manifest["members"]:
        graph = DEFAULT / member["file"]
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        logits = session.run(["logits"], {"images": packed})[0].astype(float)
        means.append(softmax(logits / manifest["temperature"], axis=1))
    answers = np.mean(means, axis=0).argmax(1)
    said = np.array([row["index"] for row in rows])
    accuracy, expected = (said == labels).mean(), (answers == labels).mean()
    print(f"\n{SLICES} slices of {SPLIT}: organ-infer {accuracy}, the members {expected}")
    assert accuracy == expected and (said == answers).all()


def test_the_packaged_bundle_names_its_examples():
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "organ_infer",
            "--bundle",
            str(DEFAULT),
            "--format",
            "jsonl",
            str(ROOT / "examples"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    right = sum(row["label"] == Path(row["path"]).stem.rsplit("-", 1)[0] for row in rows)
    assert len(rows) == 44 and right >= 42


def test_the_packaged_model_fits_and_says_what_it_is():
    manifest = json.loads((DEFAULT / "manifest.json").read_text())
    assert manifest["task"]["view"] == "axial" and manifest["input"]["orientation"] == ["L", "P"]
    assert sum(path.stat().st_size for path in DEFAULT.iterdir()) <= 8 << 20
    assert "axial" in (DEFAULT / "MODEL_CARD.md").read_text()
    assert sum(listed["bytes"] for listed in manifest["members"]) <= 2 << 20
    for listed in manifest["members"]:
        (exact,) = listed["alternatives"]
        assert (listed["precision"], exact["precision"]) == ("int8", "fp32")
        assert listed["val_accuracy"] >= exact["val_accuracy"] - 0.002
    accuracy = manifest["metrics"]["val"]["accuracy"]
    assert manifest["metrics"]["val_as_listed"]["accuracy"] == pytest.approx(accuracy, abs=1e-3)
    best = max(manifest["members"], key=lambda listed: listed["val_accuracy"])
    assert manifest["fast"]["stage"] == best["stage"]

"""python tests/benchmarks/no_crops.py FILE: which scores tell what is no crop around an organ from what is.

FILE: organamnist.npz. Each score's threshold lets 1 % of the validation slices pass for odd; the table tells the share of
each kind of odd picture beyond it. The distances are Mahalanobis's to the nearest class mean of the training split, with
one covariance (Lee et al., NeurIPS 2018), of the packaged float32 network's logits and of what its last layer gets;
energy is Liu et al.'s (NeurIPS 2020). Warned: the share that gets a `implausible:` warning. Test is not touched.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from PIL import Image
from scipy.special import logsumexp, softmax
from sklearn.datasets import load_sample_images

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from export.member import open_session
from organ_infer import OrganClassifier
from organ_infer._packing import pack
from organ_infer.bundle.files import packaged_bundle

ALARMS = 0.01  # of validation
SOME = 1500
RNG = np.random.default_rng(0)


def made(image, size=28):
    """Resampled by areas: uint8 (S, S)."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))


def crops(photographs, least, most, count=600):
    """Squares of so many pixels a side, somewhere in a photograph."""
    found = []
    for _ in range(count):
        photograph, side = (
            photographs[RNG.integers(len(photographs))],
            int(RNG.integers(least, most)),
        )
        y, x = (int(RNG.integers(0, length - side + 1)) for length in photograph.shape)
        found.append(made(np.ascontiguousarray(photograph[y : y + side, x : x + side])))
    return np.array(found)


def kinds(slices):
    """name -> uint8 (N, 28, 28), made of photographs, of noise, and of validation slices."""
    photographs = [
        np.asarray(Image.fromarray(image).convert("L")) for image in load_sample_images().images
    ]
    far = slices.astype(float) - 128
    small = np.zeros_like(slices)
    for i, image in enumerate(slices):
        small[i, 4:24, 4:24] = made(image, 20)
    quarters = np.array([made(image, 14) for image in slices[: len(slices) // 4 * 4]]).reshape(
        -1, 2, 2, 14, 14
    )
    return {
        "photographs, nearly whole": crops(photographs, 200, 420),
        "photographs, pieces": crops(photographs, 28, 200),
        "noise": RNG.integers(0, 256, (600, 28, 28), np.uint8),
        "four times the window's width": np.clip(128 + far / 4, 0, 255).astype(np.uint8),
        "a quarter of the window's width": np.clip(128 + far * 4, 0, 255).astype(np.uint8),
        "black and white swapped": 255 - slices,
        "smaller, black around": small,
        "four slices in one": quarters.transpose(0, 1, 3, 2, 4).reshape(-1, 28, 28),
        "turned by 90 degrees": np.rot90(slices, 1, (1, 2)),
        "turned by 180 degrees": np.rot90(slices, 2, (1, 2)),
    }  # fmt: skip


def distance_to(values, labels):
    """values: (N, D) of labels -> what gives the distance of others to the nearest class mean."""
    means = np.stack([values[labels == c].mean(0) for c in range(labels.max() + 1)])
    spread = np.cov((values - means[labels]).T)
    inverse = np.linalg.inv(spread + 1e-5 * np.trace(spread) / len(spread) * np.eye(len(spread)))

    def distance(others):
        return np.min(
            [np.einsum("ni,ij,nj->n", d, inverse, d) for d in (others - m for m in means)], axis=0
        )

    return distance


def main(file):
    model = onnx.load(packaged_bundle() / "edge_deep.onnx")
    before_last = model.graph.node[-1].input[0]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(before_last, onnx.TensorProto.FLOAT, None)
    )
    session = open_session(model.SerializeToString())

    def answers(images):
        packed = pack(np.ascontiguousarray(images), 28)
        parts = [session.run(["logits", before_last], {"images": packed[i : i + 256]}) for i in range(0, len(packed), 256)]  # fmt: skip
        return tuple(
            np.concatenate(column).astype(np.float64) for column in zip(*parts, strict=True)
        )

    with np.load(file) as arrays:
        train, labels, val = (
            arrays["train_images"],
            arrays["train_labels"][:, 0],
            arrays["val_images"],
        )
    logits, features = answers(train)
    by_logits, by_features = distance_to(logits, labels), distance_to(features, labels)
    scores = {
        "probability": lambda z, f: -softmax(z, axis=1).max(1),
        "energy": lambda z, f: -logsumexp(z, axis=1),
        "distance of logits": lambda z, f: by_logits(z),
        "distance of features": lambda z, f: by_features(f),
    }
    usual = answers(val)
    thresholds = {name: np.quantile(score(*usual), 1 - ALARMS) for name, score in scores.items()}
    print(f"| | {' | '.join(scores)} | warned |\n|---{'|---' * (len(scores) + 1)}|")
    with OrganClassifier(device="cpu") as classifier:
        for kind, images in kinds(val[RNG.choice(len(val), SOME, replace=False)]).items():
            found = answers(images)
            warned = np.mean(
                [bool(p.warnings) for p in classifier.predict(np.ascontiguousarray(images))]
            )
            cells = [(score(*found) > thresholds[name]).mean() for name, score in scores.items()]
            print(f"| {kind} | {' | '.join(f'{cell:.0%}' for cell in [*cells, warned])} |")


if __name__ == "__main__":
    main(*sys.argv[1:])

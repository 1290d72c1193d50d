"""python tests/benchmarks/packaged.py [--fast] FILE [SPLIT] [BUNDLE]: a bundle on a MedMNIST split, through the runtime.

FILE: organamnist.npz; SPLIT: val by default; BUNDLE: the packaged one by default; --fast: only its fast member. Prints accuracy, AUC and ECE with the
temperature and, of one network, without, with and without test-time augmentation, and what that costs; and what is left
where answers below a probability are taken for uncertain.
"""

import sys
from pathlib import Path

import numpy as np
from turns import medians

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from export.member import open_session
from export.temperature import mean_softmax
from organ_infer import OrganClassifier
from organ_infer._packing import pack
from organ_infer.bundle.files import packaged_bundle
from organ_infer.evaluation.calibration import expected_calibration_error
from train.metrics import area_under_curve


def main(file, split="val", bundle=None, *, fast=False):
    with np.load(file) as arrays:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"][:, 0].astype(int)
    plain, shifted = (
        OrganClassifier(bundle, device="cpu", tta=tta, fast=fast) for tta in (False, True)
    )
    name, temperature = plain.manifest.name, plain.manifest.temperature
    rows = {"as it is": plain.predict_proba(images), "with tta": shifted.predict_proba(images)}
    if len(plain.manifest.members) == 1:
        raw = rows["as it is"].astype(float).clip(1e-12) ** temperature
        rows["without temperature"] = raw / raw.sum(1, keepdims=True)
    print(f"{name}, {split}, {len(labels):,} slices, temperature {temperature:g}\n")
    print("| | accuracy | AUC | ECE |\n|---|---|---|---|")
    for what, found in rows.items():
        ece = expected_calibration_error(found, labels)
        print(
            f"| {what} | {(found.argmax(1) == labels).mean():.4f} | {area_under_curve(found, labels):.4f} | {ece:.4f} |"
        )
    organs = plain.manifest.task.organs()
    names = sorted(set(organs))
    of = np.array([names.index(organ) for organ in organs])
    merged = np.stack([rows["as it is"][:, of == k].sum(1) for k in range(len(names))], 1)
    print(f"\nthe organ without its side: {(merged.argmax(1) == of[labels]).mean():.4f}")
    found = rows["as it is"]
    for least in (0.5, 0.8, 0.9, 0.95):
        sure = found.max(1) >= least
        right = (found[sure].argmax(1) == labels[sure]).mean()
        print(
            f"--min-probability {least}: {1 - sure.mean():.1%} uncertain, {right:.4f} of the rest right"
        )
    compare_forms(plain, Path(bundle or packaged_bundle()), images, rows["as it is"])
    runs = [lambda c=c: c.predict_proba(images[:2048]) for c in (plain, shifted)]
    alone, five = medians(runs, [1, 1], 7, rest=0.05)
    print(
        f"\ntime with tta: {five / alone:.1f} times as long ({five / 2048 * 1e6:.0f}, {alone / 2048 * 1e6:.0f} us a slice)"
    )


def compare_forms(classifier, bundle, images, found):
    """What the form in use answers against float32, of one network."""
    member = classifier.manifest.members[0]
    exact = next((form for form in member.alternatives if form.precision == "fp32"), None)
    if exact is None or len(classifier.manifest.members) > 1:
        return
    how = classifier.manifest.input
    session = open_session((bundle / exact.file).read_bytes())
    packed = pack(images, how.size, mean=how.mean, std=how.std, resample=how.resample)
    logits = [
        session.run(["logits"], {"images": packed[i : i + 256]})[0]
        for i in range(0, len(packed), 256)
    ]
    wanted = mean_softmax([np.concatenate(logits)], classifier.manifest.temperature)
    apart = np.abs(wanted - found).max(1)
    labels = (wanted.argmax(1) != found.argmax(1)).sum()
    print(
        f"\n{member.precision} against fp32: probabilities apart by {np.quantile(apart, 0.99):.3f} at most for 99 % of the"
        f" slices, {apart.max():.3f} for the worst; another label for {labels} of {len(images):,}"
    )


if __name__ == "__main__":
    main(*(text for text in sys.argv[1:] if text != "--fast"), fast="--fast" in sys.argv)

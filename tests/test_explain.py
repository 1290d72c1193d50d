"""OrganClassifier.explain, and the overlay: maps by occlusion."""

import io

import numpy as np
import pytest
from conftest import CLASSES, ROOT, child_environment, needs_default, write_bundle
from PIL import Image

from organ_infer import InputError, OrganClassifier, OrganInferError
from organ_infer.explain import (
    FULL_COLOR,
    OVERLAY_SIDE,
    explanation_overlay,
    occlusion_map,
    overlay_png,
    stretched,
)
from organ_infer.images.orientation import reorient
from tests.benchmarks import faithfulness

# the rows and columns that `corner_bundle` sees
SEEN = (slice(4, 8), slice(18, 24))


def corner_graph():
    """A network whose logit for `liver` is the sum over SEEN, and 0 for all other classes."""
    from onnx import TensorProto, checker, helper, numpy_helper

    weights = np.zeros((28, 28, len(CLASSES)), np.float32)
    weights[*SEEN, CLASSES.index("liver")] = 0.2
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "corner",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(CLASSES)])],
        [numpy_helper.from_array(weights.reshape(784, -1), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model, full_check=True)
    return model.SerializeToString()


@pytest.fixture(scope="module")
def corner_classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corner") / "b"
    with OrganClassifier(write_bundle(folder, {"c.onnx": corner_graph()}), device="cpu") as opened:
        yield opened


@pytest.fixture(scope="module")
def bright_corner():
    """uint8 (28, 28): bright where `corner_bundle` looks, dark elsewhere."""
    pixels = np.full((28, 28), 20, np.uint8)
    pixels[SEEN] = 220
    return pixels


# The map.


@pytest.mark.parametrize("shape", [(28, 28), (9, 12), (60, 33), (300, 301)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_a_map_has_the_size_of_its_slice(classifier, shape, dtype):
    pixels = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    heat = classifier.explain(pixels)
    assert heat.shape == shape and heat.dtype == np.float32
    assert heat.flags.c_contiguous and heat.flags.writeable
    assert np.isfinite(heat).all() and np.abs(heat).max() > 0


def test_a_pillow_image_and_a_stack_of_one_are_slices(classifier, slices):
    expected = classifier.explain(slices[0])
    for image in (Image.fromarray(slices[0]), slices[:1], [slices[0]]):
        np.testing.assert_array_equal(classifier.explain(image), expected)


def mean_drops(classify, packed, index, sides, step):
    """The map by plain loops over the positions of the squares."""
    size = packed.shape[-1]

    def log_odds(image):
        probability = classify(image)[0, index]
        return np.log(probability / (1 - probability))

    unchanged = log_odds(packed)
    expected = np.zeros((size, size))
    for side in sides:
        total, times = np.zeros((size, size)), np.zeros((size, size))
        for top in range(step - side, size, step):
            for left in range(step - side, size, step):
                square = (slice(max(top, 0), top + side), slice(max(left, 0), left + side))
                hidden = packed.copy()
                hidden[0, 0][square] = packed.mean()
                total[square] += unchanged - log_odds(hidden)
                times[square] += 1
        assert times.min() > 0
        expected += total / times / len(sides)
    return expected


def test_the_map_is_the_mean_drop_over_the_squares_that_cover_a_pixel(classifier, slices):
    packed = classifier._pack([slices[3]])
    index = int(classifier.predict_proba(slices[3])[0].argmax())
    expected = mean_drops(classifier._probabilities, packed, index, (4, 10), 2)
    np.testing.assert_allclose(classifier.explain(slices[3]), expected, atol=1e-6)


def test_the_map_shows_where_the_network_looks(corner_classifier, bright_corner):
    heat = corner_classifier.explain(bright_corner, "liver")
    seen = np.zeros((28, 28), bool)
    seen[SEEN] = True
    assert heat[seen].min() > heat[~seen].max() > 0
    # no square of 10 pixels covers both this pixel and what the network sees
    assert (heat[SEEN[0].stop + 9 :] == 0).all() and (heat[:, : SEEN[1].start - 9] == 0).all()


def test_what_speaks_against_a_class_is_negative(corner_classifier, bright_corner):
    heat = corner_classifier.explain(bright_corner, "spleen")
    assert heat[SEEN].max() < 0


def test_the_predicted_class_is_looked_at_by_default(classifier, slices):
    label = classifier.predict(slices[1])[0].label
    np.testing.assert_array_equal(
        classifier.explain(slices[1]), classifier.explain(slices[1], label)
    )
    other = next(name for name in CLASSES if name != label)
    assert (classifier.explain(slices[1], label=other) != classifier.explain(slices[1])).any()


def test_the_size_of_batches_does_not_matter(bundle, classifier, slices):
    with OrganClassifier(bundle, device="cpu", batch_size=7) as opened:
        np.testing.assert_allclose(
            opened.explain(slices[0]), classifier.explain(slices[0]), atol=1e-6
        )


@pytest.mark.parametrize("letters", ["PL", "AR", "LA", "LP"])
def test_a_map_lies_as_its_slice_whatever_the_orientation(bundle, classifier, letters):
    pixels = np.random.default_rng(1).integers(0, 256, (40, 30), np.uint8)
    orientation = tuple(letters)
    as_model = np.ascontiguousarray(reorient(pixels, orientation, ("L", "P")))
    with OrganClassifier(bundle, device="cpu", orientation=letters) as opened:
        heat = opened.explain(pixels, "liver")
    assert heat.shape == pixels.shape and heat.flags.c_contiguous
    expected = classifier.explain(as_model, "liver")
    np.testing.assert_array_equal(reorient(heat, orientation, ("L", "P")), expected)


def test_shifted_views_and_several_networks_are_explained_too(ensemble, slices):
    with (
        OrganClassifier(ensemble, device="cpu") as plain,
        OrganClassifier(ensemble, device="cpu", tta=True) as shifted,
    ):
        one, other = plain.explain(slices[0], "liver"), shifted.explain(slices[0], "liver")
    assert one.shape == other.shape == (28, 28)
    assert (one != other).any()


@pytest.mark.parametrize(
    ("size", "sides", "step"), [(4, (1, 1), 1), (6, (1, 2), 1), (28, (4, 10), 2), (56, (8, 20), 4)]
)
def test_networks_of_any_size_are_explained(size, sides, step):
    rng = np.random.default_rng(2)
    packed = rng.normal(size=(1, 1, size, size)).astype(np.float32)
    weights = rng.normal(size=(size, size)) / size

    def classify(images):
        probability = 1 / (1 + np.exp(-(images[:, 0] * weights).sum(axis=(1, 2))))
        return np.stack([probability, 1 - probability], axis=1)

    heat = occlusion_map(classify, packed, 0, 64)
    np.testing.assert_allclose(heat, mean_drops(classify, packed, 0, sides, step), atol=1e-5)
    np.testing.assert_allclose(heat, -occlusion_map(classify, packed, 1, 64), atol=1e-6)


@pytest.mark.parametrize("shape", [(28, 28), (56, 84), (13, 200), (1, 2)])
def test_a_map_is_stretched_by_linear_interpolation(shape):
    heat = np.random.default_rng(3).normal(size=(28, 28)).astype(np.float32)
    found = stretched(heat, *shape)
    rows, columns = ((np.arange(n) + 0.5) * 28 / n - 0.5 for n in shape)
    expected = np.stack([np.interp(rows, np.arange(28), column) for column in heat.T], axis=1)
    expected = np.stack([np.interp(columns, np.arange(28), row) for row in expected])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32


def test_a_probability_near_1_still_has_a_map():
    """The probability itself stays 1 in float32 whatever is hidden. The log odds are the logit."""
    packed = np.random.default_rng(2).normal(size=(1, 1, 28, 28)).astype(np.float32)

    def classify(images, scale=1.0):
        logits = np.zeros((len(images), 3))
        logits[:, 0] = 22 + scale * images[:, 0, :14].mean(axis=(1, 2))
        terms = np.exp(logits)
        return terms / terms.sum(axis=1, keepdims=True)

    assert classify(packed)[0, 0] > 1 - 1e-8
    heat = occlusion_map(classify, packed, 0, 64)
    assert np.abs(heat[:4]).max() > 1e-3 and (heat[24:] == 0).all()


def test_probabilities_of_0_and_1_have_finite_maps():
    packed = np.random.default_rng(2).normal(size=(1, 1, 28, 28)).astype(np.float32)

    def classify(images):
        answers = np.zeros((len(images), 2))
        certain = (images == packed).all(axis=(1, 2, 3))
        answers[certain, 0], answers[~certain, 1] = 1, 1
        return answers

    for index, sign in (0, 1), (1, -1):
        heat = occlusion_map(classify, packed, index, 64)
        np.testing.assert_allclose(heat, sign * 2 * np.log(1e12), rtol=1e-6)


# Arguments.


@pytest.mark.parametrize(
    "label", ["Liver", "lung", "", b"liver", 3, ["liver"], np.array(["a"] * 2)]
)
def test_a_label_that_is_no_class_is_refused(classifier, slices, label):
    with pytest.raises(
        InputError, match=r"^label: expected one of .* pass one of bladder, femur-left"
    ):
        classifier.explain(slices[0], label)


def test_only_one_slice_is_explained(classifier, slices):
    with pytest.raises(
        InputError, match=r"^image: expected one slice, found 3; call explain once per slice$"
    ):
        classifier.explain(slices[:3])
    for nothing in ([], "slice.png", b"bytes", np.zeros((28, 28), float), None):
        with pytest.raises(InputError):
            classifier.explain(nothing)


def test_a_closed_classifier_explains_nothing(bundle, slices):
    opened = OrganClassifier(bundle, device="cpu")
    opened.close()
    with pytest.raises(OrganInferError, match="closed"):
        opened.explain(slices[0])


def test_classifying_loads_nothing_of_explanations(bundle):
    import subprocess
    import sys

    code = (
        "import sys\nimport numpy as np\nfrom organ_infer import OrganClassifier\n"
        f"with OrganClassifier({str(bundle)!r}, device='cpu') as c:\n"
        "    c.predict(np.zeros((28, 28), np.uint8))\n"
        "    assert 'organ_infer.explain' not in sys.modules\n"
        "    c.explain(np.zeros((28, 28), np.uint8))\n"
        "    assert 'organ_infer.explain' in sys.modules\n"
        "    assert not {'PIL', 'matplotlib', 'scipy', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=child_environment())


# The overlay.


def rgba(png):
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGBA")).astype(int)


def test_an_overlay_is_orange_blue_or_transparent():
    heat = np.zeros((28, 28), np.float32)
    heat[2:6, 2:6], heat[20:24, 20:24], heat[12, 12] = 4, -4, 1
    pixels = rgba(overlay_png(heat))
    assert pixels.shape == (28, 28, 4)
    assert tuple(pixels[3, 3]) == (255, 140, 0, 200)
    assert tuple(pixels[21, 21]) == (40, 120, 255, 200)
    assert 0 < pixels[12, 12, 3] < 100
    assert pixels[0, 0, 3] == pixels[15, 15, 3] == 0
    assert (pixels[..., 3] > 0).sum() == 33


def test_small_drops_are_not_drawn_as_large_ones():
    heat = np.full((28, 28), FULL_COLOR / 4, np.float32)
    assert rgba(overlay_png(heat))[0, 0, 3] < 100
    assert rgba(overlay_png(heat * 40))[0, 0, 3] == 200
    assert (rgba(overlay_png(heat * 0))[..., 3] == 0).all()


@pytest.mark.parametrize(
    ("shape", "size"),
    [((28, 28), (28, 28)), ((300, 150), (56, 28)), ((2, 5000), (1, 56)), ((10, 7), (10, 7))],
)
def test_an_overlay_is_small_and_has_the_proportions_of_its_slice(shape, size):
    heat = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    png = overlay_png(heat)
    assert rgba(png).shape[:2] == size and max(size) <= OVERLAY_SIDE
    assert len(png) < 4000


def test_an_overlay_is_made_from_an_image(classifier, slices):
    png = explanation_overlay(classifier, slices[0], "liver")
    assert png == overlay_png(classifier.explain(slices[0], "liver"))
    assert len(png) < 1000


# Faithfulness.


@pytest.fixture(scope="module")
def examples():
    paths = sorted((ROOT / "examples").glob("*.png"))
    return np.stack([np.asarray(Image.open(path)) for path in paths])


@needs_default
def test_the_map_finds_what_the_packaged_model_needs(examples):
    """Removing squares in the map's order lowers the probability faster than in random orders, and the reverse order slower."""
    examples = examples[::2]
    with OrganClassifier(device="cpu", batch_size=256) as opened:
        labels = opened.predict_proba(examples).argmax(axis=1)
        heat = np.stack([opened.explain(image) for image in examples])
        importance = faithfulness.part_means(heat, 4)
        removed = faithfulness.mean_gray(examples)
        ranked, reverse = (
            faithfulness.deletion(opened, examples, removed, order, labels, 4)
            for order in (importance, -importance)
        )
        at_random = faithfulness.random_deletion(opened, examples, removed, labels, 4)
    assert faithfulness.interval(ranked - at_random)[1] < 0 < at_random.mean()
    assert faithfulness.interval(reverse - at_random)[0] > 0


def test_parts_are_removed_in_order(corner_classifier, bright_corner):
    """Removing what the network sees first leaves the least area under the curve."""
    images = np.repeat(bright_corner[None], 2, axis=0)
    important = np.zeros((28, 28))
    important[SEEN] = 1
    order = np.stack([important.ravel(), -important.ravel()])
    labels = np.full(2, CLASSES.index("liver"))
    first, last = faithfulness.deletion(
        corner_classifier, images, np.zeros_like(images), order, labels, 1
    )
    whole = corner_classifier.predict_proba(bright_corner)[0, labels[0]]
    assert first < 0.1 * whole and last > 0.9 * whole


def test_faithfulness_is_measured_on_validation_alone(
    tmp_path, monkeypatch, capsys, bundle, slices
):
    """The file has no test split."""
    np.savez(tmp_path / "organamnist.npz", val_images=slices)
    monkeypatch.setenv("ORGAN_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(faithfulness, "SLICES", 3)
    monkeypatch.setattr(faithfulness, "RANDOM_ORDERS", 2)
    for options, rows in ((), 6), (("--alternatives",), 20):
        monkeypatch.setattr("sys.argv", ["faithfulness.py", str(bundle), *options])
        faithfulness.main()
        printed = capsys.readouterr().out
        assert "random, 3 validation slices" in printed
        assert sum(line.startswith("|") for line in printed.splitlines()) == rows + 2

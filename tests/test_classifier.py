"""OrganClassifier: what goes in, what comes out, and how it lives in a program."""

import hashlib
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, child_environment, constant_graph, make_graph, write_bundle

from organ_infer import BundleError, InputError, OrganClassifier, OrganInferError, Prediction
from organ_infer.engine.ensemble import Ensemble
from organ_infer.engine.session import Session


def softmax(logits):
    e = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def logits(graph, slices):
    """onnxruntime alone, on torchvision's definition of the input."""
    import onnxruntime

    x = ((slices.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5))[:, None]
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(
        None, {"images": x}
    )[0]


def test_probabilities_are_the_softmax_of_the_networks_logits(classifier, slices):
    found = classifier.predict_proba(slices)
    assert found.shape == (40, 11) and found.dtype == np.float32
    np.testing.assert_allclose(found, softmax(logits(make_graph(), slices)), atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    assert len(set(found.argmax(1))) > 1  # the network answers differently, so the tests can see


def test_an_ensemble_is_the_mean_of_its_members_probabilities(ensemble, slices):
    with OrganClassifier(ensemble, device="cpu") as three:
        found = three.predict_proba(slices)
    parts = [softmax(logits(make_graph(seed=seed), slices)) for seed in (1, 2, 3)]
    np.testing.assert_allclose(found, np.mean(parts, axis=0), atol=1e-6)


def test_temperature_divides_each_members_logits_and_leaves_probabilities(
    tmp_path, probabilities_bundle, slices
):
    warm = write_bundle(tmp_path / "warm", {"small.onnx": make_graph()}, temperature=4.0)
    with OrganClassifier(warm, device="cpu") as opened:
        np.testing.assert_allclose(
            opened.predict_proba(slices), softmax(logits(make_graph(), slices) / 4), atol=1e-6
        )
    with OrganClassifier(probabilities_bundle, device="cpu") as opened:
        np.testing.assert_allclose(
            opened.predict_proba(slices), softmax(logits(make_graph(), slices)), atol=1e-6
        )


@pytest.mark.parametrize("threads", [1, 2])
def test_a_prediction_under_way_ends_before_the_networks_are_freed(
    ensemble, slices, monkeypatch, threads
):
    with OrganClassifier(ensemble, device="cpu", threads=threads) as opened:
        expected = opened.predict_proba(slices)
    real, inside, go, found = Session.run, threading.Event(), threading.Event(), []

    def held(self, images):
        inside.set()
        assert go.wait(10)
        return real(self, images)

    monkeypatch.setattr(Session, "run", held)
    opened = OrganClassifier(ensemble, device="cpu", threads=threads)
    thread = threading.Thread(target=lambda: found.append(opened.predict_proba(slices)))
    thread.start()
    assert inside.wait(10)
    opened.close()
    go.set()
    thread.join(10)
    assert len(found) == 1 and np.array_equal(found[0], expected)
    with pytest.raises(OrganInferError, match="is closed"):
        opened.predict_proba(slices)


def test_closing_waits_for_no_one_and_lets_a_prediction_end(ensemble, slices):
    with OrganClassifier(ensemble, device="cpu", threads=2) as opened:
        expected = opened.predict_proba(slices)
    for _ in range(20):
        opened = OrganClassifier(ensemble, device="cpu", threads=2)
        begun, found = threading.Event(), []

        def predict(opened=opened, begun=begun, found=found):
            try:
                while True:
                    found.append(opened.predict_proba(slices))
                    begun.set()
            except OrganInferError as e:
                found.append(str(e))

        thread = threading.Thread(target=predict)
        thread.start()
        begun.wait(10)
        opened.close()
        thread.join(10)
        assert not thread.is_alive()
        assert "is closed; open another" in found.pop()
        assert all(np.array_equal(answer, expected) for answer in found)


def test_batch_size_changes_no_label(bundle, slices):
    found = []
    for size in (1, 3, 40, 64):
        with OrganClassifier(bundle, device="cpu", batch_size=size) as opened:
            found.append(opened.predict_proba(slices))
    for other in found[1:]:
        assert (other.argmax(1) == found[0].argmax(1)).all()
        np.testing.assert_allclose(other, found[0], atol=1e-5)


def whole_slices(count):
    """Gray pixels that are warned of by their size, each of another size."""
    pixels = np.random.default_rng(3).integers(60, 190, (28, 28), np.uint8)
    return [np.kron(pixels, np.ones((15, 15), np.uint8))[: 400 + i, :410] for i in range(count)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 64])
def test_every_slice_has_its_own_warnings_in_whichever_batch(bundle, tmp_path, size):
    """Of nine slices all but two are warned of, each by its own size."""
    from PIL import Image

    images = whole_slices(9)
    images[1], images[6] = images[1][:60], images[6][:60]
    expected = [
        () if len(image) == 60
        else (f"implausible: 410 x {len(image)} pixels; likely a whole slice, crop it around one organ",)
        for image in images
    ]  # fmt: skip
    paths = [tmp_path / f"{i}.png" for i in range(9)]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image).save(path)
    with OrganClassifier(bundle, device="cpu", batch_size=size) as opened:
        for found in (
            opened.predict(images),
            list(opened.predict_paths(paths)),
            list(opened.predict_paths(iter(paths))),
        ):
            assert [prediction.warnings for prediction in found] == expected


def test_batch_size_changes_no_answer_for_mixed_slices(bundle, slices):
    """Types and shapes that change within a batch, in every field of a Prediction."""
    images = [
        *slices[:3],
        *(slices[3:6].astype(np.uint16) * 257),
        *(slices[6:9].astype(np.int16) - 100),
        *whole_slices(2),
        np.full((5, 9), 7, np.uint8),
    ]
    order = np.random.default_rng(0).permutation(len(images))
    images = [images[i] for i in order]
    found = []
    for size in (1, 2, 5, 11, 64):
        with OrganClassifier(bundle, device="cpu", batch_size=size) as opened:
            found.append(opened.predict(images))
            np.testing.assert_allclose(
                opened.predict_proba(images), [p.probabilities for p in found[-1]], atol=1e-6
            )
    for predictions in found[1:]:
        for one, other in zip(found[0], predictions, strict=True):
            assert (one.label, one.index, one.organ, one.warnings, one.path) == (
                other.label, other.index, other.organ, other.warnings, other.path,
            )  # fmt: skip
            np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-6)
            assert one.organ_probability == pytest.approx(other.organ_probability, abs=1e-6)


def test_the_organ_has_the_largest_sum_over_its_sides(classifier, slices):
    sides = {name: name.removesuffix("-left").removesuffix("-right") for name in CLASSES}
    for prediction in classifier.predict(slices):
        sums = dict.fromkeys(sides.values(), 0.0)
        for name, probability in zip(CLASSES, prediction.probabilities, strict=True):
            sums[sides[name]] += probability
        assert prediction.organ == max(sums, key=sums.get)
        assert prediction.organ_probability == pytest.approx(sums[prediction.organ], abs=1e-6)


def test_an_organ_is_never_more_than_certain(tmp_path):
    """Two sides that are all of it."""
    graph = constant_graph({"femur-left": 0.7, "femur-right": 0.3})
    with OrganClassifier(write_bundle(tmp_path / "b", {"g.onnx": graph}), device="cpu") as opened:
        for prediction in opened.predict(np.zeros((3, 28, 28), np.uint8)):
            assert 0.999 < prediction.organ_probability <= 1.0


def test_arrays_and_pictures_of_the_longest_side_are_taken_and_longer_ones_are_not(classifier):
    from PIL import Image

    assert len(classifier.predict(np.zeros((2, 65_535), np.uint8))) == 1
    assert len(classifier.predict(Image.new("L", (65_535, 1)))) == 1
    for image in (np.zeros((2, 65_536), np.uint8), Image.new("L", (65_536, 1))):
        with pytest.raises(InputError, match="65,535"):
            classifier.predict(image)


@pytest.mark.parametrize("size", [4096, 4097])
def test_batches_of_up_to_4096_slices_are_taken(bundle, size):
    if size == 4096:
        OrganClassifier(bundle, device="cpu", batch_size=size).close()
    else:
        with pytest.raises(InputError, match="batch_size: expected a whole number from 1 to 4,096"):
            OrganClassifier(bundle, device="cpu", batch_size=size)


@pytest.mark.parametrize(("name", "most"), [("pixel_limit", 65_535**2), ("file_limit", 1 << 50)])
def test_limits_have_a_limit(classifier, name, most):
    assert list(classifier.predict_paths([], **{name: most})) == []
    with pytest.raises(
        InputError, match=f"{name}: expected a whole number from 1 to {most:,}, found"
    ):
        classifier.predict_paths([], **{name: most + 1})


def test_a_batch_has_64_slices_unless_another_number_is_given(bundle, monkeypatch):
    sizes, run = [], Ensemble.probabilities
    monkeypatch.setattr(
        Ensemble,
        "probabilities",
        lambda self, packed: sizes.append(len(packed)) or run(self, packed),
    )
    with OrganClassifier(bundle, device="cpu") as opened:
        opened.predict_proba(np.zeros((130, 28, 28), np.uint8))
    assert sizes == [64, 64, 2]


@pytest.mark.parametrize(
    ("options", "limits", "plain"),
    [
        ({}, {}, 400 * 400 - 1),  # larger ones are warned of, which is not done in C
        ({}, {"pixel_limit": 784}, 784),
        ({}, {"file_limit": 1 << 20}, 400 * 400 - 1),
        ({}, {"file_limit": (1 << 20) - 1}, 0),
        ({"orientation": "PL"}, {}, 0),
    ],
)
def test_files_are_read_in_c_only_where_nothing_is_asked_that_c_does_not_do(
    bundle, pictures, monkeypatch, options, limits, plain
):
    from organ_infer import classifier as module

    asked, read = [], module.read_batches
    monkeypatch.setattr(
        module,
        "read_batches",
        lambda *given, **options: (
            asked.append(options["plain_pixel_limit"]) or read(*given, **options)
        ),
    )
    with OrganClassifier(bundle, device="cpu", **options) as opened:
        assert len(list(opened.predict_paths([pictures / "s00.png"], **limits))) == 1
    assert asked == [plain]


def test_the_orientation_in_a_file_comes_before_the_option(bundle):
    """The option is used for files that state none."""
    from organ_infer.images.types import Slice

    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    with OrganClassifier(bundle, device="cpu", orientation="PL") as opened:
        for said, expected in (None, pixels.T), (("L", "P"), pixels), (("R", "P"), pixels[::-1]):
            turned = opened._prepare(Slice(pixels, ("a word",), said))
            np.testing.assert_array_equal(turned.pixels, expected)
            assert turned.warnings == ("a word",)


def test_its_text_names_the_model_and_where_it_runs(bundle):
    opened = OrganClassifier(bundle, device="cpu")
    assert repr(opened) == "<OrganClassifier random, axial, 11 classes, CPUExecutionProvider>"
    opened.close()
    assert repr(opened) == "<OrganClassifier random, axial, 11 classes, closed>"


def test_a_stack_of_narrow_slices_is_no_color(classifier):
    assert len(classifier.predict(np.zeros((2, 28, 5), np.uint8))) == 2
    assert len(classifier.predict(np.zeros((28, 3), np.uint8))) == 1
    assert len(classifier.predict([np.zeros((28, 4), np.uint8)])) == 1


def test_a_masked_array_without_a_masked_pixel_is_a_slice(classifier, slices):
    found = classifier.predict_proba(np.ma.array(slices[0], mask=False))
    assert (found == classifier.predict_proba(slices[0])).all()


@pytest.mark.parametrize("path", ["slice.png", b"slice.png", Path("slice.png")])
def test_one_path_in_the_place_of_many_is_refused_at_once(classifier, path):
    with pytest.raises(
        InputError, match=r"expected a sequence of paths, found one \(.*; pass \[path\]"
    ):
        classifier.predict_paths(path)


def test_a_prediction_says_label_organ_and_probabilities(classifier, slices):
    (found,) = classifier.predict(slices[0])
    row = classifier.predict_proba(slices[0])[0]
    assert isinstance(found, Prediction) and found.path is None and found.warnings == ()
    assert found.label == CLASSES[found.index] and found.index == row.argmax()
    assert (
        found.probabilities == tuple(row.tolist())
        and found.probability == found.probabilities[found.index]
    )
    with pytest.raises(AttributeError):
        found.label = "heart"


def test_organ_adds_the_two_sides(tmp_path):
    """femur-left .3 and femur-right .3 beat heart's .4: the organ is not the label's."""
    graph = constant_graph({"femur-left": 0.3, "femur-right": 0.3, "heart": 0.4})
    with OrganClassifier(write_bundle(tmp_path / "b", {"g.onnx": graph}), device="cpu") as opened:
        (found,) = opened.predict(np.zeros((28, 28), np.uint8))
    assert (found.label, found.organ) == ("heart", "femur")
    assert found.probability == pytest.approx(0.4) and found.organ_probability == pytest.approx(0.6)


def test_the_forms_of_one_slice_agree(classifier, slices):
    from PIL import Image

    expected = classifier.predict_proba(slices[:3])
    for images in (
        list(slices[:3]),
        tuple(slices[:3]),
        [Image.fromarray(s) for s in slices[:3]],
        (s for s in slices[:3]),
        np.asfortranarray(slices[:3]),
        [slices[0], Image.fromarray(slices[1]), slices[2]],
    ):
        assert (classifier.predict_proba(images) == expected).all()
    assert (classifier.predict_proba(Image.fromarray(slices[0])) == expected[:1]).all()


def test_slices_of_differing_shapes_and_dtypes_keep_their_order(classifier, slices):
    mixed = [
        slices[0],
        np.kron(slices[1], np.ones((4, 4), np.uint8)),
        slices[2].astype(np.uint16) * 257,
        slices[3].astype(np.int16) * 2 - 200,
    ]
    found = classifier.predict_proba(mixed)
    for row, image in zip(found, mixed, strict=True):
        np.testing.assert_allclose(row, classifier.predict_proba(image)[0], atol=1e-6)
    np.testing.assert_allclose(found[:3], classifier.predict_proba(slices[:3]), atol=1e-5)
    big = mixed[2].astype(mixed[2].dtype.newbyteorder("S"))
    np.testing.assert_allclose(classifier.predict_proba(big)[0], found[2], atol=1e-6)


def test_input_is_never_written_to(classifier, slices):
    image = slices[0].copy()
    image.setflags(write=False)
    classifier.predict(image)
    assert (image == slices[0]).all()


BAD = [
    (np.zeros((28, 28), np.float32), "found float32; pass gray of 0 to 255 as uint8"),
    (np.full((28, 28), np.nan), "found float64; .* after removing NaN"),
    (
        np.full((28, 28), np.inf, np.float32),
        "found float32; pass gray of 0 to 255 as uint8, or HU as int16$",
    ),
    (np.full((28, 28), -np.inf, np.float16), "found float16; pass gray"),
    (np.full((28, 28), 1e30), "found float64; pass gray"),
    (np.full((28, 28), 1e-30), "found float64; pass gray"),
    (np.zeros((0, 28, 28)), "found float64; pass gray"),
    (np.zeros((28, 28), np.complex64), "found complex64; pass uint8 gray"),
    (np.zeros((28, 28), np.uint32), "found uint32; pass uint8 gray"),
    (
        np.ma.masked_equal(np.eye(28, dtype=np.uint8), 1),
        r"masked pixels are not supported; pass image\.filled\(0\)",
    ),
    (np.zeros((28, 28), bool), r"found bool; pass image.astype\('uint8'\) \* 255"),
    (np.zeros((28, 28), np.int64), "found int64; pass uint8 gray, uint16 gray, or int16"),
    (np.zeros((28, 28), object), "found object"),
    (np.zeros((28, 28, 3), np.uint8), r"\(28, 28, 3\) looks like color; convert it to gray"),
    (
        np.zeros((28, 28, 2), np.uint8),
        r"\(28, 28, 2\) looks like gray with alpha; pass array\[\.\.\., 0\]",
    ),
    (np.zeros((5, 2, 2), np.uint8), "looks like gray with alpha"),
    (np.zeros((128, 128, 90), np.int16), r"looks like a volume \(X, Y, Z\); pass crops"),
    (np.zeros((40, 1), np.uint8), "is one pixel wide, no slice; .* not labels"),
    (np.zeros((40, 1, 28), np.uint8), "is one pixel wide"),
    ([np.zeros((1, 40), np.uint8)], r"images\[0\]: an array \(1, 40\) is one pixel wide"),
    (np.zeros((2, 28, 28, 3), np.uint8), r"found 4 axes \(2, 28, 28, 3\); pass gray"),
    (np.zeros((2, 28, 28, 4), np.uint8), r"found 4 axes \(2, 28, 28, 4\); pass gray"),
    (np.zeros(28, np.uint8), r"found 1 axes \(28,\)"),
    (np.uint8(3), "found uint8"),
    (np.zeros((0, 28, 28), np.uint8), "images: empty; expected an array"),
    (np.zeros((0, 28), np.uint8), r"expected 1 to 65,535 pixels per side, found \(0, 28\)"),
    (np.zeros((2, 70_000), np.uint8), "1 to 65,535 pixels per side"),
    ([], "images: empty; expected an array"),
    (None, "found NoneType"),
    ([None], r"images\[0\]: .* found NoneType"),
    ([[0, 1], [2, 3]], r"images\[0\]: .* found list"),
    (
        [np.zeros((28, 28), np.uint8), np.zeros((2, 28, 28), np.uint8)],
        r"images\[1\]: .*found 3 axes",
    ),
    ("slice.png", r"found the path 'slice.png'; use predict_paths\(\[path\]\)"),
    (Path("slice.png"), "use predict_paths"),
]


@pytest.mark.parametrize(("images", "words"), BAD, ids=range(len(BAD)))
def test_what_is_no_slice_is_refused_with_what_to_pass(classifier, images, words):
    for method in (classifier.predict, classifier.predict_proba):
        with pytest.raises(InputError, match=words) as caught:
            method(images)
        assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "gpu"}, "device: expected auto, cpu, cuda or cuda:N, found 'gpu'"),
        ({"threads": 0}, "threads: expected a whole number from 1"),
        ({"threads": True}, "threads"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"batch_size": 10**6}, "batch_size"),
        ({"orientation": "LR"}, "orientation: expected two letters"),
        ({"orientation": "HF"}, "orientation"),
        (
            {"orientation": "LH"},
            "expected a slice in the axial plane, found one in the coronal plane",
        ),
        ({"orientation": 7}, "orientation: expected two letters"),
        ({"tta": 1}, "tta: expected True or False, found 1$"),
        ({"tta": "yes"}, "tta: expected True or False, found 'yes'$"),
        ({"tta": None}, "tta: expected True or False, found None$"),
        ({"fast": 1}, "fast: expected True or False, found 1$"),
        ({"fast": None}, "fast: expected True or False, found None$"),
        ({"tta": np.eye(2)}, r"tta: expected True or False, found array\(.*\)$"),
    ],
)
def test_options_out_of_range_are_refused(bundle, options, words):
    with pytest.raises(InputError, match=words) as caught:
        OrganClassifier(bundle, **options)
    assert "\n" not in str(caught.value)


def test_whatever_a_slice_and_a_manifest_may_hold_packs_to_finite_numbers(tmp_path):
    """The ends of every range: no NaN, infinity or 1e30 reaches a network, for only whole numbers come in."""
    graph = make_graph()
    for mean, std, window in [(0, 1e-3, [40, 1]), (1, 1e-3, [-32768, 65535]), (0, 100, [32767, 1])]:
        given = {
            "size": 28,
            "mean": mean,
            "std": std,
            "resample": "area",
            "window": window,
            "orientation": None,
        }
        folder = write_bundle(tmp_path / f"{mean}{std}", {"g.onnx": graph}, input=given)
        with OrganClassifier(folder, device="cpu") as opened:
            for dtype in (np.uint8, np.uint16, np.int16):
                ends = np.iinfo(dtype)
                for shape in ((28, 28), (3, 200), (2, 2)):
                    image = np.resize(np.array([ends.min, ends.max], dtype), shape)
                    packed = opened._pack([image])
                    assert np.isfinite(packed).all() and np.abs(packed).max() <= 1000
                    assert np.isfinite(opened.predict_proba(image)).all()


# Orientation.


def test_a_usual_crop_is_reoriented_to_the_model(bundle, slices):
    """Axial as usual is PL, the model's LP: the transpose, and every other way of lying comes back too."""
    ways = {
        "LP": lambda s: s, "PL": lambda s: s.T, "RP": lambda s: s[::-1], "LA": lambda s: s[:, ::-1],
        "RA": lambda s: s[::-1, ::-1], "PR": lambda s: s[::-1].T, "al": lambda s: s[:, ::-1].T,
    }  # fmt: skip
    tall = np.random.default_rng(1).integers(0, 256, (40, 30), np.uint8)
    with OrganClassifier(bundle, device="cpu") as plain:
        expected = plain.predict_proba([tall])
    for letters, lie in ways.items():
        with OrganClassifier(bundle, device="cpu", orientation=letters) as turned:
            assert (turned.predict_proba([lie(tall)]) == expected).all(), letters
    assert not (plain_of(bundle, tall.T) == expected).all()


def plain_of(bundle, image):
    with OrganClassifier(bundle, device="cpu") as opened:
        return opened.predict_proba(image)


def test_a_model_without_an_orientation_reorients_nothing(tmp_path, slices):
    folder = write_bundle(
        tmp_path / "b",
        {"g.onnx": make_graph()},
        change=lambda m: m["input"].update(orientation=None),
    )
    with pytest.raises(
        InputError,
        match="this model does not define an orientation, so inputs cannot be reoriented",
    ):
        OrganClassifier(folder, orientation="PL")
    with OrganClassifier(folder, device="cpu") as opened:
        assert opened.predict(slices[0])


def test_hounsfield_units_need_a_window(tmp_path):
    folder = write_bundle(
        tmp_path / "b", {"g.onnx": make_graph()}, change=lambda m: m["input"].update(window=None)
    )
    with (
        OrganClassifier(folder, device="cpu") as opened,
        pytest.raises(InputError, match="not supported by this model, which has no window"),
    ):
        opened.predict(np.zeros((28, 28), np.int16))


# Its life.


def test_eight_threads_give_bitwise_the_serial_results(ensemble, slices):
    with OrganClassifier(ensemble, device="cpu", batch_size=8) as opened:
        expected = opened.predict_proba(slices)
        found: list = [None] * 8

        def work(i):
            found[i] = [opened.predict_proba(slices) for _ in range(5)]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
    assert all((rows == expected).all() for each in found for rows in each)


def test_closing_twice_is_fine_and_use_after_it_is_an_error(bundle, slices, pictures):
    picture = pictures / "s00.png"
    opened = OrganClassifier(bundle, device="cpu")
    opened.close()
    opened.close()
    for use in (lambda: opened.predict(slices[0]), lambda: opened.predict_proba(slices[0])):
        with pytest.raises(OrganInferError, match="closed; open another"):
            use()
    with pytest.raises(OrganInferError, match="closed"):
        list(opened.predict_paths([picture]))
    assert opened.classes == tuple(CLASSES) and opened.providers == ("CPUExecutionProvider",)
    assert "closed" in repr(opened)


def test_pickling_opens_it_again(bundle, slices, monkeypatch, tmp_path):
    monkeypatch.chdir(bundle.parent)
    with OrganClassifier(bundle.name, device="cpu", threads=1, orientation="PL") as opened:
        data = pickle.dumps(opened)
        monkeypatch.chdir(tmp_path)  # a relative bundle is found from anywhere
        with pickle.loads(data) as again:
            assert (again.predict_proba(slices) == opened.predict_proba(slices)).all()


def test_a_fork_says_to_open_its_own_and_both_end(bundle):
    """The child's use fails clearly, its own classifier works, and neither exit hangs on threads left behind."""
    code = f"""
import os, sys, gc
import numpy as np
from organ_infer import OrganClassifier, OrganInferError
opened = OrganClassifier({str(bundle)!r}, device="cpu", threads=2)
image = np.zeros((28, 28), np.uint8)
expected = opened.predict_proba(image)
child = os.fork()
if not child:
    try:
        opened.predict(image)
    except OrganInferError as e:
        assert "opened in process" in str(e) and "open an OrganClassifier in the child" in str(e), e
    else:
        os._exit(3)
    with OrganClassifier({str(bundle)!r}, device="cpu", threads=2) as own:
        assert (own.predict_proba(image) == expected).all()
    opened.close()
    del opened
    gc.collect()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert (opened.predict_proba(image) == expected).all()
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        env=child_environment(),
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_many_classifiers_leave_threads_and_descriptors_flat(bundle, slices):
    def count():
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    def once():
        with OrganClassifier(bundle, device="cpu", threads=2) as opened:
            opened.predict(slices[0])

    once()
    before = count()
    for _ in range(20):
        once()
    assert count() == before


def test_one_channel_is_the_slice_without_it(classifier, slices):
    expected = classifier.predict_proba(slices[:3])
    for given in (slices[:3, ..., None], [image[..., None] for image in slices[:3]]):
        np.testing.assert_array_equal(classifier.predict_proba(given), expected)
    np.testing.assert_array_equal(classifier.predict_proba(slices[0][..., None]), expected[:1])


# The model that a program was tested with.


def test_a_pinned_model_opens_and_another_is_refused(bundle, two_class_bundle):
    digest = hashlib.sha256((Path(bundle) / "manifest.json").read_bytes()).hexdigest()
    for pinned in (digest, digest.upper()):
        with OrganClassifier(bundle, device="cpu", expected_sha256=pinned) as classifier:
            assert classifier.sha256 == digest
            with pickle.loads(pickle.dumps(classifier)) as again:
                assert again.sha256 == digest
    with pytest.raises(BundleError, match=f"another model, .*expected {digest}"):
        OrganClassifier(two_class_bundle, device="cpu", expected_sha256=digest)


def test_a_pickled_classifier_is_pinned(bundle_copy):
    digest = hashlib.sha256((Path(bundle_copy) / "manifest.json").read_bytes()).hexdigest()
    with OrganClassifier(bundle_copy, device="cpu", expected_sha256=digest) as classifier:
        stored = pickle.dumps(classifier)
    manifest = Path(bundle_copy) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    with pytest.raises(BundleError, match="another model"):
        pickle.loads(stored)


@pytest.mark.parametrize("value", ["", "0" * 63, "g" * 64, b"0" * 64, 7, True, "0" * 10_000])
def test_a_digest_that_is_none_is_refused_in_a_short_line(bundle, value):
    with pytest.raises(InputError, match="expected_sha256: expected 64 hexadecimal") as caught:
        OrganClassifier(bundle, device="cpu", expected_sha256=value)
    assert len(str(caught.value)) < 200


def test_results_tell_whether_they_are_predictions(classifier, bad_image, pictures):
    good = sorted(Path(pictures).iterdir())[0]
    found = [result.ok for result in classifier.predict_paths([str(good), str(bad_image)])]
    assert found == [True, False]

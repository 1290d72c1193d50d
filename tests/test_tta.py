"""Test-time augmentation: the mean over five views of a slice, wherever slices come in."""

import pickle

import numpy as np
import pytest

from organ_infer import ImageFailure, OrganClassifier
from organ_infer.engine.ensemble import Ensemble
from organ_infer.engine.tta import shifted_mean


def five(images):
    """images (N, H, W) as they are, up, down, left, right, cut out of slices with their edge repeated around them."""
    wide = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    height, width = images.shape[1:]
    at = [(1, 1), (2, 1), (0, 1), (1, 2), (1, 0)]
    return [wide[:, y : y + height, x : x + width] for y, x in at]


@pytest.fixture
def shifted(bundle):
    with OrganClassifier(bundle, device="cpu", tta=True) as opened:
        yield opened


def test_a_pixel_moves_by_one_and_the_edge_is_repeated():
    packed = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    before, seen = packed.copy(), []

    def answers(view):
        assert view.dtype == np.float32 and view.shape == packed.shape and view.flags.c_contiguous
        seen.append(view[0, 0].astype(int).tolist())
        return np.full((1, 2), len(seen), np.float64)

    assert (shifted_mean(answers, packed) == [[3, 3]]).all() and (packed == before).all()
    assert seen == [
        [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
        [[3, 4, 5], [6, 7, 8], [6, 7, 8]],
        [[0, 1, 2], [0, 1, 2], [3, 4, 5]],
        [[1, 2, 2], [4, 5, 5], [7, 8, 8]],
        [[0, 0, 1], [3, 3, 4], [6, 6, 7]],
    ]


@pytest.mark.parametrize("model", ["bundle", "ensemble"])
def test_it_is_the_mean_over_five_slices_shifted_by_hand(request, model, slices):
    folder = request.getfixturevalue(model)
    with OrganClassifier(folder, device="cpu") as plain:
        expected = np.mean([plain.predict_proba(view) for view in five(slices)], axis=0)
        without = plain.predict_proba(slices)
    with OrganClassifier(folder, device="cpu", tta=True, batch_size=16) as opened:
        found = opened.predict_proba(slices)
        predictions = opened.predict(slices)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    assert (
        found.dtype == np.float32 and np.abs(found - without).max() > 1e-3
    )  # it does make a difference
    assert [p.probabilities for p in predictions] == [tuple(row) for row in found.tolist()]


def test_files_are_shifted_too_each_in_its_place(shifted, pictures, slices):
    paths = [pictures / "s00.png", "/none.png", pictures / "s01.png"]
    first, failed, last = shifted.predict_paths(paths)
    expected = shifted.predict_proba(slices[:2])
    np.testing.assert_array_equal(
        [first.probabilities, last.probabilities], expected.astype(np.float64)
    )
    assert isinstance(failed, ImageFailure) and list(shifted.predict_paths(["/none.png"])) == [
        ImageFailure("/none.png", "no such file")
    ]


def test_a_constant_slice_is_answered_as_without(shifted, classifier):
    flat = np.stack([np.full((28, 28), value, np.uint8) for value in (0, 90, 255)])
    np.testing.assert_allclose(
        shifted.predict_proba(flat), classifier.predict_proba(flat), atol=1e-7
    )


def test_slices_of_another_size_are_shifted_as_packed(shifted, slices):
    large = np.kron(slices[:4], np.ones((1, 2, 2), np.uint8))  # packed, it is the slice again
    np.testing.assert_allclose(
        shifted.predict_proba(large), shifted.predict_proba(slices[:4]), atol=1e-6
    )


def test_no_run_takes_more_than_a_batch(bundle, slices, monkeypatch):
    sizes, run = [], Ensemble.probabilities

    def counted(self, images):
        sizes.append(len(images))
        return run(self, images)

    monkeypatch.setattr(Ensemble, "probabilities", counted)
    with OrganClassifier(bundle, device="cpu", tta=True, batch_size=16) as opened:
        opened.predict_proba(slices)
    assert sizes == [16] * 10 + [8] * 5


def test_pickling_keeps_it(shifted, slices):
    with pickle.loads(pickle.dumps(shifted)) as again:
        assert (again.predict_proba(slices) == shifted.predict_proba(slices)).all()

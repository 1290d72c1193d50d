"""OrganClassifier.predict_bytes: files in memory, with the checks, limits and answers of files on disk."""

import io
import random

import numpy as np
import pytest
from PIL import Image
from support.damaged_files import checked, unchecked
from support.image_files import dicom, saved, tiff

from organ_infer import ImageFailure, InputError, OrganClassifier, OrganInferError, Prediction

FILES = checked() | unchecked()
SOUND = saved(Image.new("L", (28, 28), 90))


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_format_is_answered_as_from_a_file(classifier, tmp_path, name):
    path = tmp_path / "file"
    path.write_bytes(FILES[name])
    expected = list(classifier.predict_paths([str(path)]))
    assert expected and all(result.ok for result in expected)
    assert classifier.predict_bytes(FILES[name], name=str(path)) == expected


@pytest.mark.parametrize("name", sorted(FILES))
def test_damaged_files_fail_as_from_a_file(classifier, tmp_path, name):
    path = tmp_path / "file"
    for length in (0, 1, 20, len(FILES[name]) // 2):
        path.write_bytes(FILES[name][:length])
        expected = list(classifier.predict_paths([str(path)]))
        assert classifier.predict_bytes(FILES[name][:length], name=str(path)) == expected
        assert any(isinstance(result, ImageFailure) for result in expected)


class Trickle(io.RawIOBase):
    """A stream that returns a few bytes at a time, as a socket does."""

    def __init__(self, data):
        self.data, self.taken = data, 0

    def read(self, size=-1):
        piece = self.data[self.taken : self.taken + min(size, 7)]
        self.taken += len(piece)
        return piece


@pytest.mark.parametrize(
    "wrapped", [bytes, bytearray, memoryview, io.BytesIO, Trickle], ids=lambda kind: kind.__name__
)
def test_bytes_and_binary_streams_are_read(classifier, wrapped):
    (result,) = classifier.predict_bytes(wrapped(SOUND), name="upload")
    assert isinstance(result, Prediction) and result.path == "upload"


@pytest.mark.parametrize("wrapped", [bytes, io.BytesIO, Trickle], ids=lambda kind: kind.__name__)
def test_no_more_than_the_limit_is_taken(classifier, wrapped):
    (taken,) = classifier.predict_bytes(wrapped(SOUND), file_limit=len(SOUND))
    assert taken.ok
    stream = wrapped(SOUND + bytes(1000))
    (refused,) = classifier.predict_bytes(stream, file_limit=len(SOUND) - 1)
    assert refused.error.startswith(f"more than {len(SOUND) - 1} bytes: too large")
    if wrapped is Trickle:
        assert stream.taken == len(SOUND)


def test_the_other_limits_hold(classifier):
    (refused,) = classifier.predict_bytes(SOUND, pixel_limit=783)
    assert "28 x 28 pixels: too large, at most 783" in refused.error
    other = dicom(np.zeros((9, 7), np.uint16), Modality="MR", RescaleSlope=1, RescaleIntercept=0)
    (refused,) = classifier.predict_bytes(other)
    assert "MR" in refused.error
    (taken,) = classifier.predict_bytes(other, any_modality=True)
    assert any("MR" in warning for warning in taken.warnings)


def test_stacks_have_a_result_for_each_slice_of_any_batch(bundle):
    rng = random.Random(1)
    pages = [np.full((28, 28), rng.randrange(256), "uint8") for _ in range(9)]
    with OrganClassifier(bundle, device="cpu", batch_size=4) as classifier:
        results = classifier.predict_bytes(tiff(*pages))
        assert [result.path for result in results] == [f"data#{i}" for i in range(9)]
        expected = classifier.predict_proba(np.stack(pages))
    assert [max(row) for row in expected.tolist()] == [result.probability for result in results]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("slice.png", "found str; for paths use predict_paths"),
        (None, "found NoneType"),
        (3, "found int"),
        ([b"a"], "found list"),
        (io.StringIO("text"), "the stream returns str, not bytes"),
    ],
)
def test_anything_else_is_refused(classifier, data, words):
    with pytest.raises(InputError, match=words):
        classifier.predict_bytes(data)


@pytest.mark.parametrize(
    "option", [{"pixel_limit": 0}, {"file_limit": "9"}, {"any_modality": 1}, {"name": b"a"}]
)
def test_options_are_checked(classifier, option):
    with pytest.raises(InputError, match=next(iter(option))):
        classifier.predict_bytes(SOUND, **option)


def test_a_closed_classifier_says_so(bundle):
    classifier = OrganClassifier(bundle, device="cpu")
    classifier.close()
    with pytest.raises(OrganInferError, match="closed"):
        classifier.predict_bytes(SOUND)


class Broken:
    def __init__(self, error):
        self.error = error

    def read(self, size):
        raise self.error


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), EOFError("truncated"), ValueError("closed")]
)
def test_a_stream_that_cannot_be_read_is_a_failure(classifier, error):
    (failed,) = classifier.predict_bytes(Broken(error))
    assert failed.error.startswith("cannot be read (")


def test_a_closed_classifier_is_no_failure_of_the_image(bundle):
    classifier = OrganClassifier(bundle, device="cpu")
    classifier.close()
    for ask in (lambda: classifier.predict_bytes(b""), lambda: classifier.predict_paths(["none"])):
        with pytest.raises(OrganInferError, match="closed"):
            ask()


def test_bytes_given_as_pixels_are_sent_to_predict_bytes(classifier):
    with pytest.raises(InputError, match=r"found 7 bytes; use predict_bytes"):
        classifier.predict(b"content")

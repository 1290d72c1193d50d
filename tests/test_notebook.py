"""What a notebook shows of results and classifiers: `repr` and `_repr_html_`."""

import base64
import copy
import io
import os
import pickle
import re
import subprocess
import sys
from dataclasses import asdict, fields, replace
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import CLASSES, ROOT, child_environment
from PIL import Image
from support.dict_mask import DictMask, block

from organ_infer import OrganClassifier, OrganPrediction, Prediction
from organ_infer.notebook import THUMBNAIL, classifier_html, thumbnail_png
from organ_infer.results import remember
from organ_infer.volumes.types import Volume


def prediction(
    path=None, *, warnings=(), values=(0.7, 0.25, 0.05), names=("liver", "heart", "spleen")
):
    made = Prediction(
        path, names[0], 0, values[0], tuple(values), names[0], values[0], warnings=warnings
    )
    remember(made, tuple(names))
    return made


def organ(label="kidney-left", *, agrees=False, only_side_differs=False, warnings=()):
    made = OrganPrediction(
        expected="kidney-right",
        structures=("kidney_right",),
        view="axial",
        label=label,
        index=0,
        probability=0.75,
        probabilities=(0.75, 0.25),
        agrees=agrees,
        only_side_differs=only_side_differs,
        slices=(),
        warnings=warnings,
    )
    remember(made, (label, "spleen"))
    return made


def parsed(html):
    """The elements of some HTML, which must be well-formed."""
    return ElementTree.fromstring(html)


def text_of(html):
    return " ".join(" ".join(parsed(html).itertext()).split())


def picture_of(html):
    """The thumbnail as an array, or None."""
    image = parsed(html).find(".//img")
    if image is None:
        return None
    kind, _, data = image.get("src").partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


# repr.


def test_the_text_of_a_prediction_names_the_answer_and_the_next_ones():
    assert repr(prediction()) == "<Prediction liver 0.700, heart 0.250, spleen 0.050>"
    warned = prediction("a.png", warnings=("one", "two"), values=(0.999, 0.001, 0.0))
    assert repr(warned) == "<Prediction liver 0.999, 'a.png', 2 warnings>"
    many = prediction(values=(0.4, 0.3, 0.2, 0.1), names=("liver", "heart", "spleen", "bladder"))
    assert repr(many) == "<Prediction liver 0.400, heart 0.300, spleen 0.200>"
    assert str(many) == repr(many)


def test_a_prediction_that_a_program_makes_has_a_text_too():
    made = Prediction("a.png", "liver", 6, 0.5, (0.1,) * 10, "liver", 0.5, warnings=("w",))
    assert repr(made) == "<Prediction liver 0.500, 'a.png', 1 warning>"
    assert text_of(made._repr_html_()) == "liver 0.500 a.png liver 0.500 w"


def test_a_text_is_one_printable_line_whatever_the_path():
    shown = repr(prediction("a\nb\x1b[31m\udcff.png"))
    assert shown.isprintable() and "\\n" in shown
    shown.encode()


def test_the_text_of_an_organ_names_the_verdict():
    assert repr(organ(only_side_differs=True)) == (
        "<OrganPrediction kidney-right: kidney-left 0.750, spleen 0.250, the other side, 0 axial slices>"
    )
    assert repr(organ("liver", warnings=("small",))) == (
        "<OrganPrediction kidney-right: liver 0.750, spleen 0.250, not as expected, 0 axial slices, 1 warning>"
    )
    assert ", as expected, " in repr(organ("kidney-right", agrees=True))


# What stays as it is.


def test_fields_rows_and_equality_have_nothing_of_notebooks(classifier, slices):
    (found,) = classifier.predict(slices[0])
    assert [each.name for each in fields(Prediction)][:3] == ["path", "label", "index"]
    assert asdict(found).keys() == {each.name for each in fields(Prediction)}
    assert CLASSES not in [
        list(value) for value in asdict(found).values() if isinstance(value, tuple)
    ]
    plain = Prediction(**asdict(found))
    assert plain == found and hash(plain) == hash(found)
    with pytest.raises(AttributeError):
        found.label = "other"


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda result: pickle.loads(pickle.dumps(result))]
)
def test_copies_keep_the_names_and_the_file(classifier, pictures, copied):
    (found,) = classifier.predict_paths([pictures / "s00.png"])
    again = copied(found)
    assert again == found and type(again) is Prediction
    assert repr(again) == repr(found) and again._repr_html_() == found._repr_html_()
    assert picture_of(again._repr_html_()) is not None
    side = organ(only_side_differs=True)
    assert copied(side) == side and repr(copied(side)) == repr(side)


def test_a_replaced_field_gives_a_result_that_a_program_made(classifier, pictures):
    (found,) = classifier.predict_paths([pictures / "s00.png"])
    other = replace(found, path=str(pictures / "s01.png"))
    assert picture_of(other._repr_html_()) is None


# HTML.


def test_bars_are_as_long_as_probabilities(classifier, slices):
    (found,) = classifier.predict(slices[0])
    html = found._repr_html_()
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", html)]
    best = sorted(found.probabilities, reverse=True)[:3]
    assert widths == pytest.approx([100 * value for value in best], abs=0.06)
    names = [CLASSES[found.probabilities.index(value)] for value in best]
    assert [row.find("td").text for row in parsed(html).iter("tr")] == names
    assert text_of(html).startswith(f"{found.label} {found.probability:.3f}")


def test_the_organ_is_shown_if_it_is_not_that_of_the_label():
    made = Prediction(None, "liver", 0, 0.4, (0.4, 0.3, 0.3), "femur", 0.6)
    assert "organ femur 0.600" in text_of(made._repr_html_())
    for label, name in (("femur-left", "femur"), ("liver", "liver")):
        made = Prediction(None, label, 0, 0.4, (0.4, 0.3, 0.3), name, 0.6)
        assert "organ" not in text_of(made._repr_html_())


HOSTILE = "<script>alert('1')</script>\"&\n.png"


def test_texts_are_escaped():
    names = (HOSTILE, "<b>x", "&amp;")
    html = prediction(HOSTILE, warnings=(HOSTILE,), names=names)._repr_html_()
    assert "<script" not in html and "<b>x" not in html
    shown = text_of(html)
    assert shown.count("<script>alert('1')</script>\"&\\x0a.png") == 4 and "&amp;" in shown
    html = organ(HOSTILE, warnings=(HOSTILE,))._repr_html_()
    assert "<script" not in html and text_of(html).count("<script>") == 3


def test_an_organ_shows_the_verdict_and_the_answers_of_its_slices(classifier):
    shape = (60, 50, 40)
    hu = np.random.default_rng(8).integers(-300, 400, shape, np.int16)
    mask = DictMask({"liver": block(shape, (10, 40), (5, 30), (10, 30))})
    volume = Volume(np.asfortranarray(hu), np.diag([-1.0, -1.0, 2.0, 1.0]), "scan.nii.gz")
    (found,) = classifier.predict_volume(volume, mask)
    shown = text_of(found._repr_html_())
    assert "liver in the mask" in shown and f"{len(found.slices)} axial slices: " in shown
    assert sum(
        map(
            int,
            re.findall(
                r"(\d+) [a-z-]+(?:,|$)",
                shown.partition("slices: ")[2].partition(" " + found.label + " 0.")[0] + ",",
            ),
        )
    ) == len(found.slices)
    assert found.label in repr(found) and repr(found).startswith("<OrganPrediction liver: ")
    for made, verdict in (
        (organ(only_side_differs=True), "the other side"),
        (organ("spleen"), "not as expected"),
        (organ("kidney-right", agrees=True), "as expected"),
    ):
        assert f", {verdict}" in text_of(made._repr_html_())


def test_a_classifier_shows_its_model(bundle):
    opened = OrganClassifier(bundle, device="cpu")
    shown = text_of(opened._repr_html_())
    for part in (
        "random",
        "organamnist, axial",
        ", ".join(CLASSES),
        "28 x 28, orientation LP",
        "40 / 400 HU",
        "small (fp32)",
        "CPUExecutionProvider",
        opened.sha256,
        "not a medical device",
    ):
        assert part in shown
    opened.close()
    assert "closed" in text_of(opened._repr_html_())


def test_a_classifier_shows_what_its_manifest_lacks(classifier):
    spec = replace(classifier.manifest.input, window=None, orientation=None)
    manifest = replace(classifier.manifest, name="<i>", input=spec, training={"smoke": True})
    shown = text_of(classifier_html(manifest, "0" * 64, "closed"))
    assert "<i>, from a smoke run" in shown
    assert "orientation not known, window none" in shown


# Thumbnails.


def test_a_file_has_its_picture(classifier, pictures, slices):
    (found,) = classifier.predict_paths([pictures / "s03.png"])
    html = found._repr_html_()
    np.testing.assert_array_equal(picture_of(html), slices[3])
    assert "width:112px;height:112px" in html


def test_a_slice_of_a_stack_has_its_own_picture(classifier, tmp_path, slices):
    np.save(tmp_path / "stack.npy", slices[:3])
    results = list(classifier.predict_paths([tmp_path / "stack.npy"]))
    for found, pixels in zip(results, slices, strict=False):
        np.testing.assert_array_equal(picture_of(found._repr_html_()), pixels)
    assert len(results) == 3


def test_arrays_and_bytes_have_no_picture(classifier, pictures, slices, monkeypatch):
    """A name given to predict_bytes may be that of another file."""
    monkeypatch.chdir(pictures)
    (found,) = classifier.predict_bytes((pictures / "s00.png").read_bytes(), name="s01.png")
    assert found.path == "s01.png" and picture_of(found._repr_html_()) is None
    assert picture_of(classifier.predict(slices[0])[0]._repr_html_()) is None


def test_a_file_that_is_gone_or_changed_has_no_picture(classifier, tmp_path, slices):
    path = tmp_path / "a.png"
    Image.fromarray(slices[0]).save(path)
    (found,) = classifier.predict_paths([path])
    path.write_bytes(b"no image")
    assert picture_of(found._repr_html_()) is None
    path.unlink()
    html = found._repr_html_()
    assert picture_of(html) is None and str(path) in text_of(html)


@pytest.mark.parametrize("path", ["", "a\0b", "#0", "x" * 5000, "/", "https://example.org/a.png"])
def test_no_path_raises(path):
    assert thumbnail_png(path) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert thumbnail_png(str(tmp_path / "a.png")) is None


def test_a_missing_decoder_and_a_lack_of_memory_give_no_picture(pictures, monkeypatch):
    from organ_infer import notebook

    for error in (ImportError("no Pillow"), MemoryError(), RecursionError(), ValueError()):

        def fail(path, error=error):
            raise error

        monkeypatch.setattr(notebook, "_thumbnail_png", fail)
        assert thumbnail_png(str(pictures / "s00.png")) is None


def test_thumbnails_are_small(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 3000), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    image = Image.open(io.BytesIO(thumbnail_png(str(tmp_path / "large.png"))))
    assert image.size == (THUMBNAIL, THUMBNAIL // 2)


def test_the_limits_are_those_of_the_documentation():
    from organ_infer import notebook

    assert notebook.THUMBNAIL_BYTES == 32 << 20 and notebook.THUMBNAIL_PIXELS == 16 << 20
    for page in (thumbnail_png.__doc__, (ROOT / "docs" / "guides" / "embedding.md").read_text()):
        assert "32 MiB" in page


def test_larger_files_are_not_read(tmp_path, monkeypatch):
    from organ_infer import notebook

    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((50, 50), np.uint8)).save(path)
    assert thumbnail_png(str(path)) is not None
    monkeypatch.setattr(notebook, "THUMBNAIL_PIXELS", 2499)
    assert thumbnail_png(str(path)) is None
    monkeypatch.setattr(notebook, "THUMBNAIL_PIXELS", 2500)
    monkeypatch.setattr(notebook, "THUMBNAIL_BYTES", path.stat().st_size - 1)
    assert thumbnail_png(str(path)) is None


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([[0, 128], [255, 64]], np.uint8, [[0, 128], [255, 64]]),
        ([[0, 257 * 128], [65535, 257]], np.uint16, [[0, 128], [255, 1]]),
        # the window of soft tissue, from -160 to 240 HU
        ([[-160, 40], [240, -3000]], np.int16, [[0, 128], [255, 0]]),
    ],
)
def test_all_dtypes_are_shown_as_gray(tmp_path, values, dtype, expected):
    np.save(tmp_path / "a.npy", np.array(values, dtype).repeat(2, 0).repeat(2, 1))
    image = Image.open(io.BytesIO(thumbnail_png(str(tmp_path / "a.npy"))))
    np.testing.assert_array_equal(np.asarray(image)[::2, ::2], expected)


def test_classifying_loads_nothing_of_notebooks(bundle, pictures):
    code = (
        "import sys\nfrom organ_infer import OrganClassifier\n"
        f"with OrganClassifier({str(bundle)!r}, device='cpu') as c:\n"
        f"    (found,) = c.predict_paths([{str(pictures / 's00.png')!r}])\n"
        "repr(found), repr(c)\n"
        "assert not {'organ_infer.notebook', 'html', 'IPython'} & set(sys.modules)\n"
        "found._repr_html_()\n"
        "assert 'organ_infer.notebook' in sys.modules and 'IPython' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=child_environment())

"""The web page in a real headless Chromium, with the packages that npm downloads (`pytest -m browser`)."""

import base64
import hashlib
import io
import json
import shutil
import statistics

import numpy as np
import pytest
from conftest import CLASSES, DEFAULT, ROOT, entry, make_graph, needs_default, write_bundle
from PIL import Image
from support import jpeg_lossless
from support.image_files import decode, dicom, saved
from support.png_files import WHOLE

from export.web.page import write_page
from organ_infer import OrganClassifier
from organ_infer.errors import ImageError
from organ_infer.images.registry import decode_slices
from organ_infer.images.types import Limits
from tests.support.chromium import Chromium, find_chromium
from tests.support.page_server import PageServer

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed"),
]

EXAMPLES = sorted((ROOT / "examples").glob("*.png"))
IS_LOADED = "!document.getElementById('work').hidden"
IS_IDLE = (
    "[...document.querySelectorAll('#images .answered')].every((e) => e.textContent !== '...')"
)
# largest difference of a probability from organ-infer's
TOLERANCE = {"fp32": 1e-4, "int8": 1e-2, "fp16": 1e-2}
HU = {"RescaleSlope": 1, "RescaleIntercept": -1024}
STORED = np.random.default_rng(3).integers(0, 4096, (9, 7)).astype(np.uint16)
# the modules of the page, for calls without its controls
SETUP = """(async () => {
  const [files, model] = [await import("./files.js"), await import("./model.js")];
  const { Decoder } = await import("./vendor/lossless-min.js");
  globalThis.model = await model.loadModel(() => {});
  const opened = (data) => {
    const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    return files.openFile(new Blob([bytes]), { parser: dicomParser, JpegLossless: Decoder });
  };
  const outcome = async (work) => {
    try { return await work(); } catch (error) { return { error: error.message }; }
  };
  const text = (pixels) => btoa(Array.from(new Uint8Array(pixels.buffer, pixels.byteOffset, pixels.byteLength), (c) => String.fromCharCode(c)).join(""));
  globalThis.readAll = (data) => outcome(async () => {
    const file = await opened(data);
    return Array.from({ length: file.frames }, (_, i) => {
      const slice = file.read(i);
      return { ...slice, kind: slice.pixels.constructor.name, pixels: text(slice.pixels) };
    });
  });
  globalThis.classify = (data, chosen = null) => outcome(async () => {
    const slice = (await opened(data)).read(0);
    const { packed, ...rest } = await globalThis.model.predict(files.prepared(slice, chosen, globalThis.model.manifest.input));
    return rest;
  });
})()"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The directory of the archives, which npm fills once."""
    return tmp_path_factory.mktemp("npm")


@pytest.fixture(scope="module")
def page(tmp_path_factory, packages):
    """Writes the page of a bundle; the packaged one by default."""

    def write(bundle=DEFAULT.parent, precision="listed"):
        directory = tmp_path_factory.mktemp("page") / "page"
        write_page(bundle, directory, precision=precision, packages=packages)
        return directory

    return write


@pytest.fixture(scope="module")
def chromium():
    with Chromium() as browser:
        browser.resize(1200, 900)
        yield browser


@pytest.fixture(scope="module")
def served(page):
    """The page of the packaged bundle, served."""
    with PageServer(page()) as server:
        yield server


@pytest.fixture
def tab(chromium, served):
    """The browser with the packaged bundle's page freshly loaded. Nothing unusual may have happened at the end."""
    chromium.requests.clear()
    chromium.console.clear()
    chromium.open(served.origin)
    chromium.wait_for(IS_LOADED)
    yield chromium
    assert chromium.console == []
    assert served.missed == []
    assert all(
        url.startswith((f"{served.origin}/", f"blob:{served.origin}/")) for url in chromium.requests
    )


def text_of(data):
    return base64.b64encode(data).decode()


def call(browser, function, *arguments):
    if not browser.run("'readAll' in globalThis"):
        browser.run(SETUP)
    return browser.run(f"await {function}({', '.join(map(json.dumps, arguments))})")


def give(browser, *paths):
    """Choose files, and wait for their answers."""
    browser.choose("#files", *paths)
    # a first answer replaces the dots of the list's entries
    browser.wait_for(f"document.querySelectorAll('#images li').length > 0 && {IS_IDLE}")


def saved_as(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


# Answers.


@needs_default
@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_examples_get_the_answers_of_organ_infer(precision, page, chromium, tmp_path):
    """Prints the row of the table in docs/deploy/browser.md."""
    bundle = with_listed(precision, tmp_path / "bundle")
    with OrganClassifier(bundle, device="cpu") as classifier:
        expected = list(classifier.predict_paths(EXAMPLES))
    chromium.requests.clear()
    with PageServer(page(bundle, precision)) as server:
        chromium.open(server.origin)
        chromium.wait_for(IS_LOADED)
        loaded, transferred = len(chromium.requests), server.sent
        give(chromium, *EXAMPLES)
        shown = chromium.run(
            "[...document.querySelectorAll('#images .answered')].map((e) => e.textContent)"
        )
        assert len(chromium.requests) == loaded
        answers = [call(chromium, "classify", text_of(path.read_bytes())) for path in EXAMPLES]
        assert all(url.startswith(server.origin) for url in chromium.requests)

    assert shown == [f"{answer['label']} {round_3(answer['probability'])}" for answer in answers]
    assert [answer["label"] for answer in answers] == [each.label for each in expected]
    found = np.array([answer["probabilities"] for answer in answers])
    worst = np.abs(found - [each.probabilities for each in expected]).max()
    assert worst <= TOLERANCE[precision]
    assert [tuple(answer["warnings"]) for answer in answers] == [each.warnings for each in expected]
    for answer, each in zip(answers, expected, strict=True):
        assert answer["organ"] == each.organ
        assert answer["organProbability"] == pytest.approx(each.organ_probability, abs=1e-2)
    milliseconds = statistics.median(answer["milliseconds"] for answer in answers)
    print(
        f"| {precision} | {len(answers)} | {worst:.1e} | {milliseconds:.1f} | {transferred / 1e6:.1f} MB |"
    )


def round_3(value):
    """A number as JavaScript's toFixed(3) writes it."""
    return f"{value:.3f}"


def with_listed(precision, folder):
    """A copy of the packaged bundle that lists only the variants of a precision. fp16 is converted here."""
    import onnx

    from export.quantize import to_fp16

    shutil.copytree(DEFAULT.parent, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    chosen = []
    for member in manifest["members"]:
        (exact,) = member["alternatives"]
        if precision == "fp16":
            name = f"{member['stage']}.fp16.onnx"
            graph = to_fp16(onnx.load(folder / exact["file"])).SerializeToString()
            (folder / name).write_bytes(graph)
            listed = exact | entry(graph, name) | {"stage": member["stage"], "precision": "fp16"}
        else:
            listed = member if member["precision"] == precision else exact
        for each in (member, exact):
            if each["file"] != listed["file"]:
                (folder / each["file"]).unlink()
        chosen.append({**listed, "alternatives": []})
    manifest["members"] = chosen
    del manifest["training"]["seal"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_the_mean_of_several_networks_is_that_of_the_runtime(ensemble, page, chromium):
    with OrganClassifier(ensemble, device="cpu") as classifier:
        expected = [each.probabilities for each in classifier.predict_paths(EXAMPLES[::6])]
    with PageServer(page(ensemble)) as server:
        chromium.open(server.origin)
        chromium.wait_for(IS_LOADED)

        answers = [call(chromium, "classify", text_of(path.read_bytes())) for path in EXAMPLES[::6]]

    found = [answer["probabilities"] for answer in answers]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("change", [
    {"size": 56, "mean": 0.4679, "std": 0.2975, "resample": "linear", "window": [-20, 333.3]},
    {"size": 28, "resample": "cubic", "window": None, "orientation": None},
])  # fmt: skip
def test_the_manifest_decides_the_preprocessing(change, page, chromium, tmp_path):
    graph = make_graph(size=change["size"])
    folder = write_bundle(
        tmp_path / "bundle",
        {"g.onnx": graph},
        change=lambda manifest: manifest["input"].update(change),
        temperature=2.5,
    )
    images = [path.read_bytes() for path in EXAMPLES[::11]]
    images.append(saved(np.random.default_rng(1).integers(0, 65_536, (61, 47), np.uint16)))
    if change["window"]:
        images.append(dicom(STORED, **HU))
    with OrganClassifier(folder, device="cpu") as classifier:
        expected = [classifier.predict_bytes(data)[0] for data in images]
    with PageServer(page(folder)) as server:
        chromium.open(server.origin)
        chromium.wait_for(IS_LOADED)

        answers = [call(chromium, "classify", text_of(data)) for data in images]

    assert [answer["label"] for answer in answers] == [each.label for each in expected]
    np.testing.assert_allclose(
        [answer["probabilities"] for answer in answers],
        [each.probabilities for each in expected],
        atol=1e-5,
    )


def test_a_model_that_judges_plausibility_warns_below_its_threshold(bundle, page, chromium):
    """The manifest's object `plausibility` and the graph's second output are optional."""
    directory = page(bundle)
    manifest = json.loads((directory / "bundle" / "manifest.json").read_text())
    graph = with_orientation_output(make_graph(), 0.125)
    (directory / "bundle" / "small.onnx").write_bytes(graph)
    manifest["members"][0] |= {"bytes": len(graph), "sha256": hashlib.sha256(graph).hexdigest()}
    for threshold, warned in ((0.5, True), (0.10012345, False)):
        manifest["plausibility"] = {"output": "orientation", "threshold": threshold}
        manifest["training"]["smoke"] = warned
        (directory / "bundle" / "manifest.json").write_text(json.dumps(manifest))
        with PageServer(directory) as server:
            chromium.open(server.origin)
            chromium.wait_for(IS_LOADED)
            give(chromium, EXAMPLES[0])

            assert chromium.text("#plausibility") == "Plausibility of an organ crop: 0.125"
            warning = (
                "implausible: plausibility 0.125, below 0.500; likely not a crop around one organ"
            )
            assert (warning in chromium.text("#warnings")) is warned
            assert ("From a smoke run" in chromium.text("#about")) is warned
            assert f"a warning below {threshold:.3f}" in chromium.text("#facts")


def test_of_many_classes_the_most_probable_are_shown(page, chromium, tmp_path):
    def change(manifest):
        manifest["task"].update(classes=[f"class-{i}" for i in range(20)], paired=[])

    folder = write_bundle(tmp_path / "b", {"g.onnx": make_graph(classes=20)}, change=change)
    with OrganClassifier(folder, device="cpu") as classifier:
        (expected,) = classifier.predict_paths([EXAMPLES[0]])
    order = np.argsort(expected.probabilities)[::-1][:12]
    with PageServer(page(folder)) as server:
        chromium.open(server.origin)
        chromium.wait_for(IS_LOADED)
        give(chromium, EXAMPLES[0])

        shown = chromium.run(
            "[...document.querySelectorAll('#bars .class')].map((e) => e.textContent)"
        )

    assert shown == [f"class-{i}" for i in order]
    assert chromium.text("#bars").endswith("8 less probable classes are not shown")
    assert chromium.run("document.getElementById('organ').hidden")


def with_orientation_output(graph, plausibility):
    """A graph with a second output `orientation`, (N, 9), whose first column is constant."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_from_string(graph)
    row = np.full((1, 9), (1 - plausibility) / 8, np.float32)
    row[0, 0] = plausibility
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(row, "row"),
            numpy_helper.from_array(np.zeros((11, 9), np.float32), "nothing"),
        ]
    )
    model.graph.node.append(helper.make_node("Gemm", ["logits", "nothing", "row"], ["orientation"]))
    model.graph.output.append(
        helper.make_tensor_value_info("orientation", TensorProto.FLOAT, ["N", 9])
    )
    return model.SerializeToString()


# Boxes and orientation, with the page's controls.


@pytest.fixture(scope="module")
def whole_slice():
    """uint8 (480, 512): four examples on gray."""
    pixels = np.full((480, 512), 90, np.uint8)
    for i, path in enumerate(EXAMPLES[::12]):
        tile = np.asarray(Image.open(path).resize((100, 100)))
        pixels[40 + 110 * (i // 2) :, 60 + 130 * (i % 2) :][:100, :100] = tile
    return pixels


def answer_of(path, **options):
    with OrganClassifier(device="cpu", **options) as classifier:
        (found,) = classifier.predict_paths([path])
    return found


@needs_default
def test_a_drawn_box_gets_the_answer_of_its_crop(tab, whole_slice, tmp_path):
    path = saved_as(tmp_path, "scan.png", saved(whole_slice))
    give(tab, path)
    assert "likely a whole slice, crop it around one organ" in tab.text("#warnings")
    tab.drag("#canvas", (70 / 512, 45 / 480), (150 / 512, 130 / 480))
    tab.wait_for("document.getElementById('name').textContent !== 'scan.png'")

    name = tab.text("#name")

    edges = [
        int(tab.run(f"document.getElementById('{edge}').value"))
        for edge in ("x0", "x1", "y0", "y1")
    ]
    assert name == "scan.png[{}:{},{}:{}]".format(*edges)
    # a pixel of the screen is about a pixel of the slice
    np.testing.assert_allclose(edges, [70, 150, 45, 130], atol=2)
    expected = answer_of(f"{path.parent}/{name}")
    assert tab.text("#label") == expected.label
    assert float(tab.text("#probability")) == pytest.approx(expected.probability, abs=2e-2)
    assert "whole slice" not in tab.text("#warnings")
    tab.run("document.getElementById('clear-box').click()")
    tab.wait_for("document.getElementById('name').textContent === 'scan.png'")
    assert tab.run("document.getElementById('rectangle').hidden")


@needs_default
def test_a_box_is_moved_with_the_keyboard(tab, whole_slice, tmp_path):
    give(tab, saved_as(tmp_path, "scan.png", saved(whole_slice)))
    tab.run("document.getElementById('canvas').focus()")

    def edges():
        return [
            int(tab.run(f"document.getElementById('{edge}').value or 0".replace("or", "||")))
            for edge in ("x0", "y0", "x1", "y1")
        ]

    tab.press("ArrowRight")
    assert edges() == [128, 120, 384, 360]
    tab.press("ArrowLeft")
    tab.press("ArrowDown", "Control")
    assert edges() == [127, 130, 383, 370]
    tab.press("ArrowUp", "Shift")
    tab.press("ArrowRight", "Shift", "Control")
    assert edges() == [127, 130, 393, 369]
    tab.wait_for("document.getElementById('name').textContent === 'scan.png[127:393,130:369]'")
    tab.press("Delete")
    tab.wait_for("document.getElementById('name').textContent === 'scan.png'")
    assert tab.run("document.getElementById('x0').value") == ""


@needs_default
def test_a_box_is_typed_and_clipped_to_the_slice(tab, whole_slice, tmp_path):
    give(tab, saved_as(tmp_path, "scan.png", saved(whole_slice)))

    for edge, value in {"x0": 190, "y0": 150, "x1": 9999, "y1": 250}.items():
        tab.run(
            f"(() => {{ const field = document.getElementById('{edge}'); field.value = {value};"
            " field.dispatchEvent(new Event('change')); })()"
        )

    tab.wait_for("document.getElementById('name').textContent === 'scan.png[190:512,150:250]'")


@needs_default
def test_an_image_in_another_orientation_is_reoriented(tab, tmp_path):
    pixels = np.asarray(Image.open(ROOT / "examples" / "lung-right-1.png"))
    path = saved_as(tmp_path, "usual.png", saved(np.ascontiguousarray(pixels.T)))
    give(tab, path)

    choices = tab.run("[...document.getElementById('orientation').options].map((o) => o.value)")
    tab.run(
        "(() => { const field = document.getElementById('orientation'); field.value = 'PL';"
        " field.dispatchEvent(new Event('change')); })()"
    )

    expected = answer_of(path, orientation="PL")
    assert expected.label == "lung-right"
    tab.wait_for("document.getElementById('label').textContent === 'lung-right'")
    assert len(choices) == 8 and choices[0] == "" and "PL" in choices and "LP" not in choices
    assert float(tab.text("#probability")) == pytest.approx(expected.probability, abs=1e-2)


# DICOM and JPEG.


def shared_group():
    pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")

    def item(**fields):
        found = pydicom.Dataset()
        for name, value in fields.items():
            setattr(found, name, value)
        return found

    units = pydicom.Sequence([item(RescaleSlope=2, RescaleIntercept=7, RescaleType="HU")])
    plane = pydicom.Sequence([item(ImageOrientationPatient=[0, 1, 0, 1, 0, 0])])
    spacing = pydicom.Sequence([item(PixelSpacing=[0.5, 0.75])])
    shared = item(
        PixelValueTransformationSequence=units,
        PlaneOrientationSequence=plane,
        PixelMeasuresSequence=spacing,
    )
    own = item(
        PlaneOrientationSequence=pydicom.Sequence(
            [item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
        )
    )
    return {
        "SharedFunctionalGroupsSequence": pydicom.Sequence([shared]),
        "PerFrameFunctionalGroupsSequence": pydicom.Sequence([item(), own]),
    }


def big_endian(pixels):
    """A DICOM file of big-endian HU."""
    import pydicom

    data = pydicom.dcmread(io.BytesIO(dicom(pixels, **HU)))
    # elements that were not looked at are written as they were read
    assert len(list(data)) > 8
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
    data.PixelData = pixels.astype(">u2").tobytes()
    data.set_original_encoding(False, False)
    file = io.BytesIO()
    data.save_as(file)
    return file.getvalue()


def dicom_files():
    """Files that the runtime reads, or refuses for what they are."""
    corpus = ROOT / "tests" / "corpus" / "images"
    signed = STORED.astype(np.int16) - 2000
    small = (STORED // 16).astype(np.uint8)
    plane = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [0.7, 0.8]}
    wide = np.array([[-5, 70_000], [3, -70_000]], np.int32)
    return {
        "HU": dicom(STORED, **HU, **plane),
        "oriented otherwise": dicom(STORED, **HU, ImageOrientationPatient=[0, -1, 0, 0, 0, -1]),
        "oblique": dicom(STORED, **HU, ImageOrientationPatient=[0.8, 0.6, 0, -0.6, 0.8, 0]),
        "no direction": dicom(STORED, **HU, ImageOrientationPatient=[0, 0, 0, 0, 1, 0]),
        "one axis": dicom(STORED, **HU, ImageOrientationPatient=[1, 0, 0, 1, 0, 0]),
        "signed": dicom(signed, **HU),
        "half steps": dicom(signed, RescaleSlope=0.5, RescaleIntercept=0),
        "clipped": dicom(wide, RescaleSlope=1, RescaleIntercept=0),
        "slope alone": dicom(STORED, RescaleSlope=2),
        "overlay": dicom(STORED | 0xF000, **HU, BitsStored=12),
        "signed of 12 bits": dicom(signed & 0x0FFF, **HU, BitsStored=12, PixelRepresentation=1),
        "gray of 16 bits": dicom(STORED, BitsStored=12),
        "gray of 8 bits": dicom(small),
        "displayed gray": dicom(small, RescaleSlope=1, RescaleIntercept=0),
        "inverted": dicom(small, PhotometricInterpretation="MONOCHROME1"),
        "inverted HU": dicom(STORED, **HU, PhotometricInterpretation="MONOCHROME1"),
        "unknown unit": dicom(signed),
        "rescale type": dicom(STORED, **HU, RescaleType="US"),
        "localizer": dicom(STORED, **HU, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        "dose report": dicom(STORED, **HU, ImageType=["DERIVED", "SECONDARY", "DOSE_INFO"]),
        "frames": dicom(np.stack([STORED, STORED[::-1]]), **HU),
        "enhanced": dicom(np.stack([STORED, STORED[::-1]]), **shared_group()),
        "implicit": dicom(STORED, **HU, syntax="1.2.840.10008.1.2"),
        "deflated": dicom(STORED, **HU, syntax="1.2.840.10008.1.2.1.99"),
        "big endian": big_endian(STORED),
        "color": dicom(STORED, **HU, SamplesPerPixel=3),
        "palette": dicom(STORED, **HU, PhotometricInterpretation="PALETTE COLOR"),
        "segmentation": dicom(STORED, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"),
        "dose": dicom(STORED, SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2"),
        "no bits": dicom(STORED, **HU, BitsStored=None),
        "missing frames": (corpus / "frames-that-are-not-there.dcm").read_bytes(),
        "ct.dcm": (corpus / "ct.dcm").read_bytes(),
        "rle.dcm": (corpus / "rle.dcm").read_bytes(),
    }  # fmt: skip


KINDS = {"Uint8Array": np.uint8, "Uint16Array": np.uint16, "Int16Array": np.int16}


def read_by_runtime(data):
    """The slices of a file, or the message of the error."""
    try:
        return [read() for _, read in decode_slices(data, Limits())]
    except ImageError as e:
        return str(e)


@needs_default
def test_dicom_files_have_the_pixels_orientation_and_warnings_of_the_runtime(tab):
    files = dicom_files()
    refused = []
    for name, data in files.items():
        expected = read_by_runtime(data)

        found = call(tab, "readAll", text_of(data))

        if isinstance(expected, str):
            refused.append(name)
            reason = expected.partition(";")[0]
            assert isinstance(found, dict) and found["error"].startswith(reason[:40]), (
                name,
                found,
                expected,
            )
            continue
        assert isinstance(found, list) and len(found) == len(expected), (name, found)
        for one, other in zip(found, expected, strict=True):
            pixels = np.frombuffer(base64.b64decode(one["pixels"]), KINDS[one["kind"]])
            assert pixels.dtype == other.pixels.dtype, name
            np.testing.assert_array_equal(
                pixels.reshape(one["height"], one["width"]), other.pixels, err_msg=name
            )
            assert one["orientation"] == (
                None if other.orientation is None else "".join(other.orientation)
            ), name
            assert one["field"] == (None if other.field is None else pytest.approx(other.field)), (
                name
            )
            assert tuple(one["warnings"]) == other.warnings, name
    assert refused == [
        "oblique", "no direction", "one axis", "unknown unit", "color", "palette", "segmentation", "dose", "no bits",
        "missing frames",
    ]  # fmt: skip


def lossless(frames, bits, table=True, syntax="1.2.840.10008.1.2.4.70", **fields):
    """A DICOM file of frames (N, H, W), each compressed by JPEG Lossless, with or without a table of their offsets."""
    encapsulate = pytest.importorskip("pydicom.encaps").encapsulate
    parts = [jpeg_lossless.encode(frame, bits) for frame in frames]
    pixels = frames if len(frames) > 1 else frames[0]
    return dicom(
        pixels, **HU, syntax=syntax, PixelData=encapsulate(parts, has_bot=table), BitsStored=bits, HighBit=bits - 1,
        **fields,
    )  # fmt: skip


@needs_default
def test_jpeg_lossless_is_decoded(tab):
    smooth = np.add.outer(np.arange(30), np.arange(41)).astype(np.uint16) * 50
    deep = np.random.default_rng(2).integers(0, 65_536, (12, 9), np.uint16)
    small = np.random.default_rng(2).integers(0, 256, (8, 11), np.uint8)
    for name, frames, bits in (
        ("12 bits", STORED[None], 12),
        ("16 bits", deep[None], 16),
        ("8 bits", small[None], 8),
        ("smooth", smooth[None], 12),
        ("frames", np.stack([STORED, STORED[::-1], STORED[:, ::-1]]), 12),
    ):
        for table in (True, False):
            for syntax in ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"):
                found = call(tab, "readAll", text_of(lossless(frames, bits, table, syntax)))

                assert isinstance(found, list) and len(found) == len(frames), (name, found)
                for one, stored in zip(found, frames, strict=True):
                    values = np.frombuffer(base64.b64decode(one["pixels"]), np.int16)
                    expected = np.clip(stored.astype(int) - 1024, -32_768, 32_767)
                    np.testing.assert_array_equal(
                        values.reshape(stored.shape), expected, err_msg=name
                    )


@needs_default
def test_signed_jpeg_lossless_is_decoded(tab):
    signed = STORED.astype(np.int16) - 2048
    data = lossless((signed & 0x0FFF).astype(np.uint16)[None], 12, PixelRepresentation=1)

    (found,) = call(tab, "readAll", text_of(data))

    values = np.frombuffer(base64.b64decode(found["pixels"]), np.int16)
    np.testing.assert_array_equal(values.reshape(signed.shape), signed - 1024)


@needs_default
def test_damaged_jpeg_lossless_is_refused_or_read(tab):
    whole = lossless(STORED[None], 12)
    start = whole.index(b"\xff\xd8")
    random = np.random.default_rng(9)
    outcomes = set()
    for _ in range(60):
        data = bytearray(whole)
        data[random.integers(start, len(data) - 12)] = random.integers(256)
        found = call(tab, "readAll", text_of(bytes(data)))
        outcomes.add("read" if isinstance(found, list) else found["error"].partition(";")[0])
    assert "read" in outcomes and len(outcomes) > 1
    for outcome in outcomes - {"read"}:
        assert outcome.startswith("DICOM: "), outcome
    wrong = lossless(STORED[None], 12, Rows=8)
    assert call(tab, "readAll", text_of(wrong))["error"] == (
        "DICOM: the JPEG data has another size than the header declares"
    )


@needs_default
def test_a_compressed_dicom_file_is_refused_with_what_to_do(tab):
    data = dicom(STORED, **HU).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4\0")

    found = call(tab, "readAll", text_of(data))

    assert found["error"] == (
        "DICOM: compressed (transfer syntax 1.2.840.10008.1.2.4), which this page does not decode;"
        " export the series again, uncompressed, or use organ-infer"
    )


@needs_default
def test_another_modality_and_damaged_dicom_are_refused(tab):
    whole = dicom(STORED, **HU)
    for data, reason in (
        (dicom(STORED, **HU, Modality="MR"), "DICOM: modality MR, not CT; choose CT slices"),
        (whole[:-20], "DICOM: "),
        (whole[:200], "DICOM: "),
        (whole[:132], "DICOM: "),
    ):
        found = call(tab, "readAll", text_of(data))
        assert found["error"].startswith(reason), found
        assert "\n" not in found["error"] and "undefined" not in found["error"]


@needs_default
def test_a_dicom_slice_is_windowed_and_reoriented_as_by_organ_infer(tab, tmp_path):
    pixels = np.asarray(Image.open(ROOT / "examples" / "lung-right-1.png")).T
    stored = np.rint(pixels / 255 * 400 - 160 + 1024).astype(np.uint16)
    path = saved_as(
        tmp_path, "ct.dcm", dicom(stored, **HU, ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    )
    expected = answer_of(path)

    give(tab, path)

    assert tab.text("#label") == expected.label == "lung-right"
    assert float(tab.text("#probability")) == pytest.approx(expected.probability, abs=1e-2)
    assert tab.text("#orientation-note") == (
        "Orientation from the file: PL: rows run to posterior, columns to left; reoriented to the model's LP."
    )
    assert "HU" in tab.text("#size")


@needs_default
def test_each_frame_of_a_stack_is_shown_by_its_number(tab, tmp_path):
    stack = np.stack([STORED, STORED[::-1], STORED[:, ::-1]])
    path = saved_as(tmp_path, "stack.dcm", dicom(stack, **HU))
    give(tab, path)
    assert tab.text("#name") == "stack.dcm#0"

    tab.run(
        "(() => { const field = document.getElementById('frame'); field.value = 2;"
        " field.dispatchEvent(new Event('change')); })()"
    )

    tab.wait_for("document.getElementById('name').textContent === 'stack.dcm#2'")
    expected = answer_of(f"{path}#2")
    assert tab.text("#label") == expected.label
    assert float(tab.text("#probability")) == pytest.approx(expected.probability, abs=2e-2)


def jpeg(pixels, **options):
    return saved(Image.fromarray(pixels), "JPEG", quality=92, **options)


@needs_default
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_within_a_gray_level_of_the_runtime(orientation, tab):
    gray = np.asarray(Image.open(EXAMPLES[20]).resize((61, 47)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for pixels in (gray, np.dstack([gray, np.roll(gray, 3, 0), gray[::-1]])):
        data = jpeg(pixels, exif=exif, subsampling=0)
        expected = decode(data)

        (found,) = call(tab, "readAll", text_of(data))

        values = np.frombuffer(base64.b64decode(found["pixels"]), np.uint8)
        shape = (found["height"], found["width"])
        assert shape == expected.pixels.shape
        difference = np.abs(values.reshape(shape).astype(int) - expected.pixels)
        assert difference.max() <= 2
        assert tuple(found["warnings"]) == expected.warnings


# Dropped and pasted files.


EVENTS = {
    "drop": "new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })",
    "paste": "new ClipboardEvent('paste', { clipboardData: data, bubbles: true })",
}


def hand_over(browser, event, **files):
    """Drop or paste files, by name."""
    browser.run(
        "(() => { const data = new DataTransfer();"
        f" for (const [name, text] of Object.entries({json.dumps({k: text_of(v) for k, v in files.items()})}))"
        " data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));"
        f" document.body.dispatchEvent({EVENTS[event]}); }})()"
    )


@needs_default
@pytest.mark.parametrize("event", EVENTS)
def test_files_are_dropped_and_pasted(event, tab):
    spleen, heart = (
        (ROOT / "examples" / f"{name}-1.png").read_bytes() for name in ("spleen", "heart")
    )

    hand_over(tab, event)
    assert tab.text("#status").endswith("no file in it; choose PNG, JPEG or DICOM files")
    hand_over(tab, event, spleen=spleen, heart=heart)

    tab.wait_for(f"document.querySelectorAll('#images li').length === 2 && {IS_IDLE}")
    assert tab.text("#label") == "spleen"
    assert tab.run("document.getElementById('status').hidden")


@needs_default
def test_the_selected_image_is_classified_before_the_rest_of_the_list(tab):
    tab.choose("#files", *EXAMPLES * 2)
    tab.run("document.querySelector('#images li:last-child button').click()")

    tab.wait_for("document.getElementById('label').textContent === 'spleen'")

    assert not tab.run(IS_IDLE)
    tab.wait_for(IS_IDLE)


# Bad input, bad browsers, bad copies.


@needs_default
def test_bad_files_get_a_message_each_and_the_page_goes_on(tab, tmp_path):
    sound = jpeg(np.asarray(Image.open(EXAMPLES[0])))
    bad = {
        "empty.png": (b"", "the file is empty"),
        "text.txt": (
            b"no image",
            "not a PNG, JPEG or DICOM file; convert it to PNG, or use organ-infer",
        ),
        "tiff.tif": (saved(STORED, "TIFF"), "not a PNG, JPEG or DICOM file"),
        "cut.png": (WHOLE[:-20], "PNG: the end of the file is missing"),
        "cut.jpg": (sound[:-20], "JPEG: the end of the file is missing"),
        "head.jpg": (sound[:20], "JPEG: the header is damaged"),
        "noise.jpg": (b"\xff\xd8\xff" + bytes(range(256)), "JPEG: the header is damaged"),
        "cut.dcm": (dicom(STORED, **HU)[:300], "DICOM: "),
    }
    paths = [saved_as(tmp_path, name, data) for name, (data, _) in bad.items()]

    give(tab, *paths, EXAMPLES[0])

    shown = tab.run("[...document.querySelectorAll('#images .answered')].map((e) => e.textContent)")
    for found, (name, (_, reason)) in zip(shown, bad.items(), strict=False):
        assert found.startswith(reason), name
    assert shown[-1].startswith("bladder ")
    assert tab.text("#failure") == "empty.png: the file is empty"
    tab.run("document.querySelector('#images li:last-child button').click()")
    tab.wait_for("document.getElementById('failure').hidden")
    assert tab.text("#label") == "bladder"


@needs_default
def test_a_file_of_five_gigabytes_is_not_read(tab):
    found = tab.run(
        "await (async () => { const { openFile } = await import('./files.js');"
        " const file = { size: 5e9, arrayBuffer: () => { throw new Error('was read'); } };"
        " try { await openFile(file); } catch (error) { return error.message; } })()"
    )

    assert found == "5,000,000,000 bytes: too large, at most 268,435,456 are read"


@needs_default
@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--js-flags=--no-enable-sse4-1", "no WebAssembly SIMD"),
        ("--js-flags=--jitless", "no WebAssembly, or it is switched off"),
    ],
)
def test_a_browser_that_cannot_run_the_networks_is_told_so(flag, reason, served):
    with Chromium(flag) as browser:
        browser.open(served.origin)
        browser.wait_for("document.getElementById('status').classList.contains('alarm')")

        text = browser.text("#status")

    assert reason in text and "use Chrome or Edge 103, Firefox 113, Safari 16.4" in text


@needs_default
@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("bundle/edge_deep.int8.onnx", "removed", "cannot be loaded (HTTP status 404)"),
        ("bundle/edge_deep.int8.onnx", "changed", "not the file that the page was written with"),
        ("bundle/edge_deep.int8.onnx", "cut", "not the file that the page was written with"),
        ("vendor/ort-wasm-simd-threaded.wasm", "changed", "not the file that the page was written with"),
        ("bundle/manifest.json", "removed", "cannot be loaded (HTTP status 404)"),
    ],
)  # fmt: skip
def test_an_incomplete_copy_of_the_page_says_which_file(name, damage, reason, page, chromium):
    directory = page()
    path = directory / name
    data = path.read_bytes()
    with PageServer(directory) as server:
        if damage == "removed":
            path.unlink()
        else:
            path.write_bytes(
                data[:-1] + bytes([data[-1] ^ 1]) if damage == "changed" else data[:-1]
            )
        chromium.open(server.origin)
        chromium.wait_for("document.getElementById('status').classList.contains('alarm')")

        text = chromium.text("#status")

    assert text.startswith(f"{name}: {reason}")
    assert "copy the page's whole directory" in text
    assert chromium.run("document.getElementById('work').hidden")


@needs_default
def test_the_page_goes_on_without_its_server(page, chromium):
    with PageServer(page()) as server:
        chromium.open(server.origin)
        chromium.wait_for(IS_LOADED)

    give(chromium, EXAMPLES[0], EXAMPLES[40])

    assert chromium.run(
        "[...document.querySelectorAll('#images .answered')].map((e) => e.textContent.split(' ')[0])"
    ) == ["bladder", "spleen"]


@needs_default
def test_the_policy_stops_other_addresses_and_inline_scripts(served, page, chromium):
    chromium.open(served.origin)
    chromium.wait_for(IS_LOADED)
    with PageServer(page()) as other:
        blocked = chromium.run(
            f"await fetch('{other.origin}/index.html').then(() => 'sent', (e) => e.name)"
        )
        chromium.run(
            "(() => { const script = document.createElement('script');"
            " try { script.textContent = 'globalThis.ran = true'; document.body.append(script); } catch {} })()"
        )
        assert other.sent == 0 and other.missed == []

    assert blocked == "TypeError"
    assert chromium.run("globalThis.ran") is None
    # what the policy blocked was reported
    assert chromium.console
    chromium.console.clear()


# Layout.


@needs_default
@pytest.mark.parametrize("width", [320, 375, 768, 1200])
def test_nothing_is_wider_than_the_window(width, tab, whole_slice, tmp_path):
    tab.resize(width, 800)
    try:
        give(tab, saved_as(tmp_path, "a-rather-long-file-name-without-spaces-of-a-scan.png", saved(whole_slice)),
             EXAMPLES[0], saved_as(tmp_path, "bad.png", b"bad"))  # fmt: skip
        assert tab.run("document.documentElement.scrollWidth") <= width
        canvas = tab.run("document.getElementById('canvas').getBoundingClientRect().right")
        assert canvas <= width
    finally:
        tab.resize(1200, 900)


@needs_default
def test_the_theme_of_the_user_is_used_and_text_is_readable_in_it(tab):
    give(tab, EXAMPLES[0])
    brightness = {}
    try:
        for theme in ("light", "dark"):
            tab.use_theme(theme)
            colors = tab.run(
                "(() => { const style = getComputedStyle(document.body);"
                " return [style.backgroundColor, style.color].map((c) => c.match(/\\d+/g).map(Number)); })()"
            )
            brightness[theme] = [sum(color[:3]) / 765 for color in colors]
    finally:
        tab.use_theme("light")

    assert brightness["light"][0] > 0.9 and brightness["light"][1] < 0.2
    assert brightness["dark"][0] < 0.15 and brightness["dark"][1] > 0.8


@needs_default
def test_the_disclaimer_and_the_manifest_are_on_the_page(tab):
    text = tab.run("document.body.innerText")
    facts = tab.text("#facts")

    assert text.count("Research software, not a medical device") == 2
    manifest = json.loads(DEFAULT.read_text())
    for fact in (
        manifest["name"],
        "28 x 28 pixels, resampled by area",
        "level {:g} HU, width {:g} HU".format(*manifest["input"]["window"]),
        "LP: rows run to left, columns to posterior",
        *(
            f"{member['file']}, int8, {member['bytes'] / 1e6:.2f} MB"
            for member in manifest["members"]
        ),
        ", ".join(CLASSES),
    ):
        assert fact in facts
    shown = tab.run("document.getElementById('manifest').textContent")
    assert json.loads(shown) == manifest

"""The page of --report: rows, filters without outside addresses, evaluation, pictures, and its script in a browser."""

import base64
import hashlib
import io
import json
import re
from collections import Counter

import numpy as np
import pytest
from conftest import CLASSES
from PIL import Image
from support.dumped_page import BROWSER, opened, with_script
from support.report_page import Page

from organ_infer.evaluation import evaluate
from organ_infer.images.types import Limits
from organ_infer.page.pictures import data_address, gray, png
from organ_infer.report import thumbnails
from organ_infer.report.page import ReportInfo, page_parts
from organ_infer.report.rows import Row, Rows
from organ_infer.report.thumbnails import SliceReader, Thumbnails

INFO = ReportInfo(
    "organ-infer 'my images' --report r.html", "1.2.3", "edge <m>", "ab" * 32, "organamnist", "axial",
    tta=False, min_probability=0.5,
)  # fmt: skip
HOSTILE = "<script>alert('x')</script>\"&\n\udce9\x1b[2J"
ESCAPED = "<script>alert('x')</script>\"&\\x0a\\xe9\\x1b[2J"
PICTURE = data_address(png(np.arange(12, dtype=np.uint8).reshape(3, 4)))


def row(number, probability, name="liver", **more):
    top = ((name, probability), ("spleen", 0.01), ("heart", 0.001))
    return Row(number, f"p{number}.png", top=top, **more)


def failure(number, error="cut short"):
    return Row(number, f"bad{number}.png", error=error)


@pytest.fixture
def page(tmp_path):
    """Writes a page with rows and returns it."""

    def write(*rows, pictures=None, info=INFO, limits=(), **more):
        collected = Rows(*limits)
        for each in rows:
            collected.add(each)
        path = tmp_path / "r.html"
        parts = page_parts(collected, pictures or {}, info, **more)
        path.write_text("".join(parts), encoding="utf-8")
        return Page(path)

    return write


def listed(shown):
    """The paths of the rows, in their order."""
    body = shown.source.partition('id="rows"')[2]
    return re.findall(r'<span class="path">([^<]*)</span>', body.partition("</ol>")[0])


def evaluation(count=60):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 11, count)
    probabilities = rng.dirichlet([0.2] * 11, count).astype(np.float32)
    return evaluate(probabilities, labels, CLASSES, unknown_labels={})


def test_the_page_needs_nothing_from_outside_and_runs_its_own_script_alone(page):
    shown = page(row(0, 0.5), failure(1), pictures={"p0.png": PICTURE}, evaluation=evaluation())
    (policy,) = [
        attributes["content"]
        for tag, attributes in shown.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    digests = {
        tag: base64.b64encode(hashlib.sha256(found.encode()).digest()).decode()
        for tag in ("style", "script")
        for found in re.findall(rf"<{tag}>(.*?)</{tag}>", shown.source, re.DOTALL)
    }
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digests['style']}';"
        f" script-src 'sha256-{digests['script']}'; base-uri 'none'; form-action 'none'"
    )
    tags = Counter(tag for tag, _ in shown.elements)
    assert tags["script"] == tags["style"] == 1
    assert not set(tags) & {"link", "iframe", "object", "embed", "form", "base", "a"}
    for _, attributes in shown.elements:
        assert not {"style", "href", "srcset", "onload", "onclick"} & attributes.keys()
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
    assert not re.search(r"https?:|url\(|@import|\bfetch\(|\beval\(|innerHTML", shown.source)
    assert "prefers-color-scheme: dark" in shown.source and "@media print" in shown.source


def test_every_element_is_closed(page):
    shown = page(
        row(0, 0.5, warnings=("w",)), failure(1), row(2, 0.4, is_uncertain=True, truth="heart", is_correct=False),
        pictures={"p0.png": PICTURE}, evaluation=evaluation(),
    )  # fmt: skip
    opened_tags = Counter(tag for tag, _ in shown.elements)
    closed = Counter(re.findall(r"</(\w+)>", shown.source))
    void = {"meta", "input", "img", "br"}
    selfclosed = Counter(re.findall(r"<(\w+)[^<>]*/>", shown.source))
    opened_tags.subtract(selfclosed)
    assert {tag: count for tag, count in opened_tags.items() if tag not in void and count} == closed
    fields = {a["id"] for tag, a in shown.elements if tag in ("input", "select")}
    labels = {a["for"] for tag, a in shown.elements if tag == "label"}
    assert fields - labels == {"f-high"} and labels <= fields


def test_rows_are_listed_with_three_labels_the_least_certain_first(page):
    shown = page(row(0, 0.9), failure(1), row(2, 0.5), row(3, 0.9, name="heart"), row(4, 0.7))
    assert listed(shown) == ["p2.png", "p4.png", "p0.png", "p3.png", "bad1.png"]
    assert "liver0.500" in shown.text and "spleen 0.010, heart 0.001" in shown.text
    bars = [a["class"] for tag, a in shown.elements if a.get("class", "").startswith("bar")]
    assert bars[-4:] == ["bar w50", "bar w70", "bar w90", "bar w90"]
    assert ".w70 { background-size: 70% 100%; }" in shown.source
    assert shown.pairs[:4] == [
        ("slices classified", "4"),
        ("uncertain", "0"),
        ("with warnings", "0"),
        ("failed", "1"),
    ]
    assert shown.row("Counts by label", "liver")[0] == "3"
    assert "cut short" in shown.text
    states = re.findall(r'data-s="([^"]*)"', shown.source)
    assert states == ["", "", "", "", "failed"]
    for pair in (
        ("command", "organ-infer 'my images' --report r.html"),
        ("organ-infer", "1.2.3"),
        ("model", "edge <m>, axial slices, trained on organamnist"),
        ("manifest", f"sha256 {'ab' * 32}"),
        ("uncertain below", "0.5"),
    ):
        assert pair in shown.pairs


def test_beyond_the_limit_the_least_certain_are_kept_and_the_page_says_so(page):
    rng = np.random.default_rng(0)
    rows = [row(i, p) for i, p in enumerate(rng.permutation(np.linspace(0.2, 1, 50)).tolist())]
    rows += [failure(i) for i in range(50, 60)]
    shown = page(*rows, limits=(7, 3))
    least = sorted(rows[:50], key=lambda each: each.top[0][1])[:7]
    assert listed(shown) == [each.path for each in least] + ["bad50.png", "bad51.png", "bad52.png"]
    assert "The page has the least certain 7 of 50 slices." in shown.text
    assert "The page has the first 3 of 10 failed images." in shown.text
    assert shown.pairs[0] == ("slices classified", "50")
    whole = page(*rows, limits=(50, 10))
    assert len(listed(whole)) == 60 and "The page has" not in whole.text


def test_of_equally_certain_slices_the_first_are_kept(page):
    assert listed(page(*(row(i, 0.5) for i in range(9)), limits=(4, 1))) == [
        f"p{i}.png" for i in range(4)
    ]


def test_a_page_without_any_classified_slice_says_so(page):
    shown = page(failure(0))
    assert "No image was classified." in shown.text and listed(shown) == ["bad0.png"]


def test_every_text_is_escaped(page):
    top = ((HOSTILE, 0.5), (HOSTILE, 0.2))
    shown = page(
        Row(0, HOSTILE, top=top, is_uncertain=True, warnings=(HOSTILE,), truth=HOSTILE, is_correct=False),
        Row(1, HOSTILE + "2", error=HOSTILE),
        info=ReportInfo(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, True, None),
        evaluation=evaluate(
            np.array([[0.9, 0.1]], np.float32), np.array([1]), (HOSTILE, "b"), unknown_labels={}
        ),
        mistake_paths={0: HOSTILE},
    )  # fmt: skip
    assert [tag for tag, _ in shown.elements].count("script") == 1
    assert "<script>alert" not in shown.source and "x')" not in shown.source
    assert "\x1b" not in shown.source and shown.text.count(ESCAPED) > 12


def test_labels_mark_rows_as_correct_or_wrong(page):
    shown = page(
        row(0, 0.9, truth="liver", is_correct=True),
        row(1, 0.8, truth="heart", is_correct=False),
        row(2, 0.7, truth="aorta"),
        row(3, 0.6),
        evaluation=evaluation(),
    )
    assert re.findall(r'data-s="([^"]*)"', shown.source) == [
        "unlabeled",
        "unlabeled",
        "wrong",
        "correct",
    ]
    assert "wrong, labeled heart" in shown.text and "labeled aorta" in shown.text
    choices = re.findall(r'<option value="([^"]*)">', shown.source)
    assert {"wrong", "correct", "unlabeled", "mistakes", "aorta"} <= set(choices)
    # Without labels, nothing about them is shown.
    plain = page(row(0, 0.9), row(1, 0.5, is_uncertain=True))
    assert "f-truth" not in plain.source.partition("<script>")[0] and "Evaluation" not in plain.text
    assert set(re.findall(r'<option value="([^"]*)">', plain.source)) == {
        "", "liver", "uncertain", "least", "most", "name", "path", "input",
    }  # fmt: skip


def test_the_evaluation_has_its_figures_tables_diagram_and_mistakes(page):
    found = evaluation()
    paths = {mistake.index: f"m{mistake.index}.png" for mistake in found.mistakes}
    pictures = {paths[found.mistakes[0].index]: PICTURE}
    shown = page(row(0, 0.5), evaluation=found, mistake_paths=paths, pictures=pictures)
    interval = found.interval
    assert (
        "accuracy",
        f"{found.accuracy:.4f} 95% interval {interval.low:.4f} to {interval.high:.4f}",
    ) in shown.pairs
    head, *rows = shown.table("Confusion matrix")
    assert head[1:] == CLASSES == [cells[0] for cells in rows]
    counts = [[0 if cell == "·" else int(cell) for cell in cells[1:]] for cells in rows]
    assert tuple(map(tuple, counts)) == found.confusion
    table = shown.table("Metrics by class")[1:]
    assert [cells[0] for cells in table] == CLASSES
    assert int(table[3][1]) == found.per_class[3].slices
    (drawing,) = shown.drawings()
    assert f"{found.ece:.4f}" in drawing
    bars = [
        float(a["height"])
        for tag, a in shown.elements
        if tag == "rect" and a["class"] == "accuracy"
    ]
    used = [each.accuracy for each in found.reliability if each.slices]
    assert bars == pytest.approx([260 * accuracy for accuracy in used], abs=0.05)
    assert len(shown.texts["figcaption"]) == len(found.mistakes) == 24
    first = found.mistakes[0]
    assert shown.texts["figcaption"][0] == (
        f"{first.predicted} {first.probability:.3f}labeled {first.label}{paths[first.index]}"
    )
    assert len(shown.images) == 1


def test_many_classes_have_a_list_instead_of_a_matrix(page):
    names = [f"c{i}" for i in range(41)]
    labels = np.arange(41)
    probabilities = np.eye(41, dtype=np.float32)[(labels + (labels == 7)) % 41]
    shown = page(row(0, 0.5), evaluation=evaluate(probabilities, labels, names))
    assert shown.table("Most frequent confusions")[1:] == [["c7", "c8", "1"]]
    assert "Confusion matrix" not in shown.tables


# Pictures


def test_slices_become_gray_as_the_model_scales_them():
    assert gray(np.array([[0, 65535, 257]], np.uint16), None).tolist() == [[0, 255, 1]]
    hounsfield = np.array([[-500, -160, 40, 240, 3000]], np.int16)
    assert gray(hounsfield, (40, 400)).tolist() == [[0, 0, 128, 255, 255]]
    same = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert gray(same, (40, 400)) is same


def test_a_png_is_what_pillow_reads():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (3, 7), (96, 64)):
        pixels = rng.integers(0, 256, shape, np.uint8)
        with Image.open(io.BytesIO(png(pixels))) as picture:
            assert picture.mode == "L" and (np.asarray(picture) == pixels).all()


def test_pictures_of_a_full_page_stay_within_its_size():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (28, 28), np.uint8)
    for shape in ((28, 28), (96, 96), (512, 300), (300, 3), (1, 4000)):
        noise = rng.integers(0, 256, shape, np.uint8)
        address = Thumbnails(5024, None).address(noise)
        # 5,000 of these, and as many rows of 1,200 characters, are below 20 MB.
        assert len(address) < 2700, shape
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
            assert max(picture.size) <= 96
            assert (picture.width >= picture.height) == (shape[1] >= shape[0])
    few = Thumbnails(10, None).address(rng.integers(0, 256, (512, 512), np.uint8))
    with Image.open(io.BytesIO(base64.b64decode(few.partition(",")[2]))) as picture:
        assert picture.size == (192, 192)
    assert Thumbnails(5000, None).address(small) == data_address(png(small))


def read(reader, *paths):
    return {name: image.pixels for name, image in reader.slices(paths)}


def test_slices_are_read_again_by_the_names_of_results(tmp_path):
    stack = np.random.default_rng(0).integers(0, 256, (6, 8, 9), np.uint8)
    np.save(tmp_path / "s.npy", stack)
    np.savez(tmp_path / "s.npz", a=stack, b=stack[::-1])
    Image.fromarray(stack[0]).save(tmp_path / "s.png")
    reader = SliceReader(Limits(), lambda image: image)
    base = str(tmp_path)
    expected = {
        f"{base}/s.npy#4": stack[4],
        f"{base}/s.npy#1": stack[1],
        f"{base}/s.npz#b#0": stack[5],
        f"{base}/s.npz#a#0": stack[0],
        f"{base}/s.npy#2[0:5,1:3]": stack[2, 1:3, :5],
        f"{base}/s.npy#3[0:5,1:3]": stack[3, 1:3, :5],
        f"{base}/s.png": stack[0],
        f"{base}/s.png[x=1:2,1:4]": stack[0, 1:4, 1:2],
    }
    found = read(reader, *expected, f"{base}/gone.png", f"{base}/s.npy#99")
    assert found.keys() == expected.keys()
    assert all((found[name] == pixels).all() for name, pixels in expected.items())


def test_a_file_of_many_slices_is_opened_once(tmp_path, monkeypatch):
    np.save(tmp_path / "s.npy", np.zeros((50, 8, 9), np.uint8))
    opened_paths = []

    def counted(path, limits):
        opened_paths.append(path)
        return original(path, limits)

    original = thumbnails.open_slices
    monkeypatch.setattr(thumbnails, "open_slices", counted)
    reader = SliceReader(Limits(), lambda image: image)
    assert len(read(reader, *(f"{tmp_path}/s.npy#{i}" for i in range(50)))) == 50
    assert opened_paths == [f"{tmp_path}/s.npy"]


def test_standard_input_is_read_once_from_its_recorded_content(monkeypatch):
    stack = np.random.default_rng(0).integers(0, 256, (3, 8, 9), np.uint8)
    buffer = io.BytesIO()
    np.save(buffer, stack)
    opened_contents = []

    def counted(*arguments):
        opened_contents.append(arguments)
        return original(*arguments)

    original = thumbnails.decode_slices
    monkeypatch.setattr(thumbnails, "decode_slices", counted)
    found = read(SliceReader(Limits(), lambda image: image, buffer.getvalue()), "-#0", "-#2")
    assert (found["-#0"] == stack[0]).all() and (found["-#2"] == stack[2]).all()
    assert len(opened_contents) == 1


# The script

CHECKS = """
const results = {};
const shown = () => Array.from(document.querySelectorAll(".row")).filter(e => !e.hidden)
  .map(e => e.querySelector(".path").textContent);
const set = (name, value) => {
  const field = document.getElementById("f-" + name);
  field.value = value;
  field.dispatchEvent(new Event("input", {bubbles: true}));
};
const check = (name, ...changes) => {
  document.getElementById("reset").click();
  for (const [field, value] of changes) set(field, value);
  results[name] = shown();
};
const key = name => (document.activeElement.closest("#rows") || document.getElementById("rows"))
  && document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
const focused = () => document.activeElement.querySelector(".path")?.textContent || "";
check("all");
check("name", ["name", "heart"]);
check("truth", ["truth", "heart"]);
for (const state of ["uncertain", "failed", "warned", "wrong", "correct", "unlabeled"])
  check(state, ["state", state]);
check("low", ["low", "0.8"]);
check("high", ["high", "0.5"]);
check("between", ["low", "0.55"], ["high", "0.75"]);
check("text", ["text", " P1 "]);
check("nothing", ["text", "p1"], ["name", "heart"]);
results.count = document.getElementById("shown").textContent;
for (const order of ["most", "name", "path", "input", "mistakes", "least"])
  check("sort " + order, ["sort", order]);
check("keys", ["state", "uncertain"]);
document.getElementById("reset").click();
document.getElementById("rows").focus();
results.moves = ["j", "j", "k", "End", "Home", "ArrowDown", "ArrowUp", "k"].map(name => (key(name), focused()));
key("Enter");
results.large = document.activeElement.classList.contains("large");
key("Enter");
results.small = !document.activeElement.classList.contains("large");
set("state", "failed");
document.getElementById("rows").focus();
key("j");
results.first = focused();
const out = document.createElement("pre");
out.id = "results";
out.textContent = JSON.stringify(results);
document.body.append(out);
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_the_script_filters_sorts_and_moves(page, tmp_path):
    rows = [
        row(0, 0.9, truth="liver", is_correct=True),
        row(1, 0.5, name="heart", is_uncertain=True, truth="heart", is_correct=True),
        failure(2),
        row(3, 0.7, truth="heart", is_correct=False, warnings=("odd",)),
        row(4, 0.8, name="bladder"),
        row(10, 0.95, truth="heart", is_correct=False),
    ]
    source = page(*rows, pictures={"p0.png": PICTURE}, evaluation=evaluation()).source
    path = tmp_path / "checked.html"
    path.write_text(with_script(source, CHECKS), encoding="utf-8")
    html, _ = opened(path, tmp_path / "profile")
    found = re.search(r'<pre id="results">(.*?)</pre>', html)
    results = json.loads(found[1].replace("&amp;", "&"))
    p0, p1, bad, p3, p4, p10 = "p0.png", "p1.png", "bad2.png", "p3.png", "p4.png", "p10.png"
    assert results == {
        "all": [p1, p3, p4, p0, p10, bad],
        "name": [p1],
        "truth": [p1, p3, p10],
        "uncertain": [p1],
        "failed": [bad],
        "warned": [p3],
        "wrong": [p3, p10],
        "correct": [p1, p0],
        "unlabeled": [p4],
        "low": [p4, p0, p10],
        "high": [p1],
        "between": [p3],
        "text": [p1, p10],
        "nothing": [p1],
        "count": "1 of 6 rows",
        "sort most": [p10, p0, p4, p3, p1, bad],
        "sort name": [p4, p1, p3, p0, p10, bad],
        "sort path": [bad, p0, p1, p10, p3, p4],
        "sort input": [p0, p1, bad, p3, p4, p10],
        "sort mistakes": [p10, p3, p0, p4, p1, bad],
        "sort least": [p1, p3, p4, p0, p10, bad],
        "keys": [p1],
        "moves": [p1, p3, p1, bad, p1, p3, p1, p1],
        "large": True,
        "small": True,
        "first": bad,
    }


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_the_browser_runs_the_script_under_the_policy_and_reports_nothing(page, tmp_path):
    page(row(0, 0.5), failure(1), pictures={"p0.png": PICTURE}, evaluation=evaluation())
    html, log = opened(tmp_path / "r.html", tmp_path / "profile")
    assert "2 of 2 rows" in html
    # The script has put the picture into its place.
    assert re.search(r'<div class="thumb"><img alt="" class="small" src="data:image/png', html)
    assert not re.search(r"CONSOLE|Content Security Policy", log), log


PLACES = """
const box = selector => document.querySelector(selector).getBoundingClientRect();
const label = document.createRange();
label.selectNodeContents(document.querySelector(".label").firstChild);
const out = document.createElement("pre");
out.id = "results";
out.textContent = JSON.stringify({
  gap: box(".badge").left - label.getBoundingClientRect().right,
  rest: box(".label").right - box(".label span:last-child").right,
  opacity: Number(getComputedStyle(document.querySelector(".heat")).opacity)
});
document.body.append(out);
"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_the_badge_is_beside_the_label_and_the_slice_visible_below_its_map(page, tmp_path):
    pictures = {"p0.png": PICTURE}
    shown = page(row(0, 0.5, is_uncertain=True), pictures=pictures, overlays=pictures)
    path = tmp_path / "checked.html"
    path.write_text(with_script(shown.source, PLACES), encoding="utf-8")
    html, _ = opened(path, tmp_path / "profile")
    places = json.loads(re.search(r'<pre id="results">(.*?)</pre>', html)[1])
    # In pixels: the badge follows the label, and the probability ends the line.
    assert 0 < places["gap"] < 16 and places["rest"] == 0
    assert 0.5 <= places["opacity"] <= 0.8

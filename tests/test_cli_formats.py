"""organ-infer's rows: text, jsonl and csv, organs, and what is uncertain."""

import csv
import io
import re

import numpy as np
import pytest
from conftest import CLASSES, constant_graph, write_bundle
from PIL import Image
from support.command_results import COLUMNS, RAMP, failed, rows

from organ_infer import OrganClassifier

# Formats.


def test_text(command, three_images, classifier):
    done = command(*three_images)
    expected = "".join(
        f"{p.label:<12} {p.probability:.3f} {p.path}\n"
        for p in classifier.predict_paths(three_images)
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_text_with_the_likeliest_classes(command, three_images, classifier):
    (line,) = command("--top", "3", three_images[0]).stdout.splitlines()
    (found,) = classifier.predict_paths(three_images[:1])
    order = np.argsort(found.probabilities)[::-1][:3]
    assert (
        line
        == " ".join(f"{CLASSES[i]:<12} {found.probabilities[i]:.3f}" for i in order)
        + " "
        + three_images[0]
    )


def test_jsonl(command, three_images, bad_image, classifier):
    done = command("--format", "jsonl", three_images[0], bad_image, three_images[1])
    assert done.returncode == 1
    first, middle, last = rows(done)
    keys = [
        "path",
        "label",
        "index",
        "probability",
        "organ",
        "organ_probability",
        "probabilities",
        "warnings",
    ]
    assert (
        list(first) == keys and middle.keys() == {"path", "error"} and middle["path"] == bad_image
    )
    assert (
        list(first["probabilities"]) == CLASSES
        and first["path"] == three_images[0]
        and last["path"] == three_images[1]
    )
    (found,) = classifier.predict_paths(three_images[:1])
    np.testing.assert_array_equal(
        np.float32(list(first["probabilities"].values())), np.float32(found.probabilities)
    )
    assert done.stderr == f"organ-infer: error: {bad_image}: {middle['error']}\n"


def test_jsonl_with_the_likeliest_classes(command, three_images):
    (row,) = rows(command("--format", "jsonl", "--top", "2", three_images[0]))
    assert [list(pair) for pair in row["top"]] == [["label", "probability"]] * 2
    assert row["top"][0] == {"label": row["label"], "probability": row["probability"]}


def test_csv(command, three_images, bad_image, tmp_path):
    color = tmp_path / "color, alpha.png"
    Image.fromarray(RAMP.repeat(4, axis=2)).save(color)
    done = command("--format", "csv", three_images[0], bad_image, color)
    head, good, wrong, noted = csv.reader(io.StringIO(done.stdout))
    assert head == COLUMNS + CLASSES and done.returncode == 1
    assert good[0] == three_images[0] and good[1] in CLASSES and good[5:7] == ["", ""]
    assert float(good[2]) == max(map(float, good[7:])) and sum(
        map(float, good[7:])
    ) == pytest.approx(1, abs=1e-5)
    assert (
        wrong[0] == bad_image
        and wrong[6].startswith("unknown image format")
        and set(wrong[1:6] + wrong[7:]) == {""}
    )
    assert (
        noted[0] == str(color)
        and noted[5] == "converted from color to gray; alpha composited on black"
    )


def test_warnings_go_to_standard_error_with_text(command, tmp_path):
    path = tmp_path / "color.png"
    Image.fromarray(RAMP.repeat(3, axis=2)).save(path)
    done = command(path)
    assert (
        done.stderr == f"organ-infer: warning: {path}: converted from color to gray\n"
        and done.returncode == 0
    )
    assert command("--quiet", path).stderr == ""
    (row,) = rows(command("--format", "jsonl", path))
    assert row["warnings"] == ["converted from color to gray"]


def test_orientation_turns(command, tmp_path):
    image = np.random.default_rng(2).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(image.T).save(tmp_path / "b.png")
    stored, turned = (
        rows(command("--format", "jsonl", *options, tmp_path / name))[0]["probabilities"]
        for name, options in {"a.png": [], "b.png": ["--orientation", "PL"]}.items()
    )
    assert stored == turned
    failed(command("--orientation", "LR", tmp_path / "a.png"), "orientation: expected two letters")


def test_tta_averages_over_shifts(command, three_images, bundle):
    found = rows(command("--tta", "--format", "jsonl", *three_images))
    with OrganClassifier(bundle, device="cpu", tta=True) as opened:
        expected = [p.probabilities for p in opened.predict_paths(three_images)]
    np.testing.assert_allclose(
        [list(row["probabilities"].values()) for row in found], expected, rtol=1e-6
    )
    assert found != rows(command("--format", "jsonl", *three_images))
    assert "--tta" in command("--help", model=None).stdout


# Organs, and what is uncertain.


@pytest.fixture(scope="module")
def torn(tmp_path_factory):
    """The label is heart at 0.4, the organ femur at 0.6."""
    graph = constant_graph({"femur-left": 0.35, "femur-right": 0.25, "heart": 0.4})
    return write_bundle(tmp_path_factory.mktemp("torn") / "b", {"g.onnx": graph})


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("", "heart        0.400"),
        ("--organs", "femur    0.600"),
        ("--organs --top 1", "femur    0.600"),
        ("--organs --top 2", "femur    0.600 heart    0.400"),
        ("--min-probability 0.39", "heart        0.400"),
        ("--min-probability 0.41", "uncertain    0.400"),
        ("--min-probability 1", "uncertain    0.400"),
        ("--min-probability 0.41 --top 2", "uncertain    0.400 femur-left   0.350"),
        ("--min-probability 0.41 --organs", "femur     0.600"),
        ("--min-probability 0.61 --organs", "uncertain 0.600"),
        ("--min-probability 6.1e-1 --organs --top 2", "uncertain 0.600 heart     0.400"),
    ],
)
def test_text_with_organs_and_the_uncertain(command, torn, three_images, options, line):
    done = command(*options.split(), three_images[0], three_images[1], model=torn)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"{line} {three_images[0]}\n{line} {three_images[1]}\n",
        "",
    )


def test_text_with_the_likeliest_organs(command, three_images, classifier):
    found = classifier.predict_paths(three_images)
    for line, p in zip(
        command("--organs", "--top", "8", *three_images).stdout.splitlines(), found, strict=True
    ):
        *words, _ = line.split()
        sums = dict(zip(words[::2], map(float, words[1::2]), strict=True))
        assert len(sums) == 8 and next(iter(sums)) == p.organ
        assert sorted(sums.values(), reverse=True) == list(sums.values())
        for organ, total in sums.items():
            parts = [
                q for c, q in zip(CLASSES, p.probabilities, strict=True) if c.startswith(organ)
            ]
            assert total == pytest.approx(sum(parts), abs=5.1e-4)


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ("--organs", {}),
        ("--min-probability 0.39", {}),
        ("--min-probability 0.41", {"label": "uncertain"}),
        ("--min-probability 0.41 --organs", {}),
        ("--min-probability 0.61 --organs", {"organ": "uncertain"}),
    ],
)
def test_csv_and_jsonl_change_the_one_name_that_is_uncertain(
    command, torn, three_images, bad_image, options, changed
):
    plain, found = (
        command("--format", "jsonl", "--top", "9", *more, three_images[0], bad_image, model=torn)
        for more in ([], options.split())
    )
    assert found.returncode == 1  # for the bad one
    expected = rows(plain)
    assert [expected[0][key] for key in ("label", "index", "organ")] == ["heart", 3, "femur"]
    assert (
        rows(found) == [expected[0] | changed, expected[1]]
        and rows(found)[0]["top"][0]["label"] == "heart"
    )
    plain, found = (
        list(
            csv.DictReader(
                io.StringIO(
                    command("--format", "csv", *more, three_images[0], bad_image, model=torn).stdout
                )
            )
        )
        for more in ([], options.split())
    )
    assert (plain[0]["label"], plain[0]["organ"]) == ("heart", "femur")
    assert found == [plain[0] | changed, plain[1]]


@pytest.mark.parametrize(
    ("options", "key"), [([], "probability"), (["--organs"], "organ_probability")]
)
def test_a_probability_equal_to_the_least_is_not_uncertain(
    command, torn, three_images, options, key
):
    (row,) = rows(command("--format", "jsonl", three_images[0], model=torn))
    with OrganClassifier(torn, device="cpu") as opened:
        (found,) = opened.predict_paths(three_images[:1])
    exact = getattr(found, key)
    above = float(np.nextafter(np.float32(exact), np.float32(1)))
    for least, uncertain in (row[key], False), (exact, False), (above, True):
        for form in "text", "csv", "jsonl":
            done = command(
                "--min-probability",
                repr(least),
                "--format",
                form,
                *options,
                three_images[0],
                model=torn,
            )
            assert ("uncertain" in done.stdout, done.returncode) == (uncertain, 0)


def test_names_are_padded_to_uncertain_in_a_model_of_shorter_ones(
    command, two_class_bundle, three_images
):
    text = command(three_images[0], model=two_class_bundle).stdout
    assert re.fullmatch(r"(liver |spleen) 0\.\d{3} .*\n", text)
    text = command("--min-probability", "0.01", three_images[0], model=two_class_bundle).stdout
    assert re.fullmatch(r"(liver    |spleen   ) 0\.\d{3} .*\n", text)


def test_help_says_what_is_uncertain(command):
    text = " ".join(command("--help", model=None).stdout.split())
    assert (
        "text: show the organ without its side, with the summed probability of both sides" in text
    )
    assert (
        "'uncertain' instead of the label if its probability is below P; with --organs, instead of"
        in text
    )
    assert "list the K most probable classes (text, jsonl) or organs (text with --organs)" in text


def test_the_examples_of_a_bundle_of_two_classes(command, two_class_bundle, three_images):
    """Columns follow the model's classes."""
    done = command("--format", "csv", three_images[0], model=two_class_bundle)
    assert next(csv.reader(io.StringIO(done.stdout))) == [*COLUMNS, "liver", "spleen"]
    with OrganClassifier(two_class_bundle) as opened:
        assert opened.classes == ("liver", "spleen")


def test_top_is_limited_by_the_names_that_a_format_lists(command, three_images):
    """docs/reference/command.md. Text lists organs with --organs, the other formats list classes."""
    too_many = command("--organs", "--top", "9", three_images[0])
    assert too_many.returncode == 2 and "--top 9: the model has 8 organs" in too_many.stderr
    too_many = command("--organs", "--top", "12", "--format", "jsonl", three_images[0])
    assert too_many.returncode == 2 and "--top 12: the model has 11 classes" in too_many.stderr
    assert command("--organs", "--top", "11", "--format", "jsonl", three_images[0]).returncode == 0
    assert command("--organs", "--top", "8", three_images[0]).returncode == 0

"""organ-infer with labels: the evaluation as text and JSON, what is left out, wrong labels."""

import json
import os

import pytest
from conftest import CLASSES
from PIL import Image

from organ_infer import OrganClassifier


@pytest.fixture(scope="module")
def answers(bundle, pictures):
    """File name -> the model's label."""
    with OrganClassifier(bundle, device="cpu") as classifier:
        paths = sorted(pictures.iterdir())
        return {
            p.name: r.label for p, r in zip(paths, classifier.predict_paths(paths), strict=True)
        }


@pytest.fixture
def labels_file(pictures, answers, tmp_path):
    """Writes labels of the pictures; those of `changed` differ from the model's answers."""

    def write(changed=(), extra=""):
        lines = ["path,label"]
        lines += [f"{pictures / n},{dict(changed).get(n, label)}" for n, label in answers.items()]
        path = tmp_path / "labels.csv"
        path.write_text("\n".join(lines) + "\n" + extra)
        return path

    return write


def other(label):
    return next(name for name in CLASSES if name != label)


def test_the_evaluation_is_text_on_standard_error_and_the_rows_stay(
    command, pictures, labels_file, answers
):
    plain = command(pictures)
    path = labels_file({"s00.png": other(answers["s00.png"])})
    done = command(pictures, "--labels", path)
    assert (done.returncode, done.stdout) == (0, plain.stdout)
    title, accuracy, *lines = done.stderr.splitlines()[-len(done.stderr.splitlines()) :]
    assert title == "organ-infer: evaluation of 40 slices"
    assert accuracy.startswith("accuracy   0.9750, 95% interval 0.9")
    assert any(line.startswith("ECE ") for line in lines)
    table = {line.split()[0]: line.split()[1:] for line in lines if line.split()[:1]}
    for name in set(answers.values()) - {answers["s00.png"]}:
        assert table[name][1] == str(sum(label == name for label in answers.values()))
    matrix = [line.split() for line in lines if line.split()[:1] and line.split()[0].isdigit()]
    assert [row[1] for row in matrix[-11:]] == CLASSES
    assert sum(int(cell) for row in matrix[-11:] for cell in row[2:] if cell != ".") == 40
    assert command("--quiet", pictures, "--labels", path).stderr == ""


def test_the_metrics_are_json(command, pictures, labels_file, answers, tmp_path):
    changed = {"s03.png": other(answers["s03.png"]), "s04.png": "aorta"}
    done = command(
        "--quiet", pictures, "--labels", labels_file(changed), "--metrics", tmp_path / "m.json",
        "--group-by", r"/s(\d)",
    )  # fmt: skip
    assert done.returncode == 0
    found = json.loads((tmp_path / "m.json").read_text())
    assert (found["format"], found["model"], found["view"], found["tta"]) == (
        1,
        "random",
        "axial",
        False,
    )
    assert (found["slices"], found["accuracy"]) == (39, 38 / 39)
    assert found["interval"]["groups"] == 4 and found["interval"]["level"] == 0.95
    assert (found["unlabeled"], found["unknown_labels"], found["failed"]) == (0, {"aorta": 1}, 0)
    assert found["classes"] == CLASSES == [row["label"] for row in found["per_class"]]
    assert sum(map(sum, found["confusion"])) == 39 and len(found["reliability"]) == 15
    done = command(pictures, "--labels", labels_file(), "--group-by", "pictures")
    assert (
        "note: --group-by puts all slices into one group, so the accuracy has no interval"
        in done.stderr
    )
    assert "accuracy   1.0000\n" in done.stderr
    (mistake,) = found["mistakes"]
    assert mistake["path"] == str(pictures / "s03.png")
    assert (mistake["label"], mistake["predicted"]) == (changed["s03.png"], answers["s03.png"])
    assert len(found["sha256"]) == 64 and set(mistake) == {
        "path",
        "label",
        "predicted",
        "probability",
    }


def test_what_is_left_out_is_named_and_counted(command, pictures, labels_file, tmp_path, bad_image):
    path = labels_file({"s01.png": "aorta", "s02.png": "aorta"}, "gone.png,liver\n")
    Image.new("L", (28, 28)).save(tmp_path / "new.png")
    done = command(
        pictures, tmp_path / "new.png", bad_image, "--labels", path, "--group-by", "s0[0-9]"
    )
    assert done.returncode == 1
    for text in (
        "note: labels that the model does not have, with their slices, are left out: aorta (2)",
        f"note: slices without a label are left out: 1 ({tmp_path / 'new.png'})",
        "note: labels of paths that were not classified: 1 (gone.png); paths are relative to the directory",
        "--group-by matches nothing in these paths, each slice is a group: 30 (",
        "organ-infer: evaluation of 38 slices",
    ):
        assert text in done.stderr


def test_labels_may_be_the_names_of_folders(command, slices, answers, tmp_path):
    for (name, label), pixels in zip(answers.items(), slices, strict=True):
        folder = tmp_path / "val" / (other(label) if name == "s07.png" else label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    arguments = ("-r", tmp_path / "val", "--labels-from-folders", "--metrics", tmp_path / "m.json")
    assert command(*arguments).returncode == 0
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["accuracy"] == 39 / 40 and found["unlabeled"] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--labels {}: cannot be read (No such file or directory)"),
        ("", "--labels {}: lists no label; expected lines with path,label"),
        ("image;organ\n", "--labels {}, line 1: not a label, expected path,label, found 'image;organ'"),
        ("a.png,liver\na.png,heart\n", "--labels {}, line 2: a.png has the label 'heart', but 'liver' in line 1"),
        ("a.png,aorta\n", "--labels {}: expected lines with path,label, found the labels aorta"),
    ],
)  # fmt: skip
def test_wrong_labels_end_the_run_before_it_begins(command, pictures, tmp_path, content, message):
    path = tmp_path / "l.csv"
    if content is not None:
        path.write_text(content)
    done = command(pictures, "--labels", path, "-o", tmp_path / "rows.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("organ-infer: error: " + message.format(path))
    assert done.stderr.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == (["l.csv"] if content is not None else [])


def test_without_any_labeled_slice_the_rows_are_complete_and_the_code_is_2(
    command, three_images, tmp_path
):
    (tmp_path / "l.csv").write_text("elsewhere/s00.png,liver\n")
    arguments = ("--labels", tmp_path / "l.csv", "--metrics", tmp_path / "m.json")
    done = command(*three_images, *arguments, "-o", tmp_path / "rows.csv")
    assert done.returncode == 2
    assert "error: evaluation: no classified slice has a label of the model" in done.stderr
    assert "slices without a label are left out: 3 (" in done.stderr
    assert "labels of paths that were not classified: 1 (elsewhere/s00.png)" in done.stderr
    assert (tmp_path / "rows.csv").read_text().count("\n") == 4
    assert not (tmp_path / "m.json").exists()


def test_rows_that_were_corrected_are_labels(command, pictures, tmp_path):
    rows = tmp_path / "rows.csv"
    assert command(pictures, "-o", rows).returncode == 0
    done = command(pictures, "--labels", rows)
    assert done.returncode == 0 and "accuracy   1.0000" in done.stderr


def test_a_file_of_labels_from_windows_gets_advice_about_its_backslashes(
    command, pictures, tmp_path
):
    (tmp_path / "l.csv").write_text("images\\s00.png,liver\n")
    done = command(pictures / "s00.png", "--labels", tmp_path / "l.csv")
    assert done.returncode == 2 and "with / between folders" in done.stderr
    (tmp_path / "l.csv").write_text("images/s00.png,liver\n")
    done = command(pictures / "s00.png", "--labels", tmp_path / "l.csv")
    assert done.returncode == 2 and "with / between folders" not in done.stderr


def test_one_slice_is_counted_in_the_singular(command, pictures, tmp_path):
    (tmp_path / "l.csv").write_text(f"{pictures / 's00.png'},liver\n")
    done = command(pictures / "s00.png", "--labels", tmp_path / "l.csv")
    assert "organ-infer: evaluation of 1 slice\n" in done.stderr

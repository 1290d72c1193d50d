"""The model repository for Triton: parsed by Triton's own protobuf definitions, its graphs run as they are configured."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import (
    CLASSES,
    DEFAULT,
    ROOT,
    child_environment,
    entry,
    make_graph,
    needs_default,
    write_bundle,
)
from PIL import Image

from export.triton import KINDS, main, write_repository
from export.triton_config import Serving
from organ_infer import OrganClassifier
from organ_infer._packing import pack

EXAMPLES = sorted((ROOT / "examples").glob("*.png"))
SLICES = np.stack([np.asarray(Image.open(path)) for path in EXAMPLES])


def write(bundle, out, *, device="cpu", precision="listed", instances=1, batch=64):
    serving = Serving(KINDS[device], instances, batch)
    return write_repository(bundle, out, device=device, precision=precision, serving=serving)


class Repository:
    """Stands for the server: every configuration parsed and held against its files, requests run step by step."""

    def __init__(self, directory):
        definitions = pytest.importorskip(
            "tritonclient.grpc.model_config_pb2",
            reason="pip install 'tritonclient[grpc]' has Triton's definitions",
        )
        from google.protobuf import text_format

        self.types = definitions.DataType
        self.configs, self.sessions = {}, {}
        for folder in directory.iterdir():
            text = (folder / "config.pbtxt").read_text()
            config = self.configs[folder.name] = text_format.Parse(text, definitions.ModelConfig())
            assert config.name == folder.name and config.max_batch_size > 0
            versions = [path.name for path in folder.iterdir() if path.is_dir()]
            assert versions == ["1"]
            for port in config.output:
                assert len((folder / port.label_filename).read_text().splitlines()) == port.dims[0]
            if config.platform == "ensemble":
                assert [path.name for path in (folder / "1").iterdir()] == ["placeholder.txt"]
                assert config.WhichOneof("scheduling_choice") == "ensemble_scheduling"
                assert not config.instance_group and not config.model_warmup
            else:
                self.open(config, folder / "1" / "model.onnx")

    def open(self, config, file):
        assert config.platform == "onnxruntime_onnx"
        session = self.sessions[config.name] = onnxruntime.InferenceSession(
            file, providers=["CPUExecutionProvider"]
        )
        for told, real in (
            (config.input, session.get_inputs()),
            (config.output, session.get_outputs()),
        ):
            assert [port.name for port in told] == [port.name for port in real]
            for port, actual in zip(told, real, strict=True):
                assert (
                    port.data_type == self.types.Value("TYPE_FP32")
                    and actual.type == "tensor(float)"
                )
                free, *fixed = actual.shape
                assert isinstance(free, str) and fixed == list(port.dims)
        for sample in config.model_warmup:
            zeros = {
                name: np.zeros((sample.batch_size, *given.dims), np.float32)
                for name, given in sample.inputs.items()
            }
            assert sample.batch_size <= config.max_batch_size and session.run(None, zeros)

    def ask(self, name, **tensors):
        """The outputs of a model, by name."""
        config = self.configs[name]
        assert sorted(tensors) == sorted(port.name for port in config.input)
        for port in config.input:
            assert tensors[port.name].dtype == np.float32
            assert list(tensors[port.name].shape[1:]) == list(port.dims)
            assert len(tensors[port.name]) <= config.max_batch_size
        wanted = [port.name for port in config.output]
        if config.platform != "ensemble":
            return dict(zip(wanted, self.sessions[name].run(wanted, tensors), strict=True))
        for step in config.ensemble_scheduling.step:
            assert (
                step.model_version == -1
                and config.max_batch_size <= self.configs[step.model_name].max_batch_size
            )
            answer = self.ask(
                step.model_name, **{key: tensors[value] for key, value in step.input_map.items()}
            )
            tensors |= {value: answer[key] for key, value in step.output_map.items()}
        return {name: tensors[name] for name in wanted}


def compare(bundle, directory, name, *, atol, **how):
    repository = Repository(directory)
    with OrganClassifier(bundle, device="cpu", threads=1) as classifier:
        expected, manifest = classifier.predict_proba(SLICES), classifier.manifest
    for rows in (slice(1), slice(44)):
        found = repository.ask(name, images=pack(SLICES[rows], manifest.input.size))[
            "probabilities"
        ]
        np.testing.assert_allclose(found, expected[rows], atol=atol)
    return repository


@needs_default
def test_the_packaged_bundle_answers_as_the_classifier(tmp_path):
    out = tmp_path / "deep" / "repository"
    name = write(DEFAULT.parent, out)
    repository = compare(DEFAULT.parent, out, name, atol=1e-5)
    told = json.loads(DEFAULT.read_text())
    assert (out / name / "labels.txt").read_text().split() == told["task"]["classes"]
    members = [f"{name}-{member['stage']}" for member in told["members"]]
    assert sorted(repository.configs) == sorted([name, *members, f"{name}-mean"])
    assert [path.name for path in out.parent.iterdir()] == ["repository"]


@needs_default
def test_another_form_is_served_where_it_is_asked_for(tmp_path):
    name = write(DEFAULT.parent, tmp_path / "fp32", precision="fp32")
    for member in json.loads(DEFAULT.read_text())["members"]:
        form = next(f for f in [member, *member["alternatives"]] if f["precision"] == "fp32")
        served = tmp_path / "fp32" / f"{name}-{member['stage']}" / "1" / "model.onnx"
        assert served.read_bytes() == (DEFAULT.parent / form["file"]).read_bytes()
    compare(DEFAULT.parent, tmp_path / "fp32", name, atol=0.2)  # the classifier may take int8


def test_an_ensemble_with_a_temperature_is_averaged(ensemble, tmp_path):
    hot = tmp_path / "hot"
    graphs = {path.name: path.read_bytes() for path in sorted(ensemble.glob("*.onnx"))}
    write_bundle(
        hot, graphs, outputs={"third.onnx": "probabilities"}, temperature=1.7, name="three of them"
    )
    name = write(hot, tmp_path / "out", instances=2, batch=48)
    assert name == "three_of_them"
    repository = compare(hot, tmp_path / "out", name, atol=1e-5)
    member = repository.configs["three_of_them-first"]
    assert member.max_batch_size == 48 and member.HasField("dynamic_batching")
    assert [(group.kind, group.count) for group in member.instance_group] == [(2, 2)]
    assert [sample.batch_size for sample in member.model_warmup] == [1, 48]
    assert member.parameters["intra_op_thread_count"].string_value == "1"


def with_fp16(folder):
    """A bundle of a member that is listed in int8, with fp32 and fp16 as alternatives (small float graphs all)."""
    graphs = {
        f"small.{form}.onnx": make_graph(seed=i) for i, form in enumerate(("int8", "fp32", "fp16"))
    }

    def change(manifest):
        entries = [
            entry(data, file) | {"stage": "small", "precision": file[6:10]}
            for file, data in graphs.items()
        ]
        manifest["members"] = [entries[0] | {"alternatives": entries[1:]}]

    return write_bundle(folder, graphs, change=change), graphs


@pytest.mark.parametrize(
    "device, precision, file",
    [
        ("cpu", "listed", "int8"),
        ("cuda", "listed", "fp16"),
        ("cpu", "fp16", "fp16"),
        ("cuda", "fp32", "fp32"),
        ("cuda", "int8", "int8"),
    ],
)
def test_the_variant_follows_the_device_and_the_option(device, precision, file, tmp_path):
    bundle, graphs = with_fp16(tmp_path / "bundle")
    out = tmp_path / "out"
    name = write(bundle, out, device=device, precision=precision)
    assert (out / f"{name}-small" / "1" / "model.onnx").read_bytes() == graphs[f"small.{file}.onnx"]
    config = Repository(out).configs[f"{name}-small"]
    assert config.instance_group[0].kind == {"cpu": 2, "cuda": 1}[device]
    assert ("intra_op_thread_count" in config.parameters) == (device == "cpu")


def test_two_members_of_one_name_are_refused(tmp_path, capsys):
    graphs = {"a.onnx": make_graph(seed=1), "b.onnx": make_graph(seed=2)}

    def change(manifest):
        for member in manifest["members"]:
            member["stage"] = "same"

    bundle = write_bundle(tmp_path / "bundle", graphs, change=change)
    assert main([str(bundle), str(tmp_path / "out")]) == 2
    assert "two models would have the same name" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--precision", "fp16"], "--precision: small has no fp16 variant; choose from fp32"),
        (["--instances", "0"], "--instances: expected 1 to 4096, found 0"),
        (["--max-batch", "9999"], "--max-batch: expected 1 to 4096, found 9999"),
        (["--device", "tpu"], "invalid choice"),
    ],
)
def test_errors_are_one_line_and_end_in_2(arguments, words, bundle, tmp_path, capsys):
    try:
        code = main([str(bundle), str(tmp_path / "out"), *arguments])
    except SystemExit as e:
        code = e.code
    said = capsys.readouterr().err.splitlines()
    assert code == 2 and words in said[-1]
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(bundle, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    assert main([str(bundle), str(tmp_path)]) == 2
    assert main([str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert ": not empty" in told[0] and "no such directory" in told[1]
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_write_that_fails_leaves_nothing(bundle, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "there")

    monkeypatch.setattr("export.triton.ensemble_config", full)
    assert main([str(bundle), str(tmp_path / "out")]) == 2
    assert not list(tmp_path.iterdir())


def test_the_command_runs_without_torch(bundle, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"from export.triton import main; sys.exit(main([{str(bundle)!r}, {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.endswith("clients request the model random\n"), (
        done.stderr
    )


@pytest.mark.parametrize("name", ["..", ".", ".hidden"])
def test_a_model_of_a_hidden_name_is_refused(tmp_path, name):
    def change(manifest):
        manifest["name"] = name

    bundle = write_bundle(tmp_path / "bundle", {"small.onnx": make_graph()}, change=change)
    assert main([str(bundle), str(tmp_path / "deep" / "out")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


# The configuration without Triton's definitions: a parser of protobuf's text form, of what is used here.

TOKEN = re.compile(r'\s*("[^"]*"|[\w.-]+|[{}\[\]:,])')


def parsed(text):
    """Fields by name, each a list of its values in order."""
    tokens = TOKEN.findall(text)

    def value():
        token = tokens.pop(0)
        if token == "{":
            return message("}")
        if token == "[":
            listed = []
            while tokens[0] != "]":
                listed.append(value())
                if tokens[0] == ",":
                    tokens.pop(0)
            tokens.pop(0)
            return listed
        return token[1:-1] if token.startswith('"') else int(token) if token.isdigit() else token

    def message(end):
        fields = {}
        while tokens and tokens[0] != end:
            name = tokens.pop(0)
            if tokens[0] == ":":
                tokens.pop(0)
            found = value()
            fields.setdefault(name, []).extend(
                found if isinstance(found, list) and name != "dims" else [found]
            )
        if end:
            assert tokens.pop(0) == end
        return fields

    return message(None)


def configurations(out):
    return {folder.name: parsed((folder / "config.pbtxt").read_text()) for folder in out.iterdir()}


def test_every_model_is_configured_as_documented(ensemble, tmp_path):
    """docs/deploy/triton.md: 500 microseconds for the members, none for the mean, one thread an instance, zeros as warm-up."""
    name = write(ensemble, tmp_path / "out", instances=3, batch=48)
    configs = configurations(tmp_path / "out")
    stages = ["first", "second", "third"]
    assert sorted(configs) == sorted(
        [name, f"{name}-mean", *(f"{name}-{stage}" for stage in stages)]
    )
    for model, config in configs.items():
        assert config["name"] == [model] and config["max_batch_size"] == [48]
        files = sorted(
            str(path.relative_to(tmp_path / "out" / model))
            for path in (tmp_path / "out" / model).rglob("*")
        )
        graph = ["1/placeholder.txt"] if model == name else ["1/model.onnx"]
        assert files == sorted(["1", *graph, "config.pbtxt", "labels.txt"])
        assert (tmp_path / "out" / model / "labels.txt").read_text().splitlines() == CLASSES
        for port in config["output"]:
            assert port["data_type"] == ["TYPE_FP32"] and port["dims"] == [[11]]
            assert port["label_filename"] == ["labels.txt"]
        if model == name:
            assert config["platform"] == ["ensemble"] and "dynamic_batching" not in config
            assert [port["name"] for port in config["output"]] == [["probabilities"]]
            continue
        assert config["platform"] == ["onnxruntime_onnx"]
        delay = 0 if model == f"{name}-mean" else 500
        assert config["dynamic_batching"] == [{"max_queue_delay_microseconds": [delay]}]
        assert config["instance_group"] == [{"kind": ["KIND_CPU"], "count": [3]}]
        (parameter,) = config["parameters"]
        assert parameter == {"key": ["intra_op_thread_count"], "value": [{"string_value": ["1"]}]}
        assert [sample["batch_size"] for sample in config["model_warmup"]] == [[1], [48]]
        for sample in config["model_warmup"]:
            given = {entry["key"][0]: entry["value"][0] for entry in sample["inputs"]}
            assert given == {
                port["name"][0]: {
                    "data_type": ["TYPE_FP32"],
                    "dims": port["dims"],
                    "zero_data": ["true"],
                }
                for port in config["input"]
            }
        session = onnxruntime.InferenceSession(
            tmp_path / "out" / model / "1" / "model.onnx", providers=["CPUExecutionProvider"]
        )
        for kind, real in ("input", session.get_inputs()), ("output", session.get_outputs()):
            listed = [(port["name"][0], port["dims"][0]) for port in config[kind]]
            assert listed == [(port.name, port.shape[1:]) for port in real]
            assert all(port["data_type"] == ["TYPE_FP32"] for port in config[kind])


def test_the_steps_of_the_ensemble_give_the_classifiers_probabilities(ensemble, tmp_path):
    graphs = {path.name: path.read_bytes() for path in sorted(ensemble.glob("*.onnx"))}
    outputs = {"third.onnx": "probabilities"}
    hot = write_bundle(tmp_path / "hot", graphs, outputs=outputs, temperature=1.7)
    out = tmp_path / "out"
    name = write(hot, out)
    config = configurations(out)[name]
    tensors = {"images": pack(SLICES, 28)}
    (scheduling,) = config["ensemble_scheduling"]
    for step in scheduling["step"]:
        # the newest version
        assert step["model_version"] == ["-1"]
        session = onnxruntime.InferenceSession(
            out / step["model_name"][0] / "1" / "model.onnx", providers=["CPUExecutionProvider"]
        )
        given = {entry["key"][0]: tensors[entry["value"][0]] for entry in step["input_map"]}
        (wanted,) = step["output_map"]
        tensors[wanted["value"][0]] = session.run(wanted["key"], given)[0]
    with OrganClassifier(hot, device="cpu", threads=1) as classifier:
        expected = classifier.predict_proba(SLICES)
    np.testing.assert_allclose(tensors["probabilities"], expected, atol=1e-5)


def files_of(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_copy_that_knows_only_files_is_the_same_repository(ensemble, tmp_path):
    """As git, object stores and archives copy: no empty directories, no links, no permissions, often no hidden files."""
    out, copied = tmp_path / "out", tmp_path / "copy"
    name = write(ensemble, out)
    paths = list(out.rglob("*"))
    for directory in (path for path in paths if path.is_dir()):
        assert any(path.is_file() for path in directory.rglob("*")), directory
    for path in paths:
        assert not path.is_symlink() and not path.name.startswith(".")
        if path.is_file():
            assert path.stat().st_size > 0 and path.stat().st_mode & 0o777 == 0o644
    names = [path.relative_to(out).as_posix().casefold() for path in paths]
    assert len(set(names)) == len(names)

    for relative, content in files_of(out).items():
        (copied / relative).parent.mkdir(parents=True, exist_ok=True)
        (copied / relative).write_bytes(content)

    directories = {path.relative_to(out) for path in paths if path.is_dir()}
    assert directories == {path.relative_to(copied) for path in copied.rglob("*") if path.is_dir()}
    assert (copied / name / "1").is_dir()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_repository_goes_through_git(bundle, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write(bundle, out)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    before, paths = files_of(out), {path.relative_to(out) for path in out.rglob("*")}
    git = ["git", "-C", str(out), "-c", "user.name=x", "-c", "user.email=x@x"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *arguments], check=True)
    subprocess.run(["git", "clone", "-q", out, tmp_path / "clone"], check=True)
    shutil.rmtree(tmp_path / "clone" / ".git")
    clone = tmp_path / "clone"
    assert files_of(clone) == before
    # with every version folder
    assert {path.relative_to(clone) for path in clone.rglob("*")} == paths


def test_models_whose_names_differ_in_case_alone_are_refused(tmp_path, capsys):
    """A copy to a file system that ignores the case would mix them."""
    graphs = {"a.onnx": make_graph(seed=1), "b.onnx": make_graph(seed=2)}

    def change(manifest):
        manifest["members"][0]["stage"], manifest["members"][1]["stage"] = "Big", "big"

    bundle = write_bundle(tmp_path / "bundle", graphs, change=change)
    assert main([str(bundle), str(tmp_path / "out")]) == 2
    assert "two models would have the same name" in capsys.readouterr().err


def test_a_gpu_has_no_thread_count_and_a_batch_of_one_one_warm_up(bundle, tmp_path):
    name = write(bundle, tmp_path / "out", device="cuda", batch=1)
    for model, config in configurations(tmp_path / "out").items():
        if model != name:
            assert config["instance_group"] == [{"kind": ["KIND_GPU"], "count": [1]}]
            assert "parameters" not in config
            assert [sample["batch_size"] for sample in config["model_warmup"]] == [[1]]


@pytest.mark.parametrize(
    "device, precision, file",
    [("cpu", "listed", "int8"), ("cuda", "listed", "fp16"), ("cpu", "fp32", "fp32")],
)
def test_the_served_file_is_the_variant_of_the_device_byte_for_byte(
    device, precision, file, tmp_path
):
    bundle, graphs = with_fp16(tmp_path / "bundle")
    name = write(bundle, tmp_path / "out", device=device, precision=precision)
    served = tmp_path / "out" / f"{name}-small" / "1" / "model.onnx"
    assert served.read_bytes() == graphs[f"small.{file}.onnx"]


@pytest.mark.parametrize("file", ["int8", "fp16"])
def test_a_file_that_changes_after_the_bundle_was_opened_is_not_served(
    file, tmp_path, monkeypatch, capsys
):
    from organ_infer.bundle import files as opening

    bundle, _ = with_fp16(tmp_path / "bundle")
    real = opening.open_bundle

    def changed_later(path, *arguments):
        opened = real(path, *arguments)
        (bundle / f"small.{file}.onnx").write_bytes(make_graph(seed=99))
        return opened

    monkeypatch.setattr(opening, "open_bundle", changed_later)
    code = main([str(bundle), str(tmp_path / "out"), "--device", "cpu", "--precision", file])
    assert code == 2
    assert f"small.{file}.onnx: changed while it was read" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_of_a_changed_file_is_not_served(bundle_copy, tmp_path, capsys):
    data = (bundle_copy / "small.onnx").read_bytes()
    (bundle_copy / "small.onnx").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert main([str(bundle_copy), str(tmp_path / "out")]) == 2
    assert "small.onnx: sha256" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_empty_directory_or_none_is_taken_and_a_file_or_a_link_is_not(bundle, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main([str(bundle), str(tmp_path / "empty")]) == 0
    assert (tmp_path / "empty" / "random" / "config.pbtxt").is_file()
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o755
    assert main([str(bundle), str(tmp_path / "deep" / "er" / "out")]) == 0
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        assert main([str(bundle), str(tmp_path / name)]) == 2
        assert f"{name}: not empty" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "empty", "file", "link"]


def test_the_command_takes_its_limits_and_serves_a_cpu_by_default(bundle, tmp_path):
    for value in ("1", "4096"):
        out = tmp_path / value
        assert main([str(bundle), str(out), "--instances", value, "--max-batch", value]) == 0
        config = configurations(out)["random-small"]
        assert config["max_batch_size"] == [int(value)]
        assert config["instance_group"] == [{"kind": ["KIND_CPU"], "count": [int(value)]}]
    assert main([str(bundle), str(tmp_path / "default")]) == 0
    config = configurations(tmp_path / "default")["random-small"]
    # its help: one instance, 64 slices a batch
    assert config["max_batch_size"] == [64] and config["instance_group"][0]["count"] == [1]


@pytest.mark.parametrize("option", ["--instances", "--max-batch"])
@pytest.mark.parametrize("value", ["-1", "0", "4097"])
def test_a_value_out_of_the_limits_is_refused(option, value, bundle, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main([str(bundle), str(tmp_path / "out"), option, value])
    assert caught.value.code == 2
    assert f"{option}: expected 1 to 4096, found {value}" in capsys.readouterr().err


def test_the_averaging_graph_is_one_that_older_servers_read(bundle, tmp_path):
    import onnx

    name = write(bundle, tmp_path / "out")
    model = onnx.load(tmp_path / "out" / f"{name}-mean" / "1" / "model.onnx")
    assert model.ir_version == 8
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]


def test_a_package_that_is_missing_is_named(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main([str(bundle), str(tmp_path / "out")]) == 2
    assert "export: error: onnx: not installed; run pip install" in capsys.readouterr().err


def test_a_member_whose_name_the_mean_has_is_refused(tmp_path, capsys):
    bundle = write_bundle(tmp_path / "bundle", {"mean.onnx": make_graph()})
    assert main([str(bundle), str(tmp_path / "out")]) == 2
    assert (
        "two models would have the same name (random, random-mean, random-mean); rename"
        in capsys.readouterr().err
    )


def test_the_files_are_whole_on_the_disk_before_they_take_their_place(
    bundle, tmp_path, monkeypatch
):
    synced, real = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))

    def replaced(source, target):
        sizes = [path.stat().st_size for path in Path(source).rglob("*") if path.is_file()]
        assert sorted(synced) == sorted(sizes) and len(sizes) == 9
        real(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    write(bundle, tmp_path / "out")


def test_a_graph_of_contradicting_shapes_is_not_served(bundle, tmp_path, monkeypatch):
    import onnx
    from onnx import helper

    def spoiled(answers, temperature, *_):
        nodes = [
            helper.make_node(
                "ReduceMean", ["small_logits"], ["probabilities"], axes=[1], keepdims=1
            )
        ]
        return nodes, []

    monkeypatch.setattr("export.average.averaging_nodes", spoiled)
    with pytest.raises(onnx.shape_inference.InferenceError):
        write(bundle, tmp_path / "out")


@pytest.mark.parametrize("module", ["triton", "all"])
def test_the_modules_are_commands(module):
    command = [sys.executable, "-m", f"export.{module}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=child_environment()
    )
    assert done.returncode == 2 and done.stderr.startswith(f"usage: python -m export.{module}")

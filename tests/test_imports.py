"""What importing and asking loads: nothing heavy, and never torch."""

import json
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from conftest import child_environment

HEAVY = ["torch", "onnxruntime", "PIL", "numpy", "onnx", "pydicom"]
SLOW = [
    "dataclasses",
    "importlib.metadata",
    "csv",
    "logging",
    "hashlib",
    "ctypes",
]  # milliseconds each


def loaded(code, heavy=HEAVY):
    """Which of the heavy modules are loaded once `code` has run."""
    code += f"\nimport json, sys\nsys.stderr.write(json.dumps(sorted(set({heavy!r}) & set(sys.modules))))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=child_environment()
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1])


def test_importing_the_package_is_light():
    assert loaded("import organ_infer; dir(organ_infer)") == []
    assert (
        loaded(
            "import organ_infer; organ_infer.__version__, organ_infer.BundleError, organ_infer.Prediction"
        )
        == []
    )
    assert (
        loaded("import organ_infer.bundle.files, organ_infer.cli, organ_infer.cli.arguments") == []
    )


@pytest.mark.parametrize("option", ["--help", "--version", "--nope"])
def test_help_version_and_usage_errors_are_light(option):
    # by what this environment runs at start, and by argparse's own help, which Python 3.14 colors
    own_help = "import argparse\nargparse.ArgumentParser().format_help()"
    before = loaded(own_help if option == "--help" else "", SLOW)
    assert loaded(f"from organ_infer.cli import main\nmain([{option!r}])", HEAVY + SLOW) == before


@pytest.mark.parametrize("option", ["--help", "--nope"])
@pytest.mark.parametrize("command", ["volume", "audit"])
def test_help_and_usage_errors_of_volume_and_audit_are_light(command, option):
    own_help = "import argparse\nargparse.ArgumentParser().format_help()"
    before = loaded(own_help if option == "--help" else "", SLOW)
    code = f"from organ_infer.cli import main\nmain([{command!r}, {option!r}])"
    assert loaded(code, [*HEAVY, *SLOW, "organ_infer.volumes", "organ_infer.audit"]) == before


def test_the_check_loads_no_torch_and_is_loaded_by_itself_alone(bundle):
    code = f"from organ_infer.cli import main\nassert main(['--check', '--bundle', {str(bundle)!r}]) == 0"
    assert loaded(code) == ["PIL", "numpy", "onnxruntime"]
    code = f"from organ_infer.cli import main\nassert main(['--bundle', {str(bundle)!r}, '/dev/null']) == 1"
    assert (
        loaded(code, ["organ_infer.cli.check", "organ_infer.bundle.golden", "importlib.metadata"])
        == []
    )


def test_images_load_nothing_of_volumes(bundle, pictures):
    code = f"from organ_infer.cli import main\nmain(['--bundle', {str(bundle)!r}, {str(pictures / 's00.png')!r}])"
    listing = (
        "\nsys.stderr.write(json.dumps(sorted(name for name in sys.modules if 'volume' in name)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import json, sys\n{code}{listing}"],
        capture_output=True,
        text=True,
        env=child_environment(),
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_a_prediction_asks_no_package_index(bundle, pictures):
    code = f"from organ_infer.cli import main\nmain(['--bundle', {str(bundle)!r}, {str(pictures / 's00.png')!r}])"
    assert (
        loaded(
            code,
            [
                "importlib.metadata",
                "email",
                "asyncio",
                "multiprocessing",
                "organ_infer.engine.cuda_thread",
            ],
        )
        == []
    )


@pytest.mark.skipif(
    not Path("/usr/include/zlib.h").exists(), reason="zlib's header is not installed"
)
def test_the_reader_of_png_is_built_where_it_can_be():
    """Its failing to compile fails no build."""
    from organ_infer import _reading

    assert _reading.read([])[1] == b""


@pytest.mark.parametrize("name", ["numpy", "onnxruntime", "pytest", "hypothesis", "no-such-thing"])
def test_the_installed_version_is_what_importlib_says(name):
    from importlib.metadata import PackageNotFoundError, version

    from organ_infer.engine.installed import installed_version

    try:
        assert installed_version(name) == version(name)
    except PackageNotFoundError:
        assert installed_version(name) is None


def test_classifying_loads_neither_torch_nor_onnx_and_pillow_only_where_it_decodes(
    bundle, pictures, tmp_path
):
    from PIL import Image

    from organ_infer.batching import _read_plain

    Image.open(pictures / "s00.png").save(tmp_path / "s00.bmp")
    for path, decoder in (
        (pictures / "s00.png", "" if _read_plain else "PIL"),
        (tmp_path / "s00.bmp", "PIL"),
    ):
        code = f"""
from organ_infer import OrganClassifier
with OrganClassifier({str(bundle)!r}) as c:
    assert len(list(c.predict_paths([{str(path)!r}]))) == 1"""
        assert loaded(code) == [*filter(None, [decoder]), "numpy", "onnxruntime"]


def test_arrays_need_no_pillow(bundle):
    code = f"""
import numpy as np
from organ_infer import OrganClassifier
with OrganClassifier({str(bundle)!r}) as c:
    c.predict(np.zeros((28, 28), np.uint8))"""
    assert loaded(code) == ["numpy", "onnxruntime"]


def test_a_program_can_name_the_types_of_signatures():
    import numpy as np
    from PIL import Image

    from organ_infer import Images, OrganClassifier, SupportsRead

    def label(classifier: OrganClassifier, images: Images) -> None: ...

    assert typing.get_type_hints(label)["images"] is Images
    named = {part for part in typing.get_args(Images) if isinstance(part, type)}
    assert Image.Image in named
    # the alias accepts the dtypes that are read
    assert all(dtype.__name__ in str(Images) for dtype in (np.uint8, np.uint16, np.int16))
    assert hasattr(SupportsRead, "read")


def test_every_public_name_loads():
    import organ_infer

    assert set(organ_infer.__all__) <= set(dir(organ_infer))
    for name in organ_infer.__all__:
        assert getattr(organ_infer, name)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = organ_infer.Nothing
    for name in ("BundleError", "DeviceError", "ImageError", "InputError"):
        assert issubclass(getattr(organ_infer, name), organ_infer.OrganInferError)


def test_the_library_configures_no_logging_and_changes_no_environment(bundle):
    code = f"""
import logging, os, signal, warnings
import onnxruntime  # which adds a filter of its own
before = dict(os.environ), list(warnings.filters), signal.getsignal(signal.SIGINT), os.getcwd()
from organ_infer import OrganClassifier
import numpy as np
OrganClassifier({str(bundle)!r}).predict(np.zeros((28, 28), np.uint8))
assert before == (dict(os.environ), list(warnings.filters), signal.getsignal(signal.SIGINT), os.getcwd())
assert not logging.getLogger("organ_infer").handlers and not logging.getLogger().handlers"""
    loaded(code)


def test_the_package_s_names_load_on_first_use_and_no_other_is_there(monkeypatch):
    import importlib.metadata

    import organ_infer
    from organ_infer import classifier, errors, names, results
    from organ_infer.engine import installed
    from organ_infer.images import discovery, inputs

    homes = {"OrganClassifier": classifier, "Prediction": results, "ImageFailure": results}
    homes |= {"escape_path": names, "unescape_path": names, "find_images": discovery}
    homes |= {"OrganPrediction": results, "OrganPredictions": results, "SlicePrediction": results}
    homes |= {"Images": inputs, "SupportsRead": classifier}
    for name in organ_infer.__all__:
        if name != "__version__":
            monkeypatch.delitem(vars(organ_infer), name, raising=False)
            assert getattr(organ_infer, name) is getattr(homes.get(name, errors), name)
            assert name in vars(organ_infer)  # the next look-up does not come here
    assert {*organ_infer.__all__} <= {*dir(organ_infer)} and dir(organ_infer) == sorted(
        dir(organ_infer)
    )
    with pytest.raises(AttributeError, match=r"^module 'organ_infer' has no attribute 'nope'$"):
        _ = organ_infer.nope

    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    for quick, slow, expected in [
        ("1.2", None, "1.2"),
        (None, "1.3", "1.3"),
        (None, version, "0+unknown"),
    ]:
        monkeypatch.delitem(vars(organ_infer), "__version__", raising=False)
        monkeypatch.setattr(installed, "installed_version", lambda name, quick=quick: quick)
        monkeypatch.setattr(
            importlib.metadata, "version", slow if callable(slow) else lambda name, slow=slow: slow
        )
        assert organ_infer.__version__ == expected
    monkeypatch.delitem(vars(organ_infer), "__version__", raising=False)

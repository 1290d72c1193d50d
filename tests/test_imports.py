"""What importing and asking loads: nothing heavy, and never torch."""

import json
import subprocess
import sys

import pytest
from conftest import child_environment

HEAVY = ["torch", "onnxruntime", "PIL", "numpy", "onnx", "pydicom"]


def loaded(code):
    """The heavy modules that are loaded once `code` has run."""
    code += f"\nimport json, sys\nsys.stderr.write(json.dumps(sorted(set({HEAVY!r}) & set(sys.modules))))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=child_environment()
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1])


def test_importing_the_package_is_light():
    assert loaded("import organ_infer; dir(organ_infer)") == []
    assert (
        loaded("import organ_infer; organ_infer.__version__, organ_infer.BundleError, organ_infer.Prediction")
        == []
    )
    assert loaded("import organ_infer.bundle, organ_infer.cli, organ_infer.arguments") == []


@pytest.mark.parametrize("option", ["--help", "--version", "--nope"])
def test_help_version_and_usage_errors_are_light(option):
    assert (
        loaded(
            f"from organ_infer.cli import main\ntry: sys_code = main([{option!r}])\nexcept SystemExit: pass"
        )
        == []
    )


def test_classifying_loads_neither_torch_nor_onnx_and_pillow_only_where_it_decodes(
    bundle, pictures, tmp_path
):
    from PIL import Image

    from organ_infer.reading import _read_plain

    Image.open(pictures / "s00.png").save(tmp_path / "s00.bmp")
    for path, decoder in (pictures / "s00.png", "" if _read_plain else "PIL"), (tmp_path / "s00.bmp", "PIL"):
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
before = dict(os.environ), list(warnings.filters), signal.getsignal(signal.SIGINT), os.getcwd()
from organ_infer import OrganClassifier
import numpy as np
OrganClassifier({str(bundle)!r}).predict(np.zeros((28, 28), np.uint8))
assert before[0] == dict(os.environ) and before[2:] == (signal.getsignal(signal.SIGINT), os.getcwd())
assert not logging.getLogger("organ_infer").handlers and not logging.getLogger().handlers"""
    loaded(code)

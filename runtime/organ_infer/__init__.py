"""Name the organ that a slice of an abdominal CT shows. ONNX networks, run by onnxruntime.

    from organ_infer import OrganClassifier

    with OrganClassifier() as classifier:
        for prediction in classifier.predict_paths(["slice.png"]):
            print(prediction)

Research software, not a medical device. Importing this package is fast, because each name is
loaded on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classifier import OrganClassifier, SupportsRead
    from .errors import BundleError, DeviceError, ImageError, InputError, OrganInferError
    from .images.discovery import find_images
    from .images.inputs import Images
    from .names import escape_path, unescape_path
    from .results import (
        ImageFailure,
        OrganPrediction,
        OrganPredictions,
        Prediction,
        SlicePrediction,
    )

    __version__: str

__all__ = [
    "BundleError",
    "DeviceError",
    "ImageError",
    "ImageFailure",
    "Images",
    "InputError",
    "OrganClassifier",
    "OrganInferError",
    "OrganPrediction",
    "OrganPredictions",
    "Prediction",
    "SlicePrediction",
    "SupportsRead",
    "__version__",
    "escape_path",
    "find_images",
    "unescape_path",
]

_MODULES = {
    "BundleError": "errors",
    "DeviceError": "errors",
    "ImageError": "errors",
    "InputError": "errors",
    "OrganInferError": "errors",
    "ImageFailure": "results",
    "OrganPrediction": "results",
    "OrganPredictions": "results",
    "Prediction": "results",
    "SlicePrediction": "results",
    "OrganClassifier": "classifier",
    "SupportsRead": "classifier",
    "Images": "images.inputs",
    "escape_path": "names",
    "find_images": "images.discovery",
    "unescape_path": "names",
}


def _load(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _MODULES:
        from importlib import import_module

        value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


if not TYPE_CHECKING:
    # Type checkers would take any misspelled name for one that is loaded.
    __getattr__ = _load


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from .engine.installed import installed_version

    if installed := installed_version("organ-infer"):
        return installed
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("organ-infer")
    except PackageNotFoundError:
        # imported from a source tree, not installed
        return "0+unknown"

"""Which organ does a slice of an abdominal CT show? Networks in ONNX, run by onnxruntime.

    from organ_infer import OrganClassifier

    with OrganClassifier() as classifier:
        for prediction in classifier.predict_paths(["slice.png"]):
            print(prediction)

Research software, not a medical device. Importing this package is light: its names load on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classifier import OrganClassifier
    from .errors import BundleError, DeviceError, ImageError, InputError, OrganInferError
    from .results import ImageFailure, Prediction

    __version__: str

__all__ = [
    "BundleError",
    "DeviceError",
    "ImageError",
    "ImageFailure",
    "InputError",
    "OrganClassifier",
    "OrganInferError",
    "Prediction",
    "__version__",
]

_HOMES = {
    "BundleError": "errors",
    "DeviceError": "errors",
    "ImageError": "errors",
    "InputError": "errors",
    "OrganInferError": "errors",
    "ImageFailure": "results",
    "Prediction": "results",
    "OrganClassifier": "classifier",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from .engine.installed import installed_version

    if found := installed_version("organ-infer"):
        return found
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("organ-infer")
    except PackageNotFoundError:  # the sources on the path, not installed
        return "0+unknown"

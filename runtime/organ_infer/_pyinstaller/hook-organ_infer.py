"""PyInstaller hook: the packaged bundle, modules that are imported by name, and versions that are looked up."""

from importlib.metadata import PackageNotFoundError, distribution

from PyInstaller.utils.hooks import (
    can_import_module,
    collect_data_files,
    collect_submodules,
    copy_metadata,
)

# Modules that need another program or package to be loaded. Whoever uses them imports them.
SEPARATE = ("organ_infer.ray", "organ_infer._pyinstaller")
# Distributions whose versions the runtime asks for, or whose entry points pydicom asks for.
DISTRIBUTIONS = (
    "organ-infer",
    "onnxruntime",
    "onnxruntime-gpu",
    "pylibjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
)
# Packages that are imported by name, if they are installed. NumPy is imported by the compiled modules too.
BY_NAME = ("numpy", "onnxruntime", "platformdirs", "pydicom", "libjpeg", "openjpeg", "rle")


def is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


datas = collect_data_files("organ_infer", includes=["default/*"])
for name in filter(is_installed, DISTRIBUTIONS):
    datas += copy_metadata(name)
hiddenimports = collect_submodules("organ_infer", filter=lambda name: name not in SEPARATE)
hiddenimports += filter(can_import_module, BY_NAME)

"""Builds the compiled extensions of organ_infer. Everything else is configured in pyproject.toml."""

import os
import sys
import sysconfig

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Free-threaded Python cannot load an abi3 module, so it gets a version-specific one.
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
LIMITED = not FREE_THREADED and sys.implementation.name == "cpython"

MACROS = [
    ("NPY_NO_DEPRECATED_API", "NPY_1_25_API_VERSION"),
    ("NPY_TARGET_VERSION", "NPY_1_25_API_VERSION"),
]
if LIMITED:
    MACROS.append(("Py_LIMITED_API", "0x030B0000"))

KERNELS = [
    "axis",
    "portable",
    "fractional_window",
    "normalize_avx2",
    "avx2",
    "avx512",
    "dispatch",
    "batch",
]


class BuildKernels(build_ext):
    """Compiles the kernels so that every level rounds alike: no fused contractions and no -march of this machine."""

    def build_extension(self, ext):
        if self.compiler.compiler_type == "msvc":
            ext.extra_compile_args += ["/O2", "/std:c11", "/fp:precise"]
        else:
            ext.extra_compile_args += [
                "-O3",
                "-g0",
                "-std=c11",
                "-ffp-contract=off",
                "-fno-trapping-math",
                "-fvisibility=hidden",
            ]
            if sys.platform != "win32":
                ext.extra_compile_args.append("-pthread")
                ext.extra_link_args.append("-pthread")
        super().build_extension(ext)


HEADERS = [
    "ext/kernels.pxd",
    "ext/normalize_generic.h",
    "ext/pack.h",
    "ext/resample_generic.h",
    "ext/sample_generic.h",
    "ext/threads.h",
    "ext/x86.h",
]

packing = Extension(
    "organ_infer._packing",
    ["ext/packing.pyx", *(f"ext/{kernel}.c" for kernel in KERNELS)],
    include_dirs=["ext", numpy.get_include()],
    depends=HEADERS,
    define_macros=MACROS,
    py_limited_api=LIMITED,
)

# Optional: it is only a faster reader of files that Pillow also reads, and it needs zlib's header and library, which may
# be missing. If it does not build, setuptools prints a warning and continues, and Pillow reads all files.
reading = Extension(
    "organ_infer._reading",
    ["ext/reading.pyx", "ext/files.c", "ext/png.c"],
    include_dirs=["ext", numpy.get_include()],
    depends=[*HEADERS, "ext/png.h", "ext/files.h"],
    libraries=["z"],
    define_macros=MACROS,
    py_limited_api=LIMITED,
)
# The reader opens files through POSIX calls.
EXTENSIONS = [packing, reading] if os.name == "posix" else [packing]
modules = cythonize(EXTENSIONS, include_path=["ext"])
for module in modules:
    # Set here because cythonize drops the attribute.
    module.optional = module.name == reading.name

setup(
    ext_modules=modules,
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
)

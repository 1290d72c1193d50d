"""The compiled part of organ_infer; everything else stands in pyproject.toml."""

import os
import sys
import sysconfig

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Free-threaded Python loads no abi3 module: it gets one of its own version.
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
LIMITED = not FREE_THREADED and sys.implementation.name == "cpython"

MACROS = [("NPY_NO_DEPRECATED_API", "NPY_1_25_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_1_25_API_VERSION")]
if LIMITED:
    MACROS.append(("Py_LIMITED_API", "0x030B0000"))

KERNELS = ["axis", "portable", "real", "normalise", "avx2", "avx512", "dispatch", "batch"]


class BuildKernels(build_ext):
    """Every level must round alike: no contraction into fused operations, no -march of this machine."""

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


HEADERS = ["ext/pack.h", "ext/plain.h", "ext/kernels.pxd", "ext/threads.h", "ext/wide.h", "ext/x86.h"]

packing = Extension(
    "organ_infer._packing",
    ["ext/packing.pyx", *(f"ext/{kernel}.c" for kernel in KERNELS)],
    include_dirs=["ext", numpy.get_include()],
    depends=HEADERS,
    define_macros=MACROS,
    py_limited_api=LIMITED,
)

# Optional: it only reads faster what Pillow reads alike, and needs zlib's header and library, which a machine with a
# compiler need not have. Where it does not build, setuptools warns and goes on, and everything goes through Pillow.
reading = Extension(
    "organ_infer._reading",
    ["ext/reading.pyx", "ext/files.c", "ext/png.c"],
    include_dirs=["ext", numpy.get_include()],
    depends=[*HEADERS, "ext/png.h", "ext/files.h"],
    libraries=["z"],
    define_macros=MACROS,
    py_limited_api=LIMITED,
)
EXTENSIONS = [packing, reading] if os.name == "posix" else [packing]  # files are opened as POSIX opens them
modules = cythonize(EXTENSIONS, include_path=["ext"])
for module in modules:
    module.optional = module.name == reading.name  # set here, for cythonize drops it

setup(
    ext_modules=modules,
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
)

"""Builds the one extension; everything else is in pyproject.toml."""

import os
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

# For `make coverage`: the extension says which of its lines it runs. The C stands beside the
# source then, where coverage looks for it.
TRACED = "IPROTO_TRACE" in os.environ

# What debuggers read takes a fifth of the time of the compiler, and is stripped from wheels.
DEBUG_INFO = [] if "CFLAGS" in os.environ else ["-g0"]

setup(
    ext_modules=cythonize(
        [
            Extension(
                "iproto._fastframe",
                ["src/_fastframe.pyx"],
                depends=glob("src/fastframe/*.pxi") + glob("src/fastframe/*.h"),
                include_dirs=["src/fastframe"],
                define_macros=[("CYTHON_TRACE_NOGIL", "1")] if TRACED else [],
                extra_compile_args=[
                    "-O0" if TRACED else "-O3",
                    "-std=gnu11",
                    "-fvisibility=hidden",
                    *DEBUG_INFO,
                ],
            )
        ],
        build_dir=None if TRACED else "build/cython",
        compiler_directives={"linetrace": TRACED},
    )
)

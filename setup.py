"""Builds the one extension; everything else is in pyproject.toml."""

from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    ext_modules=cythonize(
        [
            Extension(
                "iproto._fastframe",
                ["src/_fastframe.pyx"],
                depends=glob("src/fastframe/*.pxi") + glob("src/fastframe/*.h"),
                include_dirs=["src/fastframe"],
                extra_compile_args=["-O3", "-std=gnu11", "-fvisibility=hidden"],
            )
        ],
        build_dir="build/cython",
    )
)

"""Builds the one extension, and the package's description; everything else is in pyproject.toml."""

import os
import re
from glob import glob
from pathlib import Path


def description() -> str:
    """The README as package indexes show it: links into the source are the names of their files.

    An index has no files beside the page, and no address of the project is known to lead them to.
    """

    def name_of(link: "re.Match[str]") -> str:
        text, target = link[1], link[2].partition("#")[0]
        return f"`{target}`" if text.strip("`/") == target.strip("/") else f"{text} (`{target}`)"

    readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\[([^]]+)\]\((?![a-z]+:|#)([^)]+)\)", name_of, readme)


def main() -> None:
    from Cython.Build import cythonize
    from setuptools import Extension, setup

    # For `make coverage`: the extension says which of its lines it runs. The C stands beside the
    # source then, where coverage looks for it.
    traced = "IPROTO_TRACE" in os.environ
    # What debuggers read takes a fifth of the time of the compiler, and is stripped from wheels.
    debug_info = [] if "CFLAGS" in os.environ else ["-g0"]
    extension = Extension(
        "iproto._fastframe",
        ["src/_fastframe.pyx"],
        depends=glob("src/fastframe/*.pxi") + glob("src/fastframe/*.h"),
        include_dirs=["src/fastframe"],
        define_macros=[("CYTHON_TRACE_NOGIL", "1")] if traced else [],
        extra_compile_args=[
            "-O0" if traced else "-O3",
            "-std=gnu11",
            "-fvisibility=hidden",
            *debug_info,
        ],
    )
    setup(
        long_description=description(),
        long_description_content_type="text/markdown",
        ext_modules=cythonize(
            [extension],
            build_dir=None if traced else "build/cython",
            compiler_directives={"linetrace": traced},
        ),
    )


if __name__ == "__main__":  # so it is for the build, too
    main()

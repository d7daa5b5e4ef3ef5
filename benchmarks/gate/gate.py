"""The gate of the hot path: instructions a frame, against committed figures.

    python benchmarks/gate/gate.py             compare with figures.json
    python benchmarks/gate/gate.py --update    write what is counted now into it
    python benchmarks/gate/gate.py --against DIR    compare with another built checkout,
                                                    scenarios of the same name

Seconds tell little on a shared machine; the number of instructions is the same
on an idle machine and on a loaded one. callgrind counts them within the methods
of ServerFrames and ClientFrames, with what these call in libc and in Python;
neither the interpreter around them nor the kernel is counted. docs/benchmarks.md
says more.

Exits 0 if no figure is over its limit, 1 if one is, 2 if nothing could be counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import NoReturn, TypedDict

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FIGURES = HERE / "figures.json"

# Of the committed figure. The same build counts the same to the last digit; an
# edit elsewhere may change alignments, and with them the ways of libc's copies.
TOLERANCE = 0.02
# With another compiler, Cython, Python or libc than any figures were recorded
# with: code of the same source may differ so much. It catches what is done twice.
WIDE_TOLERANCE = 0.20

# Entered and left, these turn counting on and off. (callgrind 3.19 heeds only
# one such option, and its pattern takes in both classes.)
COUNTED = "__pyx_pw_*Frames_*"

# The C functions behind them.
HOT = re.compile(r"__pyx_(f|pf|pw)_\w*_fastframe_")

# Nothing around it may decide what is counted: same hashes, symbols bound before
# the first call; and see steady.c.
ENVIRONMENT = {
    "PATH": os.environ.get("PATH", os.defpath),
    "LD_BIND_NOW": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
}
TIME_LIMIT = 300.0  # seconds; some ten are usual

Figures = dict[str, float]  # scenario → instructions a frame


class Recorded(TypedDict):
    """One entry of figures.json: what was counted, built and run with what."""

    environment: dict[str, str]
    figures: Figures


def give_up(message: str) -> NoReturn:
    print(f"bench-gate: {message}", file=sys.stderr)
    sys.exit(2)


def extension_of(source: Path) -> Path:
    built = source / ("iproto/_fastframe" + str(sysconfig.get_config_var("EXT_SUFFIX")))
    if not built.is_file():
        give_up(f"{built} is not there: build the extension first (make test does)")
    return built


def environment_of(extension: Path) -> dict[str, str]:
    """What the figures depend on, besides our source."""
    binary = extension.read_bytes()
    compiler = re.search(rb"(GCC): \([^)]*\) ([\d.]+)|(clang) version ([\d.]+)", binary)
    cython = re.search(rb"_cython_(\d+_\d+_\w+)", binary)
    return {
        "machine": platform.machine(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "compiler": b" ".join(filter(None, compiler.groups())).decode() if compiler else "unknown",
        "cython": cython[1].decode().replace("_", ".") if cython else "unknown",
        "libc": " ".join(platform.libc_ver()),
    }


def build_steady(directory: Path) -> Path:
    library = directory / "steady.so"
    compiler = shlex.split(os.environ.get("CC") or "cc")
    command = [
        *compiler,
        "-O1",
        "-fno-builtin",
        "-shared",
        "-fPIC",
        "-o",
        str(library),
        str(HERE / "steady.c"),
    ]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        give_up(f"cannot compile steady.c, which makes the counts repeatable: {error}")
    return library


def count(source: Path, valgrind: str) -> Figures:
    """Runs all scenarios of one checkout, given its source directory.

    Each checkout has its own script: the extension's methods change with it.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        command = [
            valgrind,
            "--tool=callgrind",
            "--collect-atstart=no",
            f"--toggle-collect={COUNTED}",
            f"--callgrind-out-file={directory}/%p",
            sys.executable,
            str(source.parent / "benchmarks" / "gate" / "script.py"),
            str(source),
        ]
        environment = ENVIRONMENT | {"LD_PRELOAD": str(build_steady(directory))}
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            check=False,
            text=True,
            timeout=TIME_LIMIT,
        )
        if done.returncode:
            give_up(f"the scenarios failed under valgrind:\n{done.stderr}")
        figures = {}
        for line in done.stdout.splitlines():
            ran = json.loads(line)
            few, many = (instructions(directory / str(child)) for child in ran["children"])
            if few == many:
                give_up(
                    f"nothing was counted in {ran['scenario']!r}: no method matches {COUNTED}; "
                    "was the extension stripped of its symbols?"
                )
            figures[ran["scenario"]] = (many - few) / ran["frames"]
        return figures


def instructions(profile: Path) -> int:
    found = re.search(r"^(?:summary|totals): (\d+)", profile.read_text(), re.MULTILINE)
    if found is None:
        give_up(f"callgrind's {profile} tells no sum")
    return int(found[1])


def slow_copies(extension: Path) -> list[str]:
    """Functions of the hot path with a ``rep movs`` in them.

    To gcc that is a short memcpy of a size that it knows some bound of. It is
    few instructions, and takes long to begin.
    """
    if platform.machine() not in ("x86_64", "i686"):
        return []
    objdump = shutil.which("objdump")
    if objdump is None:
        give_up("objdump is not installed, which looks for slow copies")
    listing = subprocess.run(
        [objdump, "--disassemble", "--no-show-raw-insn", str(extension)],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    found = set()
    function = ""
    for line in listing.splitlines():
        if line.endswith(">:"):
            function = line.partition("<")[2][:-2]
        elif "rep movs" in line and HOT.match(function):
            found.add(function)
    return sorted(found)


# Comparing.


def load() -> list[Recorded]:
    recorded: list[Recorded] = json.loads(FIGURES.read_text()) if FIGURES.exists() else []
    return recorded


def store(environment: dict[str, str], figures: Figures) -> None:
    """Replaces the figures of this environment, and keeps those of others."""
    entry: Recorded = {
        "environment": environment,
        "figures": {name: round(figure, 1) for name, figure in figures.items()},
    }
    others = [old for old in load() if old["environment"] != environment]
    FIGURES.write_text(json.dumps([*others, entry], indent=2) + "\n")


def nearest(environment: dict[str, str]) -> Recorded | None:
    """The entry that shares most with this environment; None: there are none."""
    return max(
        load(),
        key=lambda entry: len(environment.items() & entry["environment"].items()),
        default=None,
    )


def differences(now: dict[str, str], then: dict[str, str]) -> str:
    return ", ".join(
        f"{what} {now.get(what)} (recorded: {then.get(what)})"
        for what in now
        if now.get(what) != then.get(what)
    )


def compare(now: Figures, then: Figures, tolerance: float, name: str) -> list[str]:
    """Prints the table; returns a line for each figure over its limit."""
    wide = max(map(len, now))
    print(f"{'instructions a frame':{wide}} {'now':>9} {name:>9} {'ratio':>7}")
    over = []
    for scenario, figure in now.items():
        if scenario not in then:
            print(f"{scenario:{wide}} {figure:9.1f} {'-':>9} {'-':>7}")
            over.append(f"{scenario!r} has no {name} figure")
            continue
        ratio = figure / then[scenario]
        limit = then[scenario] * (1 + tolerance)
        mark = "  OVER" if figure > limit else "  under" if ratio < 1 - tolerance else ""
        print(f"{scenario:{wide}} {figure:9.1f} {then[scenario]:9.1f} {ratio:7.3f}{mark}")
        if figure > limit:
            over.append(
                f"{scenario!r} takes {figure:.1f} instructions a frame, over the limit of "
                f"{limit:.1f} ({name} {then[scenario]:.1f} + {tolerance:.0%})"
            )
    return over


def check(now: Figures, environment: dict[str, str]) -> int:
    recorded = nearest(environment)
    if recorded is None:
        give_up(f"{FIGURES.name} holds no figures yet: make bench-gate UPDATE=1")
    differs = differences(environment, recorded["environment"])
    tolerance = WIDE_TOLERANCE if differs else TOLERANCE
    if differs:
        print(f"bench-gate: no figures were recorded with {differs}.")
        print(f"bench-gate: the tolerance is {tolerance:.0%}, not {TOLERANCE:.0%}, therefore.")
    over = compare(now, recorded["figures"], tolerance, "committed")
    for line in over:
        print(f"bench-gate: FAILED: {line}")
    if over:
        print("bench-gate: if that is meant: make bench-gate UPDATE=1, and commit figures.json")
        return 1
    figures = recorded["figures"]
    if any(now[name] < figures[name] * (1 - tolerance) for name in now):
        print("bench-gate: better than committed; keep it: make bench-gate UPDATE=1")
    print(f"bench-gate: passed, within {tolerance:.0%} of the committed figures")
    return 0


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--update", action="store_true", help="write figures.json")
    parser.add_argument("--require", action="store_true", help="fail if valgrind is missing")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="DIR",
        help="count another built checkout too, and compare with it, not with figures.json",
    )
    arguments = parser.parse_args()
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        if arguments.require or arguments.update:
            give_up("valgrind is not installed, and was asked for")
        print("bench-gate: SKIPPED, nothing was checked: valgrind is not installed")
        return 0
    source = ROOT / "src"
    extension = extension_of(source)
    environment = environment_of(extension)
    print("bench-gate:", ", ".join(f"{what} {value}" for what, value in environment.items()))
    if arguments.against is not None:
        other = (arguments.against / "src").resolve()
        extension_of(other)
        compare(count(source, valgrind), count(other, valgrind), TOLERANCE, "other")
        return 0
    now = count(source, valgrind)
    slow = slow_copies(extension)
    for function in slow:
        print(f"bench-gate: FAILED: {function} copies by 'rep movs', which is slow to begin;")
        print("bench-gate: hide the size's bound from the compiler there: docs/benchmarks.md")
    if slow:
        return 1
    if arguments.update:
        store(environment, now)
        print(f"bench-gate: {FIGURES.relative_to(ROOT)} is written")
    return check(now, environment)


if __name__ == "__main__":
    sys.exit(main())

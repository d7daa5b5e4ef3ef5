"""Programs in Go, of ``tests/interop/go``, built where there is a Go."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = ROOT / "tests" / "interop" / "go"

# Seconds: on a busy machine, with nothing of Go's own packages compiled before.
BUILD_TIME = 300.0


def build_programs(factory: pytest.TempPathFactory) -> Path:
    """The folder with the programs, which all processes of a test run share."""
    if shutil.which("go") is None:
        pytest.skip("clients of Go: go is not installed")
    folder = factory.getbasetemp()
    if folder.name.startswith("popen-gw"):  # a process of several has a folder in the run's
        folder = folder.parent
    built = folder / "go"
    with (folder / "go.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (built / "client").exists():
            subprocess.run(
                ["go", "build", "-o", f"{built}/", "./cmd/..."],
                cwd=SOURCE,
                check=True,
                timeout=BUILD_TIME,
                env={**os.environ, "GOPROXY": "off"},
            )
    return built

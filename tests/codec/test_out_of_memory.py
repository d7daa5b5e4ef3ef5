"""Each allocation of a codec fails in turn: what was received is never taken for something else."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SHIM = ROOT / "tests" / "helpers" / "failing_malloc.c"
COMPILER = shutil.which("cc")


@pytest.fixture(scope="module")
def failing_malloc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes allocations fail."""
    if platform.system() != "Linux":
        pytest.skip("allocations are made to fail with LD_PRELOAD, which is Linux's")
    if COMPILER is None:
        pytest.skip("there is no C compiler for the library that makes allocations fail")
    if os.environ.get("LD_PRELOAD"):
        pytest.skip("LD_PRELOAD is taken, by a sanitizer most likely")
    library = tmp_path_factory.mktemp("shim") / "failing_malloc.so"
    command = [COMPILER, "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM), "-ldl"]
    subprocess.run(command, check=True)
    return library


@pytest.mark.parametrize("count", [1, 1_000_000], ids=["one", "all from there on"])
@pytest.mark.parametrize("side", ["server", "client"])
def test_nothing_is_executed_or_heard_twice_or_made_up_when_memory_ends(
    side: str, count: int, failing_malloc: Path
) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.helpers.failing_allocations", side, str(count)],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(failing_malloc), "PYTHONMALLOC": "malloc"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    failed, broken = (int(word) for word in run.stdout.split() if word.isdigit())
    assert failed > 20
    assert 0 < broken <= failed

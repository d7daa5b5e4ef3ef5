"""`iproto`'s subcommands, run as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.helpers.harness import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path


def run(
    *arguments: str | bytes,
    url: str | None = None,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs `iproto` to its end, in this folder."""
    command = [sys.executable, "-m", "iproto", *arguments]
    if url is not None:
        command += ["--url", url]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, **(env or {})},
        cwd=cwd,
    )


def output(*arguments: str | bytes, url: str) -> str:
    ended = run(*arguments, url=url)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def failure(
    *arguments: str, url: str | None = None, env: dict[str, str] | None = None
) -> tuple[int, str]:
    ended = run(*arguments, url=url, env=env)
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr

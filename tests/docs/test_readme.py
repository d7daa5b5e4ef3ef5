"""The README, run from top to bottom as a reader would."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.harness import PATIENCE, ServerProcess, serve_process
from tests.helpers.markdown import SHOWN_ADDRESS, blocks, run_console
from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.markdown import Block

pytestmark = pytest.mark.checkout

README = ROOT / "README.md"


class Reader:
    """Somebody who does what the README says, in a directory of their own."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self.directory = directory
        self.server: ServerProcess | None = None
        self.done: set[str] = set()
        self._stack = stack

    def read(self, block: Block) -> None:
        getattr(self, block.language)(block)
        self.done.add(block.language)

    def sh(self, block: Block) -> None:
        for line in block.text.splitlines():
            command = shlex.split(line, comments=True)
            if command[0] == "make":
                assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
            elif command[:2] == ["iproto", "serve"]:
                self._serve(command[2:])
            else:
                assert command == ["pip", "install", "iproto"]

    def console(self, block: Block) -> None:
        assert self.server is not None
        metrics = self.server.metrics.removeprefix("http://")
        run_console(block.text, self.server.addresses[0], metrics, {}, self.directory)

    def python(self, block: Block) -> None:
        name = re.match(r"# (\w+\.py)\n", block.text)
        if name is not None:
            (self.directory / name[1]).write_text(block.text)
            return
        assert self.server is not None
        program = block.text.replace(SHOWN_ADDRESS, self.server.addresses[0])
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "'hello'" in done.stdout

    def stop(self) -> None:
        """Ctrl-C."""
        if self.server is not None:
            self.server.process.send_signal(signal.SIGINT)
            assert self.server.end()[0] == 0
            self.server = None

    def _serve(self, arguments: list[str]) -> None:
        self.stop()
        environment = {"PYTHONDONTWRITEBYTECODE": "1"}
        self.server = self._stack.enter_context(
            serve_process(*arguments, env=environment, cwd=self.directory)
        )


def test_the_readme_works_from_top_to_bottom(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        reader = Reader(tmp_path, stack)
        for block in blocks(README):
            reader.read(block)
        reader.stop()
        assert reader.done == {"sh", "console", "python"}


def test_the_documented_ports_are_the_defaults() -> None:
    """The tests move the ports; so what is shown has to be held by itself."""
    help_text = subprocess.run(
        [sys.executable, "-m", "iproto", "serve", "--help"],
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    ).stdout
    assert f"default: {SHOWN_ADDRESS};" in help_text
    assert "default: 127.0.0.1:8088;" in help_text
    assert "127.0.0.1:8080, metrics on 127.0.0.1:8088" in README.read_text()

"""`iproto serve --reload`: a changed file is served, a broken one is waited out."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import msgpack

from tests.helpers.harness import PATIENCE, children, serve_process

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """
import iproto

app = iproto.App()

@app.function(0x30001)
def version() -> int:
    return {0}
"""


def test_a_change_is_served_and_an_error_is_waited_out(tmp_path: Path) -> None:
    module = tmp_path / "mine.py"
    module.write_text(SOURCE.format(1))
    with serve_process("mine:app", "--reload", cwd=tmp_path) as running:
        assert ask(running.addresses[0]) == 1
        module.write_text(SOURCE.format("("))
        running.wait_for("mine.py changed; starting anew")
        running.wait_for("SyntaxError")
        (tmp_path / "notes.txt").write_text("of no interest")
        module.write_text(SOURCE.format(3))
        running.wait_serving()
        assert ask(running.addresses[0]) == 3
        assert len(children(running.process.pid)) == 1
        running.process.send_signal(signal.SIGINT)
        code, log = running.end()
        assert code == 0
        assert "SIGTERM: draining" in log
        assert "Traceback" not in log


def ask(address: str) -> object:
    from iproto.address import parse_address
    from tests.helpers.harness import Peer

    with Peer(parse_address(address)) as peer:
        return peer.ask(0x30001, msgpack.packb([])).value


def test_without_watchfiles_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "watchfiles.py").write_text("raise ImportError\n")
    ended = subprocess.run(
        [sys.executable, "-m", "iproto", "serve", "--reload"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "pip install 'iproto[reload]'" in ended.stderr
    assert ended.stderr.count("\n") == 1

"""docs/security.md: its settings are read, and its example holds."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from iproto import FuncID, ReturnCode
from iproto.server import settings
from iproto.server.rights import parse_rights
from tests.helpers.harness import frame, serve_process
from tests.helpers.markdown import DOCS, blocks, column

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.checkout


def shown() -> list[str]:
    return [b.text for b in blocks(DOCS / "security.md") if b.language == "toml"]


def test_each_settings_file_shown_is_read(tmp_path: Path) -> None:
    for number, text in enumerate(shown()):
        file = tmp_path / f"{number}.toml"
        file.write_text(text)
        settings.read_settings({"config": str(file)}, {})
    assert number >= 2


def test_each_right_shown_is_one() -> None:
    for cell in column("security.md", "Rights", "right"):
        for text in re.findall(r"[\w-]+", cell.replace("`", "")):
            parse_rights("right", text)


def test_the_server_of_the_example_keeps_its_limits(tmp_path: Path) -> None:
    example = re.sub(r":80\d\d", ":0", shown()[-1]).replace("0.0.0.0", "127.0.0.1")
    file = tmp_path / "settings.toml"
    file.write_text(example)
    with (
        serve_process("--config", str(file), "--metrics-bind", "127.0.0.1:0", bare=True) as running,
        running.peer(0) as peer,
        running.peer(1) as admin,
    ):
        assert peer.ask(FuncID.ADM_STORAGE_SWITCH_READONLY).code == ReturnCode.NOT_PERMITTED
        assert admin.ask(FuncID.ADM_STORAGE_SWITCH_READWRITE).code == 0
        peer.send(frame(FuncID.PING) * 150)
        codes = [reply.code for reply in peer.replies(150)]
        # The burst, less the two above, and what a slow machine's time brings.
        assert 98 <= codes.count(None) <= 150
        assert set(codes) <= {None, ReturnCode.RATE_LIMITED}

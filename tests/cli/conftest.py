"""A server with two user functions, for the subcommands to call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import iproto
from tests.helpers.harness import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.harness import Served


@pytest.fixture
def served() -> Iterator[Served]:
    app = iproto.App()

    @app.function(0x30001)
    async def repeat(text: str, times: int = 2) -> str:
        return text * times

    @app.function(0x30002)
    def raw() -> list[object]:
        return [b"\xff", None, {"k": 1.5}]

    with serving(app) as served:
        yield served

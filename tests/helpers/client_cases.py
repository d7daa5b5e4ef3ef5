"""What the tests of both clients share: URLs, a port that refuses, a user function's number."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from iproto.errors import (
    ConnectionLostError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iproto.client.async_client import AsyncClient
    from tests.helpers.bad_server import BadServer
    from tests.helpers.frame_server import FrameServer

USER = 0x00030001

dialects = pytest.mark.parametrize("mailru", [False, True], ids=["vk", "mailru"])


def url_of(server: FrameServer | BadServer, *, mailru: bool) -> str:
    return f"{server.url}?dialect={'mailru' if mailru else 'vk'}"


async def read_anew(client: AsyncClient) -> str:
    """A read after the server closed: on the new connection, whether the end was seen or not."""
    while True:
        with contextlib.suppress(ConnectionLostError):
            return await client.read(1)


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """A port that is taken, and refuses connections."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]

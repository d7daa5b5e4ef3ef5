"""Apps of one function, for tests of user functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack

import iproto
from tests.helpers.harness import serving

if TYPE_CHECKING:
    from collections.abc import Callable

OWN = 0x00030001


def app_of(function: Callable[..., Any], **options: Any) -> iproto.App:
    app = iproto.App()
    app.function(OWN, **options)(function)
    return app


def pack(*objects: Any) -> bytes:
    return b"".join(msgpack.packb(item, datetime=True) for item in objects)


def answer(
    function: Callable[..., Any], *bodies: bytes, app: dict[str, Any] | None = None, **settings: Any
) -> list[tuple[int | None, Any]]:
    """Code and value of the replies to calls of a function with these bodies."""
    with serving(app_of(function, **(app or {})), **settings) as served, served.peer() as peer:
        replies = [peer.ask(OWN, body) for body in bodies]
        assert peer.read(0) == ""
    return [
        (reply.code, msgpack.unpackb(reply.body, strict_map_key=False, timestamp=3))
        for reply in replies
    ]

"""``ServerFrames`` of a test, and what it answers to chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iproto import _fastframe as ff
from tests.helpers.callees import callees

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_BODY = 600

USERS = {0x00030001: ff.FIRST_USER_ROW, 0xDEADBEEF: ff.FIRST_USER_ROW + 3}


def server(
    *,
    mailru: bool = False,
    storage: ff.Storage | None = None,
    max_body: int = MAX_BODY,
    max_calls: int = 1 << 20,
    functions: dict[int, int] | None = None,
    **options: Any,
) -> ff.ServerFrames:
    """The server's side of a connection."""
    return ff.ServerFrames(
        ff.Storage() if storage is None else storage,
        mailru=mailru,
        max_body=max_body,
        max_calls=max_calls,
        functions=callees({} if functions is None else functions),
        **options,
    )


def feed_all(frames: ff.ServerFrames, chunks: Sequence[bytes]) -> bytes:
    """All that the server answers to these chunks, resumed as often as it takes."""
    out = []
    for chunk in chunks:
        out.append(frames.feed(chunk) or b"")
        assert not frames.status & ff.IS_FULL
        while frames.status & ff.HAS_MORE:
            out.append(frames.feed(b"") or b"")
    return b"".join(out) + last_bytes(frames)


def last_bytes(frames: ff.ServerFrames) -> bytes:
    """What the server sends when everything is answered: the echo of a SHUTDOWN."""
    frames.finish()
    return frames.take()


def split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """The data in pieces, cut at these places (modulo its length)."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]

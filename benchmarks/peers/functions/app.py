"""The function as an app of ours, for `iproto serve`: as a plain function, and as a coroutine."""

from __future__ import annotations

import iproto

FUNC_ID = 0x00030001

plain = iproto.App()
coroutine = iproto.App()


@plain.function(FUNC_ID)
def echo(text: str) -> str:
    return text


@coroutine.function(FUNC_ID)
async def echo_later(text: str) -> str:
    return text

"""The function of a user's own that is compared: function_app and grpc_function serve it."""

from __future__ import annotations

FUNC_ID = 0x00030001
NAME = "x" * 32
GREETING = "Hello, " + NAME


async def greet(name: str) -> str:
    return "Hello, " + name

"""Calls of user functions as a client makes them, but without a server: for tests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgpack

from iproto._fastframe import FIRST_USER_ROW, MAX_DEPTH_CEILING, UserFunction
from iproto.errors import Error, FunctionTimeoutError, InternalError
from iproto.results import pack
from iproto.wire import ReturnCode

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from iproto.function import Function


async def call_without_server(
    functions: Mapping[int, Function], wanted: int | str, arguments: Sequence[Any]
) -> Any:
    """Calls a function; see ``App.call``.

    Args:
        functions: those to choose from.
        wanted: the func_id or the name of one.
        arguments: of the call.
    """
    function = _find(functions, wanted)
    try:
        values = _reader(function).arguments(pack(list(arguments)))
        result = function.call(*values)
        if function.is_async:
            result = await _within(result, function)
        return msgpack.unpackb(function.pack(result), timestamp=3, strict_map_key=False)
    except Exception as error:
        reply = function.as_error(error)
        if reply is error and isinstance(error, Error):
            raise
        if isinstance(reply, Error):
            raise reply from error
        raise InternalError(f"{function.name} failed") from error


def _find(functions: Mapping[int, Function], wanted: int | str) -> Function:
    for function in functions.values():
        if wanted in (function.func_id, function.name):
            return function
    names = ", ".join(f"{one.name} ({one.func_id:#010x})" for one in functions.values())
    raise KeyError(f"no function {wanted!r}; there are: {names or 'none'}")


def _reader(function: Function) -> UserFunction:
    """What reads a function's body, as a server does, but without limits of its own."""
    read = function.arguments
    return UserFunction(
        function.func_id,
        FIRST_USER_ROW,
        function.name,
        function.call,
        read.decoders,
        read.least,
        read.refuse,
        function.pack,
        lambda error: (ReturnCode.INTERNAL, b""),
        is_async=function.is_async,
        timeout=None,
        counted=read.counted,
        max_objects=2**32 - 1,
        max_depth=MAX_DEPTH_CEILING,
    )


async def _within(call: Coroutine[Any, Any, Any], function: Function) -> Any:
    """The result of an async call, within the function's time-out."""
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait({task}, timeout=function.timeout)
    finally:
        late = task.cancel()
    if late:
        raise FunctionTimeoutError(f"{function.name} ran for its limit of {function.timeout} s")
    return task.result()

"""One surface for the tests of both clients: the blocking one is awaited, too, in threads."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import pytest

from iproto.client.async_client import AsyncClient
from iproto.client.blocking_client import Client
from tests.helpers.harness import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from iproto.client.route import Route

# Calls that a test may have in flight at once on either client.
MANY = 16

# Bytes of a request to read a slot below 128.
READ_BYTES = 13


class Threaded:
    """A blocking client whose every call runs in a thread."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.pool = ThreadPoolExecutor(MANY + 1)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, "close" if name == "aclose" else name)

        async def call(*args: Any, **options: Any) -> Any:
            run = functools.partial(method, *args, **options)
            return await asyncio.get_running_loop().run_in_executor(self.pool, run)

        return call


@contextlib.asynccontextmanager
async def calling(kind: str, url: str, **options: Any) -> AsyncIterator[AsyncClient]:
    """Either client, as if it was the asyncio one; its time-out no busy machine comes to."""
    if "timeout=" not in url:
        options.setdefault("timeout", PATIENCE)
    if kind == "async":
        async with AsyncClient(url, **options) as client:
            yield client
        return
    with Client(url, **options) as blocking:
        threaded = Threaded(blocking)
        try:
            yield cast("AsyncClient", threaded)
        finally:
            blocking.close()
            threaded.pool.shutdown()


def route_of(client: AsyncClient) -> Route:
    """What a client of ``calling`` knows of its server."""
    if isinstance(client, Threaded):
        return client.client._pool.route
    return client._connection.route


def both(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test body with each client; its first argument says which."""

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        asyncio.run(test(**arguments))

    each: Callable[..., None] = pytest.mark.parametrize("kind", ["async", "blocking"])(run)
    return each


def on_one_connection(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test body with the asyncio client, whose calls share one connection."""

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        asyncio.run(test(**arguments))

    each: Callable[..., None] = pytest.mark.parametrize("kind", ["async"])(run)
    return each


def at_once(kind: str) -> int:
    """How many calls a test has in flight on one connection: the blocking client's takes one."""
    return 3 if kind == "async" else 1


async def until(reached: Callable[[], bool]) -> None:
    """Lets the loop turn until something that other threads do is done."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline, "what was waited for did not come"
        await asyncio.sleep(0)


@contextlib.contextmanager
def swallowing() -> Iterator[tuple[str, int]]:
    """An address that answers nothing: not accepted, the backlog full, the system drops it all."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()

"""Threads for user functions that block."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from typing import TYPE_CHECKING, Any

from iproto.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import ThreadPoolExecutor

MAX_THREADS = 1024


class Threads:
    """A pool of threads, which start as calls need them.

    Calls that find none free wait in their order; the server's ``max_calls`` bounds
    how many.

    Args:
        count: of threads, 1..1024.

    Raises:
        ConfigError: count is outside of that.
    """

    def __init__(self, count: int) -> None:
        if not isinstance(count, int) or not 1 <= count <= MAX_THREADS:
            raise ConfigError(f"threads is {count!r}; it must be an int, 1..{MAX_THREADS}")
        self._count = count
        self._pool: ThreadPoolExecutor | None = None

    def wrap(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        """A function as an async one, which runs it in a thread, in the call's context.

        Raises:
            ConfigError: it is async already.
        """
        if inspect.iscoroutinefunction(call):
            raise ConfigError(
                f"function {name!r} is an 'async def', which does not run in a thread; "
                "write 'def', or leave out thread=True"
            )

        @functools.wraps(call)
        async def in_thread(*arguments: Any) -> Any:
            context = contextvars.copy_context()
            return await asyncio.get_running_loop().run_in_executor(
                self._running(), lambda: context.run(_run, call, arguments)
            )

        return in_thread

    def _running(self) -> ThreadPoolExecutor:
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor  # few apps have such functions

            self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="iproto-function")
        return self._pool


def _run(call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        return call(*arguments)
    except StopIteration as error:  # a future cannot hold it, and would wait for ever
        raise RuntimeError("the function raised StopIteration") from error

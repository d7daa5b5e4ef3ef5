"""An app: a table of user functions, with what lives as long as they are served.

What is known of one function is function.py's, how arguments are read arguments.py's,
how results are written results.py's, and how calls run server/calls.py's. Nothing in
here knows of sockets.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias, TypeVar

from iproto.direct import call_without_server
from iproto.errors import ConfigError, Error
from iproto.function import ErrorReply, Function
from iproto.threads import Threads
from iproto.wire import RESERVED_FUNC_IDS, FuncID

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])

Lifespan: TypeAlias = "Callable[[App], AbstractAsyncContextManager[Any]]"
"""Takes the app, and returns an async context manager; see :class:`App`."""

# What metrics call the built-in functions, and those without a row of their own.
_RESERVED_NAMES = {func_id.name for func_id in FuncID} | {
    "DESCRIBE_FUNCTIONS",
    "unknown",
    "other",
}

_NO_STATE = object()


class App:
    """A table of user functions.

    ::

        app = iproto.App()

        @app.function(0x00030001)
        async def repeat(text: str, times: int = 2) -> str:
            return text * times

    Args:
        lifespan: makes an async context manager, given the app. Each process that
            serves the app enters it before it accepts connections, and leaves it
            after the last call; what it yields is :attr:`state` in between.
        threads: how many calls of functions with ``thread=True`` run at once in a
            process, 1..1024.

    Raises:
        ConfigError: threads is outside of that.
    """

    def __init__(self, *, lifespan: Lifespan | None = None, threads: int = 8) -> None:
        self._functions: dict[int, Function] = {}
        self._errors: dict[type[BaseException], ErrorReply] = {}
        self._included: list[App] = []
        self._lifespan = lifespan
        self._state: Any = _NO_STATE
        self._threads = Threads(threads)

    @property
    def functions(self) -> dict[int, Function]:
        """The registered functions by func_id (a copy)."""
        return dict(self._functions)

    @property
    def state(self) -> Any:
        """What the lifespan has yielded.

        Raises:
            RuntimeError: the app has no lifespan, or is not served now.
        """
        if self._state is _NO_STATE:
            why = "has no lifespan" if self._lifespan is None else "is not being served"
            raise RuntimeError(f"an app's state is what its lifespan yields, and this app {why}")
        return self._state

    def function(
        self,
        func_id: int,
        *,
        name: str | None = None,
        timeout: float | None = None,
        thread: bool = False,
        concurrency: int | None = None,
        queue_timeout: float | None = None,
        ignore_unknown_keys: bool = False,
    ) -> Callable[[AnyFunction], AnyFunction]:
        """Registers the decorated function, which stays as it is.

        An ``async def`` runs as a task beside others; a plain ``def`` runs on
        the event loop and must not block, unless it is registered with
        ``thread=True``.

        Args:
            func_id: 0..2**32-1, and none of the built-in functions.
            name: what metrics and errors call it; the function's own name if None.
            timeout: seconds that a call of an ``async def`` may take, then it is
                cancelled and answered TIMEOUT; None for what the server's settings
                say (``call_timeout``). A thread is not
                interrupted: it runs on, and its result is dropped.
            thread: whether calls of a plain ``def`` run in the app's threads, where
                they may block.
            concurrency: how many calls run at once in a process, over all connections;
                further ones wait in their order. None for as many as come.
            queue_timeout: seconds that a call waits for that, then it is answered
                OVERLOADED and never run; None for no limit.
            ignore_unknown_keys: whether a map for a dataclass, TypedDict or Struct
                may have keys that are none of its fields; such a call is refused
                otherwise.

        Raises:
            ConfigError: func_id or name is taken or out of range, a limit is none, or
                the signature is not one that a body can be checked against.
        """

        def register(call: AnyFunction) -> AnyFunction:
            label = name if name is not None else getattr(call, "__name__", repr(call))
            self._check_func_id(func_id, label)
            self._add(
                Function(
                    func_id,
                    self._threads.wrap(call, label) if thread else call,
                    label,
                    timeout,
                    concurrency=concurrency,
                    queue_timeout=queue_timeout,
                    ignore_unknown_keys=ignore_unknown_keys,
                    errors=(self._errors,),
                )
            )
            return call

        return register

    def error(self, exception: type[BaseException], *, code: int, text: str | None = None) -> None:
        """Answers an exception of the functions, and of its subclasses, with a return code.

        Of an included app's exceptions its own table goes first.

        Args:
            exception: the class; not one of iproto's, which have codes already.
            code: the return code, 1..2**32-1. By convention its low byte is 1 where
                trying again may help, and 2 where it does not.
            text: the reply's text; what ``str(exception)`` gives if None, so that
                whatever it says reaches the client.

        Raises:
            ConfigError: the class is none, has a code already, or the code is none.
        """
        if not (isinstance(exception, type) and issubclass(exception, BaseException)):
            raise ConfigError(f"app.error() takes an exception class, not {exception!r}")
        if issubclass(exception, Error):
            raise ConfigError(f"{exception.__name__} is an iproto.Error, which has its own code")
        if exception in self._errors:
            raise ConfigError(
                f"{exception.__name__} has the code {self._errors[exception].code:#x} already"
            )
        if not isinstance(code, int) or not 0 < code < 2**32:
            raise ConfigError(
                f"code {code!r} of {exception.__name__} must be an int, 1..0xffffffff"
            )
        self._errors[exception] = ErrorReply(code, text)

    def include(self, other: App, *, base: int = 0, prefix: str = "") -> None:
        """Adds the functions that another app has now; its lifespan runs within this one's.

        Args:
            other: the app; it keeps its functions.
            base: what is added to their numbers.
            prefix: what is put before their names.

        Raises:
            ConfigError: a number or a name is taken or out of range; nothing is added.
        """
        added = [
            function.included(base, prefix, self._errors) for function in other._functions.values()
        ]
        before = dict(self._functions)
        try:
            for function in added:
                self._add(function)
        except ConfigError:
            self._functions = before
            raise
        self._included.append(other)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keeps the lifespans open, this app's and those of included ones, for the block.

        The server does so by itself; tests that use :meth:`call` may want it.

        Raises:
            ConfigError: the app is being served already, and has a lifespan.
        """
        async with contextlib.AsyncExitStack() as stack:
            for app in self._whole():
                await stack.enter_async_context(app._alone())
            yield

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        if self._lifespan is None:
            yield
            return
        if self._state is not _NO_STATE:
            raise ConfigError(
                "an app with a lifespan is served by one server of a process at a time; "
                "make an app for each"
            )
        async with self._lifespan(self) as state:
            self._state = state
            try:
                yield
            finally:
                self._state = _NO_STATE

    def _whole(self) -> list[App]:
        """This app and those included in it, at any depth, each once."""
        found: list[App] = [self]
        for app in self._included:
            found += [inner for inner in app._whole() if inner not in found]
        return found

    async def call(self, function: int | str, *arguments: Any) -> Any:
        """Calls a function as a client would, without a server: for tests.

        Arguments and result go through MsgPack, as they do on the wire. The limits
        of a server's settings do not apply.

        Args:
            function: its func_id, or its name.
            arguments: what a client's ``call`` takes.

        Raises:
            Error: what a client would get. Of one with INTERNAL, the exception of
                the function is the ``__cause__``.
            KeyError: no such function.
        """
        return await call_without_server(self._functions, function, arguments)

    def _add(self, function: Function) -> None:
        self._check_func_id(function.func_id, function.name)
        self._check_name(function.name)
        self._functions[function.func_id] = function

    def _check_func_id(self, func_id: int, label: str) -> None:
        if not isinstance(func_id, int) or not 0 <= func_id < 2**32:
            raise ConfigError(f"func_id {func_id!r} of {label!r} must be an int, 0..0xffffffff")
        if func_id in tuple(FuncID):
            raise ConfigError(
                f"func_id {func_id:#010x} of {label!r} is the built-in {FuncID(func_id).name}, "
                "which runs without Python and cannot be replaced; choose another, like 0x00030001"
            )
        if func_id in RESERVED_FUNC_IDS:
            raise ConfigError(
                f"func_id {func_id:#010x} of {label!r} is one of {RESERVED_FUNC_IDS[0]:#010x}.."
                f"{RESERVED_FUNC_IDS[-1]:#010x}, which are reserved for built-in functions; "
                "choose another, like 0x00030001"
            )
        taken = self._functions.get(func_id)
        if taken is not None:
            raise ConfigError(f"func_id {func_id:#010x} of {label!r} is taken by {taken.name!r}")

    def _check_name(self, label: str) -> None:
        taken = {function.name for function in self._functions.values()}
        if label in taken or label in _RESERVED_NAMES:
            raise ConfigError(
                f"the name {label!r} is taken, and metrics could not tell the two apart; "
                "give another: @app.function(func_id, name=...)"
            )

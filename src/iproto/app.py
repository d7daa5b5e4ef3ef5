"""Functions of users' own: registration, argument checks, running them.

A frame's body becomes arguments that fit the function's annotations, the
result becomes one MsgPack object, and whatever goes wrong becomes a return
code. Nothing in here knows of sockets.
"""

from __future__ import annotations

import asyncio
import datetime
import inspect
import logging
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgpack
import msgspec

from iproto.errors import ConfigError, Error, IllegalParamsError
from iproto.wire import RESERVED_FUNC_IDS, FuncID, ReturnCode

logger = logging.getLogger("iproto.app")

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])

Reply = Callable[[int, int, int, bytes, int], None]
"""Takes func_id, request_id, return code, body, and when the request arrived."""

# What metrics call the built-in functions, and those without a row of their own.
_RESERVED_NAMES = {func_id.name for func_id in FuncID} | {"unknown", "other"}

# What MsgPack carries by itself; msgspec would otherwise want these as str.
_NATIVE_TYPES = (bytes, bytearray, datetime.datetime)


class Function:
    """One registered function: how its body is read and its result is written."""

    __slots__ = ("_accepts", "_least", "_names", "call", "func_id", "is_async", "name", "timeout")

    def __init__(
        self, func_id: int, call: Callable[..., Any], name: str, timeout: float | None
    ) -> None:
        self.func_id = func_id
        self.call = call
        self.name = name
        self.timeout = timeout
        # An object whose __call__ is async is as good as an async function.
        self.is_async = inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(
            type(call).__call__
        )
        parameters = _positional_parameters(call, name)
        types = [
            Any if parameter.annotation is inspect.Parameter.empty else parameter.annotation
            for parameter in parameters
        ]
        self._names = [parameter.name for parameter in parameters]
        self._least = sum(p.default is inspect.Parameter.empty for p in parameters)
        # By number of arguments: the type that so many must have together.
        self._accepts: list[Any] = [
            tuple[tuple(types[:count])] if count else tuple[()]  # type: ignore[misc]
            for count in range(len(types) + 1)
        ]
        try:
            # Nothing needs the schema: making it looks into every type.
            msgspec.json.schema(self._accepts[-1])
        except (TypeError, RuntimeError) as error:
            raise ConfigError(
                f"function {name!r} has an annotation that arguments cannot be checked "
                f"against: {str(error).splitlines()[-1]}"
            ) from None

    def arguments(self, body: bytes) -> tuple[Any, ...]:
        """Reads the arguments: objects one after the other, or one array of them.

        Where both readings are possible (a function with one list parameter),
        the array of arguments goes first.

        Raises:
            IllegalParamsError: they do not fit the annotations; the text says which.
        """
        objects = _unpack_all(body)
        if len(objects) == 1 and isinstance(objects[0], list):
            try:
                return self._convert(objects[0])
            except IllegalParamsError as refusal:
                try:
                    return self._convert(objects)
                except IllegalParamsError:
                    raise refusal from None
        return self._convert(objects)

    def _convert(self, values: list[Any]) -> tuple[Any, ...]:
        count = len(values)
        most = len(self._names)
        if not self._least <= count <= most:
            takes = f"{most}" if self._least == most else f"{self._least} to {most}"
            raise IllegalParamsError(f"{self.name} takes {takes} arguments, got {count}")
        try:
            converted: tuple[Any, ...] = msgspec.convert(
                values, self._accepts[count], builtin_types=_NATIVE_TYPES
            )
        except msgspec.ValidationError as error:
            raise IllegalParamsError(f"{self.name}: {self._named(str(error))}") from None
        return converted

    def _named(self, text: str) -> str:
        """Says ``times`` where msgspec says ``$[1]``."""
        return re.sub(r"`\$\[(\d+)\]", lambda m: f"`{self._names[int(m[1])]}", text, count=1)


class App:
    """A table of users' own functions.

    ::

        app = iproto.App()

        @app.function(0x00030001)
        async def repeat(text: str, times: int = 2) -> str:
            return text * times
    """

    def __init__(self) -> None:
        self._functions: dict[int, Function] = {}

    @property
    def functions(self) -> dict[int, Function]:
        """The registered functions by func_id (a copy)."""
        return dict(self._functions)

    def function(
        self, func_id: int, *, name: str | None = None, timeout: float | None = None
    ) -> Callable[[AnyFunction], AnyFunction]:
        """Registers the decorated function, which stays as it is.

        An ``async def`` runs as a task beside others; a plain ``def`` runs on
        the event loop and must not block (``await asyncio.to_thread(...)`` in
        an ``async def`` is for that).

        Args:
            func_id: 0..2**32-1, and none of the built-in functions.
            name: what metrics and errors call it; the function's own name if None.
            timeout: seconds that a call of an ``async def`` may take, then it is
                cancelled and answered TIMEOUT; None for no limit.

        Raises:
            ConfigError: func_id or name is taken or out of range, or the
                signature is not one that a body can be checked against.
        """

        def register(call: AnyFunction) -> AnyFunction:
            label = name if name is not None else getattr(call, "__name__", repr(call))
            self._check_func_id(func_id, label)
            self._check_name(label)
            function = Function(func_id, call, label, timeout)
            if timeout is not None and not (function.is_async and _is_time(timeout)):
                raise ConfigError(
                    f"function {label!r} has timeout={timeout!r}: a time-out is a number of "
                    "seconds, over 0 and at most 86400, and only an 'async def' can be "
                    "interrupted by one"
                )
            self._functions[func_id] = function
            return call

        return register

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


def _is_time(timeout: object) -> bool:
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    return number and 0 < cast("float", timeout) <= 86_400


class CallBudget:
    """How many users' calls may still start, over all connections of a server."""

    __slots__ = ("limit", "running")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0


class Calls:
    """The users' calls of one connection: starts them, answers them, cancels them.

    Args:
        functions: by func_id.
        budget: shared with the server's other connections.
        reply: where replies go. Called once for each ``start``, at once or
            later, unless ``cancel`` came first.
    """

    __slots__ = ("_budget", "_cancelled", "_expired", "_functions", "_reply", "_tasks")

    def __init__(self, functions: dict[int, Function], budget: CallBudget, reply: Reply) -> None:
        self._functions = functions
        self._budget = budget
        self._reply = reply
        self._tasks: set[asyncio.Task[None]] = set()
        self._expired: set[asyncio.Task[None]] = set()
        self._cancelled = False

    def start(self, func_id: int, request_id: int, body: bytes, arrived: int) -> None:
        """Runs a call; its frame's fields are as ``ServerFrames.take_calls`` gives them."""
        function = self._functions[func_id]
        budget = self._budget
        if budget.running >= budget.limit:
            text = f"{budget.limit} calls are running on this server, its limit; try again"
            self._reply(func_id, request_id, ReturnCode.OVERLOADED, _pack(text), arrived)
            return
        try:
            arguments = function.arguments(body)
            if function.is_async:
                self._start_task(function, request_id, arguments, arrived)
                return
            answer = _pack(function.call(*arguments))
            code = int(ReturnCode.OK)
        except KeyboardInterrupt:
            raise  # Ctrl-C, where no handler is set: it is not the function's
        except BaseException as error:
            code, answer = _failure(function, error)
        self._reply(func_id, request_id, code, answer, arrived)

    def cancel(self) -> None:
        """The connection is gone: nothing more is answered."""
        self._cancelled = True
        for task in self._tasks:
            task.cancel()

    def _start_task(
        self, function: Function, request_id: int, arguments: tuple[Any, ...], arrived: int
    ) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._run(function, request_id, arguments, arrived))
        self._budget.running += 1
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        if function.timeout is not None:
            timer = loop.call_later(function.timeout, self._expire, task)
            task.add_done_callback(lambda _: timer.cancel())

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._budget.running -= 1
        self._tasks.discard(task)
        self._expired.discard(task)

    def _expire(self, task: asyncio.Task[None]) -> None:
        self._expired.add(task)
        task.cancel()

    async def _run(
        self, function: Function, request_id: int, arguments: tuple[Any, ...], arrived: int
    ) -> None:
        try:
            answer = _pack(await function.call(*arguments))
            code = int(ReturnCode.OK)
        except asyncio.CancelledError as error:
            if self._cancelled:
                raise
            if asyncio.current_task() in self._expired:
                code = int(ReturnCode.TIMEOUT)
                answer = _pack(f"{function.name} ran for its limit of {function.timeout} s")
            else:
                code, answer = _failure(function, error)
        except BaseException as error:
            # Whatever it is, the client waits for an answer, and others for this one's place.
            code, answer = _failure(function, error)
        if not self._cancelled:
            self._reply(function.func_id, request_id, code, answer, arrived)


def _failure(function: Function, error: BaseException) -> tuple[int, bytes]:
    """Return code and body for what a function raised: the one place that maps them."""
    if isinstance(error, Error):
        try:
            return Error(error.code, error.text).code, _pack(error.text)
        except (
            Exception
        ) as unfit:  # a subclass of its own making: no code, or a text of another type
            unfit.__context__ = error
            error = unfit
    logger.error("function %s (%#010x) failed", function.name, function.func_id, exc_info=error)
    return ReturnCode.INTERNAL, _pack(f"{function.name} failed; the server's log has the details")


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, datetime=True, default=_to_builtins)
    return packed


def _to_builtins(value: Any) -> Any:
    """For results that MsgPack has no type for: dataclasses, Structs, enums, sets."""
    return msgspec.to_builtins(value, builtin_types=_NATIVE_TYPES)


def _unpack_all(body: bytes) -> list[Any]:
    unpacker = msgpack.Unpacker(
        raw=False, strict_map_key=False, timestamp=3, max_buffer_size=max(len(body), 1)
    )
    unpacker.feed(body)
    objects = []
    end = 0
    try:
        while end < len(body):
            objects.append(unpacker.unpack())
            end = unpacker.tell()
    except msgpack.OutOfData:
        raise IllegalParamsError(
            f"body of {len(body)} bytes ends within an object that begins at byte {end}"
        ) from None
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        reason = str(error) or type(error).__name__
        raise IllegalParamsError(f"body of {len(body)} bytes is not MsgPack: {reason}") from None
    return objects


def _positional_parameters(call: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    try:
        signature = inspect.signature(call, eval_str=True)
    except NameError as error:
        raise ConfigError(
            f"function {name!r} has an annotation that is not defined: {error}"
        ) from None
    parameters = []
    for parameter in signature.parameters.values():
        if parameter.kind in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            parameters.append(parameter)
        elif parameter.kind is not inspect.Parameter.KEYWORD_ONLY or (
            parameter.default is inspect.Parameter.empty
        ):
            raise ConfigError(
                f"function {name!r} has the parameter {parameter}: arguments come by position, "
                "so *args, **kwargs and keyword-only parameters without default are not possible"
            )
    return parameters

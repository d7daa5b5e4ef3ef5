"""User functions: their registration under a number.

How arguments are read is arguments.py's, how results are written results.py's, and
how calls run server/calls.py's. Nothing in here knows of sockets.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from iproto.arguments import Arguments
from iproto.errors import ConfigError
from iproto.results import encoder_for
from iproto.wire import RESERVED_FUNC_IDS, FuncID

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])

# What metrics call the built-in functions, and those without a row of their own.
_RESERVED_NAMES = {func_id.name for func_id in FuncID} | {"unknown", "other"}


class Function:
    """One registered function: how its body is read and its result is written."""

    __slots__ = ("arguments", "call", "func_id", "is_async", "name", "pack", "timeout")

    def __init__(
        self,
        func_id: int,
        call: Callable[..., Any],
        name: str,
        timeout: float | None,
        *,
        ignore_unknown_keys: bool = False,
    ) -> None:
        self.func_id = func_id
        self.call = call
        self.name = name
        self.timeout = timeout
        # An object whose __call__ is async is as good as an async function.
        self.is_async = inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(
            type(call).__call__
        )
        signature = _signature(call, name)
        parameters = _positional_parameters(signature, call, name)
        self.arguments = Arguments(
            name,
            [parameter.name for parameter in parameters],
            [_annotation(parameter.annotation) for parameter in parameters],
            sum(parameter.default is inspect.Parameter.empty for parameter in parameters),
            ignore_unknown_keys=ignore_unknown_keys,
        )
        self.pack = encoder_for(_annotation(signature.return_annotation))


class App:
    """A table of user functions.

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
        self,
        func_id: int,
        *,
        name: str | None = None,
        timeout: float | None = None,
        ignore_unknown_keys: bool = False,
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
            ignore_unknown_keys: whether a map for a dataclass, TypedDict or Struct
                may have keys that are none of its fields; such a call is refused
                otherwise.

        Raises:
            ConfigError: func_id or name is taken or out of range, or the
                signature is not one that a body can be checked against.
        """

        def register(call: AnyFunction) -> AnyFunction:
            label = name if name is not None else getattr(call, "__name__", repr(call))
            self._check_func_id(func_id, label)
            self._check_name(label)
            function = Function(
                func_id, call, label, timeout, ignore_unknown_keys=ignore_unknown_keys
            )
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


def _annotation(annotation: Any) -> Any:
    return Any if annotation is inspect.Parameter.empty else annotation


def _signature(call: Callable[..., Any], name: str) -> inspect.Signature:
    try:
        return inspect.signature(call, eval_str=True)
    except NameError as error:
        raise ConfigError(
            f"function {name!r} has an annotation that is not defined: {error}"
        ) from None


def _positional_parameters(
    signature: inspect.Signature, call: Callable[..., Any], name: str
) -> list[inspect.Parameter]:
    bound = call.keywords if isinstance(call, functools.partial) else {}
    parameters = []
    for parameter in signature.parameters.values():
        if parameter.kind in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            parameters.append(parameter)
        elif parameter.name not in bound or parameter.kind is inspect.Parameter.VAR_KEYWORD:
            raise ConfigError(
                f"function {name!r} has the parameter {parameter}: arguments come by position, "
                "so *args, **kwargs and keyword-only parameters are not possible; "
                f"functools.partial(function, {parameter.name}=...) gives one a value for good"
                if parameter.kind is inspect.Parameter.KEYWORD_ONLY
                else f"function {name!r} has the parameter {parameter}: arguments come by "
                "position, so *args and **kwargs are not possible"
            )
    return parameters

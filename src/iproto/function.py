"""One user function: its signature, how its body is read and its result is written, its errors."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from iproto.arguments import Arguments
from iproto.errors import ConfigError, Error
from iproto.results import encoder_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class ErrorReply(NamedTuple):
    """What an exception that is none of iproto's is answered with.

    Args:
        code: the return code.
        text: the reply's text; None for the exception's own.
    """

    code: int
    text: str | None


class Function:
    """A registered function.

    Args:
        func_id: its number on the wire.
        call: the function.
        name: for metrics and error texts.
        timeout: seconds that a call may take; None for no limit.
        concurrency, queue_timeout, ignore_unknown_keys: as for ``App.function``.
        errors: tables of exceptions with a reply of their own, the nearest first.

    Raises:
        ConfigError: the signature is not one that a body can be checked against,
            or a limit is none.
    """

    __slots__ = (
        "arguments",
        "call",
        "concurrency",
        "errors",
        "func_id",
        "is_async",
        "name",
        "pack",
        "queue_timeout",
        "signature",
        "timeout",
    )

    def __init__(
        self,
        func_id: int,
        call: Callable[..., Any],
        name: str,
        timeout: float | None,
        *,
        concurrency: int | None = None,
        queue_timeout: float | None = None,
        ignore_unknown_keys: bool = False,
        errors: Sequence[Mapping[type[BaseException], ErrorReply]] = (),
    ) -> None:
        self.func_id = func_id
        self.call = call
        self.name = name
        self.timeout = timeout
        self.concurrency = concurrency
        self.queue_timeout = queue_timeout
        self.errors = tuple(errors)
        # An object whose __call__ is async is as good as an async function.
        self.is_async = inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(
            type(call).__call__
        )
        self._check_limits()
        self.signature = signature = _signature(call, name)
        parameters = _positional_parameters(signature, call, name)
        self.arguments = Arguments(
            name,
            [parameter.name for parameter in parameters],
            [_annotation(parameter.annotation) for parameter in parameters],
            sum(parameter.default is inspect.Parameter.empty for parameter in parameters),
            ignore_unknown_keys=ignore_unknown_keys,
        )
        self.pack = encoder_for(_annotation(signature.return_annotation))

    def _check_limits(self) -> None:
        if self.timeout is not None and not (self.is_async and _is_time(self.timeout)):
            raise ConfigError(
                f"function {self.name!r} has timeout={self.timeout!r}: a time-out is a number of "
                "seconds, over 0 and at most 86400, and only an 'async def', or a function with "
                "thread=True, can have one"
            )
        if self.concurrency is not None and not (self.is_async and _is_count(self.concurrency)):
            raise ConfigError(
                f"function {self.name!r} has concurrency={self.concurrency!r}: it is a number of "
                "calls, 1..2**31, and only an 'async def', or a function with thread=True, has "
                "several of them at once"
            )
        if self.queue_timeout is not None and (
            self.concurrency is None or not _is_time(self.queue_timeout)
        ):
            raise ConfigError(
                f"function {self.name!r} has queue_timeout={self.queue_timeout!r}: it is a number "
                "of seconds, over 0 and at most 86400, for calls that wait for a place, so "
                "concurrency= goes with it"
            )

    def included(
        self, base: int, prefix: str, errors: Mapping[type[BaseException], ErrorReply]
    ) -> Function:
        """The same function as another app has it that includes its app."""
        copy = object.__new__(Function)
        for slot in Function.__slots__:
            setattr(copy, slot, getattr(self, slot))
        copy.func_id = self.func_id + base
        copy.name = prefix + self.name
        copy.arguments = self.arguments.named(copy.name)
        copy.errors = (*self.errors, errors)
        return copy

    def as_error(self, error: BaseException) -> BaseException:
        """What a client gets for an exception: an ``Error``, if the tables have one for it."""
        if isinstance(error, Error):
            return error
        for table in self.errors:
            for cls in type(error).__mro__:
                reply = table.get(cls)
                if reply is not None:
                    return Error(reply.code, str(error) if reply.text is None else reply.text)
        return error


def _is_time(timeout: object) -> bool:
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    return number and 0 < cast("float", timeout) <= 86_400


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= 2**31


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

"""Everything the package raises, as one tree.

::

    IprotoError
    ├── ConfigError (ValueError)              an option, a URL or a registration is wrong
    ├── Error                                 the server answered with a return code
    │   └── one class for each code: ReadOnlyError, LockedError, ...
    ├── TransportError                        the call got no answer
    │   ├── ConnectError (ConnectionError)    no connection could be made: not executed
    │   ├── ConnectionLostError (ConnectionError)
    │   ├── CallTimeoutError (TimeoutError)
    │   ├── ReplyTooLongError
    │   └── ClientClosedError
    ├── ProtocolError                         the peer broke the protocol
    │   └── DialectError                      ... because it speaks the other dialect
    └── TextError (ValueError)                a slot's bytes are not UTF-8
"""

from __future__ import annotations

import re
from typing import Any

from iproto.wire import REFUSALS, CompletionStatus, ReturnCode

__all__ = [
    "CallTimeoutError",
    "ClientClosedError",
    "ConfigError",
    "ConnectError",
    "ConnectionLostError",
    "DialectError",
    "Error",
    "IprotoError",
    "ProtocolError",
    "ReplyTooLongError",
    "TextError",
    "TransportError",
]
__all__ += [
    # generated: names of exceptions (from schema/iproto.toml, by make generate)
    "FunctionTimeoutError",
    "IllegalParamsError",
    "InternalError",
    "LockedError",
    "NotPermittedError",
    "OutOfRangeError",
    "OutcomeUnknownError",
    "OverloadedError",
    "RateLimitedError",
    "ReadOnlyError",
    "UnavailableError",
    "UnsupportedCommandError",
    # end of names of exceptions
]


class IprotoError(Exception):
    """Base of every error that the package raises on purpose.

    Pickles and copies with all that it carries, also where a class takes other
    arguments than its text.
    """

    may_have_executed: bool = True
    """Whether the server may have executed the request. False is certain."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _restore(
    cls: type[IprotoError], args: tuple[object, ...], state: dict[str, object]
) -> IprotoError:
    """An error as it was pickled; its ``__init__`` is not called again."""
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(IprotoError, ValueError):
    """An option, a URL or a function's registration is wrong; the text says how."""

    may_have_executed = False


class Error(IprotoError):
    """A reply with a return code other than OK.

    Clients raise it (as the subclass of its code, where there is one); user
    functions raise it to answer with a code of their own. ``may_have_executed``
    is False for the codes in :data:`iproto.wire.REFUSALS`; what a code of their
    own says of it, only those functions know.

    Args:
        code: the return code, 1..2**32-1. By the family's convention its low
            byte is 1 (try again) or 2 (error) and the upper bytes number the
            error: 0x5102, say.
        text: what was wrong and what is allowed, for the client's eyes.

    Raises:
        ConfigError: the code is 0, which means success, or over 32 bits.
    """

    def __init__(self, code: int, text: str) -> None:
        if not isinstance(code, int) or not 0 < code < 2**32:
            shown = f"{code:#x}" if isinstance(code, int) else repr(code)
            raise ConfigError(
                f"return code {shown} cannot stand for an error: it must be 1..0xffffffff, "
                "by convention with a low byte of 1 (try again) or 2 (error), like 0x5102"
            )
        super().__init__(code, text)
        self.code = code
        self.text = text
        self.may_have_executed = code not in REFUSALS
        self.item: int | None = None
        """Position of the failed item in a ``*_many`` call, else None."""

    def __str__(self) -> str:
        where = "" if self.item is None else f" (item {self.item})"
        return f"{self.text}{where} [{_code_name(self.code)}]"

    @property
    def retryable(self) -> bool:
        """Whether the code says "try again" (its low byte is 1)."""
        return self.code & 0xFF == CompletionStatus.TRY_AGAIN

    @property
    def retry_after(self) -> float | None:
        """Seconds until a request may pass; None if the text does not end with them."""
        found = re.search(r"; retry after (\d{1,9}(?:\.\d{1,9})?) s\Z", self.text, re.ASCII)
        return None if found is None else float(found[1])


class _CodedError(Error):
    """An error whose class fixes its code: ``ReadOnlyError("storage is frozen")``."""

    CODE: ReturnCode

    def __init__(self, text: str) -> None:
        super().__init__(self.CODE, text)


# generated: exceptions (from schema/iproto.toml, by make generate)


class InternalError(_CodedError):
    """A user function failed; details are in the server's log."""

    CODE = ReturnCode.INTERNAL


class NotPermittedError(_CodedError):
    """This client, or this listener, may not call that function."""

    CODE = ReturnCode.NOT_PERMITTED


class IllegalParamsError(_CodedError):
    """The body is not what the function takes, a string is over 256 bytes, a body is over the
    limit."""

    CODE = ReturnCode.ILLEGAL_PARAMS


class ReadOnlyError(_CodedError):
    """A write while the storage is ``READ_ONLY``."""

    CODE = ReturnCode.READ_ONLY


class LockedError(_CodedError):
    """A read or a write while the storage is in ``MAINTENANCE``."""

    CODE = ReturnCode.LOCKED


class OverloadedError(_CodedError):
    """A limit of the server is reached."""

    CODE = ReturnCode.OVERLOADED


class UnsupportedCommandError(_CodedError):
    """There is no such function."""

    CODE = ReturnCode.UNSUPPORTED_COMMAND


class OutOfRangeError(_CodedError):
    """A slot index outside 0..999."""

    CODE = ReturnCode.NUMBER_OUT_OF_RANGE


class UnavailableError(_CodedError):
    """What stores the data has no quorum, nothing was executed; only user functions send it."""

    CODE = ReturnCode.UNAVAILABLE


class FunctionTimeoutError(_CodedError):
    """A user function ran out of its time."""

    CODE = ReturnCode.TIMEOUT


class OutcomeUnknownError(_CodedError):
    """What stores the data did not answer in time, the write may have been executed; only user
    functions send it."""

    CODE = ReturnCode.OUTCOME_UNKNOWN


class RateLimitedError(_CodedError):
    """Over a rate; user functions send it, too."""

    CODE = ReturnCode.RATE_LIMITED


# end of exceptions


class TransportError(IprotoError):
    """A call got no answer.

    Args:
        text: what happened.
        may_have_executed: whether the server may have executed the request.
            False is certain: it never left this process.
    """

    def __init__(self, text: str, *, may_have_executed: bool) -> None:
        super().__init__(text)
        self.may_have_executed = may_have_executed

    def __str__(self) -> str:
        fate = "may have been executed" if self.may_have_executed else "was not executed"
        return f"{self.args[0]}; the request {fate}"


class ConnectError(TransportError, ConnectionError):
    """No connection could be made; the request was not executed."""

    def __init__(self, text: str) -> None:
        super().__init__(text, may_have_executed=False)


class ConnectionLostError(TransportError, ConnectionError):
    """The connection ended before the reply came."""


class CallTimeoutError(TransportError, TimeoutError):
    """The call's deadline passed before the reply came."""


class ClientClosedError(TransportError):
    """The client was closed, by its own side, before the reply came."""


class ReplyTooLongError(TransportError):
    """The reply's body is over the client's limit, ``max_body``; it was dropped."""

    item: int | None = None
    """Position of the failed item in a ``*_many`` call, else None."""


class ProtocolError(IprotoError):
    """The peer sent what the protocol does not allow.

    Args:
        text: what it sent, and what is allowed.
        may_have_executed: as for :class:`TransportError`.
    """

    def __init__(self, text: str, *, may_have_executed: bool = True) -> None:
        super().__init__(text)
        self.may_have_executed = may_have_executed


class DialectError(ProtocolError):
    """The peer speaks the other dialect, or none that could be recognised."""


class TextError(IprotoError, ValueError):
    """``str`` was asked for and the bytes are not UTF-8; use the bytes variant."""

    item: int | None = None
    """Position of the failed item in a ``*_many`` call, else None."""


_BY_CODE: dict[int, type[_CodedError]] = {cls.CODE: cls for cls in _CodedError.__subclasses__()}


def error_from_reply(code: int, text: str) -> Error:
    """The exception for a reply's return code: the one place that maps them.

    Args:
        code: the return code, not 0.
        text: the reply's text.
    """
    cls = _BY_CODE.get(code)
    return Error(code, text) if cls is None else cls(text)


def _code_name(code: int) -> str:
    try:
        return f"{ReturnCode(code).name} {code:#06x}"
    except ValueError:
        return f"{code:#x}"

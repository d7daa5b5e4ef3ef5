"""Checks of single values: one rule for each, for settings, options and arguments alike."""

from __future__ import annotations

from iproto.errors import ConfigError
from iproto.wire import Dialect

MAX_SECONDS = 86_400
"""A longer wait is a mistake of units rather than a wish."""

MAX_UINT32 = 2**32 - 1
"""What a field of the protocol's header holds at most."""


def checked_range(
    name: str,
    value: object,
    low: float,
    high: float,
    unit: str,
    *,
    whole: bool = False,
    above_low: bool = False,
) -> None:
    """Refuses a value that is no number, or one outside of a range.

    Args:
        name: what the error calls the value.
        value: the value.
        low, high: the bounds, which belong to the range.
        unit: of the number, for the error: ``"seconds"``.
        whole: whether it must be an int.
        above_low: whether ``low`` itself does not belong to the range.

    Raises:
        ConfigError: the value is no such number; the text says what is allowed.
    """
    kinds = (int,) if whole else (int, float)
    if (
        isinstance(value, kinds)
        and not isinstance(value, bool)
        and low <= value <= high
        and not (above_low and value == low)
    ):
        return
    number = "a whole number" if whole else "a number"
    bounds = f"over {low}, at most {high}" if above_low else f"{low}..{high}"
    raise ConfigError(f"{name} is {value!r}; it must be {number} of {unit}, {bounds}")


def checked_timeout(timeout: float) -> float:
    """A time-out of a call, in seconds.

    Args:
        timeout: int or float, over 0, at most 86400.

    Raises:
        ConfigError: it is out of range.
        TypeError: it is no number.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"a timeout is a number of seconds, not {type(timeout).__name__}")
    checked_range("timeout", timeout, 0, MAX_SECONDS, "seconds", above_low=True)
    return float(timeout)


def checked_max_body(max_body: int) -> int:
    """A limit of a client for the bodies of replies.

    Args:
        max_body: bytes, 1..2**32-1.

    Raises:
        ConfigError: it is out of range.
        TypeError: it is no int.
    """
    if isinstance(max_body, bool) or not isinstance(max_body, int):
        raise TypeError(f"max_body is an int of bytes, not {type(max_body).__name__}")
    checked_range("max_body", max_body, 1, MAX_UINT32, "bytes", whole=True)
    return max_body


def checked_max_request(max_request: int) -> int:
    """A limit of a client for the bodies of requests.

    Args:
        max_request: bytes, 1..2**32-1.

    Raises:
        ConfigError: it is out of range.
        TypeError: it is no int.
    """
    if isinstance(max_request, bool) or not isinstance(max_request, int):
        raise TypeError(f"max_request is an int of bytes, not {type(max_request).__name__}")
    checked_range("max_request", max_request, 1, MAX_UINT32, "bytes", whole=True)
    return max_request


def checked_max_connections(max_connections: int) -> int:
    """A limit of a client for its connections.

    Args:
        max_connections: 1..4096.

    Raises:
        ConfigError: it is out of range.
        TypeError: it is no int.
    """
    if isinstance(max_connections, bool) or not isinstance(max_connections, int):
        raise TypeError(f"max_connections is an int, not {type(max_connections).__name__}")
    checked_range("max_connections", max_connections, 1, 4096, "connections", whole=True)
    return max_connections


def checked_func_id(func_id: int) -> int:
    """The number of a function to call.

    Args:
        func_id: 0..2**32-1.

    Raises:
        ConfigError: it is out of range.
        TypeError: it is no int.
    """
    if isinstance(func_id, bool) or not isinstance(func_id, int):
        raise TypeError(f"a func_id is an int, not {type(func_id).__name__}")
    if not 0 <= func_id <= MAX_UINT32:
        raise ConfigError(f"func_id {func_id:#x} is out of range; use 0..{MAX_UINT32:#x}")
    return func_id


def checked_dialect(dialect: Dialect | str) -> Dialect:
    """A client's dialect by its name.

    Args:
        dialect: ``vk``, ``mailru`` or ``auto``.

    Raises:
        ConfigError: there is no such dialect.
    """
    try:
        return Dialect(dialect)
    except ValueError:
        raise ConfigError(
            f"dialect {dialect!r} is unknown; use one of vk (body_length counts the body alone), "
            "mailru (it counts the return_code too), auto (find out with one read)"
        ) from None

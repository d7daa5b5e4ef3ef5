"""Checks of single values: one rule for each, for settings, options and arguments alike."""

from __future__ import annotations

from iproto.errors import ConfigError
from iproto.wire import Dialect

MAX_SECONDS = 86_400
"""A longer wait is a mistake of units rather than a wish."""

EXIT_USAGE = 2
"""The exit code of a process whose settings or arguments are refused."""

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


def checked_limit(name: str, limit: int, most: int, unit: str) -> int:
    """A limit of a client.

    Args:
        name: what the error calls it.
        limit: 1..most.
        most: the largest limit.
        unit: of the number, for the error: ``"bytes"``.

    Raises:
        ConfigError: it is out of range.
        TypeError: it is no int.
    """
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"{name} is an int of {unit}, not {type(limit).__name__}")
    checked_range(name, limit, 1, most, unit, whole=True)
    return limit


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

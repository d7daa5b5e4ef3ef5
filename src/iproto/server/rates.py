"""Rates in settings: how many a second, and how many at once."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from iproto.errors import ConfigError

RATES = (0.01, 1_000_000.0)
BURSTS = (1, 1_000_000)

_RATE = re.compile(r"(\d{1,7}(?:\.\d{1,6})?)(?::(\d{1,7}))?", re.ASCII)


class Rate(NamedTuple):
    """How many a second, and how many at once."""

    rate: float
    burst: int


def parse_rate(name: str, value: object) -> Rate | None:
    """Reads a rate; None for ``off``.

    Args:
        name: of the setting, for errors.
        value: ``"100"`` or 100 a second, or ``"100:20"`` with 20 at once; without those as
            many as come in a second.

    Raises:
        ConfigError: it is no such thing, or out of range.
    """
    if value in (None, "off", ""):
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    found = _RATE.fullmatch(f"{value:g}" if number else str(value))
    if found:
        rate = float(found[1])
        burst = int(found[2]) if found[2] else max(1, math.ceil(rate))
        if RATES[0] <= rate <= RATES[1] and BURSTS[0] <= burst <= BURSTS[1]:
            return Rate(rate, burst)
    raise ConfigError(
        f"{name} is {value!r}; it must be a number a second, {RATES[0]}..{RATES[1]:.0f}, with how "
        f"many at once behind a colon, {BURSTS[0]}..{BURSTS[1]}, like 100:20, or 'off'"
    )

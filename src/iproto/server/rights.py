"""Rights: which functions a peer may call."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from iproto.checks import MAX_UINT32
from iproto.errors import ConfigError
from iproto.wire import FuncID

if TYPE_CHECKING:
    from collections.abc import Iterable

CLASSES = {
    "read": frozenset({FuncID.STORAGE_READ}),
    "write": frozenset({FuncID.STORAGE_REPLACE}),
    "admin": frozenset(
        {
            FuncID.ADM_STORAGE_SWITCH_READONLY,
            FuncID.ADM_STORAGE_SWITCH_READWRITE,
            FuncID.ADM_STORAGE_SWITCH_MAINTENANCE,
        }
    ),
}
"""Name of a right → the built-in functions that it is for; ``call`` is for all others."""

FREE = frozenset({FuncID.PING, FuncID.SHUTDOWN})
"""Built-in functions that need no right."""

_BUILT_IN = frozenset(FuncID)
_RANGE = re.compile(r"(0x[0-9a-f]{1,8}|\d{1,10})(?:-(0x[0-9a-f]{1,8}|\d{1,10}))?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Rights:
    """Which functions may be called. ``PING`` and ``SHUTDOWN`` always may.

    Args:
        names: of ``read``, ``write``, ``admin`` and ``call`` (all user functions).
        ranges: first and last func_id of further functions, of whichever kind.
        within: rights that must permit a function, too; None for no such bound.
    """

    names: frozenset[str] = frozenset()
    ranges: tuple[tuple[int, int], ...] = ()
    within: Rights | None = None

    def permits(self, func_id: int) -> bool:
        """Whether the function of this number may be called, whether or not there is one."""
        if func_id in FREE:
            return True
        if self.within is not None and not self.within.permits(func_id):
            return False
        if any(first <= func_id <= last for first, last in self.ranges):
            return True
        if func_id in _BUILT_IN:
            return any(func_id in CLASSES.get(name, ()) for name in self.names)
        return "call" in self.names

    def __str__(self) -> str:
        parts = [name for name in (*CLASSES, "call") if name in self.names]
        parts += [
            f"{first:#010x}" + (f"-{last:#010x}" if last != first else "")
            for first, last in self.ranges
        ]
        text = "+".join(parts) or "none"
        return text if self.within is None else f"{text} within {self.within}"


ALL = Rights(frozenset({*CLASSES, "call"}))
"""The rights of a client where nothing else is set."""


def common(one: Rights, other: Rights) -> Rights:
    """What both permit."""
    if one == ALL:
        return other
    return one if other == ALL else dataclasses.replace(one, within=other)


def parse_rights(name: str, texts: str | Iterable[str]) -> Rights:
    """Reads rights.

    Args:
        name: what the error calls them.
        texts: ``read``, ``write``, ``admin``, ``call``, ``all``, ``none``, a function
            like ``0x00030001`` or a range like ``0x00040000-0x0004ffff``; several of
            them, also in one text with ``+`` in between.

    Raises:
        ConfigError: one is none of these.
    """
    names: set[str] = set()
    ranges: list[tuple[int, int]] = []
    for text in [texts] if isinstance(texts, str) else texts:
        if not isinstance(text, str):
            raise _refusal(name, text)
        for part in text.split("+"):
            _read_part(name, part.strip(), names, ranges)
    return Rights(frozenset(names), tuple(ranges))


def _read_part(name: str, part: str, names: set[str], ranges: list[tuple[int, int]]) -> None:
    found = _RANGE.fullmatch(part)
    if part in ALL.names:
        names.add(part)
    elif part == "all":
        names |= ALL.names
    elif found:
        first = int(found[1], 0)
        last = int(found[2], 0) if found[2] else first
        if not first <= last <= MAX_UINT32:
            raise _refusal(name, part)
        ranges.append((first, last))
    elif part != "none":
        raise _refusal(name, part)


def _refusal(name: str, part: object) -> ConfigError:
    return ConfigError(
        f"{name} has {part!r}; a right is read, write, admin, call, all or none, a function like "
        "0x00030001 or a range of functions like 0x00040000-0x0004ffff"
    )

"""Bulks whose server went away in their midst: the rest is sent to the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iproto._fastframe import UNANSWERED

if TYPE_CHECKING:
    from collections.abc import Callable

    from iproto._fastframe import ClientFrames
    from iproto.errors import IprotoError

    Partial = tuple[list[Any], IprotoError | None]
    """Results so far, UNANSWERED where there is none, and the first item's error."""


class Bulk:
    """The frames of many requests in a row.

    Args:
        add: adds the frames for items, given who waits and until when.
        items: what is asked.
    """

    __slots__ = ("_add", "items")

    def __init__(
        self, add: Callable[[ClientFrames, list[Any], object, float], int], items: list[Any]
    ) -> None:
        self._add = add
        self.items = items

    def __call__(self, frames: ClientFrames, waiter: object, deadline: float) -> int:
        return self._add(frames, self.items, waiter, deadline)

    def rest(self, partial: Partial) -> Rest:
        """What of the bulk was not answered."""
        return Rest(self, self._add, partial)


class Rest:
    """What was answered of a bulk, and a bulk of what was not."""

    def __init__(
        self,
        bulk: Bulk,
        add: Callable[[ClientFrames, list[Any], object, float], int],
        partial: Partial,
    ) -> None:
        self._results, self._error = partial
        self._positions = [
            position for position, result in enumerate(self._results) if result is UNANSWERED
        ]
        self.bulk = Bulk(add, [bulk.items[position] for position in self._positions])

    def add(self, results: list[Any]) -> None:
        """The results of the rest."""
        for position, result in zip(self._positions, results, strict=True):
            self._results[position] = result

    def fail(self, error: Any) -> None:
        """The error of an item of the rest."""
        error.item = self._positions[error.item]
        if self._error is None or error.item < self._error.item:  # type: ignore[attr-defined]
            self._error = error

    def outcome(self) -> list[Any]:
        """All results; or raises the error of the first item that failed."""
        if self._error is not None:
            raise self._error
        return self._results

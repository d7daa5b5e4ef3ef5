"""Log lines that repeat as often as a client likes: one of a kind, then how many more."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

# Seconds in which one line of a kind is written.
PERIOD = 10.0

# Kinds that are kept apart at the same time; what comes beyond is one kind.
MAX_KINDS = 256


class _Period:
    """The time after a line, in which others of its kind are only counted."""

    def __init__(self, text: str, level: int, timer: asyncio.TimerHandle) -> None:
        self.text = text
        self.level = level
        self.timer = timer
        self.end = time.monotonic() + PERIOD
        self.more = 0


class Repeats:
    """Writes errors to a log, each kind once in PERIOD seconds; all in one event loop.

    Args:
        logger: the log.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._periods: dict[Hashable, _Period] = {}

    def error(
        self,
        kind: Hashable,
        message: str,
        *args: object,
        exc_info: BaseException | None = None,
        level: int = logging.ERROR,
    ) -> None:
        """Writes an error, or counts it.

        Args:
            kind: what makes two errors the same.
            message, args, exc_info: as for ``logging.Logger.error``.
            level: of the line.
        """
        if kind not in self._periods and len(self._periods) >= MAX_KINDS:
            kind = None
        period = self._periods.get(kind)
        if period is not None and time.monotonic() < period.end:
            period.more += 1
            return
        self._sum_up(kind)
        self._logger.log(level, message, *args, exc_info=exc_info)
        timer = asyncio.get_running_loop().call_later(PERIOD, self._sum_up, kind)
        self._periods[kind] = _Period(message % args, level, timer)

    def failure(self, what: str, error: Exception) -> None:
        """An error of our own ended something; where memory is short, thousands may.

        Args:
            what: what it ended, to begin the line with.
            error: the error; its traceback is for DEBUG.
        """
        self.error(
            "failure",
            "%s, for an error came up within the server: %r",
            what,
            error,
            exc_info=error if self._logger.isEnabledFor(logging.DEBUG) else None,
        )

    def close(self) -> None:
        """Logs how many more there were of each kind, and begins anew."""
        for kind in list(self._periods):
            self._sum_up(kind)

    def _sum_up(self, kind: Hashable) -> None:
        period = self._periods.pop(kind, None)
        if period is None:
            return
        period.timer.cancel()
        if period.more:
            self._logger.log(period.level, "%s: and %d more", period.text, period.more)

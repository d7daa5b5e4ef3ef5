"""Turns of the event loop: connections that want more than their share of one wait here.

The work of a turn is bounded over all connections together (src/fastframe/turn.pxi), so
that who asks for little is answered within a millisecond or two, however many others
send without end. Those are not watched by the loop meanwhile: each turn begins with a few
of them, one after the other, and each then has a share that is worth its system calls.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from iproto._fastframe import Turn

if TYPE_CHECKING:
    import asyncio


class Waiting(Protocol):
    """What waits for a turn."""

    def on_turn(self) -> None: ...


class Turns:
    """The turns of a loop.

    Args:
        loop: the running loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.turn = Turn()
        self._loop = loop
        self._waiting: deque[Waiting] = deque()
        self._scheduled = False

    def wait(self, connection: Waiting) -> None:
        """Calls ``on_turn`` in the next turn that has room for it, in the order of these calls.

        Args:
            connection: waits for no other turn.
        """
        self._waiting.append(connection)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._loop.call_soon(self._run)
            self._scheduled = True

    def _run(self) -> None:
        turn = self.turn
        turn.begin()
        try:
            for _ in range(len(self._waiting)):
                self._waiting.popleft().on_turn()
                if turn.is_over:
                    break
        finally:
            self._scheduled = False
            turn.end(wait=bool(self._waiting))
            if self._waiting:
                self._schedule()

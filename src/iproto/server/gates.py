"""How many calls of one function run at once: further ones wait their turn, but not for ever."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Gate:
    """Bounds the calls of a function that run at once, over all connections of a server.

    Args:
        limit: calls that run at once.
        queue_timeout: seconds that a call waits at most; None for no limit.
        loop: the running loop.
    """

    __slots__ = ("_limit", "_loop", "_running", "_waiting", "queue_timeout")

    def __init__(
        self, limit: int, queue_timeout: float | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.queue_timeout = queue_timeout
        self._limit = limit
        self._loop = loop
        self._running = 0
        self._waiting: deque[tuple[asyncio.Future[None], Callable[[], bool]]] = deque()

    def enter(self) -> bool:
        """Takes a place, which ``leave`` gives back; False: all are taken."""
        if self._running >= self._limit:
            return False
        self._running += 1
        return True

    def wait(self, start: Callable[[], bool], give_up: Callable[[], None]) -> asyncio.Future[None]:
        """Waits behind those that wait.

        Args:
            start: starts the call, once it has a place; False if it needs none any more.
            give_up: answers it, when it has waited for too long.

        Returns:
            The wait: cancelling it takes the call away.
        """
        place = self._loop.create_future()
        self._waiting.append((place, start))
        if self.queue_timeout is not None:
            timer = self._loop.call_later(self.queue_timeout, _end, place, give_up)
            place.add_done_callback(lambda _: timer.cancel())
        return place

    def leave(self) -> None:
        """Gives a place to the first that waits, or back."""
        while self._waiting:
            place, start = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                if start():
                    return
        self._running -= 1


def _end(place: asyncio.Future[None], give_up: Callable[[], None]) -> None:
    if not place.done():
        place.set_result(None)
        give_up()

"""The state of one connection, whatever moves its bytes: no sockets, no futures.

The links of the asyncio client, the blocking client and the load share it. It
keeps four rules:

1. A link is open until it ends, and ends once: the first reason counts.
2. A link ends when the transport loses it, when its stream cannot be read on, when
   its peer announces its end, when that is silent for too long, or when its own side
   gives it up. It retires, and takes no further call, when its peer is to close it.
3. At the end every request in flight fails, with an error of its own that says
   whether the server may have executed it. What was in flight when the peer announced
   its end was not: it is ``Unexecuted``, and may be sent again.
4. A call that times out is no proof of a dead peer. In silence the peer is asked
   for a sign of life first; and while other calls have time left, their link is
   kept, unless the silence lasts.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from iproto._fastframe import AS_NOTHING, UNANSWERED
from iproto.client.reasons import lost_error, lost_reason, silent_reason
from iproto.wire import FuncID

if TYPE_CHECKING:
    from iproto._fastframe import ClientFrames
    from iproto.client.bulk import Partial
    from iproto.errors import IprotoError

# Seconds of silence, after the peer was asked for a sign of life, for which a link
# is kept whose other calls have time left. As long as a call by default.
SILENCE = 5.0


class Unexecuted(Exception):
    """Raised in a call whose server went away without executing it; never leaves the client.

    Args:
        partial: of a bulk, what was answered; see ``ClientFrames.fail_all``.
    """

    def __init__(self, partial: Partial | None) -> None:
        super().__init__(partial)
        # A bulk of which nothing was answered is as good as unsent.
        answered = partial is not None and any(item is not UNANSWERED for item in partial[0])
        self.partial = partial if answered else None


class LinkState:
    """What is known of one connection.

    Args:
        frames: the connection's codec, fresh.
        address: the server's address, for messages.
    """

    __slots__ = ("_asked_after", "_asked_at", "address", "chunks", "ended", "frames")

    def __init__(self, frames: ClientFrames, address: str) -> None:
        self.frames = frames
        self.address = address
        self.chunks = 0
        """Chunks received so far: if it grew, the peer is slow, not silent."""
        self.ended: str | IprotoError | None = None
        """Why no call may be added any more; None while the link is open."""
        # When the peer was last asked for a sign of life, and after how many chunks.
        self._asked_at = -inf
        self._asked_after = -1

    def receive(self, data: bytes) -> list[tuple[Any, IprotoError | None, Any]]:
        """Takes a chunk; afterwards the link must end if there is a ``fault``.

        Returns:
            ``(waiter, error, result)`` of each call that the chunk settles.
        """
        self.chunks += 1
        return self.frames.feed(data)

    @property
    def fault(self) -> str | IprotoError | None:
        """Why the link must end now, by what it has received."""
        frames = self.frames
        if frames.broken is not None:
            return frames.broken
        return f"{self.address} is shutting down" if frames.shut_down else None

    def suspect(self, chunks: int, seconds: float, now: float) -> bool:
        """A call timed out: whether the link is dropped for it.

        May add a PING, which no call waits for, to what is to be sent.

        Args:
            chunks: how many the link had received when the call was sent.
            seconds: the call's time-out.
            now: the time, as ``monotonic`` has it.
        """
        if self.chunks != chunks or self.ended is not None:
            return False
        if self._asked_after != self.chunks:
            self._asked_after, self._asked_at = self.chunks, now
            self.frames.forget(self.frames.request(FuncID.PING, b"", AS_NOTHING, None, inf))
            return False
        silence = now - self._asked_at
        # The time-out of a call sent before the question does not count.
        return silence >= seconds and (not self.frames.waiting or silence >= SILENCE)

    def silent_reason(self, seconds: float) -> str:
        """Why the link is dropped for a call that timed out after this many seconds."""
        return silent_reason(self.address, seconds)

    def lost_reason(self, error: BaseException | None) -> str:
        """Why the transport lost the link: by this error, or by the peer's close (None)."""
        return lost_reason(self.address, error)

    def end(self, reason: str | IprotoError) -> list[tuple[Any, IprotoError | Unexecuted]]:
        """Ends the link, if it has not ended yet.

        Returns:
            ``(waiter, error)`` of each call in flight.
        """
        if self.ended is not None:
            return []
        self.ended = reason
        shut_down = self.frames.shut_down and isinstance(reason, str)
        return [
            (waiter, Unexecuted(partial) if shut_down else lost_error(reason, may_have_executed))
            for waiter, may_have_executed, partial in self.frames.fail_all()
        ]

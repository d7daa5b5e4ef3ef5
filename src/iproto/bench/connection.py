"""One of a load's connections, and the next one in its place when it has ended."""

from __future__ import annotations

import errno
import selectors
import socket
from contextlib import suppress
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from iproto._fastframe import AS_BODY, AS_BYTES, AS_NOTHING, UNANSWERED
from iproto.client.link import Unexecuted
from iproto.wire import FuncID

if TYPE_CHECKING:
    from collections.abc import Iterable

    from iproto.bench.batches import Batch
    from iproto.bench.workload import Outcome, Plan
    from iproto.client.route import Route
    from iproto.errors import IprotoError

_CHUNK = 262144


class Events(Protocol):
    """A connection's load: what its connections share, and what they report to it."""

    plan: Plan
    outcome: Outcome
    route: Route
    selector: selectors.BaseSelector

    def has_room(self, connection: LoadConnection, now: float) -> None:
        """The connection can take more requests."""

    def connect_failed(self, connection: LoadConnection, error: OSError) -> None:
        """The connection could not be made."""

    def ended(
        self, connection: LoadConnection, reason: str | IprotoError, *, in_order: bool
    ) -> None:
        """The connection is over; in good order if it ended between two replies."""

    def settle(self, batch: Batch, error: Exception | None, results: Any, now: float) -> None:
        """All replies to a batch are there."""


class LoadConnection:
    """A connection of a load.

    Args:
        load: the load.
        number: of the connection, from 0 on.
    """

    def __init__(self, load: Events, number: int) -> None:
        self.number = number
        self.connected = False
        self.in_flight = 0
        """Requests of batches not answered whole, those to be sent again included."""
        self.begun = 0
        """In an open loop: requests sent so far."""
        self.unexecuted: list[Batch] = []
        """Of the connection before: what its server had announced not to execute."""
        self._load = load
        self._sock: socket.socket | None = None
        self._link = load.route.new_link()
        self._frames = self._link.frames
        self._sent = 0  # requests, since it was connected
        self._unsent = memoryview(b"")

    @property
    def answered(self) -> int:
        """Of the requests since it was connected; those before are in the account."""
        return self._frames.answered if self.connected else 0

    def connect(self) -> None:
        """Begins to connect; the load gets ``has_room`` or ``connect_failed``."""
        plan = self._load.plan
        try:
            self._sock = socket.socket(plan.family, socket.SOCK_STREAM)
            self._sock.setblocking(False)
            self._load.route.tune(self._sock)
            begun = self._sock.connect_ex(plan.address)
            if begun not in (0, errno.EINPROGRESS):
                raise OSError(begun, "")
        except OSError as error:
            self.close()
            self._load.connect_failed(self, error)
            return
        self._load.selector.register(self._sock, selectors.EVENT_WRITE, self._on_connected)

    def send(self, batches: Iterable[Batch]) -> None:
        """Sends requests for the first time."""
        count = self._add(batches)
        self.in_flight += count
        self._load.outcome.sent += count
        self._push()

    def resend(self) -> None:
        """Sends what the connection before left unexecuted."""
        batches, self.unexecuted = self.unexecuted, []
        self._load.outcome.resent += self._add(batches)
        self._push()

    def hand_back(self, reason: str | IprotoError, now: float) -> None:
        """Keeps for the next connection what an announced end left unexecuted."""
        for batch, error in self._link.end(reason):
            if not isinstance(error, Unexecuted):
                continue
            rest = batch
            if error.partial is not None:
                results, failure = error.partial
                answered = [
                    place for place in range(batch.count) if results[place] is not UNANSWERED
                ]
                came = [results[place] for place in answered]
                self._load.settle(batch.part(answered), failure, came, now)
                rest = batch.part([n for n in range(batch.count) if results[n] is UNANSWERED])
            self.unexecuted.append(rest)
            self._sent -= rest.count

    def close(self) -> int:
        """Ends the connection; returns how many requests are lost: not answered, nor kept."""
        lost = 0
        if self._sock is not None:
            with suppress(KeyError):
                self._load.selector.unregister(self._sock)
            self._sock.close()
            self._sock = None
        if self.connected:
            self.connected = False
            lost = self._sent - self._frames.answered
            outcome = self._load.outcome
            outcome.answered += self._frames.answered
            outcome.doubled += self._frames.unexpected_replies
            outcome.add_refused(self._frames.refusals)
        self.in_flight = sum(batch.count for batch in self.unexecuted)
        self._sent = 0
        self._unsent = memoryview(b"")
        return lost

    def _on_connected(self, _events: int) -> None:
        assert self._sock is not None
        failure = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            self.close()
            self._load.connect_failed(self, OSError(failure, ""))
            return
        self.connected = True
        self._link = self._load.route.new_link()
        self._frames = self._link.frames
        self._load.selector.modify(self._sock, selectors.EVENT_READ, self._on_event)
        self._load.has_room(self, monotonic())

    def _on_event(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._push()
        if events & selectors.EVENT_READ:
            self._receive()

    def _receive(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._load.ended(self, self._link.lost_reason(error), in_order=False)
            return
        if not data:
            cut = bool(self._frames.bytes_missing)
            how = ConnectionError("it ended in the midst of a reply") if cut else None
            self._load.ended(self, self._link.lost_reason(how), in_order=not cut)
            return
        outcomes = self._link.receive(data)
        now = monotonic()
        for batch, refusal, results in outcomes:
            self.in_flight -= batch.count
            self._load.settle(batch, refusal, results, now)
        fault = self._link.fault
        if fault is None:
            self._load.has_room(self, now)
        else:
            self._load.ended(self, fault, in_order=isinstance(fault, str))

    def _add(self, batches: Iterable[Batch]) -> int:
        """Gives batches to the codec; returns how many requests they are."""
        frames = self._frames
        count = 0
        for batch in batches:
            count += batch.count
            if batch.kind == "read":
                frames.read_many(batch.items, AS_BYTES, batch, inf)
            elif batch.kind == "write":
                frames.replace_many(batch.items, batch, inf)
            elif batch.kind == "ping":
                frames.request(FuncID.PING, b"", AS_NOTHING, batch, inf)
            else:
                assert self._load.plan.call is not None
                func_id, body = self._load.plan.call
                frames.request(func_id, body, AS_BODY, batch, inf)
        self._sent += count
        return count

    def _push(self) -> None:
        """Sends what is built, as far as the socket takes it."""
        assert self._sock is not None
        blocked = bool(self._unsent)
        try:
            while True:
                if not self._unsent:
                    self._unsent = memoryview(self._frames.take())
                    if not self._unsent:
                        break
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent = memoryview(b"")  # receiving finds out how the connection ended
        if blocked != bool(self._unsent):
            more = selectors.EVENT_WRITE if self._unsent else 0
            self._load.selector.modify(self._sock, selectors.EVENT_READ | more, self._on_event)

"""A load on a server: many connections of one process, and an account of every request.

Two kinds. In a closed loop each connection keeps a number of requests on their
way, and sends as many again when all of them are answered: that finds out how
much the server can do. In an open loop requests are due at a fixed rate, whether
the server keeps up or not, and a latency counts from the time that the request
was due, not from when it could be sent: that finds out how long callers wait.
(Counting from the sending would leave out the waits that a slow server causes,
the "coordinated omission".)

The codec builds and matches whole batches, so Python works by the batch. No
asyncio: one selector, and the sockets.
"""

from __future__ import annotations

import errno
import selectors
import socket
from contextlib import suppress
from math import inf
from time import monotonic, process_time
from typing import TYPE_CHECKING, Any

from iproto._fastframe import AS_BODY, AS_BYTES, AS_NOTHING
from iproto.bench.workload import Batch, Dealer, Outcome
from iproto.checks import MAX_UINT32
from iproto.client.arguments import MAX_BODY
from iproto.client.reasons import reason_of
from iproto.client.route import Route
from iproto.errors import ConnectError
from iproto.wire import FuncID
from iproto.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from iproto.bench.workload import Plan
    from iproto.errors import IprotoError

_CHUNK = 262144
# Seconds between two words about the progress.
_TICK = 0.1
# Seconds before a connection that was refused is tried again.
_RETRY = 0.05
# Selectors round a wait up to whole milliseconds; less is not slept but spun.
_SPIN = 0.001
# Requests that one look at the schedule hands out, so that after a pause the
# replies that have come meanwhile are not left lying.
_HANDED_OUT_AT_ONCE = 10_000
# Words to stop after which the last replies are not waited for.
_STOPS_AT_ONCE = 2


class Load:
    """Runs a plan.

    Args:
        plan: what to do.
        progress: told ten times a second how many replies have come.
        words: one word ends the load early; another one, or their end, does so
            without waiting for the last replies.
    """

    def __init__(self, plan: Plan, progress: Callable[[int], None], words: Connection) -> None:
        self.plan = plan
        self.outcome = Outcome()
        self.stops = 0
        """How many words to stop have come."""
        self.selector = selectors.DefaultSelector()
        self.route = Route(plan.target, MAX_BODY, MAX_UINT32)
        self.dealer = Dealer(plan.mix, plan.contents)
        self.connections = [_Connection(self, number) for number in range(plan.connections)]
        self._progress = progress
        self._started = 0.0
        self._sending = False
        self._last_sent = 0.0
        self._handed_out = 0
        self._retries: list[tuple[float, _Connection]] = []
        self._words = words
        self.selector.register(words, selectors.EVENT_READ, self._on_word)

    def connect(self) -> None:
        """Opens all connections.

        Raises:
            ConnectError: one of them could not be opened.
        """
        deadline = monotonic() + self.plan.target.timeout
        for connection in self.connections:
            connection.connect()
        while not self.stops and not all(c.connected for c in self.connections):
            self._reconnect(monotonic())
            self._turn(_RETRY)
            if monotonic() >= deadline:
                raise self._not_connected("no answer in time")

    def run(self) -> Outcome:
        """Sends for the plan's duration, waits for the last replies, and gives the account."""
        outcome = self.outcome
        cpu = process_time()
        self._started = monotonic()
        self._sending = True
        end = self._started + self.plan.duration
        for connection in self.connections:
            self.has_room(connection, self._started)
        tick = self._started
        while not self.stops and (now := monotonic()) < end:
            if now >= tick:
                self._progress(self._answered())
                tick = now + _TICK
            self._reconnect(now)
            wait = min(tick, end) - now
            if self.plan.rate is not None:
                wait = min(wait, self._hand_out(now - self._started, self.plan.rate) - _SPIN)
            self._turn(wait)
        outcome.seconds = monotonic() - self._started
        outcome.in_time = self._answered()
        outcome.cpu_seconds = process_time() - cpu
        self._finish(min(outcome.seconds, self.plan.duration))
        return outcome

    def close(self) -> None:
        """Closes every socket."""
        for connection in self.connections:
            connection.close()
        self.selector.close()

    def _answered(self) -> int:
        return self.outcome.answered + sum(c.answered for c in self.connections)

    def _turn(self, seconds: float) -> None:
        for key, events in self.selector.select(max(0.0, seconds)):
            key.data(events)

    def _on_word(self, _events: int) -> None:
        try:
            self._words.recv()
            self.stops += 1
        except (EOFError, OSError):  # nobody is there any more who wants to know
            self.stops = _STOPS_AT_ONCE
            self.selector.unregister(self._words)

    def _not_connected(self, reason: str) -> ConnectError:
        ready = sum(c.connected for c in self.connections)
        wanted = counted(len(self.connections), "connection")
        return ConnectError(
            f"cannot open {wanted} to {self.plan.target.address}, but {ready}: {reason}"
        )

    def _finish(self, seconds: float) -> None:
        """Waits for the last replies; what was due goes out even now, or waits would be left out.

        Args:
            seconds: from the start; what became due later is not sent.
        """
        timeout = self.plan.target.timeout
        # For what was due; the replies to the last of it may take as long again.
        enough = monotonic() + timeout
        self._sending = self.plan.rate is not None
        all_due = _due(seconds, self.plan.rate or 0)
        reason = "the test was ended without waiting for the last replies"
        while self.stops < _STOPS_AT_ONCE:
            now = monotonic()
            if now >= enough:
                self._sending = False
                if now >= self._last_sent + timeout:
                    reason = f"no reply within {timeout:g} s"
                    break
            if not (self._sending and self.outcome.sent < all_due):
                if not any(c.in_flight for c in self.connections):
                    break
            elif self._handed_out < all_due:
                self._hand_out(seconds, self.plan.rate or 0)
            self._reconnect(now)
            self._turn(_TICK if self._handed_out == all_due else 0)
        self.outcome.unsent = max(0, all_due - self.outcome.sent)
        unanswered = sum(connection.close() for connection in self.connections)
        if unanswered:
            self.outcome.lost += unanswered
            self.outcome.note(reason)

    def _reconnect(self, now: float) -> None:
        if self._retries:
            ready = [c for at, c in self._retries if at <= now]
            self._retries = [(at, c) for at, c in self._retries if at > now]
            for connection in ready:
                connection.connect()

    # The schedule of an open loop: request n, from 0 on, is due (n + 1) / rate seconds
    # after the start, on connection n % connections.

    def _hand_out(self, seconds: float, rate: float) -> float:
        """Gives connections what is due so long after the start; returns how soon more will be."""
        first = self._handed_out
        due = min(_due(seconds, rate), first + _HANDED_OUT_AT_ONCE)
        self.outcome.late += max(0, min(_due(seconds - _SPIN, rate), due) - first)
        self._handed_out = due
        now = monotonic()
        for number in range(first, min(due, first + len(self.connections))):
            self.has_room(self.connections[number % len(self.connections)], now)
        return (due + 1) / rate - seconds

    def _due_on(self, connection: _Connection) -> int:
        """How many requests a connection was given so far."""
        return (self._handed_out - connection.number - 1) // len(self.connections) + 1

    def _due_times(self, connection: _Connection, first: int, count: int) -> tuple[float, ...]:
        """When requests of a connection are due, from its ``first`` on."""
        rate, step = self.plan.rate or 0, len(self.connections)
        start = self._started + (connection.number + 1) / rate
        return tuple(start + place * step / rate for place in range(first, first + count))

    # What connections tell.

    def has_room(self, connection: _Connection, now: float) -> None:
        """A connection can take more: sends what there is to be sent."""
        if not (self._sending and connection.connected):
            return
        if self.plan.rate is None:
            if not connection.in_flight:
                self._last_sent = now
                connection.send(self.plan.depth, (now,))
            return
        waiting = self._due_on(connection) - connection.begun
        count = min(waiting, self.plan.depth - connection.in_flight)
        if count > 0:
            self._last_sent = now
            since = self._due_times(connection, connection.begun, count)
            connection.begun += count
            connection.send(count, since)

    def connect_failed(self, connection: _Connection, error: OSError) -> None:
        """A connection could not be made; before the load has begun, that ends it."""
        if self._started:
            self.outcome.note(f"cannot connect: {reason_of(error)}")
        elif error.errno != errno.EAGAIN:  # a unix socket's queue is full for now
            raise self._not_connected(reason_of(error))
        self._retries.append((monotonic() + _RETRY, connection))

    def ended(self, connection: _Connection, reason: str | IprotoError | None) -> None:
        """A connection is over: in good order (None), lost, or broken by what came on it."""
        heard = connection.answered > 0
        unanswered = connection.close()
        if reason is None:
            self.outcome.handed_back += unanswered
        else:
            self.outcome.lost += unanswered
            self.outcome.wrong += not isinstance(reason, str)
            self.outcome.note(str(reason))
        if self._sending:
            self.outcome.reconnects += 1
            self._retries.append((monotonic() + (0 if heard else _RETRY), connection))

    def settle(self, batch: Batch, error: Exception | None, results: Any, now: float) -> None:
        """All replies to a batch are there."""
        outcome = self.outcome
        if error is not None:
            outcome.note(str(error))
        if batch.expected is not None and results != batch.expected:
            pairs = zip(results, batch.expected, strict=True)  # None: an error came instead
            wrong = sum(got is not None and got != expected for got, expected in pairs)
            if wrong:
                outcome.wrong += wrong
                outcome.note("a read brought another string than the slot was to hold")
        if len(batch.since) == 1:
            outcome.latency.record(now - batch.since[0], batch.count)
        else:
            for since in batch.since:
                outcome.latency.record(now - since)


def _due(seconds: float, rate: float) -> int:
    """How many requests are due so long after the start."""
    return int(seconds * rate + 1e-6)  # 0.29 * 100 is a hair less than 29


class _Connection:
    """One connection, and the next one when it has ended."""

    def __init__(self, load: Load, number: int) -> None:
        self.number = number
        self.connected = False
        self.in_flight = 0  # less those of finished batches
        self.begun = 0  # in an open loop: requests sent so far
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
        """Begins to connect; :class:`Load` hears what comes of it."""
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
            self._load.ended(self, self._link.lost_reason(error))
            return
        if not data:
            cut = self._link.lost_reason(ConnectionError("it ended in the midst of a reply"))
            self._load.ended(self, cut if self._frames.bytes_missing else None)
            return
        outcomes = self._link.receive(data)
        now = monotonic()
        for batch, refusal, results in outcomes:
            self.in_flight -= batch.count
            self._load.settle(batch, refusal, results, now)
        if self._link.fault is not None:
            self._load.ended(self, self._link.fault)
        else:
            self._load.has_room(self, now)

    def send(self, count: int, since: tuple[float, ...]) -> None:
        """Sends this many requests; ``since`` as in :class:`~iproto.bench.workload.Batch`."""
        load, frames = self._load, self._frames
        for kind, number in load.dealer.kinds(count):
            own, since = (since[:number], since[number:]) if len(since) > 1 else (since, since)
            if kind == "read":
                indexes, expected = load.dealer.reads(number)
                frames.read_many(indexes, AS_BYTES, Batch(number, own, expected), inf)
            elif kind == "write":
                frames.replace_many(load.dealer.writes(number), Batch(number, own), inf)
            else:
                self._send_single(kind, number, own)
        self.in_flight += count
        self._sent += count
        load.outcome.sent += count
        self._push()

    def _send_single(self, kind: str, count: int, since: tuple[float, ...]) -> None:
        """Sends requests that the codec has no bulk for."""
        if kind == "ping":
            func_id, body, outcome = int(FuncID.PING), b"", AS_NOTHING
        else:
            assert self._load.plan.call is not None
            func_id, body = self._load.plan.call
            outcome = AS_BODY
        for place in range(count):
            own = since[place : place + 1] if len(since) > 1 else since
            self._frames.request(func_id, body, outcome, Batch(1, own), inf)

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
            self._unsent = memoryview(b"")  # receiving tells how the connection ended
        if blocked != bool(self._unsent):
            more = selectors.EVENT_WRITE if self._unsent else 0
            self._load.selector.modify(self._sock, selectors.EVENT_READ | more, self._on_event)

    def close(self) -> int:
        """Ends the connection; returns how many of its requests are not answered."""
        unanswered = 0
        if self._sock is not None:
            with suppress(KeyError):
                self._load.selector.unregister(self._sock)
            self._sock.close()
            self._sock = None
        if self.connected:
            self.connected = False
            unanswered = self._sent - self._frames.answered
            outcome = self._load.outcome
            outcome.answered += self._frames.answered
            outcome.doubled += self._frames.unexpected_replies
            outcome.add_refused(self._frames.refusals)
        self.in_flight = self._sent = 0
        self._unsent = memoryview(b"")
        return unanswered

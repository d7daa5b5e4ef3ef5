"""A load on a server: many connections of one process, and an account of every request.

Two kinds. In a closed loop each connection keeps a number of requests in flight, and
sends as many again when all of them are answered: that finds out how much the server
can do. In an open loop requests are due at a fixed rate, whether the server keeps up
or not, and a latency counts from the time that the request was due, not from when it
could be sent: that finds out how long callers wait. (Counting from the sending would
leave out the waits that a slow server causes, the "coordinated omission".)

The codec builds and matches whole batches, so Python works by the batch. No
asyncio: one selector, and the sockets.
"""

from __future__ import annotations

import errno
import selectors
from time import monotonic, process_time
from typing import TYPE_CHECKING, Any

from iproto.bench.batches import Dealer
from iproto.bench.connection import LoadConnection
from iproto.bench.schedule import SPIN, Schedule
from iproto.bench.workload import Outcome
from iproto.checks import MAX_UINT32
from iproto.client.arguments import MAX_BODY
from iproto.client.reasons import reason_of
from iproto.client.route import Route
from iproto.errors import ConnectError
from iproto.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from iproto.bench.batches import Batch
    from iproto.bench.workload import Plan
    from iproto.errors import IprotoError

# Seconds between two reports of the progress.
_TICK = 0.1
# Seconds before a connection that was refused is tried again.
_RETRY = 0.05
# Stop messages after which the last replies are not waited for.
_STOPS_AT_ONCE = 2


class Load:
    """Runs a plan.

    Args:
        plan: what to do.
        progress: called ten times a second with the number of replies so far.
        messages: one message ends the load early; another one, or their end, does so
            without waiting for the last replies.
    """

    def __init__(self, plan: Plan, progress: Callable[[int], None], messages: Connection) -> None:
        self.plan = plan
        self.outcome = Outcome()
        self.stops = 0
        """How many messages to stop have come."""
        self.selector: selectors.BaseSelector = selectors.DefaultSelector()
        self.route = Route(plan.target, MAX_BODY, MAX_UINT32)
        self._dealer = Dealer(plan.mix, plan.contents)
        self._schedule = None if plan.rate is None else Schedule(plan.rate, plan.connections)
        self._connections = [LoadConnection(self, number) for number in range(plan.connections)]
        self._progress = progress
        self._started = 0.0
        self._sending = False
        self._last_sent = 0.0
        self._retries: list[tuple[float, LoadConnection]] = []
        self._messages = messages
        self.selector.register(messages, selectors.EVENT_READ, self._on_message)

    def connect(self) -> None:
        """Opens all connections.

        Raises:
            ConnectError: one of them could not be opened.
        """
        deadline = monotonic() + self.plan.target.timeout
        for connection in self._connections:
            connection.connect()
        while not self.stops and not all(c.connected for c in self._connections):
            self._reconnect(monotonic())
            self._turn(_RETRY)
            if monotonic() >= deadline:
                raise self._not_connected("no answer in time")

    def run(self) -> Outcome:
        """Sends for the plan's duration, waits for the last replies, and gives the account."""
        outcome = self.outcome
        schedule = self._schedule
        cpu = process_time()
        self._started = monotonic()
        if schedule is not None:
            schedule.started = self._started
        self._sending = True
        end = self._started + self.plan.duration
        for connection in self._connections:
            self.has_room(connection, self._started)
        tick = self._started
        while not self.stops and (now := monotonic()) < end:
            if now >= tick:
                self._progress(self._answered())
                tick = now + _TICK
            self._reconnect(now)
            wait = min(tick, end) - now
            if schedule is not None:
                wait = min(wait, self._hand_out(schedule, now - self._started) - SPIN)
            self._turn(wait)
        outcome.seconds = monotonic() - self._started
        outcome.in_time = self._answered()
        outcome.cpu_seconds = process_time() - cpu
        self._finish(min(outcome.seconds, self.plan.duration))
        return outcome

    def close(self) -> None:
        """Closes every socket."""
        for connection in self._connections:
            connection.close()
        self.selector.close()

    def _answered(self) -> int:
        return self.outcome.answered + sum(c.answered for c in self._connections)

    def _turn(self, seconds: float) -> None:
        for key, events in self.selector.select(max(0.0, seconds)):
            key.data(events)

    def _on_message(self, _events: int) -> None:
        try:
            self._messages.recv()
            self.stops += 1
        except (EOFError, OSError):  # nobody waits for the outcome any more
            self.stops = _STOPS_AT_ONCE
            self.selector.unregister(self._messages)

    def _not_connected(self, reason: str) -> ConnectError:
        ready = sum(c.connected for c in self._connections)
        wanted = counted(len(self._connections), "connection")
        return ConnectError(
            f"cannot open {wanted} to {self.plan.target.address}, but {ready}: {reason}"
        )

    def _hand_out(self, schedule: Schedule, seconds: float) -> float:
        """Sends what is due this long after the start; returns how soon more will be."""
        numbers = schedule.hand_out(seconds)
        now = monotonic()
        for number in numbers:
            self.has_room(self._connections[number], now)
        return schedule.until_next(seconds)

    def _finish(self, seconds: float) -> None:
        """Waits for the last replies; what was due goes out even now, or waits would be left out.

        Args:
            seconds: from the start; what became due later is not sent.
        """
        timeout = self.plan.target.timeout
        # For what was due; the replies to the last of it may take as long again.
        enough = monotonic() + timeout
        schedule = self._schedule
        self._sending = schedule is not None
        all_due = 0 if schedule is None else schedule.due(seconds)
        reason = "the test was ended without waiting for the last replies"
        while self.stops < _STOPS_AT_ONCE:
            now = monotonic()
            if now >= enough:
                self._sending = False
                if now >= self._last_sent + timeout:
                    reason = f"no reply within {timeout:g} s"
                    break
            handed_out = schedule is None or schedule.handed_out >= all_due
            if not (self._sending and self.outcome.sent < all_due):
                if not any(c.in_flight for c in self._connections):
                    break
            elif schedule is not None and not handed_out:
                self._hand_out(schedule, seconds)
            self._reconnect(now)
            self._turn(_TICK if handed_out else 0)
        if schedule is not None:
            self.outcome.late = schedule.late
        self.outcome.unsent = max(0, all_due - self.outcome.sent)
        lost = sum(c.close() + c.in_flight for c in self._connections)
        if lost:
            self.outcome.lost += lost
            self.outcome.note(reason)

    def _reconnect(self, now: float) -> None:
        if self._retries:
            ready = [c for at, c in self._retries if at <= now]
            self._retries = [(at, c) for at, c in self._retries if at > now]
            for connection in ready:
                connection.connect()

    # Events of connections.

    def has_room(self, connection: LoadConnection, now: float) -> None:
        """A connection can take more: sends what there is to be sent."""
        if not connection.connected:
            return
        if connection.unexecuted:
            connection.resend()
        if not self._sending:
            return
        if self._schedule is None:
            if not connection.in_flight:
                self._last_sent = now
                connection.send(self._dealer.deal(self.plan.depth, (now,)))
            return
        waiting = self._schedule.handed_to(connection.number) - connection.begun
        count = min(waiting, self.plan.depth - connection.in_flight)
        if count > 0:
            self._last_sent = now
            since = self._schedule.due_times(connection.number, connection.begun, count)
            connection.begun += count
            connection.send(self._dealer.deal(count, since))

    def connect_failed(self, connection: LoadConnection, error: OSError) -> None:
        """A connection could not be made; before the load has begun, that ends it."""
        if self._started:
            self.outcome.note(f"cannot connect: {reason_of(error)}")
        elif error.errno != errno.EAGAIN:  # a unix socket's queue is full for now
            raise self._not_connected(reason_of(error))
        self._retries.append((monotonic() + _RETRY, connection))

    def ended(
        self, connection: LoadConnection, reason: str | IprotoError, *, in_order: bool
    ) -> None:
        """A connection is over.

        Args:
            connection: the connection.
            reason: why; an error where its stream could not be read on.
            in_order: whether it ended between two replies.
        """
        now = monotonic()
        had_replies = connection.answered > 0
        connection.hand_back(reason, now)
        lost = connection.close()
        self.outcome.lost += lost
        self.outcome.wrong += not isinstance(reason, str)
        if lost or not in_order:
            self.outcome.note(str(reason))
        if self._sending or connection.unexecuted:
            self.outcome.reconnects += 1
            self._retries.append((now + (0 if had_replies else _RETRY), connection))

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

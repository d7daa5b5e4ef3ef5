"""The blocking client's connection, which threads share.

All of it is guarded by one lock, ``Channel.lock``. A thread that calls builds
its frames and sends them itself, as far as the socket takes them at once; then
it waits. One waiting thread at a time leads: it alone polls the socket, without
the lock, sends what could not be sent at once, and settles the calls of all
threads whose replies it receives. The others follow: each sleeps on a lock of
its own until its call is settled, or until the leader, who is done, hands over.
"""

from __future__ import annotations

import os
import socket
import threading
import weakref
from contextlib import suppress
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from iproto._fastframe import AS_BYTES, AS_NOTHING
from iproto.polling import new_poller
from iproto.route import (
    closed_error,
    ended_error,
    lost_error,
    lost_reason,
    silent_reason,
    unconnected_timeout,
    unusable_error,
)
from iproto.wire import FuncID

if TYPE_CHECKING:
    from collections.abc import Callable

    from iproto.errors import IprotoError
    from iproto.route import Route
    from iproto.url import Target

# Bytes taken from the socket at once: some 250 replies of full slots, and below
# what the allocator gets from the system for each anew.
_CHUNK = 65536


class Lock:
    """The lock of a client: one that knows whether this thread has it.

    A signal handler may raise at any instruction, between taking a lock and
    noting that it was taken too; so what counts is what the lock itself says.
    """

    def __init__(self) -> None:
        self._lock: Any = threading.RLock()
        self.acquire = self._lock.acquire
        self.release = self._lock.release
        self.condition = threading.Condition(self._lock)

    def __enter__(self) -> None:
        if self.is_ours():
            raise RuntimeError(
                "this thread is inside a call of this client already: a destructor or a signal "
                "handler cannot make another one with it"
            )
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        if self.is_ours():
            self._lock.release()

    def is_ours(self) -> bool:
        """Whether this thread has the lock (threading.Condition asks it the same way)."""
        return bool(self._lock._is_owned())

    def take_again(self) -> None:
        """Takes the lock, whatever a signal handler raises meanwhile; then raises that."""
        raised: BaseException | None = None
        while not self.is_ours():
            try:
                self._lock.acquire()
            except BaseException as error:
                raised = error
        if raised is not None:
            raise raised


class Waiter:
    """What a thread waits for: a call's outcome, or a socket that takes more."""

    __slots__ = ("asleep", "done", "error", "result")

    def __init__(self) -> None:
        self.done = False
        self.error: BaseException | None = None
        self.result: Any = None
        # Held while its thread follows; released to wake it.
        self.asleep: threading.Lock | None = None

    def wake(self) -> None:
        """Wakes the thread, if it sleeps."""
        if self.asleep is not None:
            self.asleep.release()
            self.asleep = None


class Link:
    """One connection. Every method is called holding the channel's lock."""

    def __init__(self, owner: Channel, sock: socket.socket) -> None:
        self._owner = owner
        self._sock = sock
        self.frames = owner.route.new_frames()
        # Chunks received so far: whether it grew tells silence from slowness.
        self.chunks = 0
        # What `chunks` was when the peer was last asked for a sign of life.
        self._asked_at = -1
        # Set when no call may be added any more: why.
        self.ended: str | IprotoError | None = None
        # Taken from the codec, not yet by the socket.
        self._unsent = memoryview(b"")
        # Who waits for `_unsent` to be empty.
        self._gate: list[Waiter] = []
        # Whether a thread polls just now, without the lock; for sending, too?
        self._leading = False
        self._sending = False
        # Threads that sleep, oldest first.
        self._followers: dict[Waiter, None] = {}
        # Wakes the leader: there is more to send, or the link ended.
        self._bell, self._button = socket.socketpair()
        self._bell.setblocking(False)
        self._button.setblocking(False)
        self._poll = new_poller(sock, self._bell)

    def is_ready(self) -> bool:
        """Whether a call may be added; looks for an end that nobody has seen."""
        if not self._leading:
            self._handle(*self._poll.wait(out=bool(self._unsent), seconds=0))
        return self.ended is None and not self._unsent

    def wait_ready(self, deadline: float) -> None:
        """Waits until the socket takes more, the link ends, or the deadline passes."""
        waiter = Waiter()
        self._gate.append(waiter)
        self.wait(waiter, deadline)
        if not waiter.done:
            self._gate.remove(waiter)

    def push(self) -> None:
        """Sends what is built, as far as the socket takes it at once."""
        while self.ended is None:
            if not self._unsent:
                self._unsent = memoryview(self.frames.take())
                if not self._unsent:
                    gate, self._gate = self._gate, []
                    for waiter in gate:
                        self._settle(waiter, None, None)
                    return
            try:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
            except BlockingIOError:
                if self._leading and not self._sending:
                    self._ring()
                return
            except OSError as failure:
                self.end(lost_reason(self._owner.route.target, failure))

    def wait(self, waiter: Waiter, deadline: float) -> None:
        """Waits until the waiter is done or the deadline passes; gives up the lock meanwhile."""
        try:
            while not waiter.done:
                left = deadline - monotonic()
                if left <= 0:
                    return
                if self._leading:
                    self._follow(waiter, left)
                else:
                    self._lead(left)
        finally:
            if self._followers and not self._leading:
                follower = next(iter(self._followers))
                del self._followers[follower]
                follower.wake()  # ... to lead

    def _follow(self, waiter: Waiter, seconds: float) -> None:
        asleep = threading.Lock()
        asleep.acquire()
        try:
            waiter.asleep = asleep
            self._followers[waiter] = None
            try:
                self._owner.lock.release()
                asleep.acquire(timeout=seconds)
            finally:
                self._owner.lock.take_again()
        finally:
            self._followers.pop(waiter, None)
            waiter.asleep = None

    def _lead(self, seconds: float) -> None:
        readable = writable = rung = False
        try:
            self._leading = True
            self._sending = bool(self._unsent)
            try:
                self._owner.lock.release()
                readable, writable, rung = self._poll.wait(out=self._sending, seconds=seconds)
            finally:
                self._owner.lock.take_again()
        finally:
            self._leading = self._sending = False
            if self.ended is not None:
                self._close()
        self._handle(readable, writable, rung)

    def _handle(self, readable: bool, writable: bool, rung: bool) -> None:
        if rung and self.ended is None:
            self._bell.recv(_CHUNK)
        if writable:
            self.push()
        if readable and self.ended is None:
            self._receive()

    def _receive(self) -> None:
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as failure:
            self.end(lost_reason(self._owner.route.target, failure))
            return
        if not data:
            self.end(lost_reason(self._owner.route.target, None))
            return
        if self.chunks == 0:
            self._owner.route.backoff.succeeded()
        self.chunks += 1
        for waiter, error, result in self.frames.feed(data):
            self._settle(waiter, error, result)
        if self.frames.broken is not None:
            self.end(self.frames.broken)

    def _settle(self, waiter: Waiter, error: BaseException | None, result: Any) -> None:
        waiter.error = error
        waiter.result = result
        waiter.done = True
        self._followers.pop(waiter, None)
        waiter.wake()

    def suspect(self, seconds: float) -> bool:
        """A call has timed out in silence: whether the connection is dropped for it.

        The first time the peer is asked for a sign of life, with a PING that
        nobody waits for: calls beside this one may just take longer. If another
        call times out and not one byte has come since, the peer is gone.
        """
        if self._asked_at == self.chunks:
            self.end(silent_reason(self._owner.route.target, seconds))
            return True
        self._asked_at = self.chunks
        self.frames.forget(self.frames.request(FuncID.PING, b"", AS_NOTHING, None, inf))
        self.push()
        return False

    def end(self, reason: str | IprotoError) -> None:
        """Fails all that is in flight, and closes; the first reason counts."""
        if self.ended is not None:
            return
        self.ended = reason
        self._owner.drop(self)
        for waiter, may_have_executed in self.frames.fail_all():
            self._settle(waiter, lost_error(reason, may_have_executed), None)
        for waiter in self._gate:
            self._settle(waiter, None, None)
        self._gate = []
        if self._leading:
            self._ring()  # the leader closes: a polled socket must not be closed
        else:
            self._close()

    def abandon(self) -> None:
        """Closes our copies of the sockets, and nothing else: they are another process's."""
        self._close()

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # it rings already
            self._button.send(b"\0")

    def _close(self) -> None:
        self._sock.close()
        self._bell.close()
        self._button.close()


class _Attempt:
    """One attempt to connect, whose outcome all that wait for it share."""

    def __init__(self) -> None:
        # The link while it is tried, and when it was found good.
        self.link: Link | None = None
        self.made: Link | None = None
        self.make_error: Callable[[], IprotoError] | None = None

    def check(self, target: Target) -> None:
        """Raises if the attempt failed, or made a link that has ended since."""
        if self.make_error is not None:
            raise self.make_error()
        if self.made is not None and not self.made.is_ready() and self.made.ended is not None:
            raise unusable_error(target, self.made.ended)


# All that there are, for forked children.
_channels: weakref.WeakSet[Channel] = weakref.WeakSet()


def _after_fork() -> None:
    for channel in list(_channels):
        channel.start_anew()


os.register_at_fork(after_in_child=_after_fork)


class Channel:
    """The one lasting connection of a blocking client: a link, or the next one.

    Args:
        route: the server, and what is known of it.
    """

    def __init__(self, route: Route) -> None:
        self.route = route
        self.lock = Lock()
        self.link: Link | None = None
        self._closed = False
        self._attempt: _Attempt | None = None
        # Notified when an attempt ends, and on closing.
        self._changed = self.lock.condition
        self._pause: Callable[[float], object] = self._changed.wait  # a seam for tests
        _channels.add(self)

    # All of these are called holding the lock, close() apart.

    def check_open(self) -> None:
        """Raises if the client is closed."""
        if self._closed:
            raise closed_error(may_have_executed=False)

    def opened(self, deadline: float, seconds: float) -> Link:
        """Waits for a link that calls may be added to; connects if there is none."""
        while True:
            self.check_open()
            if self.link is not None and self.link.is_ready():
                return self.link
            left = deadline - monotonic()
            if left <= 0:
                raise unconnected_timeout(self.route, seconds)
            if self.link is not None:
                self.link.wait_ready(deadline)
            elif self._attempt is not None:
                attempt = self._attempt
                self._changed.wait(left)
                attempt.check(self.route.target)
            else:
                attempt = self._connect(deadline, seconds)
                attempt.check(self.route.target)
                # As it is: to look again whether it is still there could find that
                # it is not, and cost this call another attempt.
                if attempt.made is not None and attempt.made.ended is None:
                    return attempt.made

    def _connect(self, deadline: float, seconds: float) -> _Attempt:
        """One attempt, the backoff before it included, which other threads may wait for."""
        self._attempt = attempt = _Attempt()
        try:
            while (delay := self.route.backoff.delay()) > 0:
                left = deadline - monotonic()
                if left <= 0:
                    raise unconnected_timeout(self.route, seconds)
                self._pause(min(delay, left))
                self.check_open()
            try:
                attempt.made = self.link = self._new_link(attempt, deadline)
            except Exception as error:
                if monotonic() >= deadline:
                    # Not theirs: others may have more time than this thread had.
                    self.route.backoff.failed("no answer in time")
                    raise unconnected_timeout(self.route, seconds) from None
                attempt.make_error = self.route.failed(error)
        finally:
            self._attempt = None
            self._changed.notify_all()
        return attempt

    def _new_link(self, attempt: _Attempt, deadline: float) -> Link:
        try:
            self.lock.release()
            sock = self._dial(deadline)
        finally:
            self.lock.take_again()
        link = Link(self, sock)
        attempt.link = link
        try:
            self.check_open()
            if link.frames.mailru is None:
                probe = Waiter()
                link.frames.read(0, AS_BYTES, probe, deadline)
                link.push()
                link.wait(probe, deadline)
                if not probe.done:
                    raise TimeoutError
                self.route.probed(link.frames, probe.error)
            if link.ended is not None:
                raise ended_error(link.ended)
        except BaseException:
            link.end("the client gave the connection up")
            raise
        return link

    def _dial(self, deadline: float) -> socket.socket:
        """A connected socket, without the lock."""
        target = self.route.target
        places: list[tuple[Any, ...]]
        if target.path is not None:
            places = [(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", target.path)]
        else:
            places = list(socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM))
        last: OSError | None = None
        while places:
            family, kind, number, _, address = places.pop(0)
            left = deadline - monotonic()
            if left <= 0:
                raise TimeoutError
            sock = socket.socket(family, kind, number)
            try:
                # One address that swallows everything must leave time for the next.
                sock.settimeout(left / (1 + len(places)))
                sock.connect(address)
                self.route.tune(sock)
                sock.setblocking(False)
            except OSError as error:
                sock.close()
                last = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise last or OSError("the name has no address")

    def start_anew(self) -> None:
        """In a forked child: the link is the parent's, and so are its replies."""
        link, self.link = self.link, None
        self.lock = Lock()
        self._changed = self.lock.condition
        self._pause = self._changed.wait
        self._attempt = None
        if link is not None:
            link.abandon()

    def drop(self, link: Link) -> None:
        """A link ended."""
        if self.link is link:
            self.link = None
            assert link.ended is not None
            self.route.ended(link.ended, heard=link.chunks > 0)

    def close(self) -> None:
        """Fails all that is in flight or waits, and ends the link."""
        with self.lock:
            self._closed = True
            for link in (self.link, self._attempt.link if self._attempt else None):
                if link is not None:
                    link.end(closed_error(may_have_executed=True))
            self._changed.notify_all()

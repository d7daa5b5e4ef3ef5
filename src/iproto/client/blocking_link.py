"""The blocking client's connection, which threads share.

All of it is guarded by one lock, ``Channel.lock``. A thread that calls builds
its frames and sends them itself, as far as the socket takes them at once; then
it waits. One waiting thread at a time leads: it alone polls the socket, without
the lock, sends what could not be sent at once, and settles the calls of all
threads whose replies it receives. The others follow: each sleeps on a lock of
its own until its call is settled, or until the leader, who is done, hands over.

A signal's handler may raise after any call that the main thread makes, even in
a ``finally``. So the lock is given up and taken back by one call each, of C, the
second of which nothing interrupts; whoever is done hands over once more if that
was interrupted; and a link is given up when an exception cut off a transfer.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from math import inf
from os import getpid
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from iproto._fastframe import AS_BYTES, AS_NOTHING
from iproto.client.polling import new_poller
from iproto.client.route import (
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

    from iproto.client.route import Route
    from iproto.client.url import Target
    from iproto.errors import IprotoError

_T = TypeVar("_T")

# Bytes taken from the socket at once: some 250 replies of full slots, and below
# what the allocator gets from the system for each anew.
_CHUNK = 65536


class _Lock(Protocol):
    """A ``threading.RLock``, with what ``threading.Condition`` too uses of it."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...
    def __enter__(self) -> bool: ...
    def __exit__(self, *exc_info: object) -> None: ...

    def _is_owned(self) -> bool:
        """Whether this thread holds it."""

    def _acquire_restore(self, state: tuple[int, int], /) -> None:
        """Takes it, so many times, for a thread; unlike acquire(), no signal interrupts it."""


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
        """Wakes the thread, if it sleeps; it may be called again."""
        asleep = self.asleep
        if asleep is not None and asleep.locked():
            asleep.release()


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
        try:
            self._push()
        except BaseException:
            self._give_up()
            raise

    def _push(self) -> None:
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
            try:
                self._wait(waiter, deadline)
            finally:
                self._hand_over()
        except BaseException:
            self._hand_over()  # again: the exception may have come in its midst
            raise

    def _wait(self, waiter: Waiter, deadline: float) -> None:
        while not waiter.done:
            if self.ended is not None:  # and its outcome got lost in an interrupted transfer
                self._settle(waiter, lost_error(self.ended, True), None)
                return
            left = deadline - monotonic()
            if left <= 0:
                return
            if self._leading:
                self._follow(waiter, left)
            else:
                self._lead(left)

    def _hand_over(self) -> None:
        """Wakes one of those who follow nobody any more, to lead."""
        if self._followers and not self._leading:
            next(iter(self._followers)).wake()

    def _follow(self, waiter: Waiter, seconds: float) -> None:
        lock = self._owner.lock
        held = (1, get_ident())
        asleep = threading.Lock()
        asleep.acquire()
        try:
            waiter.asleep = asleep
            self._followers[waiter] = None
            try:
                lock.release()
                asleep.acquire(timeout=seconds)
            finally:
                lock._acquire_restore(held)
        finally:
            self._followers.pop(waiter, None)
            waiter.asleep = None

    def _lead(self, seconds: float) -> None:
        lock = self._owner.lock
        held = (1, get_ident())
        readable = writable = rung = False
        try:
            self._leading = True
            self._sending = bool(self._unsent)
            try:
                lock.release()
                readable, writable, rung = self._poll.wait(out=self._sending, seconds=seconds)
            finally:
                lock._acquire_restore(held)
        finally:
            self._leading = self._sending = False
            if self.ended is not None:
                self.close()
        self._handle(readable, writable, rung)

    def _handle(self, readable: bool, writable: bool, rung: bool) -> None:
        try:
            self._transfer(readable, writable, rung)
        except BaseException:
            self._give_up()
            raise

    def _transfer(self, readable: bool, writable: bool, rung: bool) -> None:
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
        waiter.wake()
        self._followers.pop(waiter, None)

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

    def _give_up(self) -> None:
        """A transfer was cut off: nobody knows which bytes are sent, which replies seen."""
        self.end(f"the connection to {self._owner.route.target.address} was given up: interrupted")

    def end(self, reason: str | IprotoError) -> None:
        """Fails all that is in flight, and closes; the first reason counts."""
        if self.ended is not None:
            return
        self.ended = reason
        try:
            self._owner.drop(self)
            for waiter, may_have_executed in self.frames.fail_all():
                self._settle(waiter, lost_error(reason, may_have_executed), None)
            for waiter in self._gate:
                self._settle(waiter, None, None)
            self._gate = []
        finally:
            for follower in [*self._followers]:
                follower.wake()  # those whose outcome got lost see the end
            if self._leading:
                self._ring()  # the leader closes: a polled socket must not be closed
            else:
                self.close()

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # it rings already
            self._button.send(b"\0")

    def close(self) -> None:
        """Gives the files back, and says nothing to anybody."""
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


class Channel:
    """The one lasting connection of a blocking client: a link, or the next one.

    Args:
        route: the server, and what is known of it.
    """

    def __init__(self, route: Route) -> None:
        self.route = route
        self.pid = getpid()
        lock = threading.RLock()
        self.lock = cast("_Lock", lock)
        # Threads inside locked().
        self._inside: set[int] = set()
        # Those that other processes have instead, after a fork.
        self._heirs: dict[int, Channel] = {}
        self.link: Link | None = None
        self._closed = False
        self._attempt: _Attempt | None = None
        # Notified when an attempt ends, and on closing.
        self._changed = threading.Condition(lock)
        self._pause: Callable[[float], object] = self._wait_change  # a seam for tests

    def locked(self, work: Callable[[Channel], _T]) -> _T:
        """What the work returns, done with the lock.

        Raises:
            RuntimeError: this thread does such work already, and is in a signal
                handler or a ``__del__`` that came in its midst.
        """
        thread = get_ident()
        if thread in self._inside:
            raise RuntimeError(
                "this thread is inside a call of this very Client already: "
                "use another Client in signal handlers and in __del__"
            )
        try:
            self._inside.add(thread)
            with self.lock:
                return work(self)
        finally:
            self._inside.discard(thread)

    def heir(self) -> Channel:
        """What this process has instead of its parent's channel, which a fork copied.

        The link's socket is the parent's still, and the lock's holder may be a
        thread that is not here.
        """
        new = Channel(self.route)
        new._closed = self._closed
        heir = self._heirs.setdefault(new.pid, new)  # all threads get the same
        for link in (self.link, self._attempt.link if self._attempt else None):
            if link is not None:
                link.close()
        return heir

    # All of these are called holding the lock.

    def _wait_change(self, seconds: float) -> None:
        """Waits until an attempt ends, or the client is closed; gives up the lock meanwhile."""
        held = (1, get_ident())
        try:
            self._changed.wait(seconds)
        finally:
            if not self.lock._is_owned():
                self.lock._acquire_restore(held)

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
                self._wait_change(left)
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
            try:
                self._changed.notify_all()
            except BaseException:
                self._changed.notify_all()
                raise
        return attempt

    def _new_link(self, attempt: _Attempt, deadline: float) -> Link:
        held = (1, get_ident())
        sock: socket.socket | None = None
        try:
            try:
                self.lock.release()
                sock = self._dial(deadline)
            finally:
                self.lock._acquire_restore(held)
            link = Link(self, sock)
        except BaseException:
            if sock is not None:
                sock.close()
            raise
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

    def drop(self, link: Link) -> None:
        """A link ended."""
        if self.link is link:
            self.link = None
            assert link.ended is not None
            self.route.ended(link.ended, heard=link.chunks > 0)

    def close(self) -> None:
        """Fails all that is in flight or waits, and ends the link."""
        self._closed = True
        for link in (self.link, self._attempt.link if self._attempt else None):
            if link is not None:
                link.end(closed_error(may_have_executed=True))
        self._changed.notify_all()

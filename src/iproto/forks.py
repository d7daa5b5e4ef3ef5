"""A child process of a server has nothing of the server.

``os.fork``, and all that forks without an exec (``multiprocessing`` up to
Python 3.13), copies everything into the child: listening sockets, clients'
connections, the event loop's epoll, which both processes would change, the
storage's memory and file with its lock. What serves registers itself here as a
Holder, and the child lets go of all of that before any of its own code runs.

A child that is made with an exec (``subprocess``) gets nothing, for the
descriptors of a server are not inheritable.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import weakref
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Iterator

logger = logging.getLogger("iproto.server")


class Holder(Protocol):
    """What has descriptors, or more, that a child must not have."""

    def descriptors(self) -> Iterable[int]:
        """Those to close in a child."""
        ...

    def serves(self, storage: object) -> bool:
        """Whether it is a server of the storage."""
        ...

    def forget(self) -> None:
        """In a child, once they are closed: gives up everything else."""
        ...


_holders: weakref.WeakSet[Holder] = weakref.WeakSet()
_signals: set[int] = set()


def register(holder: Holder) -> None:
    """From now on, as long as it lives, the holder's things are closed in children."""
    _holders.add(holder)


def is_served(storage: object) -> bool:
    """Whether a server of this process serves the storage."""
    return any(holder.serves(storage) for holder in _holders)


def register_signals(*numbers: int) -> None:
    """These signals have handlers of the server's; in children they get the default ones."""
    _signals.update(numbers)


def same_file(fd: int) -> Iterator[int]:
    """The descriptors of this process for the file that ``fd`` is, ``fd`` included.

    ``mmap`` keeps a copy of the descriptor that it maps, which nothing else tells.
    """
    yield fd
    found = os.fstat(fd)
    # Elsewhere than on Linux there is /dev/fd.
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):
            if int(name) != fd and os.path.samestat(found, os.fstat(int(name))):
                yield int(name)


def _in_child() -> None:
    """Closes the descriptors in a child process.

    /dev/null takes the place of each, so that no number is used anew while an
    object of the parent's, which the child has too, may still close it.
    """
    if not (_holders or _signals):
        return
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    holders = list(_holders)
    for fd in [fd for holder in holders for fd in holder.descriptors()]:
        with contextlib.suppress(OSError):
            os.dup2(null, fd, inheritable=False)
    for holder in holders:
        holder.forget()
    os.close(null)
    _holders.clear()
    if _signals:
        # The pipe that wakes the event loop is the parent's: a signal to the
        # child would seem to be one to the parent.
        signal.set_wakeup_fd(-1)
    for number in _signals:
        is_interrupt = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)
    _signals.clear()


def abandon_loop(loop: asyncio.AbstractEventLoop) -> None:
    """In a child: an event loop of the parent's watches nothing, and ends the child when it runs.

    A user function whose child returns into the server would have it served twice.
    """
    any_loop: Any = loop
    uvloop_epoll = getattr(any_loop, "_get_backend_id", None)
    with contextlib.suppress(AttributeError, OSError, ValueError), select.epoll() as nothing:
        watched = any_loop._selector.fileno() if uvloop_epoll is None else uvloop_epoll()
        os.dup2(nothing.fileno(), watched, inheritable=False)
    with contextlib.suppress(RuntimeError):  # closed, or another thread's, which the child has not
        loop.call_soon(_end_child)


def _end_child() -> None:
    logger.error(
        "process %d, the child of a user function that called fork, came back into the server; "
        "it ends here: end it with os._exit",
        os.getpid(),
    )
    logging.shutdown()
    os._exit(1)


os.register_at_fork(after_in_child=_in_child)

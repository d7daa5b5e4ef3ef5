"""Readiness, watchdog and listening sockets of a service of systemd.

The whole of it is a few variables and datagrams; see sd_notify(3),
sd_listen_fds(3) and sd_watchdog_enabled(3). Without systemd nothing happens.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time

from iproto.address import address_of
from iproto.errors import ConfigError

logger = logging.getLogger("iproto.server")

# The first descriptor that systemd passes.
_FIRST_FD = 3


def notify(*fields: str) -> None:
    """Notifies the service manager, if there is one.

    Args:
        fields: ``READY=1`` and the like; they go in one message.
    """
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where:
        return
    if where.startswith("@"):  # a name of Linux's, in no file system
        where = "\0" + where[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(where)
            sock.sendall("\n".join(fields).encode())
    except OSError as error:
        logger.warning("cannot notify systemd: %s", error.strerror)


def notify_reloading() -> None:
    """Notifies it that a restart of the workers begins; ``READY=1`` is to follow."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notify("RELOADING=1", f"MONOTONIC_USEC={now}")


async def feed_watchdog() -> None:
    """Notifies ``WATCHDOG=1`` twice as often as asked for, while the running loop runs.

    Returns at once if nobody asks for it.
    """
    asked = os.environ.get("WATCHDOG_USEC", "")
    if not asked.isdecimal() or int(asked) == 0 or not _is_for_us("WATCHDOG_PID", default=True):
        return
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(int(asked) / 2e6)


def inherited_listeners() -> list[socket.socket]:
    """The listening sockets that systemd has passed to this process; often none.

    Raises:
        ConfigError: something else was passed.
    """
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    sockets = []
    for position, fd in enumerate(_inherited_fds()):
        name = names[position] if position < len(names) and names[position] else "unnamed"
        os.set_inheritable(fd, False)
        try:
            sock = socket.socket(fileno=fd)
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise ConfigError(
                    f"descriptor {fd} ({name}), which systemd passed, does not listen; "
                    "the socket's unit needs ListenStream= and Accept=no"
                )
        except OSError as error:
            raise ConfigError(
                f"descriptor {fd} ({name}), which systemd passed, is no socket: {error.strerror}"
            ) from None
        sock.setblocking(False)
        logger.info("%s (%s) comes from systemd; --bind is not used", _where(sock), name)
        sockets.append(sock)
    return sockets


def is_inherited(sock: socket.socket) -> bool:
    """Whether a socket is one that systemd has passed: its path is not ours to remove."""
    return sock.fileno() in _inherited_fds()


def _where(sock: socket.socket) -> str:
    return str(address_of(sock))


def _inherited_fds() -> range:
    """The variables stay as they are: an upgrade in place goes by them, too.

    Children inherit them, but not the number of the process that they are for.
    """
    if not _is_for_us("LISTEN_PID", default=False):
        return range(0)
    count = os.environ.get("LISTEN_FDS", "")
    if not count.isdecimal():
        raise ConfigError(f"LISTEN_FDS is {count!r}; it must be a number")
    return range(_FIRST_FD, _FIRST_FD + int(count))


def _is_for_us(variable: str, *, default: bool) -> bool:
    pid = os.environ.get(variable)
    return default if pid is None else pid == str(os.getpid())

"""Listening sockets: binding, with errors that say what to do, and cleaning up."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
import time

from iproto import leftovers
from iproto.address import Address, address_of
from iproto.errors import ConfigError

# Seconds from a drain's begin until every socket refuses, those without a live worker too.
REFUSE_DELAY = 0.5

# Seconds that a start leaves the workers of a killed supervisor to stop listening.
LEFTOVERS_WAIT = 1.0


def listen(address: Address, backlog: int, copies: int = 1) -> list[socket.socket]:
    """Listening, non-blocking sockets.

    Args:
        address: where; for port 0 the system chooses one, the same for all.
        backlog: connections that may wait to be accepted.
        copies: how many sockets are to share the address, each with a queue of
            its own, over which the system spreads the connections. Only Linux
            does that, and only for TCP; elsewhere one socket comes back.

    Raises:
        ConfigError: in one line, what is wrong and what to do.
    """
    if address.path or not sys.platform.startswith("linux"):
        copies = 1
    # The first is bound alone, so that an address in use is noticed: sockets
    # that share it would join those of another server, and steal from it.
    first = _bind(address, share=False)
    if copies == 1:
        return [_start(first, address, backlog)]
    address = address_of(first)
    first.close()
    sockets: list[socket.socket] = []
    try:
        for _ in range(copies):
            sockets.append(_bind(address, share=True))
            _start(sockets[-1], address, backlog)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def refuse(listener: socket.socket) -> None:
    """Ends listening at a socket in every process that has it; who connects is refused."""
    with contextlib.suppress(OSError):  # another process was the first
        listener.shutdown(socket.SHUT_RDWR)


def close(listener: socket.socket) -> None:
    """Closes a listening socket, and removes the path of a unix one."""
    path = address_of(listener).path
    listener.close()
    if path:
        with contextlib.suppress(OSError):  # gone, or not ours to remove any more
            os.unlink(path)


def _bind(address: Address, *, share: bool) -> socket.socket:
    try:
        return _bind_now(address, share=share)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and leftovers.workers_at(address.port, address.path):
            return _bind_behind_leftovers(address, share=share)
        raise _refusal(address, error) from None


def _bind_behind_leftovers(address: Address, *, share: bool) -> socket.socket:
    """Binds where workers listen whose supervisor was killed.

    They stop within REFUSE_DELAY by themselves, unless they are stuck: then they are ended.
    """
    deadline = time.monotonic() + LEFTOVERS_WAIT
    while leftovers.workers_at(address.port, address.path):
        if time.monotonic() > deadline:
            leftovers.end_workers_at(address.port, address.path)
            break
        time.sleep(0.02)
    try:
        return _bind_now(address, share=share)
    except OSError as error:
        raise _refusal(address, error) from None


def _bind_now(address: Address, *, share: bool) -> socket.socket:
    return _bind_unix(address.path) if address.path else _bind_tcp(address, share=share)


def _bind_unix(path: str) -> socket.socket:
    _remove_dead_socket(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_tcp(address: Address, *, share: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
    except BaseException:
        sock.close()
        raise
    return sock


def _start(sock: socket.socket, address: Address, backlog: int) -> socket.socket:
    try:
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise _refusal(address, error) from None
    return sock


def _refusal(address: Address, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        why = "the address is in use; stop what listens there, or choose another with --bind"
    elif error.errno in (errno.EACCES, errno.EPERM) and address.path:
        why = (
            "permission denied; this user must be allowed to search the directories of the path, "
            "and to write to the last one and to a socket that is there"
        )
    elif error.errno in (errno.EACCES, errno.EPERM):
        why = "permission denied; ports below 1024 are for privileged users"
    elif error.errno == errno.ENOENT and address.path:
        why = "the directory does not exist; make it, or choose another path with --bind"
    elif error.errno == errno.ENOTDIR:
        why = "a part of the path is a file, not a directory; choose another path with --bind"
    else:
        why = error.strerror or str(error)
    return ConfigError(f"cannot listen on {address}: {why}")


def _remove_dead_socket(path: str) -> None:
    """Removes a unix socket that a killed server left; never one that is served."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise ConfigError(f"cannot listen on unix:{path}: a file that is no socket is there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A server that does not accept, for it is stopped, may have a full backlog.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except BlockingIOError:
            pass  # somebody listens; bind says that the address is in use

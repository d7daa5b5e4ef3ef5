"""Listening sockets: binding, with errors that say what to do, and cleaning up."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from iproto import leftovers
from iproto.address import Address, address_of
from iproto.errors import ConfigError
from iproto.server.listener_config import ListenerConfig
from iproto.server.rights import CLASSES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from iproto.server.config import Config

logger = logging.getLogger("iproto.server")

# Seconds from a drain's begin until every socket refuses, those without a live worker too.
REFUSE_DELAY = 0.5

# Seconds that a start leaves the workers of a killed supervisor to stop listening.
LEFTOVERS_WAIT = 1.0


class Listener(NamedTuple):
    """A listening socket, and what it is set to."""

    sock: socket.socket
    config: ListenerConfig


def with_settings(
    sockets: Sequence[socket.socket], config: Config, *, from_systemd: bool
) -> list[Listener]:
    """Sockets that another process made, each with its settings.

    Args:
        sockets: one of each address, in their order.
        config: the settings; if not ``from_systemd`` the sockets were made of its listeners.
        from_systemd: whether they are systemd's, which has its own addresses.
    """
    if from_systemd or not sockets:  # a trial of an upgrade has none
        return by_address(sockets, config)
    return [Listener(sock, one) for sock, one in zip(sockets, config.listeners, strict=True)]


def by_address(sockets: Iterable[socket.socket], config: Config) -> list[Listener]:
    """Sockets that somebody else has bound, each with the settings for its address.

    One that the settings do not name has those of a listener that says nothing of itself.
    """
    known = {one.place: one for one in config.listeners}
    found = []
    for sock in sockets:
        place = address_of(sock)
        standard = ListenerConfig(
            address=str(place), rights=config.standard_rights, dialect=str(config.dialect)
        )
        found.append(Listener(sock, known.get(place, standard)))
    return found


def warn_of_strangers(listeners: Iterable[Listener], config: Config, level: int) -> None:
    """A warning for each address outside this machine where every client may switch.

    Args:
        listeners: those of the server.
        config: its settings.
        level: at which the server says where it serves; below INFO another process warns.
    """
    if config.allow or config.acl or config.tls_client_ca or level < logging.INFO:
        return
    for sock, one in listeners:
        place = address_of(sock)
        may_switch = any(one.granted.permits(func_id) for func_id in CLASSES["admin"])
        if may_switch and not place.path and not _is_loopback(place.host):
            logger.warning(
                "whoever reaches %s may switch the storage to MAINTENANCE; give the switches an "
                "address of their own (--admin-bind), or say who may connect (--allow) or do what "
                "(--acl)",
                place,
            )


def _is_loopback(host: str) -> bool:
    return host == "::1" or host.startswith("127.")


def listen_as(one: ListenerConfig, backlog: int, copies: int = 1) -> list[socket.socket]:
    """Listening sockets for a listener of the settings; as ``listen``."""
    mode = one.mode if isinstance(one.mode, int) else None
    group = None if one.group is None else str(one.group)
    return listen(one.place, backlog, copies, mode=mode, group=group)


def listen(
    address: Address,
    backlog: int,
    copies: int = 1,
    *,
    mode: int | None = None,
    group: str | None = None,
) -> list[socket.socket]:
    """Listening, non-blocking sockets.

    Args:
        address: where; for port 0 the system chooses one, the same for all.
        backlog: connections that may wait to be accepted.
        copies: how many sockets are to share the address, each with a queue of
            its own, over which the system spreads the connections. Only Linux
            does that, and only for TCP; elsewhere one socket comes back.
        mode: permissions of a unix socket; None for what the umask leaves.
        group: name or number of its group; None for the process's own.

    Raises:
        ConfigError: in one line, what is wrong and what to do.
    """
    if address.path or not sys.platform.startswith("linux"):
        copies = 1
    # The first is bound alone, so that an address in use is noticed: sockets
    # that share it would join those of another server, and steal from it.
    first = _bind(address, share=False)
    try:
        _set_access(address, mode, group)
    except BaseException:
        close(first)
        raise
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


def _set_access(address: Address, mode: int | None, group: str | None) -> None:
    """Says who may connect to a unix socket; nobody can before it listens."""
    try:
        if group is not None:
            os.chown(address.path, -1, _group_number(address, group))
        if mode is not None:
            os.chmod(address.path, mode)
    except OSError as error:
        raise ConfigError(
            f"cannot set mode and group of {address}: {error.strerror}; this user must be a member "
            "of the group"
        ) from None


def _group_number(address: Address, group: str) -> int:
    if group.isdecimal():
        return int(group)
    import grp  # not at the top: few servers need it

    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(
            f"group of {address} is {group!r}; the system has no such group"
        ) from None


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

"""Who may use a storage file: one server at a time, and nobody else may write to it.

Two locks see to that. The file's own (``flock``) is shared by every process that
inherits its descriptor, so it is free when none of them is left. But it goes with
the file: where that was deleted or replaced, the path leads to no lock, or to
another file's. So the path has a lock as well, which nobody can delete: names of
sockets in Linux's abstract namespace, which end with the process that has them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import socket
import stat
import struct
import sys
import time
from typing import TYPE_CHECKING

from iproto import leftovers
from iproto.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("iproto.storage")

# Seconds that a process which was just killed may take to free its names, and between two looks.
_RELEASE_WAIT = 0.5
_RELEASE_POLL = 0.02

_CREDENTIALS = struct.Struct("3i")  # process, user and group, as SO_PEERCRED gives them


def in_use(path: str) -> ConfigError:
    """The error of a second server."""
    return ConfigError(
        f"storage file {path} is in use by another server; stop that, or choose another file"
    )


@contextlib.contextmanager
def closed_on_error(fds: list[int]) -> Iterator[None]:
    """Closes the descriptors if the block raises."""
    try:
        yield
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def lock_path(path: str) -> list[int]:
    """Takes the lock of a path, whatever is there.

    Args:
        path: of a storage file.

    Returns:
        Descriptors; the lock is free when they are closed. Empty where the system has no
        abstract namespace, or refuses such sockets.

    Raises:
        ConfigError: another server has the path, even if its file was deleted or replaced.
        OSError: the directory is not there, or cannot be looked at.
    """
    if not sys.platform.startswith("linux"):
        return []
    taken: list[int] = []
    with closed_on_error(taken):
        for name in _names_of(path):
            fd = _take(name, path)
            if fd is not None:
                taken.append(fd)
    return taken


def _names_of(path: str) -> list[str]:
    """What identifies a path: the directory as it is, and the text.

    The first tells the same path in two containers apart, and knows a directory by all
    its names; the second stays when the directory is deleted and made anew.
    """
    directory, name = os.path.split(os.path.abspath(path))
    found = os.stat(directory)
    keys = [f"{found.st_dev}:{found.st_ino}/{name}"]
    with contextlib.suppress(OSError):  # without /proc the view of the file system has no name
        view = os.readlink("/proc/self/ns/mnt")
        keys.append(f"{view}:{os.path.realpath(directory)}/{name}")
    return [f"\0iproto-storage-{hashlib.sha256(os.fsencode(key)).hexdigest()}" for key in keys]


def _take(name: str, path: str) -> int | None:
    """The descriptor of a socket with the name; None if the system gives none."""
    deadline = time.monotonic() + _RELEASE_WAIT
    while True:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.bind(name)
                sock.listen()  # so that a second server learns whose it is
                return sock.detach()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                logger.debug("no lock on the path of storage file %s: %s", path, error.strerror)
                return None
        if time.monotonic() > deadline:
            user = _user_of(name)
            if user in (None, 0, os.geteuid()):
                raise in_use(path)
            logger.warning(
                "user %d, who has no right to storage file %s, keeps other servers from locking "
                "its path; serving it by its own lock alone: do not delete or replace it",
                user,
                path,
            )
            return None
        time.sleep(_RELEASE_POLL)


def _user_of(name: str) -> int | None:
    """Whose process has the name; None if that cannot be found out."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.connect(name)
            found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            return int(_CREDENTIALS.unpack(found)[1])
    return None


def open_locked(path: str, mode: int, *, create: bool) -> tuple[int, int, bool]:
    """A descriptor with the file's own lock, its size, and whether it was not there before.

    Args:
        path: the file.
        mode: ``os.O_RDWR`` or ``os.O_RDONLY``.
        create: whether to make it if it is not there.

    Raises:
        ConfigError: another process serves it, it is no regular file, or (with ``create``)
            others may write to it.
        OSError: the system refuses it.
    """
    while True:
        flags = mode | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
        is_new = create
        try:
            fd = os.open(path, flags | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
        except FileExistsError:
            if os.path.islink(path):
                raise ConfigError(
                    f"storage file {path} is a symbolic link; name the file that it leads to"
                ) from None
            fd = os.open(path, flags)
            is_new = False
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError(f"storage file {path} is not a regular file")
            if create:
                _check_owner(path, found)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if leftovers.end_lock_holders(fd):
                    os.close(fd)
                    continue
                raise in_use(path) from None
            # Another process may have removed the file before we had the lock:
            # then the path leads to another one, or to none.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(found, os.stat(path)):
                    return fd, os.fstat(fd).st_size, is_new
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _check_owner(path: str, found: os.stat_result) -> None:
    """Whether nobody else can write to a file that is to be served, or names it otherwise.

    Raises:
        ConfigError: somebody can.
    """
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"storage file {path} belongs to user {found.st_uid}, and the server runs as user "
            f"{os.geteuid()}; chown it, or choose another file"
        )
    if found.st_mode & 0o022:
        raise ConfigError(
            f"storage file {path} has mode {stat.S_IMODE(found.st_mode):04o}, with which others "
            f"may write to it; make sure of what it holds, then chmod 600 {path}"
        )
    if found.st_nlink > 1:
        raise ConfigError(
            f"storage file {path} has {found.st_nlink} names (hard links); remove the others, "
            "or make a copy of it"
        )

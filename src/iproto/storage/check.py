"""Checking a storage file that nobody serves, and making a damaged one whole.

What is to be expected of it stands in docs/storage-file.md.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from iproto._fastframe import Storage
from iproto.errors import ConfigError
from iproto.storage.content import MAKING, check_copy, copy_beside, read_copy, write_all
from iproto.storage.lock import lock_path, open_locked

if TYPE_CHECKING:
    from iproto.wire import State


class Findings(NamedTuple):
    """What is in a storage file."""

    state: State
    """The storage's state."""

    damaged: list[tuple[int, int | None]]
    """Index of each damaged slot, and the bytes of the other content that it
    has or can have; None where there is no whole one."""

    kept: str | None
    """Where the file as it was before the repair is; None if it was not repaired."""


def check_file(path: str | os.PathLike[str], *, repair: bool = False) -> Findings:
    """Looks at a storage file from end to end.

    Args:
        path: the file. It must not be served meanwhile.
        repair: give each damaged slot its other content, if that is whole, and
            the empty one otherwise. The file as it was is kept beside it.
            Without, and if nothing is damaged, the file is only read.

    Raises:
        ConfigError: the file is in use, no storage, damaged elsewhere than in
            slots, or the system refuses something.
    """
    path = os.fspath(path)
    try:
        path_lock = lock_path(path)
        try:
            fd, size, _ = open_locked(path, os.O_RDWR if repair else os.O_RDONLY, create=False)
            try:
                return _check_open(fd, path, size, repair=repair)
            finally:
                os.close(fd)
        finally:
            for lock in path_lock:
                os.close(lock)
    except OSError as error:
        where = error.filename or path
        raise ConfigError(f"cannot use storage file {where}: {error.strerror}") from None


def _check_open(fd: int, path: str, size: int, *, repair: bool) -> Findings:
    if size == 0 or os.pread(fd, len(MAKING), 0) == MAKING:
        raise ConfigError(f"storage file {path} holds nothing yet; a server will fill it")
    copy = read_copy(fd, path, size)
    try:
        damaged = Storage.repair(copy)
        state = check_copy(copy, path, size)
    except ValueError as error:
        raise ConfigError(
            f"storage file {path} cannot be repaired: {error}; restore a copy of it"
        ) from None
    kept = None
    if repair and damaged:
        kept = copy_beside(fd, path, "damaged")
        write_all(fd, copy[:], 0)
        os.fsync(fd)
    return Findings(state, damaged, kept)

"""What is in a storage file: making it, checking it, copying it.

How a file changes, so that a crash at any instruction leaves one that can be
opened: it is being made (it begins with ``MAKING``) until its header is written
over that, last of all; and it is never shorter than its header says.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os

from iproto._fastframe import Storage
from iproto.errors import ConfigError
from iproto.wire import State

# Bytes of the store's header, which one system call writes: no kill can tear it.
_HEADER = 4096

# Bytes of the header that tell a store from other files.
_MAGIC = 8

MAKING = b"iproto is making this storage file\n"
"""What a file begins with while it is made. Nothing was served from it yet, so
the next start makes it anew."""

_WHAT_TO_DO = "restore a copy of it, or remove it to begin with an empty storage"


def make(fd: int, path: str, image: bytes, *, is_new: bool) -> None:
    """Fills an empty file; leaves it as it was if there is no room.

    Args:
        fd: its descriptor.
        path: the file.
        image: its bytes, all of them.
        is_new: whether it was not there before; then it is removed if there is no room.

    Raises:
        OSError: there is no room, or the system refuses it.
    """
    try:
        write_all(fd, MAKING, 0)
        _allocate(fd, len(image))
        write_all(fd, image[_HEADER:], _HEADER)
        os.fsync(fd)
        write_all(fd, image[:_HEADER], 0)
        os.fsync(fd)
        sync_directory(path)
    except OSError:
        if is_new:
            os.unlink(path)
        else:
            os.ftruncate(fd, 0)
        raise


def check(fd: int, path: str, size: int) -> State:
    """The state of the storage in a file, in which all is well. Changes nothing."""
    copy = read_copy(fd, path, size)
    try:
        return check_copy(copy, path, size)
    except ValueError as error:
        raise ConfigError(
            f"storage file {path} cannot be used: {error}; {_WHAT_TO_DO}, "
            f"or see 'iproto check {path}'"
        ) from None


def read_copy(fd: int, path: str, size: int) -> mmap.mmap:
    """The storage in a file, without the workers' areas.

    It is a copy in memory: a file that is shorter than it seems, or that cannot
    be read, is an error then, and not a signal.

    Raises:
        ConfigError: it is no storage file, or cut off.
    """
    copy = mmap.mmap(-1, Storage.size_for(0))
    length = os.preadv(fd, [copy], 0)
    if copy[:_MAGIC] != image_of(1, State.READ_WRITE)[:_MAGIC]:
        raise ConfigError(
            f"storage file {path} is no storage file of iproto, and is left as it is; "
            "choose another path"
        )
    if length < len(copy):
        raise _cut_off(path, size, len(copy))
    return copy


def check_copy(copy: mmap.mmap, path: str, size: int) -> State:
    """The state of a storage in which all is well.

    Args:
        copy: what ``read_copy`` gave.
        path: the file.
        size: its size, in bytes.

    Raises:
        ConfigError: the file is cut off.
        ValueError: the storage is damaged; the text says where.
    """
    workers, state = Storage.check(copy)
    if size < Storage.size_for(workers):
        raise _cut_off(path, size, Storage.size_for(workers))
    return state


def _cut_off(path: str, size: int, needed: int) -> ConfigError:
    return ConfigError(
        f"storage file {path} is cut off: it has {size} bytes of at least {needed}; {_WHAT_TO_DO}"
    )


def renew(fd: int, workers: int, state: State, size: int) -> None:
    """Makes a file that was checked ready for this many workers; slots and state stay.

    How far a storage engine outside had come is forgotten: after a crash the file may hold that
    and not all of the slots before it, so the engine has to bring everything anew.
    """
    image = image_of(workers, state)
    try:
        # All of it: a copy that was restored may have holes, for which there
        # might be no room later, when only a signal could tell.
        _allocate(fd, max(size, len(image)))
    except OSError:
        os.ftruncate(fd, size)
        raise
    write_all(fd, image[Storage.size_for(0) :], Storage.size_for(0))
    if size < len(image):
        os.fsync(fd)
    write_all(fd, image[:_HEADER], 0)
    if size > len(image):
        os.fsync(fd)
        os.ftruncate(fd, len(image))


def image_of(workers: int, state: State) -> bytes:
    """An empty storage, byte by byte."""
    memory = mmap.mmap(-1, Storage.size_for(workers))
    Storage(memory, workers=workers, checked=True).switch(state)
    return memory[:]


def _allocate(fd: int, size: int) -> None:
    """Gets the file all its room now, so that no write to the memory can want for it.

    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as error:
            # EPERM and ENOSYS: a sandbox refuses the call; writing has its own errors.
            refused = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS)
            if error.errno not in refused:
                raise
    # The file system, or the system, has no call for it.
    block = 1 << 20
    for at in range(0, size, block):
        length = min(block, size - at)
        write_all(fd, os.pread(fd, length, at).ljust(length, b"\0"), at)


def write_all(fd: int, data: bytes, at: int) -> None:
    """Writes all of the bytes at a place of a file, however many calls it takes."""
    while data:
        written = os.pwrite(fd, data, at)
        data = data[written:]
        at += written


def sync_directory(path: str) -> None:
    """The file's name outlives a power failure, too."""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def copy_to(fd: int, path: str) -> None:
    """Copies a storage file to a path where nothing is yet, down to the disk.

    Raises:
        FileExistsError: something is there.
        OSError: the system refuses it; nothing is left behind.
    """
    image = os.pread(fd, os.fstat(fd).st_size, 0)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    copy = os.open(path, flags, 0o600)
    try:
        make(copy, path, image, is_new=True)
    finally:
        os.close(copy)


def copy_beside(fd: int, path: str, word: str) -> str:
    """Copies a storage file to a new name beside it, down to the disk.

    Args:
        fd: a descriptor of the file.
        path: where it is, or was.
        word: what the name says: ``PATH.WORD-1``, or the first number that is free.

    Returns:
        The path of the copy.

    Raises:
        OSError: the system refuses it; nothing is left behind.
    """
    number = 1
    while True:
        name = f"{path}.{word}-{number}"
        with contextlib.suppress(FileExistsError):
            copy_to(fd, name)
            return name
        number += 1

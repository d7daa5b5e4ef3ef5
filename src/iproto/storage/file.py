"""A storage in a file: opening it, checking it, flushing it.

The file is the storage's memory itself, mapped by every process that serves
it, so that what was acknowledged outlives all of them. What that promises, and
what it does not, stands in docs/storage-file.md.

How a file changes, so that a crash at any instruction leaves one that can be
opened: it is being made (it begins with ``MAKING``) until its header is written
over that, last of all; and it is never shorter than its header says.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import stat
import threading
import time
from typing import TYPE_CHECKING

from iproto import forks, leftovers
from iproto._fastframe import Storage
from iproto.errors import ConfigError
from iproto.wire import State

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

logger = logging.getLogger("iproto.storage")

# Bytes of the store's header, which one system call writes: no kill can tear it.
_HEADER = 4096

# Bytes of the header that tell a store from other files.
_MAGIC = 8

MAKING = b"iproto is making this storage file\n"
"""What a file begins with while it is made. Nothing was served from it yet, so
whoever finds it begins again."""

_WHAT_TO_DO = "restore a copy of it, or remove it to begin with an empty storage"


class OpenFile:
    """A storage file that is open, was checked, and is locked against other servers.

    ::

        with open_storage("/var/lib/iproto/storage") as file:
            iproto.Server(config, storage=file.storage)

    Args:
        path: the file.
        fd: its descriptor, which carries the lock: processes that inherit it share that.
        storage: the storage over it.

    Leaving ``with`` closes it.
    """

    def __init__(self, path: str, fd: int, storage: Storage) -> None:
        self.path = path
        self.fd = fd
        self.storage = storage
        self._open = True
        forks.register(self)

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets the file go. Its lock is free when nobody has ``storage`` any more."""
        self._open = False
        del self.storage
        os.close(self.fd)

    def descriptors(self) -> Iterable[int]:
        """Those of the file, for a child to close; see forks.Holder."""
        return forks.same_file(self.fd) if self._is_served() else ()

    def serves(self, storage: object) -> bool:
        """No: a file is no server."""
        return False

    def forget(self) -> None:
        """In a child: the storage becomes a private copy."""
        if self._is_served():
            self.storage.detach()

    def _is_served(self) -> bool:
        """Whether this process serves the storage; if not yet, a child may be meant to."""
        return self._open and forks.is_served(self.storage)


def open_storage(path: str | os.PathLike[str], workers: int = 1) -> OpenFile:
    """Opens the storage in a file, for this process and those that inherit it.

    Slots and state are what they were; counters begin at zero. A file that does
    not exist or is empty gets an empty storage. Any other is checked from end
    to end first, and left as it is if anything is wrong with it.

    Args:
        path: the file; its directory must exist.
        workers: worker areas, 1..1024. Each process that serves the storage
            needs its own; they may be others than the last time.

    Raises:
        ConfigError: the file is in use, damaged or no storage, there is no room
            for it, or the system refuses it; the text says what to do.
        ValueError: the number of workers is impossible.
    """
    path = os.fspath(path)
    image = _image(workers, State.READ_WRITE)
    try:
        fd, size, is_new = open_locked(path, os.O_RDWR, create=True)
        try:
            if size == 0 or os.pread(fd, len(MAKING), 0) == MAKING:
                _make(fd, path, image, is_new=is_new)
                logger.info("storage file %s is new", path)
            else:
                state = _check(fd, path, size)
                _renew(fd, workers, state, size)
                logger.info("storage file %s was checked; its state is %s", path, state.name)
            memory = mmap.mmap(fd, len(image))
            return OpenFile(path, fd, Storage(memory, workers=workers))
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise ConfigError(f"cannot use storage file {path}: {error.strerror}") from None


def open_locked(path: str, mode: int, *, create: bool) -> tuple[int, int, bool]:
    """A descriptor with the lock, the file's size, and whether it was not there before.

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
                raise ConfigError(
                    f"storage file {path} is in use by another server; stop that, "
                    "or choose another file"
                ) from None
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


def _make(fd: int, path: str, image: bytes, *, is_new: bool) -> None:
    """Fills an empty file; leaves it as it was if there is no room."""
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


def _check(fd: int, path: str, size: int) -> State:
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
    if copy[:_MAGIC] != _image(1, State.READ_WRITE)[:_MAGIC]:
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


def _renew(fd: int, workers: int, state: State, size: int) -> None:
    """Makes a file that was checked ready for this many workers; slots and state stay."""
    image = _image(workers, state)
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


def _image(workers: int, state: State) -> bytes:
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


class Flusher:
    """Flushes a storage to its file every so often, in a thread, and once at the end.

    Args:
        storage: the storage.
        seconds: between two flushes; 0 for none, not even at the end.

    It works between the ends of a ``with``.
    """

    def __init__(self, storage: Storage, seconds: float) -> None:
        self._storage = storage
        self._seconds = seconds
        self._ended = False
        self._told = threading.Event()  # another pace, or the end
        self._thread = threading.Thread(target=self._run, name="iproto storage flush", daemon=True)

    def __enter__(self) -> Flusher:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended = True
        self._told.set()
        self._thread.join()

    def change(self, seconds: float) -> None:
        """Flushes at another pace from now on."""
        self._seconds = seconds
        self._told.set()

    def _run(self) -> None:
        while not self._ended:
            told = self._told.wait(self._seconds or None)
            self._told.clear()
            if not told:
                self._flush()
        # What was written while the last flush went on is not on the disk.
        if self._seconds:
            self._flush()

    def _flush(self) -> None:
        begun = time.perf_counter()
        try:
            self._storage.flush()
        except OSError as error:
            logger.error("cannot flush the storage file: %s", error.strerror)
        else:
            logger.debug("flushed the storage file in %.1f ms", _milliseconds_since(begun))


def _milliseconds_since(begun: float) -> float:
    return 1000 * (time.perf_counter() - begun)

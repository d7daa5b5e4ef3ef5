"""A storage in a file: opening it.

The file is the storage's memory itself, mapped by every process that serves
it, so that what was acknowledged outlives all of them. What that promises, and
what it does not, stands in docs/storage-file.md.
"""

from __future__ import annotations

import logging
import mmap
import os
from typing import TYPE_CHECKING

from iproto import forks
from iproto._fastframe import Storage
from iproto.errors import ConfigError
from iproto.storage import content
from iproto.storage.lock import closed_on_error, lock_path, open_locked
from iproto.storage.watch import FileWatch
from iproto.wire import State

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

logger = logging.getLogger("iproto.storage")


class OpenFile:
    """A storage file that is open, was checked, and is locked against other servers.

    ::

        with open_storage("/var/lib/iproto/storage") as file:
            iproto.Server(config, storage=file.storage)

    Args:
        path: the file.
        fd: its descriptor, which carries the lock: processes that inherit it share that.
        path_lock: the descriptors that lock the path, which this process alone has.
        storage: the storage over it.

    Leaving ``with`` closes it. Within ``with``, a thread watches that the file stays where it is.
    """

    def __init__(self, path: str, fd: int, path_lock: list[int], storage: Storage) -> None:
        self.path = path
        self.fd = fd
        self.path_lock = path_lock
        self.storage = storage
        self.watch = FileWatch(path, fd)
        self._open = True
        forks.register(self)

    def __enter__(self) -> OpenFile:
        self.watch.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> bool:
        """Lets the file go. Its lock is free when nobody has ``storage`` any more.

        A file that was deleted is put back first.

        Returns:
            Whether the next start at the path finds all that was written; if not, the log
            says where it is.
        """
        self._open = False
        is_kept = self.watch.close()
        del self.storage
        for fd in (self.fd, *self.path_lock):
            os.close(fd)
        return is_kept

    def descriptors(self) -> Iterable[int]:
        """Those of the file, for a child to close; see forks.Holder."""
        return [*forks.same_file(self.fd), *self.path_lock] if self._is_served() else ()

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
    image = content.image_of(workers, State.READ_WRITE)
    try:
        path_lock = lock_path(path)
        with closed_on_error(path_lock):
            fd, size, is_new = open_locked(path, os.O_RDWR, create=True)
            with closed_on_error([fd]):
                if size == 0 or os.pread(fd, len(content.MAKING), 0) == content.MAKING:
                    content.make(fd, path, image, is_new=is_new)
                    logger.info("storage file %s is new", path)
                else:
                    state = content.check(fd, path, size)
                    content.renew(fd, workers, state, size)
                    logger.info("storage file %s was checked; its state is %s", path, state.name)
                memory = mmap.mmap(fd, len(image))
                return OpenFile(path, fd, path_lock, Storage(memory, workers=workers))
    except OSError as error:
        raise ConfigError(f"cannot use storage file {path}: {error.strerror}") from None

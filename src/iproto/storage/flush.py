"""Flushing a storage to its file, in a thread."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from iproto._fastframe import Storage

logger = logging.getLogger("iproto.storage")


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
        self._wake = threading.Event()  # another pace, or the end
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
        self._wake.set()
        self._thread.join()

    def change(self, seconds: float) -> None:
        """Flushes at another pace from now on."""
        self._seconds = seconds
        self._wake.set()

    def _run(self) -> None:
        while not self._ended:
            is_woken = self._wake.wait(self._seconds or None)
            self._wake.clear()
            if not is_woken:
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

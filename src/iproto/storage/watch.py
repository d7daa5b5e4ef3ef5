"""Watching that a storage file stays where it is, while it is served.

Deleting or replacing the file takes the storage's memory from its path: the
server goes on, but what is written goes into a file without a name, which ends with
the server. A thread looks every second, for a look can wait for a file system that
does not answer. At the end everything is put where the next start finds it.
"""

from __future__ import annotations

import logging
import os
import signal
import stat
import tempfile
import threading
import time
from typing import ClassVar, NamedTuple

from iproto.storage import content

logger = logging.getLogger("iproto.storage")

# Seconds between two looks.
PERIOD = 1.0

# Seconds from one line of log on a problem that lasts to the next.
REMINDER = 60.0

# Seconds without an answer of the file system that are a problem.
NO_ANSWER = 5.0

# Seconds that the end waits for a look that is under way.
_END_WAIT = 1.0


class Problem(NamedTuple):
    """What is wrong with a storage file that is served."""

    kind: str
    """One of FileWatch.KINDS."""

    text: str
    """What has happened, as the end of ``the storage file ...``."""

    loses_writes: bool
    """Whether the next start at the path would not find what is written now."""


_ADVICE = {
    "deleted": "stop the server with SIGTERM, and it puts the file back with all that was written",
    "replaced": "stop the server with SIGTERM, and it puts its own content beside the path; "
    "never write to the path of a file that is served",
    "moved": "move it back, or the next start at the path does not find what is written",
    "cut_off": "stop the server and restore a copy; the system ends a process that touches what is "
    "gone (SIGBUS)",
    "linked": "remove the other names, or the next start refuses it",
    "exposed": "chmod 600 and chown it, or the next start refuses it",
    "unreachable": "look at the file system that it is on",
}


class FileWatch:
    """Looks whether a path still leads to an open storage file.

    Args:
        path: where the file was opened.
        fd: its descriptor.
    """

    KINDS: ClassVar[tuple[str, ...]] = tuple(_ADVICE)
    """The kinds of problems."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = os.path.abspath(path)
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._owner = os.getpid()  # a child does nothing
        self._problem: Problem | None = None
        self._logged: tuple[str | None, float] = (None, 0.0)  # kind, and when
        self._look_begun: float | None = None
        self._is_kept: bool | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def problem(self) -> Problem | None:
        """What is wrong now; None if nothing is. Any thread may ask."""
        begun = self._look_begun
        if begun is not None:
            silent = time.monotonic() - begun
            if silent > NO_ANSWER:
                return Problem(
                    "unreachable", f"gives no answer, for {silent:.0f} s by now", loses_writes=True
                )
        return self._problem

    def start(self) -> None:
        """Looks from now on, from a thread."""
        self._thread = threading.Thread(target=self._run, name="iproto storage watch", daemon=True)
        self._thread.start()

    def close(self) -> bool:
        """Looks no more, and puts the content of a file that was deleted where it can be found.

        Nobody may write to the storage any more. Only the first call does something.

        Returns:
            Whether the next start at the path finds all that was written.
        """
        if os.getpid() != self._owner:
            return True
        if self._is_kept is None:
            self._ended.set()
            if self._thread is not None:
                self._thread.join(_END_WAIT)
            # A look that is under way still would be one that does not return.
            is_stuck = self._thread is not None and self._thread.is_alive()
            problem = self.problem if is_stuck else self._look()
            self._is_kept = problem is None or not problem.loses_writes or self._put_back(problem)
        return self._is_kept

    # The thread.

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # for the main thread
        while True:
            self._look_begun = time.monotonic()
            problem = self._look()
            self._look_begun = None
            self._problem = problem
            self._report(problem)
            if self._ended.wait(PERIOD):
                return

    def _report(self, problem: Problem | None) -> None:
        kind, when = self._logged
        now = time.monotonic()
        if problem is None:
            if kind is not None:
                logger.warning("storage file %s is in its place again", self._path)
            self._logged = (None, now)
        elif problem.kind != kind or now > when + REMINDER:
            logger.error(
                "storage file %s, which is being served, %s: %s",
                self._path,
                problem.text,
                _ADVICE[problem.kind],
            )
            self._logged = (problem.kind, now)

    def _look(self) -> Problem | None:
        try:
            open_file = os.fstat(self._fd)
            try:
                found = os.stat(self._path, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                return _missing(open_file, is_free=True)
        except OSError as error:
            return Problem(
                "unreachable", f"cannot be looked at: {error.strerror}", loses_writes=True
            )
        if not os.path.samestat(open_file, found):
            return _missing(open_file, is_free=False)
        return self._changed(found)

    def _changed(self, found: os.stat_result) -> Problem | None:
        """What is wrong with the file that is in its place."""
        if found.st_size < self._size:
            text = f"was cut off, from {self._size} bytes to {found.st_size}"
            return Problem("cut_off", text, loses_writes=True)
        if found.st_nlink > 1:
            return Problem(
                "linked", f"has {found.st_nlink} names (hard links) now", loses_writes=False
            )
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            mode = stat.S_IMODE(found.st_mode)
            text = f"belongs to user {found.st_uid} with mode {mode:04o} now"
            return Problem("exposed", text, loses_writes=False)
        return None

    # The end.

    def _put_back(self, problem: Problem) -> bool:
        if problem.kind == "deleted":
            try:
                content.copy_to(self._fd, self._path)
            except OSError as error:
                problem = problem._replace(
                    text=f"{problem.text}, and cannot be put back ({error.strerror})"
                )
            else:
                logger.warning(
                    "storage file %s was deleted while it was served; it is there again, with "
                    "all that was written",
                    self._path,
                )
                return True
        where = None if problem.kind in ("moved", "cut_off") else self._put_aside()
        logger.error(
            "storage file %s, which was being served, %s; the next start at this path does not "
            "find what was written: %s",
            self._path,
            problem.text,
            f"it is in {where}" if where else _ADVICE[problem.kind],
        )
        return False

    def _put_aside(self) -> str | None:
        """Copies the file to beside its path, or else to where temporary files are."""
        aside = os.path.join(tempfile.gettempdir(), os.path.basename(self._path))
        for path in (self._path, aside):
            try:
                return content.copy_beside(self._fd, path, "rescued")
            except OSError as error:
                logger.error(
                    "cannot copy storage file %s beside %s: %s", self._path, path, error.strerror
                )
        return None


def _missing(open_file: os.stat_result, *, is_free: bool) -> Problem:
    """The problem where nothing is at the path, or another file."""
    if open_file.st_nlink:
        there = "nothing" if is_free else "another file"
        return Problem("moved", f"was moved, and {there} is at its path", loses_writes=True)
    if is_free:
        return Problem("deleted", "was deleted", loses_writes=True)
    return Problem("replaced", "was replaced by another one", loses_writes=True)

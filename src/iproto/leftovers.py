"""What is left of a server whose supervisor was killed: its workers, which drain or are stuck.

A new server must not wait for them. They are found in /proc, by evidence only
that cannot concern anybody else, and ended with SIGKILL through a pidfd: the
evidence is looked at again once the pidfd is there, so that a process number
which was used anew cannot be hit. Nothing acknowledged is lost by it, for that
is in the storage already. Where there is no /proc or no pidfd, nothing is ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger("iproto.server")

WORKER_MODULE = "iproto.workers.worker"
"""What a worker's command line names, followed by its supervisor's number and its area."""

# Seconds that killed processes may take to end. The system takes milliseconds.
_KILL_WAIT = 2.0

_PROC = Path("/proc")
_LISTEN = " 0A "  # as /proc/net/tcp has it
_UNIX_LISTEN = 0x10000  # the flag of /proc/net/unix


def workers_of(supervisor: int) -> dict[int, int]:
    """Area → process of each worker that lives, by the supervisor that started it."""
    found = {}
    for pid in _processes():
        command = _command_of(pid)
        if command is not None and command[0] == supervisor:
            found[command[1]] = pid
    return found


def end_lock_holders(fd: int) -> bool:
    """Ends what is left of the server that has the lock of a file.

    Args:
        fd: a descriptor of the file.

    Returns:
        Whether any was ended. Nothing is while the process that took the lock lives.
    """
    found = os.fstat(fd)

    def holds(pid: int) -> bool:
        owner = _lock_owner(pid, found)
        return owner is not None and owner != pid and _lock_owner(owner, found) is None

    return _end([pid for pid in _processes() if holds(pid)], holds, "storage file")


def workers_at(port: int, path: str) -> list[int]:
    """The workers that listen though their supervisor is dead.

    Args:
        port: of TCP; 0 if it is a unix socket.
        path: of the unix socket; empty if there is none.
    """
    left = [pid for pid in _processes() if _is_left(pid)]
    # Of a busy server the system's list is long: it is read once, and only if it must be.
    listening = _listening(port, path) if left else set()
    return [pid for pid in left if _sockets_of(pid) & listening]


def end_workers_at(port: int, path: str) -> None:
    """Ends those workers."""
    listening = _listening(port, path)

    def listens(pid: int) -> bool:
        return _is_left(pid) and bool(_sockets_of(pid) & listening)

    _end([pid for pid in _processes() if listens(pid)], listens, "address")


def _is_left(pid: int) -> bool:
    """Whether a process is a worker whose supervisor is dead."""
    command = _command_of(pid)
    return command is not None and _parent_of(pid) != command[0]


def _end(pids: list[int], still: Callable[[int], bool], what: str) -> bool:
    if not hasattr(os, "pidfd_open"):
        return False
    ended = []
    for pid in pids:
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
            ended.append(pidfd)
            if still(pid):
                logger.warning(
                    "ending process %d, left of a server that was killed: it has the %s", pid, what
                )
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    deadline = time.monotonic() + _KILL_WAIT
    for pidfd in ended:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(1000 * max(0.0, deadline - time.monotonic()))
        os.close(pidfd)
    return bool(ended)


# What /proc shows. Of other users' processes, and of those that just end, it shows nothing.


def _processes() -> Iterator[int]:
    with contextlib.suppress(OSError):
        for name in os.listdir(_PROC):
            if name.isdecimal() and int(name) != os.getpid():
                yield int(name)


def _command_of(pid: int) -> tuple[int, int] | None:
    """The supervisor and the area that a worker's command line names; None of another process."""
    with contextlib.suppress(OSError, ValueError):
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
        at = words.index(WORKER_MODULE.encode())
        return int(words[at + 1]), int(words[at + 2])
    return None


def _parent_of(pid: int) -> int | None:
    with contextlib.suppress(OSError, IndexError):
        stat = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return int(stat[1])
    return None


def _lock_owner(pid: int, file: os.stat_result) -> int | None:
    """The process that took the lock of a file which this one has open, by sharing it."""
    for fd in _descriptors_of(pid):
        with contextlib.suppress(OSError):
            if os.path.samestat(file, os.stat(_PROC / str(pid) / "fd" / fd)):
                text = (_PROC / str(pid) / "fdinfo" / fd).read_text()
                for line in text.splitlines():
                    if line.startswith("lock:") and "FLOCK" in line:
                        return int(line.split()[5])
    return None


def _sockets_of(pid: int) -> set[str]:
    found = set()
    for fd in _descriptors_of(pid):
        with contextlib.suppress(OSError):
            name = os.readlink(_PROC / str(pid) / "fd" / fd)
            if name.startswith("socket:["):
                found.add(name[8:-1])
    return found


def _descriptors_of(pid: int) -> list[str]:
    try:
        return os.listdir(_PROC / str(pid) / "fd")
    except OSError:
        return []


def _listening(port: int, path: str) -> set[str]:
    """The numbers of the sockets that listen at a port, or at the path of a unix socket."""
    found = set()
    for name in ("unix",) if path else ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (_PROC / "net" / name).read_text().splitlines()[1:]:
                if path:
                    words = line.split()
                    if words[-1] == path and int(words[3], 16) & _UNIX_LISTEN:
                        found.add(words[6])
                elif _LISTEN in line:  # which few are, and to split each takes time
                    words = line.split()
                    if int(words[1].rpartition(":")[2], 16) == port:
                        found.add(words[9])
    return found

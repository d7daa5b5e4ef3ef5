"""The supervisor replaced in place: the same process, new code, everything kept.

``execve`` starts the new program in the old process, so that its number, its
children and its open files stay. An Inheritance (inheritance.py) in the
environment names the files and describes the children.

Before that the old program runs a trial (trial.py): the new program starts a
worker of its own, which must become ready. If the new program fails all the
same once it has replaced the old one, it leaves the workers alone, for they
serve, and tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from iproto.server.logs import flush_log
from iproto.storage.watch import FileWatch
from iproto.workers.inheritance import INHERITANCE_VARIABLE, inherited
from iproto.workers.place import find_place
from iproto.workers.pool import START_TIMEOUT
from iproto.workers.process import DRAIN_GRACE, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from iproto.workers.inheritance import Inheritance
    from iproto.workers.place import Place
    from iproto.workers.pool import Pool

logger = logging.getLogger("iproto.workers")

TRIAL_VARIABLE = "IPROTO_TRIAL_AREA"
"""The environment variable of a trial: the area that its worker may use."""

TRIAL_TIMEOUT = START_TIMEOUT + 10.0
"""Seconds that the whole trial may take: its worker's start, and the supervisor's imports."""

RETRY_DELAY = 5.0
"""Seconds from a take-over that failed to the next attempt."""

# Blocked from the exec until the new program has handlers for them: their
# default is to end the process.
HELD_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)


# The old program.


async def refusal(inheritance: Inheritance, area: int, place: Place) -> str | None:
    """Runs a trial of the program as it is installed now.

    Args:
        inheritance: what it would be left.
        area: an area of the storage that no worker uses.
        place: where it starts.

    Returns:
        None if it can take over, else why not.

    Raises:
        OSError: the system has no room for another process, or no descriptors.
    """
    trial = await asyncio.create_subprocess_exec(
        place.python,
        *sys.orig_argv[1:],
        cwd=place.existing_directory,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            INHERITANCE_VARIABLE: json.dumps(inheritance._asdict()),
            TRIAL_VARIABLE: str(area),
        },
        pass_fds=[inheritance.memory, inheritance.clients],
        start_new_session=True,  # so that its worker can be ended with it, below
    )
    try:
        _, stderr = await asyncio.wait_for(trial.communicate(), TRIAL_TIMEOUT)
    except asyncio.TimeoutError:
        return f"its trial took longer than {TRIAL_TIMEOUT:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):  # none is left, as a rule
            os.killpg(trial.pid, signal.SIGKILL)
        await trial.wait()
    if trial.returncode == 0:
        return None
    lines = stderr.decode(errors="replace").strip().splitlines()
    if not lines:
        return f"its trial ended with code {trial.returncode}"
    return lines[-1].removeprefix("iproto: ")


def hand_over(inheritance: Inheritance, place: Place) -> NoReturn:
    """Becomes the program as it is installed now.

    Args:
        inheritance: what is left to it.
        place: where it starts.

    Raises:
        OSError: the system does not start it; all is as before.
    """
    if place.existing_directory is not None:
        os.chdir(place.directory)
    for fd in inheritance.descriptors:
        os.set_inheritable(fd, True)
    flush_log()  # the thread that writes it ends with this program
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    try:
        os.execve(
            place.python,
            sys.orig_argv,
            {**os.environ, INHERITANCE_VARIABLE: json.dumps(inheritance._asdict())},
        )
    except OSError:
        release_signals()
        raise


# The new program.


def trial_area() -> int | None:
    """The area for the worker of a trial; None if this process is not one."""
    area = os.environ.get(TRIAL_VARIABLE)
    return None if area is None else int(area)


def adopt(pool: Pool, inheritance: Inheritance) -> None:
    """Takes over what the program before this one left; either all of it or nothing."""
    listeners = [[_socket_of(fd) for fd in group] for group in inheritance.listeners]
    workers = []
    for left in inheritance.workers:
        control = _socket_of(left.control)
        workers.append(Worker(left.position, left.area, left.pid, control, left.drain_timeout))
        if left.ready:
            workers[-1].ready.set()
    positions = list(zip(pool.positions, inheritance.positions, strict=True))
    del os.environ[INHERITANCE_VARIABLE]  # from here on a failure is this program's own
    kept = inheritance.storage_descriptors
    for fd in inheritance.descriptors:
        if fd in kept:
            os.set_inheritable(fd, False)
        else:
            os.close(fd)
    pool.started = True
    pool.from_systemd = inheritance.from_systemd
    pool.listeners += listeners
    for position, (restarts, cpu_seconds) in positions:
        position.restarts = restarts
        position.cpu_seconds = cpu_seconds
    for worker in workers:
        pool.add(worker)
    pool.name_rows(inheritance.rows)
    pool.reap()  # those that died meanwhile


def take_over(serve: Callable[[], int]) -> int:
    """Runs the new program's supervisor; a failure before ``adopt`` does not end the service.

    Args:
        serve: runs it, to its exit code.
    """
    try:
        return serve()
    except Exception as error:
        inheritance = inherited()
        if inheritance is None or trial_area() is not None:
            raise
        logger.error(
            "the new version cannot take over: %s: %s; the workers serve on, next attempt in %g s",
            type(error).__name__,
            error,
            RETRY_DELAY,
        )
    return _try_again(inheritance)


def _try_again(inheritance: Inheritance) -> int:
    """Starts this program anew after a while, unless a signal says that the service ends."""
    ending = (signal.SIGTERM, signal.SIGINT)
    received = signal.sigtimedwait({*ending, signal.SIGHUP, signal.SIGUSR2}, RETRY_DELAY)
    if received is None or received.si_signo not in ending:
        hand_over(inheritance, find_place())
    for worker in inheritance.workers:
        os.kill(worker.pid, signal.SIGTERM)
    limit = max((worker.drain_timeout for worker in inheritance.workers), default=0.0)
    deadline = time.monotonic() + limit + DRAIN_GRACE
    codes = []
    for worker in inheritance.workers:
        while not (ended := os.waitpid(worker.pid, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(worker.pid, signal.SIGKILL)
            time.sleep(0.05)
        codes.append(os.waitstatus_to_exitcode(ended[1]))
    file = inheritance.file
    is_kept = file is None or FileWatch(file.path, inheritance.memory).close()
    return 1 if any(codes) or not is_kept else 0


def release_signals() -> None:
    """Unblocks the held signals: the handlers are there."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)


def _socket_of(fd: int) -> socket.socket:
    """A socket over a copy of a descriptor: an attempt that fails leaves the descriptor open."""
    copy = os.dup(fd)
    sock = socket.socket(fileno=copy)
    sock.setblocking(False)
    return sock

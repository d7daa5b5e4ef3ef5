"""The supervisor replaced in place: the same process, new code, everything kept.

``execve`` starts the new program in the old process, so that its number, its
children and its open files stay. What the files are, and what is known of the
children, goes along in one variable.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import signal
import sys
from typing import Any, NamedTuple, NoReturn

from iproto._fastframe import Storage

INHERITANCE = "IPROTO_INHERITANCE"
"""The variable that holds an Inheritance, as JSON."""

CHECK_TIMEOUT = 30.0
"""Seconds that the new program may take to look at the storage."""

# Held back while no handler is there for them, from the exec until the new
# program has its own: their default is to end the process.
HELD_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)


class InheritedWorker(NamedTuple):
    """A worker that runs on; see supervisor.Worker."""

    position: int
    area: int
    pid: int
    control: int
    ready: bool


class Inheritance(NamedTuple):
    """What one supervisor leaves to the next; file descriptors stay open.

    Args:
        memory: descriptor of the storage's memory.
        listeners: descriptors, by address.
        workers: those that are alive.
        positions: of each, restarts and CPU seconds used.
        rows: names of the counter rows of users' functions.
    """

    memory: int
    listeners: list[list[int]]
    workers: list[InheritedWorker]
    positions: list[tuple[int, float]]
    rows: dict[str, str]


async def refusal(memory: int, areas: int) -> str | None:
    """Asks the program as it is installed now whether it could go on with a storage.

    Args:
        memory: descriptor of the storage's memory.
        areas: its worker areas.

    Returns:
        None if it could, else why not.
    """
    asked = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "iproto.upgrade",
        str(memory),
        str(areas),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=[memory],
    )
    try:
        _, said = await asyncio.wait_for(asked.communicate(), CHECK_TIMEOUT)
    except asyncio.TimeoutError:
        asked.kill()
        await asked.wait()
        return f"it did not answer within {CHECK_TIMEOUT:g} s"
    if asked.returncode == 0:
        return None
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"it ended with code {asked.returncode}"


def hand_over(inheritance: Inheritance) -> NoReturn:
    """Becomes the program as it is installed now."""
    for fd in _descriptors(inheritance):
        os.set_inheritable(fd, True)
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    os.execve(
        sys.executable,
        sys.orig_argv,
        {**os.environ, INHERITANCE: json.dumps(inheritance._asdict())},
    )


def inherited() -> Inheritance | None:
    """What an earlier supervisor left to this process; None if it is the first."""
    text = os.environ.pop(INHERITANCE, None)
    if text is None:
        return None
    fields: dict[str, Any] = json.loads(text)
    fields["workers"] = [InheritedWorker(*worker) for worker in fields["workers"]]
    inheritance = Inheritance(**fields)
    for fd in _descriptors(inheritance):
        os.set_inheritable(fd, False)
    return inheritance


def release_signals() -> None:
    """The handlers are there: signals that came meanwhile may come through."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)


def _descriptors(inheritance: Inheritance) -> list[int]:
    return [
        inheritance.memory,
        *(fd for group in inheritance.listeners for fd in group),
        *(worker.control for worker in inheritance.workers),
    ]


def _main(memory: str, areas: str) -> int:
    """Tells the old program whether this one could go on with its storage."""
    try:
        Storage(mmap.mmap(int(memory), 0), workers=int(areas), worker=0)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))

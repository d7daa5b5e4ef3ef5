"""The supervisor replaced in place: the same process, new code, everything kept.

``execve`` starts the new program in the old process, so that its number, its
children and its open files stay. What the files are, and what is known of the
children, goes along in one variable.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import mmap
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from iproto._fastframe import Storage
from iproto.server.config import Config

if TYPE_CHECKING:
    from collections.abc import Sequence

INHERITANCE = "IPROTO_INHERITANCE"
"""The variable that holds an Inheritance, as JSON."""

CHECK_TIMEOUT = 30.0
"""Seconds that the new program may take to look at storage and settings."""

# Held back while no handler is there for them, from the exec until the new
# program has its own: their default is to end the process.
HELD_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)


class InheritedWorker(NamedTuple):
    """A worker that runs on; see processes.Worker."""

    position: int
    area: int
    pid: int
    control: int
    ready: bool
    drain_timeout: float


class Inheritance(NamedTuple):
    """What one supervisor leaves to the next; file descriptors stay open.

    Args:
        memory: descriptor of the storage's memory.
        areas: worker areas in it.
        listeners: descriptors, by address.
        workers: those that are alive.
        positions: of each, restarts and CPU seconds used.
        rows: names of the counter rows of users' functions.
        settings: the fields of the Config in force.
    """

    memory: int
    areas: int
    listeners: list[list[int]]
    workers: list[InheritedWorker]
    positions: list[tuple[int, float]]
    rows: dict[str, str]
    settings: dict[str, Any]

    @property
    def config(self) -> Config:
        """The settings, as this program knows them.

        Raises:
            ConfigError: it does not take one of them any more.
        """
        known = {field.name for field in dataclasses.fields(Config)}
        return Config(**{name: self.settings[name] for name in known & self.settings.keys()})


async def refusal(inheritance: Inheritance, command_line: Sequence[str]) -> str | None:
    """Asks the program as it is installed now whether it could take over.

    Args:
        inheritance: what it would be left.
        command_line: what would follow ``iproto``, for it to read the settings by.

    Returns:
        None if it could, else why not.
    """
    asked = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "iproto.workers.upgrade",
        json.dumps(inheritance._asdict()),
        *command_line,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=[inheritance.memory],
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
    """Becomes the program as it is installed now.

    Raises:
        OSError: the system does not start it; all is as before.
    """
    for fd in _descriptors(inheritance):
        os.set_inheritable(fd, True)
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    try:
        os.execve(
            sys.executable,
            sys.orig_argv,
            {**os.environ, INHERITANCE: json.dumps(inheritance._asdict())},
        )
    except OSError:
        release_signals()
        raise


def inherited() -> Inheritance | None:
    """What an earlier supervisor left to this process; None if it is the first."""
    text = os.environ.pop(INHERITANCE, None)
    if text is None:
        return None
    inheritance = _read(text)
    for fd in _descriptors(inheritance):
        os.set_inheritable(fd, False)
    return inheritance


def _read(text: str) -> Inheritance:
    fields: dict[str, Any] = json.loads(text)
    fields["workers"] = [InheritedWorker(*worker) for worker in fields["workers"]]
    return Inheritance(**fields)


def release_signals() -> None:
    """The handlers are there: signals that came meanwhile may come through."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)


def _descriptors(inheritance: Inheritance) -> list[int]:
    return [
        inheritance.memory,
        *(fd for group in inheritance.listeners for fd in group),
        *(worker.control for worker in inheritance.workers),
    ]


def _main(text: str, *command_line: str) -> int:
    """Tells the old program whether this one could take over from it."""
    from iproto.cli import main as cli  # which stands on all of the package

    inheritance = _read(text)
    try:
        Storage(mmap.mmap(inheritance.memory, 0), workers=inheritance.areas, worker=0)
        # The settings that it would begin with, and those that it would go on to.
        _ = inheritance.config
        cli.settings_of(command_line)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))

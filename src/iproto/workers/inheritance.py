"""What one supervisor leaves to the next in the same process, across an ``execve``.

It goes through the environment, as JSON: numbers of files that stay open, and of
processes that stay children.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from iproto.server.config import Config
from iproto.workers.pool import area_count

if TYPE_CHECKING:
    from iproto.workers.pool import Pool

INHERITANCE_VARIABLE = "IPROTO_INHERITANCE"
"""The environment variable that holds an Inheritance, as JSON."""


class InheritedWorker(NamedTuple):
    """A worker that runs on; see process.Worker."""

    position: int
    area: int
    pid: int
    control: int
    ready: bool
    drain_timeout: float


class InheritedFile(NamedTuple):
    """The file that the storage is in.

    Args:
        path: where it was opened, from the root.
        path_lock: descriptors that lock the path.
    """

    path: str
    path_lock: list[int]


class Inheritance(NamedTuple):
    """What one supervisor leaves to the next; file descriptors stay open.

    Args:
        memory: descriptor of the storage's memory.
        clients: descriptor of the memory of the table of clients.
        file: the file that this is; None if it is none.
        areas: worker areas in it.
        listeners: descriptors, by address.
        from_systemd: whether the listeners are systemd's.
        metrics: descriptor of the metrics endpoint's listener; None without an endpoint.
        workers: those that are alive.
        positions: of each, restarts and CPU seconds used.
        rows: names of the counter rows of user functions.
        settings: the fields of the Config in force.
    """

    memory: int
    clients: int
    file: InheritedFile | None
    areas: int
    listeners: list[list[int]]
    from_systemd: bool
    metrics: int | None
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

    @property
    def storage_descriptors(self) -> list[int]:
        """The file descriptors of what workers share: the next supervisor keeps them."""
        return [self.memory, self.clients, *([] if self.file is None else self.file.path_lock)]

    @property
    def descriptors(self) -> list[int]:
        """All the file descriptors in it."""
        return [
            *self.storage_descriptors,
            *(fd for group in self.listeners for fd in group),
            *([] if self.metrics is None else [self.metrics]),
            *(worker.control for worker in self.workers),
        ]


def describe(pool: Pool, metrics: int | None, file: InheritedFile | None) -> Inheritance:
    """What another program needs to take over a pool.

    Args:
        pool: the workers, and what they serve.
        metrics: descriptor of the metrics endpoint's listener, or None.
        file: the file that the storage is in, or None.
    """
    return Inheritance(
        memory=pool.memory,
        clients=pool.clients,
        file=file,
        areas=area_count(pool.count),
        listeners=[[sock.fileno() for sock in group] for group in pool.listeners],
        from_systemd=pool.from_systemd,
        metrics=metrics,
        workers=[
            InheritedWorker(
                position=worker.position,
                area=worker.area,
                pid=worker.pid,
                control=worker.control.fileno(),
                ready=worker.ready.is_set(),
                drain_timeout=worker.drain_timeout,
            )
            for worker in pool.workers
        ],
        positions=[(known.restarts, known.cpu_seconds) for known in pool.positions],
        rows={str(row): name for row, name in pool.storage.row_names.items()},
        settings=dataclasses.asdict(pool.config),
    )


def inherited() -> Inheritance | None:
    """What an earlier supervisor left to this process; None if it is the first."""
    text = os.environ.get(INHERITANCE_VARIABLE)
    if text is None:
        return None
    fields: dict[str, Any] = json.loads(text)
    fields["workers"] = [InheritedWorker(*worker) for worker in fields["workers"]]
    if fields["file"] is not None:
        fields["file"] = InheritedFile(*fields["file"])
    return Inheritance(**fields)

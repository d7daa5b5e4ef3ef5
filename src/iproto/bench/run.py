"""``iproto bench``: what a load test is to be, what the slots hold meanwhile, and the report."""

from __future__ import annotations

import json
import socket
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from iproto.bench import report
from iproto.bench.processes import LoadProcesses
from iproto.bench.workload import KINDS, Plan
from iproto.checks import MAX_SECONDS, checked_range
from iproto.client.arguments import pack_args
from iproto.client.blocking_client import Client
from iproto.client.reasons import reason_of
from iproto.client.url import parse_url
from iproto.errors import ConfigError, ConnectError, IprotoError
from iproto.wire import SLOT_BYTES, SLOT_COUNT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_CONNECTIONS = 100_000
MAX_DEPTH = 10_000
MAX_RATE = 100_000_000
MAX_PROCESSES = 1024
MIN_VALUE = 4


@dataclass(frozen=True)
class Settings:
    """What a load test is to be.

    Args:
        url: the server's; its time-out bounds connecting and the last replies.
        connections: 1..100000.
        depth: requests on their way on each connection, 1..10000; with a rate, at most.
        rate: requests a second, over 0, at most 1e8: the open loop; None: the closed one.
        duration: seconds, over 0, at most 86400.
        mix: ``read``, ``read=80,write=20`` and so on; see :data:`iproto.bench.workload.KINDS`.
        call: func_id and arguments of the kind ``call``.
        slots: ``A-B`` or ``A``, within 0-999.
        value_size: bytes of what is written, 4..256.
        processes: 1..1024, at most as many as connections.

    Raises:
        ConfigError: a value is out of its range.
    """

    url: str
    connections: int = 50
    depth: int = 16
    rate: float | None = None
    duration: float = 10.0
    mix: str = "read"
    call: tuple[int, Sequence[Any]] | None = None
    slots: str = f"0-{SLOT_COUNT - 1}"
    value_size: int = 64
    processes: int = 1

    def __post_init__(self) -> None:
        parse_url(self.url)
        checked_range("--connections", self.connections, 1, MAX_CONNECTIONS, "connections")
        checked_range("--depth", self.depth, 1, MAX_DEPTH, "requests")
        checked_range("--duration", self.duration, 0, MAX_SECONDS, "seconds", above_low=True)
        checked_range("--value-size", self.value_size, MIN_VALUE, SLOT_BYTES, "bytes")
        most = min(MAX_PROCESSES, self.connections)
        checked_range("--processes", self.processes, 1, most, "processes")
        if self.rate is not None:
            checked_range("--rate", self.rate, 0, MAX_RATE, "requests a second", above_low=True)
        if ("call" in self.shares) != (self.call is not None):
            raise ConfigError("--call, and 'call' in --mix, go together: one is there alone")
        _ = self.slot_range

    @property
    def shares(self) -> dict[str, float]:
        """Kind → its share of the requests; they sum to 1."""
        weights: dict[str, float] = {}
        for part in self.mix.split(","):
            kind, equals, text = part.strip().partition("=")
            if kind not in KINDS:
                raise ConfigError(f"--mix: no kind {kind!r}; there are {', '.join(KINDS)}")
            if kind in weights:
                raise ConfigError(f"--mix: {kind} is there twice; keep one")
            if equals and not (text.isascii() and text.isdigit() and int(text)):
                raise ConfigError(f"--mix: {text!r} is no share of {kind}; use 1, 2, 3 ...")
            weights[kind] = int(text) if equals else 1
        return {kind: weight / sum(weights.values()) for kind, weight in weights.items()}

    @property
    def slot_range(self) -> range:
        """The slots in use."""
        first, dash, last = self.slots.partition("-")
        if not dash:
            last = first
        for text in (first, last):
            if not (text.isascii() and text.isdigit() and int(text) < SLOT_COUNT):
                raise ConfigError(
                    f"--slots {self.slots!r}: use A-B or A, within 0-{SLOT_COUNT - 1}"
                )
        if int(last) < int(first):
            raise ConfigError(f"--slots {self.slots!r}: the first is after the last")
        return range(int(first), int(last) + 1)


def run(settings: Settings, *, as_json: bool = False) -> int:
    """Runs a load test and prints its report.

    Args:
        settings: what it is to be.
        as_json: print a JSON object, not text.

    Returns:
        0, or 1 if not all went well (see :func:`iproto.bench.report.has_failed`);
        128 + its number if a signal ended the test early.

    Raises:
        IprotoError: the test could not begin.
    """
    with Client(settings.url) as client:
        found = _found(settings, client)
        with LoadProcesses() as processes, _overwritten(settings, client, found) as contents:
            outcome = processes.run(_plans(settings, client, contents))
            # Here, for it is of use even if the slots cannot be put back.
            if as_json:
                print(json.dumps(report.as_dict(settings, outcome)))
            else:
                print(report.as_text(settings, outcome))
    if processes.signalled:
        return 128 + processes.signalled
    return 1 if report.has_failed(outcome) else 0


def _found(settings: Settings, client: Client) -> dict[int, bytes]:
    """What the slots in use hold before the test; nothing if none is in use."""
    if not settings.shares.keys() & {"read", "write"}:
        client.ping()
        return {}
    return dict(zip(settings.slot_range, client.read_many_bytes(settings.slot_range), strict=True))


@contextmanager
def _overwritten(
    settings: Settings, client: Client, found: dict[int, bytes]
) -> Iterator[dict[int, bytes]]:
    """What the slots in use hold during the test; if it writes, puts back what they held."""
    if "write" not in settings.shares:
        yield found
        return
    size = settings.value_size
    own = {index: (b"%03d " % index * size)[:size] for index in found}
    try:
        client.replace_many(own)
    except IprotoError:
        with suppress(IprotoError):  # some may have been written
            client.replace_many(found)
        raise
    try:
        yield own
    finally:
        try:
            client.replace_many(found)
        except IprotoError as error:
            raise IprotoError(
                f"what slots {settings.slots} held could not be put back: {error}"
            ) from None


def _plans(settings: Settings, client: Client, contents: dict[int, bytes]) -> list[Plan]:
    """What each process is to do."""
    target = replace(parse_url(settings.url), dialect=client.dialect)
    if target.path is not None:
        family, address = socket.AF_UNIX, target.path
    else:
        # As the client came through: a name may have several addresses.
        try:
            with socket.create_connection((target.host, target.port), target.timeout) as sock:
                family, address = sock.family, sock.getpeername()
        except OSError as error:
            raise ConnectError(f"cannot connect to {target.address}: {reason_of(error)}") from None
    count = settings.processes
    return [
        Plan(
            target=target,
            family=family,
            address=address,
            connections=settings.connections // count + (number < settings.connections % count),
            depth=settings.depth,
            rate=None if settings.rate is None else settings.rate / count,
            duration=settings.duration,
            mix=settings.shares,
            contents=contents,
            call=settings.call and (settings.call[0], pack_args(tuple(settings.call[1]))),
        )
        for number in range(count)
    ]

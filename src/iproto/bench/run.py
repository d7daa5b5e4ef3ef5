"""``iproto bench``: runs a load test, puts back what the slots held, and prints the report."""

from __future__ import annotations

import json
import socket
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from iproto.bench import report
from iproto.bench.processes import LoadProcesses
from iproto.bench.workload import Plan
from iproto.client.arguments import pack_args
from iproto.client.blocking_client import Client
from iproto.client.reasons import reason_of
from iproto.errors import ConnectError, IprotoError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iproto.bench.settings import Settings


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
    with Client(settings.url, timeout=settings.timeout) as client:
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
    target = replace(settings.target, dialect=client.dialect)
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

"""``iproto bench``: the settings of a load test, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iproto.bench.workload import KINDS
from iproto.checks import MAX_SECONDS, checked_range
from iproto.client.arguments import make_target
from iproto.errors import ConfigError
from iproto.wire import SLOT_BYTES, SLOT_COUNT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iproto.client.url import Target

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
        timeout: seconds, over 0, at most 86400, instead of the URL's.
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
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.target.tls is not None:
            raise ConfigError("iproto bench speaks no TLS; name a plain address, iproto://...")
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
    def target(self) -> Target:
        """The server."""
        return make_target(self.url, None, self.timeout)

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

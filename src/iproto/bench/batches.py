"""Requests that are sent and answered together, and how they are dealt out."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Slots are drawn before the load begins, and used in this order again and again.
_DRAWN = 1 << 16


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that the codec gives back together when all are answered.

    Args:
        kind: one of :data:`iproto.bench.workload.KINDS`.
        count: requests; 1 but for reads and writes.
        since: times from which latencies count: one for each, or one for all.
        items: of reads the slots, of writes the slots and their contents.
        expected: what the replies must bring; None where nothing is compared.
    """

    kind: str
    count: int
    since: tuple[float, ...]
    items: list[Any] = field(default_factory=list)
    expected: list[bytes] | None = None

    def part(self, positions: list[int]) -> Batch:
        """The requests at these positions."""
        since, expected = self.since, self.expected
        return Batch(
            self.kind,
            len(positions),
            since if len(since) == 1 else tuple(since[position] for position in positions),
            [self.items[position] for position in positions],
            None if expected is None else [expected[position] for position in positions],
        )


class Dealer:
    """Deals out requests by the mix, and the slots that they are for.

    Args:
        mix: see :class:`~iproto.bench.workload.Plan`.
        contents: see :class:`~iproto.bench.workload.Plan`.
    """

    def __init__(self, mix: Mapping[str, float], contents: Mapping[int, bytes]) -> None:
        self._mix = dict(mix)
        self._last = next(reversed(self._mix))
        self._owed = dict.fromkeys(self._mix, 0.0)
        slots = list(contents)
        self._indexes = random.choices(slots, k=_DRAWN) if slots else []
        self._contents = [contents[index] for index in self._indexes]
        self._items: list[tuple[int, str | bytes]] = list(
            zip(self._indexes, self._contents, strict=True)
        )
        self._at = 0

    def deal(self, count: int, since: tuple[float, ...]) -> Iterator[Batch]:
        """The next requests.

        Args:
            count: how many, at most 65536.
            since: as in :class:`Batch`.
        """
        for kind, number in self.kinds(count):
            own, since = (since[:number], since[number:]) if len(since) > 1 else (since, since)
            if kind == "read":
                at = self._advance(number)
                indexes, expected = (
                    self._indexes[at : at + number],
                    self._contents[at : at + number],
                )
                yield Batch(kind, number, own, indexes, expected)
            elif kind == "write":
                at = self._advance(number)
                yield Batch(kind, number, own, self._items[at : at + number])
            else:  # the codec has no bulk for these
                for place in range(number):
                    yield Batch(kind, 1, own[place : place + 1] if len(own) > 1 else own)

    def kinds(self, count: int) -> list[tuple[str, int]]:
        """How many of each kind the next requests are; true to the mix in the long run."""
        dealt = []
        left = count
        for kind, share in self._mix.items():
            owed = self._owed[kind] + count * share
            number = left if kind == self._last else min(left, max(0, int(owed)))
            self._owed[kind] = owed - number
            left -= number
            if number:
                dealt.append((kind, number))
        return dealt

    def _advance(self, count: int) -> int:
        at = self._at if self._at + count <= _DRAWN else 0
        self._at = at + count
        return at

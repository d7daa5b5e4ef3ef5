"""Latencies, counted: any number of them in little memory, exact to a part in a thousand."""

from __future__ import annotations

# Bits of the microseconds up to which each has a count of its own; from there on there are
# 1024 steps to each doubling, as an HDR histogram has them: no step is wider than
# 1/1024 of its value.
_EXACT_BITS = 11


class Latency:
    """A histogram of latencies."""

    def __init__(self) -> None:
        self.count = 0
        self.most = 0.0
        """The longest, in seconds, exact."""
        self._total = 0.0
        self._counts: dict[int, int] = {}

    def record(self, seconds: float, count: int = 1) -> None:
        """Counts a latency, 0 or more seconds, ``count`` times."""
        key = int(seconds * 1e6)
        shift = key.bit_length() - _EXACT_BITS
        if shift > 0:
            key = key >> shift << shift
        self._counts[key] = self._counts.get(key, 0) + count
        self.count += count
        self._total += seconds * count
        self.most = max(self.most, seconds)

    def add(self, other: Latency) -> None:
        """Adds what another one has counted."""
        for key, count in other._counts.items():
            self._counts[key] = self._counts.get(key, 0) + count
        self.count += other.count
        self._total += other._total
        self.most = max(self.most, other.most)

    @property
    def mean(self) -> float:
        """In seconds; 0 if there is none."""
        return self._total / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """The latency, in seconds, that ``percent`` of all do not exceed; 0 if there is none.

        Args:
            percent: over 0, at most 100.
        """
        wanted = self.count * percent / 100
        seen = 0
        for key in sorted(self._counts):
            seen += self._counts[key]
            if seen >= wanted:
                # The step's upper end; no step reaches beyond the longest.
                step = 1 << max(0, key.bit_length() - _EXACT_BITS)
                return min((key + step) / 1e6, self.most)
        return self.most

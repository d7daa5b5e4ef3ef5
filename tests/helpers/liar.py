"""An int that no comparison in Python keeps within a range."""

from __future__ import annotations


class Liar(int):
    """An int whose comparisons say that it is in any range."""

    def __lt__(self, other: object) -> bool:
        return True

    __le__ = __gt__ = __ge__ = __lt__

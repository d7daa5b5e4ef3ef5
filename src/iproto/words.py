"""Words for messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number and its noun: ``1 worker``, ``2 workers``.

    Args:
        number: how many.
        noun: in the singular; its plural ends in ``s``.
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

"""Where the program was started, as it was named then.

A release directory behind a symlink is turned to the next release, and the old
one removed, while the supervisor runs. What it starts must go by the symlink.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NamedTuple


class Place(NamedTuple):
    """Where a new process of the program starts.

    Args:
        directory: the working directory.
        python: the interpreter.
    """

    directory: str
    python: str

    @property
    def existing_directory(self) -> str | None:
        """The directory; None if it is not there any more."""
        return self.directory if os.path.isdir(self.directory) else None


def find_place() -> Place:
    """The place of this process.

    PWD names the directory, if the parent has set it: the system knows only where
    a symlink led. An interpreter below the directory is named through it, too.
    """
    actual = os.getcwd()
    named = os.environ.get("PWD", "")
    directory = actual
    with contextlib.suppress(OSError):
        if os.path.isabs(named) and os.path.samefile(named, actual):
            directory = named
    python = sys.executable
    if python.startswith(actual + os.sep):
        python = directory + python[len(actual) :]
    return Place(directory, python)

"""What the command lines of the programs here share."""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import NoReturn

from benchmarks.peers.common.servers import PEERS


def counts(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 1,16,256")
    return [int(part) for part in parts]


def chosen_from(names: tuple[str, ...], what: str, text: str) -> list[str]:
    chosen = text.split(",")
    for name in chosen:
        if name not in names:
            raise argparse.ArgumentTypeError(f"no {what} {name!r}; there are {', '.join(names)}")
    return chosen


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def build() -> None:
    """Build the load generator and the C server."""
    subprocess.run(["make", "--quiet", "-C", str(PEERS)], check=True)


def stop_on_signal(*_: object) -> NoReturn:
    sys.exit(1)  # as an exception, so that the server that runs is stopped

"""``iproto check``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from iproto.cli.options import add_command
from iproto.cli.output import EXIT_OK
from iproto.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from iproto.cli.options import Commands


def add_check(commands: Commands) -> None:
    """Adds the command."""
    check = add_command(
        commands,
        "check",
        _check,
        "see whether a storage file is whole, and repair it",
        "  iproto check /var/lib/iproto/storage\n  iproto check --repair /var/lib/iproto/storage",
    )
    check.add_argument("path", metavar="PATH", help="the file; no server may use it")
    check.add_argument(
        "--repair",
        action="store_true",
        help="give damaged slots the content that they had before, or none if that is damaged, "
        "too; the file as it was is kept as PATH.damaged-1",
    )


def _check(options: argparse.Namespace) -> int:
    from iproto.storage.check import check_file

    path = options.path
    found = check_file(path, repair=options.repair)
    verb = "has" if found.kept else "can have"
    for slot, length in found.damaged:
        if length is None:
            print(f"slot {slot}: damaged, both contents; {verb} none")
        else:
            print(f"slot {slot}: damaged; {verb} its other content, {length} bytes")
    sys.stdout.flush()  # the slots come before the line that sums them up
    if found.damaged and not found.kept:
        raise ConfigError(
            f"storage file {path} is damaged; restore a copy of it, or repair it: "
            f"iproto check --repair {path}"
        )
    was = f"; as it was, it is kept as {found.kept}" if found.kept else ""
    print(f"{path} is whole; its state is {found.state.name}{was}")
    return EXIT_OK

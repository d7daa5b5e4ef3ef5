"""Options that several commands have, and the types of their values."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from iproto.address import DEFAULT_URL

if TYPE_CHECKING:
    from collections.abc import Callable

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    help: str,
    examples: str,
) -> argparse.ArgumentParser:
    """Adds a command.

    Args:
        commands: where.
        name: what it is called by.
        run: runs it, and returns the exit code.
        help: what it does, in a few words.
        examples: of command lines, each indented by two spaces.
    """
    added = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(run=run)
    return added


def add_url(parser: argparse.ArgumentParser) -> None:
    """Adds the option that says which server to call."""
    parser.add_argument(
        "--url",
        default=os.environ.get("IPROTO_URL") or DEFAULT_URL,
        help="iproto://HOST:PORT?dialect=vk&timeout=5 or iproto+unix:///PATH; "
        "IPROTO_URL in the environment works too (default: %(default)s)",
    )


def func_id(text: str) -> int:
    """Reads the number of a function."""
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no function number; give it like 0x00030001 or 196609"
        ) from None


def json_value(text: str) -> Any:
    """Reads a JSON value."""
    try:
        return json.loads(text)
    except RecursionError:
        raise argparse.ArgumentTypeError("the value is nested too deep") from None
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not JSON; a string needs quotes of its own: '\"{text}\"'"
        ) from None

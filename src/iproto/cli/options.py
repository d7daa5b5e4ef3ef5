"""Options that several commands have, and the types of their values."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from iproto.address import DEFAULT_URL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which server to call, and how long to wait for it."""
    parser.add_argument(
        "--url",
        default=os.environ.get("IPROTO_URL") or DEFAULT_URL,
        help="iproto://HOST:PORT?dialect=vk&timeout=5 or iproto+unix:///PATH; "
        "IPROTO_URL in the environment works too (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="for each call, over 0, at most 86400 (default: that of the URL)",
    )


def command_first(command_line: Sequence[str], commands: Commands) -> list[str]:
    """The command line with the options that stand before the command behind it.

    Args:
        command_line: as the user wrote it: ``--url U read 7``.
        commands: all commands.

    Returns:
        What argparse takes: ``read --url U 7``. Without a command it is as it was.
    """
    with_value = {
        option
        for command in commands.choices.values()
        for action in command._actions
        if action.nargs != 0
        for option in action.option_strings
    }
    at = 0
    while at < len(command_line) and command_line[at].startswith("-"):
        at += 1 + (command_line[at] in with_value)
    if not 0 < at < len(command_line) or command_line[at] not in commands.choices:
        return [*command_line]
    return [command_line[at], *command_line[:at], *command_line[at + 1 :]]


def func_id(text: str) -> int:
    """Reads the number of a function."""
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no function number; give it like 0x00030001 or 196609"
        ) from None


def function(text: str) -> int | str:
    """Reads the number or the name of a function; a number begins with a digit."""
    return func_id(text) if not text or text[0].isdigit() else text


def json_value(text: str) -> Any:
    """Reads a JSON value."""
    try:
        # As the shell had it: in the C locale the text is not what the bytes mean.
        return json.loads(os.fsencode(text).decode())
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8, which JSON must be") from None
    except RecursionError:
        raise argparse.ArgumentTypeError("the value is nested too deep") from None
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not JSON; a string needs quotes of its own: '\"{text}\"'"
        ) from None

"""The command line: reads the options, runs one command, and ends with its exit code.

Only what parses the options is imported at start; the rest when a command runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from iproto._version import __version__
from iproto.checks import EXIT_USAGE
from iproto.cli.bench import add_bench
from iproto.cli.client import add_client_commands
from iproto.cli.functions import add_functions
from iproto.cli.options import command_first
from iproto.cli.output import (
    EXIT_BAD_ANSWER,
    EXIT_CODES,
    EXIT_OK,
    exit_code,
    nowhere,
    prepare_stdout,
    print_error,
)
from iproto.cli.serve import add_serve
from iproto.cli.storage import add_check
from iproto.errors import IprotoError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: as after ``iproto`` on a command line; ``sys.argv[1:]`` if None.

    Returns:
        The exit code; see ``EXIT_CODES``.
    """
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        prepare_stdout()
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of our output has gone; nobody is there for a message.
        assert sys.stdout is not None
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt:
        return 130
    except RecursionError:
        print_error("the value is nested too deep to be printed")
        return EXIT_BAD_ANSWER
    except (IprotoError, ValueError, OverflowError) as error:
        print_error(error)
        return exit_code(error)
    except OSError as error:
        # A full disk behind our output, most likely; calls have errors of their own.
        sys.stdout = nowhere()
        print_error(error.strerror or error)
        return EXIT_USAGE


def parse(command_line: Sequence[str]) -> argparse.Namespace:
    """Reads a command line; ends the process with a message if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="iproto",
        description="Serve and call the iproto protocol.",
        epilog="examples:\n"
        "  iproto serve\n"
        "  iproto replace 7 'hello'\n"
        "  iproto read 7\n"
        "  iproto COMMAND --help\n\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"iproto {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_serve(commands)
    add_client_commands(commands)
    add_functions(commands)
    add_check(commands)
    add_bench(commands)
    arguments = command_first(command_line, commands)
    return parser.parse_args(arguments, argparse.Namespace(command_line=arguments))


if __name__ == "__main__":
    sys.exit(main())

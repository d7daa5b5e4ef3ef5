"""``iproto functions`` and ``iproto describe``: the user functions of a server, or of an app."""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import TYPE_CHECKING, Any

from iproto.cli.options import add_command, add_server_options, json_value
from iproto.cli.output import EXIT_OK, print_json
from iproto.errors import ConfigError, ProtocolError, UnsupportedCommandError
from iproto.wire import DESCRIBE_FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iproto.cli.options import Commands
    from iproto.client.blocking_client import Client

    Described = dict[str, Any]

# More pages than the functions that a server can have: a server that sends one after the
# other would keep us for ever.
MAX_PAGES = 4096


def add_functions(commands: Commands) -> None:
    """Adds both."""
    functions = add_command(
        commands,
        "functions",
        _functions,
        "list the user functions of a server",
        "  iproto functions\n  iproto functions --json",
    )
    add_server_options(functions)
    describe = add_command(
        commands,
        "describe",
        _describe,
        "list the user functions of an app, without a server",
        "  iproto describe myservice:app",
    )
    describe.add_argument("app", metavar="MODULE:APP", help="your iproto.App, e.g. myservice:app")
    for command in (functions, describe):
        command.add_argument(
            "--json", action="store_true", help="print JSON, with docs and JSON Schemas"
        )


def _functions(options: argparse.Namespace) -> int:
    from iproto.client.blocking_client import Client

    with Client(options.url, timeout=options.timeout) as client:
        _show(functions_of(client), options.json)
    return EXIT_OK


def _describe(options: argparse.Namespace) -> int:
    from iproto.server.startup import load_app

    app = load_app(options.app)
    from iproto.describe import describe

    _show([{**found} for found in describe(app.functions.values())], options.json)
    return EXIT_OK


def _show(functions: Sequence[Described], as_json: bool) -> None:
    if as_json:
        print_json(functions)
        return
    for function in functions:
        first_line = function["doc"].partition("\n")[0]
        print(f"{function['func_id']:#010x}  {function['signature']}")
        if first_line:
            print(f"            {first_line}")


def functions_of(client: Client) -> list[Described]:
    """Asks a server for its user functions.

    Raises:
        ConfigError: the server has none, or does not say.
    """
    found: list[Described] = []
    first: int | None = 0
    for _ in range(MAX_PAGES):
        try:
            page = client.call(DESCRIBE_FUNCTIONS, first)
        except UnsupportedCommandError:
            raise ConfigError(
                "this server does not tell its functions: it has no user functions, has "
                "--describe-functions off, or is not of this package; call them by number"
            ) from None
        try:
            found += [_checked(function) for function in page["functions"]]
            first = page["next"]
        except (KeyError, TypeError) as error:
            raise ProtocolError(f"the server's list of functions is none: {error}") from None
        if first is None:
            return found
    raise ProtocolError(f"the server's list of functions has more than {MAX_PAGES} pages")


def _checked(function: Any) -> Described:
    if not isinstance(function["func_id"], int):
        raise TypeError(f"{function['func_id']!r} is no function number")
    return {
        "func_id": function["func_id"],
        "name": str(function["name"]),
        "signature": str(function["signature"]),
        "doc": str(function["doc"]),
        "parameters": dict(function["parameters"]),
        "result": dict(function["result"]),
        "timeout": function["timeout"],
    }


def find_function(client: Client, name: str) -> Described:
    """The function of this name.

    Raises:
        ConfigError: the server has no such function, or does not say.
    """
    functions = functions_of(client)
    for function in functions:
        if function["name"] == name:
            return function
    names = ", ".join(function["name"] for function in functions)
    raise ConfigError(f"the server has no function {name!r}; it has: {names}")


def arguments_for(function: Described, texts: Sequence[str]) -> list[Any]:
    """Arguments from a command line: JSON, or text where the function takes nothing else."""
    items = function["parameters"].get("prefixItems", [])
    only_text = [isinstance(item, dict) and item.get("type") == "string" for item in items]
    only_text += [False] * len(texts)
    return [
        _text(text) if is_text else json_argument(text)
        for text, is_text in zip(texts, only_text, strict=False)
    ]


def _text(text: str) -> str:
    """The text, with or without the quotes of JSON."""
    if text.startswith('"'):
        with contextlib.suppress(ConfigError):
            value = json_argument(text)
            if isinstance(value, str):
                return value
    try:
        return os.fsencode(text).decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{text!r} is not UTF-8, which text must be") from None


def json_argument(text: str) -> Any:
    """A JSON value of the command line.

    Raises:
        ConfigError: it is none.
    """
    try:
        return json_value(text)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(str(error)) from None

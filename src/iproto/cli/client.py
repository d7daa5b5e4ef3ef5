"""The commands that call a server: ``read``, ``replace``, ``state``, ``ping`` and ``call``."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from iproto.cli.functions import arguments_for, find_function, json_argument
from iproto.cli.options import add_command, add_server_options, function
from iproto.cli.output import EXIT_OK, print_json
from iproto.errors import (
    ConfigError,
    LockedError,
    OutOfRangeError,
    ProtocolError,
    ReadOnlyError,
    TextError,
)
from iproto.wire import SLOT_BYTES, SLOT_COUNT

if TYPE_CHECKING:
    import argparse

    from iproto.cli.options import Commands
    from iproto.client.blocking_client import Client


def add_client_commands(commands: Commands) -> None:
    """Adds all of them."""
    read = add_command(
        commands,
        "read",
        _read,
        "print the strings of slots",
        "  iproto read 7\n  iproto read 0 1 2 --json",
    )
    read.add_argument("index", nargs="+", type=int, metavar="INDEX", help="slot, 0..999")
    form = read.add_mutually_exclusive_group()
    form.add_argument(
        "--json",
        action="store_true",
        help='print one JSON object, index to string, or to {"hex": ...} where bytes are not UTF-8',
    )
    form.add_argument("--hex", action="store_true", help="print bytes in hex, UTF-8 or not")

    replace = add_command(
        commands,
        "replace",
        _replace,
        "write the string of a slot",
        "  iproto replace 7 'hello'\n  printf 'hello' | iproto replace 7 -",
    )
    replace.add_argument("index", type=int, metavar="INDEX", help="slot, 0..999")
    replace.add_argument(
        "text",
        metavar="TEXT",
        help="at most 256 bytes; - for what comes from standard input, as it is",
    )

    state = add_command(
        commands,
        "state",
        _state,
        "print the storage's state, or switch it",
        "  iproto state\n  iproto state readonly",
    )
    state.add_argument(
        "to",
        nargs="?",
        choices=("readonly", "readwrite", "maintenance"),
        help="switch to it; without, the state is found out by a read, and by a write to a slot "
        "that does not exist",
    )
    state.add_argument("--json", action="store_true", help="print a JSON object")

    ping = add_command(
        commands, "ping", _ping, "see whether a server answers, and how fast", "  iproto ping"
    )
    ping.add_argument("--json", action="store_true", help="print a JSON object")

    call = add_command(
        commands,
        "call",
        _call,
        "call any function: JSON in, JSON out",
        "  iproto call 0x00030001 '\"ab\"' 3\n  iproto call repeat ab 3\n"
        "  iproto call 0x00020002 7",
    )
    call.add_argument(
        "function",
        type=function,
        metavar="FUNCTION",
        help="0x00030001, decimal, or the name, which is looked up at the server",
    )
    call.add_argument(
        "arguments",
        nargs="*",
        metavar="ARG",
        help="a JSON value; after a name, what a function takes as text needs no quotes",
    )

    for command in (read, replace, state, ping, call):
        add_server_options(command)


def _client(options: argparse.Namespace) -> Client:
    from iproto.client.blocking_client import Client

    return Client(options.url, timeout=options.timeout)


def _read(options: argparse.Namespace) -> int:
    indexes = options.index
    with _client(options) as client:
        if len(indexes) == 1:  # an error says nothing of an item then
            contents = [client.read_bytes(indexes[0])]
        else:
            contents = client.read_many_bytes(indexes)
    if options.json:
        print_json({str(i): _text(content) for i, content in zip(indexes, contents, strict=True)})
        return EXIT_OK
    lines = [content.hex() if options.hex else _text(content) for content in contents]
    for index, line in zip(indexes, lines, strict=True):
        if isinstance(line, bytes):
            raise TextError(
                f"slot {index} holds {len(line)} bytes that are not UTF-8; "
                "print them with --hex or --json"
            )
    for line in lines:
        print(line)
    return EXIT_OK


def _text(content: bytes) -> str | bytes:
    """The text that bytes are; the bytes themselves if they are none."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def _replace(options: argparse.Namespace) -> int:
    # As the shell had it: bytes that are not UTF-8 come through.
    content = _standard_input() if options.text == "-" else os.fsencode(options.text)
    with _client(options) as client:
        client.replace(options.index, content)
    return EXIT_OK


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise ConfigError("standard input is closed; give the text as an argument")
    content = sys.stdin.buffer.read(SLOT_BYTES + 1)
    if len(content) > SLOT_BYTES:
        raise ConfigError(f"standard input has more than {SLOT_BYTES} bytes, a slot's limit")
    return content


def _state(options: argparse.Namespace) -> int:
    with _client(options) as client:
        if options.to is not None:
            getattr(client, f"switch_{options.to}")()
            state = options.to
        else:
            state = _find_state(client)
    if options.json:
        print_json({"state": state})
    else:
        print(state)
    return EXIT_OK


def _find_state(client: Client) -> str:
    """Finds the state by what the server refuses; changes nothing."""
    try:
        client.replace(SLOT_COUNT, "")
    except LockedError:
        return "maintenance"
    except ReadOnlyError:
        return "readonly"
    except OutOfRangeError:
        return "readwrite"
    raise ProtocolError(f"the server accepted a write to slot {SLOT_COUNT}, which cannot exist")


def _ping(options: argparse.Namespace) -> int:
    with _client(options) as client:
        client.ping()  # connects
        begun = time.perf_counter()
        client.ping()
        milliseconds = (time.perf_counter() - begun) * 1000
    if options.json:
        print_json({"milliseconds": round(milliseconds, 3)})
    else:
        print(f"answered in {milliseconds:.3f} ms")
    return EXIT_OK


def _call(options: argparse.Namespace) -> int:
    func_id: int | str = options.function
    texts: list[str] = options.arguments
    # Before connecting: they may be no JSON.
    arguments = [json_argument(text) for text in texts] if isinstance(func_id, int) else []
    with _client(options) as client:
        if isinstance(func_id, str):
            described = find_function(client, func_id)
            func_id, arguments = int(described["func_id"]), arguments_for(described, texts)
        print_json(client.call(func_id, *arguments))
    return EXIT_OK

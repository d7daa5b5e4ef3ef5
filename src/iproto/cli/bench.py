"""``iproto bench``."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from iproto.cli.options import add_command, add_server_options, func_id, json_value
from iproto.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from iproto.cli.options import Commands


def add_bench(commands: Commands) -> None:
    """Adds the command."""
    bench = add_command(
        commands,
        "bench",
        _bench,
        "put a load on a server, and account for every request",
        "  iproto bench\n"
        "  iproto bench --connections 200 --depth 1 --mix read=80,write=20\n"
        "  iproto bench --rate 50000 --duration 60 --json\n"
        "  iproto bench --mix call --call 0x00030001 '\"ab\"' 3\n\n"
        "Without --rate each connection keeps --depth requests on their way. With it, requests\n"
        "are due on a fixed schedule, and latencies count from when they were due. Writes change\n"
        "the slots; what these held is put back at the end.",
    )

    def number(name: str, kind: type, metavar: str, help: str) -> None:
        bench.add_argument(name, type=kind, default=argparse.SUPPRESS, metavar=metavar, help=help)

    number("--connections", int, "N", "1..100000 (default: 50)")
    number("--depth", int, "N", "requests on their way on each, 1..10000 (default: 16)")
    number("--rate", float, "R", "requests a second in all: the open loop (default: none)")
    number("--duration", float, "SECONDS", "over 0, at most 86400 (default: 10)")
    number("--value-size", int, "BYTES", "of what is written, 4..256 (default: 64)")
    number("--processes", int, "N", "that share the load, 1..1024 (default: 1)")
    bench.add_argument(
        "--mix",
        default=argparse.SUPPRESS,
        metavar="KIND[=SHARE],...",
        help="of read, write, ping, call, as in read=80,write=20 (default: read)",
    )
    bench.add_argument(
        "--slots",
        default=argparse.SUPPRESS,
        metavar="A-B",
        help="to read and write (default: 0-999)",
    )
    bench.add_argument(
        "--call",
        nargs="+",
        default=argparse.SUPPRESS,
        metavar=("FUNC_ID", "ARG"),
        help="the function that 'call' in the mix stands for; arguments in JSON (default: none)",
    )
    bench.add_argument("--json", action="store_true", help="print a JSON object")
    add_server_options(bench)


def _bench(options: argparse.Namespace) -> int:
    from iproto.bench.run import run
    from iproto.bench.settings import Settings

    given = vars(options).copy()
    if "call" in given:
        number, *arguments = given["call"]
        given["call"] = (_checked(func_id, number), [_checked(json_value, a) for a in arguments])
    names = {field.name for field in dataclasses.fields(Settings)}
    settings = Settings(**{name: given[name] for name in names & given.keys()})
    return run(settings, as_json=options.json)


def _checked(read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"--call: {error}") from None

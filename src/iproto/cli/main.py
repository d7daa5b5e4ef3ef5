"""The command line: ``iproto serve`` and the calls that a shell needs.

Only what parses the options is imported at start; the rest when a command runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

from iproto._version import __version__
from iproto.address import DEFAULT_URL
from iproto.errors import (
    CallTimeoutError,
    ConfigError,
    Error,
    IprotoError,
    ProtocolError,
    TextError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from iproto.client.blocking_client import Client

EXIT_OK = 0
EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_NO_CONNECTION = 3
EXIT_TIMEOUT = 4
EXIT_BAD_ANSWER = 5
EXIT_CODES = """\
exit codes:
  0  done
  1  the server answered with an error; serve: the drain took too long; bench: not all went well
  2  wrong options, an address that cannot be listened on, or a damaged storage file
  3  no connection, or it was lost
  4  no answer in time
  5  the answer breaks the protocol, or is not text where text was asked for"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: as after ``iproto`` on a command line; ``sys.argv[1:]`` if None.

    Returns:
        The exit code; see ``EXIT_CODES``.
    """
    try:
        options = _parse(arguments)
        if sys.stdout is None:  # closed by whoever started us: there is nobody to tell
            sys.stdout = _nowhere()
        elif isinstance(sys.stdout, io.TextIOWrapper):
            # A terminal that has no sign for a character gets its number, not an error.
            sys.stdout.reconfigure(errors="backslashreplace")
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has left; nothing is to be said to them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt:
        return 130
    except RecursionError:
        print("iproto: the value is nested too deep to be printed", file=sys.stderr)
        return EXIT_BAD_ANSWER
    except (IprotoError, ValueError, OverflowError) as error:
        print(f"iproto: {_one_line(error)}", file=sys.stderr)
        return _exit_code(error)
    except OSError as error:
        # A full disk behind our output, most likely; calls have errors of their own.
        sys.stdout = _nowhere()
        print(f"iproto: {error.strerror or error}", file=sys.stderr)
        return EXIT_USAGE


def _nowhere() -> TextIO:
    return open(os.devnull, "w")


def _exit_code(error: Exception) -> int:
    if isinstance(error, Error):
        return EXIT_REFUSED
    if isinstance(error, CallTimeoutError):
        return EXIT_TIMEOUT
    if isinstance(error, (ProtocolError, TextError)):
        return EXIT_BAD_ANSWER
    if isinstance(error, (ConfigError, ValueError, OverflowError)):
        return EXIT_USAGE
    return EXIT_NO_CONNECTION


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


# The options.


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    return _parser().parse_args(arguments)


def _parser() -> argparse.ArgumentParser:
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

    def command(
        name: str, run: Callable[[Any], int], help: str, examples: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    serve = command(
        "serve",
        _serve,
        "serve the storage, and functions of your own",
        "  iproto serve\n"
        "  iproto serve myservice:app --bind 0.0.0.0:8080 --bind unix:/run/iproto.sock\n"
        "  IPROTO_DIALECT=mailru LOG_LEVEL=DEBUG iproto serve\n"
        "  iproto serve --config /etc/iproto.toml --workers auto\n\n"
        "SIGTERM and SIGINT drain: everything received is answered, then the exit code is 0\n"
        "(1 if that took longer than --drain-timeout). A second signal ends at once.",
    )
    serve.add_argument(
        "app", nargs="?", metavar="MODULE:APP", help="your iproto.App, e.g. myservice:app"
    )
    _add_settings(serve)

    read = command(
        "read", _read, "print the strings of slots", "  iproto read 7\n  iproto read 0 1 2 --json"
    )
    read.add_argument("index", nargs="+", type=int, metavar="INDEX", help="slot, 0..999")
    form = read.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object, index to string")
    form.add_argument("--hex", action="store_true", help="print bytes in hex, UTF-8 or not")

    replace = command(
        "replace", _replace, "write the string of a slot", "  iproto replace 7 'hello'"
    )
    replace.add_argument("index", type=int, metavar="INDEX", help="slot, 0..999")
    replace.add_argument("text", metavar="TEXT", help="at most 256 bytes")

    state = command(
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

    ping = command("ping", _ping, "see whether a server answers, and how fast", "  iproto ping")
    ping.add_argument("--json", action="store_true", help="print a JSON object")

    call = command(
        "call",
        _call,
        "call any function: JSON in, JSON out",
        "  iproto call 0x00030001 '\"ab\"' 3\n  iproto call 0x00020002 7",
    )
    call.add_argument("func_id", type=_func_id, metavar="FUNC_ID", help="0x00030001, or decimal")
    call.add_argument("arguments", nargs="*", type=_json, metavar="ARG", help="a JSON value")

    check = command(
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

    bench = command(
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
    _add_bench_options(bench)

    for client in (read, replace, state, ping, call, bench):
        client.add_argument(
            "--url",
            default=os.environ.get("IPROTO_URL") or DEFAULT_URL,
            help="iproto://HOST:PORT?dialect=vk&timeout=5 or iproto+unix:///PATH; "
            "IPROTO_URL in the environment works too (default: %(default)s)",
        )
    return parser


def _add_bench_options(parser: argparse.ArgumentParser) -> None:
    def number(name: str, kind: type, metavar: str, help: str) -> None:
        parser.add_argument(name, type=kind, default=argparse.SUPPRESS, metavar=metavar, help=help)

    number("--connections", int, "N", "1..100000 (default: 50)")
    number("--depth", int, "N", "requests on their way on each, 1..10000 (default: 16)")
    number("--rate", float, "R", "requests a second in all: the open loop (default: none)")
    number("--duration", float, "SECONDS", "over 0, at most 86400 (default: 10)")
    number("--value-size", int, "BYTES", "of what is written, 4..256 (default: 64)")
    number("--processes", int, "N", "that share the load, 1..1024 (default: 1)")
    parser.add_argument(
        "--mix",
        default=argparse.SUPPRESS,
        metavar="KIND[=SHARE],...",
        help="of read, write, ping, call, as in read=80,write=20 (default: read)",
    )
    parser.add_argument(
        "--slots",
        default=argparse.SUPPRESS,
        metavar="A-B",
        help="to read and write (default: 0-999)",
    )
    parser.add_argument(
        "--call",
        nargs="+",
        default=argparse.SUPPRESS,
        metavar=("FUNC_ID", "ARG"),
        help="the function that 'call' in the mix stands for; arguments in JSON (default: none)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """One option for each field of Config, and the one of the settings file."""
    from iproto.server.config import Config
    from iproto.server.settings import FILE_VARIABLE, default, variables

    parser.add_argument(
        "--config",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="settings file, in TOML: max_body = 4096 and the like; options and variables win "
        f"over it ({FILE_VARIABLE})",
    )
    for field in dataclasses.fields(Config):
        standard = default(field)
        shown = ", ".join(standard) if isinstance(standard, tuple) else standard
        variable = variables(field)[0]
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            dest=field.name,
            default=argparse.SUPPRESS,
            action="append" if field.metadata.get("many") else "store",
            metavar=field.metadata.get("metavar") or "|".join(field.metadata["choices"]),
            help=f"{field.metadata['help']} (default: {shown}; {variable})",
        )


def _func_id(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no function number; give it like 0x00030001 or 196609"
        ) from None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise argparse.ArgumentTypeError("the value is nested too deep") from None
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not JSON; a string needs quotes of its own: '\"{text}\"'"
        ) from None


# The commands.


def _serve(options: argparse.Namespace) -> int:
    from iproto.workers import upgrade

    return upgrade.take_over(partial(_serve_now, options))


def _serve_now(options: argparse.Namespace) -> int:
    from iproto.server import startup
    from iproto.server.settings import read_settings
    from iproto.workers import upgrade

    read = partial(read_settings, vars(options), os.environ)
    inheritance = upgrade.inherited()
    config = read() if inheritance is None else inheritance.config
    startup.set_up_logging(config.log_level)
    area = upgrade.trial_area()
    if inheritance is not None and area is not None:
        from iproto.workers import trial

        return trial.run(inheritance, area, options.app or "", read)
    if config.workers is not None:
        from iproto.workers import supervisor

        return supervisor.run(config, options.app or "", read, inheritance=inheritance)
    app = startup.load_app(options.app) if options.app else None
    from iproto.server.server import run

    return startup.leave(run(config, app))


def _client(options: argparse.Namespace) -> Client:
    from iproto.client.blocking_client import Client

    return Client(options.url)


def _read(options: argparse.Namespace) -> int:
    with _client(options) as client:
        if options.hex:
            for content in client.read_many_bytes(options.index):
                print(content.hex())
            return EXIT_OK
        if len(options.index) == 1:
            texts = [client.read(options.index[0])]
        else:
            texts = client.read_many(options.index)
    if options.json:
        _print_json({str(index): text for index, text in zip(options.index, texts, strict=True)})
    else:
        for text in texts:
            print(text)
    return EXIT_OK


def _replace(options: argparse.Namespace) -> int:
    with _client(options) as client:
        # As the shell had it: bytes that are not UTF-8 come through.
        client.replace(options.index, os.fsencode(options.text))
    return EXIT_OK


def _state(options: argparse.Namespace) -> int:
    with _client(options) as client:
        if options.to is not None:
            getattr(client, f"switch_{options.to}")()
            state = options.to
        else:
            state = _find_state(client)
    if options.json:
        _print_json({"state": state})
    else:
        print(state)
    return EXIT_OK


def _find_state(client: Client) -> str:
    """Tells the state by what is refused; changes nothing."""
    from iproto.errors import LockedError, OutOfRangeError, ReadOnlyError
    from iproto.wire import SLOT_COUNT

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
    import time

    with _client(options) as client:
        client.ping()  # connects
        begun = time.perf_counter()
        client.ping()
        milliseconds = (time.perf_counter() - begun) * 1000
    if options.json:
        _print_json({"milliseconds": round(milliseconds, 3)})
    else:
        print(f"answered in {milliseconds:.3f} ms")
    return EXIT_OK


def _call(options: argparse.Namespace) -> int:
    with _client(options) as client:
        _print_json(client.call(options.func_id, *options.arguments))
    return EXIT_OK


def _bench(options: argparse.Namespace) -> int:
    from iproto.bench import run as bench

    given = vars(options).copy()
    if "call" in given:
        func_id, *arguments = given["call"]
        given["call"] = (_checked(_func_id, func_id), [_checked(_json, a) for a in arguments])
    names = {field.name for field in dataclasses.fields(bench.Settings)}
    settings = bench.Settings(**{name: given[name] for name in names & given.keys()})
    return bench.run(settings, as_json=options.json)


def _checked(read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"--call: {error}") from None


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


def _print_json(value: Any) -> None:
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    text = json.dumps(_with_text_keys(value), ensure_ascii=encoding != "utf8", default=_jsonable)
    print(text)


def _with_text_keys(value: Any) -> Any:
    """The same with keys that JSON takes: whatever is no text becomes the text of its JSON."""
    if isinstance(value, dict):
        return {
            key if isinstance(key, str) else json.dumps(key, default=_jsonable): _with_text_keys(v)
            for key, v in value.items()
        }
    return [_with_text_keys(item) for item in value] if isinstance(value, list) else value


def _jsonable(value: Any) -> Any:
    """What MsgPack has and JSON has not: bytes as hex, points in time as ISO 8601."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    isoformat = getattr(value, "isoformat", None)
    return isoformat() if isoformat is not None else str(value)


if __name__ == "__main__":
    sys.exit(main())

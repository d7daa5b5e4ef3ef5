"""What the commands print, and the exit codes that they end with."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any, TextIO

from iproto.checks import EXIT_USAGE
from iproto.errors import (
    CallTimeoutError,
    ConfigError,
    Error,
    ProtocolError,
    TextError,
)

EXIT_OK = 0
EXIT_REFUSED = 1
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


def exit_code(error: Exception) -> int:
    """The exit code of a command that failed."""
    if isinstance(error, Error):
        return EXIT_REFUSED
    if isinstance(error, CallTimeoutError):
        return EXIT_TIMEOUT
    if isinstance(error, (ProtocolError, TextError)):
        return EXIT_BAD_ANSWER
    if isinstance(error, (ConfigError, ValueError, OverflowError)):
        return EXIT_USAGE
    return EXIT_NO_CONNECTION


def prepare_stdout() -> None:
    """Makes standard output take whatever is printed."""
    if sys.stdout is None:  # closed by the process that started us: nobody reads it
        sys.stdout = nowhere()
    elif isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that has no sign for a character gets its number, not an error.
        sys.stdout.reconfigure(errors="backslashreplace")


def nowhere() -> TextIO:
    """An output that nobody reads."""
    return open(os.devnull, "w")


def print_error(error: object) -> None:
    """Prints an error to standard error, in one line."""
    print(f"iproto: {' '.join(str(error).split())}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Prints a value of MsgPack's as JSON."""
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

"""``schema/iproto.toml``: reading it, the rules that it keeps, and the names in it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Schema = dict[str, Any]
Entry = dict[str, Any]

ROOT = Path(__file__).parent.parent.parent
SOURCE = "schema/iproto.toml"
LINE_LENGTH = 100


def load() -> Schema:
    """The schema, checked."""
    schema = tomllib.loads((ROOT / SOURCE).read_text(encoding="utf-8"))
    check(schema)
    return schema


def check(schema: Schema) -> None:
    """Ends the program where the schema contradicts itself."""
    for kind, key in (
        ("function", "id"),
        ("status", "value"),
        ("return_code", "code"),
        ("state", "value"),
    ):
        numbers = [entry[key] for entry in schema[kind]]
        if len(set(numbers)) != len(numbers):
            sys.exit(f"{SOURCE}: two entries of {kind} have the same {key}")
    for kind in ("function", "return_code", "state", "close_reason", "flag", "outcome"):
        names = [entry["name"] for entry in schema[kind]]
        if len(set(names)) != len(names):
            sys.exit(f"{SOURCE}: two entries of {kind} have the same name")
    statuses = {entry["value"] for entry in schema["status"]}
    for entry in schema["return_code"]:
        if entry["code"] & 0xFF not in statuses:
            sys.exit(f"{SOURCE}: the low byte of {entry['name']} is no completion status")
    if schema["return_code"][0]["code"] != 0:
        sys.exit(f"{SOURCE}: the first return code must be OK: metrics count it in column 0")


def constant(entry: Entry) -> str:
    return str(entry.get("constant", entry["name"]))


def docstring(text: str) -> str:
    """A Markdown text as a docstring of one sentence."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("`", "``")
    return f'"""{plain[0].upper()}{plain[1:]}."""'


def wrapped(text: str) -> list[str]:
    """A docstring in lines that are not too long behind an indent of 4."""
    if len(text) <= LINE_LENGTH - 4:
        return [text]
    at = text.rindex(" ", 0, LINE_LENGTH - 4)
    return [text[:at], *wrapped(text[at + 1 :])]


def by_number(entries: list[Entry], key: str) -> list[Entry]:
    return sorted(entries, key=lambda entry: int(entry[key]))


def errors(schema: Schema) -> list[Entry]:
    return [code for code in by_number(schema["return_code"], "code") if code["code"]]

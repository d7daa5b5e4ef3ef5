"""docs/functions.md, clients.md, errors.md and cli.md: what they name is what there is."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys

import pytest

import iproto
from iproto import errors
from iproto.bench.settings import Settings
from iproto.cli.output import EXIT_CODES
from tests.helpers.harness import PATIENCE, serving
from tests.helpers.markdown import DOCS, blocks, column, section, table

pytestmark = pytest.mark.checkout


def test_the_clients_methods_are_those_there_are() -> None:
    said = {}
    for row in table("clients.md", "Methods", "method"):
        name, _, parameters = row["method"].rstrip(")").partition("(")
        said[name] = [p.strip() for p in parameters.split(",") if p.strip()]
    for client in (iproto.Client, iproto.AsyncClient):
        real = {}
        for name, member in vars(client).items():
            if name.startswith("_") or not inspect.isfunction(member) or "close" in name:
                continue
            real[name] = [
                str(parameter).partition(":")[0]
                for parameter in list(inspect.signature(member).parameters.values())[1:]
                if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
            ]
            assert "timeout" in inspect.signature(member).parameters
        assert said == real


def test_both_shapes_of_arguments_and_the_one_list_are_read_as_shown() -> None:
    app = iproto.App()

    @app.function(0x00030001)
    async def repeat(text: str, times: int = 2) -> str:
        return text * times

    @app.function(0x00030005)
    def total(items: list[int]) -> list[int]:
        return items

    with serving(app) as served, served.peer() as peer:
        for body in column("functions.md", "How arguments come on the wire", "body"):
            assert peer.ask(0x00030001, bytes.fromhex(body)).value == "ababab"
        lists = re.findall(
            r"^\| `([0-9a-f ]+)` \| `total\((.*)\)`:",
            section("functions.md", "How arguments come on the wire"),
            re.MULTILINE,
        )
        assert len(lists) == 3
        for body, items in lists:
            assert str(peer.ask(0x00030005, bytes.fromhex(body)).value) == items


def test_the_tree_of_errors_is_the_real_one() -> None:
    (drawn,) = (b.text for b in blocks(DOCS / "errors.md") if b.language == "text")
    found: set[tuple[str, str, str | None]] = set()
    parents: list[str] = []
    of_codes = {type(errors.error_from_reply(c, "")) for c in iproto.ReturnCode if c}
    for line in drawn.splitlines():
        if line == "│   └── one class for each return code: the table below":
            found |= {(cls.__name__, "Error", None) for cls in of_codes}
            continue
        match = re.fullmatch(r"([│├└─ ]*)(\w+)(?: \((\w+)\))?", line)
        assert match is not None, line
        depth = len(match[1]) // 4
        parents[depth:] = [match[2]]
        found.add((match[2], parents[depth - 1] if depth else "Exception", match[3]))
    assert found == {
        (cls.__name__, parent_of(cls), builtin_of(cls))
        for cls in vars(errors).values()
        if inspect.isclass(cls)
        and issubclass(cls, errors.IprotoError)
        and not cls.__name__.startswith("_")
    }
    assert all(hasattr(iproto, name) for name, _, _ in found)


def parent_of(cls: type) -> str:
    bases = [base for base in cls.__mro__[1:] if not base.__name__.startswith("_")]
    return bases[0].__name__


def builtin_of(cls: type) -> str | None:
    extra = [base for base in cls.__bases__ if base.__module__ == "builtins"]
    return extra[0].__name__ if extra and extra[0] is not Exception else None


def test_every_return_code_has_its_class() -> None:
    rows = table("errors.md", "The server answered with an error", "code")
    expected = []
    for code in sorted(iproto.ReturnCode):
        if code is iproto.ReturnCode.OK:
            continue
        error = errors.error_from_reply(code, "")
        retryable = "yes" if error.retryable else "no"
        expected.append((f"{code:#06x}", code.name, type(error).__name__, retryable))
    assert [(r["code"], r["name"], r["class"], r["retryable"]) for r in rows] == expected
    assert all(row["who acts"] for row in rows)


def test_the_other_errors_are_all_described() -> None:
    no_answer = column("errors.md", "No answer came", "class")
    assert {*no_answer} == {cls.__name__ for cls in errors.TransportError.__subclasses__()}
    no_sense = column("errors.md", "The answer makes no sense", "class")
    assert {*no_sense} == {"ProtocolError", "DialectError", "TextError"}


def test_the_load_tests_options_and_defaults_are_those_of_the_command_line() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "iproto", "bench", "--help"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        env={**os.environ, "COLUMNS": "500"},
    )
    text = re.sub(r"\n {10,}", " ", ended.stdout)
    told = dict(re.findall(r"^  (--[a-z-]+)\b.*?(?:\(default: (.*)\))?$", text, re.MULTILINE))
    rows = {row["option"]: row["default"] for row in table("load-testing.md", "Options", "option")}
    assert rows == told
    for field in dataclasses.fields(Settings):
        if field.name not in ("url", "timeout"):
            default = "none" if field.default is None else str(field.default).removesuffix(".0")
            assert rows["--" + field.name.replace("_", "-")] == default


def test_the_exit_codes_are_those_of_the_command_line() -> None:
    rows = table("errors.md", "Exit codes of the command line", "code")
    said = {row["code"]: row["meaning"] for row in rows}
    told = dict(re.findall(r"^  (\d)  (.*)$", EXIT_CODES, re.MULTILINE))
    assert said.keys() == told.keys() | {"130"}
    for code in ("0", "1", "3", "4", "5"):
        assert said[code] == told[code]

"""`iproto functions`, `iproto describe`, and calls by name: what a server says of its functions."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

import iproto
from iproto import ReturnCode
from tests.helpers.cli import failure, output
from tests.helpers.harness import PATIENCE, serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.harness import Served

DESCRIBE = 0x0000FF02


@dataclasses.dataclass
class Lot:
    name: str
    price: int = 5


def auction() -> iproto.App:
    app = iproto.App()

    @app.function(0x30002, timeout=2.5)
    async def bid(lot: Lot, cents: int, note: str | None = None) -> bool:
        """Bids for a lot.

        Over the price, or not at all.
        """
        return cents > lot.price

    @app.function(0x30001, name="echo")
    def same(value, text: str = "x" * 100):  # type: ignore[no-untyped-def]
        return [value, text]

    return app


def pages(served: Served) -> list[dict[str, Any]]:
    found, first = [], 0
    with served.peer() as peer:
        while first is not None:
            page = peer.ask(DESCRIBE, msgpack.packb([first])).value
            found.append(page)
            first = page["next"]
    return found


def test_functions_are_listed_in_the_order_of_their_numbers() -> None:
    with serving(auction()) as served:
        assert output("functions", url=served.url) == (
            "0x00030001  echo(value, text: str = ...)\n"
            "0x00030002  bid(lot: tests.cli.test_functions_cli.Lot, cents: int, "
            "note: str | None = None) -> bool\n"
            "            Bids for a lot.\n"
        )


def test_each_has_the_schema_of_its_arguments_and_its_result() -> None:
    with serving(auction()) as served:
        echo, bid = json.loads(output("functions", "--json", url=served.url))
    assert (echo["func_id"], echo["name"], echo["doc"], echo["timeout"]) == (
        0x30001,
        "echo",
        "",
        None,
    )
    assert echo["parameters"] == {
        "type": "array",
        "prefixItems": [{"title": "value"}, {"title": "text", "type": "string"}],
        "minItems": 1,
        "maxItems": 2,
    }
    assert echo["result"] == {}
    assert bid["doc"] == "Bids for a lot.\n\nOver the price, or not at all."
    assert bid["timeout"] == 2.5
    assert bid["result"] == {"type": "boolean"}
    lot, cents, _ = bid["parameters"]["prefixItems"]
    assert lot == {"title": "lot", "$ref": "#/$defs/Lot"}
    assert cents == {"title": "cents", "type": "integer"}
    assert bid["parameters"]["$defs"]["Lot"]["required"] == ["name"]


def test_functions_are_called_by_name(served: Served) -> None:
    assert output("call", "repeat", "ab", "3", url=served.url) == '"ababab"\n'
    assert output("call", "repeat", "3", url=served.url) == '"33"\n'
    assert output("call", "repeat", '"é"', url=served.url) == '"éé"\n'
    assert output("call", "repeat", '"', url=served.url) == '"\\"\\""\n'
    code, text = failure("call", "repeat", "ab", "many", url=served.url)
    assert (code, "a string needs quotes of its own" in text) == (2, True)
    code, text = failure("call", "repeta", "ab", url=served.url)
    assert (code, "no function 'repeta'; it has: repeat, raw" in text) == (2, True)


@pytest.mark.parametrize("app", [None, auction()])
def test_a_server_that_does_not_tell_is_no_riddle(app: iproto.App | None) -> None:
    with serving(app, describe_functions="off") as served:
        for command in (("functions",), ("call", "echo", "1")):
            code, text = failure(*command, url=served.url)
            assert (code, "call them by number" in text) == (2, True)
        with served.peer() as peer:
            assert peer.ask(DESCRIBE).code == ReturnCode.UNSUPPORTED_COMMAND


def test_many_functions_come_page_by_page() -> None:
    app = iproto.App()
    for number in range(100):
        function = eval(f"lambda x{number}=1: None")
        function.__doc__ = "doc " * 2000
        app.function(number, name=f"f{number}")(function)
    with serving(app) as served:
        found = pages(served)
        assert len(found) > 5
        assert all(len(msgpack.packb(page)) <= 1 << 16 for page in found)
        names = [function["name"] for page in found for function in page["functions"]]
        assert names == [f"f{number}" for number in range(100)]
        listed = json.loads(output("functions", "--json", url=served.url))
        assert [function["name"] for function in listed] == names


@pytest.mark.parametrize("first", [100, 2**62, -1, "1"])
def test_a_page_that_is_none_disturbs_nobody(first: object) -> None:
    with serving(auction()) as served, served.peer() as peer:
        reply = peer.ask(DESCRIBE, msgpack.packb([first]))
        if isinstance(first, int) and first > 0:
            assert reply.value == {"functions": [], "next": None}
        else:
            assert reply.code == ReturnCode.ILLEGAL_PARAMS


@pytest.mark.parametrize(
    "page",
    [
        1,
        {"functions": []},
        {"functions": [1], "next": None},
        {"functions": [{"func_id": "1"}], "next": None},
        {"functions": [], "next": 0},
    ],
)
def test_a_server_that_lies_about_its_functions_is_an_error_in_one_line(page: object) -> None:
    with serving(auction()) as served:
        functions = served.server._connections._permissions.functions
        functions[DESCRIBE] = _answering(functions[DESCRIBE], page)
        code, text = failure("functions", url=served.url)
        assert (code, text.count("\n"), "the server's list of functions" in text) == (5, 1, True)


def _answering(like: Any, value: object) -> Any:
    from iproto._fastframe import UserFunction

    return UserFunction(
        like.func_id,
        like.row,
        like.name,
        lambda *arguments: value,
        tuple(lambda array: (1,) for _ in range(2)),
        0,
        lambda error: error,
        msgpack.packb,
        lambda error: (2, b"\xc0"),
        is_async=False,
        timeout=None,
        counted=0,
        max_objects=100,
        max_depth=8,
    )


def test_an_app_is_described_without_a_server(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "import iproto\n\napp = iproto.App()\n\n"
        "@app.function(0x30001)\ndef repeat(text: str, times: int = 2) -> str:\n"
        '    """Says it again."""\n    return text * times\n'
    )

    def describe(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "iproto", "describe", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    listed = describe("shop:app")
    assert (listed.returncode, listed.stdout) == (
        0,
        "0x00030001  repeat(text: str, times: int = 2) -> str\n            Says it again.\n",
    )
    assert json.loads(describe("shop:app", "--json").stdout)[0]["result"] == {"type": "string"}
    missing = describe("shpo:app")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)

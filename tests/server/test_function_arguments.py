"""User functions: bodies become arguments, and what does not fit is refused by name."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import msgpack
import pytest

from iproto import ReturnCode
from tests.helpers.functions import OWN, app_of, pack
from tests.helpers.harness import serving


async def repeat(text: str, times: int = 2) -> str:
    return text * times


@pytest.mark.parametrize(
    "body",
    [pack("ab", 3), pack(["ab", 3])],
    ids=["objects one after the other", "one array"],
)
def test_arguments_come_in_two_shapes(body: bytes, loop_name: str) -> None:
    with serving(app_of(repeat), loop=loop_name) as served, served.peer() as peer:
        assert peer.ask(OWN, body, request_id=6) == (OWN, 6, 0, pack("ababab"))


@pytest.mark.parametrize("body", [pack("ab"), pack(["ab"])])
def test_defaults_fill_what_is_missing(body: bytes) -> None:
    with serving(app_of(repeat)) as served, served.peer() as peer:
        assert peer.ask(OWN, body).value == "abab"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "repeat takes 1 to 2 arguments, got 0"),
        (pack("a", 1, 2), "repeat takes 1 to 2 arguments, got 3"),
        (pack(["a", 1, 2]), "repeat takes 1 to 2 arguments, got 3"),
        (pack(1), "repeat: Expected `str`, got `int` - at `text`"),
        (pack("a", "b"), "repeat: Expected `int`, got `str` - at `times`"),
        (pack("a", True), "repeat: Expected `int`, got `bool` - at `times`"),
        (pack("a", 1.0), "repeat: Expected `int`, got `float` - at `times`"),
        (pack(b"a"), "repeat: Expected `str`, got `bytes` - at `text`"),
        (pack(None), "repeat: Expected `str`, got `None` - at `text`"),
        (b"\xa5ab", "body of 3 bytes ends within an object that begins at byte 0"),
        (pack("a") + b"\xcd\x01", "body of 4 bytes ends within an object that begins at byte 2"),
        (b"\xa5", "body of 1 bytes ends within an object that begins at byte 0"),
        (b"\xc1", "body of 1 bytes is not MsgPack: byte 0 is 0xc1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(body: bytes, text: str) -> None:
    with serving(app_of(repeat)) as served, served.peer() as peer:
        reply = peer.ask(OWN, body)
        assert (reply.code, reply.value) == (ReturnCode.ILLEGAL_PARAMS, text)
        assert peer.ask(OWN, pack("x")).value == "xx"


def test_a_string_that_is_not_utf8_is_refused() -> None:
    with serving(app_of(repeat)) as served, served.peer() as peer:
        reply = peer.ask(OWN, b"\xa1\xff")
        assert reply.code == ReturnCode.ILLEGAL_PARAMS
        assert "utf-8" in reply.value


def test_bodies_that_nest_too_deep_or_have_odd_keys_are_refused() -> None:
    with serving(app_of(repeat)) as served, served.peer() as peer:
        for body in (b"\x91" * 100_000, b"\x81\x90\x01", b"\xdd\xff\xff\xff\xff", b"\xc7\x01\x2a"):
            assert peer.ask(OWN, body).code == ReturnCode.ILLEGAL_PARAMS


@dataclasses.dataclass
class Point:
    x: int
    y: int


def test_every_msgpack_type_goes_in_and_out() -> None:
    def echo(a: bytes, b: list[int], c: dict[str, float], d: int | None, e: datetime.datetime,
             f: Point, g: Any) -> list[Any]:  # fmt: skip
        return [a, b, c, d, e, f, g]

    now = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    sent = [b"\xff", [1, 2], {"k": 0.5}, None, now, {"x": 1, "y": 2}, [{"any": "thing"}]]
    with serving(app_of(echo)) as served, served.peer() as peer:
        reply = peer.ask(OWN, pack(*sent))
        assert msgpack.unpackb(reply.body, timestamp=3) == sent


@pytest.mark.parametrize(
    ("body", "got"),
    [
        (pack([1, 2]), [1, 2]),
        (pack([[1, 2]]), [1, 2]),
        (pack([]), []),
        (pack([[]]), []),
    ],
)
def test_a_function_of_one_list_takes_it_bare_or_within_the_array(
    body: bytes, got: list[int]
) -> None:
    def same(items: list[int]) -> list[int]:
        return items

    with serving(app_of(same)) as served, served.peer() as peer:
        assert peer.ask(OWN, body).value == got


@pytest.mark.parametrize("body", [b"", pack([])])
def test_a_function_without_parameters_takes_nothing(body: bytes) -> None:
    def hello() -> str:
        return "hello"

    with serving(app_of(hello)) as served, served.peer() as peer:
        assert peer.ask(OWN, body).value == "hello"
        assert peer.ask(OWN, pack(1)).value == "hello takes 0 arguments, got 1"


def test_a_timestamp_that_no_datetime_can_hold_is_a_bad_argument() -> None:
    with serving(app_of(lambda when: None, name="any")) as served, served.peer() as peer:
        reply = peer.ask(OWN, bytes.fromhex("c70cff000000007fffffffffffffff"))
        assert reply.code == ReturnCode.ILLEGAL_PARAMS

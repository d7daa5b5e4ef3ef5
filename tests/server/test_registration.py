"""Registering user functions: numbers, signatures, rows of counters."""

from __future__ import annotations

import functools

import pytest

import iproto
from iproto import ConfigError, FuncID, ReturnCode
from tests.helpers.functions import OWN, app_of, pack
from tests.helpers.harness import serving
from tests.server.test_function_arguments import repeat


def test_the_numbers_around_the_reserved_ones_are_free() -> None:
    app = iproto.App()
    app.function(0x0000FEFF, name="below")(repeat)
    app.function(0x00010000, name="above")(repeat)
    assert [*app.functions] == [0x0000FEFF, 0x00010000]


def test_registration_refuses_what_cannot_work() -> None:
    app = app_of(repeat)
    for func_id, message in (
        (int(FuncID.STORAGE_READ), "STORAGE_READ"),
        (int(FuncID.PING), "PING"),
        (0x0000FF02, r"0x0000ff02 .* reserved"),
        (0x0000FFFF, r"0x0000ffff .* reserved"),
        (OWN, "taken by 'repeat'"),
        (-1, "0..0xffffffff"),
        (2**32, "0..0xffffffff"),
        ("1", "0..0xffffffff"),
    ):
        with pytest.raises(ConfigError, match=message):
            app.function(func_id)(repeat)  # type: ignore[arg-type]

    def variadic(*items: int) -> None: ...
    def keyword(*, item: int) -> None: ...
    def odd(item: complex) -> None: ...
    def plain() -> None: ...
    def undefined(item: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    for function, options, message in (
        (variadic, {}, r"\*items"),
        (keyword, {}, "by position"),
        (odd, {}, "complex"),
        (undefined, {}, "Nowhere"),
        (plain, {"timeout": 1}, "async def"),
        (repeat, {"timeout": 0, "name": "a"}, "over 0"),
        (repeat, {"timeout": "1", "name": "a"}, "timeout='1'"),
        (repeat, {"timeout": True, "name": "a"}, "timeout=True"),
        (repeat, {"timeout": float("inf"), "name": "a"}, "at most 86400"),
        (repeat, {}, "the name 'repeat' is taken"),
        (repeat, {"name": "STORAGE_READ"}, "the name 'STORAGE_READ' is taken"),
        (repeat, {"name": "unknown"}, "the name 'unknown' is taken"),
    ):
        with pytest.raises(ConfigError, match=message):
            app.function(OWN + 1, **options)(function)
    assert [*app.functions] == [OWN]


def test_a_partial_is_checked_by_what_is_left_of_its_signature() -> None:
    app = app_of(functools.partial(repeat, times=3), name="thrice")
    with serving(app) as served, served.peer() as peer:
        assert peer.ask(OWN, pack("ab")).value == "ababab"
        assert peer.ask(OWN, pack(1)).code == ReturnCode.ILLEGAL_PARAMS


def test_an_object_with_an_async_call_is_a_function() -> None:
    class Adder:
        async def __call__(self, a: int, b: int) -> int:
            return a + b

    with serving(app_of(Adder(), name="add")) as served, served.peer() as peer:
        assert peer.ask(OWN, pack(1, 2)).value == 3
        assert peer.ask(OWN, pack(1, "2")).code == ReturnCode.ILLEGAL_PARAMS


def test_two_servers_of_one_storage_count_each_function_under_its_name() -> None:
    storage = iproto.Storage()
    with (
        serving(app_of(lambda: 1, name="one"), storage) as first,
        serving(app_of(lambda: 2, name="two"), storage) as second,
        first.peer() as one,
        second.peer() as two,
    ):
        assert [one.ask(OWN).value, two.ask(OWN).value, two.ask(OWN).value] == [1, 2, 2]
        requests = storage.counters()["requests"]
        assert [requests[storage.row_for(name)][0] for name in ("one", "two")] == [1, 2]


def test_the_decorated_function_stays_as_it_was() -> None:
    app = iproto.App()
    assert app.function(OWN)(repeat) is repeat


def test_more_functions_than_counter_rows_work() -> None:
    app = iproto.App()
    for number in range(100):
        app.function(0x40000 + number, name=f"f{number}")(lambda: "ok")
    with serving(app) as served, served.peer() as peer:
        assert all(peer.ask(0x40000 + number).value == "ok" for number in range(100))


def test_a_method_can_be_a_function() -> None:
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def add(self, step: int) -> int:
            self.count += step
            return self.count

    with serving(app_of(Counter().add)) as served, served.peer() as peer:
        assert [peer.ask(OWN, pack(2)).value for _ in range(3)] == [2, 4, 6]

"""User functions whose parameters and results have types."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import uuid
from typing import Any, Literal, NamedTuple, Optional, TypedDict

import msgspec
import pytest

from iproto import ConfigError, ReturnCode
from tests.helpers.functions import answer, app_of, pack
from tests.server.test_function_bodies import REFUSED


@dataclasses.dataclass
class Item:
    sku: str
    qty: int = 1
    tags: list[str] = dataclasses.field(default_factory=list)
    parts: list[Item] = dataclasses.field(default_factory=list)


class Filter(TypedDict, total=False):
    low: int
    item: Item


class Circle(msgspec.Struct, tag=True):
    r: int


class Square(msgspec.Struct, tag=True):
    side: int
    item: Optional[Item] = None  # noqa: UP045


@dataclasses.dataclass
class Never:
    set: int = dataclasses.field(default=3, init=False)


class Holder(msgspec.Struct, rename="camel", omit_defaults=True):
    one_item: Item
    left_out: int = 5


class Row(msgspec.Struct, array_like=True, tag=True):
    item: Item


def order(item: Item) -> Item:
    return item


def test_unknown_keys_are_refused_by_name() -> None:
    def search(wanted: Filter, by: dict[str, list[Item]] | None = None) -> None: ...
    def area(shape: Circle | Square) -> None: ...

    for function, arguments, text in (
        (
            order,
            ({"sku": "a", "qyt": 3},),
            "order: Object contains unknown field `qyt` - at `item`",
        ),
        (
            order,
            ({"sku": "a", "parts": [{"sku": "b"}, {"sku": "c", "x": 1}]},),
            "order: Object contains unknown field `x` - at `item.parts[...]`",
        ),
        (search, ({"lo": 1},), "search: Object contains unknown field `lo` - at `wanted`"),
        (
            search,
            ({"item": {"sku": "a"}}, {"k": [{"sku": "a", "x": 1}]}),
            "search: Object contains unknown field `x` - at `by[...][...]`",
        ),
        (
            area,
            ({"type": "Square", "side": 1, "r": 1},),
            "area: Object contains unknown field `r` - at `shape`",
        ),
        (
            area,
            ({"type": "Square", "side": 1, "item": {"sku": "a", "x": 1}},),
            "area: Object contains unknown field `x` - at `shape.item`",
        ),
    ):
        for body in (pack(*arguments), pack(list(arguments))):
            assert answer(function, body) == [(REFUSED, text)]
            ((code, _),) = answer(function, body, app={"ignore_unknown_keys": True})
            assert code == 0
    known = ({"low": 1, "item": {"sku": "a"}}, {"k": [{"sku": "a", "qty": 2}], "l": []})
    assert answer(search, pack(*known)) == [(0, None)]
    assert answer(area, pack({"type": "Circle", "r": 2})) == [(0, None)]


def test_a_keyword_only_parameter_is_refused_unless_a_partial_binds_it() -> None:
    import functools

    def greet(name: str, *, mark: str = "!") -> str:
        return name + mark

    with pytest.raises(ConfigError, match=r"mark.*functools\.partial\(function, mark=\.\.\.\)"):
        app_of(greet)
    asked = functools.partial(greet, mark="?")
    assert answer(asked, pack("ab"), pack("ab", "!"), app={"name": "ask"}) == [
        (0, "ab?"),
        (REFUSED, "ask takes 1 arguments, got 2"),
    ]


# Typed out.
class Name(str): ...


class Count(int): ...


class Pair(NamedTuple):
    a: int
    b: str


class Point(msgspec.Struct):
    x: int
    y: list[float] = []


ALL_OF_A = {"sku": "a", "qty": 1, "tags": [], "parts": []}


def test_a_dataclass_comes_back_with_every_field(loop_name: str) -> None:
    def listed(item: Item) -> list[Item]:
        return [item]

    def mapped(item: Item) -> dict[str, Any]:
        return {"k": (item,)}

    def held(item: Item) -> Holder:
        return Holder(item)

    def row(item: Item):  # type: ignore[no-untyped-def]
        return Row(item)

    def never(item: Item) -> Never:
        return Never()

    def wrongly(item: Item) -> str:
        return item  # type: ignore[return-value]

    for function, value in (
        (order, ALL_OF_A),
        (listed, [ALL_OF_A]),
        (mapped, {"k": [ALL_OF_A]}),
        (held, {"oneItem": ALL_OF_A}),
        (row, ["Row", ALL_OF_A]),
        (never, {"set": 3}),
        (wrongly, ALL_OF_A),
    ):
        assert answer(function, pack({"sku": "a"}), loop=loop_name) == [(0, value)]


def test_results_are_the_same_typed_and_untyped() -> None:
    """What goes through msgspec, for its annotation, and what goes through msgpack."""

    values: list[tuple[Any, Any, Any]] = [
        (list[str], [Name("a")], ["a"]),
        (dict[str, int], {Name("k"): Count(3)}, {"k": 3}),
        (list[int], [2**64 - 1, -(2**63)], [2**64 - 1, -(2**63)]),
        (Pair, Pair(1, "b"), [1, "b"]),
        (set[int], {7}, [7]),
        (frozenset[str], frozenset({"x"}), ["x"]),
        (list[bytes], [b"\xff", bytearray(b"a")], [b"\xff", b"a"]),
        (Point, Point(1), {"x": 1, "y": []}),
        (list[uuid.UUID], [uuid.UUID(int=1)], [str(uuid.UUID(int=1))]),
        (list[decimal.Decimal], [decimal.Decimal("1.50")], ["1.50"]),
        (list[datetime.date], [datetime.date(2026, 1, 2)], ["2026-01-02"]),
        (Literal["a"], "a", "a"),
        (list[Any], [Item("a")], [ALL_OF_A]),
        (float, 1.5, 1.5),
        (int, True, True),
        (str, "é" * 300, "é" * 300),
    ]
    for annotation, value, expected in values:

        def typed() -> Any:
            return value  # noqa: B023

        def untyped() -> Any:
            return value  # noqa: B023

        typed.__annotations__["return"] = annotation
        untyped.__annotations__.clear()
        assert answer(typed, b"") == [(0, expected)], annotation
        assert answer(untyped, b"") == [(0, expected)], annotation


@pytest.mark.parametrize("value", [2**64, datetime.datetime(2026, 1, 1), 1j, "\udc80", object()])  # noqa: DTZ001
def test_what_has_no_form_in_msgpack_is_internal(value: Any) -> None:
    def listed() -> list[int]:
        return [value]

    def bare():  # type: ignore[no-untyped-def]
        return value

    assert [code for code, _ in answer(bare, b"")] == [ReturnCode.INTERNAL]
    if not isinstance(value, datetime.datetime):  # where the annotation denies it, it is a str
        assert [code for code, _ in answer(listed, b"")] == [ReturnCode.INTERNAL]
